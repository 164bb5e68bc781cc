"""Who is connected: members of consumer groups and of producer groups (codes 34, 35, 38, 46; sends 40).

A client says who it is in its heartbeat, every 30 s. It is forgotten when it unregisters, when its connection
ends, or when nothing was heard of it for 120 s. Every change in a clustered group is told to all its members at
once, so that they divide the queues anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rocketq.broker.filtering import filter_for
from rocketq.broker.groups import Groups
from rocketq.broker.refusal import Refused
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import TooManyInFlight
from rocketq.filters import TAG, parse_tags
from rocketq.hashing import tags_code
from rocketq.names import retry_topic
from rocketq.remoting.bodies import CheckClientBody, ConsumerData, ConsumerList, HeartbeatData, SubscriptionData
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    GetConsumerListByGroupHeader,
    NotifyConsumerIdsChangedHeader,
    UnregisterClientHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply

log = logging.getLogger("rocketq.broker")

BROADCASTING = "BROADCASTING"


@dataclass(slots=True)
class Member:
    """One client of a group, on one connection. `last_seen` is in seconds of the broker's monotonic clock."""

    client_id: str
    connection: Connection
    language: str
    version: int
    last_seen: float


@dataclass(slots=True)
class ConsumerGroup:
    """A consumer group as its members' heartbeats describe it."""

    name: str
    consume_type: str
    message_model: str
    consume_from_where: str
    fingerprint: int = 0
    members: dict[Connection, Member] = field(default_factory=dict)
    subscriptions: dict[str, SubscriptionData] = field(default_factory=dict)

    @property
    def broadcasting(self) -> bool:
        return self.message_model == BROADCASTING

    def subscribe(self, wanted: Iterable[SubscriptionData]) -> bool:
        """Take over a heartbeat's subscriptions; True when a topic came or went."""
        topics = set()
        changed = False
        for subscription in wanted:
            topics.add(subscription.topic)
            known = self.subscriptions.get(subscription.topic)
            if known is None or subscription.sub_version > known.sub_version:
                self.subscriptions[subscription.topic] = subscription
            changed = changed or known is None
        for topic in [topic for topic in self.subscriptions if topic not in topics]:
            del self.subscriptions[topic]
            changed = True
        return changed


