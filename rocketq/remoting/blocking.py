"""The blocking client: for plain synchronous code, any number of threads, and processes that fork.

It has no thread of its own. Whoever waits for an answer reads for everybody: one thread polls the socket, the others
wait until it has brought their answer or its own, and then one of them goes on polling.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable

from rocketq.errors import ConnectFailed, ConnectionLost, RequestTimeout
from rocketq.remoting.codes import JSON
from rocketq.remoting.command import Command, Header
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.forks import not_for_children
from rocketq.remoting.session import MAX_IN_FLIGHT, Backoff, Session, split_address
from rocketq.remoting.tls import TlsConfig

log = logging.getLogger("rocketq.remoting")

#: One request of :meth:`BlockingClient.call_many`: code, header, body.
Request = tuple[int, "Header | dict[str, str] | None", bytes]

_RECEIVE = 256 * 1024
#: A connection unused for so many seconds is looked at before it is used: the server may have closed it.
_LOOK_AFTER = 1.0


class BlockingClient:
    """Talks to many addresses (``host:port``), over one connection each.

    Threads may share it. After a fork the child leaves the parent's connections alone and makes its own. Requests
    that servers make of clients are ignored. All times are in seconds; `serialize_type` is the header encoding of
    our requests (JSON or BINARY). With `credentials` every request is signed.
    """

    def __init__(
        self,
        *,
        tls: TlsConfig | None = None,
        credentials: Credentials | None = None,
        connect_timeout: float = 3.0,
        idle_timeout: float = 120.0,
        serialize_type: int = JSON,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._tls = tls.client_context() if tls is not None and tls.mode != "disabled" else None
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._serialize_type = serialize_type
        self._max_in_flight = max_in_flight
        self._closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}

    def call(
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
        deadline = time.monotonic() + timeout
        return self._link(address, deadline).exchange(((code, header, body),), timeout, deadline)[0]

    def call_many(self, address: str, requests: Iterable[Request], timeout: float = 3.0) -> list[Command]:
        """The answers to many requests, in their order, with all of them under way at once.

        Raises as :meth:`call`; which of the requests were carried out is unknown then.
        """
        deadline = time.monotonic() + timeout
        return self._link(address, deadline).exchange(requests, timeout, deadline)

    def oneway(
        self,
        address: str,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 3.0,
    ) -> None:
        """Hand a request that gets no answer to the operating system.

        Raises ConnectFailed, ConnectionLost, RequestTimeout when the server does not read.
        """
        deadline = time.monotonic() + timeout
        self._link(address, deadline).oneway(code, header, body, deadline)

    def is_connected(self, address: str) -> bool:
        """True while there is a connection to `address`."""
        self._after_fork()
        peer = self._peers.get(address)
        return peer is not None and peer.link is not None and peer.link.error is None

    def close(self) -> None:
        """Close all connections; requests that wait for an answer end with ConnectionLost."""
        self._after_fork()
        self._closed = True
        with self._lock:
            peers = list(self._peers.values())
            self._peers.clear()
        for peer in peers:
            if peer.link is not None:
                peer.link.close("the client was closed")

    def _after_fork(self) -> None:
        """In a child: give the parent's sockets up without a word to the servers, and start with new locks."""
        if self._pid != os.getpid():
            for peer in self._peers.values():
                if peer.link is not None:
                    peer.link.abandon()
            self._peers = {}
            self._lock = threading.Lock()
            self._pid = os.getpid()

    def _link(self, address: str, deadline: float) -> _Link:
        self._after_fork()
        peer = self._peers.get(address)
        if peer is None:
            split_address(address)
            with self._lock:
                peer = self._peers.setdefault(address, _Peer())
        link = peer.link
        if link is not None and link.usable(self._idle_timeout):
            return link
        if not peer.connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ConnectFailed(f"no connection to {address} in time: another thread is still connecting")
        try:
            link = peer.link
            if link is None or link.error is not None:
                link = peer.link = self._connect(address, peer.backoff, deadline)
            return link
        finally:
            peer.connecting.release()

    def _connect(self, address: str, backoff: Backoff, deadline: float) -> _Link:
        if self._closed:
            raise ConnectFailed(f"no connection to {address}: the client is closed")
        now = time.monotonic()
        remaining = backoff.remaining(now)
        if remaining:
            raise ConnectFailed(f"{backoff.reason} (next attempt in {remaining:.1f} s)")
        try:
            sock = connect(address, self._tls, max(0.001, min(self._connect_timeout, deadline - now)))
        except ConnectFailed as error:
            log.log(logging.DEBUG if backoff.reason else logging.INFO, "%s", error)
            backoff.failed(time.monotonic(), str(error))
            raise
        backoff.succeeded()
        session = Session(
            time.monotonic,
            max_in_flight=self._max_in_flight,
            serialize_type=self._serialize_type,
            credentials=self._credentials,
        )
        return _Link(address, sock, session)


def connect(address: str, tls: ssl.SSLContext | None, timeout: float) -> socket.socket:
    """A non-blocking connection to ``host:port``, made within `timeout` seconds. Raises ConnectFailed."""
    host, port = split_address(address)
    try:
        sock = socket.create_connection((host, port), timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=host)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:  # timeouts, ssl.SSLError; names like a..b raise the other
        raise ConnectFailed(f"no connection to {address}: {error}") from None
    return not_for_children(sock)


class _Peer:
    """An address: its connection, and who may make one."""

    __slots__ = ("backoff", "connecting", "link")

    def __init__(self) -> None:
        self.link: _Link | None = None
        self.backoff = Backoff()
        self.connecting = threading.Lock()


