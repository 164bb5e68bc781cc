"""The CommitLog: one sequence of records, cut into files that are named by the offset of their first byte.

A record never crosses a file's end. One of length L is put into a file only where L + 8 bytes are left; otherwise
the rest of the file is marked blank and the record begins the next file (`CommitLog`, `MappedFileQueue`).

Files are written with pwrite and read through read-only mappings. Their blocks are reserved when they are made, so a
full disk shows when a file is made, and never as a SIGBUS. At most a few files are mapped, and what was read
through the mappings is handed back to the system by :meth:`CommitLog.release`.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Sequence

from rocketq.errors import StoreError
from rocketq.record import BLANK_SIZE, MAGIC_BLANK
from rocketq.store.files import Buffer, Files, make_durable_dirs

log = logging.getLogger("rocketq.store")

#: At most this many files are mapped at a time.
_MAX_MAPPED = 4
#: Hand pages back after this many bytes were handed out.
_RELEASE_AFTER = 32 << 20

_BLANK = struct.Struct(">iI")


def blank(room: int) -> bytes:
    """The filler of a file that has `room` bytes left."""
    return _BLANK.pack(room, MAGIC_BLANK)


class LogFile:
    """One file of the log: bytes `start` to `end` of it. `fd` is -1 while it is not open for writing."""

    __slots__ = ("end", "fd", "mapping", "path", "size", "start", "view")

    def __init__(self, path: str, start: int, size: int) -> None:
        self.path = path
        self.start = start
        self.size = size
        self.end = start + size
        self.fd = -1
        self.mapping: mmap.mmap | None = None
        self.view: memoryview | None = None


class CommitLog:
    """The files, and how to write, read, force and cut them. Methods raise OSError unless they say otherwise."""

    def __init__(self, directory: str, file_size: int, files: Files) -> None:
        self.directory = directory
        self.file_size = file_size
        self._files = files
        self.files: list[LogFile] = []
        self._starts: list[int] = []
        self._mapped: list[LogFile] = []
        self._handed_out = 0
        self._making = threading.Lock()
        self._prepared: LogFile | None = None

    def open(self) -> None:
        """Find the files. Raises StoreError when one is missing between others."""
        files = self._files
        make_durable_dirs(files, self.directory)
        for name in sorted(files.listdir(self.directory)):
            if len(name) != 20 or not name.isdigit():
                continue
            path = os.path.join(self.directory, name)
            fd = files.open(path, write=False)
            size = files.size(fd)
            files.close(fd)
            if size == 0:  # the process died between making the file and giving it its size
                files.unlink(path)
                continue
            file = LogFile(path, int(name), size)
            if self.files and self.files[-1].end != file.start:
                raise StoreError(
                    f"{self.directory}: after {self.files[-1].path}, which ends at {self.files[-1].end}, comes "
                    f"{path}: a file is missing or has a wrong size. Restore it from a copy of the directory"
                )
            self._add(file)

    def _add(self, file: LogFile) -> None:
        self.files.append(file)
        self._starts.append(file.start)

    @property
    def min_offset(self) -> int:
        """Offset of the first byte that is kept."""
        return self._starts[0] if self._starts else 0

    @property
    def end(self) -> int:
        """Offset behind the last file."""
        return self.files[-1].end if self.files else 0

    def find(self, offset: int) -> LogFile | None:
        """The file that holds the byte at `offset`."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0:
            return None
        file = self.files[index]
        return file if offset < file.end else None

    # reading

    def view(self, offset: int, size: int) -> memoryview | None:
        """`size` bytes at `offset`, which lie in one file; None when that is not there."""
        file = self.find(offset)
        if file is None or offset + size > file.end:
            return None
        view = file.view
        if view is None:
            view = self._map(file)
        self._handed_out += size
        if self._handed_out > _RELEASE_AFTER:
            self.release()
        offset -= file.start
        return view[offset : offset + size]

    def _map(self, file: LogFile) -> memoryview:
        fd = self._files.open(file.path, write=False)
        try:
            file.mapping = self._files.map(fd, file.size)
        finally:
            self._files.close(fd)
        file.view = memoryview(file.mapping)
        self._mapped.append(file)
        if len(self._mapped) > _MAX_MAPPED:
            self._unmap(self._mapped[0])
        return file.view

    def _unmap(self, file: LogFile) -> None:
        """Forget a mapping; it ends when the last slice of it does."""
        if file.mapping is not None:
            self._mapped.remove(file)
            file.mapping = file.view = None

    def release(self) -> None:
        """Give pages that were read back to the system (they stay in its cache)."""
        if self._handed_out:
            self._handed_out = 0
            for file in self._mapped:
                if file.mapping is not None:
                    file.mapping.madvise(mmap.MADV_DONTNEED)

    # writing

    def prepare_next(self) -> None:
        """Make the file behind the last one, so that :meth:`write` need not. May run on another thread."""
        with self._making:
            start = self.end
            if self._prepared is None or self._prepared.start != start:
                self._prepared = self._make(start)

    @property
    def has_next(self) -> bool:
        """Whether the file behind the last one is there already."""
        return self._prepared is not None

    def drop_prepared(self) -> bool:
        """Remove a file that was made and not needed; whether there was one."""
        with self._making:
            prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._files.close(prepared.fd)
            self._files.unlink(prepared.path)
        return prepared is not None

    def _make(self, start: int) -> LogFile:
        files = self._files
        file = LogFile(os.path.join(self.directory, f"{start:020d}"), start, self.file_size)
        file.fd = files.open(file.path, create=True)
        try:
            files.allocate(file.fd, file.size)
            files.fdatasync(file.fd)
            files.fsync_dir(self.directory)
        except OSError:
            files.close(file.fd)
            files.unlink(file.path)
            raise
        return file

    def writable(self, offset: int) -> LogFile:
        """The file of `offset`, open for writing; made when it is the next one."""
        file = self.find(offset)
        if file is None:
            with self._making:
                if self._prepared is not None and self._prepared.start == offset:
                    file, self._prepared = self._prepared, None
                else:
                    file = self._make(offset)
                self._add(file)
        elif file.fd < 0:
            file.fd = self._files.open(file.path)
        return file

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write `buffers`, which belong into one file, at `offset`."""
        file = self.files[-1] if self.files else None
        if file is None or not file.start <= offset < file.end or file.fd < 0:
            file = self.writable(offset)
        self._files.pwritev(file.fd, buffers, offset - file.start)

    def sync(self, start: int, end: int) -> None:
        """Force bytes `start` to `end` to disk. May run on another thread."""
        for file in self.files.copy():
            if file.start < end and file.end > start and file.fd >= 0:
                self._files.fdatasync(file.fd)

    def close_before(self, offset: int) -> None:
        """Close files that end at or before `offset`, which is on disk, for writing."""
        for file in self.files[:-1]:
            if file.fd >= 0 and file.end <= offset:
                self._files.close(file.fd)
                file.fd = -1

    def cut(self, offset: int) -> None:
        """Make everything from `offset` on zeros, and remove files that begin behind it."""
        removed = self.drop_prepared()
        while self.files and self.files[-1].start > offset:
            self._remove_last()
            removed = True
        if removed:
            self._files.fsync_dir(self.directory)  # no file may follow one that is shorter
        file = self.find(offset)
        if file is None:
            return
        fd = self.writable(offset).fd
        self._files.truncate(fd, offset - file.start)
        self._reserve(fd, file)
        self._files.fsync_dir(self.directory)

    def complete(self) -> None:
        """Give the last file its size: a crash in the middle of `cut` leaves one that ends where the log was cut."""
        file = self.files[-1] if self.files else None
        if file is not None and file.size < self.file_size:
            file.size, file.end = self.file_size, file.start + self.file_size
            self._reserve(self.writable(file.start).fd, file)

    def _reserve(self, fd: int, file: LogFile) -> None:
        """Bring a file that was shorter to its size."""
        try:
            self._files.allocate(fd, file.size)
        except OSError as error:  # somebody took the blocks meanwhile
            log.warning("%s: no blocks could be reserved for the rest of it: %s", file.path, error)
            self._files.truncate(fd, file.size)
        self._files.fdatasync(fd)

    def clear(self) -> None:
        """Remove all files."""
        self.drop_prepared()
        while self.files:
            self._remove_last()
        self._files.fsync_dir(self.directory)

    def _remove_last(self) -> None:
        file = self.files.pop()
        self._starts.pop()
        self._unmap(file)
        if file.fd >= 0:
            self._files.close(file.fd)
        self._files.unlink(file.path)

    def forget_first(self) -> str:
        """Forget the oldest file, which is on disk; returns its path, for the caller to remove. Slices stay valid."""
        file = self.files.pop(0)
        self._starts.pop(0)
        self._unmap(file)
        if file.fd >= 0:
            self._files.close(file.fd)
            file.fd = -1
        return file.path

    def room(self, offset: int) -> int:
        """The offset up to which records may reach in the file of `offset` (there has to be room for a filler)."""
        file = self.find(offset)
        return (file.end if file is not None else offset + self.file_size) - BLANK_SIZE

    def close(self) -> None:
        """Close files and forget mappings; nothing is forced to disk."""
        self.drop_prepared()
        for file in self.files:
            self._unmap(file)
            if file.fd >= 0:
                self._files.close(file.fd)
                file.fd = -1
