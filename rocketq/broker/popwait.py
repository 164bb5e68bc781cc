"""Pops that found nothing wait here for a message, for the end of a lease, or for their deadline (long polling).

Those that would be served alike (same group, topic, queue and filter) stand in one line. When something comes, the
line is served from its head until one finds nothing: then neither would those behind it. Deadlines are met to the ms.

The first who gets what came gets it before its producer is told that it is stored, which is written by then; where
several wait, the others get theirs after that. Where nobody waits the producer is told first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rocketq.remoting.server import Connection
from rocketq.store.store import Appended

log = logging.getLogger("rocketq.broker")


class Line(NamedTuple):
    """Who waits for the same. `expression` and `kind` are the filter's; for notifications `kind` says so."""

    group: str
    topic: str
    queue_id: int
    expression: str
    kind: str
    order: bool


class Waiter:
    """One request; `serve(final)` tries to answer it, and does so in any case when that is its last chance."""

    __slots__ = ("connection", "deadline", "line", "serve")

    def __init__(self, line: Line, connection: Connection, serve: Callable[[bool], bool]) -> None:
        self.line = line
        self.connection = connection
        self.serve = serve
        self.deadline: asyncio.TimerHandle | None = None


class PopWait:
    """All waiting pops. `send` has the answer to one that was served leave."""

    def __init__(self, most: int, most_in_line: int, send: Callable[[Connection], None]) -> None:
        self._most = most
        self._most_in_line = most_in_line
        self._send = send
        self.count = 0
        self._lines: dict[Line, dict[Waiter, None]] = {}
        #: the topics whose messages a line waits for, retry topics among them; and the other way round
        self._awaited: dict[Line, tuple[str, ...]] = {}
        self._topics: dict[str, set[Line]] = {}
        self._connections: dict[Connection, set[Waiter]] = {}
        self._arrived: set[str] = set()
        self._alarms: dict[Line, tuple[float, asyncio.TimerHandle]] = {}

    def add(self, waiter: Waiter, topics: tuple[str, ...], seconds: float) -> bool:
        """Let it wait for messages of `topics`, for at most `seconds`. False when too many wait already."""
        line = self._lines.get(waiter.line)
        if self.count >= self._most or (line is not None and len(line) >= self._most_in_line):
            return False
        if line is None:
            line = self._lines[waiter.line] = {}
            self._awaited[waiter.line] = topics
            for topic in topics:
                self._topics.setdefault(topic, set()).add(waiter.line)
        line[waiter] = None
        self._connections.setdefault(waiter.connection, set()).add(waiter)
        self.count += 1
        waiter.deadline = asyncio.get_running_loop().call_later(max(0.0, seconds), self._late, waiter)
        return True

    def waiting(self, group: str, topic: str, queue_id: int) -> int:
        """How many wait for this."""
        return sum(len(line) for key, line in self._lines.items() if key[:3] == (group, topic, queue_id))

    def arrived(self, messages: Iterable[Appended]) -> None:
        """Messages became readable: serve, on the loop's next turn, who waits for them."""
        topics = self._topics
        if not topics:
            return
        quiet = not self._arrived
        for message in messages:
            if message.topic in topics:
                self._arrived.add(message.topic)
        if quiet and self._arrived:
            asyncio.get_running_loop().call_soon(self._wake)

    def serve_arrived(self, answer: Callable[[], None] | None = None) -> None:
        """Serve who waits for what came, not on the loop's next turn; `answer` who sent it after the first."""
        if self._arrived:
            self._wake(answer)

    def wake(self, topic: str) -> None:
        """Something else than a message changed what may be given out of the topic."""
        if topic in self._topics:
            if not self._arrived:
                asyncio.get_running_loop().call_soon(self._wake)
            self._arrived.add(topic)

    def wake_line(self, line: Line, seconds: float) -> None:
        """Try the line again then, at the latest."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, seconds)
        alarm = self._alarms.get(line)
        if alarm is not None:
            if alarm[0] <= at:
                return
            alarm[1].cancel()
        self._alarms[line] = at, loop.call_at(at, self._alarm, line)

    def connection_lost(self, connection: Connection) -> None:
        """Nobody waits on this connection any more."""
        for waiter in list(self._connections.get(connection, ())):
            self._remove(waiter)

    def stop(self) -> None:
        """Forget everything; the connections are about to be closed."""
        for connection in list(self._connections):
            self.connection_lost(connection)
        for _, alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()

    def _alarm(self, line: Line) -> None:
        del self._alarms[line]
        self._serve([line])

    def _wake(self, answer: Callable[[], None] | None = None) -> None:
        topics, self._arrived = self._arrived, set()
        self._serve({line for topic in topics for line in self._topics.get(topic, ())}, answer)

    def _serve(self, lines: Iterable[Line], answer: Callable[[], None] | None = None) -> None:
        served: dict[Connection, None] = {}
        first = True
        for line in lines:
            for waiter in list(self._lines.get(line, ())):
                if not self._try(waiter, False):
                    break
                self._remove(waiter)
                if first:  # mostly there is one message, and the next one finds nothing
                    self._send(waiter.connection)
                    first = False
                    if answer is not None:
                        answer()
                else:
                    served[waiter.connection] = None
        for connection in served:
            self._send(connection)

    def _late(self, waiter: Waiter) -> None:
        self._remove(waiter)
        self._try(waiter, True)
        self._send(waiter.connection)

    def _try(self, waiter: Waiter, final: bool) -> bool:
        if waiter.connection.closed:
            return True
        try:
            return waiter.serve(final)
        except (
            Exception
        ):  # one bad record must not keep the others waiting; the client asks again after its timeout
            log.exception("group %s: a waiting pop of topic %s failed", waiter.line.group, waiter.line.topic)
            return True

    def _remove(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.line)
        if line is None or waiter not in line:
            return
        if waiter.deadline is not None:
            waiter.deadline.cancel()
        del line[waiter]
        self.count -= 1
        if not line:
            del self._lines[waiter.line]
            for topic in self._awaited.pop(waiter.line):
                lines = self._topics[topic]
                lines.discard(waiter.line)
                if not lines:
                    del self._topics[topic]
            alarm = self._alarms.pop(waiter.line, None)
            if alarm is not None:
                alarm[1].cancel()
        owned = self._connections[waiter.connection]
        owned.discard(waiter)
        if not owned:
            del self._connections[waiter.connection]
