"""How many timer messages wait, by topic (`TimerMetrics`; ``config/timermetrics``), and how many come and go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rocketq.remoting.bodies import DataVersion


class TimerCounts:
    """`filed` and `fired`: messages that were put into the wheel and taken out by this process.

    `rates`: both a second, as of the last `sample`.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        #: real topic -> messages that wait, and when that last changed
        self._counts: dict[str, list[int]] = {}
        self._changes = 0
        self.filed = self.fired = 0
        self.rates = (0.0, 0.0)
        self._sampled = (time.monotonic(), 0, 0)

    @property
    def pending(self) -> int:
        """Messages that wait for their time."""
        return sum([max(0, count) for count, _ in self._counts.values()])

    def count(self, topic: str, change: int) -> None:
        """So many more, or less, messages wait for `topic`."""
        self._changes += 1
        entry = self._counts.setdefault(topic, [0, 0])
        entry[0] += change
        entry[1] = self._clock_ms()

    def of(self, topic: str) -> int:
        """Messages of a topic that wait, those that were taken back with them until they would be due."""
        return max(0, self._counts.get(topic, (0, 0))[0])

    def load(self, table: dict[str, Any]) -> None:
        self._counts = {
            topic: [int(each["count"]), int(each["timeStamp"])]
            for topic, each in table.get("timingCount", {}).items()
        }

    def to_json(self) -> dict[str, Any]:
        version = DataVersion(timestamp=self._clock_ms(), counter=self._changes)
        counts = {
            topic: {"count": count, "timeStamp": changed} for topic, (count, changed) in self._counts.items()
        }
        return {"dataVersion": version.to_json(), "timingCount": counts}

    def sample(self, now: float) -> None:
        """Reckon the rates anew, once a second. `now`: seconds of a monotonic clock."""
        at, filed, fired = self._sampled
        if now - at >= 1:
            self.rates = (self.filed - filed) / (now - at), (self.fired - fired) / (now - at)
            self._sampled = now, self.filed, self.fired
