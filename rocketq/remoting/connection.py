"""One connection on the event loop, the same for server and client.

All frames of one read are handled in one go and their answers leave in one write: nothing here makes a task, a
future or a log line for a message, unless a handler itself has to wait.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from rocketq.errors import ConnectionLost, HeaderError, RequestTimeout, TooManyInFlight
from rocketq.record import pack_host
from rocketq.remoting.codes import FLAG_ONEWAY, FLAG_RESPONSE, ResponseCode
from rocketq.remoting.command import Command, Header, encode_response
from rocketq.remoting.session import Session

log = logging.getLogger("rocketq.remoting")

T = TypeVar("T")

Buffer = bytes | memoryview
#: What a handler returns: a frame, pieces of one, or None when it answers later or not at all.
Reply = bytes | list[Buffer] | None

#: Answers of a batch beyond this many bytes are written before the rest of the batch is handled.
FLUSH_AT = 1 << 20
#: Up to here pieces are copied into one write; beyond it they are handed over as they are.
JOIN_BELOW = 128 * 1024
#: A peer that leaves this many bytes unread is cut off (more than a frame, so that one frame always passes).
MAX_UNSENT = 64 << 20
#: Seconds that the requests of one read may take before other connections have their turn (servers).
TURN = 0.05
#: Requests of one connection that may wait inside an asynchronous handler.
MAX_WAITING = 10_000

BUSY = "[OVERLOAD]system busy, start flow control for a while"


class Service(Protocol):
    """Who handles a connection's requests."""

    def handle(self, connection: Connection, request: Command) -> Reply | Awaitable[Reply]:
        """Answer a request; exceptions become code 1 with their text. What is returned for a oneway is dropped."""

    def end_batch(self, connection: Connection) -> None:
        """Called when all frames of one read were handled, before their answers are written."""

    def connection_lost(self, connection: Connection) -> None:
        """Called once when the connection is gone."""


