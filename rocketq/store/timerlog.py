"""The timer log: one unit of 52 bytes for every message that waits in the wheel (`TimerLog`).

A unit says when its message is due and where in the CommitLog it is. The units of one slot of the wheel are a chain:
each has the position of the one before it, -1 in the first. Units are only ever appended, in files of one size that
are named by the position of their first byte; where less than a unit and a filler is left, a filler ends the file.

All of it can be made again from the CommitLog.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from rocketq.store.files import Files, make_durable_dirs

MAGIC_DEFAULT = 1
#: The message goes back to the timer's topic when its slot has come, as it is due much later.
MAGIC_ROLL = 2
#: The message takes another one of the slot back.
MAGIC_DELETE = 4

_UNIT = struct.Struct(">iqiqiqiiq")
UNIT_SIZE = _UNIT.size
_BLANK = struct.Struct(">iqi")
_BLANK_MAGIC = (0xBBCCDDEE ^ 1880681586 + 8) - (1 << 32)
#: Bytes that are read at once, those before a unit with it: neighbours in a file are often neighbours in a chain.
_WINDOW = 4096


class Unit(NamedTuple):
    """One unit. `at`: ms since 1970, its slot is `at // 1000`; `physical`, `size`: the record in the CommitLog."""

    previous: int
    magic: int
    at: int
    physical: int
    size: int


class TimerLog:
    """The files of one directory. Appended units can be read after :meth:`write`. Methods raise OSError."""

    def __init__(self, directory: str, file_size: int, files: Files) -> None:
        self.directory = directory
        self.file_size = file_size
        self._files = files
        self._fds: dict[int, int] = {}  # first position of a file -> its descriptor
        #: where the next unit goes
        self.end = 0
        self._written = 0
        self._pending = bytearray()  # what belongs at `_written`
        self._window = b""
        self._window_at = 0
        self._unsynced: set[int] = set()
        #: the file behind the last one, when it was made ahead of need: its first position and descriptor
        self._next: tuple[int, int] | None = None
        self._making = threading.Lock()
        #: whether the names of the files have changed, and may not be on disk
        self._renamed = False

    def open(self) -> bool:
        """Find the files; False when they are not one sequence of files of the right size.

        The last one may be shorter, if nothing that counts is missing (:meth:`covers`): a run that was killed did not
        come to make it, or to cut it.
        """
        files = self._files
        make_durable_dirs(files, self.directory)
        for name in sorted(files.listdir(self.directory)):
            if len(name) == 20 and name.isdigit():
                self._fds[int(name)] = files.open(os.path.join(self.directory, name))
        # a run before that was killed may not have forced them to disk, nor their names
        self._unsynced, self._renamed = set(self._fds), bool(self._fds)
        starts, sizes = list(self._fds), [files.size(fd) for fd in self._fds.values()]
        return (
            all(start == starts[0] + index * self.file_size for index, start in enumerate(starts))
            and all(size == self.file_size for size in sizes[:-1])
            and all(size <= self.file_size for size in sizes[-1:])
        )

    def close(self) -> None:
        self._drop_next()
        for fd in self._fds.values():
            self._files.close(fd)
        self._fds.clear()

    def clear(self) -> None:
        """Remove everything."""
        self._drop_next()
        for start in list(self._fds):
            self._remove(start)
        self.end = self._written = 0
        self._pending.clear()
        self._window = b""

    def _remove(self, start: int) -> None:
        self._files.close(self._fds.pop(start))
        self._files.unlink(self._path(start))

    def _path(self, start: int) -> str:
        return os.path.join(self.directory, f"{start:020d}")

    @property
    def start(self) -> int:
        """Position of the first byte that is kept."""
        return min(self._fds, default=0)

    def covers(self, position: int) -> bool:
        """Whether a log that ended there can be this one."""
        if not self._fds:
            return position == 0
        last, fd = max(self._fds.items())
        size = self._files.size(fd)
        if size < self.file_size and position > last:  # not behind a filler: files were smaller then
            before = position - UNIT_SIZE
            return next((at for at, _ in self.scan(before)), None) == before
        return self.start <= position <= last + size

    def drop_before(self, position: int) -> None:
        """Remove the files before `position`: a run that was killed had forgotten them."""
        for start in list(self._fds):
            if start < position:
                self._remove(start)

    # writing

    def append(
        self,
        previous: int,
        magic: int,
        write_time: int,
        delay: int,
        physical: int,
        size: int,
        topic_hash: int,
    ) -> int:
        """Add a unit that is due `delay` ms after `write_time`; returns its position."""
        left = self.file_size - self.end % self.file_size
        if left < UNIT_SIZE + _BLANK.size:
            self.write()
            fd, start = self._fds[self.end - self.end % self.file_size], self.end % self.file_size
            self._files.pwrite(fd, _BLANK.pack(left, 0, _BLANK_MAGIC), start)
            self.end = self._written = self.end + left
        start = self.end - self.end % self.file_size
        if start not in self._fds:
            self._make(start)
        position = self.end
        self._pending += _UNIT.pack(UNIT_SIZE, previous, magic, write_time, delay, physical, size, topic_hash, 0)
        self.end += UNIT_SIZE
        return position

    def _make(self, start: int) -> None:
        with self._making:
            if self._next is not None and self._next[0] == start:
                self._fds[start], self._next = self._next[1], None
            else:
                self._fds[start] = self._allocated(start)
        self._renamed = True

    def _allocated(self, start: int) -> int:
        fd = self._files.open(self._path(start), create=True)
        try:
            self._files.allocate(fd, self.file_size)
        except OSError:
            self._files.close(fd)
            self._files.unlink(self._path(start))  # one of another size would make `open` doubt all of them
            raise
        return fd

    def prepare_next(self) -> None:
        """Make the next file when the last one is half full, so that no unit waits for it. May run on another thread.

        Not the first one, which many brokers never need.
        """
        with self._making:
            last = max(self._fds, default=0)
            if self._fds and self._next is None and self.end >= last + self.file_size // 2:
                start = last + self.file_size
                self._next = start, self._allocated(start)

    def _drop_next(self) -> None:
        with self._making:
            if self._next is not None:
                start, fd = self._next
                self._next = None
                self._files.close(fd)
                self._files.unlink(self._path(start))

    def write(self) -> None:
        """Write what was appended. When that fails it is kept, and tried again by the next call."""
        if self._pending:
            start = self._written - self._written % self.file_size
            self._files.pwrite(self._fds[start], self._pending, self._written - start)
            self._unsynced.add(start)
            self._written += len(self._pending)
            self._pending.clear()

    def relink(self, position: int, previous: int) -> None:
        """Let the unit at `position` be chained to another one before it."""
        start = position - position % self.file_size
        self._files.pwrite(self._fds[start], previous.to_bytes(8, "big", signed=True), position - start + 4)
        self._unsynced.add(start)
        self._window = b""

    def take_unsynced(self) -> list[int]:
        """Descriptors of the files that were written to and are to be forced to disk."""
        unsynced, self._unsynced = self._unsynced, set()
        return [self._fds[start] for start in unsynced if start in self._fds]

    def take_renamed(self) -> bool:
        """Whether the directory is to be forced to disk."""
        renamed, self._renamed = self._renamed, False
        return renamed

    def cut(self, end: int) -> None:
        """Let the log end at `end`; what is behind it reads as zeros, and files behind it go."""
        self._drop_next()
        self.end = self._written = end
        self._pending.clear()
        self._window = b""
        for start in list(self._fds):
            if start > end or (start == end and start):
                self._remove(start)
            elif end < start + self.file_size:
                self._files.truncate(self._fds[start], end - start)
                self._files.allocate(self._fds[start], self.file_size)
                self._unsynced.add(start)

    def forget_before(self, physical: int) -> list[str]:
        """Forget the files all of whose units are of records before `physical`. The last file always stays.

        Returns their paths, for the caller to remove, the oldest first.
        """
        paths = []
        last = (self.file_size - _BLANK.size) // UNIT_SIZE * UNIT_SIZE - UNIT_SIZE
        for start in list(self._fds)[:-1]:
            unit = self.unit(start + last)
            if unit is not None and unit.physical >= physical:
                break
            self._files.close(self._fds.pop(start))
            paths.append(self._path(start))
        return paths

    # reading

    def unit(self, position: int) -> Unit | None:
        """The unit at `position`; None when there is none."""
        at = position - self._window_at
        if at < 0 or at + UNIT_SIZE > len(self._window):
            start = position - position % self.file_size
            fd = self._fds.get(start)
            if fd is None or position + UNIT_SIZE > self._written:
                return None
            self._window_at = max(start, position + UNIT_SIZE - _WINDOW)
            self._window = self._files.pread(fd, position + UNIT_SIZE - self._window_at, self._window_at - start)
            at = position - self._window_at
        size, previous, magic, written, delay, physical, record_size, _, _ = _UNIT.unpack_from(self._window, at)
        if size != UNIT_SIZE or magic & ~0xF:
            return None
        return Unit(previous, magic, written + delay, physical, record_size)

    def scan(self, position: int) -> Iterator[tuple[int, Unit]]:
        """The units in the files from `position` on, with their positions, up to the first that is none."""
        files = self._files
        position = max(position, self.start)
        while (fd := self._fds.get(position - position % self.file_size)) is not None:
            offset = position % self.file_size
            data = files.pread(fd, min(UNIT_SIZE * 20_000, self.file_size - offset), offset)
            whole = len(data) // UNIT_SIZE * UNIT_SIZE
            for at in range(0, whole, UNIT_SIZE):
                size, previous, magic, written, delay, physical, record_size, _, _ = _UNIT.unpack_from(data, at)
                if magic == _BLANK_MAGIC:
                    whole = 0
                    break
                if size != UNIT_SIZE or magic & ~0xF:
                    return
                yield position + at, Unit(previous, magic, written + delay, physical, record_size)
            position = position + whole if whole else position - offset + self.file_size
