"""Writing down what becomes of messages, in the trace topic (`AsyncTraceDispatcher`).

Records are collected, and sent ten at a time or when the oldest is five seconds old. Who is traced never waits for
that and never hears of its failures: when records come faster than they can be sent, some are dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple, Protocol

from rocketq import properties as names
from rocketq import trace as traces
from rocketq.client.results import ConsumeResult, DeadLetter, OneResult, RetryLater
from rocketq.client.sending import Outgoing, SendResult
from rocketq.client.troubles import Troubles
from rocketq.errors import RocketQError
from rocketq.message import Message, ReceivedMessage, new_unique_id
from rocketq.names import GROUP_MAX_LENGTH, TRACE_TOPIC
from rocketq.record import TRANSACTION_COMMIT, CorruptRecord
from rocketq.remoting.headers import EndTransactionHeader
from rocketq.remoting.waiting import cancel_all, wait_event
from rocketq.trace import Trace

log = logging.getLogger("rocketq.client")

#: Records of one message, and seconds that a record waits for others.
BATCH, MAX_AGE = 10, 5.0
#: Records that wait; more are dropped.
MAX_QUEUED = 2048
#: Messages that are sent at once; bytes of one, and of its keys.
IN_FLIGHT, MAX_BYTES, MAX_KEYS = 8, 128_000, 16_000
#: Seconds that the last records have when the client closes, and that a message has.
GOODBYE, TIMEOUT = 3.0, 5.0
DEFAULT_REGION = "DefaultRegion"

_numbers = itertools.count(1)
_DELAYS = frozenset({names.DELAY, names.TIMER_DELAY_SEC, names.TIMER_DELAY_MS, names.TIMER_DELIVER_MS})


class Sender(Protocol):
    """The producer that sends the records, an `AsyncProducer`."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def send(self, message: Message, *, timeout: float) -> Awaitable[object]: ...


def topic_of(trace: bool | str) -> str | None:
    """The topic that the option `trace` of clients means; None: no tracing."""
    if isinstance(trace, str):
        return trace
    return TRACE_TOPIC if trace else None


def group_of(group: str, kind: str) -> str:
    """The group of the producer that sends the records of `group`; `kind` is PRODUCE or CONSUME."""
    return f"_INNER_TRACE_PRODUCER-{group}-{kind}-{next(_numbers)}"[:GROUP_MAX_LENGTH]


