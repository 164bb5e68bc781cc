"""Recovery: finding the end of the CommitLog after a stop, and bringing ConsumeQueues and index up to it.

Where checking begins: at the checkpoint's mark, before which everything is known to be on disk; without one (Apache's
broker wrote the directory) at the file that Apache would begin with: after an orderly stop the last one, otherwise
the one whose first record is not newer than the checkpoint's times. From there records are checked one by one.
After an unclean stop their ConsumeQueue and index entries are written again, and older ones from there on are not
believed. When ConsumeQueues are missing, all of them are rebuilt from the whole log.

What ends the log:

========================================  =====================================================================
zeros, and nothing behind them            the regular end
something that is no record, and no       a torn tail: the last batch was being written. It is cut off; nobody
record behind it                          got an answer for it, or its loss is what ASYNC_FLUSH allows
a gap: a record, a disk sector of it, or  pages that never reached the disk when the power failed; it can only
what it has of a sector that was flushed  be in what was not flushed. Cut at the gap, with an error in the log
up to it, is zeros, and records are
behind it; after an unclean stop, and
not before the checkpoint
anything else that is no record, and      damage to data that was on disk. The store does not open: going on
records are behind it                     would silently drop acknowledged messages. The error names file and
                                          offset and says what can be done
========================================  =====================================================================
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rocketq.errors import StoreError
from rocketq.hashing import tags_code
from rocketq.names import SCHEDULE_TOPIC, can_be_stored
from rocketq.properties import decode_properties
from rocketq.record import (
    BLANK_SIZE,
    BORN_HOST_V6,
    INNER_BATCH,
    MAGIC_BLANK,
    MAGIC_V1,
    MAGIC_V2,
    STORE_HOST_V6,
    TRANSACTION_PREPARED,
    CorruptRecord,
)
from rocketq.store.commitlog import CommitLog, LogFile, blank
from rocketq.store.consumequeue import ConsumeQueues, Queue
from rocketq.store.files import Files
from rocketq.store.index import Index
from rocketq.store.marks import Checkpoint
from rocketq.store.values import Appended, Recovery

log = logging.getLogger("rocketq.store")

_CHUNK = 1 << 20
_SECTOR = 512
_ZERO_SECTOR = bytes(_SECTOR)
_ZEROS = bytes(_CHUNK)

_SIZE_MAGIC = struct.Struct(">II")
_PREFIX = struct.Struct(">IIIiiqqiq")
_LONG = struct.Struct(">q")
_INT = struct.Struct(">i")
_SHORT = struct.Struct(">h")


def _is_used(chunk: bytes) -> bool:
    """Whether there is anything but zeros in at most _CHUNK bytes."""
    return chunk != (_ZEROS if len(chunk) == _CHUNK else _ZEROS[: len(chunk)])


class Found(NamedTuple):
    """What recovery needs of a record."""

    offset: int
    size: int
    queue_id: int
    queue_offset: int
    sys_flag: int
    store_timestamp: int
    topic: str
    properties: dict[str, str]


def parse(data: bytes, at: int, size: int, physical_offset: int, check_crc: bool) -> Found:
    """The record of `size` bytes at `at` of `data`, which holds all of it. Raises CorruptRecord."""
    _, magic, crc, queue_id, _, queue_offset, own_offset, sys_flag, _ = _PREFIX.unpack_from(data, at)
    if own_offset != physical_offset:
        raise CorruptRecord(f"it says that it is at {own_offset}")
    if not 0 <= queue_offset <= physical_offset:  # every message before it took more than a byte
        raise CorruptRecord(f"its queue offset {queue_offset} cannot be")
    end = at + size
    position = at + (68 if sys_flag & BORN_HOST_V6 else 56)
    try:
        (store_timestamp,) = _LONG.unpack_from(data, position)
        position += (20 if sys_flag & STORE_HOST_V6 else 8) + 20
        (length,) = _INT.unpack_from(data, position)
        position += 4
        body_end = position + length
        if length < 0 or body_end > end:
            raise CorruptRecord(f"its body of {length} bytes exceeds its {size}")
        if magic == MAGIC_V1:
            topic_at = body_end + 1
            topic_end = topic_at + data[body_end]
        else:
            topic_at = body_end + 2
            topic_end = topic_at + int.from_bytes(data[body_end:topic_at], "big")
        (width,) = _SHORT.unpack_from(data, topic_end)
        if topic_end + 2 + width != end:
            raise CorruptRecord(f"its parts add up to {topic_end + 2 + width - at} bytes, not {size}")
        # the CRC covers the body only; a tail that was torn behind it is zeros, which no property string ends with
        if (width and not data[end - 1]) or 0 in data[topic_at:topic_end]:
            raise CorruptRecord("its properties or its topic were not written whole")
        topic = data[topic_at:topic_end].decode()
        properties = data[topic_end + 2 : end].decode()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise CorruptRecord(f"its parts do not fit ({error})") from None
    if not can_be_stored(topic):
        raise CorruptRecord(f"its topic {topic[:80]!r} cannot be a name")
    if check_crc and zlib.crc32(memoryview(data)[position:body_end]) & 0x7FFFFFFF != crc:
        raise CorruptRecord("its body does not match its CRC")
    return Found(
        physical_offset,
        size,
        queue_id,
        queue_offset,
        sys_flag,
        store_timestamp,
        topic,
        decode_properties(properties),
    )


class Scan:
    """Walks over records. Afterwards `end` is where it stopped and `problem` why; empty: where nothing was written."""

    def __init__(self, commit_log: CommitLog, files: Files, check_crc: bool) -> None:
        self._log = commit_log
        self._files = files
        self._check_crc = check_crc
        self.end = 0
        self.problem = ""

    def records(self, start: int) -> Iterator[Found]:
        """The records from `start` on, up to the first place that is none."""
        self.end, self.problem = start, ""
        while (file := self._log.find(self.end)) is not None:
            fd = self._files.open(file.path, write=False, scan=True)
            try:
                yield from self._file(file, fd)
            finally:
                self._files.close(fd)
            if self.end != file.end:
                return

    def _file(self, file: LogFile, fd: int) -> Iterator[Found]:
        """The records of one file from `end` on; leaves `end` at the file's end when the log goes on behind it."""
        chunk, chunk_start = b"", self.end
        while True:
            offset = self.end
            at = offset - chunk_start
            room = file.end - offset
            if len(chunk) - at < 8:
                chunk, chunk_start, at = self._chunk(fd, file, offset), offset, 0
            size, magic = _SIZE_MAGIC.unpack_from(chunk, at) if len(chunk) - at >= 8 else (0, 0)
            if magic == MAGIC_BLANK and size == room:
                self.end = file.end
                return
            if size == 0 and magic == 0:
                return
            # a file that a crash left shorter ends with its last record
            most = room if file.size < self._log.file_size else room - BLANK_SIZE
            if magic not in (MAGIC_V1, MAGIC_V2) or not 91 <= size <= most:
                self.problem = f"magic {magic:#010x} with size {size} is not a record"
                return
            if at + size > len(chunk):
                chunk, chunk_start, at = self._chunk(fd, file, offset, size), offset, 0
            try:
                found = parse(chunk, at, size, offset, self._check_crc)
            except CorruptRecord as error:
                self.problem = f"the record of {size} bytes is damaged: {error}"
                return
            yield found
            self.end = offset + size

    def _chunk(self, fd: int, file: LogFile, offset: int, least: int = 8) -> bytes:
        """A piece from `offset` on that ends at a multiple of its size, so that nothing behind it gets cached."""
        end = offset - file.start + least
        end += -end % _CHUNK
        return self._read(fd, file, offset, end - (offset - file.start))

    def _read(self, fd: int, file: LogFile, offset: int, size: int) -> bytes:
        return self._files.pread(fd, min(size, file.end - offset), offset - file.start)

    def first(self, offset: int) -> Found | None:
        """The record at `offset`."""
        return next(self.records(offset), None)

    def follows(self, found: Found, offset: int) -> bool:
        """Whether the record behind `found` belongs at `offset`: right there, or in the next file."""
        end = found.offset + found.size
        file = self._log.find(found.offset)
        return offset == end or (file is not None and offset == file.end and self._is_blank(file, end))

    def _is_blank(self, file: LogFile, offset: int) -> bool:
        fd = self._files.open(file.path, write=False, scan=True)
        try:
            return self._read(fd, file, offset, 8) == blank(file.end - offset)
        finally:
            self._files.close(fd)

    def is_end(self, offset: int) -> bool:
        """Whether there is no record at `offset`."""
        return self.first(offset) is None

    def next_record(self, offset: int) -> int | None:
        """The offset of the first whole record that begins behind `offset`, past anything else."""
        for file in self._log.files:
            if file.end <= offset:
                continue
            fd = self._files.open(file.path, write=False, scan=True)
            try:
                found = self._search(file, fd, max(offset + 1, file.start))
            finally:
                self._files.close(fd)
            if found is not None:
                return found
        return None

    def _search(self, file: LogFile, fd: int, begin: int) -> int | None:
        offset = begin
        while offset < file.end:
            data_at = self._files.next_data(fd, offset - file.start)
            if data_at is None:
                return None
            offset = max(offset, file.start + data_at)
            chunk = self._chunk(fd, file, offset, 1)
            # both magics, found by what they share
            at = chunk.find(b"\xda\xa3\x20") if _is_used(chunk) else -1
            while at >= 0:
                start = offset + at - 4
                if start >= begin and self._is_record(file, fd, start):
                    return start
                at = chunk.find(b"\xda\xa3\x20", at + 1)
            # a magic may lie across the end of a piece
            for back in (1, 2):
                start = offset + len(chunk) - back - 4
                if chunk[-back:] == b"\xda\xa3"[:back] and start >= begin and self._is_record(file, fd, start):
                    return start
            offset += len(chunk)
        return None

    def _is_record(self, file: LogFile, fd: int, offset: int) -> bool:
        head = self._read(fd, file, offset, _PREFIX.size)
        if len(head) < _PREFIX.size:
            return False
        size, magic, _, _, _, _, own, _, _ = _PREFIX.unpack(head)
        if magic not in (MAGIC_V1, MAGIC_V2) or own != offset or not 91 <= size <= file.end - offset - BLANK_SIZE:
            return False
        try:
            parse(self._read(fd, file, offset, size), 0, size, offset, True)
        except CorruptRecord:
            return False
        return True

    def is_gap(self, start: int, end: int) -> bool:
        """Whether a sector from `start` to `end`, or what `start` begins with of one, is zeros: never written."""
        file = self._log.find(start)
        if file is None:
            return True
        fd = self._files.open(file.path, write=False, scan=True)
        try:
            # of a head across two sectors the first may be lost: no size begins with four zeros
            head = min(8, _SECTOR - start % _SECTOR)
            if not any(self._read(fd, file, start, head if head >= 4 else 8)):
                return True
            if head < 4 and self._lacks(head, file, fd, start, min(end, file.end)):
                return True
            position = start - start % _SECTOR
            end = min(end, file.end)
            while position < end:
                chunk = self._read(fd, file, max(position, file.start), min(_CHUNK, end - position))
                for at in range(0, len(chunk) - _SECTOR + 1, _SECTOR):
                    if chunk[at : at + _SECTOR] == _ZERO_SECTOR:
                        return True
                position += _CHUNK
        finally:
            self._files.close(fd)
        return False

    def _lacks(self, head: int, file: LogFile, fd: int, start: int, end: int) -> bool:
        """Whether what is at `start` lacks only its first `head` bytes, which are zeros, to be a record or filler.

        That was in a sector whose flushed part ended at `start`: all before it would be zeros otherwise.
        """
        data = self._read(fd, file, start, 8)
        if any(data[:head]):
            return False
        if data[head:] == blank(file.end - start)[head:]:
            return True
        if end - start >> 24:  # no record is that long
            return False
        data = self._read(fd, file, start, end - start)
        for size in range(int.from_bytes(data[:4], "big"), len(data) + 1, 256 ** (4 - head)):
            with suppress(CorruptRecord):
                parse(data, 0, size, start, True)
                return True
        return False


