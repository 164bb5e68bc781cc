"""The index: finds records by unique id, key and tag (`IndexFile`, `IndexHeader`, `IndexService`).

A file `index/<yyyyMMddHHmmssSSS>` is a hash table: a header of 40 bytes (int64 begin and end time, int64 begin and end
physical offset, int32 slots in use, int32 next entry's number, from 1), int32 slots that hold the number of their
newest entry, and entries of 20 bytes: int32 hash of the key, int64 physical offset, int32 seconds since the begin
time, int32 number of the slot's entry before.

Keys of a message, in this order: `topic#uniqueId`, `topic#key` for each word of KEYS, `topic#T#tags`. Messages are
collected and entered together; slots are written later than entries, many at a time. After an unclean stop the slots
are computed anew from the entries, which are cut back to those that are known to be on disk.

What cannot be written waits in memory, where it is found, and is entered once: what is known of a file changes when
its entries are written, and a write that failed is repeated in the same place.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import sys
import time
from array import array
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from operator import mul

from rocketq.store.files import Files, make_durable_dirs
from rocketq.store.values import Appended

log = logging.getLogger("rocketq.store")

HEADER = struct.Struct(">qqqqii")
ENTRY = struct.Struct(">iqii")
_INT = struct.Struct(">i")
_MASK = 0xFFFFFFFF
_PAGE = 4096
_PIECE = 1 << 20
_SLOTS_PER_PAGE = _PAGE // 4

#: Enter the collected messages when they are this many (few, as everybody waits meanwhile) …
_MAX_PENDING = 64
#: … and write the slots when so many have changed.
_MAX_HEADS = 8192
#: sysFlag bits of a rolled back transactional message, which is not indexed.
_ROLLBACK = 0xC

#: 31^0 … in reverse, so that the last n are those for a text of n characters.
_POWERS = [1]
for _ in range(255):
    _POWERS.append(_POWERS[-1] * 31 & _MASK)
_POWERS.reverse()


def _hash(text: str) -> int:
    """Java's hash of a text as an unsigned number."""
    if text.isascii() and len(text) <= 256:
        return int(sum(map(mul, text.encode(), _POWERS[256 - len(text) :]))) & _MASK
    raw = text.encode("utf-16-be", "surrogatepass")
    value = 0
    for (unit,) in struct.iter_unpack(">H", raw):
        value = value * 31 + unit & _MASK
    return value


def _positive(value: int) -> int:
    """|hash| as the index has it: 0 for the one number that has no positive counterpart."""
    value &= _MASK
    if value & 0x80000000:
        return 0 if value == 0x80000000 else -value & _MASK
    return value


def key_hash(key: str) -> int:
    """The hash under which the index enters a whole key like `topic#key`."""
    return _positive(_hash(key))


# Keys are hashed in parts that repeat: hash(a + b) = hash(a) * 31^length(b) + hash(b).
_topic_hash = lru_cache(maxsize=16_384)(_hash)
#: For the last three characters of unique ids, which count in hexadecimal, and for what is before them.
_counter_hash = lru_cache(maxsize=4096)(_hash)
_start_hash = lru_cache(maxsize=4096)(_hash)
_P3 = 31**3


@lru_cache(maxsize=4096)
def _part(text: str) -> tuple[int, int]:
    """31^length and hash of the last part of a key."""
    units = len(text) if text.isascii() else len(text.encode("utf-16-be", "surrogatepass")) // 2
    return pow(31, units, 1 << 32), _hash(text)


def index_items(messages: Iterable[Appended]) -> list[tuple[int, int, int]]:
    """(hash, physical offset, store time) of every key of messages, in the order of their entries."""
    items = []
    topic = start = tag = None  # of the message before: mostly they are the same
    topic_hash = start_hash = start_power = tag_hash = tag_power = 0
    for message in messages:
        if message.sys_flag & _ROLLBACK == _ROLLBACK:
            continue
        offset, timestamp = message.physical_offset, message.store_timestamp
        if message.topic != topic:
            topic = message.topic
            topic_hash = _topic_hash(topic + "#")
        unique_id, keys = message.unique_id, message.keys
        if unique_id is not None:
            if unique_id.isascii() and 3 < len(unique_id) < 256:
                if unique_id[:-3] != start:
                    start = unique_id[:-3]
                    start_hash = _start_hash(start) * _P3
                    start_power = _POWERS[255 - len(unique_id)]
                value = topic_hash * start_power + start_hash + _counter_hash(unique_id[-3:]) & _MASK
            else:
                power, value = _part(unique_id)
                value = topic_hash * power + value & _MASK
            items.append((value if value < 0x80000000 else _positive(value), offset, timestamp))
        if keys:
            for key in keys.split(" "):
                if key:
                    power, value = _part(key)
                    items.append((_positive(topic_hash * power + value), offset, timestamp))
        if message.tag:
            if message.tag != tag:
                tag = message.tag
                tag_power, tag_hash = _part("T#" + tag)
            value = topic_hash * tag_power + tag_hash & _MASK
            items.append((value if value < 0x80000000 else _positive(value), offset, timestamp))
    return items


