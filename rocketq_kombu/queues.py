"""Queues: declared, counted, emptied, deleted."""

from __future__ import annotations

import time
from typing import Any
from zlib import crc32

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.uuid import uuid

from rocketq_kombu.cluster import PRIORITIES
from rocketq_kombu.exchanges import Exchanges
from rocketq_kombu.names import prefix_of, topic_of
from rocketq_kombu.registry import Place

#: Under this name, behind the virtual host, is the topic that short-lived queues share.
SHARED = "|short-lived"
#: ms that a short-lived queue without `expires` outlives its consumer.
_DEFAULT_TTL = 3_600_000


class Queues(Exchanges):
    """A channel's verbs of queues."""

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._auto_delete: set[str] = set()  # those that go with their last consumer
        self._cursors: dict[str, int] = {}  # how far we are in short-lived queues
        self._prioritized: set[str] = set()  # short-lived queues with priorities

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
        expires = arguments.get("x-expires")
        if exclusive or (auto_delete and expires):
            if auto_delete:
                self._auto_delete.add(queue)
            if arguments.get("x-max-priority"):
                self._prioritized.add(queue)
            self._new_place(queue, int(expires or _DEFAULT_TTL))
        else:
            priorities = bool(arguments.get("x-max-priority"))
            topic = topic_of(self._host, queue)
            self.cluster.create_topic(topic, PRIORITIES if priorities else 1, priorities=priorities, group=True)
            if arguments.get("x-max-length") is not None:
                self.connection.registry.keep_limit(queue, int(arguments["x-max-length"]))

    def _new_place(self, queue: str, ttl: int) -> None:
        """Declare a short-lived queue; it begins with what is sent from now on."""
        registry = self.connection.registry
        known = self._declared.get(queue) or registry.place(queue, fresh=True)
        if known is None:
            topic = self._shared
            self.cluster.create_topic(topic, 4)
            queues = self.cluster.producer.queues(topic)
            chosen = queues[crc32(queue.encode()) % len(queues)]
            offset = self.cluster.max_offset(chosen)
            known = Place(chosen.broker_name, chosen.queue_id, offset, ttl, 0)
        self._declared[queue] = registry.keep_place(queue, known)

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
        if self.connection.registry.place(queue, fresh=True) is not None:
            return True
        return self.cluster.has_topic(topic_of(self._host, queue), fresh=True)

    def _size(self, queue: str) -> int:
        """Messages that wait: neither delivered and unsettled nor delayed."""
        if self.connection.registry.place(queue) is not None:
            return 0
        size = self.cluster.backlog(topic_of(self._host, queue))
        limit = self.connection.registry.limit(queue)
        return size if limit is None else min(size, limit)

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        if self.connection.registry.place(queue) is None:
            self.cluster.skip_backlog(topic_of(self._host, queue))
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
        self.cluster.delete_queue(topic_of(self._host, queue))
        registry.forget_limit(queue)