class Waiter(Protocol):
    """Who waits for an answer: a future, or anything that behaves like one."""

    def done(self) -> bool: ...

    def set_result(self, result: Command, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


#: A request handler by itself, as services keep them in tables by code.
Handler = Callable[["Connection", Command], Reply | Awaitable[Reply]]


class Counters:
    """What happened on all connections of one server or client."""

    __slots__ = (
        "connections",
        "cut_off",
        "frames",
        "handler_errors",
        "protocol_errors",
        "refused",
        "unexpected_answers",
    )

    def __init__(self) -> None:
        #: connections made
        self.connections = 0
        #: commands received
        self.frames = 0
        #: connections closed because of bytes that are no frame
        self.protocol_errors = 0
        #: handlers that raised
        self.handler_errors = 0
        #: connections closed because the peer did not read, or finish what it sent
        self.cut_off = 0
        #: connections closed at once, because there are too many
        self.refused = 0
        #: answers to no request
        self.unexpected_answers = 0


class Connection(asyncio.Protocol):
    """A peer. `context` is free for the service."""

    # reads as a table of all that a connection costs
    __slots__ = (
        "__weakref__",
        "_batch",
        "_flush_planned",
        "_held",
        "_idle_timeout",
        "_last_active",
        "_loop",
        "_lost",
        "_out",
        "_out_size",
        "_service",
        "_tasks",
        "_throttle",
        "_timer",
        "_timer_at",
        "_transport",
        "_waiting",
        "_write_paused",
        "closed",
        "context",
        "counters",
        "local",
        "peer",
        "peer_left",
        "peer_packed",
        "session",
    )

    def __init__(
        self,
        service: Service,
        loop: asyncio.AbstractEventLoop,
        session: Session,
        counters: Counters,
        *,
        idle_timeout: float,
        throttle: bool,
    ) -> None:
        """`throttle`: we are the server. It does not read from peers that do not read (two such peers would wait for
        ever), and waits for those that do not answer.
        """
        self._service = service
        self._loop = loop
        self.session = session
        self.counters = counters
        self._idle_timeout = idle_timeout
        self._throttle = throttle
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until connection_made
        self.peer = ""
        self.peer_packed = b""
        self.local = ""
        #: True from the moment that nothing can be sent any more
        self.closed = True
        #: whether it was the peer who ended it, known when it is lost
        self.peer_left = False
        self.context: Any = None
        self._batch = False
        self._out: list[Buffer] = []
        self._out_size = 0
        self._flush_planned = False
        self._write_paused = False
        self._held: list[Command] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: who waits for the peer to read, and how they send then; first come, first served
        self._waiting: OrderedDict[asyncio.Future[Any], Callable[[], Any]] = OrderedDict()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._last_active = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __repr__(self) -> str:
        return f"<Connection {self.local} - {self.peer}{' closed' if self.closed else ''}>"

    # -- what services and clients use

    def write(self, data: Buffer | list[Buffer]) -> None:
        """Send frames. Everything of one batch, or else of one turn of the loop, leaves in one write.

        On a closed connection nothing happens.
        """
        if self.closed:
            return
        if isinstance(data, list):
            self._out += data
            for piece in data:
                self._out_size += len(piece)
        else:
            self._out.append(data)
            self._out_size += len(data)
        if not self._batch and not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Send what was written now, not at the end of the turn or of the batch."""
        if not self.closed:
            self._flush()

    def submit(
        self, code: int, header: Header | dict[str, str] | None = None, body: bytes = b"", timeout: float = 3.0
    ) -> asyncio.Future[Command]:
        """Send a request; the future gets the answer, whatever its code, ConnectionLost or RequestTimeout.

        Raises TooManyInFlight, and ConnectionLost when the connection is closed.
        """
        if self.closed:
            raise ConnectionLost(f"the connection to {self.peer} is closed")
        if self._write_paused:
            self._check_unsent()
        future: asyncio.Future[Command] = self._loop.create_future()
        session = self.session
        self.write(session.request(code, header, body, timeout, future)[1])
        if session.next_deadline < self._timer_at:
            self._arm(session.next_deadline)
        return future

    def submit_encoded(
        self, code: int, encode: Callable[[int], list[Buffer]], timeout: float, context: Waiter
    ) -> None:
        """Send a request whose frame `encode` makes from its number; `context` is told what becomes of it.

        For callers that keep encoded parts and need no future a request. Raises as :meth:`submit`.
        """
        if self.closed:
            raise ConnectionLost(f"the connection to {self.peer} is closed")
        if self._write_paused:
            self._check_unsent()
        session = self.session
        opaque = session.register(code, timeout, context)
        try:
            self.write(encode(opaque))
        except BaseException:
            session.forget(opaque)
            raise
        if session.next_deadline < self._timer_at:
            self._arm(session.next_deadline)

    async def call(
        self, code: int, header: Header | dict[str, str] | None = None, body: bytes = b"", timeout: float = 3.0
    ) -> Command:
        """The answer to a request, whatever its code; waits for a peer that is slow to read.

        Raises RequestTimeout after `timeout` seconds, ConnectionLost, TooManyInFlight.
        """
        if self._has_room():
            return await self.submit(code, header, body, timeout)
        deadline = self._loop.time() + timeout
        answer = await self._in_turn(
            lambda: self.submit(code, header, body, deadline - self._loop.time()), timeout
        )
        return await answer

    def oneway(self, code: int, header: Header | dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a request that gets no answer; on a closed connection nothing happens.

        Raises TooManyInFlight when the peer does not read what it is sent.
        """
        if not self.closed:
            self._check_unsent()
            self.write(self.session.oneway(code, header, body))

    async def call_oneway(
        self, code: int, header: Header | dict[str, str] | None, body: bytes, timeout: float
    ) -> None:
        """Send a request that gets no answer; waits for a peer that is slow to read.

        Raises RequestTimeout when that takes more than `timeout` seconds, ConnectionLost; then it was not sent.
        """
        if self._has_room() and not self.closed:
            self.oneway(code, header, body)
        else:
            await self._in_turn(lambda: self.oneway(code, header, body), timeout)

    def close(self) -> None:
        """Send what was written, then close."""
        if not self.closed:
            self.closed = True
            if not self._batch:
                self._flush()
                self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await asyncio.shield(self._lost)

    def _check_unsent(self) -> None:
        if self._write_paused and self._transport.get_write_buffer_size() + self._out_size > MAX_UNSENT // 2:
            raise TooManyInFlight(f"{self.peer} does not read what it is sent")

    def _has_room(self) -> bool:
        return not self._write_paused and self._out_size <= FLUSH_AT and not self._waiting

    async def _in_turn(self, send: Callable[[], T], timeout: float) -> T:
        """What `send` returns, which is called when the peer has read most of what was sent before."""
        if self.closed:
            raise ConnectionLost(f"the connection to {self.peer} is closed; the request was not sent")
        waiter: asyncio.Future[T] = self._loop.create_future()
        self._waiting[waiter] = send
        timer = self._loop.call_later(timeout, self._too_late, waiter, timeout)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiting.pop(waiter, None)

    def _too_late(self, waiter: asyncio.Future[Any], timeout: float) -> None:
        if not waiter.done():
            waiter.set_exception(
                RequestTimeout(f"{self.peer} read too little for {timeout:g} s; the request was not sent")
            )

    def _send_waiting(self) -> None:
        """Send for those who wait, as much as makes one write: all of it at once could be more than MAX_UNSENT."""
        while self._waiting and self._out_size <= FLUSH_AT and not self._write_paused and not self.closed:
            waiter, send = self._waiting.popitem(last=False)
            if not waiter.done():
                try:
                    waiter.set_result(send())
                except Exception as error:  # noqa: BLE001 - it belongs to who waits
                    waiter.set_exception(error)

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer, self.peer_packed = _address(transport.get_extra_info("peername"))
        self.local, _ = _address(transport.get_extra_info("sockname"))
        self.closed = False
        self.counters.connections += 1
        self._last_active = self._loop.time()
        self._arm(self._last_active + self._idle_timeout)

    def move_to(self, transport: asyncio.Transport) -> None:
        """Go on over another transport, which wraps the one so far."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        decoder = self.session.decoder
        begun = decoder.buffered
        commands = decoder.feed(data)
        now = self.session.heard = self._loop.time()
        if commands or not begun:  # a frame that does not end keeps no connection alive
            self._last_active = now
        if self._held:
            self._held += commands
        elif commands:
            self._handle(commands)
        if decoder.error is not None:
            self._garbage()

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._throttle:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._last_active = self._loop.time()
        self._send_waiting()
        self._go_on()

    def _go_on(self) -> None:
        """Handle what was held back, and read on when nothing is left of it."""
        if self.closed or self._write_paused:
            return  # resume_writing comes here again
        if self._held:
            held, self._held = self._held, []
            self._handle(held)
        if self._throttle and not self._held and not self._write_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        # other errors, a time-out for one, are the network's
        self.peer_left = not self.closed and (exc is None or isinstance(exc, ConnectionError))
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reason = f"the connection to {self.peer} was lost" + (f": {exc}" if exc else "")
        for pending in self.session.close():
            if not pending.context.done():
                pending.context.set_exception(
                    ConnectionLost(f"{reason} before request {pending.code} was answered")
                )
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(f"{reason}; the request was not sent"))
        self._waiting.clear()
        self._out.clear()
        self._held.clear()
        if not self._lost.done():
            self._lost.set_result(None)
        self._service.connection_lost(self)

    # -- requests and answers

    def _handle(self, commands: list[Command]) -> None:
        service = self._service
        handle = service.handle
        self.counters.frames += len(commands)
        self._batch = True
        requests = False
        handled = 0
        now = self._loop.time
        turn_ends = now() + TURN if self._throttle else math.inf
        for command in commands:
            handled += 1
            flag = command.flag
            if flag & FLAG_RESPONSE:
                self._answer(command)
                continue
            requests = True
            try:
                reply = handle(self, command)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises must not cost the connection
                reply = self._failure(command, error)
            if reply is None:
                pass
            elif isinstance(reply, bytes):
                if not flag & FLAG_ONEWAY:
                    self._out.append(reply)
                    self._out_size += len(reply)
            elif isinstance(reply, list):
                if not flag & FLAG_ONEWAY:
                    self.write(reply)
            else:
                self._wait_for(command, reply)
            if self._out_size > FLUSH_AT:
                self._end_batch()
                if self.closed or (self._write_paused and self._throttle):
                    break
                self._batch = True
            if not handled & 7 and handled < len(commands) and now() > turn_ends:
                self._end_batch()
                break
        if handled < len(commands) and not self.closed:
            self._held = commands[handled:]
            if not self._write_paused and not self._transport.is_closing():
                self._transport.pause_reading()
                self._loop.call_soon(self._go_on)
        elif requests:
            self._end_batch()
        else:
            self._batch = False
            if self._out:
                self._flush()
            if self.closed:
                self._transport.close()

    def _end_batch(self) -> None:
        """Let the service finish the batch, and write the answers."""
        try:
            self._service.end_batch(self)
        except Exception:
            self.counters.handler_errors += 1
            log.exception("finishing a batch of requests from %s failed: closing the connection", self.peer)
            self._batch = False
            self.abort()
            return
        self._batch = False
        if self._out:
            self._flush()
        if self.closed:
            self._transport.close()

    def _answer(self, command: Command) -> None:
        pending = self.session.answered(command)
        if pending is None:
            self.counters.unexpected_answers += 1
        else:
            future = pending.context
            if not future.done():
                future.set_result(command)

    def _failure(self, request: Command, error: Exception) -> bytes:
        """The answer to a request whose handler raised."""
        self.counters.handler_errors += 1
        if isinstance(error, HeaderError):
            log.info("request %d from %s: %s", request.code, self.peer, error)
            text = str(error)
        else:
            log.error("request %d from %s failed", request.code, self.peer, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        return encode_response(request, ResponseCode.SYSTEM_ERROR, text)

    def _wait_for(self, request: Command, answer: Awaitable[Reply]) -> None:
        if len(self._tasks) >= MAX_WAITING:
            if asyncio.iscoroutine(answer):
                answer.close()
            if not request.is_oneway:
                self.write(encode_response(request, ResponseCode.SYSTEM_BUSY, BUSY))
            return
        task = self._loop.create_task(self._finish(request, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, request: Command, answer: Awaitable[Reply]) -> None:
        try:
            reply = await answer
        except Exception as error:  # noqa: BLE001 - as in _handle
            reply = self._failure(request, error)
        if reply is not None and not request.is_oneway:
            self.write(reply)

    def _garbage(self) -> None:
        self.counters.protocol_errors += 1
        log.info("closing the connection to %s: %s", self.peer, self.session.decoder.error)
        self.close()

    # -- bytes and time

    def _flush(self) -> None:
        self._flush_planned = False
        out = self._out
        if not out:
            return
        size = self._out_size
        self._out = []
        self._out_size = 0
        transport = self._transport
        if transport.is_closing():
            return
        if not self._write_paused:
            self._last_active = self._loop.time()
        if len(out) == 1:
            transport.write(out[0])
        elif size <= JOIN_BELOW:
            transport.write(b"".join(out))
        else:
            transport.writelines(out[:-1])  # does not call pause_writing in asyncio of Python 3.12 and 3.13.0 …
            transport.write(out[-1])  # … but this does
        if self._write_paused:
            self._limit_unread()
        else:
            self._send_waiting()

    def unread(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._transport.get_write_buffer_size()

    def _limit_unread(self) -> None:
        if self.unread() > MAX_UNSENT:
            self.cut_off(f"it left {MAX_UNSENT >> 20} MiB unread")

    def cut_off(self, reason: str) -> None:
        """Close at once, because the peer costs too much."""
        self.counters.cut_off += 1
        log.warning("cutting %s off: %s", self.peer, reason)
        self.abort()

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        dead = False
        for pending in self.session.expired(now):
            dead = self.session.seems_dead(pending.deadline - pending.timeout) or dead
            if not pending.context.done():
                pending.context.set_exception(
                    RequestTimeout(
                        f"{self.peer} did not answer request {pending.code} within {pending.timeout:g} s"
                    )
                )
        if dead and not self._throttle and not self.closed:
            log.info("%s answers nothing: connecting anew", self.peer)
            self._timer = None
            self.abort()
            return
        idle_at = self._last_active + self._idle_timeout
        if now >= idle_at and not self.session.pending:
            log.debug("closing the connection to %s: idle for %g s", self.peer, self._idle_timeout)
            self._timer = None
            if self._write_paused or self.closed:
                self.abort()  # closing would wait for the peer to read
            else:
                self.close()
            return
        # not more often than every 10 ms, whatever the deadlines are
        self._arm(max(now + 0.01, min(idle_at, self.session.next_deadline)))


def _address(name: Any) -> tuple[str, bytes]:
    """``host:port`` as text and packed; IPv4 addresses in IPv6 dress are IPv4."""
    if not isinstance(name, tuple) or len(name) < 2:
        return "unknown", pack_host("0.0.0.0", 0)
    ip = ipaddress.ip_address(str(name[0]).partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    return f"{host}:{name[1]}", pack_host(str(ip), name[1])
