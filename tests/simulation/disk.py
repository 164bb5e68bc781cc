"""A disk in memory: what a kill leaves on it, and what a power failure does.

As in `crash_disk`, whose rules these are, a power failure leaves what was forced to disk before, and of the rest any
part: each sector as it is or as it was forced, one of the sizes that a file had, and the first so many changes of the
names in a directory. Here the disk goes on from there, and nothing is written down, so a power failure costs nothing.
"""

from __future__ import annotations

import mmap
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import doors
from process import Killed

from rocketq.store.files import OsFiles

if TYPE_CHECKING:
    from world import World

SECTOR = 512
_OS = OsFiles()


class Inode:
    """A file. `old` has the forced content of the sectors that were written since, `sizes` its sizes since."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("simulated")
        self.old: dict[int, bytes] = {}
        self.sizes = [0]

    def __del__(self) -> None:
        os.close(self.fd)

    @property
    def size(self) -> int:
        return self.sizes[-1]

    def keep(self, offset: int, size: int) -> None:
        """Before this is changed."""
        for sector in range(offset // SECTOR, -(-(offset + size) // SECTOR)):
            if sector not in self.old:
                self.old[sector] = os.pread(self.fd, SECTOR, sector * SECTOR)

    def resize(self, size: int) -> None:
        at = _OS.next_data(self.fd, size) if size < self.size else None
        while at is not None:  # what was never written reads as zeros when the file gets its size back
            self.keep(at, mmap.PAGESIZE)
            at = _OS.next_data(self.fd, at - at % mmap.PAGESIZE + mmap.PAGESIZE)
        os.ftruncate(self.fd, size)
        if size != self.size:
            self.sizes.append(size)

    def force(self) -> None:
        self.old.clear()
        del self.sizes[:-1]

    def lose(self, chance: Any, share: float) -> None:
        size = chance.choice(self.sizes)
        os.ftruncate(self.fd, max(self.sizes))
        for sector in sorted(self.old):
            if chance.random() >= share:
                os.pwrite(self.fd, self.old[sector].ljust(SECTOR, b"\0"), sector * SECTOR)
        os.ftruncate(self.fd, size)
        self.sizes = [size]
        self.force()


class Directory:
    """Names. `forced` are those on disk, `changes` what was done since: (name, inode or directory, None when gone)."""

    def __init__(self) -> None:
        self.names: dict[str, Inode | Directory] = {}
        self.forced: dict[str, Inode | Directory] = {}
        self.changes: list[tuple[tuple[str, Inode | Directory | None], ...]] = []

    def change(self, *entries: tuple[str, Inode | Directory | None]) -> None:
        self._apply(self.names, entries)
        self.changes.append(entries)

    @staticmethod
    def _apply(names: dict[str, Inode | Directory], entries: tuple[tuple[str, Any], ...]) -> None:
        for name, what in entries:
            if what is None:
                names.pop(name, None)
            else:
                names[name] = what

    def force(self) -> None:
        self.forced = dict(self.names)
        self.changes.clear()

    def lose(self, chance: Any, share: float) -> None:
        self.names = dict(self.forced)
        for entries in self.changes:
            if chance.random() >= share:
                break
            self._apply(self.names, entries)
        self.force()
        for what in self.names.values():
            what.lose(chance, share)


class Disk(OsFiles):
    """The disk of one host. `dies_after`: so many changes from now the process that makes them dies."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root = Directory()
        self.dies_after: int | None = None
        self._open: dict[int, tuple[Inode, bool]] = {}
        self._locked: dict[int, int] = {}
        self._numbers = 3

    def restart(self) -> None:
        """The process that had files open is gone."""
        self._open.clear()
        self._locked.clear()
        self.dies_after = None

    def lose_power(self) -> None:
        """What was not forced to disk is there in part."""
        chance = self.world.chance
        self.root.lose(chance, chance.choice((0.0, 0.2, 0.5, 0.8, 1.0)))

    def _change(self) -> None:
        """The process is about to change something."""
        process = doors.running
        if process is None:
            return
        if not process.alive:
            raise Killed
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after < 0:
                self.dies_after = None
                self.world.died(process)
                raise Killed

    def _find(self, path: str) -> Inode | Directory | None:
        at: Inode | Directory | None = self.root
        for part in PurePosixPath(path).parts[1:]:
            if not isinstance(at, Directory):
                return None
            at = at.names.get(part)
        return at

    def _place(self, path: str) -> tuple[Directory, str]:
        parent, name = os.path.split(path)
        directory = self._find(parent)
        if not isinstance(directory, Directory):
            raise FileNotFoundError(2, "No such file or directory", path)
        return directory, name

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int:
        directory, name = self._place(path)
        inode = directory.names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(2, "No such file or directory", path)
            self._change()
            inode = Inode()
            directory.change((name, inode))
        if isinstance(inode, Directory):
            raise IsADirectoryError(21, "Is a directory", path)
        self._numbers += 1
        self._open[self._numbers] = inode, write
        return self._numbers

    def _inode(self, fd: int) -> Inode:
        try:
            return self._open[fd][0]
        except KeyError:
            process = doors.running
            if process is not None and not process.alive:
                raise Killed from None
            raise OSError(9, "Bad file descriptor") from None

    def close(self, fd: int) -> None:
        self._inode(fd)
        del self._open[fd]
        self._locked.pop(fd, None)

    def size(self, fd: int) -> int:
        return self._inode(fd).size

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(self._inode(fd).fd, size, offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> None:
        self._change()
        inode = self._inode(fd)
        inode.keep(offset, len(data))
        os.pwrite(inode.fd, data, offset)
        if offset + len(data) > inode.size:
            inode.sizes.append(offset + len(data))

    def allocate(self, fd: int, size: int) -> None:
        self._change()
        inode = self._inode(fd)
        inode.resize(max(size, inode.size))

    def truncate(self, fd: int, size: int) -> None:
        self._change()
        self._inode(fd).resize(size)

    def fdatasync(self, fd: int) -> None:
        self._change()
        self._inode(fd).force()

    def fsync_dir(self, path: str) -> None:
        self._change()
        directory = self._find(path)
        if not isinstance(directory, Directory):
            raise FileNotFoundError(2, "No such file or directory", path)
        directory.force()

    def sync_all(self) -> None:
        self._change()
        waiting: list[Inode | Directory] = [self.root]
        while waiting:
            what = waiting.pop()
            what.force()
            if isinstance(what, Directory):
                waiting += what.names.values()

    def map(self, fd: int, size: int) -> mmap.mmap:
        return mmap.mmap(self._inode(fd).fd, size, mmap.MAP_SHARED, mmap.PROT_READ)

    def next_data(self, fd: int, offset: int) -> int | None:
        return super().next_data(self._inode(fd).fd, offset)

    def lock(self, fd: int) -> bool:
        inode = self._inode(fd)
        if id(inode) in self._locked.values():
            return False
        self._locked[fd] = id(inode)
        return True

    def rename(self, old: str, new: str) -> None:
        self._change()
        directory, name = self._place(old)
        other, new_name = self._place(new)
        assert other is directory, "the store renames within a directory"
        what = directory.names.get(name)
        if what is None:
            raise FileNotFoundError(2, "No such file or directory", old)
        directory.change((name, None), (new_name, what))

    def unlink(self, path: str) -> None:
        self._change()
        directory, name = self._place(path)
        if name not in directory.names:
            raise FileNotFoundError(2, "No such file or directory", path)
        directory.change((name, None))

    def rmdir(self, path: str) -> None:
        self.unlink(path)

    def make_dirs(self, path: str) -> None:
        at = self.root
        for part in PurePosixPath(path).parts[1:]:
            below = at.names.get(part)
            if below is None:
                self._change()
                below = Directory()
                at.change((part, below))
            if not isinstance(below, Directory):
                raise NotADirectoryError(20, "Not a directory", path)
            at = below

    def listdir(self, path: str) -> list[str]:
        directory = self._find(path)
        return list(directory.names) if isinstance(directory, Directory) else []

    def exists(self, path: str) -> bool:
        return self._find(path) is not None

    def disk(self, path: str) -> tuple[float, int]:
        return 0.1, 1 << 40