class Clients:
    """All connected clients. `clock` gives seconds that never go back."""

    def __init__(self, config: BrokerConfig, groups: Groups, topics: Topics, clock: Callable[[], float]) -> None:
        self._config = config
        self._groups = groups
        self._topics = topics
        self._clock = clock
        self.consumers: dict[str, ConsumerGroup] = {}
        self.producers: dict[str, dict[Connection, Member]] = {}
        #: subscriptions that came with pulls of consumers which never sent a heartbeat: (group, topic)
        self._pulled: dict[tuple[str, str], SubscriptionData] = {}

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.HEART_BEAT: self._heartbeat,
            RequestCode.UNREGISTER_CLIENT: self._unregister,
            RequestCode.GET_CONSUMER_LIST_BY_GROUP: self._consumer_list,
            RequestCode.CHECK_CLIENT_CONFIG: self._check_config,
        }

    def consumer(self, group: str) -> ConsumerGroup | None:
        """The group, while it has members."""
        return self.consumers.get(group)

    def subscription(self, group: str, topic: str) -> SubscriptionData | None:
        """What `group` wants of `topic`: by heartbeat, or else by its last pull that carried a subscription."""
        registered = self.consumers.get(group)
        found = registered.subscriptions.get(topic) if registered else None
        return found or self._pulled.get((group, topic))

    def producer_connection(self, client_id: str) -> Connection | None:
        """The connection over which a producer of this id was heard last."""
        found = [
            member
            for members in self.producers.values()
            for member in members.values()
            if member.client_id == client_id
        ]
        return max(found, key=lambda member: member.last_seen).connection if found else None

    def compensate(self, group: str, topic: str, expression: str, kind: str, version: int) -> None:
        """Note the subscription that a pull or pop carried. What a heartbeat said of the topic stays in force."""
        tags = sorted(parse_tags(expression) or ()) if kind == TAG else []
        self._pulled[group, topic] = SubscriptionData(
            topic=topic,
            sub_string=expression,
            tags_set=tags,
            code_set=[tags_code(tag) for tag in tags],
            sub_version=version,
            expression_type=kind,
        )

    def connection_lost(self, connection: Connection) -> None:
        """Forget everybody who was on this connection."""
        for group in [group for group in self.consumers.values() if connection in group.members]:
            self._leave(group, connection)
        for name in [name for name, members in self.producers.items() if connection in members]:
            self._leave_producers(name, connection)

    def expire(self) -> None:
        """Close the connections of clients that were silent for `channelExpiredTimeout`."""
        oldest = self._clock() - self._config.channel_expired_timeout / 1000
        silent = {
            member.connection: member
            for members in [*(group.members for group in self.consumers.values()), *self.producers.values()]
            for member in members.values()
            if member.last_seen < oldest
        }
        for connection, member in silent.items():
            log.warning("client %s at %s sent no heartbeat: closing it", member.client_id, connection.peer)
            self.connection_lost(connection)
            connection.abort()

    def _heartbeat(self, connection: Connection, request: Command) -> Reply:
        data = HeartbeatData.decode(request.body)
        changed = data.heartbeat_fingerprint == 0
        for consumer in data.consumer_data_set:
            changed = self._join(connection, request, data, consumer) or changed
        for producer in data.producer_data_set:
            members = self.producers.setdefault(producer.group_name, {})
            members[connection] = self._member(connection, request, data.client_id)
        ext = {"IS_SUPPORT_HEART_BEAT_V2": "true", "IS_SUB_CHANGE": "true" if changed else "false"}
        return encode_response(request, ResponseCode.SUCCESS, header=ext)

    def _member(self, connection: Connection, request: Command, client_id: str) -> Member:
        return Member(client_id, connection, str(request.language), request.version, self._clock())

    def _join(self, connection: Connection, request: Command, data: HeartbeatData, consumer: ConsumerData) -> bool:
        """Register one consumer of a heartbeat; True when its fingerprint is not the one that was known."""
        name = consumer.group_name
        config = self._groups.get(name)
        if config is None:
            log.warning(
                "group %s does not exist and may not be created: heartbeat of %s ignored", name, connection.peer
            )
            return False
        ordered = any(self._topics.is_ordered(wanted.topic) for wanted in consumer.subscription_data_set)
        self._topics.create_retry(retry_topic(name), config.retry_queue_nums, order=ordered)
        group = self.consumers.get(name)
        if group is None:
            group = self.consumers[name] = ConsumerGroup(
                name, consumer.consume_type, consumer.message_model, consumer.consume_from_where
            )
        other_fingerprint = group.fingerprint != data.heartbeat_fingerprint
        group.fingerprint = data.heartbeat_fingerprint
        group.consume_type = consumer.consume_type
        group.message_model = consumer.message_model
        group.consume_from_where = consumer.consume_from_where
        changed = connection not in group.members
        for old in [
            m for m in group.members.values() if m.client_id == data.client_id and m.connection != connection
        ]:
            del group.members[old.connection]
        group.members[connection] = self._member(connection, request, data.client_id)
        if not data.without_sub:
            changed = group.subscribe(consumer.subscription_data_set) or changed
        if changed:
            self._notify(group)
        return other_fingerprint

    def _leave(self, group: ConsumerGroup, connection: Connection) -> None:
        if group.members.pop(connection, None) is None:
            return
        if not group.members:
            del self.consumers[group.name]
        self._notify(group)

    def _leave_producers(self, name: str, connection: Connection) -> None:
        members = self.producers.get(name, {})
        members.pop(connection, None)
        if not members:
            self.producers.pop(name, None)

    def _notify(self, group: ConsumerGroup) -> None:
        config = self._groups.table.get(group.name)
        if group.broadcasting or not self._config.notify_consumer_ids_changed_enable:
            return
        if config is not None and not config.notify_consumer_ids_changed_enable:
            return
        header = NotifyConsumerIdsChangedHeader(consumer_group=group.name)
        for connection in group.members:
            try:
                connection.oneway(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, header)
            except TooManyInFlight as error:  # it looks for itself later; the others must not suffer
                log.info("a member of group %s was not told of a change: %s", group.name, error)

    def _unregister(self, connection: Connection, request: Command) -> Reply:
        header = request.header(UnregisterClientHeader)
        if header.producer_group:
            self._leave_producers(header.producer_group, connection)
        if header.consumer_group and header.consumer_group in self.consumers:
            self._leave(self.consumers[header.consumer_group], connection)
        return encode_response(request, ResponseCode.SUCCESS, header={})

    def _consumer_list(self, connection: Connection, request: Command) -> Reply:
        name = request.header(GetConsumerListByGroupHeader).consumer_group
        group = self.consumers.get(name)
        if group is None:
            remark = f"no consumer for this group, {name}"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark, {})
        ids = ConsumerList([member.client_id for member in group.members.values()])
        return encode_response(request, ResponseCode.SUCCESS, header={}, body=ids.encode())

    def _check_config(self, connection: Connection, request: Command) -> Reply:
        wanted = CheckClientBody.decode(request.body).subscription_data
        if wanted is not None:
            try:
                filter_for(wanted.sub_string, wanted.expression_type, sql=self._config.enable_property_filter)
            except Refused as refused:
                return encode_response(request, refused.code, refused.remark)
        return encode_response(request, ResponseCode.SUCCESS)
