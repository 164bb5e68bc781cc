"""A channel: Kombu's AMQP verbs as sends, pops and entries of the registry.

Two kinds of queues. A *work queue* is a topic that a group of the same name consumes by POP. A *short-lived* one (it
is exclusive, or both auto_delete and expiring: replies, events, remote control) costs no topic: it is a place in a
topic that all of them share, see :class:`~rocketq_kombu.registry.Place`, and it has one consumer.

A message's body in RocketMQ is the JSON envelope that Kombu's other transports use; its tag is the task's name and
its key the task's id.
"""

from __future__ import annotations

import base64
import itertools
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import Message as BaseMessage
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.uuid import uuid

from rocketq import properties as names
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.names import DLQ_PREFIX
from rocketq_kombu.leases import Keeper, Lease, Leases
from rocketq_kombu.names import escape, prefix_of, topic_of
from rocketq_kombu.registry import Binding, Place
from rocketq_kombu.sources import MOST, CursorSource, Source, WorkSource

if TYPE_CHECKING:
    from rocketq_kombu.transport import Transport

log = logging.getLogger("rocketq.kombu")

#: Under this name, behind the virtual host, is the topic that short-lived queues share.
SHARED = "|short-lived"
#: Queues on each broker of a topic with priorities, one for each of 0 to 9.
PRIORITIES = 10
#: ms that a short-lived queue without `expires` outlives its consumer.
_DEFAULT_TTL = 3_600_000
#: Seconds that a pop may take when nothing is waited for.
_AT_ONCE = 5.0

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class QueueMessage(BaseMessage):
    """A message as Kombu hands it out. `lease`: None in short-lived queues."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, lease: Lease | None = None) -> None:
        properties = payload["properties"]
        body = payload.get("body")
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body or b"")
        self.lease = lease
        self.payload_of_queue = payload
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=payload.get("headers"),
            properties=properties,
            delivery_info=properties.get("delivery_info"),
            postencode="utf-8",
        )


class Arrived(NamedTuple):
    """A message that came and waits to be delivered."""

    queue: str
    payload: dict[str, Any]
    lease: Lease | None
    offset: int


class Channel(virtual.Channel):
    """See the module's text. `connection` is the transport."""

    Message = QueueMessage
    supports_fanout = True
    connection: Transport
    closed: bool
    _qos: Leases | None
    exchange_types: dict[str, Any]

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.lane = object()  # names the connections that this channel's consuming uses
        self.keeper = Keeper(connection.engine, connection.options.lease, connection.address_of)
        self._sources: dict[str, list[Source]] = {}
        #: queue -> consumer tag -> (no_ack, callback)
        self._callbacks: dict[str, dict[str, tuple[bool, Callable[[QueueMessage], Any]]]] = {}
        self._turns: dict[str, int] = {}
        #: what came and was not delivered yet
        self._ready: deque[Arrived] = deque()
        self._declared: dict[str, Place] = {}  # short-lived queues of this channel
        self._auto_delete: set[str] = set()  # those that go with their last consumer
        self._cursors: dict[str, int] = {}  # how far we are in short-lived queues
        self._prioritized: set[str] = set()  # short-lived queues with priorities
        self._bound: dict[str, set[tuple[str, str]]] = {}  # and their bindings: exchange, routing key
        self._limits: dict[str, int] = {}  # x-max-length of queues
        self._numbers = itertools.count(1)
        self._filling = False
        self._fill_later: Any = None

    @property
    def _host(self) -> str:
        return self.connection.virtual_host

    @property
    def qos(self) -> Leases:
        if self._qos is None:
            self._qos = Leases(self, self.keeper)
        return self._qos

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        self.qos.prefetch_count = prefetch_count
        self.connection.notify(self)

    # exchanges

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        type = type or "direct"
        exchange = exchange or f"amq.{type}"
        registry = self.connection.registry
        before = registry.exchange(exchange)
        if passive:
            if before is None and not exchange.startswith("amq."):
                raise ChannelError(
                    f"NOT_FOUND - no exchange {exchange!r} in vhost {self._host!r}",
                    (50, 10),
                    "Channel.exchange_declare",
                    "404",
                )
            return
        settings = {
            "type": type,
            "durable": durable,
            "auto_delete": auto_delete,
            "arguments": arguments or {},
        }
        if before is not None and not self.exchange_types[before["type"]].equivalent(
            before, exchange, type, durable, auto_delete, arguments
        ):
            raise virtual.base.NotEquivalentError(
                f"Cannot redeclare exchange {exchange!r} in vhost {self._host!r} with different type, durable, "
                "autodelete or arguments value."
            )
        registry.declare_exchange(exchange, settings)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        registry = self.connection.registry
        if if_unused and registry.bindings(exchange, fresh=True):
            return
        registry.delete_exchange(exchange)

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        found = self.connection.registry.exchange(exchange)
        if found is None and exchange.startswith("amq."):
            default = exchange[4:]
        return self.exchange_types[found["type"] if found else default]

    def get_exchanges(self) -> list[str]:
        return self.connection.registry.exchanges()

    def get_table(self, exchange: str) -> list[Binding]:
        return self.connection.registry.bindings(exchange)

    def list_bindings(self) -> Any:
        return (
            (queue, exchange, routing_key)
            for exchange in self.get_exchanges()
            for routing_key, _, queue in self.get_table(exchange)
        )

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or "amq.direct"
        _, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        place = self._declared.get(queue) or self.connection.registry.place(queue)
        self.connection.registry.bind(exchange, queue, routing_key, pattern, place.until if place else None)
        if place is not None:
            self._bound.setdefault(queue, set()).add((exchange, routing_key))

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or "amq.direct"
        self.connection.registry.unbind(exchange, queue, routing_key)
        self._bound.get(queue, set()).discard((exchange, routing_key))

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        """Queues that a message goes to; asks anew for a fanout's, and when a direct exchange has none."""
        default = default or self.deadletter_queue
        if not exchange:
            return [routing_key or default or ""]
        kind = self.typeof(exchange)
        registry = self.connection.registry
        fanout = kind.type == "fanout"
        found = self._match(kind, registry.bindings(exchange, fresh=fanout), exchange, routing_key)
        if not found and kind.type == "direct":
            found = self._match(kind, registry.bindings(exchange, fresh=True), exchange, routing_key)
        if not found and default is not None:
            text = f"no queues are bound to exchange {exchange!r} with binding key {routing_key!r}"
            warnings.warn(virtual.base.UndeliverableWarning(text), stacklevel=2)
            self._new_queue(default)
            found = [default]
        return found

    @staticmethod
    def _match(kind: Any, table: list[Binding], exchange: str, routing_key: str) -> list[str]:
        if kind.type == "fanout":
            return sorted({queue for _, _, queue in table})
        return sorted(kind.lookup(table, exchange, routing_key, None))

    # queues

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        queue = queue or f"amq.gen-{uuid()}"
        if passive:
            if not self._has_queue(queue):
                raise ChannelError(
                    f"NOT_FOUND - no queue {queue!r} in vhost {self._host!r}",
                    (50, 10),
                    "Channel.queue_declare",
                    "404",
                )
        else:
            self._new_queue(queue, **kwargs)
        return queue_declare_ok_t(queue, self._size(queue), 0)

    def _new_queue(
        self,
        queue: str,
        auto_delete: bool = False,
        exclusive: bool = False,
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = arguments or {}
        if arguments.get("x-max-length") is not None:
            self._limits[queue] = int(arguments["x-max-length"])
        expires = arguments.get("x-expires")
        if exclusive or (auto_delete and expires):
            if auto_delete:
                self._auto_delete.add(queue)
            if arguments.get("x-max-priority"):
                self._prioritized.add(queue)
            self._new_place(queue, int(expires or _DEFAULT_TTL))
        else:
            self.connection.create_topic(
                topic_of(self._host, queue),
                PRIORITIES if arguments.get("x-max-priority") else 1,
                bool(arguments.get("x-max-priority")),
            )

    def _new_place(self, queue: str, ttl: int) -> None:
        """Declare a short-lived queue; it begins with what is sent from now on."""
        registry = self.connection.registry
        known = self._declared.get(queue) or registry.place(queue, fresh=True)
        if known is None:
            topic = self._shared
            self.connection.create_topic(topic, 4, False)
            queues = self.connection.producer.queues(topic)
            chosen = queues[hash(queue) % len(queues)]
            offset = self.connection.max_offset(chosen)
            known = Place(chosen.broker_name, chosen.queue_id, offset, ttl, 0)
        self._declared[queue] = registry.keep_place(queue, known)
        self.connection.keep_alive(self)

    def keep_places(self) -> None:
        """Tell that this channel's short-lived queues, and their bindings, are still needed."""
        registry = self.connection.registry
        now = time.time() * 1000
        for queue, place in list(self._declared.items()):
            if place.until - now < place.ttl * 2 / 3:
                self._declared[queue] = place = registry.keep_place(queue, place)
                for exchange, routing_key in self._bound.get(queue, ()):
                    _, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, None)
                    registry.bind(exchange, queue, routing_key, pattern, place.until)

    @property
    def _shared(self) -> str:
        return f"{prefix_of(self._host)}{SHARED}"

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.connection.registry.place(queue) is not None or self.connection.has_topic(
            topic_of(self._host, queue)
        )

    def _size(self, queue: str) -> int:
        """Messages that wait: neither delivered and unsettled nor delayed."""
        if self.connection.registry.place(queue) is not None:
            return 0
        size = self.connection.backlog(topic_of(self._host, queue))
        return min(size, self._limits.get(queue, size))

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if self.connection.registry.place(queue) is None:
            self.connection.skip_backlog(topic_of(self._host, queue))
        return size

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        if if_empty and self._size(queue):
            return
        registry = self.connection.registry
        if queue in self._declared or registry.place(queue) is not None:
            self._declared.pop(queue, None)
            self._cursors.pop(queue, None)
            self._auto_delete.discard(queue)
            self._prioritized.discard(queue)
            for exchange, routing_key in self._bound.pop(queue, set()):
                registry.unbind(exchange, queue, routing_key)
            registry.forget_place(queue)
            return
        for exchange in registry.exchanges():
            for routing_key, _, bound in registry.bindings(exchange, fresh=True):
                if bound == queue:
                    registry.unbind(exchange, queue, routing_key)
        self.connection.delete_topic(topic_of(self._host, queue))
        self._limits.pop(queue, None)

    # publishing

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> None:
        properties = message["properties"]
        body = message["body"]
        if isinstance(body, bytes) and message.get("content-encoding") == "utf-8":
            with suppress(UnicodeDecodeError):
                body = body.decode()
        if isinstance(body, bytes):
            body = base64.b64encode(body).decode()
            properties["body_encoding"] = "base64"
        properties["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        message["body"] = body
        for queue in self._lookup(exchange, routing_key):
            self._put(queue, message)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        place = self.connection.registry.place(queue)
        body = _dump(message)
        if place is not None:
            to = MessageQueue(self._shared, place.broker, place.queue_id)
            self.connection.producer.send(Message(to.topic, body, tag=escape(queue)), queue=to)
            return
        topic = topic_of(self._host, queue)
        if not self.connection.has_topic(topic):
            log.warning("a message for queue %s is dropped, there is no such queue: declare it", queue)
            return
        headers, properties = message.get("headers") or {}, message["properties"]
        sent = Message(topic, body, tag=_tag(headers), keys=_keys(headers, properties))
        own = sent.properties
        if self.connection.has_priorities(topic):
            own[names.PRIORITY] = str(self._get_message_priority(message))
        eta = self._held_until(headers) if self.connection.options.hold_eta else None
        if eta is not None:
            own[names.TIMER_DELIVER_MS] = str(eta)
        self.connection.publish(sent)

    @staticmethod
    def _held_until(headers: dict[str, Any]) -> int | None:
        """When a task is due (ms since 1970); None when that is not later than now, or not said."""
        eta = headers.get("eta")
        if not eta:
            return None
        try:
            when = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
            if when.tzinfo is None:
                when = when.replace(tzinfo=timezone.utc)
            due = int(when.timestamp() * 1000)
        except (ValueError, TypeError, AttributeError):
            return None  # not Celery's: the consumer will see what it means
        return due if due > time.time() * 1000 else None

    def requeue(self, message: QueueMessage) -> None:
        """Put a message at the end of its queue again."""
        payload = dict(message.payload_of_queue)
        properties = payload["properties"] = dict(payload["properties"])
        queue = properties.pop("queue")
        properties["redelivered"] = True
        properties.pop("delivery_tag", None)
        self._put(queue, payload)

    def dead_letter(self, message: QueueMessage) -> None:
        """Put a rejected message into the dead letters of its queue; those of short-lived queues are dropped."""
        queue = message.properties["queue"]
        if message.lease is None:
            return
        topic = topic_of(self._host, queue)
        dead = Message(
            f"{DLQ_PREFIX}{topic}",
            _dump(message.payload_of_queue),
            tag=_tag(message.headers),
            keys=_keys(message.headers, message.properties),
        )
        dead.properties[names.RETRY_TOPIC] = topic
        self.connection.create_topic(dead.topic, 1, False)
        self.connection.publish(dead)

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
        topic = topic_of(self._host, queue)
        brokers = sorted({one.broker_name for one in self.connection.producer.queues(topic)})
        return [WorkSource(self, queue, broker, topic, topic, False) for broker in brokers]

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
        if queue in self._auto_delete:
            self.queue_delete(queue)

    def _stop(self, queue: str) -> None:
        """Stop taking from a queue: nothing may arrive that nobody waits for any more."""
        sources = self._sources.pop(queue, [])
        for source in sources:
            source.close()
        if any(source.busy for source in sources):
            self.connection.engine.close_lane(self.lane)
            for rest in self._sources.values():  # their requests were given up as well
                for source in rest:
                    source.busy = False
        for arrived in [one for one in self._ready if one.queue == queue]:
            self._ready.remove(arrived)
            self._give_up(arrived)

    def _give_up(self, arrived: Arrived) -> None:
        """Nobody here wants the message any more."""
        if arrived.lease is not None:
            self.keeper.give_back(arrived.lease)
        elif arrived.queue in self._declared:
            self._cursors[arrived.queue] = min(arrived.offset, self._cursors.get(arrived.queue, arrived.offset))

    def fill(self) -> None:
        """Ask for as much as may be delivered."""
        if self.closed or self._filling or not self._sources:
            return
        self._filling = True
        try:
            now = time.monotonic()
            sources = [one for queue in self._sources.values() for one in queue]
            idle = [one for one in sources if not one.busy and one.not_before <= now]
            if not idle:
                return
            count = self._room(len(sources))
            if count > 0:
                for source in idle:
                    source.ask(count)
        finally:
            self._filling = False

    def _room(self, sources: int) -> int:
        """How many messages each source may bring now."""
        limit = self.qos.prefetch_count
        if not limit:
            return 0 if self._ready else MOST
        free = limit - len(self.qos) - len(self._ready)
        if free <= 0:
            return 0
        return max(1, min(MOST, free // sources))

    def settled(self) -> None:
        """A message was settled: there is room again."""
        self.connection.notify(self)

    def arrived(self, queue: str, found: list[tuple[ReceivedMessage, Any, int]]) -> None:
        """Messages came. Those that expired, or that `x-max-length` leaves no room for, are settled at once."""
        limit = self._limits.get(queue)
        before = len(self._ready)
        for message, lease, behind in found:
            try:
                payload = _decode(message.body)
                properties = payload["properties"]
            except (ValueError, KeyError, TypeError) as error:
                log.error("offset %d of %s is no message of Kombu's (%s)", message.queue_offset, queue, error)
                self._settle_unread(message, lease)
                continue
            if (limit is not None and behind >= limit) or _expired(properties, message):
                if lease is not None:
                    self.keeper.ack(lease)
                continue
            properties["queue"] = queue
            properties["delivery_tag"] = str(next(self._numbers))
            redelivered = bool(message.reconsume_times or properties.get("redelivered"))
            properties.setdefault("delivery_info", {})["redelivered"] = redelivered
            self._ready.append(Arrived(queue, payload, lease, message.queue_offset))
        if queue in self._prioritized:
            added = [self._ready.pop() for _ in range(len(self._ready) - before)]
            added.reverse()
            self._ready.extend(sorted(added, key=lambda one: -self._get_message_priority(one.payload)))
        if self._ready:
            self.connection.notify(self)

    def moved(self, queue: str, offset: int) -> None:
        """How far we are in a short-lived queue."""
        self._cursors[queue] = offset

    def _settle_unread(self, message: ReceivedMessage, lease: Lease | None) -> None:
        """Put what cannot be read into the dead letters as it is."""
        if lease is None:
            return
        topic = f"{DLQ_PREFIX}{lease.group}"
        self.connection.create_topic(topic, 1, False)
        self.connection.publish(Message(topic, message.body, tag=message.tag, keys=message.keys))
        self.keeper.ack(lease)

    def deliver(self) -> bool:
        """Hand out what is ready, as far as it may be; True when something was."""
        delivered = False
        while self._ready:
            consumers = self._callbacks.get(self._ready[0].queue)
            if consumers and not self.qos.can_consume():
                break
            arrived = self._ready.popleft()
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
            address = self.connection.address_of(source.broker, source.topic)
            if address is not None and not source.busy:
                code, header = source.request(1, 0)
                source.take(self.connection.ask(address, code, header), address)
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
            self.connection.engine.flush()
            self.connection.close_channel(self)
        self.exchange_types = {}


def _dump(message: dict[str, Any]) -> bytes:
    try:
        return _encode(message)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return str(kombu_dumps(message)).encode()  # has types that only Kombu's own encoder knows


def _tag(headers: dict[str, Any]) -> str | None:
    """The task's name."""
    task = headers.get("task")
    return task if isinstance(task, str) and "|" not in task and task.isprintable() else None


def _keys(headers: dict[str, Any], properties: dict[str, Any]) -> str:
    """The task's id."""
    found = headers.get("id") or properties.get("correlation_id") or ""
    return found if isinstance(found, str) and found.isprintable() and " " not in found else ""


def _expired(properties: dict[str, Any], message: ReceivedMessage) -> bool:
    """Whether a message waited longer than its `expiration` (ms, counted by when it was stored)."""
    expiration = properties.get("expiration")
    return expiration is not None and message.store_timestamp + float(expiration) < time.time() * 1000
