"""Requests that nobody waits for: non-blocking sockets under Kombu's event loop, or polled by whoever drains events.

The answers come to callbacks. Two drivers turn the wheel: a `kombu.asynchronous.Hub` after :meth:`Engine.attach`, or
calls of :meth:`Engine.turn`. Connections are made when first needed, and again after they broke or did not answer in
time; `lane` keeps requests that are held for long on connections of their own, so that they can be given up together
(:meth:`Engine.close_lane`).

Brokers give out again what we hold as soon as our side has ended all its connections, see
:class:`~rocketq.client.pop_calls.Holder`. So one that does not answer any more is put aside, open, until another one
does: its end could reach the broker when the network is back, before we do.

Any thread may send. Answers are taken in by one thread at a time. After a fork the child begins anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from kombu.asynchronous.hub import ERR, READ, WRITE

from rocketq.client.pop_calls import Holder
from rocketq.errors import ConnectFailed, ConnectionLost, RemotingError, RequestTimeout
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.session import Backoff
from rocketq.remoting.tls import TlsConfig
from rocketq_kombu.calls import Calls
from rocketq_kombu.link import Link

#: Gets the answer, or why there is none.
Done = Callable[[Command | RemotingError], None]

#: What is said of messages that are ours.
_SETTLING = frozenset(
    {
        int(RequestCode.ACK_MESSAGE),
        int(RequestCode.BATCH_ACK_MESSAGE),
        int(RequestCode.CHANGE_MESSAGE_INVISIBLETIME),
    }
)
#: What tells brokers that messages are ours, see `Holder`.
_HOLDING = _SETTLING | {int(RequestCode.POP_MESSAGE)}
#: Seconds between looks at deadlines under a hub.
_EXPIRE_EVERY = 1.0


class Engine:
    """All connections of one transport. `connect_timeout` and `grace` (see `Options`) in seconds.

    `lost` is told the address of a broker to which a connection that held messages broke.
    """

    def __init__(
        self,
        tls: TlsConfig | None = None,
        connect_timeout: float = 3.0,
        credentials: Credentials | None = None,
        grace: float = 0.0,
        lost: Callable[[str], None] = lambda address: None,
    ) -> None:
        self._credentials = credentials
        self._grace_ms = int(grace * 1000)
        self._lost = lost
        self._tls = tls.client_context() if tls is not None and tls.mode != "disabled" else None
        self._connect_timeout = connect_timeout
        self._hub: Any = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        #: who we are to the brokers
        self.holder = Holder(uuid.uuid4().hex, self._grace_ms)
        self._aside: dict[str, Link] = {}
        self._lock = threading.RLock()  # links, their sessions and what they still have to write
        self._turning = threading.Lock()
        self._links: dict[tuple[str, Hashable], Link] = {}
        self._backoffs: dict[str, Backoff] = {}
        self.calls = Calls()
        self._flushing = False
        self._expiring: Any = None

    def _after_fork(self) -> None:
        """In a child: give the parent's sockets up without a word."""
        if self._pid != os.getpid():
            for link in self._links.values():
                link.sock.close()
            self._hub = None
            self._begin()

    # sending

    def send(
        self,
        address: str,
        code: int,
        header: Header | dict[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout: float,
        done: Done,
        lane: Hashable = None,
        wait: bool = False,
    ) -> None:
        """Send a request; `done` is called with what comes of it, later and once.

        `wait`: it has to leave even if nobody turns the wheel any more; without an event loop, wait until there is a
        connection. Raises ConnectFailed.
        """
        self._after_fork()
        with self._lock:
            link = self._links.get((address, lane)) or self._connect(address, lane)
            if wait and self._hub is None and not link.open:
                self._wait_open(link)
            _, frame = link.session.request(code, header, body, timeout, done)
            link.out += frame
            link.holds |= code in _HOLDING
            if self._hub is None:
                self._advance(link)
            elif not self._flushing:  # what is sent in one round of the loop leaves together
                self._flushing = True
                self.calls.soon(self.flush)

    def answers(self, address: str, lane: Hashable) -> bool:
        """Whether a lane has a connection, and nothing says that nothing comes through it."""
        link = self._links.get((address, lane))
        return link is not None and link.open and not link.silent

    def flush(self) -> None:
        """Write what is waiting to be written."""
        with self._lock:
            self._flushing = False
            for link in list(self._links.values()):
                if link.out:
                    self._advance(link)

    def _connect(self, address: str, lane: Hashable) -> Link:
        backoff = self._backoffs.setdefault(address, Backoff())
        remaining = backoff.remaining(time.monotonic())
        if remaining:
            raise ConnectFailed(f"{backoff.reason} (next attempt in {remaining:.1f} s)")
        try:
            link = Link(address, lane, self._tls, self._credentials, self._connect_timeout)
        except ConnectFailed as error:
            backoff.failed(time.monotonic(), str(error))
            raise
        self._links[address, lane] = link
        if self._hub is not None:
            self._watch(link)
        return link

    def _wait_open(self, link: Link) -> None:
        try:
            link.wait_open()
        except OSError as error:
            raise self._fail(link, str(error)) from None
        self._backoffs[link.address].succeeded()

    def _advance(self, link: Link) -> None:
        """Open the connection further, write as much as it takes; under the lock."""
        was_open = link.open
        try:
            link.advance()
        except OSError as error:
            self._lose(link, str(error))
            return
        if link.open and not was_open:
            self._backoffs[link.address].succeeded()
        if self._hub is not None:
            self._watch(link)

    def _watch(self, link: Link) -> None:
        """Have the hub call us for what the connection waits for."""
        if link.events == link.watched:
            return
        fd = link.sock.fileno()
        if link.watched:
            self._hub.remove(fd)
        link.watched = link.events
        reads, writes = link.events & select.POLLIN, link.events & select.POLLOUT
        self._hub.add(fd, self._called, (READ | ERR if reads else 0) | (WRITE if writes else 0), (link,))
        if reads and writes:  # a hub keeps one callback for each, but polls a file only for what came first
            self._hub.writers[fd] = self._called, (link,)

    # receiving

    def _called(self, link: Link) -> None:
        """By the hub. What has come is delivered before Celery's pool is asked whether there is something."""
        self._ready(link)
        self.calls.run_soon()

    def _ready(self, link: Link) -> None:
        if link.out or not link.open:
            with self._lock:
                if self._links.get((link.address, link.lane)) is link:
                    self._advance(link)
        self._read(link)
        self.calls.run_posted()

    def _read(self, link: Link) -> None:
        """Take in what has arrived, and call back."""
        more = True
        while more:
            with self._lock:
                if self._links.get((link.address, link.lane)) is not link:
                    return
                try:
                    data, more = link.receive()
                except OSError as error:
                    self._lose(link, str(error))
                    return
                if data is None:
                    return
                if not data:
                    self._lose(link, "the server closed it")
                    return
                link.silent = False
                events = link.session.receive(data)
                if link.session.error is not None:
                    self._lose(link, str(link.session.error), aside=True)
            for pending, command in events:
                if pending is not None:  # servers ask clients nothing that concerns us
                    if pending.code in _HOLDING:
                        self._is_known(link)
                    pending.context(command)

    def _is_known(self, link: Link) -> None:
        """The broker has seen on this connection that we are there: no other one is needed for that."""
        link.known = True
        aside = self._aside.pop(link.address, None)
        if aside is not None:
            aside.sock.close()

    def _lose(self, link: Link, reason: str, aside: bool = False) -> None:
        """A connection broke, or is as good as that; under the lock."""
        self._fail(link, reason, aside)
        if link.open and link.holds:
            self.calls.post(partial(self._lost, link.address))

    def _fail(self, link: Link, reason: str, aside: bool = False) -> RemotingError:
        """The end of a connection, and the error that says so; under the lock.

        `aside`: the broker is not to see it while we hold messages; one connection of each broker is enough for that.
        """
        error: RemotingError
        if link.open:
            error = ConnectionLost(f"the connection to {link.address} was lost: {reason}")
        else:
            error = ConnectFailed(f"no connection to {link.address}: {reason}")
        if self._links.get((link.address, link.lane)) is link:
            del self._links[link.address, link.lane]
            if not link.open:
                self._backoffs[link.address].failed(time.monotonic(), str(error))
            if self._hub is not None:
                self._hub.remove(link.sock.fileno())
            if not (aside and link.holds and self._aside.setdefault(link.address, link) is link):
                link.sock.close()
            for pending in link.session.close():
                self.calls.post(partial(pending.context, error))
        return error

    def _expire(self) -> None:
        """End requests whose time is up, and their connections: it may be that nothing comes through any more.

        One by which messages may still come is kept as long as they may: nobody else would get them within the lease.
        """
        now = time.monotonic()
        with self._lock:
            for link in list(self._links.values()):
                late = link.session.expired(now)
                for pending in late:
                    text = f"{link.address} did not answer within {pending.timeout:g} s"
                    self.calls.post(partial(pending.context, RequestTimeout(text)))
                waiting = {pending.code for pending in link.session.pending.values()}
                if late and RequestCode.POP_MESSAGE in waiting and all(one.code in _SETTLING for one in late):
                    link.silent = True
                elif late:
                    self._lose(link, "it does not answer", aside=True)
                elif not link.open and now > link.until:
                    self._fail(link, "timed out")
        self.calls.run_posted()

    # turning the wheel

    def turn(self, timeout: float) -> None:
        """Wait for something to happen, for at most `timeout` seconds, and deal with it.

        Does nothing but wait while another thread turns.
        """
        self._after_fork()
        if not self._turning.acquire(timeout=timeout):
            return
        try:
            self._turn(timeout)
        finally:
            self._turning.release()

    def _turn(self, timeout: float) -> None:
        if self.calls.posted:
            self.calls.run_posted()
            return
        with self._lock:
            links = {link.sock.fileno(): link for link in self._links.values()}
            deadlines = [self.calls.next_due, *(link.session.next_deadline for link in links.values())]
            poll = select.poll()
            for fd, link in links.items():
                poll.register(fd, link.events)
        wait = min([timeout, *(deadline - time.monotonic() for deadline in deadlines)])
        for fd, _ in poll.poll(max(0.0, wait) * 1000):
            self._ready(links[fd])
        self.calls.run_due()
        self._expire()

    def attach(self, hub: Any) -> None:
        """Let a hub turn the wheel from now on."""
        self._after_fork()
        with self._lock:
            if self._hub is hub:
                return
            self._hub = hub
            self.calls.attach(hub)
            for link in list(self._links.values()):
                self._advance(link)
        self._expiring = hub.call_repeatedly(_EXPIRE_EVERY, self._expire)

    def detach(self) -> None:
        """Whoever turns has the wheel again: what is sent from now on leaves at once."""
        with self._lock:
            hub, self._hub = self._hub, None
            if hub is None:
                return
            self.calls.detach()
            for link in list(self._links.values()):
                if link.watched:
                    hub.remove(link.sock.fileno())
                    link.watched = 0
            self._flushing = False
            for link in list(self._links.values()):
                self._advance(link)
        if self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None

    @property
    def attached(self) -> bool:
        return self._hub is not None

    def close_lane(self, lane: Hashable, grace: float = 0.3, *, holding: bool = False) -> None:
        """Give up a lane's connections and what they were asked.

        Answers that are under way already are still taken in: the server is told that nothing more comes, and what
        it says until it closes is read, for `grace` seconds at most. `holding`: we have messages, a connection that is
        the only one by which a broker knows us is put aside.
        """
        self._after_fork()
        links = [link for link in self._links.values() if link.lane == lane]
        if holding:
            known = {link.address for link in self._links.values() if link.lane != lane and link.known}
            for link in [link for link in links if link.address not in known]:
                links.remove(link)
                with self._lock:
                    self._fail(link, "it was given up", aside=True)
        deadline = time.monotonic() + grace
        for link in links:
            if self._hub is not None:
                self._hub.remove(link.sock.fileno())
            with contextlib.suppress(OSError):  # it is closed already
                link.sock.shutdown(socket.SHUT_WR)
        for link in links:
            while link.open and self._links.get((link.address, lane)) is link:
                poll = select.poll()
                poll.register(link.sock, select.POLLIN)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    break
                self._read(link)
            with self._lock:
                self._fail(link, "it was given up")

    def settle(self, grace: float = 1.0) -> bool:
        """Wait for the answers to acknowledgements and renewals; False when not all came within `grace` seconds."""
        deadline = time.monotonic() + grace
        while self._is_settling():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(left)
        return True

    def _is_settling(self) -> bool:
        with self._lock:
            pending = (one for link in self._links.values() for one in link.session.pending.values())
            return any(one.code in _SETTLING for one in pending)

    def close(self) -> None:
        """Close everything; what was not answered ends with ConnectionLost."""
        self._after_fork()
        with self._lock:
            for link in list(self._links.values()):
                self._fail(link, "the connection was closed")
            for link in self._aside.values():
                link.sock.close()
            self._aside.clear()
        self.calls.forget_timers()
        self.calls.run_posted()
        self.detach()
