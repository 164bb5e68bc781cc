"""Looking at what lies in queues without being a consumer: by offset, by time, by id and by key.

Works with any broker of the 4.x and 5.x lines. Nothing is ever committed for the group that reads here.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass

from rocketq.client.admin import MASTER, Admin
from rocketq.errors import BrokerError, InvalidMessage, RocketQError, RouteNotFound
from rocketq.filters import SQL92, TAG, parse_tags
from rocketq.message import MessageQueue, ReceivedMessage, decode_messages, parse_offset_message_id
from rocketq.remoting import headers
from rocketq.remoting.bodies import CheckClientBody, SubscriptionData
from rocketq.remoting.codes import Perm, PullFlag, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header

#: A group that every broker has from its first start.
GROUP = "TOOLS_CONSUMER"
_BATCH = 32
_MAX_BYTES = 4 * 1024 * 1024
#: How pulls end; all say where to go on.
_PULLED = (
    ResponseCode.SUCCESS,
    ResponseCode.PULL_NOT_FOUND,
    ResponseCode.PULL_RETRY_IMMEDIATELY,
    ResponseCode.PULL_OFFSET_MOVED,
)
_SUCCESS = (ResponseCode.SUCCESS,)
#: Clocks of brokers may be ahead of ours by so much.
_AHEAD_MS = 3_600_000


@dataclass(frozen=True)
class Wanted:
    """Which messages: a tag expression (``a || b``), a SQL92 expression that the broker evaluates, or all."""

    tags: str = "*"
    sql: str | None = None


class Browser:
    """Reads from the masters of the topics' brokers. Every method raises RouteNotFound, RemotingError, BrokerError."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self._addresses: dict[tuple[str, str], str] = {}

    # -- queues

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be read. Raises RocketQError when its permissions forbid reading."""
        route = self.admin.route(topic)
        for data in route.broker_datas:
            address = data.broker_addrs.get(MASTER) or next(iter(data.broker_addrs.values()), None)
            if address is not None:
                self._addresses[topic, data.broker_name] = address
        found = [
            MessageQueue(topic, data.broker_name, queue_id)
            for data in route.queue_datas
            if data.perm & Perm.READ and (topic, data.broker_name) in self._addresses
            for queue_id in range(data.read_queue_nums)
        ]
        if not found:
            raise RocketQError(
                f"topic {topic} cannot be read: its permission forbids it (rocketq topic perm {topic} rw), "
                "or its brokers are away"
            )
        return sorted(found)

    def address(self, queue: MessageQueue) -> str:
        """Where the queue's broker is."""
        place = (queue.topic, queue.broker_name)
        if place not in self._addresses:
            self.queues(queue.topic)
        if place not in self._addresses:
            raise RouteNotFound(f"topic {queue.topic} has no queues on a broker named {queue.broker_name}")
        return self._addresses[place]

    def _ask(self, queue: MessageQueue, code: int, header: Header, allowed: Container[int] = _SUCCESS) -> Command:
        return self.admin.ask(self.address(queue), code, header, allowed=allowed)

    def min_offset(self, queue: MessageQueue) -> int:
        """The offset of the oldest message that is left."""
        header = headers.GetMinOffsetHeader(topic=queue.topic, queue_id=queue.queue_id)
        answer = self._ask(queue, RequestCode.GET_MIN_OFFSET, header)
        return max(0, answer.header(headers.GetMinOffsetResponse).offset)

    def max_offset(self, queue: MessageQueue) -> int:
        """The offset that the next message will get."""
        header = headers.GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.queue_id)
        return self._ask(queue, RequestCode.GET_MAX_OFFSET, header).header(headers.GetMaxOffsetResponse).offset

    def offset_at(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at that time or later; the queue's end when there is none."""
        header = headers.SearchOffsetHeader(topic=queue.topic, queue_id=queue.queue_id, timestamp=timestamp_ms)
        answer = self._ask(queue, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header)
        offset = answer.header(headers.SearchOffsetResponse).offset
        last = self.max_offset(queue) - 1
        if offset == last:  # brokers give the last message also for times after it
            message = self.at(queue, last)
            if message is not None and message.store_timestamp < timestamp_ms:
                return last + 1
        return max(0, offset)

    def oldest(self, queue: MessageQueue) -> int | None:
        """When the oldest message was stored, in ms; None for an empty queue."""
        header = headers.GetEarliestMsgStoretimeHeader(topic=queue.topic, queue_id=queue.queue_id)
        answer = self._ask(queue, RequestCode.GET_EARLIEST_MSG_STORETIME, header)
        timestamp = answer.header(headers.GetEarliestMsgStoretimeResponse).timestamp
        return timestamp if timestamp > 0 else None

    # -- a group's offsets

    def committed(self, group: str, queue: MessageQueue) -> int | None:
        """How far the group is; None when it never committed."""
        header = headers.QueryConsumerOffsetHeader(
            consumer_group=group, topic=queue.topic, queue_id=queue.queue_id, set_zero_if_not_found=False
        )
        nothing = (ResponseCode.QUERY_NOT_FOUND, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST)
        answer = self._ask(queue, RequestCode.QUERY_CONSUMER_OFFSET, header, (*_SUCCESS, *nothing))
        if answer.code in nothing:
            return None
        return answer.header(headers.QueryConsumerOffsetResponse).offset

    def commit(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Store how far the group is. The group has to exist."""
        header = headers.UpdateConsumerOffsetHeader(
            consumer_group=group, topic=queue.topic, queue_id=queue.queue_id, commit_offset=offset
        )
        self._ask(queue, RequestCode.UPDATE_CONSUMER_OFFSET, header)

    # -- messages

    def pull(
        self, queue: MessageQueue, offset: int, wanted: Wanted = Wanted(), count: int = _BATCH
    ) -> tuple[list[ReceivedMessage], int]:
        """Messages from `offset` on, none when there are none, and where to go on."""
        header = headers.PullMessageHeader(
            consumer_group=GROUP,
            topic=queue.topic,
            queue_id=queue.queue_id,
            queue_offset=offset,
            max_msg_nums=count,
            sys_flag=int(PullFlag.SUBSCRIPTION),
            commit_offset=0,
            suspend_timeout_millis=0,
            subscription=wanted.sql or wanted.tags,
            sub_version=int(time.time() * 1000),
            expression_type=SQL92 if wanted.sql else TAG,
            max_msg_bytes=_MAX_BYTES,
        )
        answer = self._ask(queue, RequestCode.PULL_MESSAGE, header, _PULLED)
        found = answer.code == ResponseCode.SUCCESS
        messages = decode_messages(answer.body, queue.broker_name) if found else []
        tags = None if wanted.sql else parse_tags(wanted.tags)
        if tags is not None:  # the broker compares hashes only
            messages = [message for message in messages if message.tag in tags]
        return messages, answer.header(headers.PullMessageResponse).next_begin_offset

    def scan(
        self, queue: MessageQueue, start: int, end: int | None = None, wanted: Wanted = Wanted()
    ) -> Iterator[ReceivedMessage]:
        """The messages of a queue from offset `start` up to before `end` (None: what is there now)."""
        end = self.max_offset(queue) if end is None else end
        offset = max(start, self.min_offset(queue))
        while offset < end:
            messages, following = self.pull(queue, offset, wanted)
            for message in messages:
                if message.queue_offset >= end:
                    return
                yield message
            if following <= offset:
                return
            offset = following

    def between(
        self, topic: str, since: int = 0, until: int | None = None, wanted: Wanted = Wanted()
    ) -> Iterator[ReceivedMessage]:
        """The messages of a topic stored in [since, until) ms, in the order of their store times; those that a broker
        stored in the same ms in its own order.

        Raises RocketQError at once when the brokers cannot read the SQL92 expression.
        """
        if wanted.sql:
            self._check_sql(topic, wanted.sql)
        parts = [self._timed(queue, since, until, wanted) for queue in self.queues(topic)]
        return heapq.merge(*parts, key=lambda message: (message.store_timestamp, message.physical_offset))

    def _check_sql(self, topic: str, expression: str) -> None:
        """To be asked first: in a pull Apache's brokers take a bad expression for one that everything matches."""
        data = SubscriptionData(topic, expression, expression_type=SQL92, sub_version=1)
        body = CheckClientBody(data).encode()
        for address in {self.address(queue) for queue in self.queues(topic)}:
            try:
                self.admin.ask(address, RequestCode.CHECK_CLIENT_CONFIG, body=body)
            except BrokerError as error:
                raise RocketQError(
                    f"the broker {address} cannot filter topic {topic} by {expression!r}: {_short(error.remark)}"
                ) from None

    def _timed(
        self, queue: MessageQueue, since: int, until: int | None, wanted: Wanted
    ) -> Iterator[ReceivedMessage]:
        for message in self.scan(queue, self.offset_at(queue, since) if since else 0, None, wanted):
            if until is not None and message.store_timestamp >= until:
                return
            if message.store_timestamp >= since:
                yield message

    def at(self, queue: MessageQueue, offset: int) -> ReceivedMessage | None:
        """The message at an offset; None when there is none."""
        messages, _ = self.pull(queue, offset, count=1)
        return next((message for message in messages if message.queue_offset == offset), None)

    def by_key(
        self, topic: str, key: str, since: int = 0, until: int | None = None, count: int = 64
    ) -> list[ReceivedMessage]:
        """Messages with that key, oldest first, up to `count` of each broker; the index finds them."""
        found = self._query(topic, key, since, until, count, unique=False)
        return [message for message in found if key in message.keys]

    def by_unique_id(self, topic: str, unique_id: str) -> list[ReceivedMessage]:
        """Messages of a topic with the id that their producer gave them, oldest first; copies have it as well."""
        found = self._query(topic, unique_id, 0, None, _BATCH, unique=True)
        return [message for message in found if message.message_id == unique_id]

    def _query(
        self, topic: str, key: str, since: int, until: int | None, count: int, *, unique: bool
    ) -> list[ReceivedMessage]:
        header = headers.QueryMessageHeader(
            topic=topic,
            key=key,
            max_num=count,
            begin_timestamp=since,
            end_timestamp=int(time.time() * 1000) + _AHEAD_MS if until is None else until,
            index_type="U" if unique else "K",
            unique_key_query=unique,
        )
        found: list[ReceivedMessage] = []
        for data in self.admin.route(topic).broker_datas:
            for address in list(data.broker_addrs.values())[:1]:
                allowed = (ResponseCode.SUCCESS, ResponseCode.QUERY_NOT_FOUND)
                answer = self.admin.ask(address, RequestCode.QUERY_MESSAGE, header, allowed=allowed)
                if answer.code == ResponseCode.SUCCESS:
                    found += decode_messages(answer.body, data.broker_name)
        found = [message for message in found if message.stored_topic == topic]
        return sorted(found, key=lambda message: (message.store_timestamp, message.physical_offset))

    def by_offset_id(self, message_id: str) -> ReceivedMessage | None:
        """The message with the id that a broker gave it; None when no broker of the cluster has it."""
        try:
            host, port, offset = parse_offset_message_id(message_id)
        except InvalidMessage:
            return None
        for broker in self.admin.brokers():
            if broker.address == f"{host}:{port}":
                header = headers.ViewMessageHeader(offset=offset)
                # brokers answer with their general error when there is no record
                allowed = (ResponseCode.SUCCESS, ResponseCode.SYSTEM_ERROR)
                answer = self.admin.ask(broker.address, RequestCode.VIEW_MESSAGE_BY_ID, header, allowed=allowed)
                if answer.code == ResponseCode.SUCCESS:
                    return decode_messages(answer.body, broker.name)[0]
        return None


def _short(remark: str) -> str:
    """The first words of what a parser said on many lines."""
    return " ".join(remark.split())[:200]
