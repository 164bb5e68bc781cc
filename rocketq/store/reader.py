"""The reading side of the store: by queue offset, by physical offset, by time, by key.

Nothing at or behind `readable` (the end of what is written, or with SYNC_FLUSH of what is on disk) is handed out.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterator

from rocketq.hashing import tags_code
from rocketq.properties import decode_properties
from rocketq.record import BORN_HOST_V6, MAGIC_V1, MAGIC_V2, STORE_HOST_V6
from rocketq.store.commitlog import CommitLog
from rocketq.store.config import StoreConfig
from rocketq.store.consumequeue import ENTRY, EXT_ADDRESS, ConsumeQueues, Queue
from rocketq.store.files import Files
from rocketq.store.index import Index
from rocketq.store.values import GetStatus, QueryResult, ReadResult

log = logging.getLogger("rocketq.store")

#: Entries that one read looks at most (`maxFilterMessageSize` 16000 bytes).
_MAX_SCAN = 800
#: Records that one query of the index answers with at most (`maxMsgsNumBatch`).
_MAX_QUERY = 64
#: Damaged records that are told of.
_MAX_REPORTED = 1000

_HEAD = struct.Struct(">iIIiiqqi")
_LONG = struct.Struct(">q")


def _body_place(record: memoryview, sys_flag: int) -> tuple[int, int]:
    """Where the body of a record begins and ends."""
    at = 88 + 12 * (bool(sys_flag & BORN_HOST_V6) + bool(sys_flag & STORE_HOST_V6))
    return at, at + int.from_bytes(record[at - 4 : at], "big")


def is_sound(record: memoryview, physical_offset: int) -> bool:
    """Whether a record of the log is one, and its body what was stored."""
    _, magic, crc, _, _, _, physical, sys_flag = _HEAD.unpack_from(record)
    begin, end = _body_place(record, sys_flag)
    crc_of_body = zlib.crc32(record[begin:end]) & 0x7FFFFFFF
    return magic in (MAGIC_V1, MAGIC_V2) and physical == physical_offset and crc_of_body == crc


def store_time_of(record: memoryview) -> int:
    """The store time of a record."""
    sys_flag: int = _HEAD.unpack_from(record)[7]
    at = 68 if sys_flag & BORN_HOST_V6 else 56
    return int(_LONG.unpack_from(record, at)[0])


def properties_of(record: memoryview) -> dict[str, str]:
    """The properties of a record; its body is not looked at."""
    _, magic, *_, sys_flag = _HEAD.unpack_from(record)
    _, at = _body_place(record, sys_flag)
    width = 1 if magic == MAGIC_V1 else 2
    at += width + int.from_bytes(record[at : at + width], "big")
    return decode_properties(bytes(record[at + 2 :]).decode(errors="replace"))


def tags_of(record: memoryview) -> str:
    """The TAGS property of a record; empty without one."""
    return properties_of(record).get("TAGS", "")


class Reader:
    """What can be asked of an open store. Queue offsets count messages; times are ms since 1970.

    Files that the disk cannot read raise OSError.
    """

    def __init__(self, config: StoreConfig, files: Files) -> None:
        self.config = config
        self.files = files
        self.log = CommitLog(config.commit_log_directory, config.mapped_file_size_commit_log, files)
        root = config.store_path_root_dir
        self.consume_queues = ConsumeQueues(f"{root}/consumequeue", config.mapped_file_size_consume_queue, files)
        self.index = Index(f"{root}/index", config.max_hash_slot_num, config.max_index_num, files)
        #: end of what may be read
        self.readable = 0
        #: what is before is from earlier runs, and nobody has looked whether the disk still has it as it was, or a
        #: master sent a record of it that is damaged
        self._unchecked = 0
        self._reported: set[int] = set()

    @property
    def min_physical_offset(self) -> int:
        """Offset of the first byte of the log that is kept."""
        return self.log.min_offset

    def read(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        max_count: int,
        *,
        max_bytes: int = 262_144,
        codes: frozenset[int] | None = None,
        match: Callable[[memoryview], bool] | None = None,
    ) -> ReadResult:
        """Messages of a queue from `offset` on (`DefaultMessageStore.getMessage`).

        At most `max_count` of them, and at most `max_bytes` unless the first is larger. With `codes` only those
        whose tag has one of these codes, with `match` only those whose record it accepts; at most 800 are looked
        at, so `next_offset` may move although nothing matched.
        """
        queues = self.consume_queues
        queue = queues.table.get((topic, queue_id)) or queues.get(topic, queue_id)
        if queue is None:
            return ReadResult(GetStatus.NO_MATCHED_LOGIC_QUEUE, 0, 0, 0, [])
        high = queue.max_offset
        log = self.log
        log_min = log.min_offset
        low = queue.min_offset if queue.min_valid_for == log_min else queues.min_offset(queue, log_min)
        if high == 0:
            return ReadResult(GetStatus.NO_MESSAGE_IN_QUEUE, 0, 0, 0, [])
        if offset == high:
            return ReadResult(GetStatus.OFFSET_OVERFLOW_ONE, offset, low, high, [])
        if offset < low:
            return ReadResult(GetStatus.OFFSET_TOO_SMALL, low, low, high, [])
        if offset > high:
            return ReadResult(GetStatus.OFFSET_OVERFLOW_BADLY, high, low, high, [])
        filtering = codes is not None or match is not None
        raw = queues.entries(queue, offset, max(_MAX_SCAN, max_count) if filtering else max_count)
        if not raw:
            following = queues.next_file(queue, offset)
            return ReadResult(GetStatus.OFFSET_FOUND_NULL, following, low, high, [])
        readable = self.readable
        status = GetStatus.NO_MATCHED_MESSAGE
        buffers: list[memoryview] = []
        count = total = 0
        start = end = file_end = 0  # of the run of consecutive records, and of its file
        for physical, size, code in ENTRY.iter_unpack(raw):
            if count and (count >= max_count or total + size > max_bytes):
                break
            offset += 1
            if codes is not None and code not in codes and code > EXT_ADDRESS:
                continue
            if physical != end or physical + size > file_end:
                file = log.find(physical)
                if file is None or physical + size > min(readable, file.end):
                    if not count:
                        status = GetStatus.MESSAGE_WAS_REMOVING
                    continue
                file_end = min(readable, file.end)
            if physical < self._unchecked and not self._is_sound(physical, size, topic, queue_id, offset - 1):
                if not count:
                    status = GetStatus.MESSAGE_WAS_REMOVING
                continue
            if codes is not None and code <= EXT_ADDRESS:
                record = log.view(physical, size)
                if record is None or tags_code(tags_of(record)) not in codes:
                    continue
            if match is not None:
                record = log.view(physical, size)
                if record is None or not match(record):
                    continue
            if physical != end:
                if count:
                    buffers.append(self._slice(start, end))
                start = physical
            end = physical + size
            count += 1
            total += size
        if not count:
            return ReadResult(status, offset, low, high, [])
        buffers.append(self._slice(start, end))
        return ReadResult(GetStatus.FOUND, offset, low, high, buffers, count, total)

    def _is_sound(self, physical: int, size: int, topic: str, queue_id: int, offset: int) -> bool:
        """Whether a record of an earlier run may be handed out; says so in the log when it may not."""
        record = self.log.view(physical, size) if size >= 91 else None
        if record is not None and is_sound(record, physical):
            return True
        if physical not in self._reported and len(self._reported) < _MAX_REPORTED:
            self._reported.add(physical)
            file = self.log.find(physical)
            log.error(
                "%s is damaged at byte %d: topic %s queue %d message %d is not handed out, its record does not match "
                "its CRC. Restore the file from a copy, or see `rocketq store check`",
                self.log.directory if file is None else file.path,
                physical if file is None else physical - file.start,
                topic,
                queue_id,
                offset,
            )
        return False

    def _slice(self, start: int, end: int) -> memoryview:
        view = self.log.view(start, end - start)
        assert view is not None  # the caller found the file
        return view

    def record_at(self, physical_offset: int) -> memoryview | None:
        """The record at an offset of the log; None when none begins there. 0: the oldest record there is."""
        if physical_offset == 0:
            physical_offset = self.log.min_offset
        room = self.readable - physical_offset
        head = self.log.view(physical_offset, _HEAD.size) if room >= _HEAD.size else None
        if head is None:
            return None
        size, magic, _, _, _, _, physical, _ = _HEAD.unpack(head)
        if magic not in (MAGIC_V1, MAGIC_V2) or physical != physical_offset or not 91 <= size <= room:
            return None
        return self.log.view(physical_offset, size)

    def records(self, physical_offset: int) -> Iterator[memoryview]:
        """Every record of the log from the one at an offset on, to where the log ends or a file is missing."""
        while physical_offset < self.readable:
            record = self.record_at(physical_offset)
            if record is not None:
                yield record
                physical_offset += len(record)
                continue
            file = self.log.find(physical_offset)
            if file is None:
                return
            physical_offset = file.end  # behind the filler of this one

    # queues

    def queues(self) -> Iterator[tuple[str, int]]:
        """Topic and id of every queue that has or had messages."""
        return iter(self.consume_queues.keys())

    def max_offset(self, topic: str, queue_id: int) -> int:
        """The offset behind a queue's last message; 0 for a queue that does not exist."""
        queue = self.consume_queues.get(topic, queue_id)
        return queue.max_offset if queue else 0

    def min_offset(self, topic: str, queue_id: int) -> int:
        """The offset of a queue's first message that is kept; equal to the max offset when none is."""
        queue = self.consume_queues.get(topic, queue_id)
        return self._min(queue) if queue else 0

    def _min(self, queue: Queue) -> int:
        return self.consume_queues.min_offset(queue, self.log.min_offset)

    def consume_entry(self, topic: str, queue_id: int, offset: int) -> tuple[int, int, int] | None:
        """(physical offset, size, tag code) of a queue's message; None when the queue does not have it."""
        queue = self.consume_queues.get(topic, queue_id)
        return self.consume_queues.entry(queue, offset) if queue else None

    def store_time(self, topic: str, queue_id: int, offset: int) -> int:
        """When a queue's message was stored; -1 when there is no such message."""
        queue = self.consume_queues.get(topic, queue_id)
        return self._time(queue, offset) if queue else -1

    def earliest_store_time(self, topic: str, queue_id: int) -> int:
        """When the first message that a queue still has was stored; -1 when it has none."""
        queue = self.consume_queues.get(topic, queue_id)
        return self._time(queue, self._min(queue)) if queue else -1

    def _time(self, queue: Queue, offset: int) -> int:
        entry = self.consume_queues.entry(queue, offset)
        if entry is None or entry[0] < self.log.min_offset:
            return -1
        record = self.record_at(entry[0]) if entry[0] else self.log.view(0, entry[1])
        return store_time_of(record) if record is not None else -1

    def offset_by_time(self, topic: str, queue_id: int, timestamp_ms: int, upper: bool = False) -> int:
        """The first message that was stored at or after a time, or with `upper` the last one at or before it.

        The edges are Apache's (`ConsumeQueue.getOffsetInQueueByTime`): after all messages the offset behind the
        last one, with `upper` the last one; before all of them the first one, with `upper` 0.
        """
        queue = self.consume_queues.get(topic, queue_id)
        if queue is None:
            return 0
        low, high = self._min(queue), queue.max_offset
        first = low
        if low == high:
            return high
        while low < high:
            middle = (low + high) // 2
            time = self._time(queue, middle)
            if time < timestamp_ms or (upper and time == timestamp_ms):
                low = middle + 1
            else:
                high = middle
        if not upper:
            return low
        return low - 1 if low > first else 0

    # keys

    def query(self, topic: str, key: str, *, begin: int, end: int, max_count: int, kind: str = "K") -> QueryResult:
        """Records of a topic that were stored from `begin` to `end` under a key or unique id, newest first.

        `kind` T looks for a tag instead of a key. At most 64.
        """
        full_key = f"{topic}#T#{key}" if kind == "T" else f"{topic}#{key}"
        offsets = self.index.find(full_key, begin, end, min(max_count, _MAX_QUERY))
        records = [self.record_at(offset) for offset in offsets if offset or not self.log.min_offset]
        found = [record for record in records if record is not None]
        return QueryResult(found, self.index.end_timestamp, self.index.end_physical_offset)
