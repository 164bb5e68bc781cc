"""RocketMQ for Python: server, client and worker on Apache RocketMQ's wire protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rocketq.lazy import offers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rocketq.app import RocketQ as RocketQ
    from rocketq.app import consumer as consumer
    from rocketq.client import AsyncProducer as AsyncProducer
    from rocketq.client import PopConsumer as PopConsumer
    from rocketq.client import Producer as Producer
    from rocketq.client import PullConsumer as PullConsumer
    from rocketq.client import PushConsumer as PushConsumer
    from rocketq.client import SendResult as SendResult
    from rocketq.consumers import Reject as Reject
    from rocketq.consumers import Retry as Retry
    from rocketq.embedded import EmbeddedServer as EmbeddedServer
    from rocketq.filters import Sql as Sql
    from rocketq.message import Message as Message
    from rocketq.message import MessageQueue as MessageQueue
    from rocketq.message import ReceivedMessage as ReceivedMessage
    from rocketq.middleware import Middleware as Middleware

#: Where each name lives. They are imported on first use: a server process never loads the client, nor a client the
#: server.
_HOME = {
    "AsyncProducer": "client",
    "EmbeddedServer": "embedded",
    "Message": "message",
    "MessageQueue": "message",
    "Middleware": "middleware",
    "Producer": "client",
    "PullConsumer": "client",
    "PopConsumer": "client",
    "PushConsumer": "client",
    "ReceivedMessage": "message",
    "Reject": "consumers",
    "Retry": "consumers",
    "RocketQ": "app",
    "SendResult": "client",
    "Sql": "filters",
    "consumer": "app",
}

__all__ = sorted(_HOME)
__getattr__ = offers(__name__, _HOME)
