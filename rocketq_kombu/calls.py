"""What is to be called later, by a `kombu.asynchronous.Hub` or by whoever turns the wheel of an engine."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rocketq_kombu.waker import Waker


class Calls:
    """Without a hub nothing is called but by `run_posted` and `run_due`. Any thread may ask for something.

    A hub's round: it calls what it was given by `call_soon` and what is due, then whoever wants to be called before
    it waits (us, and Celery's pool, in no order), then it waits and calls who waited for files. For how long it waits
    it decides before all but the first two, so after that we have to wake it.
    """

    def __init__(self) -> None:
        self._hub: Any = None
        self._waker: Waker | None = None
        self._thread = 0  # the hub's
        self._before_waiting = False
        self._lock = threading.Lock()  # of what is added to `_soon` and `_posted`, and of the waker
        self._soon: deque[Callable[[], object]] = deque()
        self._after: list[Callable[[], object]] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    # in this round of the hub, or the next one

    def soon(self, call: Callable[[], object]) -> None:
        """Call before the hub waits again; there has to be one."""
        with self._lock:
            self._soon.append(call)
            if self._waker is not None and threading.get_ident() != self._thread:
                self._waker.wake()

    def after(self, call: Callable[[], object]) -> None:
        """Call when the hub has looked at its files: what Celery writes to its pool goes first, and is begun with.

        A process that waits for its task may have been put on our CPU, where it would wait until we do.
        """
        self._after.append(call)

    @staticmethod
    def _run_after(calls: list[Callable[[], object]]) -> None:
        if hasattr(os, "sched_yield"):  # not on Windows
            os.sched_yield()
        for call in calls:
            call()

    def run_soon(self) -> None:
        while self._soon:
            self._soon.popleft()()

    def _tick(self) -> None:
        """The hub is about to wait."""
        self._thread = threading.get_ident()
        self._before_waiting = True
        self.run_soon()
        self._before_waiting = False
        if self._waker is None:  # detached meanwhile
            return
        if self._after:
            after, self._after = self._after, []
            self._hub.call_soon(self._run_after, after)
        if getattr(self._hub, "_ready", ()):  # what `call_soon` was given: the hub calls it after it has waited
            self._waker.wake()

    # when nobody is in the middle of anything

    @property
    def posted(self) -> bool:
        """Whether there is something for `run_posted`."""
        return bool(self._posted)

    def post(self, call: Callable[[], None]) -> None:
        """Call when nobody is in the middle of anything."""
        with self._lock:
            first = not self._posted
            self._posted.append(call)
        if first and self._hub is not None:
            self.soon(self.run_posted)

    def run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    # after a while

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call after `delay` seconds."""
        if self._hub is not None:
            self._hub.call_later(delay, call)
            with self._lock:
                if self._waker is not None and (self._before_waiting or threading.get_ident() != self._thread):
                    self._waker.wake()
        else:
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._numbers), call))

    @property
    def next_due(self) -> float:
        """When `run_due` has something to do, in monotonic seconds."""
        return self._timers[0][0] if self._timers else float("inf")

    def run_due(self) -> None:
        now = time.monotonic()
        while self.next_due <= now:
            heapq.heappop(self._timers)[2]()

    # who calls

    def attach(self, hub: Any) -> None:
        """Let a hub call from now on."""
        self._hub = hub
        timers, self._timers = self._timers, []
        now = time.monotonic()
        for when, _, call in timers:
            hub.call_later(max(0.0, when - now), call)
        hub.on_tick.add(self._tick)
        self._waker = Waker(hub)

    def detach(self) -> None:
        with self._lock:
            if self._waker is not None:
                self._hub.on_tick.discard(self._tick)
                self._waker.close()
                self._hub = self._waker = None

    def forget_timers(self) -> None:
        self._timers.clear()
