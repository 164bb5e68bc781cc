"""One message's way through middleware, payload and function, and what becomes of it."""

from __future__ import annotations

import logging
import time
from typing import Any

from rocketq import signals
from rocketq.app import RocketQ
from rocketq.client import ConsumeResult, DeadLetter, RetryLater
from rocketq.consumers import Consumer, Reject, Retry
from rocketq.message import ReceivedMessage
from rocketq.middleware import Chain
from rocketq.payload import PayloadError

logger = logging.getLogger("rocketq.worker")

Outcome = ConsumeResult | RetryLater | DeadLetter
SUCCESS = ConsumeResult.SUCCESS


class Execution:
    """One consumer function at work. `run` and `arun` never raise, except when an async function is cancelled."""

    def __init__(self, app: RocketQ, consumer: Consumer) -> None:
        self.app = app
        self.consumer = consumer

    def run(self, message: ReceivedMessage) -> Outcome:
        """Call a sync function; on a thread of the pool."""
        chain, start = Chain(self.app.middleware), time.monotonic()
        result, error = None, None
        try:
            result = self.consumer.function(*self._begin(chain, message))
        except (Exception, SystemExit) as caught:  # noqa: BLE001 `report` logs it
            error = caught
        return self._end(chain, message, result, error, start)

    async def arun(self, message: ReceivedMessage) -> Outcome:
        """Call an async function."""
        chain, start = Chain(self.app.middleware), time.monotonic()
        result, error = None, None
        try:
            result = await self.consumer.function(*self._begin(chain, message))
        except (Exception, SystemExit) as caught:  # noqa: BLE001 `report` logs it
            error = caught
        except BaseException as caught:  # cancelled: the worker hands the message back
            chain.after("after_consume", self.consumer, message, None, caught)
            raise
        return self._end(chain, message, result, error, start)

    def _begin(self, chain: Chain, message: ReceivedMessage) -> tuple[Any, ...]:
        signals.emit(signals.received, self.app, consumer=self.consumer, message=message)
        if self.app.middleware:
            chain.before("before_consume", self.consumer, message)
        return self.consumer.arguments(message)

    def _end(
        self, chain: Chain, message: ReceivedMessage, result: Any, error: BaseException | None, start: float
    ) -> Outcome:
        chain.after("after_consume", self.consumer, message, result, error)
        seconds = time.monotonic() - start
        if error is None:
            signals.emit(signals.consumed, self.app, consumer=self.consumer, message=message, seconds=seconds)
            return SUCCESS
        signals.emit(signals.failed, self.app, consumer=self.consumer, message=message, error=error)
        outcome = decide(self.consumer, message, error)
        report(self.consumer, message, error, outcome)
        return outcome


def decide(consumer: Consumer, message: ReceivedMessage, error: BaseException) -> Outcome:
    """What becomes of a message whose function raised `error`.

    | consumer | error | outcome |
    |---|---|---|
    | broadcast | any | success: there is nobody to hand it back to |
    | periodic | any | success: the next tick comes |
    | other | Reject, PayloadError | dead letter queue: it will never work |
    | other | any, retries used up | dead letter queue |
    | other | Retry | again, with its delay level, if it names one |
    | other | any other | again, after the consumer's next `retry_delays` |
    """
    if consumer.drops_failures:
        return SUCCESS
    if isinstance(error, (Reject, PayloadError)):
        return DeadLetter(error)
    if consumer.retries is not None and message.reconsume_times >= consumer.retries:
        return DeadLetter(error)
    level = error.delay_level if isinstance(error, Retry) else 0
    return RetryLater(level or None, None if level else consumer.retry_delay(message.reconsume_times), error)


def report(consumer: Consumer, message: ReceivedMessage, error: BaseException, outcome: Outcome) -> None:
    """Log a failure: with a traceback, unless the function asked for what happens or the body explains it."""
    if isinstance(outcome, RetryLater):
        next_step = "will be delivered again"
    else:
        next_step = "goes to the dead letter queue" if isinstance(outcome, DeadLetter) else "is dropped"
    expected = isinstance(error, (Retry, Reject, PayloadError))
    logger.log(
        logging.INFO if isinstance(error, Retry) and isinstance(outcome, RetryLater) else logging.ERROR,
        "%s failed on message %s of topic %s (group %s, attempt %d), which %s: %s: %s",
        consumer.name,
        message.message_id,
        message.topic,
        consumer.group,
        message.reconsume_times + 1,
        next_step,
        type(error).__name__,
        error,
        exc_info=None if expected else error,
    )
