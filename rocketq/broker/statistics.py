"""What the broker counts: plain numbers that the hot paths raise, and rates made of them when somebody asks."""

from __future__ import annotations

from collections import deque

#: Seconds between two samples, and the windows of the rates that operators get to see.
SAMPLE_EVERY = 5.0
WINDOWS = (10, 60, 600)


class Statistics:
    """Totals since the start. The send and pull paths add to them, once per batch where they can."""

    def __init__(self) -> None:
        self.put_count = 0
        self.put_bytes = 0
        self.put_failed = 0
        self.put_slowest = 0.0  # seconds that the slowest write of a batch took
        self.get_found = 0
        self.get_missed = 0
        self.get_messages = 0
        self.flow_controlled = 0
        self._samples: deque[tuple[float, int, int, int, int]] = deque(maxlen=int(WINDOWS[-1] / SAMPLE_EVERY) + 2)

    def sample(self, now: float) -> None:
        """Note the totals at `now` (seconds); cheap, called often, does something every :data:`SAMPLE_EVERY`."""
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
