"""Running handlers: at once for what may overtake each other, in queue order for what must not.

Both services take messages from process queues, call the handler, and settle what it says. They know nothing of
pulling, rebalancing or committing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rocketq.client.assigned import Assigned
from rocketq.client.pulling import Statistics
from rocketq.client.results import ConsumeResult, DeadLetter, HandlerResult, OneResult, RetryLater, spread
from rocketq.client.send_back import SendBack, level_for
from rocketq.client.tracing import Tracer
from rocketq.message import ReceivedMessage
from rocketq.remoting.bodies import ConsumeMessageDirectlyResult
from rocketq.remoting.waiting import wait_event

log = logging.getLogger("rocketq.client")

Handler = Callable[[list[ReceivedMessage]], Awaitable[HandlerResult]]
MessageHook = Callable[[ReceivedMessage], None]

#: What becomes of messages whose handler takes too long (level 3 is 10 s).
TIMED_OUT = RetryLater(3)
#: Seconds until a message that nobody took back is tried here.
LOCAL_RETRY = 5.0


@dataclass(frozen=True)
class Rules:
    """How a consumer consumes. Times in seconds; `max_reconsume_times` None: the mode's own."""

    group: str
    batch: int
    concurrency: int
    broadcast: bool
    consume_timeout: float
    suspend: float
    max_reconsume_times: int | None


class Call:
    """A handler call that has not been settled."""

    __slots__ = ("assigned", "expired", "messages", "started")

    def __init__(self, assigned: Assigned, messages: list[ReceivedMessage]) -> None:
        self.assigned = assigned
        self.messages = messages
        self.started = time.monotonic()
        self.expired = False


class Consuming:
    """What both services share: calling the handler and telling about outcomes."""

    def __init__(
        self,
        rules: Rules,
        handler: Callable[[], Handler],
        send_back: SendBack | None,
        on_retried: MessageHook | None,
        on_dead_lettered: MessageHook | None,
        statistics: dict[str, Statistics],
    ) -> None:
        self.rules = rules
        #: Writes down what is consumed; None: nobody does.
        self.tracer: Tracer | None = None
        self._statistics = statistics
        self.running: set[Call] = set()
        #: Set when a call ends.
        self._ended = asyncio.Event()
        self._handler = handler
        self._send_back = send_back
        self._on_retried = on_retried
        self._on_dead_lettered = on_dead_lettered

    async def call_handler(self, messages: list[ReceivedMessage]) -> list[OneResult] | None:
        if self.tracer is None:
            return await call_handler(self._handler(), messages, self.rules.group)
        taken = self.tracer.taken(messages)
        results = await call_handler(self._handler(), messages, self.rules.group)
        self.tracer.done(taken, results)
        return results

    async def hand_back(self, message: ReceivedMessage, result: OneResult) -> bool:
        """Gives a failed message to the broker and tells the hook where it went."""
        assert self._send_back is not None
        dead = is_dead(result) or message.reconsume_times >= self._send_back.max_reconsume_times
        if dead:
            error = result.error if isinstance(result, (DeadLetter, RetryLater)) else None
            if not await self._send_back.dead_letter(message, error):
                return False
            log.warning(
                "group %s: %s goes to the dead letter queue, delivery %d",
                self.rules.group,
                message,
                message.attempt,
            )
        elif not await self._send_back.send_back(message, _level(result)):
            return False
        self._tell(self._on_dead_lettered if dead else self._on_retried, message)
        return True

    def _tell(self, hook: MessageHook | None, message: ReceivedMessage) -> None:
        tell(hook, message, self.rules.group)

    def _note(self, call: Call) -> Statistics:
        """Counts a finished call; the statistics of its topic."""
        topic = call.assigned.queue.topic
        statistics = self._statistics.get(topic)
        if statistics is None:
            statistics = self._statistics[topic] = Statistics()
        statistics.seconds += time.monotonic() - call.started
        call.assigned.last_consume_ms = int(time.time() * 1000)
        return statistics

    async def _until_quiet(self, timeout: float) -> None:
        """Waits until no call runs that still counts, or the time is over."""
        end = time.monotonic() + timeout
        while any(not call.expired for call in self.running):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._ended.clear()
            await wait_event(self._ended, left)

    def retried(self, message: ReceivedMessage) -> None:
        self._tell(self._on_retried, message)


