"""What is to be called later, by a `kombu.asynchronous.Hub` or by whoever turns the wheel of an engine."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Calls:
    """Without a hub nothing is called but by `run_posted` and `run_due`. Any thread may ask for something."""

    def __init__(self) -> None:
        self._hub: Any = None
        self._lock = threading.Lock()  # of `_soon`
        self._soon: deque[Callable[[], object]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    # before the loop waits

    def soon(self, call: Callable[[], object]) -> None:
        """Call before the event loop waits again; there has to be one.

        A hub calls what it was given by `call_soon` at the beginning of a round only: what such a call asks for in
        its turn would wait for the next event, for up to a second. So it tells us as well when it is about to wait.
        """
        with self._lock:
            first = not self._soon
            self._soon.append(call)
        if first:
            self._hub.call_soon(self._run_soon)  # which also wakes it when we are in another thread

    def _run_soon(self) -> None:
        while True:
            with self._lock:
                if not self._soon:
                    return
                call = self._soon.popleft()
            call()

    # when nobody is in the middle of anything

    @property
    def posted(self) -> bool:
        """Whether there is something for `run_posted`."""
        return bool(self._posted)

    def post(self, call: Callable[[], None]) -> None:
        """Call when nobody is in the middle of anything."""
        self._posted.append(call)
        if self._hub is not None and len(self._posted) == 1:
            self.soon(self.run_posted)

    def run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    # after a while

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call after `delay` seconds."""
        if self._hub is not None:
            self._hub.call_later(delay, call)
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
        hub.on_tick.add(self._run_soon)

    def detach(self) -> None:
        """What the hub was to call before it waits it may still call."""
        if self._hub is not None:
            self._hub.on_tick.discard(self._run_soon)
            self._hub = None

    def forget_timers(self) -> None:
        self._timers.clear()
