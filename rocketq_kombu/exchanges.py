"""Exchanges and bindings: what they say is in the registry, and so the same for all processes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from rocketq_kombu.registry import Binding, Place

if TYPE_CHECKING:
    from rocketq_kombu.cluster import Cluster
    from rocketq_kombu.transport import Transport


class Exchanges(virtual.Channel):
    """A channel's verbs of exchanges. `connection` is the transport."""

    connection: Transport
    exchange_types: dict[str, Any]

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._declared: dict[str, Place] = {}  # short-lived queues of this channel
        self._bound: dict[str, set[tuple[str, str]]] = {}  # and their bindings: exchange, routing key

    @property
    def cluster(self) -> Cluster:
        return self.connection.cluster

    @property
    def _host(self) -> str:
        return self.connection.virtual_host

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
