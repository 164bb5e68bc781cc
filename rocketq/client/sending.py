"""The producer without its I/O: what goes where, in which bytes, and what an answer means.

`AsyncProducer` and `Producer` both are thin drivers around :class:`SendCore`: it prepares messages, chooses queues,
encodes requests, reads answers and decides about retries. Nothing here waits, and time comes in as a parameter.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from rocketq import properties as names
from rocketq.client.batch import OVERHEAD, encode_batch
from rocketq.client.compress import THRESHOLD, compress
from rocketq.client.fault import LatencyFaults
from rocketq.client.routes import Known, RouteTable
from rocketq.client.selectors import Selector, by_hash
from rocketq.errors import BrokerError, InvalidMessage, RemotingError, RocketQError, RouteNotFound
from rocketq.message import Message, MessageQueue, new_unique_id
from rocketq.names import AUTO_CREATE_TOPIC, DLQ_PREFIX, NOT_SENDABLE, RETRY_PREFIX, check_group, check_topic
from rocketq.properties import encode_properties
from rocketq.recall import RecallHandle
from rocketq.record import TRANSACTION_PREPARED
from rocketq.remoting.codes import STORED, VERSION, RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers import RecallMessageHeader, RecallMessageResponse, SendMessageResponse

#: Answers after which another broker is tried (`DefaultMQProducer.retryResponseCodes`).
RETRY_CODES = frozenset({17, 14, 1, 2, 16, 204, 205, 1500})
MAX_MESSAGE_SIZE = 4 * 1024 * 1024

_FRAME = struct.Struct(">iI")
_encode = msgspec.json.encode
_TAIL = b',"serializeTypeCurrentRPC":"JSON","version":%d}' % VERSION


class SendResult(msgspec.Struct, frozen=True, gc=False):
    """What became of a message.

    `status`: `SEND_OK`; or the message is in the broker's log, but `FLUSH_DISK_TIMEOUT` (not known to be on disk),
    `FLUSH_SLAVE_TIMEOUT` or `SLAVE_NOT_AVAILABLE` (not known to be on a slave). `message_id` is the unique id that the
    client gave it, `offset_message_id` says where the broker put it (`Admin` can look up both). Messages with a delay
    wait in a system topic first: their `queue_offset` and `offset_message_id` are those of that topic.
    `recall_handle` is there for timed messages of 5.x brokers.
    """

    status: str
    message_id: str
    offset_message_id: str
    queue: MessageQueue
    queue_offset: int
    transaction_id: str | None = None
    recall_handle: str | None = None


class Outgoing:
    """A message (or a batch) ready for the wire. `ids` are the unique ids of what is in it."""

    __slots__ = ("batch", "body", "code", "flag", "ids", "messages", "properties", "retry_of", "sys_flag", "topic")

    def __init__(
        self,
        topic: str,
        body: bytes,
        properties: str,
        ids: tuple[str, ...],
        *,
        messages: Sequence[Message] = (),
        flag: int = 0,
        sys_flag: int = 0,
        batch: bool = False,
        reply: bool = False,
        retry_of: tuple[int, int] | None = None,
    ) -> None:
        self.topic = topic
        self.body = body
        self.properties = properties
        self.ids = ids
        #: What it was made of.
        self.messages = messages
        self.flag = flag
        self.sys_flag = sys_flag
        self.batch = batch
        self.code = (
            RequestCode.SEND_BATCH_MESSAGE
            if batch
            else RequestCode.SEND_REPLY_MESSAGE_V2
            if reply
            else RequestCode.SEND_MESSAGE_V2
        )
        #: (reconsume times, limit) of a message on its way to `%RETRY%group`.
        self.retry_of = retry_of


#: Stands for a message that is encoded later, with others.
COLLECTED = Outgoing("", b"", "", ())


@dataclass(frozen=True)
class SendOptions:
    """How a producer sends.

    `retries`: further attempts on another broker, within the time-out. `attempt_timeout`: seconds that one attempt may
    take of it, None: all that is left (`sendMsgMaxTimeoutPerRequest`). `compress_from`: bodies of so many bytes and
    more are compressed (not above 64 MiB, which consumers would not unpack); `max_message_size` counts after
    compression. `default_queues`: queues per broker of a topic that this send creates. `latency_fault`: leave slow
    brokers out for a while.
    """

    retries: int = 2
    compress_from: int = THRESHOLD
    max_message_size: int = MAX_MESSAGE_SIZE
    default_queues: int = 4
    latency_fault: bool = False
    attempt_timeout: float | None = None


class Delivery:
    """One outgoing message and what was tried with it so far."""

    __slots__ = ("deadline", "key", "last_broker", "outgoing", "queue", "selector", "started", "tries_left")

    def __init__(
        self,
        outgoing: Outgoing,
        deadline: float,
        tries_left: int,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
    ) -> None:
        self.outgoing = outgoing
        self.deadline = deadline
        self.tries_left = tries_left
        self.queue = queue
        self.selector = selector
        self.key = key
        self.last_broker = ""
        self.started = 0.0


class SendCore:
    """Decisions of a producer group. Raises InvalidMessage for an illegal group name."""

    def __init__(
        self, group: str, routes: RouteTable, options: SendOptions, rng: random.Random | None = None
    ) -> None:
        wrong = check_group(group)
        if wrong or group == "DEFAULT_PRODUCER":
            raise InvalidMessage(f"producer group {group!r}: {wrong or 'the name is reserved, choose your own'}")
        self.group = group
        self.routes = routes
        self.options = options
        self.faults = LatencyFaults()
        self._rng = rng or random.Random()
        self._turns: dict[str, itertools.count[int]] = {}
        self._good_topics: set[str] = set()
        self._templates: dict[tuple[MessageQueue, int], tuple[bytes, bytes]] = {}

    # messages

    def _check_topic(self, topic: str) -> None:
        if topic in self._good_topics:
            return
        wrong = check_topic(topic)
        if wrong is None and topic in NOT_SENDABLE:
            wrong = f"Sending message to topic {topic} is forbidden: it belongs to the broker."
        if wrong:
            raise InvalidMessage(wrong)
        if len(self._good_topics) > 100_000:
            self._good_topics.clear()
        self._good_topics.add(topic)

    def prepare(self, message: Message) -> Outgoing:
        """The message ready to go; gives it a unique id when it has none. Raises InvalidMessage."""
        topic = message.topic
        self._check_topic(topic)
        body = message.body
        if not isinstance(body, bytes) or not body:
            raise InvalidMessage(f"message for topic {topic}: the body has to be bytes, at least one")
        sys_flag = 0
        if len(body) >= self.options.compress_from:
            body, sys_flag = compress(body, self.options.compress_from)
        if len(body) > self.options.max_message_size:
            raise InvalidMessage(
                f"message for topic {topic}: {len(body)} bytes exceed the limit of {self.options.max_message_size}"
            )
        properties = message.properties
        unique_id = properties.get(names.UNIQ_KEY)
        if unique_id is None:
            unique_id = properties[names.UNIQ_KEY] = new_unique_id()
        retry_of = None
        if names.TRAN_MSG in properties and properties[names.TRAN_MSG] == "true":
            sys_flag |= TRANSACTION_PREPARED
        elif topic.startswith((RETRY_PREFIX, DLQ_PREFIX)):
            properties = dict(properties)
            retry_of = (
                int(properties.pop(names.RECONSUME_TIME, "0")),
                int(properties.pop(names.MAX_RECONSUME_TIMES, "16")),
            )
        text = encode_properties(properties)
        if len(text) > names.MAX_LENGTH // 4 and len(text.encode()) > names.MAX_LENGTH:
            raise InvalidMessage(f"message for topic {topic}: its properties exceed {names.MAX_LENGTH} bytes")
        return Outgoing(
            topic,
            body,
            text,
            (unique_id,),
            messages=(message,),
            flag=message.flag,
            sys_flag=sys_flag,
            reply=properties.get(names.MSG_TYPE) == names.REPLY,
            retry_of=retry_of,
        )

    @staticmethod
    def batchable(message: Message) -> bool:
        """True for a message that may share a request with others: no delay, priority, transaction, reply or retry."""
        return _ALONE.isdisjoint(message.properties) and not message.topic.startswith((RETRY_PREFIX, DLQ_PREFIX))

    @staticmethod
    def batched_size(message: Message) -> int:
        """About how many bytes the message takes in a batch."""
        return (
            OVERHEAD + len(message.body) + 96 + sum([len(k) + len(v) + 2 for k, v in message.properties.items()])
        )

    def prepare_batch(self, messages: Sequence[Message]) -> Outgoing:
        """One request for several messages of one topic. Raises InvalidMessage where they do not fit together."""
        if not messages:
            raise InvalidMessage("a batch needs at least one message")
        topic = messages[0].topic
        self._check_topic(topic)
        items: list[tuple[int, bytes, bytes]] = []
        ids: list[str] = []
        for message in messages:
            if message.topic != topic:
                raise InvalidMessage(f"a batch goes to one topic, this one has {topic} and {message.topic}")
            if not self.batchable(message):
                raise InvalidMessage(
                    f"batch for topic {topic}: no delays, timers, priorities, transactions or retries in a batch"
                )
            if not isinstance(message.body, bytes) or not message.body:
                raise InvalidMessage(f"batch for topic {topic}: the bodies have to be bytes, at least one")
            unique_id = message.properties.get(names.UNIQ_KEY)
            if unique_id is None:
                unique_id = message.properties[names.UNIQ_KEY] = new_unique_id()
            ids.append(unique_id)
            text = encode_properties(message.properties).encode()
            if len(text) > names.MAX_LENGTH:
                raise InvalidMessage(f"message for topic {topic}: its properties exceed {names.MAX_LENGTH} bytes")
            items.append((message.flag, message.body, text))
        body = encode_batch(items)
        if len(body) > self.options.max_message_size:
            raise InvalidMessage(
                f"batch for topic {topic}: {len(body)} bytes exceed the limit of {self.options.max_message_size}"
            )
        own = encode_properties({names.UNIQ_KEY: new_unique_id(), names.WAIT: "true"})
        return Outgoing(topic, body, own, tuple(ids), messages=messages, batch=True)

    # queues

    def delivery(
        self,
        outgoing: Outgoing,
        deadline: float,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
    ) -> Delivery:
        """The plan for a message. With a queue, a selector or a key there is one attempt only, to keep the order."""
        if key is not None and selector is None:
            selector = by_hash
        tries = 1 + self.options.retries if queue is None and selector is None else 1
        return Delivery(outgoing, deadline, tries, queue, selector, key)

    def choose(self, delivery: Delivery, known: Known, message: Message | None, now: float) -> MessageQueue:
        """The queue for the next attempt. Raises RouteNotFound when the topic has none that takes messages."""
        if delivery.queue is not None:
            return delivery.queue
        queues: Sequence[MessageQueue] = known.write_queues
        if not queues:
            raise RouteNotFound(
                f"topic {delivery.outgoing.topic} has no writable queue on a broker with a master; check its "
                "permissions and that a master is up"
            )
        if delivery.selector is not None:
            assert message is not None
            return delivery.selector(queues, message, delivery.key)
        if delivery.last_broker:
            queues = [queue for queue in queues if queue.broker_name != delivery.last_broker] or queues
        if self.options.latency_fault:
            queues = self.faults.prefer(queues, _broker_of, now)
        turn = self._turns.get(delivery.outgoing.topic)
        if turn is None:
            turn = self._turns[delivery.outgoing.topic] = itertools.count(self._rng.randrange(1 << 16))
        return queues[next(turn) % len(queues)]

    # requests

    def _fixed_fields(self, queue: MessageQueue, batch: bool) -> dict[str, str]:
        return {
            "a": self.group,
            "b": queue.topic,
            "c": AUTO_CREATE_TOPIC,
            "d": str(self.options.default_queues),
            "e": str(queue.queue_id),
            "k": "false",
            "m": "true" if batch else "false",
            "n": queue.broker_name,
        }

    def fields(self, outgoing: Outgoing, queue: MessageQueue, born_ms: int) -> dict[str, str]:
        """`SendMessageRequestHeaderV2` of the request, as `extFields`."""
        fields = self._fixed_fields(queue, outgoing.batch)
        times, limit = outgoing.retry_of or (0, None)
        fields |= {
            "f": str(outgoing.sys_flag),
            "g": str(born_ms),
            "h": str(outgoing.flag),
            "i": outgoing.properties,
            "j": str(times),
        }
        if limit is not None:
            fields["l"] = str(limit)
        return fields

    @staticmethod
    def code(outgoing: Outgoing) -> int:
        return outgoing.code

    def frame(
        self, outgoing: Outgoing, queue: MessageQueue, born_ms: int, opaque: int, oneway: bool = False
    ) -> list[bytes | memoryview]:
        """The whole request in JSON form, from a template per queue."""
        template = self._templates.get((queue, outgoing.code))
        if template is None:
            if len(self._templates) > 50_000:
                self._templates.clear()
            fixed = _encode(self._fixed_fields(queue, outgoing.batch))
            head = b'{"code":%d,"extFields":%b,"f":"' % (outgoing.code, fixed[:-1])
            template = self._templates[(queue, outgoing.code)] = (
                head,
                b'},"flag":%d,"language":"PYTHON","opaque":%d',
            )
        head, flags = template
        times = outgoing.retry_of
        header = b'%b%d","g":"%d","h":"%d","j":"%d%b","i":%b%b%b' % (
            head,
            outgoing.sys_flag,
            born_ms,
            outgoing.flag,
            times[0] if times else 0,
            b'","l":"%d' % times[1] if times else b"",
            _encode(outgoing.properties),
            flags % (2 if oneway else 0, opaque),
            _TAIL,
        )
        body = outgoing.body
        return [_FRAME.pack(4 + len(header) + len(body), len(header)), header, body]

    # answers

    def results(self, outgoing: Outgoing, queue: MessageQueue, answer: Command, address: str) -> list[SendResult]:
        """One result for each message of the request, in order. Raises BrokerError when it was refused."""
        code = answer.code
        if code not in STORED:
            raise BrokerError(code, answer.remark, address)
        header = answer.header(SendMessageResponse)
        if header.queue_id != queue.queue_id:
            queue = queue._replace(queue_id=header.queue_id)
        status = "SEND_OK" if code == 0 else ResponseCode(code).name
        if not outgoing.batch:
            return [
                SendResult(
                    status,
                    outgoing.ids[0],
                    header.msg_id,
                    queue,
                    header.queue_offset,
                    header.transaction_id,
                    header.recall_handle,
                )
            ]
        offset_ids = header.msg_id.split(",")
        if len(offset_ids) != len(outgoing.ids):  # a BatchCQ topic stores one record for all
            offset_ids = [header.msg_id] * len(outgoing.ids)
        return [
            SendResult(status, unique_id, offset_id, queue, header.queue_offset + index)
            for index, (unique_id, offset_id) in enumerate(zip(outgoing.ids, offset_ids, strict=True))
        ]

    def recall(self, topic: str, handle: str) -> tuple[str, RecallMessageHeader]:
        """The broker that has the message of a recall handle, and the request. Raises InvalidMessage."""
        self._check_topic(topic)
        try:
            found = RecallHandle.decode(handle)
        except ValueError as error:
            raise InvalidMessage(f"recall from topic {topic}: {error}: {handle!r}") from None
        if found.topic != topic:
            raise InvalidMessage(f"recall from topic {topic}: the handle is of a message to {found.topic}")
        broker = found.broker_name
        return broker, RecallMessageHeader(
            producer_group=self.group, topic=topic, recall_handle=handle, bname=broker
        )

    @staticmethod
    def recalled(answer: Command, address: str) -> str:
        """The unique id of the message that was taken back. Raises BrokerError when it was not."""
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
        return answer.header(RecallMessageResponse).msg_id

    def time_for_attempt(self, deadline: float, now: float) -> float:
        """Seconds that an attempt may take which begins now."""
        left = max(0.001, deadline - now)
        limit = self.options.attempt_timeout
        return left if limit is None else min(left, limit)

    def succeeded(self, delivery: Delivery, broker: str, now: float) -> None:
        """Notes the latency of an attempt that was answered."""
        if self.options.latency_fault:
            self.faults.observe(broker, (now - delivery.started) * 1000, now)

    def may_retry(self, delivery: Delivery, broker: str, error: RocketQError, now: float) -> bool:
        """Whether another attempt is due after `error`; notes what was learned from it."""
        if self.options.latency_fault:
            self.faults.failed(broker, now)
        if isinstance(error, BrokerError):
            if error.code == ResponseCode.TOPIC_NOT_EXIST:
                self.routes.mark_stale(delivery.outgoing.topic, denied=True)
            again = error.code in RETRY_CODES
        else:
            self.routes.mark_stale(delivery.outgoing.topic)
            again = isinstance(error, RemotingError)
        delivery.tries_left -= 1
        delivery.last_broker = broker
        return again and delivery.tries_left > 0 and now < delivery.deadline

    def pause_before_retry(self, delivery: Delivery, now: float) -> float:
        """Seconds to wait before the next attempt: none when there is another broker, else a growing moment."""
        known = self.routes.topics.get(delivery.outgoing.topic)
        if known is None or any(queue.broker_name != delivery.last_broker for queue in known.write_queues):
            return 0.0
        made = 1 + self.options.retries - delivery.tries_left
        return max(0.0, min(0.2 * 2.0**made, (delivery.deadline - now) / 2))


def _broker_of(queue: MessageQueue) -> str:
    return queue.broker_name


_ALONE = frozenset(
    {
        names.DELAY,
        names.TRAN_MSG,
        names.PRIORITY,
        names.MSG_TYPE,
        names.TIMER_DELAY_SEC,
        names.TIMER_DELAY_MS,
        names.TIMER_DELIVER_MS,
    }
)
