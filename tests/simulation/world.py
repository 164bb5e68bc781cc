"""The world of one seed: its time, its processes, its network, and what is written down of what happens."""

from __future__ import annotations

import logging
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import doors
from network import Network
from process import Process

#: Seconds since 1970 at which every world begins.
EPOCH = 1_800_000_000.25
#: Lines of history that a failure shows.
TAIL = 60


class SeedFailed(Exception):
    """An invariant does not hold, or something fell over."""


class World:
    """Runs processes, one step of one of them after the other. `chance` decides everything that is not the product's.

    `history`: what happened, as lines. `sum` is a checksum of all steps, bytes sent and lines: the same seed gives the
    same one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 0.0
        self.epoch = EPOCH
        self.steps = 0
        self.sum = 0
        self.history: list[str] = []
        self.problems: list[str] = []
        self.processes: list[Process] = []
        self.network = Network(self)
        #: called when a process died in the middle of something
        self.on_died: Callable[[Process], None] = lambda process: None
        self._dying: list[Process] = []
        #: what killed processes consisted of: nothing of it may be cleaned up while the world lasts
        self._graves: list[Any] = []

    def process(self, name: str, host: str | None = None) -> Process:
        number = len(self.processes) + 1
        process = Process(self, name, number, host or f"10.0.0.{number}")
        self.processes.append(process)
        return process

    # what is written down

    def note(self, *words: object) -> None:
        """One line of history, by the process that runs. The dead write nothing."""
        who = doors.running
        if who is not None and not who.alive:
            return
        line = f"{self.now:10.6f} {'' if who is None else who.name:>10} {' '.join(map(str, words))}"
        self.sum = zlib.crc32(line.encode(), self.sum)
        self.history.append(line)

    def failed(self, what: str, error: BaseException | None = None) -> None:
        """Something that must not happen did."""
        self.note("PROBLEM", what)
        if error is not None:
            import traceback

            what += "\n" + "".join(traceback.format_exception(error))
        self.problems.append(what)

    # running

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let time pass until the condition holds; False when it does not within `limit` seconds."""
        end = self.now + limit
        processes, pack = self.processes, struct.Struct("<dI").pack
        while not self.problems:
            if until():
                return True
            first, when = None, end
            for process in processes:
                if process.wakes < when:
                    first, when = process, process.wakes
            if first is None:
                self.now = end
                return until()
            self.now = max(self.now, when)
            self.steps += 1
            self.sum = zlib.crc32(pack(self.now, first.number), self.sum)
            first.busy_until = self.now + self.chance.random() * 0.0002
            first.step()
            if self._dying:
                dying, self._dying = self._dying, []
                for process in dying:
                    self.bury(process, silent=False)
                    self.on_died(process)
        return False

    def died(self, process: Process) -> None:
        """It dies in the middle of what it does just now: nothing that it does from here on counts."""
        process.alive = False
        self._dying.append(process)  # its step goes on, for nothing

    def bury(self, process: Process, *, silent: bool) -> None:
        """End a process at once. `silent`: the host too, so its connections are not closed by anybody."""
        process.alive = False
        process.plan()
        self.network.close_host(process, silent)
        self._graves.append((process.loop, process.task, process.transports))

    def end(self) -> None:
        """Nothing runs any more."""
        for process in self.processes:
            process.alive = False


class History(logging.Handler):
    """Log lines of rocketq become lines of the history; what it did not expect is a problem."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = doors.running
        if process is None or not process.alive:
            return
        text = f"{record.levelname} {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not getattr(error, "expected", False):
            self.world.failed(text, error)
        else:
            self.world.note(text)
