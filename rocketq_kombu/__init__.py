"""Kombu transport for RocketMQ: `Celery(broker="rocketq://host:9876")`."""

from __future__ import annotations

#: What Kombu makes of our entry point: a serializer that can neither encode nor decode. Kombu has no entry points for
#: transports, but whoever sends or reads messages imports its serializers, and with them this module.
NO_SERIALIZER = (None, None, "application/x-rocketq", "utf-8")


def register() -> None:
    """Make `rocketq://` and `rocketqs://` known to Kombu. Never raises: it is called whenever Kombu is imported."""
    try:
        from kombu.transport import TRANSPORT_ALIASES
    except ImportError:
        return
    TRANSPORT_ALIASES.setdefault("rocketq", "rocketq_kombu.transport:Transport")
    TRANSPORT_ALIASES.setdefault("rocketqs", "rocketq_kombu.transport:Transport")


register()
