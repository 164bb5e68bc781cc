"""What push and pull consumers have in common: group, subscriptions, their share of the queues, where to begin."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from rocketq.client.instance import ClientInstance, Member
from rocketq.client.queue_calls import QueueCalls
from rocketq.client.troubles import Troubles
from rocketq.errors import BrokerError, ConfigError, InvalidMessage, RemotingError, RouteNotFound
from rocketq.filters import SQL92, TAG, Sql, parse_codes, parse_tags
from rocketq.message import MessageQueue
from rocketq.names import RETRY_PREFIX, check_group, check_topic
from rocketq.rebalance import Strategy
from rocketq.remoting.bodies import CheckClientBody, ConsumerData, ConsumerList, SubscriptionData
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.headers import GetConsumerListByGroupHeader

log = logging.getLogger("rocketq.client")

CLUSTERING = "CLUSTERING"
BROADCASTING = "BROADCASTING"

_FROM_WHERE = {"LAST": "CONSUME_FROM_LAST_OFFSET", "FIRST": "CONSUME_FROM_FIRST_OFFSET"}


def now_ms() -> int:
    return int(time.time() * 1000)


@dataclass
class Subscription:
    """What is wanted of a topic. `version` is what heartbeats say, `told_version` what all brokers know by now.

    `kind`: TAG or SQL92.
    """

    expression: str
    kind: str
    version: int
    told_version: int

    @property
    def tags(self) -> frozenset[str] | None:
        """The tags that are wanted; None: any, or others decide."""
        return parse_tags(self.expression) if self.kind == TAG else None


class Membership:
    """A consumer's place in its group. Raises InvalidMessage or ConfigError for bad settings."""

    def __init__(
        self,
        group: str,
        instance: ClientInstance,
        *,
        model: str,
        from_where: str | int,
        strategy: Strategy,
        consume_type: str,
    ) -> None:
        wrong = check_group(group)
        if wrong or group == "DEFAULT_CONSUMER":
            raise InvalidMessage(f"consumer group {group!r}: {wrong or 'the name is reserved, choose your own'}")
        if model not in (CLUSTERING, BROADCASTING):
            raise ConfigError(f"group {group}: model {model!r} is neither CLUSTERING nor BROADCASTING")
        if isinstance(from_where, str) and from_where not in _FROM_WHERE:
            raise ConfigError(f"group {group}: from_where {from_where!r} is not FIRST, LAST or a time in ms")
        self.group = group
        self.instance = instance
        self.calls = QueueCalls(instance, group)
        self.model = model
        self.from_where = from_where
        self.strategy = strategy
        self.consume_type = consume_type
        self.subscriptions: dict[str, Subscription] = {}
        self._troubles = Troubles()

    def subscribe(self, topic: str, expression: str | Sql) -> None:
        """Raises InvalidMessage for an illegal topic or tag expression; SQL92 is for brokers to judge (`check`)."""
        wrong = check_topic(topic)
        if wrong:
            raise InvalidMessage(wrong)
        version = now_ms()
        if isinstance(expression, Sql):
            self.subscriptions[topic] = Subscription(expression.expression, SQL92, version, version)
            return
        expression = expression.strip() or "*"
        if expression != "*" and parse_tags(expression) is None:
            raise InvalidMessage(f"group {self.group}: {expression!r} is not a tag expression (* or A || B)")
        self.subscriptions[topic] = Subscription(expression, TAG, version, version)

    async def join(self, member: Member) -> None:
        """Connect, look the topics up, and have the instance speak for `member`. Undone when it raises.

        Raises ConnectFailed when no NameServer answers, BrokerError when a broker cannot filter by a `Sql` expression,
        ConfigError when this client is in the group already. A topic that does not exist yet may come.
        """
        await self.instance.acquire()
        try:
            for topic in list(self.subscriptions):
                try:
                    await self.instance.topic(topic)
                except RouteNotFound:
                    log.warning("group %s: topic %s does not exist yet, waiting for it", self.group, topic)
            await self.check()
            self.instance.add_member(member)
        except BaseException:
            await self.instance.release()
            raise

    async def check(self) -> None:
        """Ask a broker of each topic that is filtered by SQL92 whether it can do that, as Java's client does.

        Raises BrokerError when it cannot, and for an expression that it cannot read.
        """
        for data in [data for data in self.subscription_data() if data.expression_type == SQL92]:
            address = self.instance.routes.some_broker(data.topic, self.instance.rng)
            if address is None:
                continue  # the topic does not exist yet
            try:
                answer = await self.instance.remoting.call(
                    address,
                    RequestCode.CHECK_CLIENT_CONFIG,
                    body=CheckClientBody(data).encode(),
                    timeout=self.instance.timeout,
                )
            except RemotingError as error:  # pulls will say it again, and wait for the broker
                log.warning("group %s: broker %s was not asked for its filters: %s", self.group, address, error)
                continue
            if answer.code != ResponseCode.SUCCESS:
                raise BrokerError(answer.code, answer.remark, address)

    def consumer_data(self) -> ConsumerData:
        """The group's part of a heartbeat."""
        where = self.from_where
        return ConsumerData(
            group_name=self.group,
            consume_type=self.consume_type,
            message_model=self.model,
            consume_from_where="CONSUME_FROM_TIMESTAMP" if isinstance(where, int) else _FROM_WHERE[where],
            subscription_data_set=self.subscription_data(),
        )

    def subscription_data(self) -> list[SubscriptionData]:
        data = []
        for topic, subscription in self.subscriptions.items():
            tags = subscription.expression if subscription.kind == TAG else None
            data.append(
                SubscriptionData(
                    topic=topic,
                    sub_string=subscription.expression,
                    tags_set=sorted(parse_tags(tags) or ()),
                    code_set=sorted(parse_codes(tags) or ()),
                    sub_version=subscription.version,
                    expression_type=subscription.kind,
                )
            )
        return data

    async def announce(self, topics: set[str]) -> None:
        """Tells all brokers of the topics' new assignment; until then pulls state the version that they know."""
        version = now_ms()
        for topic in topics:
            self.subscriptions[topic].version = max(version, self.subscriptions[topic].version + 1)
        await self.instance.heartbeat()
        for topic in topics:
            self.subscriptions[topic].told_version = self.subscriptions[topic].version

    async def share(self, topic: str) -> list[MessageQueue] | None:
        """The queues that are ours by now; None when that cannot be known at the moment."""
        try:
            known = await self.instance.topic(topic)
        except (RouteNotFound, RemotingError, BrokerError) as error:
            log.debug("group %s: no route of topic %s yet: %s", self.group, topic, error)
            return None
        if self.model == BROADCASTING:
            return list(known.read_queues)
        members = await self.members(topic)
        if members is None:
            return None
        return self.strategy(self.instance.client_id, members, known.read_queues)

    async def members(self, topic: str) -> list[str] | None:
        """Client ids of the group, sorted and ours among them; None when no broker says."""
        address = self.instance.routes.some_broker(topic, self.instance.rng)
        if address is None:
            return None
        header = GetConsumerListByGroupHeader(consumer_group=self.group)
        try:
            answer = await self.instance.remoting.call(
                address, RequestCode.GET_CONSUMER_LIST_BY_GROUP, header, timeout=self.instance.timeout
            )
        except RemotingError as error:
            level = self._troubles.level(address, logging.INFO)
            log.log(level, "group %s: broker %s does not say who its members are: %s", self.group, address, error)
            return None
        members: list[str] = []
        if answer.code == ResponseCode.SUCCESS:
            members = sorted(ConsumerList.decode(bytes(answer.body)).client_ids)
        if self.instance.client_id not in members:
            # It has just started, and what it says of the others is not all either: no reason to let queues go.
            level = self._troubles.level(address, logging.INFO)
            log.log(level, "group %s: broker %s does not know us: %s", self.group, address, answer.remark)
            self.instance.heartbeat_soon()
            return None
        self._troubles.over(address)
        return members

    def losses(self, queue: MessageQueue) -> int:
        """Changes whenever the queue's broker may have given it to another member without our knowing."""
        return self.instance.losses[self.instance.routes.master(queue.broker_name) or ""]

    async def first_offset(self, queue: MessageQueue) -> int:
        """Where a group without a stored offset begins in the queue. Raises RocketQError."""
        retry = queue.topic.startswith(RETRY_PREFIX)
        if self.from_where == "FIRST" or (self.from_where == "LAST" and retry):
            return 0
        if self.from_where == "LAST" or retry:
            return await self.calls.max_offset(queue)
        assert isinstance(self.from_where, int)
        return await self.calls.offset_by_time(queue, self.from_where)