class _Answer:
    """Where the answer to one request goes."""

    __slots__ = ("command",)

    def __init__(self) -> None:
        self.command: Command | None = None


class _Link:
    """One connection. The socket is never blocking and only touched under `_lock`; only polling happens outside."""

    def __init__(self, address: str, sock: socket.socket, session: Session) -> None:
        self._address = address
        self._socket = sock
        self._session = session
        self._lock = threading.Condition(threading.Lock())
        self._sending = threading.Lock()  # whole frames, one after the other
        self._reader = False  # somebody polls for all
        self._polling = 0  # threads that use the descriptor outside the lock
        self._since = self._last_used = time.monotonic()
        #: why the connection is no more; set once
        self.error: str | None = None

    def exchange(self, requests: Iterable[Request], timeout: float, deadline: float) -> list[Command]:
        answers: list[_Answer] = []
        opaques: list[int] = []
        frames: list[bytes] = []
        try:
            with self._lock:
                self._check()
                for code, header, body in requests:
                    answer = _Answer()
                    opaque, frame = self._session.request(code, header, body, timeout, answer)
                    opaques.append(opaque)
                    answers.append(answer)
                    frames.append(frame)
            self._send(frames[0] if len(frames) == 1 else b"".join(frames), deadline)
            return self._wait_for(answers, deadline, timeout)
        except BaseException:
            with self._lock:
                for opaque in opaques:
                    self._session.forget(opaque)
            raise

    def oneway(self, code: int, header: Header | dict[str, str] | None, body: bytes, deadline: float) -> None:
        with self._lock:
            self._check()
            frame = self._session.oneway(code, header, body)
        self._send(frame, deadline)

    def usable(self, idle_timeout: float) -> bool:
        """False when the connection is closed, which after a while of silence takes a look at the socket."""
        idle = time.monotonic() - self._last_used
        if idle > _LOOK_AFTER:
            with self._lock:
                if idle > idle_timeout and not self._session.pending:
                    self._fail("it was idle")
                else:
                    self._read()
        return self.error is None

    def close(self, reason: str) -> None:
        with self._lock:
            self._fail(reason)

    def abandon(self) -> None:
        """Give up the descriptor only: the connection belongs to the parent process."""
        self.error = "it belongs to the parent process"
        self._socket.close()

    def _check(self) -> None:
        if self.error is not None:
            raise ConnectionLost(f"the connection to {self._address} was lost: {self.error}")

    def _fail(self, reason: str) -> None:
        """The end of the connection; under the lock."""
        if self.error is None:
            self.error = reason
            self._session.close()
            with contextlib.suppress(OSError):  # it is not connected any more
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes those who poll
            if not self._polling:
                self._socket.close()
            self._lock.notify_all()

    def _poll(self, events: int, deadline: float) -> bool:
        """Wait, without the lock, until the socket is ready; False when the deadline came first."""
        self._polling += 1
        self._lock.release()
        try:
            poll = select.poll()
            poll.register(self._socket, events)
            return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        finally:
            self._lock.acquire()
            self._polling -= 1
            if self.error is not None and not self._polling:
                self._socket.close()

    def _send(self, data: bytes, deadline: float) -> None:
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise RequestTimeout(f"{self._address} did not take the request in time")
        try:
            with self._lock:
                rest = memoryview(data)
                while rest:
                    self._check()
                    rest = rest[self._write(rest) :]
                    if not rest:
                        break
                    # reading meanwhile: a server that cannot get its answers out stops taking requests
                    if not self._poll(select.POLLIN | select.POLLOUT, deadline):
                        if len(rest) < len(data):
                            self._fail("a request could only be sent in part")
                        raise RequestTimeout(f"{self._address} did not take the request in time")
                    self._read()
                self._last_used = time.monotonic()
        finally:
            self._sending.release()

    def _wait_for(self, answers: list[_Answer], deadline: float, timeout: float) -> list[Command]:
        commands: list[Command] = []
        with self._lock:
            while True:
                while len(commands) < len(answers):
                    command = answers[len(commands)].command
                    if command is None:
                        break
                    commands.append(command)
                else:
                    return commands
                self._check()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    missing = len(answers) - len(commands)
                    if self._session.seems_dead(max(deadline - timeout, self._since)):
                        self._fail("the server answers nothing")
                    which = "the request" if len(answers) == 1 else f"{missing} of {len(answers)} requests"
                    raise RequestTimeout(f"{self._address} did not answer {which} within {timeout:g} s")
                if self._reader:
                    self._lock.wait(remaining)
                    continue
                self._reader = True
                try:
                    if self._poll(select.POLLIN, deadline):
                        self._read()
                finally:
                    self._reader = False
                    self._lock.notify_all()  # for their answers, or to poll in our place

    def _write(self, data: memoryview) -> int:
        """How many bytes the socket took; under the lock."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            self._fail(str(error))
            self._check()
            raise

    def _read(self) -> None:
        """Take in what has arrived; under the lock."""
        while self.error is None:
            try:
                data = self._socket.recv(_RECEIVE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._fail(str(error))
                return
            if not data:
                self._fail("the server closed it")
                return
            for pending, command in self._session.receive(data):
                if pending is not None:
                    pending.context.command = command
            if self._session.error is not None:
                self._fail(str(self._session.error))
                return
            self._last_used = time.monotonic()
            if len(data) < _RECEIVE and not isinstance(self._socket, ssl.SSLSocket):
                return  # TLS may hold more that no poll would tell of
