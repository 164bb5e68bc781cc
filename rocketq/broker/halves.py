"""What is known of half messages: which are open, and how the last ones ended. Pure: no store, no clock, no network.

A half message is named by its offset in the half topic and keeps it until it ends. Those that are open are in memory;
of those that ended the last :data:`REMEMBERED` are, so that an end that comes twice can be answered.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgspec

#: Ends that are remembered.
REMEMBERED = 20_000


class Outcome(enum.Enum):
    """How a half message ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    GIVEN_UP = "given up"


class Half(msgspec.Struct, gc=False):
    """An open half message.

    `physical`: where its record is. `op_end`: the end of the op topic when it came, so that the op about it is not
    before. `checks`: how often its producers were asked. `check_from`: when they may be asked first, ms; 0: look into
    the record.
    """

    physical: int
    op_end: int
    checks: int = 0
    check_from: int = 0


class End(NamedTuple):
    """The end of a half message; `op` is the physical offset of the op that says so."""

    outcome: Outcome
    op: int


class Positions(NamedTuple):
    """Where somebody who knows nothing has to begin to read both topics to find all open half messages."""

    half: int
    op: int


class Halves:
    """All open half messages by offset, the last ends by offset, and `next`, the offset of the half to come."""

    def __init__(self) -> None:
        self.open: dict[int, Half] = {}
        self.ended: dict[int, End] = {}
        self.next = 0

    def begin(self, offset: int, half: Half) -> None:
        """A half message came."""
        self.open[offset] = half
        self.next = offset + 1

    def end(self, offset: int, outcome: Outcome, op: int) -> Half | None:
        """A half message ended; returns what it was when it was open."""
        half = self.open.pop(offset, None)
        if len(self.ended) >= REMEMBERED:
            del self.ended[next(iter(self.ended))]
        self.ended[offset] = End(outcome, op)
        return half

    def reopen(self, offset: int, half: Half) -> None:
        """Take an end back."""
        self.ended.pop(offset, None)
        self.open[offset] = half

    def positions(self, op_end: int) -> Positions:
        """`op_end`: the end of the op topic."""
        if not self.open:
            return Positions(self.next, op_end)
        oldest = min(self.open)
        return Positions(oldest, self.open[oldest].op_end)

    def as_json(self, op_end: int) -> dict[str, Any]:
        """What a start needs to know besides what comes behind these offsets."""
        table = {offset: [half.op_end, half.checks] for offset, half in self.open.items()}
        return {"halfOffset": self.next, "opOffset": op_end, "open": table}
