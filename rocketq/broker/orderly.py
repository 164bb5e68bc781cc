"""Orderly POP: what a group holds of a queue, from which nothing more is given out (`ConsumerOrderInfoManager`).

One batch of a queue is out at a time. The next one comes when all of it is acknowledged, or when a lease in it has
ended: then the batch begins anew at the first message that is not acknowledged, and those behind it that are do not
come again. Who asks with the `attempt_id` of the batch that is out gets it again: his answer was lost.

:class:`OrderInfo` is a value: a change makes a new one. No I/O here.
"""

from __future__ import annotations

from typing import Any

import msgspec


class OrderInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The batch of a queue that is out, or was last. Times in ms.

    `acked` has bit i for the i-th offset, `visible` the end of a lease where it is not `pop_time + invisible_time`,
    `counts` how often a message was given out before. `ahead`: messages behind the batch's first that are no part of
    it, because they were acknowledged in an earlier one.
    """

    offsets: tuple[int, ...]
    pop_time: int
    invisible_time: int
    attempt_id: str | None = None
    acked: int = 0
    visible: dict[int, int] = {}
    counts: dict[int, int] = {}
    ahead: tuple[int, ...] = ()

    def blocked_until(self, attempt_id: str | None, now: int) -> int:
        """When the next batch may be asked for; 0 for now."""
        if attempt_id is not None and attempt_id == self.attempt_id:
            return 0
        ends = [self.visible.get(offset, self.pop_time + self.invisible_time) for offset in self.left()]
        last = max(ends, default=0)
        return last if last > now else 0

    def left(self) -> list[int]:
        """The offsets that are not acknowledged."""
        return [offset for index, offset in enumerate(self.offsets) if not self.acked >> index & 1]

    def passed(self) -> set[int]:
        """The offsets that are acknowledged."""
        return {*self.offsets, *self.ahead}.difference(self.left())

    def next_offset(self) -> int:
        """Where the group is in the queue."""
        left = self.left()
        return left[0] if left else self.offsets[-1] + 1

    def then(
        self, offsets: tuple[int, ...], pop_time: int, invisible_time: int, attempt_id: str | None
    ) -> OrderInfo:
        """The batch after this one, which may have messages of this one."""
        counts = self.counts
        if attempt_id is None or attempt_id != self.attempt_id:
            counts = {offset: self.counts.get(offset, 0) + 1 for offset in offsets if offset in self.offsets}
        return OrderInfo(
            offsets=offsets,
            pop_time=pop_time,
            invisible_time=invisible_time,
            attempt_id=attempt_id,
            counts=counts,
            ahead=tuple(sorted(offset for offset in self.passed() if offset > offsets[0])),
        )

    def ack(self, offset: int) -> OrderInfo | None:
        """After the acknowledgement; None when the message is not one of the batch, or is acknowledged already."""
        if offset not in self.left():
            return None
        return msgspec.structs.replace(self, acked=self.acked | 1 << self.offsets.index(offset))

    def lease(self, offset: int, visible: int) -> OrderInfo | None:
        """With another end of the message's lease; None when it is not one of those that are out."""
        if offset not in self.left():
            return None
        return msgspec.structs.replace(self, visible={**self.visible, offset: visible})

    def over(self, now: int) -> OrderInfo:
        """With no lease that ends after `now`."""
        return msgspec.structs.replace(self, visible={**self.visible, **dict.fromkeys(self.left(), now)})

    def count_info(self, queue_id: int) -> str:
        """The part of `orderCountInfo` for this batch."""
        counts = self.counts
        parts = [f"0 qo{queue_id}%{offset} {count}" for offset, count in sorted(counts.items())]
        least = min(counts.values()) if counts and len(counts) == len(self.offsets) else 0
        return ";".join([*parts, f"0 {queue_id} {least}"])

    def to_json(self) -> dict[str, Any]:
        """As Apache's ``consumerOrderInfo.json`` has it: offsets after the first as differences."""
        first, *others = self.offsets
        value: dict[str, Any] = {
            "cm": self.acked,
            "i": self.invisible_time,
            "l": self.pop_time,
            "o": [first, *[offset - first for offset in others]],
            "oc": self.counts,
            "ot": self.visible,
            "popTime": self.pop_time,
        }
        if self.ahead:
            value["ahead"] = self.ahead
        if self.attempt_id is not None:
            value["a"] = self.attempt_id
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OrderInfo:
        """Raises KeyError, ValueError, TypeError for what is none."""
        first, *others = [int(offset) for offset in value["o"]]
        return cls(
            offsets=(first, *[first + other for other in others]),
            pop_time=int(value["popTime"]),
            invisible_time=int(value.get("i") or 0),
            attempt_id=value.get("a"),
            acked=int(value.get("cm") or 0),
            visible={int(k): int(v) for k, v in (value.get("ot") or {}).items()},
            counts={int(k): int(v) for k, v in (value.get("oc") or {}).items()},
            ahead=tuple(int(offset) for offset in value.get("ahead") or ()),
        )
