"""Exchanges, bindings and short-lived queues, as all processes on a cluster see them.

They are texts that the NameServers keep (`PUT_KV_CONFIG`), in these namespaces, where VHOST is escaped and empty for
the default one:

======================  =============================  =====================================================
namespace               key                            text
======================  =============================  =====================================================
kombu|VHOST             e|EXCHANGE                     JSON: type, durable, auto_delete, arguments
kombu|VHOST             q|QUEUE                        JSON of :class:`Place`: a short-lived queue
kombu|VHOST             l|QUEUE                        most messages that a work queue keeps (`x-max-length`)
kombu|VHOST|EXCHANGE    QUEUE|ROUTING_KEY              JSON: pattern, and for queues that may go by
                                                       themselves `until` (ms)
======================  =============================  =====================================================

One key a binding, so two processes never overwrite what the other one said. Work queues without a limit need no
entry: they are topics.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from rocketq.client.admin import Admin
from rocketq.errors import RemotingError, RocketQError
from rocketq_kombu.names import escape, unescape

log = logging.getLogger("rocketq.kombu")

#: Seconds for which what was read is believed, where reading anew each time would cost too much.
_BELIEVE = 1.0
#: … and for how much longer when no NameServer answers.
_BELIEVE_LONGER = 10.0
#: Names that are remembered at most.
_MANY = 10_000

T = TypeVar("T")

#: (routing key, pattern, queue), as `kombu.transport.virtual.exchange` has it.
Binding = tuple[str, str | None, str]


class Place(msgspec.Struct, frozen=True):
    """Where a short-lived queue is: the messages tagged with its name behind `offset` of one queue of the topic that
    all of them share.

    `ttl`: ms that it lives on after its consumer was last heard of; `until` is when that is over, ms since 1970.
    """

    broker: str
    queue_id: int
    offset: int
    ttl: int
    until: int


class _Bound(msgspec.Struct):
    """The text of a binding."""

    pattern: str | None = None
    until: int | None = None


class Registry:
    """The tables of one virtual host.

    Methods raise RemotingError and BrokerError of the NameServers, and ValueError for a text that somebody else put
    there.
    """

    def __init__(self, admin: Admin, virtual_host: str, clock: Callable[[], float] = time.time) -> None:
        self._admin = admin
        self._clock = clock
        self._namespace = f"kombu|{escape(virtual_host.strip('/'))}"
        self._exchanges: dict[str, dict[str, Any]] = {}
        self._bindings: dict[str, tuple[float, list[Binding]]] = {}
        self._places: dict[str, tuple[float, Place | None]] = {}
        #: what was used and is too old soon: how to read it anew
        self._aging: dict[tuple[str, str], Callable[[], object]] = {}

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _believed(
        self, cache: dict[str, tuple[float, T]], name: str, fresh: bool, what: str, read: Callable[[str], T]
    ) -> T:
        """What is known of a name, read anew after a second, or after half of it by `look_ahead`; while no NameServer
        answers, what was known before.
        """
        known = cache.get(name)
        if known is not None and not fresh:
            age = self._clock() - known[0]
            if age < _BELIEVE:
                if age >= _BELIEVE / 2:
                    self._aging[what, name] = lambda: self._read_anew(cache, name, False, what, read)
                return known[1]
        return self._read_anew(cache, name, fresh, what, read)

    def _read_anew(
        self, cache: dict[str, tuple[float, T]], name: str, fresh: bool, what: str, read: Callable[[str], T]
    ) -> T:
        now = self._clock()
        known = cache.get(name)
        self._aging.pop((what, name), None)
        try:
            value = read(name)
        except RemotingError as error:
            if known is None or fresh:
                raise
            log.warning("no NameServer tells of %s %s, going on with what was known: %s", what, name, error)
            cache[name] = (now + _BELIEVE_LONGER, known[1])
            return known[1]
        if len(cache) > _MANY:
            cache.clear()
            self._aging.clear()
        cache[name] = (now, value)
        return value

    def look_ahead(self) -> None:
        """Read anew what will be too old soon: now that a message has left, it does not wait for that."""
        for again in list(self._aging.values()):
            with suppress(RocketQError, ValueError):  # the next one needs it, and is told
                again()

    # exchanges

    def exchange(self, name: str) -> dict[str, Any] | None:
        """Type, durable, auto_delete and arguments of an exchange; None when nobody declared it."""
        found = self._exchanges.get(name)
        if found is None:
            text = self._admin.kv_get(self._namespace, f"e|{escape(name)}")
            if text is None:
                return None
            found = self._exchanges[name] = json.loads(text)
        return found

    def declare_exchange(self, name: str, settings: dict[str, Any]) -> None:
        """Keep an exchange; one that is there with the same settings costs nothing."""
        if self.exchange(name) != settings:
            self._admin.kv_put(self._namespace, f"e|{escape(name)}", json.dumps(settings, separators=(",", ":")))
            self._exchanges[name] = settings

    def delete_exchange(self, name: str) -> None:
        """Forget an exchange and its bindings."""
        for key in self._admin.kv_table(self._of(name)):
            self._admin.kv_delete(self._of(name), key)
        self._admin.kv_delete(self._namespace, f"e|{escape(name)}")
        self._exchanges.pop(name, None)
        self._bindings.pop(name, None)

    def exchanges(self) -> list[str]:
        """Names of all exchanges."""
        keys = self._admin.kv_table(self._namespace)
        return sorted(unescape(key[2:]) for key in keys if key.startswith("e|"))

    # bindings

    def _of(self, exchange: str) -> str:
        return f"{self._namespace}|{escape(exchange)}"

    def bind(self, exchange: str, queue: str, routing_key: str, pattern: str | None, until: int | None) -> None:
        """Keep a binding, until a time (ms since 1970) if one is given."""
        value = {"pattern": pattern} if until is None else {"pattern": pattern, "until": until}
        key = f"{escape(queue)}|{escape(routing_key)}"
        self._admin.kv_put(self._of(exchange), key, json.dumps(value, separators=(",", ":")))
        self._bindings.pop(exchange, None)

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Forget a binding."""
        self._admin.kv_delete(self._of(exchange), f"{escape(queue)}|{escape(routing_key)}")
        self._bindings.pop(exchange, None)

    def bindings(self, exchange: str, *, fresh: bool = False) -> list[Binding]:
        """The bindings of an exchange; at most a second old, or `fresh`. Forgets those whose time is over."""
        return self._believed(self._bindings, exchange, fresh, "the bindings of exchange", self._read_bindings)

    def _read_bindings(self, exchange: str) -> list[Binding]:
        now_ms = self._now_ms()
        found: list[Binding] = []
        for key, text in self._admin.kv_table(self._of(exchange)).items():
            queue, _, routing_key = key.partition("|")
            value = msgspec.json.decode(text, type=_Bound)
            if value.until is not None and value.until < now_ms:
                self._admin.kv_delete(self._of(exchange), key)
            else:
                found.append((unescape(routing_key), value.pattern, unescape(queue)))
        return found

    # short-lived queues

    def place(self, queue: str, *, fresh: bool = False) -> Place | None:
        """Where a short-lived queue is; None for other queues, and when its time is over."""
        return self._believed(self._places, queue, fresh, "queue", self._read_place)

    def _read_place(self, queue: str) -> Place | None:
        text = self._admin.kv_get(self._namespace, f"q|{escape(queue)}")
        place = msgspec.json.decode(text, type=Place) if text is not None else None
        if place is not None and place.until < self._now_ms():
            self.forget_place(queue)
            return None
        return place

    def keep_place(self, queue: str, place: Place) -> Place:
        """Keep a short-lived queue for its ttl from now on."""
        place = msgspec.structs.replace(place, until=self._now_ms() + place.ttl)
        self._admin.kv_put(self._namespace, f"q|{escape(queue)}", msgspec.json.encode(place).decode())
        self._places[queue] = (self._clock(), place)
        return place

    def forget_place(self, queue: str) -> None:
        """A short-lived queue is gone."""
        self._admin.kv_delete(self._namespace, f"q|{escape(queue)}")
        self._places.pop(queue, None)

    # work queues

    def limit(self, queue: str) -> int | None:
        """How many messages a work queue keeps at most; None for any number."""
        text = self._admin.kv_get(self._namespace, f"l|{escape(queue)}")
        return int(text) if text is not None else None

    def keep_limit(self, queue: str, limit: int) -> None:
        """Keep a work queue's limit."""
        if self.limit(queue) != limit:
            self._admin.kv_put(self._namespace, f"l|{escape(queue)}", str(limit))

    def forget_limit(self, queue: str) -> None:
        """A work queue is gone."""
        if self.limit(queue) is not None:
            self._admin.kv_delete(self._namespace, f"l|{escape(queue)}")
