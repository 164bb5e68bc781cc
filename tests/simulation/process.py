"""A simulated process: an event loop whose time is the world's, a host, a clock on the wall, and what may befall it."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from math import inf
from typing import TYPE_CHECKING, Any

import doors

if TYPE_CHECKING:
    from network import Transport
    from world import World


class Killed(BaseException):
    """The process died in the middle of what it did."""


class Process:
    """One process of `host`. `wall_ahead`: seconds that its clock is before the world's."""

    def __init__(self, world: World, name: str, number: int, host: str) -> None:
        self.world = world
        self.name = name
        self.number = number
        self.host = host
        self.loop = Loop(self)
        self.alive = False
        self.wall_ahead = 0.0
        #: nothing runs before: the process works, or was stopped by a signal
        self.busy_until = 0.0
        #: when it has something to do
        self.wakes = inf
        #: how slow its disk is: a factor
        self.slowness = 1.0
        self.transports: list[Transport] = []
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return self.name

    def wall(self) -> float:
        return self.world.epoch + self.world.now + self.wall_ahead

    def monotonic(self) -> float:
        return 1000.0 * self.number + self.world.now

    def start(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin `main` in a loop of its own. Nothing is left of an earlier run, except on the disk."""
        self.loop = Loop(self)
        self.transports = []
        self.alive = True
        self.busy_until = self.world.now
        with doors_of(self):
            asyncio._set_running_loop(self.loop)
            try:
                self.task = self.loop.create_task(self._run(main), name=self.name)
            finally:
                asyncio._set_running_loop(None)
        self.plan()

    async def _run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await main()
        except Exception as error:  # noqa: BLE001 - a part of the simulated cluster fell over: the seed has failed
            if self.alive and self.loop is loop:
                self.world.failed(f"{self} ended: {type(error).__name__}: {error}", error)

    def plan(self) -> None:
        """Reckon anew when it has something to do."""
        loop = self.loop
        if not self.alive:
            self.wakes = inf
            return
        if loop._ready:
            self.wakes = self.busy_until
            return
        scheduled = loop._scheduled
        while scheduled and scheduled[0]._cancelled:
            loop._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        self.wakes = max(self.busy_until, scheduled[0]._when) if scheduled else inf

    def pause(self, seconds: float) -> None:
        """It does not run for so long: SIGSTOP and SIGCONT."""
        self.busy_until = self.world.now + seconds
        self.plan()

    def step(self) -> None:
        """Run what is due."""
        doors.running = self
        asyncio._set_running_loop(self.loop)
        try:
            self.loop._run_once()
        finally:
            asyncio._set_running_loop(None)
            doors.running = None
        self.plan()


class doors_of:
    """While in it, clocks and the rest are those of a process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __enter__(self) -> None:
        doors.running = self._process

    def __exit__(self, *_: object) -> None:
        doors.running = None


class _Nothing:
    """A selector that has nothing to watch: the world decides when the loop runs."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class Loop(asyncio.BaseEventLoop):
    """The event loop of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self._selector = _Nothing()
        self._clock_resolution = 1e-7
        self._thread_id = threading.get_ident()

    def time(self) -> float:
        return self.process.world.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = super().call_at(when, callback, *args, context=context)
        process = self.process
        if when < process.wakes and process.loop is self:
            process.wakes = max(when, process.busy_until)
        return handle

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.process.alive and self.process.loop is self:
            error = context.get("exception")
            self.process.world.failed(f"{self.process}: {context.get('message')}: {error!r}", error)

    # what leaves the loop

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.process.world.network.connect(self.process, factory, host, port)

    async def create_server(
        self, factory: Any, host: Any = None, port: Any = None, *, start_serving: bool = True, **_: Any
    ) -> Any:
        listener = self.process.world.network.bind(self.process, factory, port)
        if start_serving:
            await listener.start_serving()
        return listener

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        return [(2, 1, 6, "", (host, port))]

    def run_in_executor(self, executor: Any, function: Any, *args: Any) -> Any:
        """On another thread: done a little later, and known a little after that."""
        future = self.create_future()
        context = copy_context()

        def tell(done: Future[Any]) -> None:
            if not future.done():
                error = done.exception()
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(done.result())

        def run() -> None:
            job = doors.Job(context.run, (function, *args))
            job.run()
            self.call_later(doors.delay(0.0001, 0.002), tell, job)

        self.call_later(doors.delay(0.0001, 0.01), run)
        return future