def appended(found: Found, queue: Queue, sys_flag: int, delays: list[int]) -> Appended:
    """The record as ConsumeQueue and index enter it."""
    properties = found.properties
    tag = properties.get("TAGS")
    code = tags_code(tag) if tag else 0
    if found.topic == SCHEDULE_TOPIC:
        level = properties.get("DELAY", "")
        if level.isdecimal() and int(level) > 0 and delays:
            code = found.store_timestamp + delays[min(int(level), len(delays)) - 1]
    return Appended(
        found.topic,
        found.queue_id,
        found.queue_offset,
        found.offset,
        found.size,
        found.store_timestamp,
        code,
        sys_flag,
        queue,
        properties.get("UNIQ_KEY"),
        properties.get("KEYS"),
        tag,
    )


class _Hole(Exception):
    """A queue's entries before a record are missing."""


class Rebuilder:
    """Makes entries of records that were found in the log, and writes them."""

    def __init__(self, queues: ConsumeQueues, index: Index, delays: list[int], whole: bool) -> None:
        self._queues = queues
        self._index = index
        self._delays = delays
        self._whole = whole
        self._batch: list[Appended] = []

    def add(self, found: Found) -> None:
        """Raises _Hole when earlier entries of the queue are missing, unless the whole log is read anyway."""
        if not self.continues(found):
            self.flush()
        self._batch.append(self.take(found))
        if len(self._batch) >= 1000:
            self.flush()

    def continues(self, found: Found) -> bool:
        """Whether the record is the next one of its queue."""
        if found.sys_flag & (INNER_BATCH | TRANSACTION_PREPARED):
            return True
        return found.queue_offset == self._queues.obtain(found.topic, found.queue_id).next_offset

    def take(self, found: Found) -> Appended:
        """The record with its place. Entries of those before it have to be in their queues unless it continues its own.

        Raises _Hole as `add`.
        """
        sys_flag = found.sys_flag
        if sys_flag & INNER_BATCH:
            # its queue is a batchconsumequeue, which only Apache's broker serves: nothing but the index, as for
            # prepared messages
            queue = Queue(found.topic, found.queue_id)
            sys_flag |= TRANSACTION_PREPARED
        else:
            queue = self._queues.obtain(found.topic, found.queue_id)
        if not sys_flag & TRANSACTION_PREPARED:
            if found.queue_offset != queue.next_offset:
                self._mend(queue, found)
            queue.next_offset = found.queue_offset + 1
        return appended(found, queue, sys_flag, self._delays)

    def _mend(self, queue: Queue, found: Found) -> None:
        wanted = found.queue_offset
        if wanted < queue.next_offset:  # the topic was deleted and made anew: its later life counts
            self._queues.truncate(queue, wanted)
            return
        if not self._whole:
            raise _Hole
        if self._lost(queue, found):
            log.error(
                "topic %s queue %d: the log has no messages %d to %d, consumers pass over them",
                found.topic,
                found.queue_id,
                queue.next_offset,
                wanted - 1,
            )
            self._queues.skip(queue, wanted, found.offset)
        else:
            self._queues.restart_at(queue, wanted)

    def _lost(self, queue: Queue, found: Found) -> bool:
        """Whether there is room in the log for the messages that lack before this one."""
        before = self._queues.entry(queue, queue.next_offset - 1)
        return before is not None and (found.queue_offset - queue.next_offset) * 91 <= found.offset - before[0]

    def flush(self) -> None:
        self._queues.dispatch(self._batch)
        self._queues.relieve()
        self._index.add(self._batch)
        self._index.relieve()
        self._batch = []


