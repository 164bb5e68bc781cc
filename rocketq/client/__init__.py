"""Producers and consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rocketq.lazy import offers

if TYPE_CHECKING:
    from rocketq.client.instance import ClientInstance as ClientInstance
    from rocketq.client.pop_consumer import PopConsumer as PopConsumer
    from rocketq.client.producer import AsyncProducer as AsyncProducer
    from rocketq.client.pull import PullConsumer as PullConsumer
    from rocketq.client.push import PushConsumer as PushConsumer
    from rocketq.client.results import ConsumeResult as ConsumeResult
    from rocketq.client.results import DeadLetter as DeadLetter
    from rocketq.client.results import RetryLater as RetryLater
    from rocketq.client.selectors import Selector as Selector
    from rocketq.client.selectors import by_hash as by_hash
    from rocketq.client.sending import SendResult as SendResult
    from rocketq.client.sync_producer import Producer as Producer
    from rocketq.client.transactions import AsyncTransaction as AsyncTransaction
    from rocketq.client.transactions import Transaction as Transaction

#: Where each name lives.
_HOME = {
    "AsyncProducer": "producer",
    "AsyncTransaction": "transactions",
    "ClientInstance": "instance",
    "ConsumeResult": "results",
    "DeadLetter": "results",
    "PopConsumer": "pop_consumer",
    "Producer": "sync_producer",
    "PullConsumer": "pull",
    "PushConsumer": "push",
    "RetryLater": "results",
    "Selector": "selectors",
    "SendResult": "sending",
    "Transaction": "transactions",
    "by_hash": "selectors",
}

__all__ = sorted(_HOME)
__getattr__ = offers(__name__, _HOME)
