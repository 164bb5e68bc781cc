"""Looks at all of a store whose broker is stopped (:meth:`StoreCheck.run`), and mends what can be mended.

A check reads every record of the CommitLog with its CRC, then every entry of ConsumeQueues and index and the record
that it names, then the timer's and the small files. It changes nothing. After an unclean stop, what the next start
makes anew in any case is not looked at.

Mending takes out of the CommitLog what cannot be read: those bytes are kept in `damaged/`, and records of an ended
transaction, which nobody is given, stand in their place. ConsumeQueues and index are removed then, or when they are
what is damaged, and the next start makes them again: consumers pass over the numbers of the messages that are lost.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from rocketq.errors import StoreError
from rocketq.javajson import loads
from rocketq.names import TIMER_TOPIC
from rocketq.record import INNER_BATCH, TRANSACTION_PREPARED, TRANSACTION_ROLLBACK, encode_record, pack_host
from rocketq.store.checktimer import check_timer
from rocketq.store.commitlog import CommitLog, LogFile, blank
from rocketq.store.config import StoreConfig
from rocketq.store.consumequeue import BLANK_SIZE, ENTRY, EXT_ADDRESS, SIZE, ConsumeQueues, Queue
from rocketq.store.files import Buffer, OsFiles, make_durable_dirs, read_file, store_error, write_file
from rocketq.store.index import ENTRY as INDEX_ENTRY
from rocketq.store.index import HEADER, Index, IndexFile, index_items
from rocketq.store.marks import Checkpoint, Marks
from rocketq.store.recovery import Found, Scan, appended, parse, used_end

#: What stands where a message was: this topic has no queue.
_LOST_TOPIC = b"LOST"
_LOST_LEAST = 91 + len(_LOST_TOPIC)
_PIECE = 1 << 20
_PER_READ = 1000


class _Unchanged(OsFiles):
    """Files that nothing is done to: what opening would tidy up is left as it is."""

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int:
        return super().open(path, write=False, scan=scan)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> None: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def allocate(self, fd: int, size: int) -> None: ...
    def unlink(self, path: str) -> None: ...
    def make_dirs(self, path: str) -> None: ...
    def fsync_dir(self, path: str) -> None: ...


@dataclass
class Problem:
    """Something that is wrong.

    `kind`: `log` (messages are lost), `tail` (the next start cuts it off), `derived` and `timer` (can be made again
    from the log), or `small` (a small file). `position` is the byte in `file`; of the log, `start` and `end` are
    offsets, and `time` is when the record behind was stored. `messages` are those that are known to be lost: topic,
    queue, number.
    """

    kind: str
    file: str
    position: int
    text: str
    start: int = 0
    end: int = 0
    time: int = 0
    messages: list[tuple[str, int, int]] = field(default_factory=list)


class _Part(NamedTuple):
    """A damaged stretch of one file of the log."""

    file: LogFile
    start: int
    end: int
    time: int


class StoreCheck:
    """One store. Raises StoreError when the directory holds none, StoreLocked while a broker uses it."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._root = config.store_path_root_dir
        if not os.path.isdir(config.commit_log_directory):
            raise StoreError(f"{self._root} holds no store: there is no {config.commit_log_directory}")
        self._files = files = _Unchanged()
        self._log = CommitLog(config.commit_log_directory, config.mapped_file_size_commit_log, files)
        self._queues = ConsumeQueues(f"{self._root}/consumequeue", config.mapped_file_size_consume_queue, files)
        self._index = Index(f"{self._root}/index", config.max_hash_slot_num, config.max_index_num, files)
        self._delays = config.delay_levels()
        self._damages: list[Problem] = []
        #: behind the last message of each queue that the log has
        self._ends: dict[tuple[str, int], int] = {}
        self._end = 0
        #: up to here ConsumeQueues and index are believed by the next start
        self._believed = 0

    def run(self, progress: Callable[[int, int], None] = lambda done, whole: None) -> list[Problem]:
        """Everything that is wrong. `progress` is told the bytes of the log that were read, and how many there are.

        Raises StoreLocked, StoreError when a file of the log is missing or the disk cannot be read.
        """
        marks = Marks(self._root, OsFiles())
        try:
            marks.lock()
            try:
                return list(self._check(marks, progress))
            finally:
                self._log.close()
                self._queues.close()
                self._index.close()
                marks.unlock()
        except OSError as error:
            raise store_error(f"cannot check the store in {self._root}", error) from error

    def _check(self, marks: Marks, progress: Callable[[int, int], None]) -> Iterator[Problem]:
        checkpoint, clean = marks.load(), marks.is_clean()
        self._log.open()
        yield from self._check_log(checkpoint, clean, progress)
        self._believed = (
            1 << 63 if clean else min((checkpoint.offset or 0) if checkpoint.queues >= 0 else 0, self._end)
        )
        self._queues.limit = self._log.end
        self._queues.scan()
        for topic, queue_id in sorted(self._queues.keys()):
            yield from self._check_queue(topic, queue_id)
        if clean:
            yield from self._check_ends()
        yield from self._damages
        self._index.open()
        for file in self._index.files:
            yield from self._check_index(file, clean)
        if clean:
            for path, position, text in check_timer(self._root, self._files, self._may_wait):
                yield Problem("timer", path, position, text)
        yield from self._check_small(checkpoint)

    # the CommitLog

    def _check_log(
        self, checkpoint: Checkpoint, clean: bool, progress: Callable[[int, int], None]
    ) -> Iterator[Problem]:
        log = self._log
        scan = Scan(log, self._files, check_crc=True)
        offset, whole, told = log.min_offset, log.end - log.min_offset, 0
        while True:
            for found in scan.records(offset):
                if self._damages and not self._damages[-1].time:
                    self._damages[-1].time = found.store_timestamp
                if not found.sys_flag & (INNER_BATCH | TRANSACTION_PREPARED):
                    self._ends[found.topic, found.queue_id] = found.queue_offset + 1
                if found.offset - told > _PIECE:
                    told = found.offset
                    progress(told - log.min_offset, whole)
            end = scan.end
            behind = scan.next_record(end)
            if behind is None:
                break
            gap = not clean and end >= (checkpoint.offset or 0) and scan.is_gap(end, behind)
            why = scan.problem or "zeros"
            if gap:
                text = f"the disk never got what belongs here ({why}): the next start cuts the log off here"
                yield self._of_log("tail", end, used_end(log, self._files, end), text)
                break
            text = f"{behind - end} bytes (offset {end} to {behind}) cannot be read: {why}"
            self._damages.append(self._of_log("log", end, behind, text))
            offset = behind
        self._end = end
        if behind is None and (used := used_end(log, self._files, end)) > end:
            text = f"a torn tail of {used - end} bytes, which the next start cuts off: {scan.problem or 'rubbish'}"
            yield self._of_log("tail", end, used, text)
        progress(whole, whole)

    def _of_log(self, kind: str, start: int, end: int, text: str) -> Problem:
        file = self._log.find(start)
        assert file is not None  # there is something behind `start`
        return Problem(kind, file.path, start - file.start, text, start, end)

    def _record(self, offset: int, size: int) -> Found | None:
        """The record at a place, if it is one of that size."""
        view = self._log.view(offset, size) if 91 <= size <= self._end - offset else None
        if view is None or int.from_bytes(view[:4], "big") != size:
            return None
        try:
            return parse(bytes(view), 0, size, offset, False)
        except StoreError:
            return None

    def _damage_at(self, offset: int) -> Problem | None:
        return next((damage for damage in self._damages if damage.start <= offset < damage.end), None)

    # what is made from it

    def _check_queue(self, topic: str, queue_id: int) -> Iterator[Problem]:
        queue = self._queues.get(topic, queue_id)
        assert queue is not None
        low = self._queues.min_offset(queue, self._log.min_offset)
        while low < queue.max_offset:
            raw = self._queues.entries(queue, low, _PER_READ)
            if not raw:
                yield self._of_queue(queue, low, f"a file is missing: there are entries up to {queue.max_offset}")
                return
            for number, (offset, size, code) in enumerate(ENTRY.iter_unpack(raw), low):
                damage = self._damage_at(offset)
                if damage is not None:
                    damage.messages.append((topic, queue_id, number))
                elif size != BLANK_SIZE and offset + size <= self._believed:
                    wrong = self._wrong_entry(queue, number, offset, size, code)
                    if wrong:
                        yield self._of_queue(queue, number, wrong)
            low += len(raw) // SIZE

    def _check_ends(self) -> Iterator[Problem]:
        """Queues that end too early. The log may have messages of topics that were deleted."""
        try:
            topics = loads(read_file(self._files, f"{self._root}/config/topics.json") or b"{}")
        except ValueError:
            return  # that is told where small files are
        for (topic, queue_id), end in sorted(self._ends.items()):
            queue = self._queues.get(topic, queue_id) or Queue(topic, queue_id)
            if queue.max_offset < end and topic in topics.get("topicConfigTable", {}):
                yield self._of_queue(queue, queue.max_offset, f"there are no entries up to {end}")

    def _of_queue(self, queue: Queue, number: int, text: str) -> Problem:
        size = self._config.mapped_file_size_consume_queue
        at = number * SIZE
        path = f"{self._queues.directory}/{queue.topic}/{queue.queue_id}/{at - at % size:020d}"
        return Problem("derived", path, at % size, f"topic {queue.topic} queue {queue.queue_id} {number}: {text}")

    def _wrong_entry(self, queue: Queue, number: int, offset: int, size: int, code: int) -> str:
        found = self._record(offset, size)
        if found is None:
            return f"the entry names a record of {size} bytes at {offset}, and there is none"
        if queue.topic.startswith("%LMQ%"):
            return ""  # these have the records of other topics
        if (found.topic, found.queue_id, found.queue_offset) != (queue.topic, queue.queue_id, number):
            return (
                f"the record at {offset} says that it is topic {found.topic} queue {found.queue_id} "
                f"{found.queue_offset}"
            )
        wanted = appended(found, queue, found.sys_flag, self._delays).tags_code
        delayed = "DELAY" in found.properties  # the levels may have been others then
        if code != wanted and code > EXT_ADDRESS and not delayed:
            return f"the entry has the tag code {code}, the record at {offset} has {wanted}"
        return ""

    def _check_index(self, file: IndexFile, clean: bool) -> Iterator[Problem]:
        files = self._files
        fd = files.open(file.path, scan=True)
        try:
            entries_at = HEADER.size + 4 * file.slots
            hashes = array("I", [0])
            last, keys = -1, frozenset[int]()
            while len(hashes) < file.count:
                first = len(hashes)
                raw = files.pread(fd, 20 * min(file.count - first, _PER_READ), entries_at + 20 * first)
                for number, (value, offset, _, before) in enumerate(INDEX_ENTRY.iter_unpack(raw), first):
                    hashes.append(value & 0xFFFFFFFF)
                    if offset >= self._believed or self._damage_at(offset):
                        continue
                    expired = last < offset < self._log.min_offset
                    if offset != last and not expired:
                        keys = self._keys(offset) if offset > last else frozenset()
                    if (expired or value in keys) and before < number:
                        last = offset
                    else:
                        text = f"entry {number} names the record at {offset}, which has no such key"
                        yield Problem("derived", file.path, entries_at + 20 * number, text)
            if clean:
                slots = struct.iter_unpack(">i", files.pread(fd, 4 * file.slots, HEADER.size))
                for slot, (head,) in enumerate(slots):
                    if head and not (0 < head < file.count and hashes[head] % file.slots == slot):
                        text = f"slot {slot} names entry {head}, which does not belong to it"
                        yield Problem("derived", file.path, HEADER.size + 4 * slot, text)
        finally:
            files.close(fd)

    def _keys(self, offset: int) -> frozenset[int]:
        """The hashes under which a record is entered."""
        head = self._log.view(offset, 4)
        found = None if head is None else self._record(offset, int.from_bytes(head, "big"))
        if found is None:
            return frozenset()
        entered = appended(found, Queue(found.topic, found.queue_id), found.sys_flag, [])
        return frozenset(value for value, _, _ in index_items([entered]))

    def _may_wait(self, offset: int, size: int) -> bool:
        """Whether a record of the timer's topic is, or may have been, there."""
        if offset < self._log.min_offset or self._damage_at(offset):
            return True
        found = self._record(offset, size)
        return found is not None and found.topic == TIMER_TOPIC

    # small files

    def _check_small(self, checkpoint: Checkpoint) -> Iterator[Problem]:
        path = f"{self._root}/checkpoint"
        data = read_file(self._files, path)
        if data is not None and (len(data) != 4096 or (any(data[64:104]) and checkpoint.offset is None)):
            yield Problem("small", path, 64, "it is damaged: the next start reads more of the log")
        directory = f"{self._root}/config"
        for name in sorted(self._files.listdir(directory)):
            path = os.path.join(directory, name)
            if not name.endswith((".json", ".json.bak")):
                continue
            try:
                loads(read_file(self._files, path) or b"")
            except ValueError as error:
                where = getattr(error, "pos", 0)
                text = f"it cannot be read: {error}"
                if not name.endswith(".bak") and self._files.exists(path + ".bak"):
                    text += f"; the next start takes {name}.bak"
                yield Problem("small", path, where, text)


