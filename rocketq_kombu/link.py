"""One connection that never blocks: it connects, shakes hands where TLS is asked for, then sends and receives."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Hashable

from rocketq.errors import ConnectFailed
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.forks import not_for_children
from rocketq.remoting.session import Session, split_address

_RECEIVE = 256 * 1024
#: What a socket raises that cannot go on just now.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """A connection to ``host:port``.

    `out`: what is still to be written; `until`: when it has to be open at last, monotonic seconds; `watched`: the
    events that an event loop was asked for. `holds`: messages may be ours as long as it is open; `known`: the broker
    has said so. `silent`: something was not answered in time.
    """

    __slots__ = (
        "_connected",
        "_shaking",
        "_tls",
        "address",
        "holds",
        "known",
        "lane",
        "open",
        "out",
        "session",
        "silent",
        "sock",
        "until",
        "watched",
    )

    def __init__(
        self,
        address: str,
        lane: Hashable,
        tls: ssl.SSLContext | None,
        credentials: Credentials | None,
        timeout: float,
    ) -> None:
        """Raises ConnectFailed when there is no such host. The names of hosts are looked up at once."""
        host, port = split_address(address)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"no connection to {address}: {error}") from None
        family, kind, protocol, _, to = min(found, key=lambda one: one[0] != socket.AF_INET)
        self.address = address
        self.lane = lane
        self.sock = not_for_children(socket.socket(family, kind, protocol))
        self.session = Session(time.monotonic, credentials=credentials)
        self.out = bytearray()
        self.until = time.monotonic() + timeout
        self.watched = 0
        self.open = False
        self.holds = self.known = self.silent = False
        self._connected = False
        self._shaking = select.POLLOUT  # what the handshake waits for
        self._tls = (tls, host) if tls is not None else None
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(to)
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self.sock.close()
            raise ConnectFailed(f"no connection to {address}: {os.strerror(code)}")

    @property
    def events(self) -> int:
        """What to poll for."""
        if not self.open:
            return self._shaking if self._connected else select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self.out else 0)

    def advance(self) -> None:
        """Go on with opening it, and write as much as it takes. Raises OSError when it failed."""
        try:
            if not self.open:
                self._advance_opening()
            while self.open and self.out:
                sent = self.sock.send(self.out)
                del self.out[:sent]
        except _NOT_NOW:
            return

    def _advance_opening(self) -> None:
        if not self._connected:
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT)
            if not poll.poll(0):
                return
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self._connected = True
            if self._tls is not None:
                context, host = self._tls
                self.sock = not_for_children(
                    context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
                )
        if isinstance(self.sock, ssl.SSLSocket):
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                self._shaking = select.POLLIN
                raise
            except ssl.SSLWantWriteError:
                self._shaking = select.POLLOUT
                raise
        self.open = True

    def wait_open(self) -> None:
        """Block until it is open. Raises OSError when it failed, or it takes too long."""
        self.advance()
        while not self.open:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            poll = select.poll()
            poll.register(self.sock, self.events)
            poll.poll(left * 1000)
            self.advance()

    def receive(self) -> tuple[bytes | None, bool]:
        """What has arrived (None: nothing, empty: the server closed it), and whether there may be more already.

        Raises OSError.
        """
        if not self.open:
            return None, False
        try:
            data = self.sock.recv(_RECEIVE)
        except _NOT_NOW:
            return None, False
        # TLS may hold more that no poll would tell of
        return data, len(data) == _RECEIVE or isinstance(self.sock, ssl.SSLSocket)
