"""What the channels of one connection need of the cluster, asked and answered at once: topics, groups, offsets.

A work queue is a topic and the group that consumes it, of the same name; next to it may be others that the same
group consumes, see :func:`~rocketq_kombu.names.sources_of`.
"""

from __future__ import annotations

import logging
import time

from rocketq.client.admin import Admin
from rocketq.client.sync_producer import Producer
from rocketq.errors import BrokerError, RemotingError, RocketQError, RouteNotFound
from rocketq.message import MessageQueue
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import SubscriptionGroupConfig, TopicConfig, TopicRoute
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.headers import GetMaxOffsetHeader, GetMaxOffsetResponse, UpdateConsumerOffsetHeader
from rocketq.remoting.tls import TlsConfig
from rocketq_kombu.names import sources_of

log = logging.getLogger("rocketq.kombu")

#: Seconds that a new topic may take to be known to the NameServers.
_CREATED = 5.0
#: Seconds for which is believed that a topic exists or does not.
_BELIEVE = 10.0
_BELIEVE_MISSING = 1.0
#: Producer group of all transports.
GROUP = "rocketq-kombu"
#: Queues on each broker of a topic with priorities, one for each of 0 to 9.
PRIORITIES = 10


class Cluster:
    """The cluster behind NameServers (`host:port;host:port`).

    Methods raise RemotingError, BrokerError, RouteNotFound.
    """

    def __init__(
        self, namesrv: str, tls: TlsConfig | None, access_key: str | None, secret_key: str | None
    ) -> None:
        self.namesrv = namesrv
        self.admin = Admin(namesrv, tls=tls, access_key=access_key, secret_key=secret_key)
        self.producer = Producer(GROUP, namesrv, tls=tls, access_key=access_key, secret_key=secret_key)
        self._remoting = BlockingClient(tls=tls, credentials=Credentials.of(access_key, secret_key))
        self._topics: dict[str, tuple[float, bool]] = {}
        self._priorities: dict[str, bool] = {}

    def close(self) -> None:
        """Close the connections."""
        self.producer.close()
        self.admin.close()
        self._remoting.close()

    def learned(self, topic: str, route: TopicRoute | None) -> bool:
        """A NameServer told what it knows of a topic; True when it exists."""
        self._topics[topic] = time.monotonic() + _BELIEVE, route is not None
        if route is not None:
            self.producer.routes.learn(topic, route, time.monotonic())
        return route is not None

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

    def ask(
        self, address: str, code: int, header: Header | dict[str, str], body: bytes = b"", timeout: float = 5.0
    ) -> Command:
        """A request and its answer."""
        return self._remoting.call(address, code, header, body, timeout=timeout)

    def has_topic(self, topic: str, *, fresh: bool = False) -> bool:
        """Whether a topic exists; believed for a while, and as long as no NameServer answers, unless it is to be
        `fresh`."""
        known = self._topics.get(topic)
        now = time.monotonic()
        if known is not None and now < known[0] and not fresh:
            return known[1]
        try:
            self.admin.route(topic)
        except RouteNotFound:
            self._topics[topic] = now + _BELIEVE_MISSING, False
            return False
        except RemotingError:
            if known is None or not known[1] or fresh:
                raise
        self._topics[topic] = now + _BELIEVE, True
        return True

    def has_priorities(self, topic: str) -> bool:
        """Whether a topic was declared with priorities."""
        found = self._priorities.get(topic)
        if found is None:
            queues = self.producer.queues(topic)
            found = self._priorities[topic] = any(queue.queue_id == PRIORITIES - 1 for queue in queues)
        return found

    def create_topic(self, topic: str, queues: int, *, priorities: bool = False, group: bool = False) -> None:
        """Create a topic, or with `group` a work queue's topic and group, unless it exists; it can be sent to then."""
        if self.has_topic(topic, fresh=group):
            return
        attributes = {"message.type": "PRIORITY"} if priorities else {}
        config = TopicConfig(topic, queues, queues, attributes=attributes)
        if group:
            self.admin.create_group(SubscriptionGroupConfig(group_name=topic))
        self.admin.create_topic(config)
        deadline = time.monotonic() + _CREATED
        while not self.has_topic(topic, fresh=True):
            if time.monotonic() > deadline:
                raise RouteNotFound(f"topic {topic} was created, but no NameServer of {self.namesrv} knows it")
            time.sleep(0.02)

    def delete_queue(self, topic: str) -> None:
        """Delete a work queue's topics with their messages, and what its group knew of them."""
        if self.has_topic(topic):
            self.admin.delete_group(topic)
        for name in self._parts(topic):
            self.admin.delete_topic(name)
            self._topics.pop(name, None)
            self.producer.routes.forget(name)
        self._priorities.pop(topic, None)

    def max_offset(self, queue: MessageQueue) -> int:
        """The offset behind a queue's last message."""
        address = self.master(queue.broker_name, queue.topic)
        header = GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.queue_id, bname=queue.broker_name)
        answer = self.ask(address, RequestCode.GET_MAX_OFFSET, header)
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
        return answer.header(GetMaxOffsetResponse).offset

    def _parts(self, topic: str) -> list[str]:
        """The topics of a work queue: those it is consumed from, and where POP puts messages whose lease ended."""
        names = (*sources_of(topic), f"%RETRY%{topic}_{topic}", f"%RETRY%{topic}+{topic}")
        return [name for name in names if self.has_topic(name)]

    def backlog(self, topic: str) -> int:
        """Messages of a work queue that nobody has been given."""
        total = 0
        for name in self._parts(topic):
            ends = self.admin.topic_status(name)
            done = self.admin.group_progress(topic, name)
            total += sum(
                end.max_offset - (done[queue].consumer_offset if queue in done else end.min_offset)
                for queue, end in ends.items()
            )
        return total

    def skip_backlog(self, topic: str) -> None:
        """Have a work queue's group go on behind everything that is there."""
        for name in self._parts(topic):
            for queue, end in self.admin.topic_status(name).items():
                address = self.master(queue.broker_name, queue.topic)
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

    def master(self, broker: str, topic: str) -> str:
        """The address of a broker's master. Raises RouteNotFound when there is none."""
        address = self.address_of(broker, topic)
        if address is None:
            raise RouteNotFound(f"broker {broker} has no master just now (topic {topic})")
        return address
