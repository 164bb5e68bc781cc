"""Publishing: a Kombu message becomes a message of each queue it goes to.

The tag is the task's name, the key is its id. A message with a `sharding_key` goes to the queue's companion topic,
where all of one key are in one queue (see :data:`~rocketq_kombu.names.KEYED`).
"""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from amqp.basic_message import Message as AmqpMessage

from rocketq import properties as names
from rocketq.errors import BrokerError, RemotingError
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.names import DLQ_PREFIX
from rocketq.remoting.codes import ResponseCode
from rocketq_kombu.envelope import QueueMessage, due, dump, keys_of, pack, tag_of
from rocketq_kombu.names import KEYED, escape, topic_of
from rocketq_kombu.queues import Queues

log = logging.getLogger("rocketq.kombu")

#: Queues on each broker of a topic for messages with keys: so many keys at once can be worked on.
KEY_QUEUES = 16
#: Where a broker says for how long it holds messages.
_MOST_DELAY = re.compile(r"max delay (\d+)\s*ms")
#: ms before its eta at which a broker sends a task on its way, which takes about as long; Celery waits for the rest.
LEAD = 1
#: ms that clocks may differ, and a request may take.
_MARGIN = 60_000
#: Ids of the tasks that this process is publishing just now, …
_under_way: set[str] = set()
#: … and seconds for which a worker of this process waits at most until those that came to it are published.
PATIENCE = 0.05


def let_publisher_go_on(message: ReceivedMessage, since: float) -> None:
    """Wait until whoever in this process is publishing a task has done so; not for long after `since` (monotonic).

    Programs with a worker in a thread of their own, tests mostly, count on going on sooner than the worker begins.
    Raises CorruptRecord.
    """
    task = message.properties.get(names.KEYS)
    while task in _under_way and time.monotonic() < since + PATIENCE:
        time.sleep(0.0002)


class Publishing(Queues):
    """A channel's verbs of publishing."""

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> None:
        pack(message)
        properties = message["properties"]
        properties["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        key = properties.pop("sharding_key", None)
        if key is not None:  # headers outlive a retry of the task, properties do not
            message["headers"]["sharding_key"] = str(key)
        dead = properties.pop("dead_letter", None)
        for name in properties.keys() - _KNOWN:  # AMQP sends no others either; some cannot be encoded
            del properties[name]
        task = properties.get("correlation_id") or ""
        _under_way.add(task)
        try:
            for queue in self._lookup(exchange, routing_key):
                if dead is None:
                    self._put(queue, message)
                else:
                    self._bury(queue, message, dead)
            self.connection.registry.look_ahead()
        finally:
            _under_way.discard(task)

    def _put(self, queue: str, message: dict[str, Any], *, confirm: bool = False, **kwargs: Any) -> None:
        """`confirm`: whatever the option says."""
        place = self.connection.registry.place(queue)
        if place is not None:
            to = MessageQueue(self._shared, place.broker, place.queue_id)
            self._pass(Message(to.topic, dump(message), tag=escape(queue)), confirm, to)
            return
        topic = topic_of(self._host, queue)
        if not self.cluster.has_topic(topic):
            log.warning("a message for queue %s is dropped, there is no such queue: declare it", queue)
            return
        headers, properties = message.get("headers") or {}, message["properties"]
        priority = None
        key = headers.get("sharding_key")
        if key is not None:
            topic += KEYED
            self.cluster.create_topic(topic, KEY_QUEUES)
        elif self.cluster.has_priorities(topic):
            priority = self._get_message_priority(message)
        until = due(headers) if self.connection.options.hold_eta else None
        sent = Message(
            topic,
            dump(message),
            tag=tag_of(headers),
            keys=keys_of(headers, properties),
            sharding_key=key,
            priority=priority,
        )
        self._send(sent, until, confirm)

    def _send(self, message: Message, until: int | None, confirm: bool) -> None:
        """Send, to be held until a time. A broker that holds for less gets it in steps, see `Channel.arrived`."""
        send = self.cluster.producer.send
        if until is None:
            self._pass(message, confirm)
            return
        until -= LEAD
        message.properties[names.TIMER_DELIVER_MS] = str(until)
        try:
            send(message, key=message.sharding_key)
        except BrokerError as error:
            found = _MOST_DELAY.search(error.remark or "")
            if error.code != ResponseCode.MESSAGE_ILLEGAL or found is None:
                raise
            step = int(time.time() * 1000) + int(found[1]) - _MARGIN
            message.properties[names.TIMER_DELIVER_MS] = str(min(until, step))
            send(message, key=message.sharding_key)

    def _pass(self, message: Message, confirm: bool, queue: MessageQueue | None = None) -> None:
        """Send, and wait for the answer unless nobody wants it."""
        producer, key = self.cluster.producer, message.sharding_key
        if not (confirm or self.connection.options.confirm_publish):
            try:
                producer.send_oneway(message, queue=queue, key=key)
                return
            except RemotingError as error:
                log.info("topic %s: sent with confirmation, as a connection broke: %s", message.topic, error)
        producer.send(message, queue=queue, key=key)

    def put_again(self, queue: str, payload: dict[str, Any], *, redelivered: bool) -> None:
        """Put what a consumer got at the end of its queue."""
        properties = {name: value for name, value in payload["properties"].items() if name not in _OF_DELIVERY}
        if redelivered:
            properties["redelivered"] = True
        self._put(queue, {**payload, "properties": properties}, confirm=True)  # it may be acknowledged next

    def requeue(self, message: QueueMessage) -> None:
        """Put a message at the end of its queue again."""
        self.put_again(message.properties["queue"], message.payload_of_queue, redelivered=True)

    def dead_letter(self, message: QueueMessage) -> None:
        """Put a rejected message into the dead letters of its queue; those of short-lived queues are dropped."""
        if message.lease is not None:
            told = {names.EXCEPTION: "rejected by its consumer"}
            self._bury(message.properties["queue"], message.payload_of_queue, told)

    def _bury(self, queue: str, payload: dict[str, Any], told: dict[str, str]) -> None:
        """Put a message into `%DLQ%queue`, with what is told of it as properties."""
        properties = {name: value for name, value in payload["properties"].items() if name not in _OF_DELIVERY}
        headers = payload.get("headers") or {}
        group = topic_of(self._host, queue)
        key = headers.get("sharding_key")
        origin = group if key is None else group + KEYED
        dead = Message(
            f"{DLQ_PREFIX}{group}",
            dump({**payload, "properties": properties}),
            tag=tag_of(headers),
            keys=keys_of(headers, properties),
            sharding_key=key,
        )
        dead.properties.update({names.RETRY_TOPIC: origin, "DLQ_ORIGIN_TOPIC": origin, **told})
        self.cluster.create_topic(dead.topic, 1)
        self.cluster.producer.send(dead)


#: Properties that a message is published with.
_KNOWN = frozenset(
    {name for name, _ in AmqpMessage.PROPERTIES} | {"body_encoding", "delivery_info", "delivery_tag"}
)
#: Properties that a delivery adds.
_OF_DELIVERY = frozenset({"queue", "delivery_tag"})
