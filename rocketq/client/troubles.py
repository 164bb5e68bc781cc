"""Failures that go on: logged when they begin and then rarely, however often they are met."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

#: Seconds after which a failure that goes on is logged again.
REPEAT = 60.0


class Troubles:
    """What is failing now, and when that was said last. Pure but for the clock (seconds that never go back)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[Hashable, float] = {}

    def level(self, what: Hashable, level: int = logging.WARNING) -> int:
        """The level to log a failure of `what` with: DEBUG when it was said less than a minute ago."""
        now = self._clock()
        said = self._said.get(what)
        if said is not None and now - said < REPEAT:
            return logging.DEBUG
        self._said[what] = now
        return level

    def over(self, what: Hashable) -> bool:
        """`what` works, or is of no interest any more; True when it was failing."""
        return bool(self._said) and self._said.pop(what, None) is not None
