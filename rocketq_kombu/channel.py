"""A channel: Kombu's AMQP verbs as sends, pops and entries of the registry.

Two kinds of queues. A *work queue* is a topic that a group of the same name consumes by POP. A *short-lived* one (it
is exclusive, or both auto_delete and expiring: replies, events, remote control) costs no topic: it is a place in a
topic that all of them share, see :class:`~rocketq_kombu.registry.Place`, and it has one consumer.

A message's body in RocketMQ is the JSON envelope that Kombu's other transports use; its tag is the task's name and
its key the task's id.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

from rocketq.errors import BrokerError, RocketQError
from rocketq.message import ReceivedMessage
from rocketq.properties import FIRST_POP_TIME
from rocketq.record import CorruptRecord
from rocketq.remoting.codes import DEAD_LETTER, RequestCode, ResponseCode
from rocketq.remoting.headers import ConsumerSendMsgBackHeader
from rocketq_kombu.envelope import Arrived, QueueMessage, decode, due, expired
from rocketq_kombu.leases import Ask, Keeper, Lease, Leases
from rocketq_kombu.names import KEYED, escape, sources_of, topic_of
from rocketq_kombu.publishing import LEAD, Publishing, let_publisher_go_on
from rocketq_kombu.sources import MOST, Arrival, CursorSource, Source, WorkSource

if TYPE_CHECKING:
    from rocketq_kombu.transport import Transport

log = logging.getLogger("rocketq.kombu")

#: Seconds for which acknowledgements and a little room are gathered: one request costs about as much as one for many.
_GATHER = 0.002
#: ms by which a task may come before it is due and still be handed out: Apache's brokers round down to a second.
_EARLY = 1000 + LEAD


class Channel(Publishing):
    """See the module's text. `connection` is the transport."""

    Message = QueueMessage
    supports_fanout = True
    closed: bool
    _qos: Leases | None

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.lane = object()  # names the connections that this channel's consuming uses
        engine, cluster = connection.engine, connection.cluster
        self._notify = partial(connection.notify, self)  # a closed channel has no connection any more
        self.keeper = Keeper(
            engine,
            self.lane,
            connection.options.lease,
            cluster.address_of,
            waits=self.settled,
            lost=lambda lease: self.qos.dropped(lease),
        )
        self._sources: dict[str, list[Source]] = {}
        #: queue -> consumer tag -> (no_ack, callback)
        self._callbacks: dict[str, dict[str, tuple[bool, Callable[[QueueMessage], Any]]]] = {}
        self._turns: dict[str, int] = {}
        self._limits: dict[str, int | None] = {}  # x-max-length of work queues, read when consuming begins
        #: what came and was not delivered yet
        self._ready: deque[Arrived] = deque()
        self._numbers = itertools.count(1)
        self._filling = False
        self._gathering = False
        #: when something was asked for, and when something was acknowledged, monotonic seconds
        self._sent_at = self._acknowledged_at = 0.0

    @property
    def qos(self) -> Leases:
        if self._qos is None:
            self._qos = Leases(self, self.keeper)
        return self._qos

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        self.qos.prefetch_count = prefetch_count
        self.connection.notify(self)

    # consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[QueueMessage], Any], consumer_tag: str, **kwargs: Any
    ) -> None:
        self._tag_to_queue[consumer_tag] = queue
        self._active_queues.append(queue)
        self._consumers.add(consumer_tag)
        self._callbacks.setdefault(queue, {})[consumer_tag] = (bool(no_ack), callback)
        if queue not in self._sources:
            self._sources[queue] = self._open(queue)
        self.connection.notify(self)

    def _open(self, queue: str) -> list[Source]:
        place = self._declared.get(queue) or self.connection.registry.place(queue)
        if place is not None:
            offset = self._cursors.get(queue, place.offset)
            return [CursorSource(self, queue, place.broker, self._shared, place.queue_id, offset, escape(queue))]
        self._limits[queue] = self.connection.registry.limit(queue)
        return list(self._work_sources(queue))

    def _work_sources(self, queue: str) -> list[Source]:
        """One for each broker of each of a work queue's topics."""
        group = topic_of(self._host, queue)
        found: list[Source] = []
        for topic in sources_of(group):
            if topic == group or self.cluster.has_topic(topic):
                brokers = {one.broker_name for one in self.cluster.producer.queues(topic)}
                ordered = topic == group + KEYED
                found += [WorkSource(self, queue, name, topic, group, ordered) for name in sorted(brokers)]
        return found

    @property
    def topics(self) -> set[str]:
        """Those that work queues are consumed from, or would be if they existed."""
        work = [
            queue for queue, sources in self._sources.items() if any(isinstance(s, WorkSource) for s in sources)
        ]
        return {topic for queue in work for topic in sources_of(topic_of(self._host, queue))}

    def look_for_sources(self) -> None:
        """A topic is new, or on other brokers than before."""
        for queue, sources in list(self._sources.items()):
            if any(isinstance(one, WorkSource) for one in sources):
                known = {(one.broker, one.topic) for one in sources}
                new = [one for one in self._work_sources(queue) if (one.broker, one.topic) not in known]
                if new:
                    sources += new
                    self.connection.notify(self)

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.pop(consumer_tag, None)
        if queue is None:
            return
        self._consumers.discard(consumer_tag)
        if queue in self._active_queues:
            self._active_queues.remove(queue)
        self._callbacks[queue].pop(consumer_tag)
        if self._callbacks[queue]:
            return
        del self._callbacks[queue]
        self._stop(queue)
        if self.is_ending:
            self.connection.renew_meanwhile()
        if queue in self._auto_delete:
            self.queue_delete(queue)

    def _stop(self, queue: str) -> None:
        """Stop taking from a queue: nothing may arrive that nobody waits for any more."""
        sources = self._sources.pop(queue, [])
        for source in sources:
            source.close()
        if any(source.asked for source in sources):
            self._close_lane()
            for rest in self._all_sources:  # their requests were given up as well
                rest.give_up()
        for arrived in [one for one in self._ready if one.queue == queue]:
            self._ready.remove(arrived)
            self._give_up(arrived)

    def _close_lane(self) -> None:
        """Give up what was asked for. What we hold stays ours: before, brokers get to know another connection."""
        self.keeper.flush()
        held = {lease.address: lease for lease in self.leases}
        for lease in held.values():
            lease.renew_at = 0.0
        self.keeper.renew_due(held.values())
        settled = self.connection.engine.settle()
        self.connection.engine.close_lane(self.lane, holding=bool(held) or not settled)

    @property
    def is_ending(self) -> bool:
        """Nothing is consumed any more, and not all is settled."""
        return not self._callbacks and self._qos is not None and len(self._qos) > 0

    def _give_up(self, arrived: Arrived) -> None:
        """Nobody here wants the message any more."""
        if arrived.lease is not None:
            self.keeper.give_back(arrived.lease)
        elif arrived.queue in self._declared:
            self._cursors[arrived.queue] = min(arrived.offset, self._cursors.get(arrived.queue, arrived.offset))

    def fill(self) -> None:
        """Send the acknowledgements that wait, and ask for as much as may be delivered."""
        if self.closed:  # an acknowledgement may have waited for the renewal of its lease
            self.keeper.flush()
            return
        if self._filling:
            return
        self._filling = True
        try:
            if self.gathers():
                return
            wanted = self._wanted()
            if not (wanted or self.keeper.waiting):
                return
            now = self._sent_at = time.monotonic()
            # not with every request for two or three messages
            if not wanted or now >= self._acknowledged_at + _GATHER:
                self._acknowledged_at = now
                self.keeper.flush()
            elif self.keeper.waiting:
                self._gather()
            for source, count in wanted:
                source.ask(count)
        finally:
            self._filling = False

    def go_on(self) -> None:
        """An answer was dealt with: ask for more, so that it comes meanwhile. A single message is not kept waiting."""
        if len(self._ready) == 1:
            self.connection.notify(self)
        else:
            self.fill()

    @property
    def _all_sources(self) -> list[Source]:
        """Those of all queues."""
        return [one for queue in self._sources.values() for one in queue]

    def _wanted(self) -> list[tuple[Source, int]]:
        """Whom to ask for more, and for how many messages: a source's share of the room, but at least one."""
        now, sources = time.monotonic(), self._all_sources
        if not self.qos.prefetch_count:
            share = 0 if self._ready else MOST
        else:
            free = self._free
            share = max(1, free // len(sources)) if sources and free > 0 else 0
        return [(one, share - one.asked) for one in sources if one.asked < share and one.may_ask(now)]

    def gathers(self) -> bool:
        """Whether to send a little later: there is not much yet, and more is about to come where tasks are short."""
        if time.monotonic() >= self._sent_at + _GATHER:
            return False
        enough, free = self.qos.prefetch_count / 2, self._free
        # asked for every task that is settled, so the sources are only looked at when it depends on them
        if free >= enough and free - min((one.asked for one in self._all_sources), default=0) >= enough:
            return False
        self._gather()
        return True

    def _gather(self) -> None:
        if not self._gathering:
            self._gathering = True
            self.connection.engine.calls.later(_GATHER, self._gathered)

    def _gathered(self) -> None:
        self._gathering = False
        self.fill()

    @property
    def _free(self) -> int:
        """Messages that may still come before the limit is reached."""
        return self.qos.prefetch_count - len(self.qos) - len(self._ready)

    @property
    def leases(self) -> list[Lease]:
        """Of what was handed out, and of what waits for room."""
        return self.qos.leases() + [one.lease for one in list(self._ready) if one.lease is not None]

    def renew(self, ask: Ask | None = None) -> None:
        """Renew the leases that should be by now; with `ask` wait for the answers."""
        self.keeper.renew_due(self.leases, ask)

    def settled(self) -> None:
        """A message was settled: there is room again."""
        if self.closed or self._ready or not self.gathers():
            self._notify()

    def arrived(self, queue: str, found: list[Arrival]) -> None:
        """Messages came. Those that nobody is to get are settled at once."""
        before = len(self._ready)
        since = time.monotonic()
        for message, lease, behind in found:
            try:
                let_publisher_go_on(message, since)
                payload = decode(message.body)
                properties = payload["properties"]
                over = self._is_over(queue, properties, message, behind)
                again = message.reconsume_times or FIRST_POP_TIME in message.properties
            except (ValueError, CorruptRecord) as error:
                log.error("offset %d of %s is no message of Kombu's (%s)", message.queue_offset, queue, error)
                self._settle_unread(message, lease)
                continue
            if over:
                if lease is not None:
                    self.keeper.ack(lease)
                continue
            if lease is not None and self._is_early(payload):
                self._hold_again(queue, payload, lease)
                continue
            properties["queue"] = queue
            properties["delivery_tag"] = str(next(self._numbers))
            properties["delivery_info"]["redelivered"] = bool(again or properties.get("redelivered"))
            self._ready.append(Arrived(queue, payload, lease, message.queue_offset))
        if queue in self._prioritized:
            added = [self._ready.pop() for _ in range(len(self._ready) - before)]
            added.reverse()
            self._ready.extend(sorted(added, key=lambda one: -self._get_message_priority(one.payload)))
        if self._ready:
            self.connection.notify(self)

    def _is_over(self, queue: str, properties: dict[str, Any], message: ReceivedMessage, behind: int) -> bool:
        """Whether a message expired, or `x-max-length` leaves no room for it."""
        limit = self._limits.get(queue)
        return (limit is not None and behind >= limit) or expired(properties, message)

    def _is_early(self, payload: dict[str, Any]) -> bool:
        until = due(payload.get("headers") or {}) if self.connection.options.hold_eta else None
        return until is not None and until > time.time() * 1000 + _EARLY

    def _hold_again(self, queue: str, payload: dict[str, Any], lease: Lease) -> None:
        """Its broker could not hold it as long as that: the next step."""
        try:
            self.put_again(queue, payload, redelivered=False)
        except RocketQError as error:
            log.warning("%s is early and comes again: it could not be held any longer: %s", lease, error)
        else:
            self.keeper.ack(lease)

    def moved(self, queue: str, offset: int) -> None:
        """How far we are in a short-lived queue."""
        self._cursors[queue] = offset

    def _settle_unread(self, message: ReceivedMessage, lease: Lease | None) -> None:
        """Have the broker put what cannot be read into the dead letters, as it is."""
        if lease is None:
            return
        header = ConsumerSendMsgBackHeader(
            offset=message.physical_offset,
            group=lease.group,
            delay_level=DEAD_LETTER,
            bname=lease.receipt.broker_name,
        )
        try:
            answer = self.cluster.ask(lease.address, RequestCode.CONSUMER_SEND_MSG_BACK, header)
            if answer.code != ResponseCode.SUCCESS:
                raise BrokerError(answer.code, answer.remark, lease.address)
        except RocketQError as error:
            log.warning("%s comes again: it could not be put into the dead letters: %s", lease, error)
        else:
            self.keeper.ack(lease)

    def deliver(self) -> bool:
        """Hand out what is ready, as far as it may be; True when something was."""
        delivered = False
        while self._ready and not self.closed:
            consumers = self._callbacks.get(self._ready[0].queue)
            if consumers and not self.qos.can_consume():
                break
            arrived = self._ready.popleft()
            if arrived.lease is not None and arrived.lease.lost:
                continue
            if not consumers:
                self._give_up(arrived)
                continue
            turn = self._turns[arrived.queue] = (self._turns.get(arrived.queue, -1) + 1) % len(consumers)
            no_ack, callback = list(consumers.values())[turn]
            callback(self._hand_out(arrived, no_ack))
            delivered = True
        return delivered

    def _hand_out(self, arrived: Arrived, no_ack: bool) -> QueueMessage:
        message = QueueMessage(arrived.payload, self, arrived.lease)
        if not no_ack:
            self.qos.append(message, message.delivery_tag)
        elif arrived.lease is not None:
            self.keeper.ack(arrived.lease)
        return message

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> QueueMessage | None:
        """The next message of a work queue, if there is one now."""
        try:
            arrived = self._get(queue)
        except Empty:
            return None
        return self._hand_out(arrived, no_ack)

    def _get(self, queue: str, timeout: float | None = None) -> Arrived:
        """Raises Empty."""
        for arrived in self._ready:
            if arrived.queue == queue:
                self._ready.remove(arrived)
                return arrived
        for source in self._sources.get(queue) or self._open(queue):
            address = self.cluster.address_of(source.broker, source.topic)
            if address is not None and not source.asked:
                source.take(self.cluster.ask(address, *source.request(1, source.at_once)), address)
                if self._ready and self._ready[-1].queue == queue:
                    return self._ready.pop()
        raise Empty()

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        if not self.deliver():
            raise Empty()

    def after_reply_message_received(self, queue: str) -> None:
        self.queue_delete(queue)

    def close(self) -> None:
        """Stop consuming and give back what is not settled."""
        if self.closed:
            return
        self.closed = True
        for tag in list(self._consumers):
            self.basic_cancel(tag)
        for queue in list(self._declared):
            self.queue_delete(queue)
        if self._qos is not None:
            self._qos.restore_unacked_once()
        if self.connection is not None:
            self.keeper.flush()  # what an event loop that has stopped was to send
            self.connection.engine.flush()
            self.connection.close_channel(self)
        self.exchange_types = {}
