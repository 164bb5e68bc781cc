"""The transport: what the channels of one Kombu connection share.

Publishing and everything that is asked and answered at once goes through the blocking producer; consuming goes through
the :class:`~rocketq_kombu.engine.Engine`, which an event loop may turn (`register_with_event_loop`) or else whoever
drains events. Connections to brokers heal by themselves; only the first look at the NameServers may fail.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from rocketq.client.admin import Admin
from rocketq.client.sync_producer import Producer
from rocketq.errors import BrokerError, ConfigError, RemotingError, RocketQError, RouteNotFound
from rocketq.message import Message, MessageQueue
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import TopicConfig
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.headers import GetMaxOffsetHeader, GetMaxOffsetResponse, UpdateConsumerOffsetHeader
from rocketq.remoting.tls import TlsConfig
from rocketq_kombu import channel as channels
from rocketq_kombu.channel import PRIORITIES
from rocketq_kombu.engine import Engine
from rocketq_kombu.registry import Registry

log = logging.getLogger("rocketq.kombu")

#: Seconds that a new topic may take to be known to the NameServers.
_CREATED = 5.0
#: Seconds for which is believed that a topic exists or does not.
_BELIEVE = 10.0
_BELIEVE_MISSING = 1.0
#: Producer group of all transports.
GROUP = "rocketq-kombu"
DEFAULT_PORT = 9876


@dataclass(frozen=True)
class Options:
    """`transport_options`. `lease`: seconds for which a delivered message is ours before it has to be renewed;
    `hold_eta`: brokers keep tasks with an eta until they are due; `tls`: how to connect.
    """

    lease: float = 30.0
    hold_eta: bool = True
    tls: TlsConfig | None = None

    @classmethod
    def read(cls, options: dict[str, Any], ssl: Any) -> Options:
        """Raises ConfigError for a lease that cannot be."""
        lease = float(options.get("lease", cls.lease))
        if not 1 <= lease <= 3600:
            raise ConfigError(f"transport option lease={lease}: a lease has 1 to 3600 seconds")
        tls = None
        if ssl:
            given = ssl if isinstance(ssl, dict) else {}
            tls = TlsConfig(
                cert=given.get("certfile") or given.get("ssl_certfile") or "",
                key=given.get("keyfile") or given.get("ssl_keyfile") or "",
                ca=given.get("ca_certs") or given.get("ssl_ca_certs") or "",
                verify_server=bool(given.get("ca_certs") or given.get("ssl_ca_certs")),
            )
        return cls(lease, bool(options.get("hold_eta", True)), tls)


class Transport(virtual.Transport):
    """`rocketq://host:9876`, several NameServers with `,` or `;`, a virtual host as the path."""

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

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        servers, self.virtual_host, tls = parse(client)
        self.options = Options.read(client.transport_options, client.ssl or tls)
        self.namesrv = servers
        self.admin = Admin(servers, tls=self.options.tls)
        self.registry = Registry(self.admin, self.virtual_host)
        self.engine = Engine(self.options.tls, client.connect_timeout or 3.0)
        self.producer = Producer(GROUP, servers, tls=self.options.tls)
        self._remoting = BlockingClient(tls=self.options.tls)
        self._topics: dict[str, tuple[float, bool]] = {}
        self._priorities: dict[str, bool] = {}
        self._hub: Any = None
        self._noticed: set[channels.Channel] = set()
        self._soon = False
        self._alive: set[channels.Channel] = set()
        self._renewer: threading.Thread | None = None

    def driver_version(self) -> str:
        from importlib.metadata import version

        return version("rocketq")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The address as it was given; it holds no password that could be shown."""
        return uri

    # connecting

    def establish_connection(self) -> Transport:
        self.admin.brokers()
        connection: Transport = super().establish_connection()
        return connection

    def verify_connection(self, connection: Any) -> bool:
        return not self._closed

    _closed = False

    @property
    def connected(self) -> bool:
        return not self._closed

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        self._hub = None
        self.engine.close()
        self._noticed.clear()
        self._alive.clear()

    # turning the wheel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let Celery's hub read and write our sockets, and call us when leases have to be renewed."""
        if self._hub is loop:
            return
        self._hub = loop
        self.engine.attach(loop)
        loop.call_repeatedly(self.options.lease / 3, self.upkeep)
        loop.call_soon(self._work)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        self._hub = None

    def notify(self, channel: channels.Channel) -> None:
        """Something changed: messages are ready, or there is room for more."""
        self._noticed.add(channel)
        if self._hub is not None and not self._soon:
            self._soon = True
            self._hub.call_soon(self._work)

    def _work(self) -> bool:
        """Deliver and ask for more, for all channels that have noticed something; True when something was delivered."""
        self._soon = False
        delivered = False
        while self._noticed:
            channel = self._noticed.pop()
            if not channel.closed:
                delivered |= channel.deliver()
                channel.fill()
        return delivered

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver what is there, or wait for it. Raises socket.timeout when nothing came."""
        self._renew_meanwhile()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._noticed.update(self.channels)
        while not self._work():
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError  # which is socket.timeout
            self.engine.turn(min(left, 1.0))

    def upkeep(self) -> None:
        """Renew leases and short-lived queues."""
        for channel in list(self.channels):
            if channel._qos is not None:
                channel._qos.renew()
        for channel in list(self._alive):
            try:
                channel.keep_places()
            except RocketQError as error:
                log.warning("short-lived queues could not be renewed, trying again: %s", error)

    def keep_alive(self, channel: channels.Channel) -> None:
        """The channel has short-lived queues."""
        self._alive.add(channel)
        self._renew_meanwhile()

    def _renew_meanwhile(self) -> None:
        """Without an event loop a thread renews leases while the only other one is busy with a task."""
        if self._hub is None and (self._renewer is None or not self._renewer.is_alive()):
            self._renewer = threading.Thread(target=self._renew_forever, name="rocketq-leases", daemon=True)
            self._renewer.start()

    def _renew_forever(self) -> None:
        every = self.options.lease / 3
        while self._hub is None and not self._closed:
            time.sleep(every)
            if self._hub is None and self.channels:
                self.upkeep()
                self.engine.turn(0.05)  # for the receipts, when nobody else reads

    def close_channel(self, channel: channels.Channel) -> None:
        self._noticed.discard(channel)
        self._alive.discard(channel)
        super().close_channel(channel)

    # what channels need of the cluster

    def address_of(self, broker: str, topic: str | None = None) -> str | None:
        """The address of a broker's master; with `topic` the NameServers are asked where it is not known."""
        address = self.producer.routes.master(broker)
        if address is None and topic is not None:
            try:
                self.producer.queues(topic)
            except RocketQError as error:
                log.info("broker %s: %s", broker, error)
            address = self.producer.routes.master(broker)
        return address

    def lost(self, topic: str) -> None:
        """A broker of a topic does not answer: its address may have changed."""
        self.producer.routes.mark_stale(topic)

    def ask(self, address: str, code: int, header: Header, timeout: float = 5.0) -> Command:
        """A request and its answer. Raises RemotingError."""
        return self._remoting.call(address, code, header, timeout=timeout)

    def publish(self, message: Message) -> None:
        """Send a message. Raises RemotingError, BrokerError."""
        self.producer.send(message)

    def has_topic(self, topic: str) -> bool:
        """Whether a topic exists; believed for a while."""
        known = self._topics.get(topic)
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        try:
            self.admin.route(topic)
        except RouteNotFound:
            self._topics[topic] = now + _BELIEVE_MISSING, False
            return False
        self._topics[topic] = now + _BELIEVE, True
        return True

    def has_priorities(self, topic: str) -> bool:
        """Whether a topic was declared with priorities."""
        found = self._priorities.get(topic)
        if found is None:
            queues = self.producer.queues(topic)
            found = self._priorities[topic] = any(queue.queue_id == PRIORITIES - 1 for queue in queues)
        return found

    def create_topic(self, topic: str, queues: int, priorities: bool) -> None:
        """Create a topic unless it exists, and return when it can be sent to."""
        if self.has_topic(topic):
            return
        attributes = {"message.type": "PRIORITY"} if priorities else {}
        config = TopicConfig(topic, queues, queues, attributes=attributes)
        self.admin.create_topic(config)
        self._topics.pop(topic, None)
        deadline = time.monotonic() + _CREATED
        while not self.has_topic(topic):
            if time.monotonic() > deadline:
                raise RouteNotFound(f"topic {topic} was created, but no NameServer of {self.namesrv} knows it")
            time.sleep(0.02)
            self._topics.pop(topic, None)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with its messages, and what its group knew of it."""
        if self.has_topic(topic):
            self.admin.delete_group(topic)
            self.admin.delete_topic(topic)
        self._topics.pop(topic, None)
        self._priorities.pop(topic, None)
        self.producer.routes.forget(topic)

    def max_offset(self, queue: MessageQueue) -> int:
        """The offset behind a queue's last message."""
        address = self.address_of(queue.broker_name)
        if address is None:
            raise RouteNotFound(f"broker {queue.broker_name} has no master just now (topic {queue.topic})")
        header = GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.queue_id, bname=queue.broker_name)
        answer = self.ask(address, RequestCode.GET_MAX_OFFSET, header)
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
        return answer.header(GetMaxOffsetResponse).offset

    def _retry_topics(self, topic: str) -> list[str]:
        """Where POP puts messages of a queue whose lease ended."""
        return [name for name in (f"%RETRY%{topic}_{topic}", f"%RETRY%{topic}+{topic}") if self.has_topic(name)]

    def backlog(self, topic: str) -> int:
        """Messages of a work queue that nobody has been given."""
        if not self.has_topic(topic):
            return 0
        total = 0
        for name in (topic, *self._retry_topics(topic)):
            ends = self.admin.topic_status(name)
            done = self.admin.group_progress(topic, name)
            total += sum(
                end.max_offset - (done[queue].consumer_offset if queue in done else end.min_offset)
                for queue, end in ends.items()
            )
        return total

    def skip_backlog(self, topic: str) -> None:
        """Have a work queue's group go on behind everything that is there."""
        for name in (topic, *self._retry_topics(topic)):
            for queue, end in self.admin.topic_status(name).items():
                address = self.address_of(queue.broker_name)
                if address is None:
                    raise RouteNotFound(f"broker {queue.broker_name} has no master just now (topic {name})")
                header = UpdateConsumerOffsetHeader(
                    consumer_group=topic,
                    topic=name,
                    queue_id=queue.queue_id,
                    commit_offset=end.max_offset,
                    bname=queue.broker_name,
                )
                answer = self.ask(address, RequestCode.UPDATE_CONSUMER_OFFSET, header)
                if answer.code != ResponseCode.SUCCESS:
                    raise BrokerError(answer.code, answer.remark, address)


def parse(client: Any) -> tuple[str, str, bool]:
    """NameServers (`host:port;host:port`), virtual host, and whether TLS is wanted. Raises ConfigError."""
    text = client.hostname or "localhost"
    host, tls = client.virtual_host or "/", False
    if "://" in text:
        parts = urlsplit(text)
        tls = parts.scheme == "rocketqs" or parse_qs(parts.query).get("ssl", ["false"])[0].lower() == "true"
        if "@" in parts.netloc:
            raise ConfigError("rocketq: user names and passwords in the broker's URL are not supported")
        host = unquote(parts.path) or host
        text = parts.netloc or "localhost"
    elif client.port:
        text = f"{text}:{client.port}"
    others = [alt for alt in client.alt if isinstance(alt, str) and "://" not in alt]
    servers = []
    for server in [*text.split(","), *others]:
        server = server.strip()
        if server and ":" not in server:
            server = f"{server}:{DEFAULT_PORT}"
        if server and server not in servers:
            servers.append(server)
    return ";".join(servers), host, tls
