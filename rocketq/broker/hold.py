"""Pulls that found nothing wait here for a message or for their deadline (long polling).

A table from (topic, queue) to waiters answers the only question that the send path asks: does anybody wait for this
message? Arrivals are collected and the waiters woken together, once per turn of the loop. Deadlines are kept in
buckets of 100 ms, so that neither holding nor waking a pull touches more than a few dicts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from rocketq.remoting.server import Connection
from rocketq.store.store import Appended

log = logging.getLogger("rocketq.broker")

#: Seconds; the precision of deadlines.
TICK = 0.1
#: Pulls that may be held in all, and of one connection. A client has one for each queue that it consumes.
MOST = 200_000
MOST_OF_ONE = 20_000


class Waiter:
    """One held pull: what it takes to run it again and to answer it."""

    __slots__ = (
        "bucket",
        "codes",
        "connection",
        "group",
        "key",
        "match",
        "max_count",
        "offset",
        "opaque",
        "serialize_type",
    )

    def __init__(
        self,
        connection: Connection,
        opaque: int,
        serialize_type: int,
        key: tuple[str, int],
        offset: int,
        max_count: int,
        codes: frozenset[int] | None,
        group: str = "",
        match: Callable[[memoryview], bool] | None = None,
    ) -> None:
        self.connection = connection
        self.opaque = opaque
        self.serialize_type = serialize_type
        self.key = key
        self.offset = offset
        self.max_count = max_count
        self.codes = codes
        self.group = group
        self.match = match
        self.bucket = 0


class Hold:
    """All held pulls. `retry(waiter, final)` runs one again and tells whether it was answered."""

    def __init__(self) -> None:
        self.retry: Callable[[Waiter, bool], bool] = lambda waiter, final: True
        self.count = 0
        # dicts in place of sets: who came first is served first
        self._queues: dict[tuple[str, int], dict[Waiter, None]] = {}
        self._connections: dict[Connection, dict[Waiter, None]] = {}
        self._buckets: dict[int, dict[Waiter, None]] = {}
        self._done_bucket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._woken: dict[Waiter, None] = {}

    def add(self, waiter: Waiter, seconds: float) -> bool:
        """Hold a pull for at most `seconds`. False when too many are held already."""
        if self.count >= MOST or len(self._connections.get(waiter.connection, ())) >= MOST_OF_ONE:
            return False
        now = time.monotonic()
        waiter.bucket = int((now + max(0.0, seconds)) / TICK) + 1
        self._queues.setdefault(waiter.key, {})[waiter] = None
        self._connections.setdefault(waiter.connection, {})[waiter] = None
        self._buckets.setdefault(waiter.bucket, {})[waiter] = None
        self.count += 1
        if self._timer is None:
            self._done_bucket = int(now / TICK)
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        return True

    def arrived(self, messages: Iterable[Appended]) -> None:
        """Messages became readable: wake, on the loop's next turn, the pulls that wait for one of them."""
        queues = self._queues
        if not queues:
            return
        woken = self._woken
        quiet = not woken
        for message in messages:
            waiters = queues.get((message.topic, message.queue_id))
            if waiters is None:
                continue
            for waiter in waiters:
                # codes compare as 32 bits: entries of the delay topic hold times there; `match` is asked by retry()
                if waiter.codes is None or message.tags_code in waiter.codes:
                    woken[waiter] = None
        if quiet and woken:
            asyncio.get_running_loop().call_soon(self._wake)

    def wake(self, group: str, topic: str) -> None:
        """Run the pulls of `group` that wait for messages of `topic` again now."""
        for key in [key for key in self._queues if key[0] == topic]:
            for waiter in [waiter for waiter in self._queues[key] if waiter.group == group]:
                if self._run(waiter, False):
                    self._remove(waiter)

    def connection_lost(self, connection: Connection) -> None:
        """Nobody waits on this connection any more."""
        for waiter in list(self._connections.get(connection, ())):
            self._remove(waiter)

    def stop(self) -> None:
        """Forget everything; the connections are about to be closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queues.clear()
        self._connections.clear()
        self._buckets.clear()
        self._woken.clear()
        self.count = 0

    def _wake(self) -> None:
        woken, self._woken = self._woken, {}
        for waiter in woken:
            if self._run(waiter, False):
                self._remove(waiter)

    def _tick(self) -> None:
        now_bucket = int(time.monotonic() / TICK)
        for bucket in range(self._done_bucket + 1, now_bucket + 1):
            for waiter in self._buckets.pop(bucket, ()):
                self._remove(waiter)
                self._run(waiter, True)
        self._done_bucket = now_bucket
        if self.count:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        else:
            self._timer = None

    def _run(self, waiter: Waiter, final: bool) -> bool:
        try:
            return self.retry(waiter, final)
        except (
            Exception
        ):  # one bad record must not keep the others waiting; the client asks again after its timeout
            log.exception("a held pull of topic %s queue %d failed", *waiter.key)
            return True

    def _remove(self, waiter: Waiter) -> None:
        queue = self._queues.get(waiter.key)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        if not queue:
            del self._queues[waiter.key]
        owned = self._connections[waiter.connection]
        del owned[waiter]
        if not owned:
            del self._connections[waiter.connection]
        bucket = self._buckets.get(waiter.bucket)
        if bucket is not None:
            bucket.pop(waiter, None)
            if not bucket:
                del self._buckets[waiter.bucket]
        self._woken.pop(waiter, None)
        self.count -= 1
