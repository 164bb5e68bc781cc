"""Listens, and gives every connection to a service."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
from typing import ClassVar, cast

from rocketq.remoting.codes import MAX_FRAME
from rocketq.remoting.connection import (
    Buffer as Buffer,
)
from rocketq.remoting.connection import (
    Connection as Connection,
)
from rocketq.remoting.connection import (
    Counters,
)
from rocketq.remoting.connection import (
    Handler as Handler,
)
from rocketq.remoting.connection import (
    Reply as Reply,
)
from rocketq.remoting.connection import (
    Service as Service,
)
from rocketq.remoting.session import MAX_IN_FLIGHT, Session
from rocketq.remoting.tls import TlsConfig
from rocketq.remoting.tlstransport import HANDSHAKE, TlsTransport

log = logging.getLogger("rocketq.remoting")

BACKLOG = 1024
#: Seconds that :meth:`Server.stop` gives the peers to read the last answers.
STOP_GRACE = 1.0
#: Bytes that unfinished frames of all peers of a server may take together; beyond it the largest one's is cut off.
MAX_UNFINISHED = 512 << 20
#: Bytes that all peers of a server together may leave unread; beyond it the one with most is cut off.
MAX_UNREAD = 512 << 20
#: Seconds between two warnings about connections that are refused.
REFUSED_AGAIN = 60.0


def max_connections() -> int:
    """How many connections this process may accept: a quarter of its file descriptors, at most 1024, is for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return soft - min(1024, max(64, soft // 4))


class Server:
    """Serves `service` on one port; 0 takes a free one, which :attr:`port` tells after :meth:`start`.

    `idle_timeout` in seconds: connections on which nothing happens for so long are closed. `max_frame` in bytes.
    """

    #: connections of all servers of this process
    accepted: ClassVar[int] = 0

    def __init__(
        self,
        service: Service,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsConfig | None = None,
        idle_timeout: float = 120.0,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self._service = service
        self._host = host
        self.port = port
        self._tls = tls if tls is not None and tls.mode != "disabled" else None
        self._idle_timeout = idle_timeout
        self._max_frame = max_frame
        self._listener: asyncio.Server | None = None
        #: in the order in which they came
        self.connections: dict[_ServerConnection, None] = {}
        self.counters = Counters()
        self.unfinished = 0
        self.not_reading: dict[_ServerConnection, None] = {}
        self._refused_at = -REFUSED_AGAIN
        #: connections that are accepted; set when it starts
        self._most = 0

    async def bind(self) -> None:
        """Take the port; whoever connects before `start` is refused.

        Raises OSError when the port is taken, ConfigError for unusable TLS files.
        """
        self._most = max_connections()
        loop = asyncio.get_running_loop()
        context = self._tls.server_context() if self._tls is not None else None

        def accept() -> asyncio.Protocol:
            connection = self._connection(loop)
            if context is None:
                return connection
            return _FirstByte(connection, context, self._tls is not None and self._tls.mode == "enforcing")

        self._listener = await loop.create_server(
            accept, self._host, self.port, backlog=BACKLOG, reuse_address=True, start_serving=False
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Listen, on the port that was taken or takes it now. Raises as `bind`."""
        if self._listener is None:
            await self.bind()
        assert self._listener is not None
        await self._listener.start_serving()

    async def stop(self) -> None:
        """Stop listening and close all connections; peers have a second to read their last answers."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        connections = list(self.connections)
        for connection in connections:
            connection.close()
        gone = [asyncio.ensure_future(connection.wait_closed()) for connection in connections]
        if gone:
            _, waiting = await asyncio.wait(gone, timeout=STOP_GRACE)
            if waiting:
                for connection in connections:
                    connection.abort()
                await asyncio.wait(waiting)

    def has_room(self) -> bool:
        """Whether the connection that has just been accepted may stay."""
        most = self._most
        if Server.accepted <= most:
            return True
        now = asyncio.get_running_loop().time()
        if now - self._refused_at >= REFUSED_AGAIN:
            self._refused_at = now
            log.warning(
                "%d connections are open, new ones on port %d are closed at once: raise the limit of open files "
                "(ulimit -n)",
                most,
                self.port,
            )
        return False

    def limit_unfinished(self) -> None:
        """Cut the largest unfinished frame off when all together take too much."""
        if self.unfinished > MAX_UNFINISHED:
            largest = max(self.connections, key=lambda one: one.unfinished)
            size = largest.forget_unfinished()
            largest.cut_off(f"unfinished frames take {MAX_UNFINISHED >> 20} MiB, the largest is its {size} bytes")

    def limit_unread(self) -> None:
        """Cut off who reads least when all together leave too much unread."""
        open_ones = [one for one in self.not_reading if not one.closed]
        if sum(one.unread() for one in open_ones) > MAX_UNREAD:
            slowest = max(open_ones, key=Connection.unread)
            slowest.cut_off(
                f"{MAX_UNREAD >> 20} MiB of answers are unread, most of them, {slowest.unread()}, here"
            )

    def _connection(self, loop: asyncio.AbstractEventLoop) -> _ServerConnection:
        session = Session(loop.time, max_in_flight=MAX_IN_FLIGHT, max_frame=self._max_frame)
        return _ServerConnection(self, loop, session)


class _ServerConnection(Connection):
    """A connection that its server knows of while it lasts."""

    __slots__ = ("_server", "unfinished")

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, session: Session) -> None:
        super().__init__(
            server._service,
            loop,
            session,
            server.counters,
            idle_timeout=server._idle_timeout,
            throttle=True,
        )
        self._server = server
        #: bytes of a frame that has not ended yet
        self.unfinished = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections[self] = None
        Server.accepted += 1
        if not self._server.has_room():
            self.counters.refused += 1
            self.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        held = self.session.decoder.buffered
        if held != self.unfinished:
            self._server.unfinished += held - self.unfinished
            self.unfinished = held
            self._server.limit_unfinished()

    def forget_unfinished(self) -> int:
        """Count this connection's unfinished frame no more; returns its size."""
        size, self.unfinished = self.unfinished, 0
        self._server.unfinished -= size
        return size

    def pause_writing(self) -> None:
        super().pause_writing()
        self._server.not_reading[self] = None

    def resume_writing(self) -> None:
        self._server.not_reading.pop(self, None)
        super().resume_writing()

    def _limit_unread(self) -> None:
        super()._limit_unread()
        if not self.closed:
            self._server.limit_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        Server.accepted -= 1
        self._server.connections.pop(self, None)
        self._server.not_reading.pop(self, None)
        self.forget_unfinished()
        super().connection_lost(exc)


class _FirstByte(asyncio.Protocol):
    """Decides by the first byte whether a connection speaks TLS, then steps aside, or does the TLS."""

    def __init__(self, connection: _ServerConnection, context: ssl.SSLContext, enforcing: bool) -> None:
        self._connection = connection
        self._context = context
        self._enforcing = enforcing
        self._raw = cast(asyncio.Transport, None)  # until connection_made
        self._tls: TlsTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._connection.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            if data[0] != HANDSHAKE:
                if self._enforcing:
                    self._refuse("it does not speak TLS")
                else:
                    self._raw.set_protocol(self._connection)
                    self._connection.data_received(data)
                return
            self._tls = TlsTransport(self._raw, self._context)
            self._connection.move_to(self._tls)
        try:
            plain = self._tls.feed(data)
        except ssl.SSLError as error:
            self._refuse(f"TLS failed: {error}")
            return
        if plain:
            self._connection.data_received(plain)

    def _refuse(self, reason: str) -> None:
        self._connection.counters.protocol_errors += 1
        log.info("closing the connection to %s: %s", self._connection.peer, reason)
        self._connection.abort()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