def recover(
    commit_log: CommitLog,
    queues: ConsumeQueues,
    index: Index,
    checkpoint: Checkpoint,
    files: Files,
    *,
    clean: bool,
    check_crc: bool,
    delays: list[int],
    forget: Callable[[], None],
) -> tuple[Recovery, Found | None]:
    """Bring everything to the end of the log; returns the report and the last record.

    `forget` is called before what the checkpoint says ceases to be true.
    Raises StoreError when the log is damaged in a way that needs a decision, OSError when the disk fails.
    """
    report = Recovery(clean=clean)
    scan = Scan(commit_log, files, check_crc)
    start, last = _start(scan, commit_log, checkpoint, clean)
    durable = start if last is not None else 0
    redo = not clean
    if checkpoint.queues < 0 or (clean and queues.count() < checkpoint.queues):
        redo, start = True, commit_log.min_offset
        forget()
    while True:
        whole = redo and start <= commit_log.min_offset
        queues.limit = start if redo else commit_log.end
        rebuilder = Rebuilder(queues, index, delays, whole)
        if redo:
            index.cut(start)
        report.checked_from, report.records, report.rebuilt = start, 0, whole and not scan.is_end(start)
        try:
            for found in scan.records(start):
                report.records += 1
                if redo:
                    rebuilder.add(found)
                last = found
            if not redo and last is not None and report.records and not _has_entry(queues, last):
                raise _Hole
        except _Hole:
            log.warning("ConsumeQueues are missing or incomplete: rebuilding them from the whole CommitLog")
            forget()
            queues.reset()
            redo, start = True, commit_log.min_offset
            continue
        break
    if redo:
        rebuilder.flush()
    report.end = scan.end
    _settle(commit_log, scan, files, report, durable)
    queues.limit = report.end
    return report, last


