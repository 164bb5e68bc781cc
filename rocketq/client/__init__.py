"""Producers and consumers."""

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
