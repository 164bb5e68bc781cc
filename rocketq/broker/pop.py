"""POP: messages for a lease, to whoever asks (code 200050, `PopMessageProcessor`).

A pop takes messages of any queue of the topic, moves the group's offset behind them at once and notes in the log of
check points (:mod:`rocketq.broker.revivelog`) who has which of them until when. What is not settled by then
(:mod:`rocketq.broker.settle`) is revived (:mod:`rocketq.broker.revive`) under the retry topic of group and topic,
which is popped together with the topic. An orderly pop moves the offset only when messages are acknowledged and gives
out one batch of a queue at a time (:mod:`rocketq.broker.orderly`).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.checkpoints import CheckPoint, Holder, Key
from rocketq.broker.clients import Clients
from rocketq.broker.filtering import Filter, filter_for
from rocketq.broker.groups import Groups
from rocketq.broker.holders import Holders
from rocketq.broker.offsets import Offsets
from rocketq.broker.orderly import OrderInfo
from rocketq.broker.popwait import Line, PopWait, Waiter
from rocketq.broker.refusal import Refused
from rocketq.broker.revivelog import QUEUE, ReviveLog
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import StoreFull
from rocketq.filters import ALL, TAG
from rocketq.names import RETRY_PREFIX, pop_retry_topic
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import QUEUE_OFFSET_AT, Record, decode_record, encode_record, split_records
from rocketq.remoting.bodies import TopicConfig
from rocketq.remoting.codes import FAQ, Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers.pop import PopMessageHeader, PopMessageResponse
from rocketq.remoting.receipts import ORDERLY_QUEUE, Receipt
from rocketq.remoting.server import Buffer, Connection, Handler, Reply
from rocketq.store.store import GetStatus, MessageStore

#: Most messages of one pop.
MOST = 32
#: A request that was so long on its way, ms, is not served: nobody waits for its answer any more.
_LATE = 500
#: Reads of a queue that find nothing because of the filter, before others get their turn.
_READS = 16
_ILLEGAL = frozenset({GetStatus.OFFSET_TOO_SMALL, GetStatus.OFFSET_OVERFLOW_BADLY, GetStatus.OFFSET_FOUND_NULL})
_ANSWER = PopMessageResponse(pop_time=0, invisible_time=0, revive_qid=0, rest_num=0)
_LONG = struct.Struct(">q")
_READ = int(Perm.READ)


class Ask(NamedTuple):
    """A pop that may be served, perhaps later."""

    connection: Connection
    request: Command
    header: PopMessageHeader
    filter: Filter
    retry_topic: str
    holder: Holder | None

    @property
    def line(self) -> Line:
        header = self.header
        kind = header.exp_type or TAG
        return Line(
            header.consumer_group, header.topic, header.queue_id, header.exp or ALL, kind, bool(header.order)
        )


class Taken:
    """What one pop has got so far, and how to give it back."""

    def __init__(self, pop_time: int) -> None:
        self.pop_time = pop_time
        self.buffers: list[Buffer] = []
        self.count = 0
        self.size = 0
        self.starts: list[str] = []
        self.messages: list[str] = []
        self.order_counts: list[str] = []
        #: where the queues that were looked into would be read on
        self.ends: dict[tuple[str, int], int] = {}
        self.blocked_until = 0
        #: whether there is more behind what was read and did not match
        self.more = False
        self.undo: list[Callable[[], None]] = []

    def give_back(self) -> None:
        for undo in reversed(self.undo):
            undo()


class Pop:
    """Answers pops."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        offsets: Offsets,
        batch: Batch,
        log: ReviveLog,
        wait: PopWait,
        holders: Holders,
        statistics: Statistics,
        held: Callable[[], None],
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._offsets = offsets
        self._batch = batch
        self._log = log
        self._wait = wait
        self._holders = holders
        self._statistics = statistics
        self._held = held
        self._clock_ms = clock_ms

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.POP_MESSAGE: self._pop}

    def _pop(self, connection: Connection, request: Command) -> Reply:
        header = request.header(PopMessageHeader)
        try:
            ask = self._check(connection, request, header)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, _ANSWER)
        if self._serve(ask):
            return None  # answered when the batch is written
        now = self._clock_ms()
        born = header.born_time or now
        left = min(header.poll_time, born + header.poll_time - now)
        if self._is_full(ask):
            return self._nothing(ask, ResponseCode.POLLING_FULL)
        if header.poll_time <= 0 or left <= 0:
            return self._nothing(ask)
        waiter = Waiter(ask.line, connection, lambda final: self._again(ask, final))
        if not self._wait.add(waiter, (header.topic, ask.retry_topic), left / 1000):
            return self._nothing(ask, ResponseCode.POLLING_FULL)
        return None

    def _check(self, connection: Connection, request: Command, header: PopMessageHeader) -> Ask:
        """Raises Refused."""
        config = self._config
        topic, group = header.topic, header.consumer_group
        broker = f"the broker[{config.host}]"
        if header.born_time and self._clock_ms() - header.born_time - header.poll_time > _LATE:
            raise Refused(ResponseCode.POLLING_TIMEOUT, f"{broker} pop message is timeout too much")
        if not config.broker_permission & _READ:
            raise Refused(ResponseCode.NO_PERMISSION, f"{broker} pop message is forbidden")
        if header.max_msg_nums > MOST:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"{broker} pop message's num is greater than {MOST}")
        if not config.timer_wheel_enable:  # not that we need it: a store must do for Apache's broker as well
            remark = f"{broker} pop message is forbidden because timerWheelEnable is false"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        check_queue(self._topics, topic, header.queue_id, connection)
        check_group(self._groups, group, topic)
        if header.invisible_time <= 0 or header.max_msg_nums <= 0:
            remark = (
                f"a pop of topic {topic} asks for {header.max_msg_nums} messages for {header.invisible_time} ms"
            )
            raise Refused(ResponseCode.INVALID_PARAMETER, remark)
        wanted = filter_for(header.exp, header.exp_type, sql=config.enable_property_filter)
        self._compensate(header)
        holder = self._holders.named(connection, header.holder, header.holder_grace)
        return Ask(connection, request, header, wanted, pop_retry_topic(topic, group), holder)

    def _compensate(self, header: PopMessageHeader) -> None:
        """Note what a consumer wants that tells it with its pops and not with heartbeats."""
        topic, group = header.topic, header.consumer_group
        expression, kind = header.exp or ALL, header.exp_type or TAG
        known = self._clients.subscription(group, topic)
        if known is None or (known.sub_string, known.expression_type or TAG) != (expression, kind):
            self._clients.compensate(group, topic, expression, kind, self._clock_ms())

    # serving

    def _serve(self, ask: Ask) -> bool:
        """Take what there is and have it answered with the batch; False when there is nothing."""
        if self._is_full(ask):
            return False
        header = ask.header
        taken = Taken(self._clock_ms())
        queues = self._queues(ask)
        try:
            for topic, flag, queue_id in queues:
                start = self._begin(ask, topic, queue_id)
                if taken.count < header.max_msg_nums and taken.size < self._most_bytes:
                    self._from_queue(ask, taken, topic, flag, queue_id, start)
        except StoreFull as error:
            taken.give_back()
            self._reply(ask, encode_response(ask.request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error)))
            return True
        if not taken.count:
            if taken.more:
                self._wait.wake_line(ask.line, 0)
            elif taken.blocked_until:
                self._wait.wake_line(ask.line, (taken.blocked_until - taken.pop_time) / 1000)
            return False
        answer = self._answer(ask, taken, self._rest(header.consumer_group, taken, queues))
        head = encode_response(ask.request, ResponseCode.SUCCESS, "FOUND", answer, following=taken.size)
        self._statistics.delivered(header.consumer_group, header.topic, taken.count, taken.size)
        self._batch.reply(ask.connection, ask.request, [head, *taken.buffers], slaves=False, undo=taken.give_back)
        self._held()
        return True

    def _is_full(self, ask: Ask) -> bool:
        """Whether so much is leased that nothing more may be. A group that pops in order has one batch of a queue."""
        return not ask.header.order and len(self._log.points) >= self._config.max_pop_check_points

    def _again(self, ask: Ask, final: bool) -> bool:
        """For a pop that waits."""
        try:
            check_queue(self._topics, ask.header.topic, ask.header.queue_id, ask.connection)
        except Refused as refused:
            self._reply(ask, encode_response(ask.request, refused.code, refused.remark, _ANSWER))
            return True
        if self._serve(ask):
            return True
        if final:
            self._reply(ask, self._nothing(ask))
        return final

    def _reply(self, ask: Ask, answer: bytes) -> None:
        if not ask.connection.closed:
            ask.connection.write(answer)

    def _nothing(self, ask: Ask, code: ResponseCode = ResponseCode.POLLING_TIMEOUT) -> bytes:
        answer = self._answer(ask, Taken(self._clock_ms()))
        return encode_response(ask.request, code, "NO_MESSAGE_IN_QUEUE", answer)

    def _answer(self, ask: Ask, taken: Taken, rest: int = 0) -> PopMessageResponse:
        header = ask.header
        return PopMessageResponse(
            pop_time=taken.pop_time,
            invisible_time=header.invisible_time,
            revive_qid=ORDERLY_QUEUE if header.order else QUEUE,
            rest_num=rest,
            start_offset_info=";".join(taken.starts),
            msg_offset_info=";".join(taken.messages),
            order_count_info=";".join(taken.order_counts) if header.order else None,
        )

    @property
    def _most_bytes(self) -> int:
        return self._config.max_transfer_bytes_on_message_in_memory

    def _queues(self, ask: Ask) -> list[tuple[str, str, int]]:
        """Topic, flag and id of the queues to look into, in this order."""
        header = ask.header
        config = self._topics.table[header.topic]
        retry = self._topics.get(ask.retry_topic)
        priority = self._by_priority(ask, config)
        own = [(header.topic, "0", queue_id) for queue_id in _ring(header.queue_id, config, priority)]
        again: list[tuple[str, str, int]] = []
        if retry is not None and not header.order:
            again = [(ask.retry_topic, "1", queue_id) for queue_id in _ring(-1, retry, priority)]
        if priority and len(again) == len(own):  # of one priority those that were there before come first
            return [each for pair in zip(again, own, strict=True) for each in pair]
        chance = 0 if priority else self._config.pop_from_retry_probability
        return [*again, *own] if random.random() * 100 < chance else [*own, *again]

    def _by_priority(self, ask: Ask, config: TopicConfig) -> bool:
        """Whether the highest queue comes first: queues are priorities then."""
        if config.attributes.get("message.type") != "PRIORITY" or ask.header.order:
            return False
        factor = self._groups.table[ask.header.consumer_group].attributes.get("priority.factor", "")
        return random.randrange(100) < (int(factor) if factor.isdecimal() else 100)

    def _rest(self, group: str, taken: Taken, queues: list[tuple[str, str, int]]) -> int:
        """How many messages are left."""
        rest = 0
        for topic, _, queue_id in queues:
            offset = taken.ends.get((topic, queue_id))
            if offset is None:
                offset = self._offsets.query(group, topic, queue_id)
            rest += max(0, self._store.max_offset(topic, queue_id) - max(0, offset))
        return rest

    def _begin(self, ask: Ask, topic: str, queue_id: int) -> int:
        """Where the group goes on in the queue.

        A new group is there from now on, also when this pop takes nothing of the queue: it gets what comes next.
        """
        group = ask.header.consumer_group
        self._offsets.take_reset(group, topic, queue_id)
        start = self._offsets.query(group, topic, queue_id)
        if start < 0:
            start = self.position(group, topic, queue_id, ask.header.init_mode)
            self._offsets.commit(group, topic, queue_id, start)
        return start

    def _from_queue(self, ask: Ask, taken: Taken, topic: str, flag: str, queue_id: int, start: int) -> None:
        """Take messages of one queue from `start` on. Raises StoreFull."""
        header = ask.header
        group = header.consumer_group
        key = (topic, group, queue_id)
        info = self._log.orders.get(key) if header.order else None
        if info is not None:
            until = info.blocked_until(header.attempt_id, taken.pop_time)
            if until:
                taken.blocked_until = min(taken.blocked_until or until, until)
                return
        wanted = ask.filter if flag == "0" else Filter()
        skip = {offset for offset in info.passed() if offset >= start} if info is not None else set()
        room = header.max_msg_nums - taken.count
        offset, buffers, offsets = self._read(topic, queue_id, start, room, wanted, skip, taken.size)
        taken.ends[topic, queue_id] = offset
        if not offsets:
            if offset != start:
                taken.more = taken.more or offset < self._store.max_offset(topic, queue_id)
                self._offsets.commit(group, topic, queue_id, offset)
            return
        if header.order:
            self._hold_in_order(ask, taken, key, info, tuple(offsets), start)
        else:
            point = CheckPoint(
                Key(topic, group, queue_id, offsets[0], taken.pop_time), offsets, header.invisible_time
            )
            point.holder = ask.holder
            if point.key in self._log.points:  # the group was moved back within this ms: the next pop gets them
                return
            self._log.popped(point)
            self._log.points.add(point)
            self._offsets.commit(group, topic, queue_id, offset)
            taken.undo.append(lambda: self._log.points.remove(point))
            taken.undo.append(lambda: self._offsets.commit(group, topic, queue_id, start))
        if flag == "0":
            taken.buffers += buffers
            taken.size += sum(map(len, buffers))
        else:
            for buffer in buffers:
                for at, _ in split_records(buffer):
                    record = decode_record(buffer, at)
                    data = self._under_its_topic(ask, taken, topic, flag, offsets[0], record)
                    taken.buffers.append(data)
                    taken.size += len(data)
        taken.count += len(offsets)
        taken.starts.append(f"{flag} {queue_id} {offsets[0]}")
        taken.messages.append(f"{flag} {queue_id} {','.join(map(str, offsets))}")

    def _hold_in_order(
        self,
        ask: Ask,
        taken: Taken,
        key: tuple[str, str, int],
        info: OrderInfo | None,
        offsets: tuple[int, ...],
        start: int,
    ) -> None:
        topic, group, queue_id = key
        header = ask.header
        if info is None:
            held = OrderInfo(
                offsets=offsets,
                pop_time=taken.pop_time,
                invisible_time=header.invisible_time,
                attempt_id=header.attempt_id,
            )
        else:
            held = info.then(offsets, taken.pop_time, header.invisible_time, header.attempt_id)
        self._log.ordered(topic, group, queue_id, held)
        self._log.orders[key] = held
        if ask.holder is not None:
            ask.holder.batches[key] = held.pop_time
        self._offsets.commit(group, topic, queue_id, offsets[0])
        taken.order_counts.append(held.count_info(queue_id))

        def undo() -> None:
            self._log.orders.pop(key)
            if info is not None:
                self._log.orders[key] = info
            self._offsets.commit(group, topic, queue_id, start)

        taken.undo.append(undo)

    def position(self, group: str, topic: str, queue_id: int, init_mode: int) -> int:
        """Where the group goes on in the queue; `init_mode` 1 lets a new one begin with the newest message.

        What is to be retried is the group's own, however long it was away: none of it is passed over.
        """
        store = self._store
        offset = self._offsets.query(group, topic, queue_id)
        if offset >= 0:
            return offset
        if init_mode == 1 and not topic.startswith(RETRY_PREFIX) and not self._offsets.young(topic, queue_id):
            return max(store.max_offset(topic, queue_id) - 1, store.min_offset(topic, queue_id))
        return store.min_offset(topic, queue_id)

    def _read(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        count: int,
        wanted: Filter,
        skip: set[int],
        size: int,
    ) -> tuple[int, list[memoryview], Sequence[int]]:
        """Where to read on, what was found, and the queue offsets of that."""
        for _ in range(_READS):
            if offset == self._store.max_offset(topic, queue_id):
                break
            result = self._store.read(
                topic,
                queue_id,
                offset,
                count + len(skip),
                max_bytes=max(1, self._most_bytes - size),
                codes=wanted.codes,
                match=wanted.match,
            )
            if result.next_offset == offset and result.status not in _ILLEGAL:
                break
            begin, offset = offset, result.next_offset
            buffers = result.buffers
            if result.count == offset - begin > 0 and not skip:
                return offset, buffers, range(begin, offset)
            records = [buffer[at : at + length] for buffer in buffers for at, length in split_records(buffer)]
            offsets = [_LONG.unpack_from(each, QUEUE_OFFSET_AT)[0] for each in records]
            if skip:
                kept = [index for index, each in enumerate(offsets) if each not in skip][:count]
                buffers, offsets = [records[index] for index in kept], [offsets[index] for index in kept]
                if offsets:
                    offset = offsets[-1] + 1
            if offsets:
                return offset, buffers, _compact(offsets)
        return offset, [], []

    def _under_its_topic(
        self, ask: Ask, taken: Taken, topic: str, flag: str, start_offset: int, record: Record
    ) -> bytes:
        """A message of the retry topic as it was sent, with the receipt that its consumer settles it with."""
        receipt = Receipt(
            start_offset,
            taken.pop_time,
            ask.header.invisible_time,
            QUEUE,
            flag,
            self._config.broker_name,
            record.queue_id,
            record.queue_offset,
            topic,
        )
        properties = decode_properties(record.properties)
        properties.pop(props.LEASE, None)
        properties[props.POP_CK] = str(receipt)
        return encode_record(
            record.queue_id,
            record.queue_offset,
            record.physical_offset,
            ask.header.topic.encode(),
            record.body,
            encode_properties(properties).encode(),
            record.flag,
            record.sys_flag,
            record.born_timestamp,
            record.born_host,
            record.store_timestamp,
            record.store_host,
            record.reconsume_times,
            record.prepared_transaction_offset,
        )


