"""A disk that remembers what was done to it, and the disks that a crash at any moment may leave.

`RecordingFiles` is the store's door to the file system; every change passes through it and becomes an operation in
`operations`, between the promises (`promise`) that the scenario notes there as it is given them.

What a crash after N operations leaves (`Crash`):

==========================  ===========================================================================================
the process was killed      all N operations
the power failed            what was forced to disk before, and of the rest any part: each sector as it was at some
                            moment since, any of the sizes of a file, the older ones of the names in a directory (a file
                            system keeps their order); a file whose name is lost is lost
==========================  ===========================================================================================
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rocketq.store.files import OsFiles

SECTOR = 512


class Create(NamedTuple):
    path: str
    inode: int


class Write(NamedTuple):
    inode: int
    offset: int
    data: bytes


class Resize(NamedTuple):
    inode: int
    size: int


class Sync(NamedTuple):
    inode: int


class SyncDirectory(NamedTuple):
    path: str


class SyncAll(NamedTuple):
    pass


class Rename(NamedTuple):
    old: str
    new: str


class Unlink(NamedTuple):
    path: str


class MakeDirectory(NamedTuple):
    path: str


class Promise(NamedTuple):
    """Not an operation: from here on this is promised. `kind` and `what` belong to the scenario."""

    kind: str
    what: Any


class RecordingFiles(OsFiles):
    """The real file system below `root`, and all that is done to it."""

    def __init__(self, root: Path) -> None:
        self.root = os.fspath(root)
        self.operations: list[Any] = []
        self._lock = threading.RLock()
        self._inodes: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._numbers = 0
        for directory, _, names in os.walk(root):  # what is there already is on disk
            if directory != self.root:
                self.operations += [MakeDirectory(self._name(directory)), SyncDirectory(self._parent(directory))]
            for name in names:
                path = os.path.join(directory, name)
                data = Path(path).read_bytes()
                inode = self._create(path)
                self.operations += [Write(inode, 0, data), Resize(inode, len(data)), Sync(inode)]
                self.operations.append(SyncDirectory(self._name(directory)))

    def promise(self, kind: str, what: Any) -> None:
        with self._lock:
            self.operations.append(Promise(kind, what))

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root)

    def _parent(self, path: str) -> str:
        return os.path.dirname(self._name(path)) or "."

    def _create(self, path: str) -> int:
        self._numbers += 1
        self._inodes[self._name(path)] = self._numbers
        self.operations.append(Create(self._name(path), self._numbers))
        return self._numbers

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int:
        with self._lock:
            new = create and not os.path.exists(path)
            fd = super().open(path, create=create, write=write, scan=scan)
            if new:
                self._create(path)
            self._open[fd] = self._inodes[self._name(path)]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            super().close(fd)
            self._open.pop(fd, None)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        with self._lock:
            super().pwrite(fd, data, offset)
            self.operations.append(Write(self._open[fd], offset, bytes(data)))

    def _resize(self, fd: int) -> None:
        self.operations.append(Resize(self._open[fd], os.fstat(fd).st_size))

    def allocate(self, fd: int, size: int) -> None:
        with self._lock:
            super().truncate(fd, max(size, os.fstat(fd).st_size))
            self._resize(fd)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            super().truncate(fd, size)
            self._resize(fd)

    def fdatasync(self, fd: int) -> None:
        with self._lock:  # the moment at which it is done; what comes meanwhile is not forced
            self.operations.append(Sync(self._open[fd]))

    def fsync_dir(self, path: str) -> None:
        with self._lock:
            if not os.path.isdir(path):
                raise FileNotFoundError(2, "No such file or directory", path)
            self.operations.append(SyncDirectory(self._name(path)))

    def sync_all(self) -> None:
        with self._lock:
            self.operations.append(SyncAll())

    def map(self, fd: int, size: int) -> mmap.mmap:
        return super().map(fd, size)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            super().rename(old, new)
            self._inodes[self._name(new)] = self._inodes.pop(self._name(old))
            self.operations.append(Rename(self._name(old), self._name(new)))

    def unlink(self, path: str) -> None:
        with self._lock:
            super().unlink(path)
            self._inodes.pop(self._name(path))
            self.operations.append(Unlink(self._name(path)))

    def rmdir(self, path: str) -> None:
        with self._lock:
            super().rmdir(path)
            self.operations.append(Unlink(self._name(path)))

    def make_dirs(self, path: str) -> None:
        with self._lock:
            missing = []
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            for directory in reversed(missing):
                os.mkdir(directory)
                self.operations.append(MakeDirectory(self._name(directory)))


class Crash(NamedTuple):
    """One crash: after how many operations, and how. `seed` None: a kill; otherwise the power failed."""

    operations: list[Any]
    count: int
    seed: int | None

    def __str__(self) -> str:
        how = "kill" if self.seed is None else f"power failure (seed {self.seed})"
        return f"{how} after operation {self.count} of {len(self.operations)}"

    def promises(self) -> list[Promise]:
        """What was promised before the crash."""
        return [each for each in self.operations[: self.count] if isinstance(each, Promise)]

    def build(self, directory: Path) -> None:
        """Make the directory as the crash leaves it."""
        done = self.operations[: self.count]
        chance = random.Random(self.seed)
        forced = _forced(done) if self.seed is not None else set(range(len(done)))
        # how much of what was not forced gets through differs from crash to crash
        share = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        contents: dict[int, bytearray] = {}
        names: dict[str, int | None] = {}
        lost: set[str] = set()  # directories whose later names are lost
        stale: set[tuple[int, int]] = set()  # sectors whose later contents are lost
        for number, operation in enumerate(done):
            survives = number in forced
            if isinstance(operation, Write):
                content = contents.setdefault(operation.inode, bytearray())
                if survives:
                    _put(content, operation.offset, operation.data)
                else:
                    for at, piece in _sectors(operation):
                        sector = operation.inode, at // SECTOR
                        if sector in stale or chance.random() >= share:
                            stale.add(sector)
                        else:
                            _put(content, at, piece)
            elif isinstance(operation, Resize):
                if survives or chance.random() < share:
                    content = contents.setdefault(operation.inode, bytearray())
                    del content[operation.size :]
                    content.extend(bytes(operation.size - len(content)))
            elif isinstance(operation, Create | Rename | Unlink | MakeDirectory):
                path = operation.old if isinstance(operation, Rename) else operation.path
                parent = os.path.dirname(path) or "."
                if not survives and (parent in lost or chance.random() >= share):
                    lost.add(parent)
                    continue
                if isinstance(operation, Create):
                    names[path] = operation.inode
                elif isinstance(operation, MakeDirectory):
                    names[path] = None
                elif isinstance(operation, Unlink):
                    names.pop(path, None)
                elif path in names:
                    names[operation.new] = names.pop(path)
        for path, inode in sorted(names.items()):
            target = directory / path
            if not target.parent.is_dir():
                continue  # the directory that it was in is lost
            if inode is None:
                target.mkdir()
            else:
                _write_sparse(target, contents.get(inode, bytearray()))


def _forced(done: list[Any]) -> set[int]:
    """The numbers of the operations that are on disk whatever happens."""
    forced: set[int] = set()
    data: dict[int, list[int]] = {}
    entries: dict[str, list[int]] = {}
    for number, operation in enumerate(done):
        if isinstance(operation, Write | Resize):
            data.setdefault(operation.inode, []).append(number)
        elif isinstance(operation, Create | Unlink | MakeDirectory):
            entries.setdefault(os.path.dirname(operation.path) or ".", []).append(number)
        elif isinstance(operation, Rename):
            entries.setdefault(os.path.dirname(operation.old) or ".", []).append(number)
        elif isinstance(operation, Sync):
            forced.update(data.pop(operation.inode, ()))
        elif isinstance(operation, SyncDirectory):
            forced.update(entries.pop(operation.path, ()))
        elif isinstance(operation, SyncAll):
            forced.update(range(number))
            data.clear()
            entries.clear()
    return forced


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    """The parts of a write that a disk takes or does not take as a whole."""
    at = 0
    while at < len(write.data):
        size = SECTOR - (write.offset + at) % SECTOR
        yield write.offset + at, write.data[at : at + size]
        at += size


def _write_sparse(path: Path, content: bytearray) -> None:
    zero = bytes(4096)
    with path.open("wb") as file:
        for at in range(0, len(content), 4096):
            piece = content[at : at + 4096]
            if piece != zero[: len(piece)]:
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))


def crashes(operations: list[Any], power_failures: int, first: int = 0, seed: int = 0) -> Iterator[Crash]:
    """A kill, and so many power failures, after each operation from `first` on."""
    for count in range(first, len(operations) + 1):
        if count and isinstance(operations[count - 1], Sync | SyncDirectory | SyncAll) and power_failures == 0:
            continue
        yield Crash(operations, count, None)
        for number in range(power_failures):
            yield Crash(operations, count, seed + count * 1009 + number)


@contextlib.contextmanager
def left_by(crash: Crash) -> Iterator[Path]:
    """The directory that a crash leaves, for a moment. What fails says which crash it was."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1 << 30 else None
    directory = Path(tempfile.mkdtemp(prefix="rocketq-crash-", dir=fast))
    try:
        crash.build(directory)
        (directory / "store").mkdir(exist_ok=True)
        yield directory
    except BaseException as error:
        raise AssertionError(f"after a {crash}: {error!r}") from error
    finally:
        shutil.rmtree(directory)