def mend(config: StoreConfig, problems: list[Problem]) -> list[str]:
    """Mend what :meth:`StoreCheck.run` has found, and say what was done. Begun twice it does no harm.

    Raises StoreLocked, StoreError when something cannot be mended or written; what was begun is done again then.
    """
    files = OsFiles()
    root = config.store_path_root_dir
    marks = Marks(root, files)
    done: list[str] = []
    try:
        marks.lock()
        try:
            log = CommitLog(config.commit_log_directory, config.mapped_file_size_commit_log, files)
            log.open()
            for problem in problems:
                if problem.kind == "log":
                    done += [_take_out(files, root, part) for part in _parts(log, problem)]
            log.close()
            if any(problem.kind in ("log", "derived") for problem in problems):
                for name in ("consumequeue", "index"):
                    _remove(files, f"{root}/{name}")
                done.append("removed consumequeue and index, which the next start makes again from the CommitLog")
            if any(problem.kind == "timer" for problem in problems):
                _remove(files, f"{root}/timerwheel")
                done.append(
                    "removed timerwheel, the next start makes it and the timer log again from the CommitLog"
                )
            files.fsync_dir(root)
        finally:
            marks.unlock()
    except OSError as error:
        raise store_error(f"cannot mend the store in {root}", error) from error
    return done


