"""The timer wheel: for every second of two weeks the chain of messages that are due in it (`TimerWheel`).

The file `timerwheel` has 2 * 7 * 24 * 3600 slots of 32 bytes; the slot of a second is at its number modulo that. A slot
names the second that it holds, so one that was used two weeks ago counts as empty, and none is ever cleared.

Changes stay in memory until the timer log that they point into is on disk: then :meth:`TimerWheel.save` writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from rocketq.store.files import Files

#: Slots of the file, each of one second.
SLOTS = 2 * 7 * 24 * 3600
_SLOT = struct.Struct(">qqqii")
#: Slots that are looked through at once.
_BLOCK = 4096


class Slot(NamedTuple):
    """Positions in the timer log of the first and the last unit of a second, and how many are not taken back."""

    first: int
    last: int
    total: int


class TimerWheel:
    """The file at `path`. Methods raise OSError."""

    def __init__(self, path: str, files: Files) -> None:
        self.path = path
        self._files = files
        self._fd = -1
        self._changed: dict[int, Slot] = {}
        self._saving: dict[int, Slot] = {}
        #: a run before that was killed may have written slots and not forced them to disk
        self._unforced = True

    def open(self) -> bool:
        """Open or make the file; False when there was none of the right size."""
        files = self._files
        self._fd = files.open(self.path, create=True)
        if files.size(self._fd) == SLOTS * _SLOT.size:
            return True
        self.clear()
        return False

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def clear(self) -> None:
        """Empty all slots."""
        self._files.truncate(self._fd, 0)
        self._files.truncate(self._fd, SLOTS * _SLOT.size)
        self._changed.clear()
        self._saving = {}

    def get(self, second: int) -> Slot | None:
        """The slot of a second; None when nothing was ever due in it."""
        slot = self._changed.get(second) or self._saving.get(second)
        if slot is None:
            raw = self._files.pread(self._fd, _SLOT.size, self.place(second))
            time, first, last, total, _ = _SLOT.unpack(raw)
            if time == second and time:
                slot = Slot(first, last, total)
        return slot

    def put(self, second: int, slot: Slot) -> None:
        self._changed[second] = slot

    def used(self) -> Iterator[tuple[int, Slot]]:
        """Every slot that was ever used, as the file has it, with its second."""
        for index in range(0, SLOTS, _BLOCK):
            raw = self._files.pread(self._fd, min(_BLOCK, SLOTS - index) * _SLOT.size, index * _SLOT.size)
            if raw.strip(b"\0"):
                for time, first, last, total, _ in _SLOT.iter_unpack(raw):
                    if time:
                        yield time, Slot(first, last, total)

    def place(self, second: int) -> int:
        """Where in the file the slot of a second is."""
        return second % SLOTS * _SLOT.size

    def next_used(self, second: int, until: int) -> int:
        """The first second from `second` on, and before `until`, that has a slot; else `until`."""
        changed, saving = self._changed, self._saving
        for _ in range(0, SLOTS + _BLOCK, _BLOCK):
            if second >= until:
                break
            index = second % SLOTS
            count = min(_BLOCK, until - second, SLOTS - index)
            raw = self._files.pread(self._fd, count * _SLOT.size, index * _SLOT.size)
            empty = not raw.strip(b"\0") and not changed and not saving  # most are when a broker was away for days
            for number, (time, *_) in enumerate(() if empty else _SLOT.iter_unpack(raw), second):
                if time == number or number in changed or number in saving:
                    return number
            second += count
        return until

    @property
    def changed(self) -> int:
        """How many slots wait for being saved."""
        return len(self._changed)

    def begin_save(self) -> None:
        """Let :meth:`save` save the slots as they are now."""
        self._saving, self._changed = self._saving | self._changed, {}

    def save(self) -> None:
        """Write the slots of `begin_save` and force them to disk. May run on another thread."""
        for second, (first, last, total) in self._saving.items():
            raw = _SLOT.pack(second, first, last, total, 0)
            self._files.pwrite(self._fd, raw, self.place(second))
        if self._saving or self._unforced:
            self._files.fdatasync(self._fd)
            self._unforced = False

    def end_save(self) -> None:
        """They were written."""
        self._saving = {}
