"""The small files in a store's root directory: who owns it, whether it was closed in order, how far it was saved.

- `lock` (content `lock`) is locked while the store is open.
- `abort` (content: the owner's pid) exists while the store is open; found at start it means an unclean stop.
- `checkpoint`: 4096 bytes, five int64 (`StoreCheckpoint`): the store times of the last message that is on disk in the
  CommitLog, in the ConsumeQueues and in full index files, and two offsets that only replication uses. At byte 64,
  where Apache has zeros, follow a mark of ours: 8 bytes magic, int64 `offset`, int64 `last`, int64 number of
  queues, int64 CRC of the 32 bytes before. All records before `offset`, the last of which is at `last`, are on
  disk together with their ConsumeQueue and index entries; with -1 queues these are being made anew.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace

from rocketq.errors import StoreLocked
from rocketq.store.files import Files, make_durable_dirs, read_file, write_file

log = logging.getLogger("rocketq.store")

_TIMES = struct.Struct(">qqqqq")
_MARK = struct.Struct(">8sqqq")
_MARK_AT = 64
_MAGIC = b"rocketq\x01"
_PAGE = 4096


@dataclass(frozen=True)
class Checkpoint:
    """The content of the checkpoint file. `offset` is None when Apache's broker wrote it."""

    physic_timestamp: int = 0
    logics_timestamp: int = 0
    index_timestamp: int = 0
    offset: int | None = None
    last: int = -1
    queues: int = 0

    @property
    def min_timestamp(self) -> int:
        """Messages that were stored before are on disk and dispatched."""
        return max(0, min(self.physic_timestamp, self.logics_timestamp) - 3000)

    def without_queues(self) -> Checkpoint:
        """What is left of it when ConsumeQueues and index are made anew: how far the log is on disk."""
        return replace(self, logics_timestamp=0, index_timestamp=0, queues=-1)

    def encode(self) -> bytes:
        page = bytearray(_PAGE)
        _TIMES.pack_into(page, 0, self.physic_timestamp, self.logics_timestamp, self.index_timestamp, 0, 0)
        if self.offset is not None:
            mark = _MARK.pack(_MAGIC, self.offset, self.last, self.queues)
            page[_MARK_AT : _MARK_AT + 40] = mark + zlib.crc32(mark).to_bytes(8, "big")
        return bytes(page)

    @classmethod
    def decode(cls, page: bytes) -> Checkpoint:
        """Lenient: what is missing or damaged is 0 or None, which only makes recovery look at more."""
        physic, logics, index, _, _ = _TIMES.unpack(page[:40].ljust(40, b"\0"))
        mark = page[_MARK_AT : _MARK_AT + 32]
        if mark[:8] == _MAGIC and page[_MARK_AT + 32 : _MARK_AT + 40] == zlib.crc32(mark).to_bytes(8, "big"):
            _, offset, last, queues = _MARK.unpack(mark)
            return cls(physic, logics, index, offset, last, queues)
        return cls(physic, logics, index)


class Marks:
    """These files of one directory. Methods raise OSError."""

    def __init__(self, directory: str, files: Files) -> None:
        self.directory = directory
        self._files = files
        self._lock_fd = -1

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def lock(self) -> None:
        """Make the directory this process's. Raises StoreLocked with the owner's pid."""
        files = self._files
        make_durable_dirs(files, self.directory)
        fd = files.open(self._path("lock"), create=True)
        if not files.lock(fd):
            files.close(fd)
            raw = (read_file(files, self._path("abort")) or b"").decode(errors="replace").strip()
            owner = f"process {raw}" if raw.isdecimal() else "another process"
            raise StoreLocked(
                f"the data directory {self.directory} is in use by {owner}: stop that, or use another directory"
            )
        if files.size(fd) == 0:
            files.pwrite(fd, b"lock", 0)
        self._lock_fd = fd

    def unlock(self) -> None:
        if self._lock_fd >= 0:
            self._files.close(self._lock_fd)
            self._lock_fd = -1

    def is_clean(self) -> bool:
        """The last owner closed the store."""
        return not self._files.exists(self._path("abort"))

    def set_abort(self) -> None:
        """From now on a stop without :meth:`clear_abort` is an unclean one."""
        write_file(self._files, self._path("abort"), str(os.getpid()).encode())
        self._files.fsync_dir(self.directory)

    def clear_abort(self) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(self._path("abort"))
        self._files.fsync_dir(self.directory)

    def load(self) -> Checkpoint:
        """The checkpoint; all zeros when there is none."""
        return Checkpoint.decode(read_file(self._files, self._path("checkpoint")) or b"")

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint and force it to disk. May run on another thread."""
        path = self._path("checkpoint")
        new = not self._files.exists(path)
        fd = self._files.open(path, create=True)
        try:
            self._files.pwrite(fd, checkpoint.encode(), 0)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        if new:
            self._files.fsync_dir(self.directory)
