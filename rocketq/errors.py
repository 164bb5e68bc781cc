"""Every exception that rocketq raises on purpose."""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "ConfigError",
    "ConnectFailed",
    "ConnectionLost",
    "HeaderError",
    "InvalidMessage",
    "ProtocolError",
    "RemotingError",
    "RequestTimeout",
    "RocketQError",
    "RouteNotFound",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "TooManyInFlight",
    "TopicBeingDeleted",
]


class RocketQError(Exception):
    """Base of all errors of this package."""


class ConfigError(RocketQError):
    """A setting is missing, unknown or out of range."""


class InvalidMessage(RocketQError, ValueError):
    """A message, topic or group breaks a rule and was not sent."""


class ProtocolError(RocketQError):
    """The peer sent bytes that are not a remoting frame; the connection has to be closed."""


class HeaderError(RocketQError):
    """A well-formed frame carries a header field that is missing or not of its type."""


class RemotingError(RocketQError):
    """A request could not be carried out; the base of the transport's failures."""


class ConnectFailed(RemotingError):
    """No connection to the address could be made."""


class ConnectionLost(RemotingError):
    """The connection ended before the answer came; the peer may or may not have acted."""


class RequestTimeout(RemotingError):
    """No answer within the deadline; the peer may or may not have acted."""


class TooManyInFlight(RemotingError):
    """The connection's limit of unanswered requests is reached."""


class RouteNotFound(RocketQError):
    """No NameServer (and no cache) knows brokers for the topic."""


class BrokerError(RocketQError):
    """A server answered with a code other than success.

    Attributes: ``code`` (see :class:`rocketq.remoting.codes.ResponseCode`), ``remark`` (the server's
    text), ``address`` (``host:port`` of the server).
    """

    def __init__(self, code: int, remark: str | None = None, address: str = "") -> None:
        self.code = code
        self.remark = remark or ""
        self.address = address
        super().__init__(f"{address or 'server'} answered code {code}: {self.remark or 'no remark'}")


class StoreError(RocketQError):
    """The store cannot do what was asked; the text names the file."""


class StoreFull(StoreError):
    """The disk is full or past its mark: writes are refused, reads go on."""


class TopicBeingDeleted(StoreFull):
    """A topic of the name `topic` is being deleted: it takes messages again when that is done."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"topic {topic} is being deleted: send again when that is done, or delete it again if it failed"
        )
        self.topic = topic


class StoreLocked(StoreError):
    """The data directory is in use by another process, whose pid the text names."""
