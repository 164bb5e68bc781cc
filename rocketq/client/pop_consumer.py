"""The POP consumer: brokers give out messages of any queue, and each is ours for a lease.

No queue belongs to a member, so members come and go without a pause, and a slow message holds up nobody. What works for
long is renewed meanwhile. What a member held that died comes again when the grace is over, as the broker sees then that
all its connections are ended; without such an end, and on Apache's brokers, when the lease is over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rocketq.client.assigned import Assigned
from rocketq.client.consuming import Handler, MessageHook, call_handler, consume_directly, is_dead, tell
from rocketq.client.instance import ClientInstance
from rocketq.client.leases import Held, Leases
from rocketq.client.membership import CLUSTERING, Membership, now_ms
from rocketq.client.pop_calls import MOST_AT_ONCE, OLDEST, Holder, PopCalls, PopNotSupported, pop_request, read_pop
from rocketq.client.producer import AsyncProducer
from rocketq.client.pulling import AFTER_ERROR, Statistics
from rocketq.client.push import MAX_RECONSUME_TIMES
from rocketq.client.report import running_info
from rocketq.client.results import ConsumeResult, DeadLetter, OneResult, RetryLater
from rocketq.client.send_back import LEVELS, SendBack
from rocketq.client.tracing import Tracer, group_of, topic_of
from rocketq.client.troubles import Troubles
from rocketq.errors import BrokerError, ConfigError, RequestTimeout, RocketQError, RouteNotFound
from rocketq.filters import Sql
from rocketq.message import MessageQueue, ReceivedMessage
from rocketq.names import RETRY_PREFIX, retry_topic
from rocketq.rebalance import average
from rocketq.remoting.bodies import ConsumeMessageDirectlyResult, ConsumerData
from rocketq.remoting.command import Command
from rocketq.remoting.waiting import cancel_all, wait_event

log = logging.getLogger("rocketq.client")

#: Seconds that a pop waits at the broker for messages, and that its answer may be late.
POLL, LATE = 15.0, 5.0
#: What is answered "nothing" sooner than this (seconds) was refused: the broker's clock is ahead of ours.
TOO_SOON = POLL / 4
#: Seconds to come back after a connection has ended: attempts to connect are up to 3 s apart.
GRACE = 5.0
#: Seconds between looks for brokers that are new.
LOOK = 20.0
#: A broker gives up after so many attempts, whatever the consumer allows.
MOST_ATTEMPTS = 16
CONSUME_POP = "CONSUME_POP"


class PopConsumer:
    """A member of a consumer group: messages come to its handler. For groups whose order does not matter.

    `handler`, `from_where`, `concurrency`, `max_reconsume_times` (16 at most: brokers give up then), `consume_timeout`,
    `on_retried`, `on_dead_lettered`, `trace`, `instance` and further options are those of `PushConsumer`; the handler
    gets one message a call. A `RetryLater` may name any delay. `lease`: seconds until a message comes again when this
    process is not heard of any more; it is renewed while the message waits or is worked on. `grace`: seconds until it
    comes again when the process has ended, or its connections; a living one connects anew within that time (where the
    network may keep it from that for longer, take as many as `lease` has). Consumers that share an instance should have
    the same.

    Raises InvalidMessage for an illegal group or topic, ConfigError for bad settings.
    """

    ordered = False

    def __init__(
        self,
        group: str,
        namesrv: str | None = None,
        handler: Handler | None = None,
        *,
        from_where: str | int = "LAST",
        concurrency: int = 20,
        max_reconsume_times: int | None = None,
        lease: float = 30.0,
        grace: float = GRACE,
        consume_timeout: float = 900.0,
        on_retried: MessageHook | None = None,
        on_dead_lettered: MessageHook | None = None,
        trace: bool | str = False,
        instance: ClientInstance | None = None,
        **options: Any,
    ) -> None:
        if (namesrv is None) == (instance is None):
            raise ConfigError(f"consumer group {group}: give the NameServers' addresses, or an instance")
        limit = MAX_RECONSUME_TIMES if max_reconsume_times is None else max_reconsume_times
        if not 0 <= limit <= MOST_ATTEMPTS:
            raise ConfigError(f"consumer group {group}: max_reconsume_times={limit} is not in 0..{MOST_ATTEMPTS}")
        if concurrency < 1 or lease < 1:
            raise ConfigError(f"consumer group {group}: concurrency and lease (seconds) have to be at least 1")
        if not 0 <= grace < math.inf:
            raise ConfigError(f"consumer group {group}: grace={grace} has to be a number of seconds, 0 or more")
        self.group = group
        self.instance = instance or ClientInstance(namesrv or "", **options)
        self.membership = Membership(
            group,
            self.instance,
            model=CLUSTERING,
            from_where=from_where,
            strategy=average,
            consume_type=CONSUME_POP,
        )
        self.handler = handler
        self.concurrency = concurrency
        self.statistics: defaultdict[str, Statistics] = defaultdict(Statistics)
        #: None ever is: administrators are told so.
        self.assigned: dict[MessageQueue, Assigned] = {}
        self._limit = limit
        self._lease = lease
        self._consume_timeout = consume_timeout
        self._on_retried = on_retried
        self._on_dead_lettered = on_dead_lettered
        self._calls = PopCalls(self.instance, group, Holder(self.instance.holder, round(grace * 1000)))
        self._room = asyncio.Event()
        self._leases = Leases(self._calls, lease, self._room.set)
        self._send_back = SendBack(self.instance, group, limit)
        self._tracer: Tracer | None = None
        trace_topic = topic_of(trace)
        if trace_topic is not None:
            self._tracer = Tracer(
                group, trace_topic, AsyncProducer(group_of(group, "CONSUME"), instance=self.instance)
            )
        self._ready: asyncio.Queue[Held] = asyncio.Queue()
        self._look = asyncio.Event()
        #: what handlers have now, and since when
        self._running_calls: dict[Held, float] = {}
        self._quiet = asyncio.Event()
        #: topic -> those of its first brokers in which the group may not have a position in every queue yet
        self._unprepared: dict[str, set[str]] = {}
        self._pops: dict[tuple[str, str], asyncio.Task[None]] = {}
        #: broker -> ms that its clock is ahead, as far as it matters: it refuses pops that seem to be too old
        self._ahead: defaultdict[str, int] = defaultdict(int)
        self._tasks: list[asyncio.Task[None]] = []
        self._troubles = Troubles()
        self._running = False

    def __repr__(self) -> str:
        return f"<PopConsumer {self.group} of {', '.join(self.membership.subscriptions)}>"

    @property
    def in_flight(self) -> int:
        """Handler calls that are running."""
        return len(self._running_calls)

    def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """As `PushConsumer.subscribe`; before `start`."""
        self.membership.subscribe(topic, expression)

    # starting and stopping

    async def start(self) -> None:
        """Joins the group and begins to consume. Raises as `PushConsumer.start`."""
        if self._running:
            return
        if self.handler is None or not self.membership.subscriptions:
            raise ConfigError(
                f"consumer group {self.group}: set a handler and subscribe to a topic before start()"
            )
        await self.membership.join(self)
        # what somebody sends to this group alone, and what members handed back that pulled
        self.membership.subscribe(retry_topic(self.group), "*")
        await self._send_back.start()
        if self._tracer is not None:
            await self._tracer.start()
        self._running = True
        self._leases.begin()
        await self.instance.heartbeat()
        for topic in list(self.membership.subscriptions):
            await self._prepare(topic)
        self._tasks = [
            asyncio.create_task(self._work(), name=f"rocketq-work-{self.group}") for _ in range(self.concurrency)
        ]
        self._tasks.append(asyncio.create_task(self._keep_popping(), name=f"rocketq-pops-{self.group}"))
        self._tasks.append(asyncio.create_task(self._expire(), name=f"rocketq-expire-{self.group}"))

    async def _prepare(self, topic: str) -> list[str]:
        """The topic's brokers that know where the group begins which was nowhere yet."""
        try:
            queues = (await self.instance.topic(topic)).read_queues
        except RocketQError as error:
            self._not_yet(topic, error)
            return []
        brokers = {queue.broker_name for queue in queues}
        # brokers begin with the first message: that is right for those that come later, too
        first = set() if self.membership.from_where == "FIRST" else set(brokers)
        unprepared = self._unprepared.setdefault(topic, first)
        asked = unprepared & brokers
        begun = await asyncio.gather(
            *[self._begin_in([q for q in queues if q.broker_name == one]) for one in asked]
        )
        unprepared.difference_update(broker for broker, there in zip(asked, begun, strict=True) if there)
        return sorted(brokers - unprepared)

    async def _begin_in(self, queues: list[MessageQueue]) -> bool:
        """Sees to it that the group has a position in these queues of a broker; False when that is not known."""
        calls, young = self.membership.calls, self.membership.from_where == "LAST"
        try:
            for queue in queues:
                if await calls.committed(queue, zero_if_young=young) is None:
                    first = await self.membership.first_offset(queue)
                    # another member may have been faster, and be further
                    if await calls.committed(queue, zero_if_young=young) is None:
                        await calls.commit(queue, first, oneway=False)
        except RocketQError as error:
            self._not_yet(queue.topic, error)
            return False
        return True

    def _not_yet(self, topic: str, error: RocketQError) -> None:
        log.log(
            # nobody is told of a retry topic that is not needed yet
            logging.DEBUG if topic.startswith(RETRY_PREFIX) else self._troubles.level(topic, logging.INFO),
            "group %s: nothing comes of topic %s yet: %s",
            *(self.group, topic, error),
        )
        if isinstance(error, BrokerError):
            self.instance.heartbeat_soon()  # the broker may not know the group yet

    async def close(self, timeout: float = 30.0) -> bool:
        """Leaves the group: no more pops, waits up to `timeout` seconds for running handlers, acknowledges.

        What was not begun is given back at once, and that was no attempt (Apache's brokers count it as one); what was
        not finished comes again when the grace is over, or the lease. Returns whether everything was finished.
        """
        if not self._running:
            return True
        self._running = False
        *workers, keep, expire = self._tasks
        await cancel_all([keep, expire, *self._pops.values()])
        while not self._ready.empty():
            self._leases.give_back(self._ready.get_nowait(), 0, begun=False)
        end = time.monotonic() + timeout
        while self._running_calls and (left := end - time.monotonic()) > 0:
            self._quiet.clear()
            await wait_event(self._quiet, left)
        clean = not self._running_calls
        await cancel_all(workers)
        clean = await self._leases.close(max(1.0, end - time.monotonic())) and clean
        if self._tracer is not None:
            await self._tracer.close()
        await self.instance.remove_member(self)
        await self._send_back.close()
        await self.instance.release()
        return clean

    async def __aenter__(self) -> PopConsumer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # getting messages

    async def _keep_popping(self) -> None:
        """One loop a topic and broker."""
        while True:
            for topic in list(self.membership.subscriptions):
                for broker in await self._prepare(topic):
                    task = self._pops.get((topic, broker))
                    if task is None or task.done():
                        name = f"rocketq-pop-{topic}-{broker}"
                        self._pops[topic, broker] = asyncio.create_task(self._pop(topic, broker), name=name)
            settled = all(self._unprepared.get(topic) == set() for topic in self.membership.subscriptions)
            await wait_event(self._look, LOOK if settled else 1.0)
            self._look.clear()

    async def _pop(self, topic: str, broker: str) -> None:
        while True:
            room = 2 * self.concurrency - len(self._leases)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                more = await self._pop_once(topic, broker, min(room, MOST_AT_ONCE))
                self._troubles.over((topic, broker))
            except RouteNotFound:
                return  # begun again when there is one
            except RocketQError as error:
                level = self._troubles.level((topic, broker))
                hint = ", use mode='pull' there" if isinstance(error, PopNotSupported) else ""
                log.log(
                    level,
                    "group %s: no messages of topic %s from broker %s: %s%s",
                    *(self.group, topic, broker, error, hint),
                )
                more = False
            if not more:
                await asyncio.sleep(AFTER_ERROR)

    async def _pop_once(self, topic: str, broker: str, count: int) -> bool:
        """Wait for messages; False when the broker has too many that wait. Raises RocketQError."""
        subscription, ahead = self.membership.subscriptions[topic], self._ahead[broker]
        request = pop_request(
            self.group,
            topic,
            broker,
            count=count,
            lease_ms=round(self._lease * 1000),
            poll_ms=round(POLL * 1000),
            now_ms=now_ms() + ahead,
            expression=subscription.expression,
            expression_type=subscription.kind,
            init_mode=OLDEST,
            holder=self._calls.holder,
        )
        begun, losses = time.monotonic(), self._calls.losses(broker)
        answer = await self._calls.begin(broker, request, POLL + LATE)
        try:
            await asyncio.wait([answer])  # whoever cancels us must not cancel it: messages may be on their way
        except asyncio.CancelledError:
            answer.add_done_callback(lambda future: self._came_too_late(future, topic, broker))
            raise
        if isinstance(answer.exception(), RequestTimeout):
            self._ahead.pop(broker, None)
        popped = read_pop(answer.result(), self.group, topic, broker, self._calls.address(broker))
        seconds = time.monotonic() - begun
        if not popped.messages and not popped.full and seconds < TOO_SOON:
            self._ahead[broker] = ahead + round(POLL * 500)
        statistics = self.statistics[topic]
        statistics.pulls += 1
        statistics.pull_seconds += seconds
        statistics.pulled += len(popped.messages)
        for held in self._leases.take(popped, losses):
            # brokers compare hashes of tags
            if subscription.tags is None or held.message.has_tag(subscription.tags):
                self._ready.put_nowait(held)
            else:
                self._leases.ack([held])
        return not popped.full

    def _came_too_late(self, answer: asyncio.Future[Command], topic: str, broker: str) -> None:
        """Messages that were on their way when we stopped: others may have them."""
        if answer.cancelled() or answer.exception() is not None:
            return
        try:
            popped = read_pop(answer.result(), self.group, topic, broker, broker)
        except RocketQError:
            return
        for held in self._leases.take(popped, self._calls.losses(broker)):
            self._leases.give_back(held, 0, begun=False)

    # handing them to the handler

    async def _work(self) -> None:
        while True:
            held = await self._ready.get()
            if held.lost:
                continue
            self._running_calls[held] = time.monotonic()
            try:
                await self._consume(held)
            except Exception:
                log.exception(
                    "group %s: settling %s failed, it comes again unless that was done", self.group, held.message
                )
                self._leases.give_back(held, LEVELS[2])
            finally:
                self._running_calls.pop(held, None)
                self._quiet.set()

    async def _consume(self, held: Held) -> None:
        assert self.handler is not None
        message, begun = held.message, self._running_calls[held]
        taken = self._tracer.taken([message]) if self._tracer is not None else None
        results = await call_handler(self.handler, [message], self.group)
        if self._tracer is not None and taken is not None:
            self._tracer.done(taken, results)
        statistics = self.statistics[message.topic]
        statistics.seconds += time.monotonic() - begun
        if held not in self._running_calls:  # it had it for too long
            return
        result = results[0] if results else ConsumeResult.SUCCESS
        if result is ConsumeResult.SUCCESS:
            statistics.ok += 1
            self._leases.ack([held])
        else:
            statistics.failed += 1
            await self._failed(held, result)

    async def _failed(self, held: Held, result: OneResult) -> None:
        message = held.message
        if not is_dead(result) and message.reconsume_times < self._limit:
            self._leases.give_back(held, _delay(result, message))
            tell(self._on_retried, message, self.group)
            return
        error = result.error if isinstance(result, (DeadLetter, RetryLater)) else None
        if await self._send_back.dead_letter(message, error):
            log.warning(
                "group %s: %s goes to the dead letter queue, delivery %d", self.group, message, message.attempt
            )
            self._leases.ack([held])
            tell(self._on_dead_lettered, message, self.group)
        else:
            self._leases.give_back(held, LEVELS[2])

    async def _expire(self) -> None:
        """Give back what handlers have had for longer than the time-out; their answer will not count any more."""
        while True:
            await asyncio.sleep(min(5.0, self._consume_timeout / 4))
            limit = time.monotonic() - self._consume_timeout
            for held in [held for held, begun in self._running_calls.items() if begun <= limit]:
                del self._running_calls[held]
                log.warning(
                    "group %s: a handler has had %s for more than %g s, handing it back",
                    *(self.group, held.message, self._consume_timeout),
                )
                self._leases.give_back(held, LEVELS[2])

    # what brokers ask

    def topics(self) -> Iterable[str]:
        return self.membership.subscriptions

    def consumer_data(self) -> ConsumerData:
        return self.membership.consumer_data()

    def wake(self) -> None:
        """Routes changed: look for brokers that are new."""
        self._look.set()

    async def reset_offsets(self, topic: str, offsets: dict[MessageQueue, int]) -> None:
        """Positions are the brokers' own here; one that asks its members to move it is told so by us."""
        for queue, offset in offsets.items():
            log.warning("group %s: %s is reset to offset %d by the broker", self.group, queue, offset)
            try:
                await self.membership.calls.commit(queue, offset, oneway=False)
            except RocketQError as error:
                log.error("group %s: %s is not reset: %s", self.group, queue, error)

    def consumer_status(self, topic: str) -> bytes:
        return b'{"consumerTable":{},"messageQueueTable":{}}'

    def running_info(self) -> bytes:
        return running_info(self).encode()

    async def consume_directly(self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult:
        assert self.handler is not None
        return await consume_directly(self.handler, message, ordered=False)


def _delay(result: OneResult, message: ReceivedMessage) -> float:
    """Seconds until the next attempt: what the handler wants, else 10 s, 30 s, 1 m … 2 h as brokers do it."""
    if isinstance(result, RetryLater):
        if result.delay is not None:
            return result.delay
        if result.delay_level:
            return LEVELS[min(result.delay_level, len(LEVELS)) - 1]
    return LEVELS[min(2 + message.reconsume_times, len(LEVELS) - 1)]
