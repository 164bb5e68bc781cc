"""The one door to the file system: every change that the store makes to a disk passes here.

A test records, delays or breaks what it wants by wrapping :class:`OsFiles`; offsets and sizes are bytes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from typing import Protocol

from rocketq.errors import StoreError, StoreFull

log = logging.getLogger("rocketq.store")

Buffer = bytes | bytearray | memoryview

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Files(Protocol):
    """What the store asks of a file system. All methods raise OSError."""

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int: ...
    def close(self, fd: int) -> None: ...
    def size(self, fd: int) -> int: ...
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...
    def pwrite(self, fd: int, data: Buffer, offset: int) -> None: ...
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None: ...
    def allocate(self, fd: int, size: int) -> None: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync_dir(self, path: str) -> None: ...
    def sync_all(self) -> None: ...
    def map(self, fd: int, size: int) -> mmap.mmap: ...
    def next_data(self, fd: int, offset: int) -> int | None: ...
    def lock(self, fd: int) -> bool: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def make_dirs(self, path: str) -> None: ...
    def listdir(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...
    def disk(self, path: str) -> tuple[float, int]: ...


class OsFiles:
    """The real file system."""

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int:
        """A file descriptor for reading and, unless told otherwise, writing.

        `scan`: to be read in large pieces. The system must not read ahead then: reserved blocks that it has read
        count as data for :meth:`next_data`, and a GiB of them would be looked through.
        """
        flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0)
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        if scan and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, fd: int, data: Buffer, offset: int) -> None:
        """Write all of `data`."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of `buffers`, one after the other. Joining hundreds of small ones is faster than a long vector."""
        self.pwrite(fd, b"".join(buffers), offset)

    def allocate(self, fd: int, size: int) -> None:
        """Make the file `size` bytes long with its blocks reserved, so that writing into it cannot fill the disk.

        Where the file system cannot reserve, the file gets its length only.
        """
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                log.debug("the file system cannot reserve blocks (%s), using a sparse file", error)
        os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend (with a hole) the file to `size`."""
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        """Return when the file's data, and its size if that changed, are on disk."""
        if hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def fsync_dir(self, path: str) -> None:
        """Return when the names in the directory are on disk."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """Return when everything that anybody wrote is on disk. Says nothing of failures: for caches only."""
        os.sync()

    def map(self, fd: int, size: int) -> mmap.mmap:
        """The first `size` bytes, read-only; shows what is written later."""
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)

    def next_data(self, fd: int, offset: int) -> int | None:
        """The first offset from `offset` on that was ever written, None when there is none.

        A file system that does not know says `offset`.
        """
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset
            raise

    def lock(self, fd: int) -> bool:
        """Take the file's lock until it is closed; False when another process, or store of this one, has it.

        Two kinds are taken: `flock` holds within one process too, the record lock is the one that Java takes.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def make_dirs(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def listdir(self, path: str) -> list[str]:
        """The names in a directory; none when it does not exist."""
        try:
            return os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def disk(self, path: str) -> tuple[float, int]:
        """Used part (0 to 1) and bytes that are free for this process, of the disk that holds `path`."""
        status = os.statvfs(path)
        used = status.f_blocks - status.f_bfree
        total = used + status.f_bavail
        return (used / total if total else 0.0), status.f_bavail * status.f_frsize


def store_error(what: str, error: OSError) -> StoreError:
    """`error` in the store's terms: StoreFull when it is for want of space. `what` names the file."""
    return (StoreFull if error.errno in _FULL else StoreError)(f"{what}: {error.strerror or error}")


def make_durable_dirs(files: Files, path: str) -> None:
    """Make a directory and those above it, where they are missing, and force their names to disk. Raises OSError."""
    if not files.exists(path):
        parent = os.path.dirname(os.path.abspath(path))
        make_durable_dirs(files, parent)
        files.make_dirs(path)
        files.fsync_dir(parent)


def read_file(files: Files, path: str) -> bytes | None:
    """The whole file, None when there is none. Raises OSError."""
    try:
        fd = files.open(path, write=False)
    except FileNotFoundError:
        return None
    try:
        return files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def write_file(files: Files, path: str, data: bytes) -> None:
    """Write the whole file and force it to disk, its name excepted. Raises OSError."""
    fd = files.open(path, create=True)
    try:
        files.truncate(fd, 0)
        if data:
            files.pwrite(fd, data, 0)
        files.fdatasync(fd)
    finally:
        files.close(fd)
