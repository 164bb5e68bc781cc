"""The log of what POP consumers hold: records of the topic ``rmq_sys_REVIVE_LOG_…`` (`PopCheckPoint`, `AckMsg`).

A check point is in the log before its messages leave the broker, an acknowledgement before it is answered. So the log
tells a broker that starts what is held: it reads from the group offset of ``CID_RMQ_SYS_REVIVE_GROUP``, which is
where the oldest open check point stands. A check point that stays open for long is put into the log once more, so
that this is never far back.

Tags tell the kinds apart: ``ck``, ``ack`` and ``bAck`` are Apache's, ``order`` is what an orderly group holds of a
queue, and ours alone. We use one queue. Apache's broker keeps these records in its timer until the lease is over;
those that it left in a store come from there, and are taken in as they come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from rocketq import properties as props
from rocketq.broker.checkpoints import CheckPoint, CheckPoints, Key
from rocketq.broker.offsets import Offsets
from rocketq.broker.orderly import OrderInfo
from rocketq.config import BrokerConfig
from rocketq.names import REVIVE_GROUP, revive_topic
from rocketq.properties import decode_properties
from rocketq.record import CorruptRecord, Record, decode_record, split_records
from rocketq.store.store import Appended, MessageStore

log = logging.getLogger("rocketq.broker")

#: The queue that we write to, and all that Apache's brokers do.
QUEUE, QUEUES = 0, range(8)
#: A check point is put into the log once more when so many records have come since, or so many ms have passed.
_FAR, _LONG = 100_000, 3_600_000
#: ms that a check point of Apache's waits for acknowledgements, which come when its lease is over.
_GRACE = 3000
_READ = 512
#: Messages that one check point may hold; Apache's counts them in a byte.
_MOST = 127


class Ck(msgspec.Struct):
    """A check point as JSON (`PopCheckPoint`). `was` is ours: `so` and `pt` of the one that another lease ended."""

    so: int
    pt: int
    it: int
    q: int
    t: str
    c: str
    bm: int = 0
    n: int = 0
    d: list[int] | None = None
    bn: str | None = None
    ro: int = 0
    was: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET


class Ack(msgspec.Struct):
    """An acknowledgement as JSON (`AckMsg`, `BatchAckMsg`): of `ao`, or of all in `aol`."""

    so: int
    pt: int
    q: int
    t: str
    c: str
    ao: int = -1
    aol: list[int] | None = None
    bn: str | None = None


class Order(msgspec.Struct):
    """What an orderly group holds of a queue, and where it is (`at`). Without `info`: nothing, it was moved."""

    t: str
    c: str
    q: int
    at: int
    info: dict[str, Any]


#: (topic, group, queue id) -> what is out
Orders = dict[tuple[str, str, int], OrderInfo]

_encode = msgspec.json.Encoder().encode


class ReviveLog:
    """Writes the log, and reads it at the start. `points` and `orders` are what it says."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        offsets: Offsets,
        clock_ms: Callable[[], int],
    ) -> None:
        self._broker = config.broker_name
        self._store = store
        self._offsets = offsets
        self._clock_ms = clock_ms
        self.topic = revive_topic(config.broker_cluster_name)
        self.store_host = b""
        self.points = CheckPoints()
        self.orders: Orders = {}
        #: where the latest record of each key of `orders` stands
        self._ordered_at: dict[tuple[str, str, int], int] = {}

    # writing: each appends to the store's batch and raises StoreFull

    def popped(self, point: CheckPoint, instead_of: Key | None = None) -> None:
        """These messages leave the broker, or stay away by another lease than that of `instead_of`."""
        key = point.key
        bits = point.settled
        value = Ck(
            so=key.start_offset,
            pt=key.pop_time,
            it=point.invisible_time,
            q=key.queue_id,
            t=key.topic,
            c=key.group,
            bm=bits - (1 << 32) if bits >> 31 & 1 else bits,
            n=len(point.offsets),
            d=[offset - key.start_offset for offset in point.offsets],
            bn=self._broker,
        )
        if instead_of is not None:
            value.was = instead_of.start_offset, instead_of.pop_time
        point.position = self._append("ck", _encode(value)).queue_offset

    def settled(self, key: Key, offsets: list[int]) -> None:
        """These messages of a check point are acknowledged, leased anew or revived."""
        topic, group, queue_id, start, pop_time = key
        value = Ack(so=start, pt=pop_time, q=queue_id, t=topic, c=group, bn=self._broker)
        if len(offsets) == 1:
            value.ao = offsets[0]
            self._append("ack", _encode(value))
        else:
            value.aol = offsets
            self._append("bAck", _encode(value))

    def ordered(self, topic: str, group: str, queue_id: int, info: OrderInfo) -> None:
        """What an orderly group holds of a queue has changed."""
        value = Order(topic, group, queue_id, info.next_offset(), info.to_json())
        self._ordered_at[topic, group, queue_id] = self._append("order", _encode(value)).queue_offset

    def moved(self, topic: str, group: str, queue_ids: Iterable[int]) -> None:
        """An operator moved the group: its batches are over. Written at once; raises StoreFull, StoreError."""
        for key in [key for queue_id in queue_ids if (key := (topic, group, queue_id)) in self.orders]:
            self._append("order", _encode(Order(*key, 0, {})))
            del self.orders[key], self._ordered_at[key]
        self._store.write()

    def _append(self, tag: str, body: bytes) -> Appended:
        return self._store.append(
            self.topic,
            QUEUE,
            body,
            f"TAGS\x01{tag}\x02",
            tag=None,  # nobody looks for them by tag, and the index is for those who look
            unique_id=None,
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=self._clock_ms(),
            born_host=self.store_host,
            store_host=self.store_host,
        )

    # keeping what has to be read at a start short

    def maintain(self) -> None:
        """Note from where on the log has to be read; put what has been open for long into it again.

        Raises StoreFull, StoreError.
        """
        end = self._store.max_offset(self.topic, QUEUE)
        limit = end - _FAR
        long_ago = self._clock_ms() - _LONG
        moved: list[tuple[CheckPoint, int]] = []
        while (oldest := self.points.oldest()) is not None and len(moved) < _READ:
            if oldest.position >= limit and self._store.store_time(self.topic, QUEUE, oldest.position) > long_ago:
                break
            moved.append((oldest, oldest.position))
            self.popped(oldest, oldest.was)
            self.points.add(oldest)
        for key in [key for key, at in self._ordered_at.items() if at < limit][:_READ]:
            if self._store.max_offset(key[0], key[2]) == 0 or self.orders[key].pop_time < long_ago - 23 * _LONG:
                del self._ordered_at[key], self.orders[key]
            else:
                self.ordered(*key, self.orders[key])
        self._store.write()
        needed = min([end, *self._ordered_at.values()])
        if (oldest := self.points.oldest()) is not None:
            needed = min(needed, oldest.position)
        if needed != self._offsets.query(REVIVE_GROUP, self.topic, QUEUE):
            self._offsets.commit(REVIVE_GROUP, self.topic, QUEUE, needed)

    # reading

    def recover(self) -> None:
        """Read what the last run left. Afterwards everything that counts stands in our queue."""
        for queue_id in QUEUES:
            begin = max(0, self._offsets.query(REVIVE_GROUP, self.topic, queue_id))
            begin = max(begin, self._store.min_offset(self.topic, queue_id))
            end = self._store.max_offset(self.topic, queue_id)
            while begin < end:
                read = self._store.read(self.topic, queue_id, begin, _READ)
                if read.next_offset <= begin:
                    break
                for buffer in read.buffers:
                    for at, _ in split_records(buffer):
                        self._take(decode_record(buffer, at), queue_id)
                begin = read.next_offset
            if queue_id != QUEUE and end:
                self._offsets.commit(REVIVE_GROUP, self.topic, queue_id, end)
        if len(self.points):
            log.info("%d pops of an earlier run are not settled", len(self.points))

    def arrived(self, messages: Iterable[Appended]) -> bool:
        """Take in what Apache's broker left in the timer; True when it was a check point."""
        found = False
        for message in messages:
            # ours have no unique id
            if message.topic == self.topic and message.unique_id is not None:
                data = self._store.record_at(message.physical_offset)
                if data is not None:
                    found = True
                    self._take(decode_record(data), message.queue_id, foreign=True)
        return found

    def _take(self, record: Record, queue_id: int, foreign: bool = False) -> None:
        tag = decode_properties(record.properties).get(props.TAGS)
        try:
            if tag == "ck":
                self._take_point(msgspec.json.decode(record.body, type=Ck), record, foreign)
            elif tag in ("ack", "bAck"):
                self._take_ack(msgspec.json.decode(record.body, type=Ack))
            elif tag == "order":
                self._take_order(msgspec.json.decode(record.body, type=Order), record.queue_offset)
            else:
                raise ValueError(f"its tag is {tag!r}")
        except (ValueError, KeyError, TypeError, msgspec.DecodeError, CorruptRecord) as error:
            log.error(
                "message %d of topic %s queue %d says nothing of a pop, stepping over it: %s",
                *(record.queue_offset, self.topic, queue_id, error),
            )

    def _take_point(self, ck: Ck, record: Record, foreign: bool) -> None:
        key = Key(ck.t, ck.c, ck.q, ck.so, ck.pt)
        differences = ck.d or range(ck.n)
        if not 0 < len(differences) <= _MOST or ck.so < 0 or min(differences) < 0:
            raise ValueError("it names no messages")
        offsets = [ck.so + each for each in differences]
        known = self.points.get(key)
        point = CheckPoint(key, offsets, ck.it, (ck.bm & 0xFFFFFFFF) | (known.settled if known else 0))
        if foreign or record.queue_id != QUEUE:
            point.due += _GRACE
            self.popped(point)  # once more, in our own queue
        else:
            point.position = record.queue_offset
            if record.queue_offset >= self._offsets.revive_end:
                self._advance(ck.t, ck.c, ck.q, offsets[-1] + 1)
        if ck.was is not msgspec.UNSET:  # a crash may have taken the record behind, which settles it
            start, pop_time = ck.was
            point.was = key._replace(start_offset=start, pop_time=pop_time)
            self._take_ack(Ack(start, pop_time, ck.q, ck.t, ck.c, aol=offsets))
        if not point.done:
            self.points.add(point)

    def _take_ack(self, ack: Ack) -> None:
        point = self.points.get(Key(ack.t, ack.c, ack.q, ack.so, ack.pt))
        if point is not None:
            self.points.settle(point, point.bits(ack.aol if ack.aol is not None else [ack.ao]))

    def _take_order(self, order: Order, position: int) -> None:
        key = (order.t, order.c, order.q)
        if not order.info:
            self.orders.pop(key, None)
            self._ordered_at.pop(key, None)
            return
        self.orders[key] = OrderInfo.from_json(order.info)
        self._ordered_at[key] = position
        if position >= self._offsets.revive_end:
            self._advance(*key, order.at)

    def _advance(self, topic: str, group: str, queue_id: int, offset: int) -> None:
        """The group was further than its saved offset says."""
        if offset > self._offsets.query(group, topic, queue_id):
            self._offsets.commit(group, topic, queue_id, offset)
