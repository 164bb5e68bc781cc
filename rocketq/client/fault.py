"""Back-off from slow brokers: a table of who is not to be used until when. Pure, time comes in as a parameter.

Latency of a send decides for how long its broker is left out (`LatencyFaultToleranceImpl`, numbers of 5.x).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

LATENCY_MS = (50, 100, 550, 1800, 3000, 5000, 15_000)
NOT_AVAILABLE_MS = (0, 0, 2000, 5000, 6000, 10_000, 30_000)
#: A send that failed counts as one that took so long.
FAILURE_MS = 10_000

T = TypeVar("T")


def back_off_ms(latency_ms: float) -> int:
    """For how long a broker with that latency is left out."""
    step = bisect_right(LATENCY_MS, latency_ms) - 1
    return NOT_AVAILABLE_MS[step] if step >= 0 else 0


class LatencyFaults:
    """Who is left out until when, in seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def observe(self, broker: str, latency_ms: float, now: float) -> None:
        """A send to `broker` took that long."""
        pause = back_off_ms(latency_ms)
        if pause:
            self._until[broker] = now + pause / 1000
        elif self._until:
            self._until.pop(broker, None)

    def failed(self, broker: str, now: float) -> None:
        """A send to `broker` failed."""
        self.observe(broker, FAILURE_MS, now)

    def available(self, broker: str, now: float) -> bool:
        return self._until.get(broker, 0.0) <= now

    def prefer(self, candidates: Sequence[T], broker_of: Callable[[T], str], now: float) -> Sequence[T]:
        """The candidates whose broker is not left out; all of them when every one is."""
        if not self._until:
            return candidates
        return [one for one in candidates if self.available(broker_of(one), now)] or candidates