def _parts(log: CommitLog, problem: Problem) -> Iterator[_Part]:
    for file in log.files:
        start, end = max(problem.start, file.start), min(problem.end, file.end)
        if start < end:
            yield _Part(file, start, end, problem.time)


def _take_out(files: OsFiles, root: str, part: _Part) -> str:
    """Keep a damaged stretch aside, and put records that nobody is given in its place."""
    file, size = part.file, part.end - part.start
    if part.end != file.end and size < _LOST_LEAST:
        raise StoreError(f"{file.path}: {size} bytes at {part.start - file.start} are too few for a record")
    fd = files.open(file.path)
    try:
        kept = f"{root}/damaged/{part.start:020d}"
        make_durable_dirs(files, os.path.dirname(kept))
        write_file(files, kept, files.pread(fd, size, part.start - file.start))
        files.fsync_dir(os.path.dirname(kept))
        if part.end == file.end:  # the log goes on in the next file
            files.pwrite(fd, blank(size), part.start - file.start)
        else:
            for offset, length in _pieces(part.start, part.end):
                files.pwrite(fd, _lost_record(offset, length, part.time), offset - file.start)
        files.fdatasync(fd)
    finally:
        files.close(fd)
    return f"took {size} bytes out of {file.path} at {part.start - file.start}, they are in {kept}"


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offsets and sizes of records that fill a stretch; none is shorter than one can be."""
    while start < end:
        size = end - start if end - start < 2 * _PIECE else _PIECE
        yield start, size
        start += size


def _lost_record(offset: int, size: int, time: int) -> bytes:
    host = pack_host("127.0.0.1", 0)
    body = bytes(size - _LOST_LEAST)
    return encode_record(0, 0, offset, _LOST_TOPIC, body, b"", 0, TRANSACTION_ROLLBACK, time, host, time, host)


def _remove(files: OsFiles, path: str) -> None:
    if os.path.isdir(path):
        for name in files.listdir(path):
            _remove(files, os.path.join(path, name))
        files.rmdir(path)
    elif files.exists(path):
        files.unlink(path)
