"""Messages in: codes 10, 310 and 320. The hot path of the broker.

A handler only validates, appends to the store's batch and notes what has to be answered; :mod:`rocketq.broker.batch`
writes and answers at the end of the read.

Order of checks, codes and texts follow `SendMessageProcessor` and `AbstractSendMessageProcessor` of Apache 5.4.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

import msgspec

from rocketq import names
from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.groups import Groups
from rocketq.broker.locks import QueueLocks
from rocketq.broker.refusal import Refused
from rocketq.broker.saving import Saver
from rocketq.broker.statistics import Statistics
from rocketq.broker.timed import out_of
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, StoreFull
from rocketq.message import new_unique_id
from rocketq.properties import decode_properties, encode_properties
from rocketq.recall import RecallHandle
from rocketq.record import TRANSACTION_MASK
from rocketq.remoting.bodies import SubscriptionGroupConfig, TopicConfig
from rocketq.remoting.codes import FAQ, Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

#: Clients older than V3_4_9 fill `maxReconsumeTimes` with nonsense.
VERSION_MAX_RECONSUME_TIMES = 121
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class SendHeader(Header):
    """What the send path reads of `SendMessageRequestHeader` (code 10); the rest is not even decoded."""

    topic: str
    queue_id: Int32 = msgspec.field(name="queueId")
    default_topic: str = msgspec.field(name="defaultTopic", default="")
    default_topic_queue_nums: Int32 = msgspec.field(name="defaultTopicQueueNums", default=0)
    sys_flag: Int32 = msgspec.field(name="sysFlag", default=0)
    born_timestamp: Int64 = msgspec.field(name="bornTimestamp", default=0)
    flag: Int32 = 0
    properties: str | None = None
    reconsume_times: Int32 | None = msgspec.field(name="reconsumeTimes", default=None)
    max_reconsume_times: Int32 | None = msgspec.field(name="maxReconsumeTimes", default=None)


class SendHeaderV2(Header):
    """The same of `SendMessageRequestHeaderV2` (codes 310 and 320)."""

    topic: str = msgspec.field(name="b")
    queue_id: Int32 = msgspec.field(name="e")
    default_topic: str = msgspec.field(name="c", default="")
    default_topic_queue_nums: Int32 = msgspec.field(name="d", default=0)
    sys_flag: Int32 = msgspec.field(name="f", default=0)
    born_timestamp: Int64 = msgspec.field(name="g", default=0)
    flag: Int32 = msgspec.field(name="h", default=0)
    properties: str | None = msgspec.field(name="i", default=None)
    reconsume_times: Int32 | None = msgspec.field(name="j", default=None)
    max_reconsume_times: Int32 | None = msgspec.field(name="l", default=None)


#: Properties that make a message more than a plain one.
_SPECIAL = frozenset(
    {
        props.DELAY,
        props.TIMER_DELAY_MS,
        props.TIMER_DELAY_SEC,
        props.TIMER_DELIVER_MS,
        props.TRAN_MSG,
        props.POP_CK,
        props.INNER_NUM,
        props.PRIORITY,
        props.MSG_REGION,
        props.TRACE_ON,
        props.CLUSTER,
    }
)
_TIMER = (props.TIMER_DELAY_SEC, props.TIMER_DELAY_MS, props.TIMER_DELIVER_MS)
_NOT_FOR_PRIORITY = frozenset({props.DELAY, props.SHARDING_KEY, props.TRAN_MSG, *_TIMER})
#: Properties that no message of a batch may have, as the items of a batch are stored as they are.
_NOT_IN_BATCH = frozenset({props.DELAY, props.INNER_NUM, *_TIMER})


#: Numbers as Java reads them, and the last time that a record can name.
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_LAST_MS = 2**63 - 2


class Place(NamedTuple):
    """Where a message is stored, which may be another place than where it was sent to.

    `deliver_time`: of a delay level, ms. `recall_handle`: takes a timer message back.
    """

    topic: str
    queue_id: int
    properties: str
    deliver_time: int | None = None
    recall_handle: str = ""


#: A message of a batch: flag, body, property string, and its TAGS, UNIQ_KEY and KEYS.
_Item = tuple[int, bytes, str, "str | None", "str | None", "str | None"]
_ITEM_HEAD = struct.Struct(">i8xii")
_WIDTH = struct.Struct(">h")


class _Outline(NamedTuple):
    """What a plain property string says besides the unique id."""

    tag: str | None
    keys: str | None
    wait: bool


#: Messages of a producer differ in their unique ids and rarely in anything else: property strings without the unique
#: id -> what they say. Those with KEYS are not kept.
_outlines: dict[str, _Outline] = {}
_MAX_OUTLINES = 1000
_MAX_OUTLINE_LENGTH = 256


def _plain(text: str) -> tuple[str, _Outline] | None:
    """Unique id and all else of a property string; None unless it is well formed, has the id and nothing special."""
    start = text.find("UNIQ_KEY\x01")
    end = text.find("\x02", start) + 1
    if start < 0 or end < start + 11 or (start and text[start - 1] != "\x02"):
        return None
    rest = text[:start] + text[end:]
    outline = _outlines.get(rest)
    if outline is None:
        properties = decode_properties(rest)
        if (
            encode_properties(properties) != rest
            or props.UNIQ_KEY in properties
            or not _SPECIAL.isdisjoint(properties)
        ):
            return None
        wait = properties.get(props.WAIT) != "false"
        outline = _Outline(properties.get(props.TAGS), properties.get(props.KEYS), wait)
        if outline.keys is None and len(rest) <= _MAX_OUTLINE_LENGTH:
            if len(_outlines) >= _MAX_OUTLINES:
                _outlines.clear()
            _outlines[rest] = outline
    return text[start + 9 : end - 1], outline


class Sender:
    """Stores what producers send.

    `deliver_time` gives when a message of a delay level is due, ms since the epoch.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        batch: Batch,
        topics: Topics,
        groups: Groups,
        locks: QueueLocks,
        statistics: Statistics,
        saver: Saver,
        deliver_time: Callable[[int], int],
        max_level: int,
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._batch = batch
        self._topics = topics
        self._groups = groups
        self._locks = locks
        self._statistics = statistics
        self._saver = saver
        self._deliver_time = deliver_time
        self._max_level = max_level
        self._clock_ms = clock_ms
        #: topics that plain sends may go to -> number of queue ids that are accepted
        self._open: dict[str, int] = {}
        #: Who writes there could say that others hold what they do not hold.
        self._revive_topic = names.revive_topic(config.broker_cluster_name)

    def forget_topics(self) -> None:
        """A topic or a setting changed: look at each topic anew."""
        self._open.clear()

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.SEND_MESSAGE: self._single,
            RequestCode.SEND_MESSAGE_V2: self._single,
            RequestCode.SEND_BATCH_MESSAGE: self._several,
        }

    # one message

    def _single(
        self, connection: Connection, request: Command, *, saved: bool = False
    ) -> Reply | Awaitable[Reply]:
        """`saved`: its topic is in the file of topics."""
        header: SendHeader | SendHeaderV2
        header = request.header(SendHeaderV2) if request.code == 310 else request.header(SendHeader)
        topic = header.topic
        queue_id = header.queue_id
        body = request.body
        text = header.properties or ""
        target_queue = queue_id
        deliver_time = None
        recall_handle = ""
        try:
            if self._batch.busy:
                self._control_flow()
            limit = self._open.get(topic)
            if limit is None:
                limit = self._check_topic(connection, topic, header)
            if not 0 <= queue_id < limit:
                queue_id = target_queue = self._queue(connection, topic, queue_id)
            if not 0 < len(body) <= self._config.max_message_size:
                self._check_body(body)
            sys_flag = header.sys_flag
            transactional = sys_flag & TRANSACTION_MASK
            plain = None if transactional or topic.startswith(names.RETRY_PREFIX) else _plain(text)
            if plain is not None:
                unique_id, (tag, keys, wait) = plain
            else:
                properties = decode_properties(text)
                if transactional:
                    self._check_transactional(properties)
                    sys_flag &= ~TRANSACTION_MASK  # the half topic is a queue like any other
                unique_id = properties.setdefault(props.UNIQ_KEY, "") or new_unique_id()
                properties[props.UNIQ_KEY] = unique_id
                retried = topic
                if topic.startswith(names.RETRY_PREFIX):
                    retried = self._retry(topic, queue_id, header, request, properties)
                if retried is topic and _SPECIAL.isdisjoint(properties):
                    text = encode_properties(properties)
                else:
                    place = self._special(retried, queue_id, properties)
                    topic, target_queue, text, deliver_time, recall_handle = place
                    if topic not in names.NOT_SENDABLE:  # it does not wait there
                        queue_id = target_queue
                    elif not saved and (self._topics.dirty or self._saver.is_writing(self._topics)):
                        # nothing in the log shows yet that its topic was created
                        return self._when_saved(connection, request)
                tag, keys = properties.get(props.TAGS), properties.get(props.KEYS)
                wait = properties.get(props.WAIT) != "false"
            text += self._batch.own_properties
            if len(text) > 8000 and len(text.encode()) > props.MAX_LENGTH:
                raise self._illegal()
            appended = self._store.append(
                topic,
                target_queue,
                body,
                text,
                tag=tag,
                unique_id=unique_id,
                keys=keys,
                flag=header.flag,
                sys_flag=sys_flag,
                born_timestamp=header.born_timestamp,
                born_host=connection.peer_packed,
                store_host=self._batch.store_host,
                reconsume_times=header.reconsume_times or 0,
                deliver_time=deliver_time,
            )
        except Refused as refused:
            return self._refusal(request, refused.code, refused.remark)
        except StoreFull as error:
            return self._refusal(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        except InvalidMessage as error:
            return self._refusal(request, ResponseCode.MESSAGE_ILLEGAL, str(error))
        self._batch.add(connection, request, unique_id, queue_id, appended, wait=wait, recall_handle=recall_handle)
        return None

    async def _when_saved(self, connection: Connection, request: Command) -> Reply:
        try:
            await self._saver.save_soon(self._topics)
        except StoreFull as error:
            return self._refusal(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        answer = self._single(connection, request, saved=True)
        self._batch.end_and_flush(connection)
        return await answer if isinstance(answer, Awaitable) else answer

    def accept(self, connection: Connection, header: SendHeader | SendHeaderV2, body: bytes) -> int:
        """The queue for a message that somebody else stores. Raises Refused as for a send."""
        if self._batch.busy:
            self._control_flow()
        limit = self._open.get(header.topic)
        if limit is None:
            limit = self._check_topic(connection, header.topic, header)
        self._check_body(body)
        if len((header.properties or "").encode()) > props.MAX_LENGTH:
            raise self._illegal()
        if 0 <= header.queue_id < limit:
            return header.queue_id
        return self._queue(connection, header.topic, header.queue_id)

    def _check_topic(self, connection: Connection, topic: str, header: SendHeader | SendHeaderV2) -> int:
        """The number of queue ids that the topic accepts; the topic is created if that is allowed."""
        config = self._topics.get(topic)
        writable = bool(self._config.broker_permission & Perm.WRITE)
        if not writable and config is not None and config.order:
            remark = f"the broker[{self._config.host}] sending message is forbidden"
            raise Refused(ResponseCode.NO_PERMISSION, remark)
        wrong = names.check_topic(topic)
        if wrong is not None:
            raise Refused(ResponseCode.INVALID_PARAMETER, wrong)
        if topic in names.NOT_SENDABLE or topic == self._revive_topic:
            remark = f"Sending message to topic[{topic}] is forbidden."
            raise Refused(ResponseCode.NO_PERMISSION, remark)
        if config is None:
            config = self._topics.create_on_send(topic, header.default_topic, header.default_topic_queue_nums)
            if config is None and topic.startswith(names.RETRY_PREFIX):
                config = self._topics.create_retry(topic, 1)
            if config is None:
                remark = f"topic[{topic}] not exist, apply first please!\n{FAQ}"
                raise Refused(ResponseCode.TOPIC_NOT_EXIST, remark)
        limit = max(config.read_queue_nums, config.write_queue_nums)
        if writable:
            self._open[topic] = limit
        return limit

    def _queue(self, connection: Connection, topic: str, queue_id: int) -> int:
        """The queue for an id that is out of range: any for a negative one."""
        config = self._topics.table[topic]
        if queue_id < 0 and config.write_queue_nums > 0:
            return random.randrange(config.write_queue_nums)
        remark = f"request queueId[{queue_id}] is illegal, {describe(config)} Producer: {connection.peer}"
        raise Refused(ResponseCode.INVALID_PARAMETER, remark)

    def _retry(
        self,
        topic: str,
        queue_id: int,
        header: SendHeader | SendHeaderV2,
        request: Command,
        properties: dict[str, str],
    ) -> str:
        """Where a message sent to a retry topic goes: there, or to the dead letters when its attempts are used up."""
        name = topic[len(names.RETRY_PREFIX) :]
        group = self._groups.get(name)
        if group is None:
            remark = f"subscription group not exist, {name} \n{FAQ}"
            raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
        limit = redelivery_limit(group, header.max_reconsume_times, request.version)
        if (header.reconsume_times or 0) <= limit and not self._locks.group_has_locks(name):
            return topic
        properties[props.DELAY] = "-1"
        return self._topics.create_retry(names.dlq_topic(name), 1).topic_name

    def _special(self, topic: str, queue_id: int, properties: dict[str, str]) -> Place:
        """The place of a message with properties that mean something to the broker. Changes `properties`."""
        if props.INNER_NUM in properties:
            raise self._illegal()
        if topic.startswith(names.DLQ_PREFIX):
            queue_id = 0
        if props.PRIORITY in properties:
            if not _NOT_FOR_PRIORITY.isdisjoint(properties):
                del properties[props.PRIORITY]
            elif properties[props.PRIORITY].isdecimal():
                config = self._topics.table[topic]
                queue_id = max(0, min(int(properties[props.PRIORITY]), config.write_queue_nums - 1))
        for name in (props.POP_CK, props.MSG_REGION, props.TRACE_ON, props.CLUSTER):
            properties.pop(name, None)
        if properties.get(props.TRAN_MSG) == "true" and not topic.startswith(
            (names.RETRY_PREFIX, names.DLQ_PREFIX)
        ):
            return self._half(topic, queue_id, properties)
        return self.place(topic, queue_id, properties)

    def _half(self, topic: str, queue_id: int, properties: dict[str, str]) -> Place:
        """The place of a transactional message until it is committed; a delay counts from then."""
        if props.PGROUP not in properties:
            remark = (
                f"transactional message for topic[{topic}]: the property {props.PGROUP} names no producer group"
            )
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
        self.place(topic, queue_id, properties.copy())  # an impossible delay is refused now
        properties = {
            **properties,
            props.TRANSACTION_ID: properties[props.UNIQ_KEY],
            props.REAL_TOPIC: topic,
            props.REAL_QID: str(queue_id),
        }
        return Place(names.HALF_TOPIC, 0, encode_properties(properties))

    def place(self, topic: str, queue_id: int, properties: dict[str, str]) -> Place:
        """Where a message to this queue waits if it is delayed, else the queue itself. May change `properties`.

        Raises Refused when the delay that they ask for is impossible.
        """
        level = self._level(properties)
        if level > 0:
            for name in _TIMER:
                properties.pop(name, None)
        elif not properties.keys().isdisjoint(_TIMER) and props.TIMER_OUT_MS not in properties:
            due = self._due(properties)
            if due:
                return self._timed(topic, queue_id, properties, due)
        if level <= 0:
            return Place(topic, queue_id, encode_properties(properties))
        properties = {**properties, props.REAL_TOPIC: topic, props.REAL_QID: str(queue_id)}
        return Place(names.SCHEDULE_TOPIC, level - 1, encode_properties(properties), self._deliver_time(level))

    def _due(self, properties: dict[str, str]) -> int:
        """When a timer message is to be delivered, ms; 0 for now."""
        if not self._config.timer_wheel_enable:
            remark = "accurate timer message is not enabled, timerWheelEnable is false"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        name = next(name for name in _TIMER if name in properties)
        value = properties[name]
        if not _NUMBER.fullmatch(value):
            raise self._bad_timer(f"{name}={value} is not a number")
        now = self._clock_ms()
        if name == props.TIMER_DELIVER_MS:
            due = int(value)
        else:
            due = now + int(value) * (1000 if name == props.TIMER_DELAY_SEC else 1)
        if due <= now:
            if props.TIMER_DEL_UNIQKEY in properties:
                raise self._bad_timer(f"{name}={value} is over")
            return 0
        limit = self._config.timer_max_delay_sec * 1000
        if due > _LAST_MS or (limit and due - now > limit):
            raise self._bad_timer(f"{name}={value} is too far ahead")
        return due

    def _timed(self, topic: str, queue_id: int, properties: dict[str, str], due: int) -> Place:
        """The place of a message that is to be delivered at `due`."""
        out = out_of(due)
        properties = {
            **properties,
            props.TIMER_OUT_MS: str(out),
            props.REAL_TOPIC: topic,
            props.REAL_QID: str(queue_id),
        }
        handle = ""
        if not topic.startswith(names.RETRY_PREFIX):
            unique_id = properties.get(props.UNIQ_KEY, "")
            handle = RecallHandle(topic, self._config.broker_name, out + 1, unique_id).encode()
        return Place(names.TIMER_TOPIC, 0, encode_properties(properties), recall_handle=handle)

    def _bad_timer(self, why: str) -> Refused:
        limit = self._config.timer_max_delay_sec * 1000
        remark = f"timer message illegal: {why}"
        if limit:  # Apache's only text
            remark = (
                f"timer message illegal, the delay time should not be bigger than the max delay {limit}ms; or if set "
                "del msg, the delay time should be bigger than the current time"
            )
        return Refused(ResponseCode.MESSAGE_ILLEGAL, remark)

    def _level(self, properties: dict[str, str]) -> int:
        """The delay level that the properties ask for; not above the highest, 0 for none."""
        value = properties.get(props.DELAY)
        if value is None:
            return 0
        try:
            level = int(value)
        except ValueError:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"the property DELAY is not a number: {value!r}") from None
        if level > self._max_level:
            level = self._max_level
            properties[props.DELAY] = str(level)
        return level

    def _illegal(self) -> Refused:
        remark = (
            "the message is illegal, maybe msg body or properties length not matched. msg body length limit "
            f"{self._config.max_message_size}B, msg properties length limit 32KB."
        )
        return Refused(ResponseCode.MESSAGE_ILLEGAL, remark)

    def _check_body(self, body: bytes) -> None:
        limit = self._config.max_message_size
        if not body:
            remark = f"the message body is empty: a message needs at least one byte and at most {limit}"
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
        if len(body) > limit:
            raise self._illegal()

    def _check_transactional(self, properties: dict[str, str]) -> None:
        """Refuse a flag without the property: nobody could commit the message."""
        if properties.get(props.TRAN_MSG) != "true":
            remark = f"sysFlag says that the message is transactional, its property {props.TRAN_MSG} does not"
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)

    def _control_flow(self) -> None:
        """Refuse a send while the disk does not keep up; a store that takes nothing at all says so itself."""
        if self._store.writable:
            self._statistics.flow_controlled += 1
            raise Refused(ResponseCode.SYSTEM_BUSY, self._batch.busy)

    def _refusal(self, request: Command, code: ResponseCode, remark: str) -> bytes:
        return encode_response(request, code, remark, self._batch.ext)

    # several messages in one request

    def _several(self, connection: Connection, request: Command) -> Reply:
        header = request.header(SendHeaderV2)
        topic = header.topic
        try:
            if self._batch.busy:
                self._control_flow()
            limit = self._open.get(topic)
            if limit is None:
                limit = self._check_topic(connection, topic, header)
            queue_id = header.queue_id
            if not 0 <= queue_id < limit:
                queue_id = self._queue(connection, topic, queue_id)
            if topic.startswith(names.RETRY_PREFIX):
                remark = f"batch request does not support retry group {topic}"
                raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
            if len(topic) > names.TOPIC_MAX_LENGTH:
                remark = f"message topic length too long {len(topic)}"
                raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
            body = request.body
            if not 0 < len(body) <= self._config.max_message_size:
                self._check_body(body)
            if header.sys_flag & TRANSACTION_MASK:
                raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"a batch to topic[{topic}] cannot be transactional")
            items = self._items(body, topic)
            append = self._store.append
            all_appended = [
                append(
                    topic,
                    queue_id,
                    item_body,
                    text,
                    tag=tag,
                    unique_id=unique_id,
                    keys=keys,
                    flag=flag,
                    sys_flag=header.sys_flag,
                    born_timestamp=header.born_timestamp,
                    born_host=connection.peer_packed,
                    store_host=self._batch.store_host,
                    reconsume_times=header.reconsume_times or 0,
                )
                for flag, item_body, text, tag, unique_id, keys in items
            ]
        except Refused as refused:
            return self._refusal(request, refused.code, refused.remark)
        except StoreFull as error:
            return self._refusal(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        except InvalidMessage as error:
            return self._refusal(request, ResponseCode.MESSAGE_ILLEGAL, str(error))
        own = decode_properties(header.properties or "")
        self._batch.add(
            connection,
            request,
            own.get(props.UNIQ_KEY, ""),
            queue_id,
            all_appended[0],
            all_appended,
            wait=own.get(props.WAIT) != "false",
        )
        return None

    def _items(self, body: bytes, topic: str) -> list[_Item]:
        """The messages of a batch's body."""
        items: list[_Item] = []
        offset = 0
        end = len(body)
        try:
            while offset < end:
                size, flag, length = _ITEM_HEAD.unpack_from(body, offset)
                start = offset + 20
                (width,) = _WIDTH.unpack_from(body, start + length)
                behind = start + length
                stop = behind + 2 + width
                if length < 0 or width < 0 or stop > end or size != stop - offset:
                    raise ValueError("its sizes contradict each other")
                text = body[behind + 2 : stop].decode()
                plain = _plain(text)
                if plain is not None:
                    unique_id, (tag, keys, _) = plain
                    item: _Item = (flag, body[start:behind], text, tag, unique_id, keys)
                else:
                    properties = decode_properties(text)
                    if not _NOT_IN_BATCH.isdisjoint(properties) or properties.get(props.TRAN_MSG) == "true":
                        remark = f"a batch to topic[{topic}] holds a delayed, timed or transactional message"
                        raise Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
                    known = [properties.get(name) for name in (props.TAGS, props.UNIQ_KEY, props.KEYS)]
                    item = (flag, body[start:behind], text, *known)
                if not length:
                    self._check_body(b"")
                items.append(item)
                offset = stop
        except (struct.error, ValueError) as error:
            remark = f"the batch to topic[{topic}] cannot be decoded at byte {offset}: {error}"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
        return items

    # messages of the broker's own making

    def store(
        self,
        connection: Connection,
        request: Command,
        *,
        topic: str,
        queue_id: int,
        body: bytes,
        properties: dict[str, str],
        flag: int,
        sys_flag: int,
        born_timestamp: int,
        born_host: bytes,
        reconsume_times: int,
    ) -> None:
        """Store a message on behalf of `request`, which is answered with success when the message is durable.

        A delay among the properties is obeyed, WAIT is not. Raises StoreFull, Refused.
        """
        target = self.place(topic, queue_id, properties)
        self._store.append(
            target.topic,
            target.queue_id,
            body,
            target.properties,
            tag=properties.get(props.TAGS),
            unique_id=properties.get(props.UNIQ_KEY),
            keys=properties.get(props.KEYS),
            flag=flag,
            sys_flag=sys_flag,
            born_timestamp=born_timestamp,
            born_host=born_host,
            store_host=self._batch.store_host,
            reconsume_times=reconsume_times,
            deliver_time=target.deliver_time,
        )
        done = encode_response(request, ResponseCode.SUCCESS)
        self._batch.reply(connection, request, done)


def redelivery_limit(group: SubscriptionGroupConfig, asked: int | None, version: int) -> int:
    """How often a group's messages come again: what the client asked for, else what the group is set to."""
    return asked if asked is not None and version >= VERSION_MAX_RECONSUME_TIMES else group.retry_max_times


def describe(config: TopicConfig) -> str:
    """A topic's settings as Apache's texts show them."""
    perm = "".join(
        [
            letter if config.perm & bit else "-"
            for letter, bit in (("R", Perm.READ), ("W", Perm.WRITE), ("X", Perm.INHERIT))
        ]
    )
    attributes = ", ".join([f"{key}={value}" for key, value in config.attributes.items()])
    return (
        f"TopicConfig [topicName={config.topic_name}, readQueueNums={config.read_queue_nums}, "
        f"writeQueueNums={config.write_queue_nums}, perm={perm}, topicFilterType={config.topic_filter_type}, "
        f"topicSysFlag={config.topic_sys_flag}, order={str(config.order).lower()}, attributes={{{attributes}}}]"
    )
