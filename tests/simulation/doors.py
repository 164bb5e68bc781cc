"""What the simulation replaces of Python and of rocketq, so that nothing depends on the machine.

`install` is called before rocketq is imported, in a process that does nothing else: time, random numbers, process ids
and addresses come from the simulated process that is running just now, and the store's two threads become callbacks
of its loop.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from process import Process

#: The simulated process whose code runs; None: the simulation's own.
running: Process | None = None

real_time = time.perf_counter
_wall, _monotonic, _pid = time.time, time.monotonic, os.getpid


def wall() -> float:
    return _wall() if running is None else running.wall()


def monotonic() -> float:
    return _monotonic() if running is None else running.monotonic()


class SeededRandom(random.Random):
    """A generator that takes its seed, when it is given none, from the one that the simulation's seed began."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(random.getrandbits(64) if seed is None else seed)


def install() -> None:
    """Replace what belongs to Python. Once, before rocketq is imported."""
    assert "rocketq" not in __import__("sys").modules, "rocketq has taken hold of the real clock already"
    time.time = wall
    time.time_ns = lambda: int(wall() * 1_000_000_000)
    time.monotonic = time.perf_counter = monotonic
    time.monotonic_ns = lambda: int(monotonic() * 1_000_000_000)
    os.getpid = lambda: _pid() if running is None else running.number
    os.urandom = random.randbytes
    random.Random = SeededRandom  # type: ignore[misc]
    os.environ["TZ"] = "UTC"
    time.tzset()

    from rocketq import message
    from rocketq.store import store

    message._local_address = lambda: socket.inet_aton("127.0.0.1" if running is None else running.host)
    store.Flusher = Flusher  # type: ignore[misc]
    store.ThreadPoolExecutor = Helper  # type: ignore[assignment, misc]


def begin(seed: int) -> None:
    """Let everything that is left to chance follow from `seed`."""
    from rocketq import message
    from rocketq.remoting.server import Server

    random.seed(seed)
    message.new_unique_id.__self__._pid = -1  # type: ignore[attr-defined]
    Server.accepted = 0  # nobody closes the connections of processes that were killed in the seeds before


def delay(low: float, high: float) -> float:
    """Seconds that something takes on another thread or the disk of the process that runs."""
    assert running is not None
    return running.world.chance.uniform(low, high) * running.slowness


def later(seconds: float, call: Callable[..., object], *args: object) -> None:
    assert running is not None
    running.loop.call_later(seconds, call, *args)


class Helper:
    """The store's second thread: what is submitted is done a little later, at once when somebody waits for it."""

    def __init__(self, workers: int, name: str) -> None:
        self._open: list[Job] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Job:
        job = Job(function, args)
        self._open = [each for each in self._open if not each.done()] + [job]
        later(delay(0.0002, 0.02), job.run)
        return job

    def shutdown(self) -> None:
        for job in self._open:
            job.run()


class Job(Future[Any]):
    """A call that is to be made. A thread that waits for its result has it made now."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self._call = function, args

    def run(self) -> None:
        if not self.done():
            function, args = self._call
            try:
                self.set_result(function(*args))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
                self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        self.run()
        return super().result()


class Flusher:
    """Stands for :class:`rocketq.store.flush.Flusher`: the same steps, as callbacks in place of a thread."""

    def __new__(cls, *args: Any) -> Any:
        from rocketq.store import flush

        class OnTheLoop(flush.Flusher):
            _planned = False

            def start(self, offset: int) -> None:
                self.written = self.durable = offset

            def advance(self, written: int) -> None:
                self.written = written
                if not self._planned and not self.failure:
                    self._planned = True
                    later(self._interval + delay(0.0001, 0.001), self._begin)

            def _begin(self) -> None:
                if self._planned:
                    later(delay(0.0002, 0.01), self._end, self.written)

            def _end(self, target: int) -> None:
                if not self._planned:
                    return
                # what was written while the disk worked is not known to be on it
                written, self.written = self.written, max(target, self.durable)
                self.flush()
                self.written = written
                self._planned = False
                if written > self.durable:
                    self.advance(written)

            def stop(self) -> None:
                self._planned = False
                self.flush()

        return OnTheLoop(*args)