def _is_cancelled() -> bool:
    """Whether somebody cancels the current task. Python 3.10 cannot tell, there it always counts as so."""
    task = asyncio.current_task()
    return sys.version_info < (3, 11) or task is None or task.cancelling() > 0


async def call_handler(handler: Handler, messages: list[ReceivedMessage], group: str) -> list[OneResult] | None:
    """The handler's word on each message, None when all succeeded; whatever it raises means to try all again."""
    try:
        return spread(await handler(messages), messages)
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise  # else something that the handler waited for was cancelled, not the handler
        log.exception(
            "group %s: the handler failed for %s%s",
            group,
            messages[0],
            f" and {len(messages) - 1} more" if len(messages) > 1 else "",
        )
        return [RetryLater(error=error)] * len(messages)


async def consume_directly(
    handler: Handler, message: ReceivedMessage, *, ordered: bool
) -> ConsumeMessageDirectlyResult:
    """What the handler says of a message that an operator gives it; nothing is settled by that."""
    begun = time.monotonic()
    remark: str | None = None
    try:
        results = spread(await handler([message]), [message])
        outcome = "CR_SUCCESS" if results in (None, [ConsumeResult.SUCCESS]) else "CR_LATER"
    except Exception as error:  # noqa: BLE001 - the operator who asked for it gets it as text
        outcome = "CR_THROW_EXCEPTION"
        remark = f"{type(error).__name__}: {error}"
    return ConsumeMessageDirectlyResult(
        consume_result=outcome,
        order=ordered,
        auto_commit=True,
        remark=remark,
        spent_time_mills=int((time.monotonic() - begun) * 1000),
    )


def tell(hook: MessageHook | None, message: ReceivedMessage, group: str) -> None:
    """Calls a hook, if there is one."""
    if hook is None:
        return
    try:
        hook(message)
    except Exception:  # what a hook does wrong must not stop the consumption
        log.exception("group %s: a hook failed for %s", group, message)


def is_dead(result: OneResult) -> bool:
    """Whether the handler wants no further attempt."""
    return result is ConsumeResult.DEAD_LETTER or isinstance(result, DeadLetter)


def _level(result: OneResult) -> int:
    """The delay level that the handler wants; 0: the broker's own."""
    if not isinstance(result, RetryLater):
        return 0
    return level_for(result.delay) if result.delay is not None else result.delay_level or 0


class Concurrently(Consuming):
    """Up to `concurrency` handler calls at once, whatever queue their messages are from."""

    def begin(self) -> None:
        self._ready: deque[tuple[Assigned, list[ReceivedMessage]]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.rules.concurrency)]
        self._later: set[asyncio.TimerHandle] = set()

    def arrived(self, assigned: Assigned) -> None:
        """There is something pending in the queue."""
        process = assigned.process
        while process.pending:
            self._ready.append((assigned, process.take(self.rules.batch)))
        self._wake(len(self._ready))

    def _wake(self, number: int) -> None:
        while number > 0 and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                number -= 1

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._ready:
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
            assigned, messages = self._ready.popleft()
            if not assigned.process.dropped:
                await self._consume(assigned, messages)

    async def _consume(self, assigned: Assigned, messages: list[ReceivedMessage]) -> None:
        call = Call(assigned, messages)
        self.running.add(call)
        try:
            results = await self.call_handler(messages)
            if not call.expired:
                await self._settle(call, results)
        finally:
            self.running.discard(call)
            self._ended.set()

    async def _settle(self, call: Call, results: list[OneResult] | None) -> None:
        messages, assigned = call.messages, call.assigned
        statistics = self._note(call)
        if results is None:
            statistics.ok += len(messages)
            self._done(assigned, messages)
            return
        stay: list[ReceivedMessage] = []
        for message, result in zip(messages, results, strict=True):
            if result is ConsumeResult.SUCCESS:
                statistics.ok += 1
                continue
            statistics.failed += 1
            if self.rules.broadcast:
                log.warning("group %s: message %s failed and is dropped (broadcast)", self.rules.group, message)
            elif not await self.hand_back(message, result):
                stay.append(message)
        self._done(assigned, [m for m in messages if m not in stay] if stay else messages)
        for message in stay:
            message.local_retries += 1
            self._again_later(assigned, message)

    def _done(self, assigned: Assigned, messages: Sequence[ReceivedMessage]) -> None:
        assigned.process.done(messages)
        assigned.room.set()

    def _again_later(self, assigned: Assigned, message: ReceivedMessage) -> None:
        def again() -> None:
            self._later.discard(handle)
            self._ready.append((assigned, [message]))
            self._wake(1)

        handle = asyncio.get_running_loop().call_later(LOCAL_RETRY, again)
        self._later.add(handle)

    async def expire(self) -> None:
        """Hands back what handlers have had for longer than the time-out; their answer will not count any more."""
        limit = time.monotonic() - self.rules.consume_timeout
        for call in [call for call in self.running if call.started <= limit and not call.expired]:
            call.expired = True
            log.warning(
                "group %s: a handler has had %s for more than %g s, handing it back",
                self.rules.group,
                call.messages[0],
                self.rules.consume_timeout,
            )
            done = []
            for message in call.messages:
                if self.rules.broadcast or await self.hand_back(message, TIMED_OUT):
                    done.append(message)
                else:
                    self._again_later(call.assigned, message)
            self._done(call.assigned, done)

    async def finish(self, timeout: float) -> bool:
        """Starts nothing more and waits for what runs; False when some was still running after `timeout`."""
        self._ready.clear()
        for handle in self._later:
            handle.cancel()
        await self._until_quiet(timeout)
        clean = not self.running
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        return clean


