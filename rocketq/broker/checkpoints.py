"""Which popped messages are held by consumers, and until when. No I/O here.

One pop of one queue is a check point (`PopCheckPoint`): the messages that it handed out, the end of their lease, and
which of them are settled, that is acknowledged or given another lease. A check point whose messages are all settled
is gone. What is left when the lease ends is revived (:mod:`rocketq.broker.revive`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Key(NamedTuple):
    """What names a check point. `topic` is where the messages are stored, `pop_time` is in ms."""

    topic: str
    group: str
    queue_id: int
    start_offset: int
    pop_time: int


class Holder:
    """A consumer that named itself, see :mod:`rocketq.broker.holders`.

    `connections` of it are open; when the last one was ended by its side, what it holds is given out again `grace` ms
    later, which `leaving` waits for. It holds `points`, and in order `batches`: (topic, group, queue id) -> pop time.
    """

    __slots__ = ("__weakref__", "batches", "connections", "grace", "leaving", "name", "points")

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = 0
        self.grace = 0
        self.leaving: asyncio.TimerHandle | None = None
        self.points: set[CheckPoint] = set()
        self.batches: dict[tuple[str, str, int], int] = {}


class CheckPoint:
    """Messages at `offsets` of a queue, leased until `due` (ms). `settled` has bit i for the i-th of them.

    `position` is where the log of check points has it. `given_back`: what is left when the lease ends was not worked
    on, so that is no failed attempt. Only memory knows of it, after a restart it counts as one. `holder`: who has
    them, if it said so. `was`: of a lease that was renewed, what the renewal named.
    """

    __slots__ = ("due", "given_back", "holder", "invisible_time", "key", "offsets", "position", "settled", "was")

    def __init__(self, key: Key, offsets: Sequence[int], invisible_time: int, settled: int = 0) -> None:
        self.key = key
        self.offsets = offsets
        self.invisible_time = invisible_time
        self.settled = settled
        self.due = key.pop_time + invisible_time
        self.position = 0
        self.given_back = False
        self.holder: Holder | None = None
        self.was: Key | None = None

    @property
    def done(self) -> bool:
        return self.settled == (1 << len(self.offsets)) - 1

    @property
    def open_offsets(self) -> list[int]:
        """Those that are not settled."""
        return [offset for index, offset in enumerate(self.offsets) if not self.settled >> index & 1]

    def bits(self, offsets: Iterable[int]) -> int:
        """The bits of those of `offsets` that are open messages of this check point."""
        bits = 0
        for offset in offsets:
            if offset in self.offsets:
                bits |= 1 << self.offsets.index(offset)
        return bits & ~self.settled

    def masked(self, start: int, mask: int) -> int:
        """The same for the offsets `start` + i of which `mask` has bit i."""
        if isinstance(self.offsets, range):
            ahead = start - self.offsets.start
            bits = mask << ahead if ahead > 0 else mask >> -ahead
            return bits & ((1 << len(self.offsets)) - 1) & ~self.settled
        return self.bits(each for each in self.offsets if each >= start and mask >> (each - start) & 1)


#: So many ends of leases that were settled may be remembered beside as many as there are leases.
_SETTLED = 1000


class CheckPoints:
    """All open check points, in the order in which they were put into the log."""

    def __init__(self) -> None:
        self._table: dict[Key, CheckPoint] = {}
        self._heap: list[tuple[int, Key]] = []
        #: what the renewal named -> offset -> the lease since
        self._renewed: dict[Key, dict[int, CheckPoint]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[CheckPoint]:
        return iter(self._table.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._table

    def get(self, key: Key) -> CheckPoint | None:
        return self._table.get(key)

    def renewed(self, key: Key) -> list[CheckPoint]:
        """The leases that messages of this check point have since they were renewed."""
        return list(self._renewed.get(key, {}).values())

    def add(self, point: CheckPoint) -> None:
        """A new one, or one that takes the place of the one with the same key."""
        self.remove(point)
        self._table[point.key] = point
        self._put(point)

    def _put(self, point: CheckPoint) -> None:
        heapq.heappush(self._heap, (point.due, point.key))
        if len(self._heap) > 2 * len(self._table) + _SETTLED:
            self._heap = [(each.due, each.key) for each in self._table.values()]
            heapq.heapify(self._heap)
        if point.holder is not None:
            point.holder.points.add(point)
        if point.was is not None:
            self._renewed.setdefault(point.was, {})[point.offsets[0]] = point

    def remove(self, point: CheckPoint) -> None:
        """As if it had never been."""
        point = self._table.pop(point.key, point)
        if point.holder is not None:
            point.holder.points.discard(point)
        if point.was is not None:
            since = self._renewed.get(point.was, {})
            if since.get(point.offsets[0]) is point:  # it may be renewed once more
                del since[point.offsets[0]]
                if not since:
                    del self._renewed[point.was]

    def settle(self, point: CheckPoint, bits: int) -> None:
        """These messages of it are acknowledged, or leased anew."""
        point.settled |= bits
        if point.done:
            self.remove(point)

    def unsettle(self, point: CheckPoint, bits: int) -> None:
        """Take `settle` back: what was to be stored of it could not be."""
        point.settled &= ~bits
        if point.key not in self._table:
            table = sorted([*self._table.values(), point], key=lambda each: each.position)
            self._table = {each.key: each for each in table}
            self._put(point)

    def end(self, point: CheckPoint, now: int) -> None:
        """Its lease is over."""
        point.due = min(point.due, now)
        heapq.heappush(self._heap, (point.due, point.key))

    def oldest(self) -> CheckPoint | None:
        """The one that stands first in the log."""
        return next(iter(self._table.values()), None)

    def next_due(self) -> int | None:
        """When the first lease ends."""
        heap = self._heap
        while heap:
            due, key = heap[0]
            point = self._table.get(key)
            if point is not None and point.due == due:
                return due
            heapq.heappop(heap)
        return None

    def take_due(self, now: int, most: int) -> list[CheckPoint]:
        """Some whose lease is over, until they have `most` messages that are not settled.

        They stay in the table until they are settled or asked for again.
        """
        taken: dict[Key, CheckPoint] = {}
        messages = 0
        while messages < most:
            due = self.next_due()
            if due is None or due > now:
                break
            key = heapq.heappop(self._heap)[1]  # one that was put into the log once more is there twice
            taken[key] = point = self._table[key]
            messages += len(point.offsets) - point.settled.bit_count()
        return list(taken.values())

    def again(self, points: Iterable[CheckPoint]) -> None:
        """These were taken when they were due and could not be revived."""
        for point in points:
            heapq.heappush(self._heap, (point.due, point.key))
