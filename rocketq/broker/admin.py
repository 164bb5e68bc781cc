"""What operators ask for about topics and groups (the codes are in :meth:`Admin.handlers`)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rocketq import javajson, names
from rocketq.broker.clients import Clients, Member
from rocketq.broker.groups import Groups
from rocketq.broker.offsets import Offsets
from rocketq.broker.refusal import Refused
from rocketq.broker.saving import Saver
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import Connection as ClientConnection
from rocketq.remoting.bodies import (
    ConsumerConnection,
    GroupList,
    ProducerConnection,
    SubscriptionGroupConfig,
    TopicConfig,
    TopicList,
    TopicOffset,
    TopicStats,
)
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    CreateTopicHeader,
    DeleteSubscriptionGroupHeader,
    DeleteTopicHeader,
    GetAllSubscriptionGroupHeader,
    GetAllSubscriptionGroupResponse,
    GetAllTopicConfigHeader,
    GetAllTopicConfigResponse,
    GetConsumerConnectionListHeader,
    GetProducerConnectionListHeader,
    GetSubscriptionGroupConfigHeader,
    GetTopicConfigHeader,
    GetTopicStatsInfoHeader,
    QueryConsumeQueueHeader,
    QuerySubscriptionByConsumerHeader,
    QueryTopicConsumeByWhoHeader,
    UpdateGroupForbiddenHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

NOT_SET = "not set any response code"
#: Attributes of a topic: what may be written; None: any integer.
ATTRIBUTES: dict[str, tuple[str, ...] | None] = {
    "queue.type": ("BatchCQ", "SimpleCQ"),
    "cleanup.policy": ("COMPACTION", "DELETE"),
    "message.type": ("UNSPECIFIED", "MIXED", "TRANSACTION", "PRIORITY", "FIFO", "DELAY", "NORMAL"),
    "reserve.time": None,
}
UNCHANGEABLE = frozenset({"queue.type", "cleanup.policy"})


class Admin:
    """Serves operators. `booted` is when the broker started, ms since the epoch; `delete_queues` removes a topic's.

    `announced` waits until NameServers know of changed topics: who creates a topic may send to it at once.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        offsets: Offsets,
        saver: Saver,
        statistics: Statistics,
        delete_queues: Callable[[str], Awaitable[None]],
        announced: Callable[[], Awaitable[None]],
        booted: int,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._offsets = offsets
        self._saver = saver
        self._statistics = statistics
        self._delete_queues = delete_queues
        self._announced = announced
        self._booted = booted

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.UPDATE_AND_CREATE_TOPIC: self._announcing(self._create_topic),
            RequestCode.UPDATE_AND_CREATE_TOPIC_LIST: self._announcing(self._create_topics),
            RequestCode.GET_ALL_TOPIC_CONFIG: self._all_topics,
            RequestCode.GET_TOPIC_CONFIG: self._get_topic,
            RequestCode.DELETE_TOPIC_IN_BROKER: self._delete_topic,
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: self._create_group,
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: self._create_groups,
            RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: self._all_groups,
            RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: self._get_group,
            RequestCode.DELETE_SUBSCRIPTIONGROUP: self._delete_group,
            RequestCode.GET_TOPIC_STATS_INFO: self._topic_stats,
            RequestCode.GET_CONSUMER_CONNECTION_LIST: self._consumers,
            RequestCode.GET_PRODUCER_CONNECTION_LIST: self._producers,
            RequestCode.GET_ALL_PRODUCER_INFO: self._all_producers,
            RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER: self._subscription,
            RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN: self._forbid,
            RequestCode.QUERY_TOPIC_CONSUME_BY_WHO: self._groups_of_topic,
            RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: self._system_topics,
            RequestCode.QUERY_CONSUME_QUEUE: self._consume_queue,
        }

    def _announcing(self, change: Callable[[Connection, Command], Awaitable[Reply]]) -> Handler:
        """`change`, answered when NameServers know of it."""

        async def announced(connection: Connection, request: Command) -> Reply:
            reply = await change(connection, request)
            await self._announced()
            return reply

        return announced

    # topics

    def _check_topic(self, topic: str) -> None:
        wrong = names.check_topic(topic)
        if wrong is not None:
            raise Refused(ResponseCode.INVALID_PARAMETER, wrong)
        if self._config.validate_system_topic_when_update_topic and self._topics.is_system(topic):
            remark = f"The topic[{topic}] is conflict with system topic."
            raise Refused(ResponseCode.INVALID_PARAMETER, remark)

    @staticmethod
    def _check_queues(of: str, *numbers: int) -> None:
        for number in numbers:
            if not 0 <= number <= names.MAX_QUEUES:
                remark = f"{of} is to have {number} queues: it can have 0 to {names.MAX_QUEUES}"
                raise Refused(ResponseCode.INVALID_PARAMETER, remark)

    def _attributes(self, topic: str, changes: dict[str, str]) -> dict[str, str]:
        """The attributes of `topic` after `changes` (``+key`` -> value, ``-key`` -> anything)."""
        known = self._topics.get(topic)
        attributes = dict(known.attributes) if known else {}
        for sign_and_key, value in changes.items():
            sign, key = sign_and_key[:1], sign_and_key[1:]
            if sign not in ("+", "-") or not key:
                raise Refused(ResponseCode.SYSTEM_ERROR, f"add/alter attribute format is wrong: {sign_and_key}")
            if key not in ATTRIBUTES:
                raise Refused(ResponseCode.SYSTEM_ERROR, f"unsupported key: {key}")
            if known is not None and key in UNCHANGEABLE:
                remark = f"attempt to update an unchangeable attribute. key: {key}"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark)
            if sign == "-":
                attributes.pop(key, None)
                continue
            allowed = ATTRIBUTES[key]
            if allowed is None and not value.lstrip("-").isdecimal():
                raise Refused(ResponseCode.SYSTEM_ERROR, f"value of {key} is not an integer: {value}")
            if allowed is not None and value not in allowed:
                remark = f"value is not in set: [{', '.join(allowed)}]"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark)
            if value == "MIXED":
                raise Refused(ResponseCode.INVALID_PARAMETER, "MIXED message type is not supported.")
            if value in ("BatchCQ", "COMPACTION"):
                remark = f"{key}={value} is not supported by this broker"
                raise Refused(ResponseCode.INVALID_PARAMETER, remark)
            attributes[key] = value
        return attributes

    async def _create_topic(self, connection: Connection, request: Command) -> Reply:
        header = request.header(CreateTopicHeader)
        changes = {}
        for part in (header.attributes or "").split(","):
            if part:
                key, _, value = part.partition("=")
                changes[key] = value
        try:
            self._check_topic(header.topic)
            self._check_queues(f"topic {header.topic}", header.read_queue_nums, header.write_queue_nums)
            attributes = self._attributes(header.topic, changes)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        topic = TopicConfig(
            topic_name=header.topic,
            read_queue_nums=header.read_queue_nums,
            write_queue_nums=header.write_queue_nums,
            perm=header.perm,
            topic_filter_type=header.topic_filter_type or "SINGLE_TAG",
            topic_sys_flag=header.topic_sys_flag or 0,
            order=header.order,
            attributes=attributes,
        )
        self._topics.update(topic)
        await self._saver.save_soon(self._topics)
        log.info("topic %s created or changed by %s", header.topic, connection.peer)
        return encode_response(request, ResponseCode.SUCCESS, NOT_SET)

    async def _create_topics(self, connection: Connection, request: Command) -> Reply:
        body = _json_object(request)
        topics = [TopicConfig.from_json(each) for each in body.get("topicConfigList") or []]
        try:
            for topic in topics:
                self._check_topic(topic.topic_name)
                self._check_queues(f"topic {topic.topic_name}", topic.read_queue_nums, topic.write_queue_nums)
                topic.attributes = self._attributes(topic.topic_name, topic.attributes)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        self._topics.update_all(topics)
        await self._saver.save_soon(self._topics)
        return encode_response(request, ResponseCode.SUCCESS, NOT_SET)

    def _all_topics(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetAllTopicConfigHeader)
        table = self._topics.table
        version = self._topics.data_version.to_json()
        page = _page(sorted(table), header.topic_seq, header.max_topic_num, header.data_version, version)
        body = {
            "dataVersion": version,
            "mappingDataVersion": {"counter": 0, "stateVersion": 0, "timestamp": self._booted},
            "topicConfigTable": {name: table[name].to_json() for name in page},
            "topicQueueMappingDetailMap": {},
            "topicQueueMappingInfoMap": {},
        }
        ext = GetAllTopicConfigResponse(total_topic_num=len(table))
        return encode_response(request, ResponseCode.SUCCESS, header=ext, body=javajson.dumps(body))

    def _get_topic(self, connection: Connection, request: Command) -> Reply:
        name = request.header(GetTopicConfigHeader).topic
        topic = self._topics.get(name)
        if topic is None:
            remark = f"No topic in this broker. topic: {name}"
            return encode_response(request, ResponseCode.TOPIC_NOT_EXIST, remark)
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(topic.to_json()))

    async def _delete_topic(self, connection: Connection, request: Command) -> Reply:
        name = request.header(DeleteTopicHeader).topic
        if not name.strip():
            return encode_response(request, ResponseCode.INVALID_PARAMETER, "The specified topic is blank.")
        if self._topics.is_system(name):
            remark = f"The topic[{name}] is conflict with system topic."
            return encode_response(request, ResponseCode.INVALID_PARAMETER, remark)
        self._topics.delete(name)
        self._offsets.remove_topic(name)
        await self._delete_queues(name)
        self._statistics.forget_topic(name)
        await self._saver.save_soon(self._topics)
        await self._saver.save_soon(self._offsets)
        log.info("topic %s deleted by %s", name, connection.peer)
        return encode_response(request, ResponseCode.SUCCESS)

    def _topic_stats(self, connection: Connection, request: Command) -> Reply:
        name = request.header(GetTopicStatsInfoHeader).topic
        topic = self._topics.get(name)
        if topic is None:
            return encode_response(request, ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist")
        store = self._store
        table = {}
        for queue_id in range(max(topic.read_queue_nums, topic.write_queue_nums)):
            low, high = store.min_offset(name, queue_id), store.max_offset(name, queue_id)
            updated = store.store_time(name, queue_id, high - 1) if high > 0 else 0
            table[MessageQueue(name, self._config.broker_name, queue_id)] = TopicOffset(low, high, updated)
        traffic = self._statistics.topics.get(name)
        rate = traffic.window("statsMinute", time.monotonic())[1] if traffic else 0.0
        return encode_response(request, ResponseCode.SUCCESS, body=TopicStats(table, rate).encode())

    def _groups_of_topic(self, connection: Connection, request: Command) -> Reply:
        topic = request.header(QueryTopicConsumeByWhoHeader).topic
        found = {group.name for group in self._clients.consumers.values() if topic in group.subscriptions}
        found.update(self._offsets.groups_of(topic))
        return encode_response(request, ResponseCode.SUCCESS, body=GroupList(sorted(found)).encode())

    def _system_topics(self, connection: Connection, request: Command) -> Reply:
        return encode_response(request, ResponseCode.SUCCESS, body=TopicList(sorted(self._topics.system)).encode())

    def _consume_queue(self, connection: Connection, request: Command) -> Reply:
        header = request.header(QueryConsumeQueueHeader)
        topic, queue_id = header.topic or "", header.queue_id or 0
        store = self._store
        low, high = store.min_offset(topic, queue_id), store.max_offset(topic, queue_id)
        index, count = header.index or 0, header.count or 0
        if high == 0 or not low <= index < high:
            remark = f"Index {index} of {queue_id}@{topic} is not exist!"
            return encode_response(request, ResponseCode.SUCCESS, remark)
        body: dict[str, object] = {"maxQueueIndex": high, "minQueueIndex": low}
        codes: list[int] | None = None
        if header.consumer_group:
            body["filterData"] = "null"
            subscription = self._clients.subscription(header.consumer_group, topic)
            if subscription is not None:
                body["subscriptionData"] = subscription.to_json()
                codes = list(subscription.code_set)
        entries = []
        for offset in range(index, min(high, index + count)):
            entry = store.consume_entry(topic, queue_id, offset)
            if entry is not None:
                passes = bool(header.consumer_group) and (not codes or entry[2] in codes)
                entries.append(
                    {"eval": passes, "physicOffset": entry[0], "physicSize": entry[1], "tagsCode": entry[2]}
                )
        body["queueData"] = entries
        return encode_response(request, ResponseCode.SUCCESS, NOT_SET, body=javajson.dumps(body))

    # groups

    def _group(self, value: dict[str, Any]) -> SubscriptionGroupConfig:
        group = SubscriptionGroupConfig.from_json(value)
        wrong = names.check_group(group.group_name)
        if wrong is not None:
            raise Refused(ResponseCode.INVALID_PARAMETER, wrong)
        self._check_queues(f"the retry topic of group {group.group_name}", group.retry_queue_nums)
        known = self._groups.get(group.group_name, auto_create=False)
        attributes = dict(known.attributes) if known else {}
        for sign_and_key, text in group.attributes.items():
            sign, key = sign_and_key[:1], sign_and_key[1:]
            if sign == "-":
                attributes.pop(key, None)
            elif sign == "+" and key == "priority.factor" and text.isdecimal() and int(text) <= 100:
                attributes[key] = text
            else:
                remark = f"unsupported attribute of group {group.group_name}: {sign_and_key}={text}"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        group.attributes = attributes
        return group

    async def _create_group(self, connection: Connection, request: Command) -> Reply:
        return await self._update_groups(request, [_json_object(request)])

    async def _create_groups(self, connection: Connection, request: Command) -> Reply:
        return await self._update_groups(request, _json_object(request).get("groupConfigList") or [])

    async def _update_groups(self, request: Command, values: list[dict[str, Any]]) -> Reply:
        try:
            groups = [self._group(value) for value in values]
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        self._groups.update(*groups)
        await self._saver.save_soon(self._groups)
        return encode_response(request, ResponseCode.SUCCESS)

    def _all_groups(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetAllSubscriptionGroupHeader)
        table = self._groups.table
        version = self._groups.data_version.to_json()
        page = _page(sorted(table), header.group_seq, header.max_group_num, header.data_version, version)
        body = {
            "dataVersion": version,
            "forbiddenTable": {g: bits for g, bits in self._groups.forbidden.items() if g in set(page)},
            "subscriptionGroupTable": {name: table[name].to_json() for name in page},
        }
        ext = GetAllSubscriptionGroupResponse(total_group_num=len(table))
        return encode_response(request, ResponseCode.SUCCESS, header=ext, body=javajson.dumps(body))

    def _get_group(self, connection: Connection, request: Command) -> Reply:
        group = self._groups.get(request.header(GetSubscriptionGroupConfigHeader).group)
        if group is None:
            return encode_response(request, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "No group in this broker")
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(group.to_json()))

    async def _delete_group(self, connection: Connection, request: Command) -> Reply:
        header = request.header(DeleteSubscriptionGroupHeader)
        self._groups.delete(header.group_name)
        if header.clean_offset:
            self._offsets.remove_group(header.group_name)
        await self._saver.save_soon(self._groups)
        await self._saver.save_soon(self._offsets)
        log.info("group %s deleted by %s", header.group_name, connection.peer)
        return encode_response(request, ResponseCode.SUCCESS)

    def _consumers(self, connection: Connection, request: Command) -> Reply:
        name = request.header(GetConsumerConnectionListHeader).consumer_group
        group = self._clients.consumer(name)
        if group is None:
            remark = f"the consumer group[{name}] not online"
            return encode_response(request, ResponseCode.CONSUMER_NOT_ONLINE, remark)
        body = ConsumerConnection(
            [_client(member) for member in group.members.values()],
            group.subscriptions,
            group.consume_type,
            group.message_model,
            group.consume_from_where,
        )
        return encode_response(request, ResponseCode.SUCCESS, body=body.encode())

    def _producers(self, connection: Connection, request: Command) -> Reply:
        name = request.header(GetProducerConnectionListHeader).producer_group
        members = self._clients.producers.get(name)
        if not members:
            remark = f"the producer group[{name}] not exist"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        body = ProducerConnection([_client(member) for member in members.values()])
        return encode_response(request, ResponseCode.SUCCESS, body=body.encode())

    def _all_producers(self, connection: Connection, request: Command) -> Reply:
        # the broker's clock of clients never goes back; what is shown is the time of day
        now_ms, now = time.time() * 1000, time.monotonic()
        data = {
            group: [
                {
                    "clientId": member.client_id,
                    "language": member.language,
                    "lastUpdateTimestamp": int(now_ms - (now - member.last_seen) * 1000),
                    "remoteIP": f"/{member.connection.peer}",
                    "version": member.version,
                }
                for member in members.values()
            ]
            for group, members in sorted(self._clients.producers.items())
        }
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps({"data": data}))

    def _subscription(self, connection: Connection, request: Command) -> Reply:
        header = request.header(QuerySubscriptionByConsumerHeader)
        body: dict[str, Any] = {"group": header.group}
        subscription = self._clients.subscription(header.group, header.topic or "")
        if subscription is not None:
            body["subscriptionData"] = subscription.to_json()
        if header.topic is not None:
            body["topic"] = header.topic
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(body))

    async def _forbid(self, connection: Connection, request: Command) -> Reply:
        """Forbid a group to read a topic, or allow it again, or only say how it is."""
        header = request.header(UpdateGroupForbiddenHeader)
        group, topic = header.group, header.topic
        if header.readable is not None and header.readable != self._groups.may_read(group, topic):
            self._groups.forbid(group, topic, not header.readable)
            await self._saver.save_soon(self._groups)
            log.info("%s lets group %s read topic %s: %s", connection.peer, group, topic, header.readable)
        body = {"group": group, "readable": self._groups.may_read(group, topic), "topic": topic}
        return encode_response(request, ResponseCode.SUCCESS, "", body=javajson.dumps(body))


def _client(member: Member) -> ClientConnection:
    return ClientConnection(member.client_id, member.connection.peer, member.language, member.version)


def _json_object(request: Command) -> dict[str, Any]:
    """The body as a JSON object. Raises ValueError for anything else."""
    value = javajson.loads(request.body)
    if not isinstance(value, dict):
        raise ValueError("the request's body is not a JSON object")
    return value


def _page(
    all_names: list[str], first: int | None, count: int | None, known: str | None, version: dict[str, object]
) -> list[str]:
    """The names of one page; it begins at 0 unless the caller knows the current data version."""
    if not count or count < 0:
        return all_names
    start = 0
    if known and first:
        try:
            if json.loads(known) == version:
                start = max(0, first)
        except ValueError:
            pass  # a data version that cannot be read is not the current one
    return all_names[start : start + count]
