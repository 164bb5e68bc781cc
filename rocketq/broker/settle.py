"""What consumers say of messages that they popped: done (200051, 200151), or more time, or again later (200053).

Another lease is a new check point of that one message, after which the old one counts as settled. A receipt whose
lease is over settles nothing: its message is somebody else's by now. As in Apache's broker such an acknowledgement is
answered with success; a lease cannot be prolonged then (code 208), where Apache's broker hands the message out twice.
A consumer that names itself has its message by the receipt before as well: the answer to a renewal may have been lost.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial

import msgspec

from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.checkpoints import CheckPoint, Holder, Key
from rocketq.broker.holders import Holders
from rocketq.broker.offsets import Offsets
from rocketq.broker.orderly import OrderInfo
from rocketq.broker.pop import check_queue
from rocketq.broker.popwait import PopWait
from rocketq.broker.refusal import Refused
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.topics import Topics
from rocketq.errors import StoreFull
from rocketq.record import CorruptRecord
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers.pop import (
    AckMessageHeader,
    BatchAckHeader,
    ChangeInvisibleTimeHeader,
    ChangeInvisibleTimeResponse,
)
from rocketq.remoting.receipts import ORDERLY_QUEUE, Receipt, parse_receipt, stored_topic
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore


class _Ack(msgspec.Struct):
    """Messages of one pop of one queue (`BatchAck`): bit i of `b` is the message at offset `so` + i."""

    c: str
    t: str
    so: int
    q: int
    rq: int
    pt: int
    it: int = 0
    r: str = "0"
    b: str = ""

    def offsets(self) -> int:
        """The bits as a number. Raises ValueError."""
        try:
            return int.from_bytes(base64.b64decode(self.b, validate=True), "little")
        except binascii.Error as error:
            raise ValueError(f"the bits of an acknowledgement of topic {self.t} are no base64: {error}") from None


class _Acks(msgspec.Struct):
    acks: list[_Ack] = []


class Settle:
    """Takes acknowledgements and changes of leases."""

    def __init__(
        self,
        store: MessageStore,
        topics: Topics,
        offsets: Offsets,
        batch: Batch,
        log: ReviveLog,
        wait: PopWait,
        holders: Holders,
        held: Callable[[], None],
        clock_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._topics = topics
        self._offsets = offsets
        self._batch = batch
        self._log = log
        self._wait = wait
        self._holders = holders
        self._held = held
        self._clock_ms = clock_ms

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.ACK_MESSAGE: self._ack,
            RequestCode.BATCH_ACK_MESSAGE: self._batch_ack,
            RequestCode.CHANGE_MESSAGE_INVISIBLETIME: self._change,
        }

    # done

    def _ack(self, connection: Connection, request: Command) -> Reply:
        header = request.header(AckMessageHeader)
        undo: list[Callable[[], None]] = []
        try:
            receipt = self._receipt(connection, header)
            low, high = self._bounds(header)
            if not low <= header.offset <= high:
                remark = (
                    f"offset is illegal, key:{header.topic}@{header.queue_id}, commit:{header.offset}, "
                    f"store:{low}~{high}"
                )
                raise Refused(ResponseCode.NO_MESSAGE, remark)
            key = _key(header, receipt)
            holder = self._holders.named(connection, header.holder, header.holder_grace)
            if receipt.revive_queue == ORDERLY_QUEUE:
                self._done_in_order(key, [header.offset], undo)
            elif (point := self._point(key, header.offset, holder is not None)) is not None:
                self._done(point, point.bits([header.offset]), undo)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        except StoreFull as error:
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        return self._success(connection, request, undo)

    def _batch_ack(self, connection: Connection, request: Command) -> Reply:
        undo: list[Callable[[], None]] = []
        header = request.header(BatchAckHeader)
        holder = self._holders.named(connection, header.holder, header.holder_grace)
        try:
            acks = msgspec.json.decode(request.body, type=_Acks).acks
            parts = [(ack, ack.offsets()) for ack in acks]
        except (msgspec.DecodeError, ValueError) as error:
            remark = f"the acknowledgements cannot be decoded: {error}"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        if not parts:
            return encode_response(request, ResponseCode.NO_MESSAGE)
        try:
            for ack, mask in parts:
                key = Key(stored_topic(ack.t, ack.c, ack.r), ack.c, ack.q, ack.so, ack.pt)
                if ack.rq == ORDERLY_QUEUE:
                    info = self._order(key)
                    left = info.left() if info is not None else []
                    told = [offset for offset in left if offset >= ack.so and mask >> (offset - ack.so) & 1]
                    self._done_in_order(key, told, undo)
                else:
                    for point in self._points(key, holder is not None):
                        self._done(point, point.masked(ack.so, mask), undo)
        except StoreFull as error:
            _take_back(undo)
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        return self._success(connection, request, undo)

    def _done(self, point: CheckPoint, bits: int, undo: list[Callable[[], None]]) -> None:
        """Note that these open messages of a check point are consumed. Raises StoreFull."""
        if bits:
            self._log.settled(point.key, [each for i, each in enumerate(point.offsets) if bits >> i & 1])
            self._log.points.settle(point, bits)
            undo.append(lambda: self._log.points.unsettle(point, bits))

    def _done_in_order(self, key: Key, offsets: list[int], undo: list[Callable[[], None]]) -> None:
        """Note that these messages of an ordered batch are consumed, if it is still out. Raises StoreFull."""
        info = self._order(key)
        for offset in offsets:
            changed = info.ack(offset) if info is not None else None
            info = changed or info
        if info is not None and info is not self._order(key):
            self._replace(key, info, undo)

    def _success(self, connection: Connection, request: Command, undo: list[Callable[[], None]]) -> Reply:
        answer = encode_response(request, ResponseCode.SUCCESS)
        # also when nothing is new: an acknowledgement that came before may not be on disk yet
        self._batch.reply(connection, request, answer, len(undo), undo=partial(_take_back, undo))
        return None

    # another lease

    def _change(self, connection: Connection, request: Command) -> Reply:
        header = request.header(ChangeInvisibleTimeHeader)
        undo: list[Callable[[], None]] = []
        try:
            receipt = self._receipt(connection, header)
            low, high = self._bounds(header)
            if not low <= header.offset < high:
                raise Refused(ResponseCode.NO_MESSAGE, f"topic {header.topic} has no message {header.offset}")
            if header.invisible_time <= 0:
                remark = f"a lease of {header.invisible_time} ms is none (topic {header.topic})"
                raise Refused(ResponseCode.INVALID_PARAMETER, remark)
            key = _key(header, receipt)
            holder = self._holders.named(connection, header.holder, header.holder_grace)
            if receipt.revive_queue == ORDERLY_QUEUE:
                changed = self._change_in_order(key, header, holder, undo)
            else:
                changed = self._change_lease(key, header, receipt, holder, undo)
        except Refused as refused:
            nothing = ChangeInvisibleTimeResponse(pop_time=0, invisible_time=0, revive_qid=0)
            return encode_response(request, refused.code, refused.remark, nothing)
        except StoreFull as error:
            _take_back(undo)
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        answer = encode_response(request, ResponseCode.SUCCESS, "not set any response code", changed)
        self._batch.reply(connection, request, answer, slaves=False, undo=partial(_take_back, undo))
        return None

    def _change_lease(
        self,
        key: Key,
        header: ChangeInvisibleTimeHeader,
        receipt: Receipt,
        holder: Holder | None,
        undo: list[Callable[[], None]],
    ) -> ChangeInvisibleTimeResponse:
        points = self._log.points
        old = self._point(key, header.offset, holder is not None)
        if old is None:
            raise self._over(header)
        asked, key, bits = key, old.key, old.bits([header.offset])
        # later than the old one in any case: its receipt must not settle the new one
        now = max(self._clock_ms(), key.pop_time + 1)
        while (renewed := key._replace(start_offset=header.offset, pop_time=now)) in points:
            now += 1
        point = CheckPoint(renewed, range(header.offset, header.offset + 1), header.invisible_time)
        point.given_back = bool(header.give_back)
        point.holder = holder
        point.was = asked
        self._log.popped(point, instead_of=key)
        points.add(point)
        undo.append(lambda: points.remove(point))
        self._log.settled(key, [header.offset])
        points.settle(old, bits)
        undo.append(lambda: points.unsettle(old, bits))
        self._held()
        return ChangeInvisibleTimeResponse(
            pop_time=now, invisible_time=header.invisible_time, revive_qid=receipt.revive_queue
        )

    def _change_in_order(
        self,
        key: Key,
        header: ChangeInvisibleTimeHeader,
        holder: Holder | None,
        undo: list[Callable[[], None]],
    ) -> ChangeInvisibleTimeResponse:
        info = self._order(key)
        visible = self._clock_ms() + header.invisible_time
        changed = info.lease(header.offset, visible) if info is not None else None
        if changed is None:
            raise self._over(header)
        self._replace(key, changed, undo)
        if holder is not None:
            holder.batches[key.topic, key.group, key.queue_id] = key.pop_time
        return ChangeInvisibleTimeResponse(
            pop_time=key.pop_time, invisible_time=visible - key.pop_time, revive_qid=ORDERLY_QUEUE
        )

    def _over(self, header: ChangeInvisibleTimeHeader) -> Refused:
        remark = (
            f"group {header.consumer_group} does not hold message {header.offset} of topic {header.topic} queue "
            f"{header.queue_id} any more: the lease is over, or the message was settled"
        )
        return Refused(ResponseCode.NO_MESSAGE, remark)

    # what is held

    def _receipt(self, connection: Connection, header: AckMessageHeader | ChangeInvisibleTimeHeader) -> Receipt:
        """Raises Refused."""
        try:
            config = check_queue(self._topics, header.topic, header.queue_id, connection)
            if header.queue_id < 0:
                raise Refused(
                    ResponseCode.MESSAGE_ILLEGAL,
                    f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}] "
                    f"topicConfig.readQueueNums:[{config.read_queue_nums}] consumer:[/{connection.peer}]",
                )
        except Refused as refused:
            if refused.code == ResponseCode.INVALID_PARAMETER:
                refused.code = ResponseCode.MESSAGE_ILLEGAL
            raise
        try:
            return parse_receipt(header.extra_info, header.topic, header.consumer_group)
        except CorruptRecord as error:
            raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None

    def _bounds(self, header: AckMessageHeader | ChangeInvisibleTimeHeader) -> tuple[int, int]:
        topic, queue_id = header.topic, header.queue_id
        return self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)

    def _points(self, key: Key, since: bool) -> list[CheckPoint]:
        """The check point, and with `since` the leases that its messages have since they were renewed."""
        point = self._log.points.get(key)
        renewed = self._log.points.renewed(key) if since else []
        return renewed if point is None else [point, *renewed]

    def _point(self, key: Key, offset: int, since: bool) -> CheckPoint | None:
        """The one of them of which this is an open message."""
        return next((point for point in self._points(key, since) if point.bits([offset])), None)

    def _order(self, key: Key) -> OrderInfo | None:
        """The batch of an orderly pop, unless another one was given out since."""
        info = self._log.orders.get((key.topic, key.group, key.queue_id))
        return info if info is not None and info.pop_time == key.pop_time else None

    def _replace(self, key: Key, info: OrderInfo, undo: list[Callable[[], None]]) -> None:
        """The batch has changed: note it, and let who waits for the queue try again. Raises StoreFull."""
        topic, group, queue_id, *_ = key
        place = (topic, group, queue_id)
        before, offset = self._log.orders[place], self._offsets.query(group, topic, queue_id)
        self._log.ordered(topic, group, queue_id, info)
        self._log.orders[place] = info
        self._offsets.commit(group, topic, queue_id, info.next_offset())

        def take_back() -> None:
            self._log.orders[place] = before
            self._offsets.commit(group, topic, queue_id, offset)

        undo.append(take_back)
        self._wait.wake(topic)


def _take_back(undo: list[Callable[[], None]]) -> None:
    for each in reversed(undo):
        each()


def _key(header: AckMessageHeader | ChangeInvisibleTimeHeader, receipt: Receipt) -> Key:
    return Key(header.topic, header.consumer_group, header.queue_id, receipt.start_offset, receipt.pop_time)