class IndexFile:
    """One file and the fields of its header."""

    def __init__(self, path: str, slots: int, capacity: int, files: Files) -> None:
        self.path = path
        self.slots = slots
        self.capacity = capacity
        self.size = HEADER.size + 4 * slots + 20 * capacity
        self._entries_at = HEADER.size + 4 * slots
        self._files = files
        self._fd = -1
        self._mapping: mmap.mmap | None = None
        self._heads: dict[int, int] = {}  # slots that are not written yet
        self.begin_timestamp = self.end_timestamp = self.begin_offset = self.end_offset = 0
        self.used_slots = 0
        self.count = 1

    def load(self) -> bool:
        """Read the header; False when the file does not have the size that it should."""
        fd = self._open()
        if self._files.size(fd) != self.size:
            return False
        raw = self._files.pread(fd, HEADER.size, 0)
        (
            self.begin_timestamp,
            self.end_timestamp,
            self.begin_offset,
            self.end_offset,
            self.used_slots,
            count,
        ) = HEADER.unpack(raw)
        self.count = min(max(count, 1), self.capacity)
        return True

    def is_empty(self) -> bool:
        return self._files.size(self._open()) == 0

    def create(self) -> None:
        """Make the file. Raises OSError; nothing is left of it then, where that can be."""
        files = self._files
        fd = files.open(self.path, create=True)
        try:
            files.truncate(fd, self.size)
        except OSError:
            files.close(fd)
            with suppress(OSError):  # the next start removes an empty one
                files.unlink(self.path)
            raise
        self._fd = fd

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = self._files.open(self.path)
        return self._fd

    @property
    def full(self) -> bool:
        return self.count >= self.capacity

    def _slot_map(self) -> mmap.mmap:
        """Header and slots, read-only."""
        if self._mapping is None:
            self._mapping = self._files.map(self._open(), self._entries_at)
        return self._mapping

    def add(self, items: list[tuple[int, int, int]]) -> int:
        """Enter (hash, physical offset, store time) until the file is full; returns how many were entered.

        Raises OSError; none is entered then.
        """
        heads = self._heads
        if len(heads) >= _MAX_HEADS:
            self.flush()
        items = items[: self.capacity - self.count]
        slots, count, used = self.slots, self.count, self.used_slots
        begin = self.begin_timestamp
        mapping = self._slot_map()
        changed: dict[int, int] = {}
        unpack, pack = _INT.unpack_from, ENTRY.pack
        entries = []
        offset = timestamp = 0
        for value, offset, timestamp in items:
            slot = value % slots
            if slot in changed:
                before = changed[slot]
            elif slot in heads:
                before = heads[slot]
            else:
                (before,) = unpack(mapping, HEADER.size + 4 * slot)
                if not 0 < before <= count:
                    before = 0
                    used += 1
            seconds = 0
            if 0 < begin < timestamp - 999:
                seconds = min((timestamp - begin) // 1000, 0x7FFFFFFF)
            entries.append(pack(value, offset, seconds, before))
            changed[slot] = count
            if count == 1:
                begin = timestamp
            count += 1
        self._files.pwrite(self._open(), b"".join(entries), self._entries_at + 20 * self.count)
        heads.update(changed)
        if self.count == 1:
            _, self.begin_offset, self.begin_timestamp = items[0]
        self.count, self.used_slots = count, used
        self.end_offset, self.end_timestamp = offset, timestamp
        return len(items)

    def flush(self) -> bool:
        """Write the slots that changed, page by page, and the header; False: none has."""
        heads = self._heads
        if not heads:
            return False
        pages: dict[int, list[int]] = {}
        for slot in heads:
            pages.setdefault(slot // _SLOTS_PER_PAGE, []).append(slot)
        fd, files, mapping = self._open(), self._files, self._slot_map()
        for page, slots in pages.items():
            at = HEADER.size + page * _PAGE
            if len(slots) == 1:
                files.pwrite(fd, _INT.pack(heads[slots[0]]), HEADER.size + 4 * slots[0])
                continue
            content = bytearray(mapping[at : at + _PAGE])
            first = page * _SLOTS_PER_PAGE
            for slot in slots:
                _INT.pack_into(content, 4 * (slot - first), heads[slot])
            files.pwrite(fd, content, at)
        self._write_header()
        heads.clear()
        return True

    def _write_header(self) -> None:
        header = HEADER.pack(
            self.begin_timestamp,
            self.end_timestamp,
            self.begin_offset,
            self.end_offset,
            self.used_slots,
            self.count,
        )
        self._files.pwrite(self._open(), header, 0)

    def cut(self, offset: int) -> None:
        """Forget the entries of records from `offset` on, and compute the slots anew."""
        fd, files = self._open(), self._files
        low, high = 1, self.capacity
        while low < high:
            middle = (low + high) // 2
            raw = files.pread(fd, 20, self._entries_at + 20 * middle)
            if any(raw) and ENTRY.unpack(raw)[1] < offset:  # zeros: never written
                low = middle + 1
            else:
                high = middle
        self.count = low
        self._heads.clear()
        self._clear(self._entries_at + 20 * low)
        heads = array("i", bytes(4 * self.slots))
        number = 1
        while number < low:
            raw = files.pread(fd, 20 * min(low - number, 50_000), self._entries_at + 20 * number)
            for (value,) in struct.iter_unpack(">i16x", raw):
                heads[value % self.slots] = number
                number += 1
        self.used_slots = self.slots - heads.count(0)
        if sys.byteorder == "little":
            heads.byteswap()
        self._mapping = None
        table = memoryview(heads).cast("B")
        for at in range(0, len(table), _PAGE):
            page = table[at : at + _PAGE]
            if files.pread(fd, len(page), HEADER.size + at) != page:
                files.pwrite(fd, page, HEADER.size + at)
        if low > 1:
            _, self.end_offset, seconds, _ = ENTRY.unpack(files.pread(fd, 20, self._entries_at + 20 * (low - 1)))
            self.end_timestamp = min(self.end_timestamp, self.begin_timestamp + 1000 * seconds + 999)
        self._write_header()

    def _clear(self, at: int) -> None:
        """Make everything from a byte on zeros. The size stays: a crash must not leave a file of another one."""
        fd, files = self._open(), self._files
        data_at = files.next_data(fd, at)
        while data_at is not None and data_at < self.size:
            piece = files.pread(fd, _PIECE, data_at)
            if any(piece):
                files.pwrite(fd, bytes(len(piece)), data_at)
            data_at = files.next_data(fd, data_at + len(piece))

    def find(self, value: int, begin: int, end: int, room: int) -> list[int]:
        """Physical offsets of entries with this hash and a time in the range, newest first."""
        found: list[int] = []
        slot = value % self.slots
        (number,) = _INT.unpack_from(self._slot_map(), HEADER.size + 4 * slot)
        number = self._heads.get(slot, number)
        while 0 < number < self.count and len(found) < room:
            raw = self._files.pread(self._open(), 20, self._entries_at + 20 * number)
            own, offset, seconds, before = ENTRY.unpack(raw)
            # entries have whole seconds: one of the range's first second may be the one that is looked for
            time_ms = self.begin_timestamp + 1000 * seconds
            if own == value and begin <= time_ms + 999 and time_ms <= end:
                found.append(offset)
            if time_ms + 999 < begin or before >= number:
                break
            number = before
        return found

    def overlaps(self, begin: int, end: int) -> bool:
        return begin <= self.end_timestamp and end >= self.begin_timestamp

    def release(self) -> None:
        """Give the pages of the slots that were read back to the system."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._mapping = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)


class Index:
    """All index files. `enabled` False: nothing is entered. Methods raise OSError."""

    def __init__(self, directory: str, slots: int, capacity: int, files: Files) -> None:
        self.directory = directory
        self._slots = slots
        self._capacity = capacity
        self._files = files
        self.files: list[IndexFile] = []
        self._pending: list[Appended] = []
        self._items: list[tuple[int, int, int]] = []  # of messages that were pending, not entered yet
        self._changed: set[str] = set()
        self._new_file = False
        self.enabled = True

    def open(self) -> None:
        """Find the files; one whose size is not that of the settings is left alone, with an error in the log."""
        if self.enabled:
            make_durable_dirs(self._files, self.directory)
        for name in sorted(self._files.listdir(self.directory)):
            if len(name) != 17 or not name.isdigit():
                continue
            path = os.path.join(self.directory, name)
            file = IndexFile(path, self._slots, self._capacity, self._files)
            loaded, empty = file.load(), file.is_empty()
            file.close()
            if loaded:
                self.files.append(file)
            elif empty:  # the process died between making the file and giving it its size
                self._files.unlink(path)
            else:
                log.error(
                    "%s was made with other settings than maxHashSlotNum=%d maxIndexNum=%d; its keys are not found",
                    path,
                    self._slots,
                    self._capacity,
                )

    def cut(self, offset: int) -> None:
        """After an unclean stop: forget what belongs to records from `offset` on."""
        self._pending.clear()
        self._items.clear()
        while self.files:
            file = self.files[-1]
            # one without entries lacks its header: it is newer than the checkpoint
            if file.count > 1 and file.begin_offset < offset:
                break
            self.files.pop()
            file.close()
            self._files.unlink(file.path)
        if self.files:
            self.files[-1].cut(offset)
            self._changed.add(self.files[-1].path)
            self._new_file = True  # its name may not be on disk

    def clean(self, log_min: int) -> list[str]:
        """Forget files of which every record is before `log_min`, where the log begins now; the last file stays.

        Returns their paths, for the caller to remove.
        """
        paths = []
        while len(self.files) > 1 and self.files[0].end_offset < log_min:
            file = self.files.pop(0)
            file.close()
            self._changed.discard(file.path)
            paths.append(file.path)
        return paths

    def add(self, batch: Iterable[Appended]) -> None:
        """Collect messages."""
        if self.enabled:
            self._pending += batch

    def relieve(self) -> None:
        """Enter the collected messages when they are many."""
        if len(self._pending) >= _MAX_PENDING:
            self.build()

    def build(self) -> None:
        """Enter the collected messages. What cannot be entered is kept for the next call."""
        items = self._items
        if self._pending:
            items += index_items(self._pending)
            self._pending.clear()
        while items:
            file = self.files[-1] if self.files else None
            if file is None or file.full:
                file = self._roll(file)
            self._changed.add(file.path)
            del items[: file.add(items)]

    def flush(self) -> None:
        """Enter the collected messages and write everything."""
        self.build()
        if self.files:
            self._write_slots(self.files[-1])

    def _write_slots(self, file: IndexFile) -> None:
        if file.flush():
            self._changed.add(file.path)  # it may have been forced to disk since its last entry

    def _roll(self, full: IndexFile | None) -> IndexFile:
        if full is not None:
            self._write_slots(full)
        now = time.time()
        number = int(time.strftime("%Y%m%d%H%M%S", time.localtime(now))) * 1000 + int(now * 1000) % 1000
        if full is not None:  # names sort by age, also when the clock was set back
            number = max(number, int(os.path.basename(full.path)) + 1)
        while self._files.exists(path := os.path.join(self.directory, f"{number:017d}")):
            number += 1
        file = IndexFile(path, self._slots, self._capacity, self._files)
        file.create()
        self._new_file = True
        self.files.append(file)
        if full is not None:
            # as in Apache's: the first entry's seconds count from the former file's end
            file.begin_timestamp = file.end_timestamp = full.end_timestamp
            file.begin_offset = file.end_offset = full.end_offset
            full.close()
        return file

    def find(self, key: str, begin: int, end: int, max_count: int) -> list[int]:
        """Physical offsets of the newest records under a whole key like `topic#key`, each once."""
        with suppress(OSError):  # the next flush tells of it; what waits is found as well
            self.build()
        value = key_hash(key)
        found: dict[int, None] = {}
        for own, offset, timestamp in reversed(self._items):
            if own == value and begin <= timestamp <= end and len(found) < max_count:
                found[offset] = None
        for file in reversed(self.files):
            if len(found) >= max_count:
                break
            if file.overlaps(begin, end):
                found.update(dict.fromkeys(file.find(value, begin, end, max_count - len(found))))
                if file is not self.files[-1]:
                    file.close()
            if file.begin_timestamp < begin:
                break
        return list(found)

    @property
    def end_timestamp(self) -> int:
        return self.files[-1].end_timestamp if self.files else 0

    @property
    def end_physical_offset(self) -> int:
        return self.files[-1].end_offset if self.files else 0

    @property
    def full_timestamp(self) -> int:
        """End time of the last file that is full; what the checkpoint calls indexMsgTimestamp."""
        return max((file.end_timestamp for file in self.files if file.full), default=0)

    def take_changed(self) -> tuple[set[str], set[str]]:
        """Files and directories that have to be forced to disk."""
        files, self._changed = self._changed, set()
        directories = {self.directory} if self._new_file else set()
        self._new_file = False
        return files, directories

    def release(self) -> None:
        """Give pages that were read back to the system."""
        for file in self.files:
            file.release()

    def close(self) -> None:
        """Close files; collected messages are forgotten."""
        for file in self.files:
            file.close()
