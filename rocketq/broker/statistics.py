"""What the broker counts: plain numbers that the hot paths raise, and rates made of them when somebody asks.

Traffic is counted by topic and by group in a :class:`Series` each. Its numbers over the last minute, hour and day are
the difference to a sample taken then (`BrokerStatsManager`): every 10 s, 10 minutes and hour, seven or so kept of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rocketq.store.store import Appended

#: Seconds between two samples, and the windows of the rates that operators get to see.
SAMPLE_EVERY = 5.0
WINDOWS = (10, 60, 600)
#: What VIEW_BROKER_STATS_DATA calls a window -> seconds between its samples, and how many cover it.
SPANS = {"statsMinute": (10.0, 7), "statsHour": (600.0, 7), "statsDay": (3600.0, 25)}


@dataclass(slots=True)
class Series:
    """Messages, their bytes, and in how many goes they came; with samples of the three."""

    count: int = 0
    bytes: int = 0
    times: int = 0
    samples: dict[str, deque[tuple[float, int, int, int]]] = field(default_factory=dict)

    def sample(self, now: float) -> None:
        latest = (now, self.count, self.bytes, self.times)
        for span, (every, keep) in SPANS.items():
            kept = self.samples.get(span)
            if kept is None:
                self.samples[span] = deque([latest], maxlen=keep)
            elif now - kept[-1][0] >= every:
                kept.append(latest)

    def window(self, span: str, now: float, of_bytes: bool = False) -> tuple[int, float, float]:
        """(sum, per second, average of one go) over a window of :data:`SPANS`."""
        kept = self.samples.get(span)
        then, count, size, times = kept[0] if kept else (now, self.count, self.bytes, self.times)
        total = self.bytes - size if of_bytes else self.count - count
        elapsed, goes = now - then, self.times - times
        return total, total / elapsed if elapsed > 0 else 0.0, total / goes if goes else 0.0


class Statistics:
    """Totals since the start at `now` (seconds). The send and pull paths add to them, once per batch where they can."""

    def __init__(self, now: float = 0.0) -> None:
        self.put_count = 0
        self.put_bytes = 0
        self.put_failed = 0
        self.put_slowest = 0.0  # seconds that the slowest write of a batch took
        self.get_found = 0
        self.get_missed = 0
        self.get_messages = 0
        self.flow_controlled = 0
        #: by topic: what was stored; by (topic, group): what was handed out, and what came back to be retried
        self.topics: dict[str, Series] = {}
        self.groups: dict[tuple[str, str], Series] = {}
        self.returned: dict[tuple[str, str], Series] = {}
        self._now = now
        self.stored, self.handed_out = self._new(), self._new()
        self._samples: deque[tuple[float, int, int, int, int]] = deque(maxlen=int(WINDOWS[-1] / SAMPLE_EVERY) + 2)

    def arrived(self, messages: Iterable[Appended]) -> None:
        """Messages were stored."""
        topics = self.topics
        count = size = 0
        for message in messages:
            series = topics.get(message.topic)
            if series is None:
                series = topics[message.topic] = self._new()
            series.count += 1
            series.times += 1
            series.bytes += message.size
            count += 1
            size += message.size
        stored = self.stored
        stored.count += count
        stored.times += count
        stored.bytes += size

    def delivered(self, group: str, topic: str, count: int, size: int) -> None:
        """Messages were handed to a consumer, in one go."""
        for series in (self._series(self.groups, (topic, group)), self.handed_out):
            series.count += count
            series.bytes += size
            series.times += 1

    def sent_back(self, group: str, topic: str) -> None:
        """A consumer could not consume a message."""
        series = self._series(self.returned, (topic, group))
        series.count += 1
        series.times += 1

    def forget_topic(self, topic: str) -> None:
        self.topics.pop(topic, None)
        for table in (self.groups, self.returned):
            for key in [key for key in table if key[0] == topic]:
                del table[key]

    def _series(self, table: dict[tuple[str, str], Series], key: tuple[str, str]) -> Series:
        series = table.get(key)
        if series is None:
            series = table[key] = self._new()
        return series

    def _new(self) -> Series:
        series = Series()
        series.sample(self._now)  # it begins at nothing
        return series

    def sample(self, now: float) -> None:
        """Note the totals at `now` (seconds); cheap, called often, does something every :data:`SAMPLE_EVERY`."""
        if now - self._now >= SPANS["statsMinute"][0]:
            for table in (self.topics, self.groups, self.returned):
                for series in table.values():
                    series.sample(now)
            self.stored.sample(now)
            self.handed_out.sample(now)
            self._now = now
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_EVERY:
            self._samples.append((now, self.put_count, self.get_found, self.get_missed, self.get_messages))

    def rates(self, now: float) -> dict[str, list[float]]:
        """Per second, over the last 10, 60 and 600 seconds: ``put``, ``found``, ``missed``, ``transferred``."""
        latest = (now, self.put_count, self.get_found, self.get_missed, self.get_messages)
        rates: dict[str, list[float]] = {"put": [], "found": [], "missed": [], "transferred": []}
        for window in WINDOWS:
            # the newest sample that is old enough, or the oldest there is
            base = latest
            for sample in reversed(self._samples):
                base = sample
                if now - sample[0] >= window:
                    break
            elapsed = now - base[0]
            for index, name in enumerate(rates, 1):
                rates[name].append((latest[index] - base[index]) / elapsed if elapsed > 0 else 0.0)
        return rates