def _start(scan: Scan, commit_log: CommitLog, checkpoint: Checkpoint, clean: bool) -> tuple[int, Found | None]:
    """Where checking begins, and the record before that if it is known."""
    low = commit_log.min_offset
    if checkpoint.offset is not None and low <= checkpoint.offset <= commit_log.end:
        # the mark holds where the record before it ends there; this may be another log by now
        last = scan.first(checkpoint.last) if checkpoint.last >= low else None
        if last is not None and scan.follows(last, checkpoint.offset):
            return checkpoint.offset, last
    for file in reversed(commit_log.files):
        first = scan.first(file.start)
        if first is not None and (clean or first.store_timestamp <= checkpoint.min_timestamp):
            return file.start, None
    return low, None


def _has_entry(queues: ConsumeQueues, found: Found) -> bool:
    if found.sys_flag & (INNER_BATCH | TRANSACTION_PREPARED):
        return True
    queue = queues.get(found.topic, found.queue_id)
    entry = queues.entry(queue, found.queue_offset) if queue is not None else None
    return entry is not None and entry[:2] == (found.offset, found.size)


def _settle(commit_log: CommitLog, scan: Scan, files: Files, report: Recovery, durable: int) -> None:
    """Decide about what is behind the end of the records (see the table above). Up to `durable` all was flushed."""
    end = scan.end
    file = commit_log.find(end)
    if file is None:
        return
    behind = scan.next_record(end)
    if behind is not None and (report.clean or end < durable or not scan.is_gap(end, behind)):
        text = (
            f"{file.path} is damaged at byte {end - file.start} (offset {end}): {scan.problem or 'zeros'}; "
            f"from offset {behind} on there are good records again. The store stays closed, because to go on would "
            f"drop acknowledged messages. Restore the file from a copy; or let `rocketq store repair` take out what "
            f"cannot be read"
        )
        log.error("%s", text)
        raise StoreError(text)
    used = used_end(commit_log, files, end)
    if used == end:
        return
    place = f"{file.path}: byte {end - file.start} (offset {end})"
    if behind is not None:
        text = (
            f"{place}: nothing was written here, but there are records from offset {behind} on: the power failed "
            f"before the disk had it all. The log was cut here, {used - end} bytes that were not flushed are lost"
        )
        log.error("%s", text)
    else:
        text = f"{place}: the torn tail of {used - end} bytes was cut off: {scan.problem or 'zeros, then rubbish'}"
        log.warning("%s", text)
    report.problems.append(text)
    report.cut_bytes = used - end
    commit_log.cut(end)


def used_end(commit_log: CommitLog, files: Files, offset: int) -> int:
    """The offset behind the last byte that is not zero, at least `offset`."""
    end = offset
    for file in commit_log.files:
        if file.end <= offset:
            continue
        fd = files.open(file.path, write=False, scan=True)
        try:
            position = max(0, offset - file.start)
            while position < file.size:
                data_at = files.next_data(fd, position)
                if data_at is None:
                    break
                position = data_at
                chunk = files.pread(fd, _CHUNK - position % _CHUNK, position)
                used = len(chunk.rstrip(b"\0")) if _is_used(chunk) else 0
                if used:
                    end = file.start + position + used
                position += len(chunk)
        finally:
            files.close(fd)
    return end