def check_queue(topics: Topics, topic: str, queue_id: int, connection: Connection) -> TopicConfig:
    """The settings of a topic that may be read. Raises Refused."""
    config = topics.get(topic)
    if config is None:
        raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please! \n{FAQ}")
    if not config.perm & _READ:
        raise Refused(ResponseCode.NO_PERMISSION, f"the topic[{topic}] peeking message is forbidden")
    if queue_id >= config.read_queue_nums:
        remark = (
            f"queueId[{queue_id}] is illegal, topic:[{topic}] topicConfig.readQueueNums:[{config.read_queue_nums}] "
            f"consumer:[/{connection.peer}]"
        )
        raise Refused(ResponseCode.INVALID_PARAMETER, remark)
    return config


def check_group(groups: Groups, group: str, topic: str) -> None:
    """Whether the group, which comes into being when it may, is allowed to consume the topic. Raises Refused."""
    settings = groups.get(group)
    if settings is None:
        remark = f"subscription group [{group}] does not exist, \n{FAQ}"
        raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
    if not settings.consume_enable or not groups.may_read(group, topic):
        raise Refused(ResponseCode.NO_PERMISSION, f"subscription group no permission, {group}")


def _ring(queue_id: int, config: TopicConfig, priority: bool) -> Sequence[int]:
    """The queue, or for -1 all of the topic, from any of them on so that none is always the first."""
    count = config.read_queue_nums
    if queue_id >= 0:
        return (queue_id,)
    if priority:
        return range(count - 1, -1, -1)
    first = random.randrange(count) if count > 1 else 0
    return [(first - index) % count for index in range(count)]


def _compact(offsets: list[int]) -> Sequence[int]:
    """The same offsets with less memory, where they follow each other."""
    first, last = offsets[0], offsets[-1]
    return range(first, last + 1) if last - first + 1 == len(offsets) else offsets
