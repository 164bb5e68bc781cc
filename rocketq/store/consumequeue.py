"""ConsumeQueues: per topic and queue, the places of its messages in the CommitLog, in order.

An entry has 20 bytes: int64 offset in the CommitLog, int32 size of the record, int64 code of its tag. Entry N of a
queue is its message N. Files are `consumequeue/<topic>/<queueId>/<byte offset, 20 digits>`, all of one size, zeros
behind the last entry (`ConsumeQueue`).

A queue costs one small object: new entries stay in memory (`tail`) until :meth:`ConsumeQueues.flush` writes them,
and only a few files are open at a time. Queues of former runs are looked at when first asked for. Everything here can
be rebuilt from the CommitLog.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import OrderedDict, deque
from collections.abc import Iterable

from rocketq.errors import StoreError, TopicBeingDeleted
from rocketq.store.files import Files
from rocketq.store.values import Appended

log = logging.getLogger("rocketq.store")

SIZE = 20
ENTRY = struct.Struct(">qiq")
#: Size in an entry without a record.
BLANK_SIZE = 0x7FFFFFFF
#: What stands before the first entry of a queue that does not begin at 0.
FIRST_BLANK = (0, BLANK_SIZE, 0)
_BLANK = ENTRY.pack(*FIRST_BLANK)
#: Codes up to this are addresses in a `consumequeue_ext` file (`ConsumeQueueExt`).
EXT_ADDRESS = -(2**31) - 1

#: A queue's unwritten entries are written when they are this many bytes …
_MAX_TAIL = 64 << 10
#: … and those of all queues begin to be written, oldest first, when they are this many; faster at four times that.
_MAX_PENDING = 4 << 20
_MAX_OPEN = 64
#: Entries behind the last one that a start looks at.
_LOOK_BEHIND = 200

_PREPARED = 4  # sysFlag bit that prepared and rolled back transactional messages have, and no others


def _is_impossible(raw: bytes) -> bool:
    """Neither an entry nor none."""
    offset, size, _ = ENTRY.unpack(raw) if len(raw) == SIZE else (0, 0, 0)
    return bool(offset < 0 or size < 0)


class Queue:
    """One queue. Offsets count entries.

    `next_offset`: of the next message that is appended. `max_offset`: behind the last one that may be read.
    `flushed`: behind the last entry that was written; `tail` holds those behind it. `first`: first entry of the
    oldest file. `forgotten`: its topic was deleted, it takes no more entries.
    """

    __slots__ = (
        "dirty",
        "first",
        "flushed",
        "forgotten",
        "max_offset",
        "min_offset",
        "min_valid_for",
        "next_offset",
        "overhead",
        "queue_id",
        "tail",
        "topic",
        "topic_head",
        "topic_raw",
    )

    def __init__(self, topic: str, queue_id: int) -> None:
        self.topic = topic
        self.queue_id = queue_id
        raw = topic.encode()
        self.topic_raw = raw
        self.topic_head = len(raw).to_bytes(1 if len(raw) <= 127 else 2, "big") + raw
        #: size of a record with IPv4 hosts, without body and properties
        self.overhead = 90 + len(self.topic_head)
        self.next_offset = self.max_offset = self.flushed = self.first = 0
        self.tail = bytearray()
        self.dirty = self.forgotten = False
        self.min_offset = 0
        self.min_valid_for = -1


class ConsumeQueues:
    """All queues of a store. `limit`: entries of records that end behind it are not believed when a queue is loaded.

    Methods raise OSError unless they say otherwise.
    """

    def __init__(self, directory: str, file_size: int, files: Files) -> None:
        self.directory = directory
        self._file_size = file_size
        self._per_file = file_size // SIZE
        self._files = files
        self.limit = 0
        self.table: dict[tuple[str, int], Queue] = {}
        self._unloaded: set[tuple[str, int]] = set()
        #: the last run ended in order
        self._trusted = True
        self._dirty: deque[Queue] = deque()
        self.pending_bytes = 0
        #: how many queues were taken from the dirty ones so far
        self.flushes = 0
        self._fds: OrderedDict[tuple[Queue, int], int] = OrderedDict()
        #: deleted topics whose files are there still
        self._deleting: set[str] = set()
        #: files and directories that changed since the last :meth:`take_changed`
        self._changed_files: set[str] = set()
        self._changed_dirs: set[str] = set()

    # finding queues

    def scan(self) -> None:
        """Find the queues of former runs; they are loaded when first asked for."""
        for topic in self._files.listdir(self.directory):
            for name in self._files.listdir(os.path.join(self.directory, topic)):
                if name.isdigit():
                    self._unloaded.add((topic, int(name)))

    def distrust(self) -> None:
        """An earlier run was killed: names that it made may not be on disk, so all are forced with the next changes."""
        self._trusted = False
        self._changed_dirs.add(self.directory)
        for topic, queue_id in self._unloaded:
            directory = os.path.join(self.directory, topic)
            self._changed_dirs.update((directory, os.path.join(directory, str(queue_id))))

    def reset(self) -> None:
        """Forget everything that is in memory and find the queues anew."""
        self.close()
        self.table.clear()
        self._unloaded.clear()
        self._dirty.clear()
        self.pending_bytes = 0
        self.scan()

    def keys(self) -> list[tuple[str, int]]:
        """Topic and id of every queue."""
        return [*self.table, *self._unloaded]

    def count(self) -> int:
        """How many queues have, or had, messages."""
        return len(self._unloaded) + sum(1 for queue in self.table.values() if queue.max_offset)

    def get(self, topic: str, queue_id: int) -> Queue | None:
        """The queue, if it exists."""
        key = (topic, queue_id)
        queue = self.table.get(key)
        if queue is None and key in self._unloaded:
            queue = self._load(topic, queue_id)
            self._unloaded.discard(key)
            self.table[key] = queue
        return queue

    def obtain(self, topic: str, queue_id: int) -> Queue:
        """The queue; a new one if need be. Raises TopicBeingDeleted."""
        queue = self.get(topic, queue_id)
        if queue is None:
            if topic in self._deleting:
                raise TopicBeingDeleted(topic)
            queue = self.table[topic, queue_id] = Queue(topic, queue_id)
        return queue

    def _directory(self, queue: Queue) -> str:
        return os.path.join(self.directory, queue.topic, str(queue.queue_id))

    def _path(self, queue: Queue, file_index: int) -> str:
        return os.path.join(self._directory(queue), f"{file_index * self._file_size:020d}")

    def _file_indexes(self, directory: str) -> list[int]:
        """Which files a queue has. Raises StoreError when they were made with another size."""
        starts = sorted(int(name) for name in self._files.listdir(directory) if len(name) == 20 and name.isdigit())
        for start in starts:
            if start % self._file_size:
                raise StoreError(
                    f"{os.path.join(directory, f'{start:020d}')} does not begin at a multiple of "
                    f"mappedFileSizeConsumeQueue={self._file_size}: set that to the size that the store was made "
                    f"with, or remove {self.directory}, which is then rebuilt"
                )
        return [start // self._file_size for start in starts]

    def _load(self, topic: str, queue_id: int) -> Queue:
        """A queue of a former run: entries up to the first that is empty or lies behind `limit`."""
        queue = Queue(topic, queue_id)
        indexes = self._file_indexes(self._directory(queue))
        surplus = False
        count = 0
        while indexes:
            count = self._count(queue, indexes[-1])
            if count:
                break
            surplus = True
            self._remove_file(queue, indexes.pop())
        if not indexes:
            return queue
        queue.first = indexes[0] * self._per_file
        queue.flushed = queue.max_offset = queue.next_offset = indexes[-1] * self._per_file + count
        if surplus or count < self._per_file:
            self._clear_behind(queue, indexes[-1], count)
        return queue

    def _count(self, queue: Queue, file_index: int) -> int:
        """How many entries of a file there are, up to the last good one.

        Bad ones follow good ones. After a clean stop it is damage when it is the other way round: what follows a bad
        one must not be taken for empty, as new messages would get its places.
        """
        fd = self._fd(queue, file_index)
        low, high = 0, self._per_file
        while True:
            while low < high:
                middle = (low + high) // 2
                if self._is_good(self._files.pread(fd, SIZE, middle * SIZE)):
                    low = middle + 1
                else:
                    high = middle
            behind = self._files.pread(fd, min(_LOOK_BEHIND, self._per_file - low) * SIZE, low * SIZE)
            entries = [behind[at : at + SIZE] for at in range(0, len(behind), SIZE)]
            used = [number for number, raw in enumerate(entries) if self._is_good(raw) or _is_impossible(raw)]
            if not self._trusted or not used or not any(entries[0]):
                return low
            log.error(
                "%s: entry %d is damaged, and its message is not given out: rocketq store repair mends it while the "
                "broker is stopped",
                *(self._path(queue, file_index), low),
            )
            low, high = low + used[-1] + 1, self._per_file

    def _is_good(self, raw: bytes) -> bool:
        offset, size, _ = ENTRY.unpack(raw) if len(raw) == SIZE else (0, 0, 0)
        return bool(offset >= 0 and size > 0 and (offset + size <= self.limit or size == BLANK_SIZE))

    def _clear_behind(self, queue: Queue, file_index: int, count: int) -> None:
        """Make a file's entries from `count` on zeros, if there is anything in them."""
        fd = self._fd(queue, file_index)
        if any(self._files.pread(fd, SIZE, count * SIZE)) or self._files.size(fd) != self._file_size:
            self._files.truncate(fd, count * SIZE)
            self._files.truncate(fd, self._file_size)
            self._changed_files.add(self._path(queue, file_index))

    # entries

    def dispatch(self, batch: Iterable[Appended]) -> None:
        """Add the entries of messages, whose queue offsets follow the queues' last ones; they may be read then."""
        pack = ENTRY.pack
        dirty = self._dirty
        long: list[Queue] = []
        pending = 0
        for message in batch:
            if message.sys_flag & _PREPARED:
                continue
            queue = message.queue
            if queue.forgotten:
                continue
            tail = queue.tail
            tail += pack(message.physical_offset, message.size, message.tags_code)
            queue.max_offset += 1
            pending += SIZE
            if not queue.dirty:
                queue.dirty = True
                dirty.append(queue)
            elif len(tail) >= _MAX_TAIL:
                long.append(queue)
        self.pending_bytes += pending
        for queue in long:  # only now: a write that fails must leave no entry of the batch out
            self._flush_queue(queue)

    def relieve(self) -> None:
        """Write the entries of some queues when too many are unwritten: cheap enough for every batch."""
        if self.pending_bytes > _MAX_PENDING:
            self.flush(1 if self.pending_bytes < 4 * _MAX_PENDING else 4)

    def flush(self, queues: int) -> None:
        """Write the unwritten entries of up to so many queues, those that wait longest first."""
        dirty = self._dirty
        while dirty and queues > 0:
            self._flush_queue(dirty[0])
            dirty.popleft().dirty = False
            self.flushes += 1
            queues -= 1

    @property
    def dirty_count(self) -> int:
        """How many queues have unwritten entries."""
        return len(self._dirty)

    def _flush_queue(self, queue: Queue) -> None:
        while queue.tail:
            index, position = divmod(queue.flushed, self._per_file)
            room = (self._per_file - position) * SIZE
            data = queue.tail[:room]
            fd = self._fd(queue, index, create=True)
            self._files.pwrite(fd, data, position * SIZE)
            self._changed_files.add(self._path(queue, index))
            queue.flushed += len(data) // SIZE
            queue.tail = queue.tail[room:]
            self.pending_bytes -= len(data)

    def entries(self, queue: Queue, offset: int, count: int) -> bytes:
        """The bytes of up to `count` entries from `offset` on; fewer only at the queue's end or where files lack."""
        count = min(count, queue.max_offset - offset)
        flushed = queue.flushed
        if offset >= flushed:
            start = (offset - flushed) * SIZE
            return bytes(queue.tail[start : start + count * SIZE])
        data = b""
        while count > 0 and offset < flushed:
            index, position = divmod(offset, self._per_file)
            some = min(count, flushed - offset, self._per_file - position)
            try:
                data += self._files.pread(self._fd(queue, index), some * SIZE, position * SIZE)
            except FileNotFoundError:
                return data
            offset += some
            count -= some
        if count > 0:
            data += queue.tail[: count * SIZE]
        return data

    def entry(self, queue: Queue, offset: int) -> tuple[int, int, int] | None:
        """(offset in the log, size, tag code) of one entry, None when the queue does not have it."""
        if not queue.first <= offset < queue.max_offset:
            return None
        raw = self.entries(queue, offset, 1)
        return ENTRY.unpack(raw) if len(raw) == SIZE else None

    def min_offset(self, queue: Queue, log_min: int) -> int:
        """The first entry whose record is still in a log that begins at `log_min`."""
        if queue.min_valid_for != log_min:
            low, high = queue.first, queue.max_offset
            while low < high:
                middle = (low + high) // 2
                entry = self.entry(queue, middle)
                if entry is None or entry[0] < log_min or entry == FIRST_BLANK:
                    low = middle + 1
                else:
                    high = middle
            queue.min_offset = low
            if queue.max_offset > low or queue.max_offset == 0:
                queue.min_valid_for = log_min
        return queue.min_offset

    def next_file(self, queue: Queue, offset: int) -> int:
        """The first entry behind the file of `offset`."""
        return (offset // self._per_file + 1) * self._per_file

    # repairing

    def truncate(self, queue: Queue, offset: int) -> None:
        """Forget the entries from `offset` on."""
        if offset < queue.flushed:
            index, position = divmod(offset, self._per_file)
            for surplus in self._file_indexes(self._directory(queue)):
                if surplus > index or (surplus == index and not position):
                    self._remove_file(queue, surplus)
                elif surplus == index:
                    self._clear_behind(queue, index, position)
            self._drop_tail(queue, 0)
            queue.flushed = offset
        else:
            self._drop_tail(queue, (offset - queue.flushed) * SIZE)
        queue.max_offset = queue.next_offset = offset
        queue.first = min(queue.first, offset)
        queue.min_valid_for = -1

    def restart_at(self, queue: Queue, offset: int) -> None:
        """Empty the queue and let it begin at `offset`; its file has blank entries before that."""
        for index in self._file_indexes(self._directory(queue)):
            self._remove_file(queue, index)
        self._drop_tail(queue, 0)
        index, position = divmod(offset, self._per_file)
        if position:
            self._files.pwrite(self._fd(queue, index, create=True), _BLANK * position, 0)
            self._changed_files.add(self._path(queue, index))
        queue.first = index * self._per_file
        queue.flushed = queue.max_offset = queue.next_offset = offset
        queue.min_valid_for = -1

    def skip(self, queue: Queue, offset: int, physical_offset: int) -> None:
        """Let the queue go on at `offset`, with the next record of the log: what should be before it is lost.

        Its entries have that record's place and the size of none, so that readers pass over them.
        """
        lost = ENTRY.pack(physical_offset, BLANK_SIZE, 0)
        while queue.max_offset < offset:
            count = min(offset - queue.max_offset, _MAX_TAIL // SIZE)
            queue.tail += lost * count
            queue.max_offset += count
            self.pending_bytes += count * SIZE
            self._flush_queue(queue)
        queue.next_offset = offset

    def clean(self, queue: Queue, log_min: int) -> list[str]:
        """Forget files of which every record is before `log_min`, where the log begins now; the last file stays.

        Returns their paths, for the caller to remove.
        """
        paths = []
        last = max(queue.flushed - 1, 0) // self._per_file
        while (index := queue.first // self._per_file) < last:
            entry = self.entry(queue, (index + 1) * self._per_file - 1)
            if entry is not None and entry[0] >= log_min and entry != FIRST_BLANK:
                break
            paths.append(self._forget_file(queue, index))
            queue.first = (index + 1) * self._per_file
            queue.min_valid_for = -1
        return paths

    def _drop_tail(self, queue: Queue, keep: int) -> None:
        self.pending_bytes -= len(queue.tail) - keep
        del queue.tail[keep:]

    # deleting

    def forget(self, topic: str) -> bool:
        """Forget the queues of a topic, and take none in until :meth:`forgotten`. False when there are no files."""
        for key in [key for key in self.keys() if key[0] == topic]:
            self._deleting.add(topic)  # only a topic that has queues: one from elsewhere may be any path
            self._unloaded.discard(key)
            queue = self.table.pop(key, None)
            if queue is not None:
                queue.forgotten = True
                self._drop_tail(queue, 0)
                for file in [file for file in self._fds if file[0] is queue]:
                    self._files.close(self._fds.pop(file))
        return topic in self._deleting

    def remove(self, topic: str) -> None:
        """Remove the files of a topic that was forgotten. May run on another thread.

        Files that are not the store's stay, with their directories: no message is in them, and they are named.
        """
        files = self._files
        directory = os.path.join(self.directory, topic)
        if not files.exists(directory):
            return
        others: list[str] = []
        for name in files.listdir(directory):
            path = os.path.join(directory, name)
            others += self._remove_queue(path) if name.isdigit() else [path]
        if others:
            files.fsync_dir(directory)
            log.warning(
                "topic %s is deleted but for %s, not the store's: remove that, or a restart finds an empty topic",
                topic,
                ", ".join(others),
            )
        else:
            files.rmdir(directory)
            files.fsync_dir(self.directory)

    def _remove_queue(self, directory: str) -> list[str]:
        """Remove a queue's files, and the directory unless there are others in it; those are returned."""
        files = self._files
        others: list[str] = []
        for name in files.listdir(directory):
            path = os.path.join(directory, name)
            if len(name) == 20 and name.isdigit():
                files.unlink(path)
            else:
                others.append(path)
        if others:
            files.fsync_dir(directory)
        else:
            files.rmdir(directory)
        return others

    def forgotten(self, topic: str) -> None:
        """All of a topic is gone: it may begin anew."""
        self._deleting.discard(topic)

    # files

    def _fd(self, queue: Queue, file_index: int, create: bool = False) -> int:
        key = (queue, file_index)
        fd = self._fds.get(key)
        if fd is not None:
            self._fds.move_to_end(key)
            return fd
        path = self._path(queue, file_index)
        try:
            fd = self._files.open(path)
        except FileNotFoundError:
            if not create:
                raise
            fd = self._create(queue, path)
        self._fds[key] = fd
        if len(self._fds) > _MAX_OPEN:
            self._files.close(self._fds.popitem(last=False)[1])
        return fd

    def _create(self, queue: Queue, path: str) -> int:
        directory = self._directory(queue)
        if not self._files.exists(directory):
            self._files.make_dirs(directory)
            self._changed_dirs.update((self.directory, os.path.dirname(directory)))
        self._changed_dirs.add(directory)
        fd = self._files.open(path, create=True)
        try:
            self._files.truncate(fd, self._file_size)
        except OSError:
            self._files.close(fd)
            raise
        return fd

    def _remove_file(self, queue: Queue, file_index: int) -> None:
        self._files.unlink(self._forget_file(queue, file_index))

    def _forget_file(self, queue: Queue, file_index: int) -> str:
        fd = self._fds.pop((queue, file_index), None)
        if fd is not None:
            self._files.close(fd)
        path = self._path(queue, file_index)
        self._changed_files.discard(path)
        self._changed_dirs.add(self._directory(queue))
        return path

    def take_changed(self) -> tuple[set[str], set[str]]:
        """Files and directories that have to be forced to disk."""
        changed = self._changed_files, self._changed_dirs
        self._changed_files, self._changed_dirs = set(), set()
        return changed

    def close(self) -> None:
        """Close files; unwritten entries are forgotten."""
        for fd in self._fds.values():
            self._files.close(fd)
        self._fds.clear()
