"""Who has popped messages, for consumers that name themselves (`holder`, a field of our own in pops and renewals).

What such a consumer holds is given out again at once when its side ends its last connection, as the kernel does for a
process that died, and does not come back within the consumer's grace. What this broker ends, or the network loses
without a word, says nothing of the consumer: leases run to their end then. They do so after a restart as well, which
knows of no holder, unless they are renewed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from weakref import WeakValueDictionary

from rocketq.broker.checkpoints import Holder
from rocketq.broker.popwait import PopWait
from rocketq.broker.revivelog import ReviveLog
from rocketq.remoting.server import Connection

log = logging.getLogger("rocketq.broker")


class Holders:
    """All holders that have a connection, or messages."""

    def __init__(
        self, revive_log: ReviveLog, wait: PopWait, ended: Callable[[], None], clock_ms: Callable[[], int]
    ) -> None:
        """`ended` has what was held come again; it is called when leases have ended."""
        self._log = revive_log
        self._wait = wait
        self._ended = ended
        self._clock_ms = clock_ms
        self._holders: WeakValueDictionary[str, Holder] = WeakValueDictionary()
        self._connections: dict[Connection, Holder] = {}

    def named(self, connection: Connection, name: str | None, grace: int | None) -> Holder | None:
        """The holder that a request names, whose connection is the holder's from now on; `grace` in ms."""
        if not name:
            return None
        holder = self._connections.get(connection)
        if holder is None or holder.name != name:
            self._forget(connection)
            holder = self._holders.get(name)
            if holder is None:
                holder = self._holders[name] = Holder(name)
            self._connections[connection] = holder
            holder.connections += 1
            self._stay(holder)
        holder.grace = max(0, grace or 0)
        return holder

    def connection_lost(self, connection: Connection) -> None:
        """A connection is gone; with the last one of a holder its leases end, if the peer ended it."""
        holder = self._forget(connection)
        if holder is None or holder.connections or not connection.peer_left:
            return
        if holder.grace:
            loop = asyncio.get_running_loop()
            holder.leaving = loop.call_later(holder.grace / 1000, self._leave, holder, connection.peer)
        else:  # before its other connections, which have ended as well, are closed
            self._leave(holder, connection.peer)

    def stop(self) -> None:
        """The broker stops: leases go on."""
        for holder in list(self._holders.values()):
            self._stay(holder)

    def _forget(self, connection: Connection) -> Holder | None:
        holder = self._connections.pop(connection, None)
        if holder is not None:
            holder.connections -= 1
        return holder

    def _stay(self, holder: Holder) -> None:
        if holder.leaving is not None:
            holder.leaving.cancel()
            holder.leaving = None

    def _leave(self, holder: Holder, peer: str) -> None:
        """End the leases."""
        holder.leaving = None
        now = self._clock_ms()
        points = list(holder.points)
        for point in points:
            self._log.points.end(point, now)
        batches = 0
        for place, pop_time in holder.batches.items():
            info = self._log.orders.get(place)
            if info is not None and info.pop_time == pop_time and info.left():
                self._log.orders[place] = info.over(now)
                self._wait.wake(place[0])
                batches += 1
        holder.batches.clear()
        if points or batches:
            log.info("the consumer at %s is gone, its %d pops are given out again", peer, len(points) + batches)
            self._ended()
            self._wait.serve_arrived()