class Orderly(Consuming):
    """One handler call at a time per queue, in queue order; a message that fails is tried again before the next."""

    def begin(self) -> None:
        self._slots = asyncio.Semaphore(self.rules.concurrency)
        self._stopping = False

    def arrived(self, assigned: Assigned) -> None:
        """There is something pending in the queue."""
        assigned.arrived.set()

    async def consume(self, assigned: Assigned) -> None:
        """Consumes a queue until it is dropped. Cancelling it while the handler runs cancels the handler."""
        process = assigned.process
        while not process.dropped and not self._stopping:
            if not process.pending or not assigned.locked:
                assigned.arrived.clear()
                await wait_event(assigned.arrived, 1.0)
                continue
            async with self._slots:
                if process.dropped or self._stopping or not assigned.locked:
                    continue
                failed = await self._consume(assigned, process.take(self.rules.batch))
            if failed and not process.dropped:
                await self._pause(assigned)

    async def _pause(self, assigned: Assigned) -> None:
        end = time.monotonic() + self.rules.suspend
        while not assigned.process.dropped and not self._stopping:
            left = end - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, 0.1))

    async def _consume(self, assigned: Assigned, messages: list[ReceivedMessage]) -> bool:
        """True when something has to be tried again."""
        if not messages:
            return False
        call = Call(assigned, messages)
        self.running.add(call)
        try:
            results = await self.call_handler(messages)
            return await self._settle(call, results)
        finally:
            self.running.discard(call)
            self._ended.set()

    async def _settle(self, call: Call, results: list[OneResult] | None) -> bool:
        assigned, messages = call.assigned, call.messages
        statistics = self._note(call)
        if results is None:
            statistics.ok += len(messages)
            self._done(assigned, messages)
            return False
        for index, (message, result) in enumerate(zip(messages, results, strict=True)):
            if result is ConsumeResult.SUCCESS:
                statistics.ok += 1
                continue
            statistics.failed += 1
            limit = self.rules.max_reconsume_times
            if self.rules.broadcast:
                log.warning("group %s: message %s failed and is dropped (broadcast)", self.rules.group, message)
                continue
            given_up = is_dead(result) or (limit is not None and message.reconsume_times >= limit)
            if given_up:
                error = result.error if isinstance(result, (DeadLetter, RetryLater)) else None
                if await self.hand_back(message, DeadLetter(error)):
                    continue
            message.local_retries += 1
            self._done(assigned, messages[:index])
            assigned.process.put_back(messages[index:])
            if not given_up:
                self.retried(message)
            return True
        self._done(assigned, messages)
        return False

    def _done(self, assigned: Assigned, messages: Sequence[ReceivedMessage]) -> None:
        assigned.process.done(messages)
        assigned.room.set()

    async def expire(self) -> None:
        """Ordered messages cannot be handed back: their handlers may take as long as they need."""

    async def finish(self, timeout: float) -> bool:
        """Starts nothing more and waits for what runs; False when some was still running after `timeout`."""
        self._stopping = True
        await self._until_quiet(timeout)
        return not self.running
