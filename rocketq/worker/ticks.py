"""The chain of timer messages that fires one periodic function; docs/periodic.md says why it works.

In short: a step's message is acknowledged only after the next one is stored, and counts only when it is later than
all before it in its queue. So the chain cannot end by a crash, and what was sent twice is dropped when it arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import msgspec

from rocketq.app import RocketQ
from rocketq.client import AsyncProducer, ConsumeResult, RetryLater, by_hash
from rocketq.client.queue_calls import QueueCalls
from rocketq.consumers import Consumer
from rocketq.errors import BrokerError, RemotingError, RouteNotFound
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.schedule import Schedule, Step

logger = logging.getLogger("rocketq.worker")

T = TypeVar("T")

#: The property of a step's message that names its schedule, and the tags of ticks and halts.
SCHEDULE, TICK, HALT = "schedule", "tick", "halt"
#: Seconds between two looks whether the chain is there, and how late its next message may be until then.
CHECK_INTERVAL = 20.0
GRACE = timedelta(seconds=20)
#: A tick that is less late than this was not missed: the ones after it follow one by one.
LATE = timedelta(seconds=10)
#: Messages of the queue that are looked at; copies of a step come close together, all when it is due.
LOOK_BACK = 32
#: Deliveries of a message with another schedule before it is dropped, each twice as late as the one before: it may be
#: for workers with newer or older code. In all some four minutes.
HANDED_ON = 8
#: Brokers may be early by this, in seconds; more is a clock that differs.
EARLIEST = 1.0
#: Seconds between attempts to reach a broker.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


def now() -> datetime:
    return datetime.now(timezone.utc)


class Ticks:
    """Begins the chain of `consumer`, which has a schedule, where there is none, and takes its messages."""

    def __init__(self, app: RocketQ, consumer: Consumer) -> None:
        assert consumer.schedule is not None
        self.app = app
        self.consumer = consumer
        self.schedule: Schedule = consumer.schedule

    async def keep(self) -> None:
        """Look regularly whether the chain is there, and begin it when it is not."""
        while True:
            await self._insist(self._begin)
            await asyncio.sleep(CHECK_INTERVAL)

    async def take(self, message: ReceivedMessage) -> ConsumeResult | RetryLater | None:
        """Look after the chain. Returns None when the function is to be called, else what becomes of the message."""
        at = self._time_of(message)
        if at is None:
            return self._stranger(message)
        if message.reconsume_times == 0 and await self._insist(lambda: self._is_repeated(message, at)):
            logger.debug("%s: another message for %s is dropped", self.consumer.name, at)
            return ConsumeResult.SUCCESS
        await asyncio.sleep(min(max(0.0, (at - now()).total_seconds()), EARLIEST))
        moment = now()
        missed = moment - at > LATE and self.consumer.misfire != "all"
        step = self.schedule.next_step(moment if missed else at)
        await self._insist(lambda: self._send(step))
        if message.tag != TICK:
            return ConsumeResult.SUCCESS
        if missed and self.consumer.misfire == "skip" and self.schedule.next_tick(at) <= moment:
            logger.warning("%s: the tick of %s was missed and is skipped", self.consumer.name, at)
            return ConsumeResult.SUCCESS
        return None

    def _time_of(self, message: ReceivedMessage) -> datetime | None:
        """When a message of this schedule is due; None for any other message."""
        if message.properties.get(SCHEDULE) != self.schedule.text:
            return None
        try:
            at = msgspec.json.decode(message.body, type=datetime)
        except msgspec.DecodeError:
            return None
        return at if at.tzinfo is not None else None

    def _stranger(self, message: ReceivedMessage) -> ConsumeResult | RetryLater:
        other = message.properties.get(SCHEDULE)
        if other not in (None, self.schedule.text) and message.reconsume_times < HANDED_ON:
            return RetryLater(delay=2.0**message.reconsume_times)
        logger.warning(
            "%s: message %s of topic %s is dropped: its schedule is %r, the function's is %r",
            self.consumer.name,
            message.message_id,
            message.topic,
            other,
            self.schedule.text,
        )
        return ConsumeResult.SUCCESS

    async def _is_repeated(self, message: ReceivedMessage, at: datetime) -> bool:
        producer = await self.app.aproducer()
        await producer.instance.topic(message.topic)
        queue = MessageQueue(message.topic, message.broker_name, message.queue_id)
        last = await self._last(producer, queue, message.queue_offset)
        return last is not None and at <= last

    async def _begin(self) -> None:
        """Send the first step, unless the chain is there. In doubt it is sent: a second chain joins the first."""
        producer = await self.app.aproducer()
        last: datetime | None = None
        calls = QueueCalls(producer.instance, self.consumer.group)
        for queue in (await producer.instance.topic(self.consumer.topic)).read_queues:
            found = await self._last(producer, queue, await calls.max_offset(queue))
            last = max(filter(None, (last, found)), default=None)
        moment = now()
        if last is None or self.schedule.next_step(last).at + GRACE < moment:
            await self._send(self.schedule.next_step(moment))

    async def _last(self, producer: AsyncProducer, queue: MessageQueue, end: int) -> datetime | None:
        """The latest step among the messages of the queue before offset `end`."""
        calls = QueueCalls(producer.instance, self.consumer.group)
        offset, times = max(0, end - LOOK_BACK), []
        while offset < end:
            pulled = await calls.pull(
                queue,
                offset,
                expression="*",
                sub_version=0,
                count=end - offset,
                suspend_ms=0,
                carry_expression=True,
            )
            times += [self._time_of(one) for one in pulled.messages if one.queue_offset < end]
            if pulled.next_offset <= offset:
                break
            offset = pulled.next_offset
        return max(filter(None, times), default=None)

    async def _send(self, step: Step) -> None:
        producer = await self.app.aproducer()
        message = Message(
            self.consumer.topic,
            msgspec.json.encode(step.at.astimezone(self.schedule.zone)),
            tag=TICK if step.is_tick else HALT,
            at=step.at,
            properties={SCHEDULE: self.schedule.text},
        )
        # always the same queue, as long as the same brokers are there: a chain's messages can be compared there
        await producer.send(message, selector=by_hash, key=self.consumer.topic)

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it as often as it takes: a chain waits for its broker, whatever happens to that."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await work()
            except (RemotingError, RouteNotFound, BrokerError) as error:
                logger.warning("%s: its next tick waits: %s", self.consumer.name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
