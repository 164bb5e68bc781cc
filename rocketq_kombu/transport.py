"""The transport: what the channels of one Kombu connection share.

Publishing and everything that is asked and answered at once goes through the blocking clients of
:class:`~rocketq_kombu.cluster.Cluster`; consuming goes through the :class:`~rocketq_kombu.engine.Engine`, which an
event loop may turn (`register_with_event_loop`) or else whoever drains events. Connections to brokers heal by
themselves; only the first look at the NameServers may fail.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from rocketq.errors import BrokerError, RemotingError, RocketQError
from rocketq.remoting.bodies import TopicRoute
from rocketq.remoting.credentials import Credentials
from rocketq_kombu import channel as channels
from rocketq_kombu.address import DEFAULT_PORT, Address, Options
from rocketq_kombu.cluster import Cluster
from rocketq_kombu.engine import Engine
from rocketq_kombu.local import LocalServer
from rocketq_kombu.registry import Registry
from rocketq_kombu.watch import EVERY, Watch

log = logging.getLogger("rocketq.kombu")

#: Kombu's own way to mask secrets reads one address only.
_SECRET = re.compile(r"(://[^/@:]*:)[^/@]*@")


class Transport(virtual.Transport):
    """`rocketq://host:9876`, see :meth:`Address.of <rocketq_kombu.address.Address.of>`; a virtual host as the path."""

    Channel = channels.Channel

    can_parse_url = True
    default_port = DEFAULT_PORT
    driver_type = "rocketq"
    driver_name = "rocketq"
    polling_interval = None
    connection_errors = (RemotingError, ConnectionError, socket.error)
    channel_errors = (BrokerError, ChannelError)

    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"]), heartbeats=False
    )

    # of a server of this machine they are there when it has been started
    cluster: Cluster
    registry: Registry
    watch: Watch

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        address = Address.of(client)
        self.virtual_host = address.virtual_host
        self.options = Options.read(client.transport_options, client.ssl or address.tls)
        self._account = (address.access_key, address.secret_key)
        timeout, grace = client.connect_timeout or 3.0, self.options.grace
        self.engine = Engine(self.options.tls, timeout, Credentials.of(*self._account), grace, self._lost)
        self.local = LocalServer(address.local) if address.local else None
        self._namesrv = ""
        if self.local is None:
            self._use(address.namesrv)
        self.closed = False
        self._hub: Any = None
        self._noticed: set[channels.Channel] = set()
        self._repeated: Any = None
        self._soon = False
        self._next_upkeep = 0.0
        self._renewer: threading.Thread | None = None
        self._hurry = threading.Event()

    def driver_version(self) -> str:
        from importlib.metadata import version

        return version("rocketq")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The address as it was given, with the secret masked unless `include_password`."""
        return uri if include_password else _SECRET.sub(lambda found: f"{found[1]}{mask}@", uri)

    # connecting

    def _use(self, namesrv: str) -> None:
        """Work with the cluster of these NameServers."""
        self._namesrv = namesrv
        self.cluster = Cluster(namesrv, self.options.tls, *self._account)
        self.registry = Registry(self.cluster.admin, self.virtual_host)
        self.watch = Watch(self.engine, namesrv, self._learned)

    def establish_connection(self) -> Transport:
        if self.local is not None and (namesrv := self.local.namesrv()) != self._namesrv:
            self._use(namesrv)
        self.cluster.admin.brokers()
        if "celery.worker.control" in sys.modules:
            from rocketq_kombu import inspection as inspection  # `scheduled` tells what brokers hold
        connection: Transport = super().establish_connection()
        return connection

    def verify_connection(self, connection: Any) -> bool:
        return not self.closed

    @property
    def connected(self) -> bool:
        return not self.closed

    def close_connection(self, connection: Any) -> None:
        self.unregister_from_event_loop(connection, self._hub)
        self.engine.detach()  # the loop may have stopped, and what it was to do is still to be done
        super().close_connection(connection)
        self.engine.settle()  # the acknowledgements
        self.closed = True
        self._noticed.clear()
        self.engine.close()
        self.cluster.close()
        if self.local is not None:
            self.local.leave()

    # turning the wheel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let Celery's hub read and write our sockets, and call us for what has to be done again and again."""
        if self._hub is loop:
            return
        self._hub = loop
        self.engine.attach(loop)
        self._repeated = loop.call_repeatedly(self._pause, self.upkeep)
        self.engine.calls.soon(self._work)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        if self._repeated is not None:
            self._repeated.cancel()
            self._repeated = None
        self._hub = None

    def notify(self, channel: channels.Channel) -> None:
        """Something changed: messages are ready, or there is room for more."""
        self._noticed.add(channel)
        if self._hub is not None and not self._soon:
            self._soon = True
            self.engine.calls.soon(self._work)

    def _work(self) -> bool:
        """Deliver and ask for more, for all channels that have noticed something; True when something was delivered.

        What was delivered goes first: under an event loop more is asked for when the pool has it.
        """
        self._soon = False
        delivered = False
        while self._noticed:
            channel = self._noticed.pop()
            if channel.deliver():
                delivered = True
                if self._hub is not None:
                    if not channel.gathers():
                        self.engine.calls.after(channel.fill)
                    continue
            channel.fill()
        return delivered

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver what is there, or wait for it. Raises socket.timeout when nothing came."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._noticed.update(self.channels)
        while not self._work():
            if self._hub is None and time.monotonic() >= self._next_upkeep:
                self.upkeep()
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError  # which is socket.timeout
            self.engine.turn(min(left, 1.0))

    # what has to be done again and again

    @property
    def _pause(self) -> float:
        """Seconds between rounds."""
        return min(self.options.lease / 3, EVERY)

    def upkeep(self) -> None:
        """Renew leases and short-lived queues, and look for what is new."""
        self._next_upkeep = time.monotonic() + self._pause
        self._renew()
        self.watch.look({topic for channel in self.channels for topic in channel.topics})
        for channel in list(self.channels):
            try:
                channel.keep_places()
            except RocketQError as error:
                log.warning("short-lived queues could not be renewed, trying again: %s", error)

    def _learned(self, topic: str, route: TopicRoute | None) -> None:
        if not self.cluster.learned(topic, route):
            return
        for channel in list(self.channels):
            try:
                channel.look_for_sources()
            except RocketQError as error:
                log.warning("not all brokers of topic %s are asked, trying again: %s", topic, error)

    def _renew(self) -> None:
        """Leave it to the thread where there is one: nobody else may be there when the answer comes."""
        if self._may_be_busy:
            self.renew_meanwhile()
            return
        for channel in list(self.channels):
            channel.renew()

    def _lost(self, address: str) -> None:
        """A connection to a broker broke: let it know that we are still there, and see what is still ours."""
        for channel in list(self.channels):
            for lease in channel.leases:
                if lease.address == address:
                    lease.renew_at = 0.0
        self._hurry.set()
        self._renew()

    @property
    def _may_be_busy(self) -> bool:
        """Whether the thread that would renew leases works on tasks as well: it does in the solo pool, too.

        Celery's event loop does not run any more when its worker waits for the last tasks before it ends.
        """
        if self._hub is None or "celery.concurrency.solo" in sys.modules:
            return True
        return self._is_ending

    @property
    def _is_ending(self) -> bool:
        return any(channel.is_ending for channel in list(self.channels))

    def renew_meanwhile(self) -> None:
        """A thread renews leases where the only other one may be busy with a task."""
        if self._may_be_busy and (self._renewer is None or not self._renewer.is_alive()):
            self._renewer = threading.Thread(target=self._renew_forever, name="rocketq-leases", daemon=True)
            self._renewer.start()

    def _renew_forever(self) -> None:
        while self._may_be_busy and not self.closed:
            self._hurry.wait(self.options.lease / 4)
            self._hurry.clear()
            if self._is_ending:
                self.engine.turn(0)  # takes in the answers that the event loop does not wait for any more
            for channel in list(self.channels):
                channel.renew(self.cluster.ask)

    def lost(self, topic: str) -> None:
        """A broker of a topic does not answer: its address may have changed."""
        self.cluster.producer.routes.mark_stale(topic)
        if self.local is not None:
            try:
                self.local.namesrv()  # starts it again where it is gone
            except RocketQError as error:
                log.warning("trying again: %s", error)

    def close_channel(self, channel: channels.Channel) -> None:
        self._noticed.discard(channel)
        super().close_channel(channel)


if "celery" in sys.modules:
    from rocketq_kombu import failures as failures  # listens from now on
