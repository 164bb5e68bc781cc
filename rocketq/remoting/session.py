"""The two sides of a conversation, without sockets: which answer belongs to which request, and until when.

A :class:`Session` lives as long as one connection. Its driver (asyncio in `connection`, blocking sockets in
`blocking`) moves the bytes, asks :meth:`Session.expired` when the time in :attr:`Session.next_deadline` has come, and
passes on what :meth:`Session.close` returns when the connection ends. :class:`Backoff` spaces the connections out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from rocketq.errors import ConnectFailed, ProtocolError, TooManyInFlight
from rocketq.remoting.codes import JSON, MAX_FRAME
from rocketq.remoting.command import Command, FrameDecoder, Header, encode_request
from rocketq.remoting.credentials import Credentials

#: Unanswered requests of one connection, as in Apache's clients.
MAX_IN_FLIGHT = 65_535

#: Seconds in which requests are not answered and nothing else comes either, until a connection counts as dead: its
#: other end, or something between, may have forgotten it without a word. Apache's client closes one for any answer
#: that is late.
DEAD_AFTER = 3.0

_OPAQUE_MASK = 0x7FFFFFFF


class Pending(NamedTuple):
    """A request without an answer yet. `deadline` is in seconds of the session's clock."""

    deadline: float
    context: Any
    code: int
    timeout: float


class Session:
    """Requests, answers and deadlines of one connection. `clock` gives seconds that never go back."""

    __slots__ = (
        "_clock",
        "_max_in_flight",
        "_opaque",
        "_silent_since",
        "credentials",
        "decoder",
        "heard",
        "next_deadline",
        "pending",
        "serialize_type",
        "unexpected",
    )

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_frame: int = MAX_FRAME,
        serialize_type: int = JSON,
        credentials: Credentials | None = None,
    ) -> None:
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._opaque = 0
        #: When something came last; whoever feeds `decoder` himself says so here.
        self.heard = -math.inf
        self._silent_since = math.inf
        self.decoder = FrameDecoder(max_frame)
        self.serialize_type = serialize_type
        #: what requests are signed with
        self.credentials = credentials
        self.pending: dict[int, Pending] = {}
        #: No deadline is earlier than this one; it may be that of a request which was answered since.
        self.next_deadline = math.inf
        #: Answers that came to no request of ours, mostly after their deadline.
        self.unexpected = 0

    @property
    def error(self) -> ProtocolError | None:
        """Set when the peer's bytes are beyond repair: close the connection."""
        return self.decoder.error

    def request(
        self,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 3.0,
        context: Any = None,
    ) -> tuple[int, bytes]:
        """Number of a new request, and its frame. `context` comes back with the answer; `timeout` in seconds.

        Raises TooManyInFlight.
        """
        opaque = self.register(code, timeout, context)
        try:
            return opaque, self.encode(code, opaque, header, body)
        except BaseException:
            self.forget(opaque)
            raise

    def register(self, code: int, timeout: float, context: Any) -> int:
        """Number of a new request whose frame the caller encodes itself. Raises TooManyInFlight."""
        pending = self.pending
        if len(pending) >= self._max_in_flight:
            raise TooManyInFlight(f"{len(pending)} requests wait for their answers, which is the limit")
        opaque = self._next_opaque()
        deadline = self._clock() + timeout
        pending[opaque] = Pending(deadline, context, code, timeout)
        if deadline < self.next_deadline:
            self.next_deadline = deadline
        return opaque

    def oneway(self, code: int, header: Header | dict[str, str] | None = None, body: bytes = b"") -> bytes:
        """The frame of a request that gets no answer."""
        return self.encode(code, self._next_opaque(), header, body, oneway=True)

    def encode(
        self,
        code: int,
        opaque: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        oneway: bool = False,
    ) -> bytes:
        """The frame of a request, signed where there are credentials."""
        if self.credentials is not None:
            header = self.credentials.signed(header, body)
        return encode_request(code, opaque, header, body, oneway=oneway, serialize_type=self.serialize_type)

    def _next_opaque(self) -> int:
        opaque = self._opaque
        while opaque in self.pending:  # only after two thousand million requests
            opaque = (opaque + 1) & _OPAQUE_MASK
        self._opaque = (opaque + 1) & _OPAQUE_MASK
        return opaque

    def receive(self, data: bytes) -> list[tuple[Pending | None, Command]]:
        """What came with `data`: answers with the request they belong to, requests of the peer with None.

        Answers to nothing are counted and dropped. Look at :attr:`error` afterwards.
        """
        self.heard = self._clock()
        events: list[tuple[Pending | None, Command]] = []
        for command in self.decoder.feed(data):
            if command.is_response:
                pending = self.answered(command)
                if pending is not None:
                    events.append((pending, command))
            else:
                events.append((None, command))
        return events

    def answered(self, answer: Command) -> Pending | None:
        """The request that `answer` belongs to, which is done with; None when there is none."""
        pending = self.pending.pop(answer.opaque, None)
        if pending is None:
            self.unexpected += 1
        return pending

    def forget(self, opaque: int) -> None:
        """Give a request up; its answer will be dropped."""
        self.pending.pop(opaque, None)

    def expired(self, now: float) -> list[Pending]:
        """The requests whose deadline is not after `now`, the earliest first; they are done with."""
        if now < self.next_deadline:
            return []
        late = [opaque for opaque, pending in self.pending.items() if pending.deadline <= now]
        expired = sorted(map(self.pending.pop, late), key=lambda pending: pending.deadline)
        self.next_deadline = min((pending.deadline for pending in self.pending.values()), default=math.inf)
        return expired

    def seems_dead(self, sent: float) -> bool:
        """Whether it is time for a new connection, as a request that left at `sent` was not answered in time."""
        if self._silent_since <= self.heard:
            self._silent_since = math.inf
        if sent > self.heard:
            self._silent_since = min(self._silent_since, sent)
        return self._clock() - self._silent_since >= DEAD_AFTER - 0.01  # clocks and timers are not that exact

    def close(self) -> list[Pending]:
        """The requests that will get no answer any more."""
        pending = list(self.pending.values())
        self.pending.clear()
        self.next_deadline = math.inf
        return pending


class Backoff:
    """When to connect again: 0.1 s after the first failure, then twice as long each time up to `limit` seconds.

    A little randomness keeps many clients from returning at the same moment.
    """

    __slots__ = ("_delay", "_first", "_limit", "_random", "_until", "reason")

    def __init__(self, first: float = 0.1, limit: float = 3.0, rng: Callable[[], float] = random.random) -> None:
        self._first = first
        self._limit = limit
        self._random = rng
        self._delay = 0.0
        self._until = -math.inf
        self.reason = ""

    def failed(self, now: float, reason: str) -> None:
        """Note a failure at `now`."""
        self._delay = min(self._limit, self._delay * 2 or self._first)
        self._until = now + self._delay * (0.75 + self._random() / 4)
        self.reason = reason

    def succeeded(self) -> None:
        """Start anew."""
        self._delay = 0.0
        self._until = -math.inf
        self.reason = ""

    def remaining(self, now: float) -> float:
        """Seconds until the next attempt; 0 when it may be made."""
        return max(0.0, self._until - now)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` (IPv6 in brackets or bare). Raises ConnectFailed."""
    host, _, port = address.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConnectFailed(f"{address!r} is not an address (host:port)")
    return host, int(port)
