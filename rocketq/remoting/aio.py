"""The asyncio client: one connection per address, shared by everybody who talks to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rocketq.errors import ConnectFailed
from rocketq.remoting.codes import JSON, ResponseCode
from rocketq.remoting.command import Command, Header, encode_response
from rocketq.remoting.connection import Connection, Counters, Handler, Reply
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.session import MAX_IN_FLIGHT, Backoff, Session, split_address
from rocketq.remoting.tls import TlsConfig

log = logging.getLogger("rocketq.remoting")

#: Seconds that :meth:`AsyncClient.close` gives the servers to read what was written.
CLOSE_GRACE = 1.0


class _Peer:
    """An address: its connection, and what that reports to."""

    __slots__ = ("_on_connection_lost", "address", "backoff", "connecting", "connection", "handle")

    def __init__(
        self, address: str, on_request: Handler | None, on_connection_lost: Callable[[str], None] | None
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.connecting: asyncio.Task[Connection] | None = None
        self.backoff = Backoff()
        self.handle = on_request or _not_supported
        self._on_connection_lost = on_connection_lost

    def end_batch(self, connection: Connection) -> None:
        pass

    def connection_lost(self, connection: Connection) -> None:
        if self._on_connection_lost is not None:
            self._on_connection_lost(self.address)


class AsyncClient:
    """Talks to many addresses (``host:port``). Use it on one event loop only.

    `on_request` answers what servers ask of the client (codes 39, 40, 220, 221, 307, 309, 326); without it they are
    told that the code is not supported. `on_connection_lost` is called with the address of each connection that
    ended. All times are in seconds; `serialize_type` is the header encoding of our requests (JSON or BINARY).
    With `credentials` every request is signed.
    """

    def __init__(
        self,
        *,
        on_request: Handler | None = None,
        tls: TlsConfig | None = None,
        credentials: Credentials | None = None,
        connect_timeout: float = 3.0,
        idle_timeout: float = 120.0,
        serialize_type: int = JSON,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_connection_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._on_request = on_request
        self._on_connection_lost = on_connection_lost
        self._tls = tls.client_context() if tls is not None and tls.mode != "disabled" else None
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._serialize_type = serialize_type
        self._max_in_flight = max_in_flight
        self._peers: dict[str, _Peer] = {}
        self._closed = False
        self.counters = Counters()

    async def call(
        self,
        address: str,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 3.0,
    ) -> Command:
        """The answer to a request, whatever its code; connects first where that is needed.

        Raises ConnectFailed, ConnectionLost, RequestTimeout, TooManyInFlight.
        """
        connection = self.connected(address)
        if connection is None:
            begun = asyncio.get_running_loop().time()
            connection = await self.connect(address, timeout)
            timeout -= asyncio.get_running_loop().time() - begun
        return await connection.call(code, header, body, timeout)

    def submit(
        self,
        address: str,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 3.0,
    ) -> asyncio.Future[Command]:
        """Send a request without waiting; the future gets the answer, ConnectionLost or RequestTimeout.

        All requests of one turn of the loop leave in one write. Raises ConnectFailed when there is no connection
        (see :meth:`connect`), TooManyInFlight when too many requests wait for answers or for the peer to read.
        """
        connection = self.connected(address)
        if connection is None:
            raise ConnectFailed(f"not connected to {address}")
        return connection.submit(code, header, body, timeout)

    async def oneway(
        self,
        address: str,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 3.0,
    ) -> None:
        """Send a request that gets no answer; waits for a peer that is slow to read.

        Raises ConnectFailed, RequestTimeout when the peer does not read, and ConnectionLost when the connection ends
        meanwhile; then it was not sent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        connection = await self.connect(address, timeout)
        await connection.call_oneway(code, header, body, deadline - loop.time())

    async def connect(self, address: str, timeout: float | None = None) -> Connection:
        """The connection to `address`, made if there is none; attempts at the same time are one.

        After a failure further attempts fail at once until the back-off has passed. Raises ConnectFailed.
        """
        peer = self._peers.get(address)
        if peer is None:
            split_address(address)
            peer = self._peers[address] = _Peer(address, self._on_request, self._on_connection_lost)
        if peer.connection is not None and not peer.connection.closed:
            return peer.connection
        if self._closed:
            raise ConnectFailed(f"no connection to {address}: the client is closed")
        if peer.connecting is None:
            remaining = peer.backoff.remaining(asyncio.get_running_loop().time())
            if remaining:
                raise ConnectFailed(f"{peer.backoff.reason} (next attempt in {remaining:.1f} s)")
            peer.connecting = asyncio.create_task(self._open(peer))
            peer.connecting.add_done_callback(_retrieve)
        attempt = peer.connecting
        await asyncio.wait({attempt}, timeout=timeout)
        if not attempt.done():
            raise ConnectFailed(f"no connection to {address} within {timeout:g} s")
        if attempt.cancelled():
            raise ConnectFailed(f"no connection to {address}: the client is closed")
        return attempt.result()

    def is_connected(self, address: str) -> bool:
        """True while there is a connection to `address`."""
        return self.connected(address) is not None

    def connected(self, address: str) -> Connection | None:
        """The connection to `address` when there is one."""
        peer = self._peers.get(address)
        connection = peer.connection if peer is not None else None
        return None if connection is None or connection.closed else connection

    async def close(self) -> None:
        """Close all connections; requests that wait for an answer end with ConnectionLost."""
        self._closed = True
        connections = []
        for peer in self._peers.values():
            if peer.connecting is not None:
                peer.connecting.cancel()
            if peer.connection is not None:
                peer.connection.close()
                connections.append(peer.connection)
        if connections:
            gone = [asyncio.ensure_future(connection.wait_closed()) for connection in connections]
            _, waiting = await asyncio.wait(gone, timeout=CLOSE_GRACE)
            if waiting:
                for connection in connections:
                    connection.abort()
                await asyncio.wait(waiting)
        self._peers.clear()

    async def _open(self, peer: _Peer) -> Connection:
        loop = asyncio.get_running_loop()
        address = peer.address
        host, port = split_address(address)

        def protocol() -> Connection:
            session = Session(
                loop.time,
                max_in_flight=self._max_in_flight,
                serialize_type=self._serialize_type,
                credentials=self._credentials,
            )
            return Connection(peer, loop, session, self.counters, idle_timeout=self._idle_timeout, throttle=False)

        attempt = loop.create_connection(
            protocol, host, port, ssl=self._tls, server_hostname=host if self._tls is not None else None
        )
        try:
            _, connection = await asyncio.wait_for(attempt, self._connect_timeout)
        except asyncio.TimeoutError:
            reason = f"no connection to {address} within {self._connect_timeout:g} s"
        except (OSError, UnicodeError) as error:  # ssl.SSLError is one; names like a..b raise the other
            reason = f"no connection to {address}: {error}"
        else:
            if self._closed:  # wait_for may swallow the cancellation by close() before Python 3.12
                connection.abort()
                raise ConnectFailed(f"no connection to {address}: the client is closed")
            peer.connection = connection
            peer.backoff.succeeded()
            return connection
        finally:
            peer.connecting = None
        log.log(logging.DEBUG if peer.backoff.reason else logging.INFO, "%s", reason)
        peer.backoff.failed(loop.time(), reason)
        raise ConnectFailed(reason)


def _retrieve(attempt: asyncio.Task[Connection]) -> None:
    """Its failure may find nobody waiting any more, which is no reason for a warning."""
    if not attempt.cancelled():
        attempt.exception()


def _not_supported(connection: Connection, request: Command) -> Reply:
    return encode_response(
        request, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, f" request type {request.code} not supported"
    )