class Tracer:
    """Collects the records of one client and sends them to `topic`. `start` and `close` belong to its event loop."""

    def __init__(self, group: str, topic: str, sender: Sender) -> None:
        self.group = group
        self.topic = topic
        #: Records that found no room, or could not be sent.
        self.dropped = 0
        self._sender = sender
        self._queue: deque[Trace] = deque()
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._troubles = Troubles()

    # life

    async def start(self) -> None:
        await self._sender.start()
        self._task = asyncio.create_task(self._run(), name=f"rocketq-trace-{self.group}")

    async def close(self) -> None:
        """Sends what waits, as far as that is done in a moment."""
        if self._task is None:
            return
        self._closing = True
        self._some.set()
        self._full.set()
        _, late = await asyncio.wait({self._task}, timeout=GOODBYE)
        if late:
            await cancel_all(late)
            log.warning("group %s: %d trace records were not sent before the end", self.group, len(self._queue))
        self._task = None
        await self._sender.close()

    async def _run(self) -> None:
        while self._queue or not self._closing:
            await self._some.wait()
            if not self._closing:
                await wait_event(self._full, MAX_AGE)
            await self._send_some()

    async def _send_some(self) -> None:
        messages: list[Message] = []
        while self._queue and len(messages) < IN_FLIGHT:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            messages += self._messages(batch)
        if len(self._queue) < BATCH:
            self._full.clear()
        if not self._queue:
            self._some.clear()
        await asyncio.gather(*[self._send(message) for message in messages])

    def _messages(self, batch: Sequence[Trace]) -> list[Message]:
        """The records as one message, or as several where they are large; one that is too large is dropped."""
        body = "".join([traces.encode(trace) for trace in batch]).encode()
        keys = {trace.message_id for trace in batch}.union(*[trace.keys.split() for trace in batch])
        text = " ".join(sorted(keys))
        if len(body) <= MAX_BYTES and len(text) <= MAX_KEYS:
            return [Message(self.topic, body, keys=text)]
        if len(batch) == 1:
            self._drop(f"one of message {batch[0].message_id} is too large")
            return []
        half = len(batch) // 2
        return self._messages(batch[:half]) + self._messages(batch[half:])

    async def _send(self, message: Message) -> None:
        try:
            await self._sender.send(message, timeout=TIMEOUT)
        except RocketQError as error:
            self._drop(str(error))
        else:
            self._troubles.over(self.topic)

    def _drop(self, why: str) -> None:
        self.dropped += 1
        level = self._troubles.level(self.topic)
        log.log(level, "group %s: trace records for topic %s are lost: %s", self.group, self.topic, why)

    def add(self, trace: Trace) -> None:
        """Take a record."""
        if len(self._queue) >= MAX_QUEUED:
            self._drop(f"{MAX_QUEUED} wait already")
            return
        self._queue.append(trace)
        self._some.set()
        if len(self._queue) >= BATCH:
            self._full.set()

    # what is written down

    def sent(
        self,
        outgoing: Outgoing,
        results: Sequence[SendResult],
        ext: Mapping[str, str],
        address: str,
        seconds: float,
    ) -> None:
        """A broker has answered a send with `ext`, after so many seconds. It may want no traces (TRACE_ON)."""
        for trace in sent(self.group, outgoing, results, ext, address, seconds, self.topic):
            self.add(trace)

    def recalled(self, topic: str, message_id: str) -> None:
        """A delayed message was taken back."""
        self.add(Trace(traces.RECALL, message_id, _now_ms(), DEFAULT_REGION, self.group, topic))

    def ended(self, half: Message | ReceivedMessage, header: EndTransactionHeader, address: str) -> None:
        """The broker at `address` was told how the transaction of `half` ends."""
        commits = header.commit_or_rollback == TRANSACTION_COMMIT
        self.add(
            Trace(
                traces.END_TRANSACTION,
                header.msg_id or "",
                _now_ms(),
                half.properties.get(names.MSG_REGION, DEFAULT_REGION),
                self.group,
                half.topic,
                half.tag or "",
                " ".join(half.keys),
                address,
                message_type=traces.COMMIT,  # Java's say so of a rollback too
                transaction_id=header.transaction_id or "",
                state="COMMIT_MESSAGE" if commits else "ROLLBACK_MESSAGE",
                from_check=header.from_transaction_check,
            )
        )

    def taken(self, messages: Sequence[ReceivedMessage]) -> Taken:
        """Messages go to a handler; what it makes of them goes to `done`."""
        taken = Taken(new_unique_id(), time.monotonic(), messages)
        now = _now_ms()
        for message in messages:
            if _wanted(message):
                self.add(
                    Trace(
                        traces.SUB_BEFORE,
                        message.message_id,
                        now,
                        message.properties.get(names.MSG_REGION, DEFAULT_REGION),
                        self.group,
                        keys=" ".join(message.keys),
                        request_id=taken.request_id,
                        retries=message.reconsume_times,
                    )
                )
        return taken

    def done(self, taken: Taken, results: Sequence[OneResult] | None) -> None:
        """The handler of `taken` has returned, with a result for each message; None: success of all."""
        cost = int((time.monotonic() - taken.begun) * 1000 / len(taken.messages))
        now = _now_ms()
        for index, message in enumerate(taken.messages):
            outcome = traces.SUCCESS if results is None else _outcome(results[index])
            if _wanted(message):
                self.add(
                    Trace(
                        traces.SUB_AFTER,
                        message.message_id,
                        now,
                        group=self.group,
                        keys=" ".join(message.keys),
                        request_id=taken.request_id,
                        cost=cost,
                        success=outcome == traces.SUCCESS,
                        outcome=outcome,
                    )
                )


class Taken(NamedTuple):
    """Messages that a handler has since `begun`."""

    request_id: str
    begun: float
    messages: Sequence[ReceivedMessage]


def _wanted(message: ReceivedMessage) -> bool:
    try:
        return message.properties.get(names.TRACE_ON) != "false"
    except CorruptRecord:
        return False  # nothing can be said of it


def sent(
    group: str,
    outgoing: Outgoing,
    results: Sequence[SendResult],
    ext: Mapping[str, str],
    address: str,
    seconds: float,
    trace_topic: str,
) -> list[Trace]:
    """The records of a send that was answered; none when the broker wants none, nor for the trace topic itself."""
    if ext.get(names.TRACE_ON) == "false" or outgoing.topic == trace_topic:
        return []
    cost = int(seconds * 1000)
    begun = _now_ms() - cost
    region = ext.get(names.MSG_REGION) or DEFAULT_REGION
    return [
        Trace(
            traces.PUB,
            result.message_id,
            begun,
            region,
            group,
            outgoing.topic,
            message.tag or "",
            " ".join(message.keys),
            address,
            len(message.body),
            cost,
            _message_type(message),
            result.offset_message_id,
            result.status == "SEND_OK",
        )
        for message, result in zip(outgoing.messages, results, strict=True)
    ]


def _message_type(message: Message) -> int:
    if message.properties.get(names.TRAN_MSG) == "true":
        return traces.HALF
    return traces.NORMAL if _DELAYS.isdisjoint(message.properties) else traces.DELAY


def _outcome(result: OneResult) -> int:
    if result is ConsumeResult.SUCCESS:
        return traces.SUCCESS
    failed = isinstance(result, (RetryLater, DeadLetter)) and result.error is not None
    return traces.EXCEPTION if failed else traces.FAILED


def _now_ms() -> int:
    return int(time.time() * 1000)
