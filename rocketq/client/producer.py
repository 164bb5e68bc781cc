"""The asyncio producer: a thin driver around `sending`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from rocketq.client.batch import Accumulator, Batch
from rocketq.client.instance import ClientInstance
from rocketq.client.routes import Known
from rocketq.client.selectors import Selector
from rocketq.client.sending import COLLECTED, Delivery, SendCore, SendOptions, SendResult
from rocketq.client.tracing import Tracer, group_of, topic_of
from rocketq.client.transactions import AsyncTransaction, Check
from rocketq.errors import ConfigError, InvalidMessage, RocketQError, RouteNotFound
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.names import reply_topic
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command
from rocketq.remoting.connection import Connection

log = logging.getLogger("rocketq.client")

#: Messages that may wait for their answers before `send` waits and `send_nowait` refuses.
MAX_PENDING = 10_000


class AsyncProducer:
    """Sends messages of one producer group from an event loop.

    `namesrv`: `host:port;host:port`. `retries`: further attempts on another broker after a failure, within the
    time-out (never with a fixed queue, a selector or a key); `attempt_timeout`: seconds that one attempt may take of
    it, so that a broker that hangs leaves time for another one (None: all that is left). `linger_ms` above 0 collects
    messages of a topic for so long, or until `batch_bytes` are together, and sends them as one request. `max_pending`
    bounds the messages without an answer. `compress_from`: bodies of so many bytes and more are compressed.
    `latency_fault`: leave slow brokers out for a while. `trace`: write down in RMQ_SYS_TRACE_TOPIC (or the topic of
    that name) what was sent, when, and how long it took (`rocketq message trace`). `check` decides about transactions
    of this group that stay open, also those of processes that are gone: it gets the message and returns True (commit),
    False (roll back) or None (ask again later); brokers can ask as soon as one transaction was begun, or from the
    start for `check_topics`. All producers of a group should have it, as brokers ask any of them. Further options
    (`tls`, `access_key`, `route_cache`, `route_refresh`, …) are those of `ClientInstance`; or give an `instance` that
    others use too. Raises InvalidMessage for an illegal group, ConfigError for bad options.

    Use it as an async context manager, or call `start` and `close`.
    """

    def __init__(
        self,
        group: str,
        namesrv: str | None = None,
        *,
        instance: ClientInstance | None = None,
        retries: int = 2,
        attempt_timeout: float | None = None,
        compress_from: int = SendOptions.compress_from,
        max_message_size: int = SendOptions.max_message_size,
        latency_fault: bool = False,
        linger_ms: float = 0,
        batch_bytes: int = 256 * 1024,
        max_pending: int = MAX_PENDING,
        trace: bool | str = False,
        check: Check | None = None,
        check_topics: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if (namesrv is None) == (instance is None):
            raise ConfigError(f"producer {group}: give the NameServers' addresses, or an instance")
        self.instance = instance or ClientInstance(namesrv or "", **options)
        self.core = SendCore(
            group,
            self.instance.routes,
            SendOptions(
                retries,
                compress_from,
                max_message_size,
                latency_fault=latency_fault,
                attempt_timeout=attempt_timeout,
            ),
            self.instance.rng,
        )
        self.group = group
        self.max_pending = max_pending
        self._check = check
        self._check_topics = check_topics
        self._accumulator: Accumulator[_Send] | None = None
        if linger_ms > 0:
            self._accumulator = Accumulator(linger=linger_ms / 1000, max_bytes=min(batch_bytes, max_message_size))
        #: Writes down what is sent; None without `trace`.
        self.tracer: Tracer | None = None
        trace_topic = topic_of(trace)
        if trace_topic is not None:
            sender = AsyncProducer(group_of(group, "PRODUCE"), instance=self.instance)
            self.tracer = Tracer(group, trace_topic, sender)
        self._linger_timer: asyncio.TimerHandle | None = None
        self._pending = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False
        self._loop: asyncio.AbstractEventLoop

    def __repr__(self) -> str:
        return f"<AsyncProducer {self.group} namesrv={self.instance.namesrv}>"

    async def start(self) -> None:
        """Gets ready; nothing is connected before the first send, unless there are `check_topics`.

        Raises ConfigError when the instance has another check for the group, and for `check_topics` as `queues`.
        """
        if self._running:
            return
        self._loop = asyncio.get_running_loop()
        if self._check is not None:
            self.instance.checks.add(self.group, self._check, self.tracer)
        await self.instance.acquire()
        self.instance.add_producer(self.group)
        if self.tracer is not None:
            await self.tracer.start()
        self._running = True
        try:
            for topic in self._check_topics:
                await self.introduce(topic)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Waits for what is being sent, says good-bye and closes the connections."""
        if not self._running:
            return
        self._running = False
        if self._accumulator is not None:
            for batch in self._accumulator.flush():
                self._send_batch(batch)
        while self._pending:
            await self._room()
        if self.tracer is not None:
            await self.tracer.close()
        if self._check is not None:
            self.instance.checks.remove(self.group, self._check)
        await self.instance.remove_producer(self.group)
        await self.instance.release()

    async def __aenter__(self) -> AsyncProducer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # sending

    async def send(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        timeout: float = 3.0,
    ) -> SendResult:
        """Sends and waits until the broker has the message.

        `queue` fixes the queue; `selector` chooses it, given `key` (with a key alone: by the key's hash). `delay`, `at`
        and `priority` become part of the message, as if it had been made with them. `timeout` in
        seconds is for all attempts together. Raises InvalidMessage, RouteNotFound, BrokerError when the broker refuses,
        RemotingError (after a time-out or a lost connection the message may have been stored all the same).
        """
        if delay is not None or at is not None:
            message.postpone(delay=delay, at=at)
        if priority is not None:
            message.prioritize(priority)
        while self._pending >= self.max_pending:
            await self._room()
        return await self.send_nowait(message, queue=queue, selector=selector, key=key, timeout=timeout)

    def send_nowait(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        timeout: float = 3.0,
    ) -> asyncio.Future[SendResult]:
        """Sends without waiting: the future gets what `send` returns or raises.

        Raises InvalidMessage at once. There is no limit here to what is in flight: await some of the futures.
        """
        self._check_running()
        loop = self._loop
        deadline = loop.time() + timeout
        future: asyncio.Future[SendResult] = loop.create_future()
        accumulator = self._accumulator
        if accumulator is not None and selector is None and key is None and self.core.batchable(message):
            size = self.core.batched_size(message)
            if size <= accumulator.max_bytes:
                self._pending += 1
                send = _Send(self, Delivery(COLLECTED, deadline, 1, queue), message, future)
                self._collect(accumulator, send, size)
                return future
        outgoing = self.core.prepare(message)
        self._pending += 1
        self._launch(_Send(self, self.core.delivery(outgoing, deadline, queue, selector, key), message, future))
        return future

    async def send_oneway(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        timeout: float = 3.0,
    ) -> None:
        """Sends without asking for an answer: nobody knows whether it arrived.

        Waits up to `timeout` seconds for a route and a connection, and while the broker does not read what it was sent.
        Raises InvalidMessage, RouteNotFound, ConnectFailed, ConnectionLost, and RequestTimeout: then the message was
        not sent.
        """
        self._check_running()
        deadline = self._loop.time() + timeout
        outgoing = self.core.prepare(message)
        delivery = self.core.delivery(outgoing, deadline, queue, selector, key)
        known = await self._known(message.topic, deadline)
        now = self._loop.time()
        chosen = self.core.choose(delivery, known, message, now)
        address = self._master(chosen)
        fields = self.core.fields(outgoing, chosen, int(time.time() * 1000))
        seconds = self.core.time_for_attempt(deadline, now)
        await self.instance.remoting.oneway(address, self.core.code(outgoing), fields, outgoing.body, seconds)

    async def send_batch(
        self,
        messages: Sequence[Message],
        *,
        queue: MessageQueue | None = None,
        timeout: float = 3.0,
    ) -> list[SendResult]:
        """Sends messages of one topic in one request, to one queue: all are stored or none. Raises as `send`."""
        self._check_running()
        while self._pending >= self.max_pending:
            await self._room()
        outgoing = self.core.prepare_batch(messages)
        future: asyncio.Future[list[SendResult]] = self._loop.create_future()
        delivery = self.core.delivery(outgoing, self._loop.time() + timeout, queue)
        self._pending += 1
        self._launch(_SendMany(self, delivery, None, future))
        return await future

    async def request(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        timeout: float = 3.0,
    ) -> ReceivedMessage:
        """Sends a message and waits for the reply of the consumer that gets it (`ReceivedMessage.reply`).

        `timeout` in seconds is for both ways together; the consumer finds it in ms in the property TTL. Raises as
        `send`, and RequestTimeout when there is no reply in time; the message may have been consumed all the same.
        """
        self._check_running()
        deadline = self._loop.time() + timeout
        known = await self._known(message.topic, deadline)
        for cluster in {data.cluster for data in known.route.broker_datas if data.cluster}:
            # the reply may come from any broker of the cluster, and has to find us there
            with contextlib.suppress(RouteNotFound):
                await self.instance.topic(reply_topic(cluster), timeout=deadline - self._loop.time())
        await self.instance.introduce()

        async def send(seconds: float) -> SendResult:
            return await self.send(message, queue=queue, selector=selector, key=key, timeout=seconds)

        return await self.instance.requests.reply_to(message, self.instance.client_id, send, timeout, deadline)

    def transaction(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        check_after: int | None = None,
        timeout: float = 3.0,
    ) -> AsyncTransaction:
        """A context manager: consumers get the message when its block ends well, and never when it raises.

        ``async with producer.transaction(message) as transaction:`` sends a half message and raises as `send` when
        that fails; the block does the local work. `commit` and `rollback` decide sooner. When this process dies
        meanwhile a broker asks the group (see `check`). `check_after`: it asks after so many seconds (default: the
        broker's `transactionTimeOut`, 6), and the block has no longer than that, or 6 s. A delay of the message begins
        with the commit; Apache's brokers lose transactional messages with a delay. `timeout` in seconds, for the half
        message and for the end.
        """
        self._check_running()
        return AsyncTransaction(self, message, check_after, timeout, queue=queue, selector=selector, key=key)

    async def introduce(self, topic: str) -> None:
        """Sees to it that the brokers of a topic know this producer and can ask it. Raises as `queues`."""
        self._check_running()
        await self._known(topic)
        await self.instance.introduce()

    async def recall(self, topic: str, handle: str, *, timeout: float = 3.0) -> str:
        """Takes a message back that waits for its time; returns its unique id (RECALL_MESSAGE of RocketMQ 5).

        `handle` is the `recall_handle` of what its `send` returned. Raises InvalidMessage when it is none, BrokerError
        when the message was delivered already (code 604) or the broker does not recall (16), RouteNotFound,
        RemotingError.
        """
        self._check_running()
        broker, header = self.core.recall(topic, handle)
        await self._known(topic)
        address = self._master(MessageQueue(topic, broker, 0))
        answer = await self.instance.remoting.call(address, RequestCode.RECALL_MESSAGE, header, timeout=timeout)
        message_id = self.core.recalled(answer, address)
        if self.tracer is not None:
            self.tracer.recalled(topic, message_id)
        return message_id

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that take messages. Raises RouteNotFound, RemotingError."""
        self._check_running()
        return list((await self.instance.topic(topic, publish=True)).write_queues)

    # the way of a message

    def _check_running(self) -> None:
        if not self._running:
            raise ConfigError(f"producer {self.group} is not started (or closed): await start() first")

    def _launch(self, send: _Send) -> None:
        """Sends at once when route and connection are there, else in a task."""
        delivery = send.delivery
        known = self.instance.routes.fresh(delivery.outgoing.topic, 0.0, math.inf)
        if known is not None:
            try:
                now = self._loop.time()
                queue = self.core.choose(delivery, known, send.message, now)
                address = self._master(queue)
                connection = self.instance.remoting.connected(address)
                if connection is not None:
                    self._put(send, queue, address, connection, now)
                    return
            except Exception as error:  # noqa: BLE001 - whatever the selector raises belongs into the future
                self._failed(send, error)
                return
        self._start(self._attempt(send, 0.0))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, send: _Send, pause: float) -> None:
        """One attempt that may have to wait for the route and for a connection."""
        try:
            if pause:
                await asyncio.sleep(pause)
            known = await self._known(send.delivery.outgoing.topic, send.delivery.deadline)
            now = self._loop.time()
            queue = self.core.choose(send.delivery, known, send.message, now)
            send.queue = queue
            address = self._master(queue)
            remaining = self.core.time_for_attempt(send.delivery.deadline, now)
            connection = await self.instance.remoting.connect(address, remaining)
            self._put(send, queue, address, connection, self._loop.time())
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the future
            self._failed(send, error)

    async def _known(self, topic: str, deadline: float | None = None) -> Known:
        left = None if deadline is None else deadline - self._loop.time()
        return await self.instance.topic(topic, publish=True, timeout=left)

    def _master(self, queue: MessageQueue) -> str:
        address = self.instance.routes.master(queue.broker_name)
        if address is None:
            raise RouteNotFound(f"broker {queue.broker_name} has no master just now (topic {queue.topic})")
        return address

    def _put(self, send: _Send, queue: MessageQueue, address: str, connection: Connection, now: float) -> None:
        """Puts the request on the wire; the answer comes to `send`."""
        delivery = send.delivery
        outgoing = delivery.outgoing
        send.queue = queue
        send.address = address
        delivery.started = now
        core = self.core
        code = core.code(outgoing)
        session = connection.session

        def encode(opaque: int) -> list[bytes | memoryview]:
            born = int(time.time() * 1000)
            if session.credentials is None:
                return core.frame(outgoing, queue, born, opaque)
            return [session.encode(code, opaque, core.fields(outgoing, queue, born), outgoing.body)]

        connection.submit_encoded(code, encode, core.time_for_attempt(delivery.deadline, now), send)

    def _answered(self, send: _Send, answer: Command) -> None:
        queue = send.queue
        assert queue is not None
        try:
            results = self.core.results(send.delivery.outgoing, queue, answer, send.address)
        except RocketQError as error:
            self._failed(send, error)
            return
        now = self._loop.time()
        self.core.succeeded(send.delivery, queue.broker_name, now)
        if self.tracer is not None:
            outgoing, begun = send.delivery.outgoing, send.delivery.started
            self.tracer.sent(outgoing, results, answer.ext, send.address, now - begun)
        self._leave(send)
        send.resolve(results)

    def _failed(self, send: _Send, error: Exception) -> None:
        broker = send.queue.broker_name if send.queue is not None else ""
        delivery, now = send.delivery, self._loop.time()
        if isinstance(error, RocketQError) and self.core.may_retry(delivery, broker, error, now):
            log.info("sending to topic %s failed, trying again: %s", delivery.outgoing.topic, error)
            self._start(self._attempt(send, self.core.pause_before_retry(delivery, now)))
            return
        self._leave(send)
        send.reject(error)

    def _leave(self, send: _Send) -> None:
        self._pending -= send.weight
        # All at once and not one each time: who is woken may have been cancelled, or have nothing to send after all.
        if self._waiting and self._pending <= self.max_pending * 3 // 4:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def _room(self) -> None:
        """Waits until a good part of what was pending is done."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    # automatic batches

    def _collect(self, accumulator: Accumulator[_Send], send: _Send, size: int) -> None:
        assert send.message is not None
        now = self._loop.time()
        for batch in accumulator.add((send.message.topic, send.delivery.queue), send, size, now):
            self._send_batch(batch)
        if self._linger_timer is None and accumulator.next_deadline is not None:
            self._linger_timer = self._loop.call_at(accumulator.next_deadline, self._linger_over)

    def _linger_over(self) -> None:
        self._linger_timer = None
        accumulator = self._accumulator
        assert accumulator is not None
        for batch in accumulator.due(self._loop.time()):
            self._send_batch(batch)
        if accumulator.next_deadline is not None:
            self._linger_timer = self._loop.call_at(accumulator.next_deadline, self._linger_over)

    def _send_batch(self, batch: Batch[_Send]) -> None:
        sends = batch.items
        deadline = max(send.delivery.deadline for send in sends)
        try:
            outgoing = self.core.prepare_batch([send.message for send in sends if send.message is not None])
        except InvalidMessage as error:
            for send in sends:
                self._leave(send)
                send.reject(error)
            return
        delivery = self.core.delivery(outgoing, deadline, sends[0].delivery.queue)
        self._launch(_Collected(self, delivery, sends))


class _Send:
    """A message on its way: waits for the answer in place of a future (see `Connection.submit_encoded`)."""

    __slots__ = ("address", "delivery", "future", "message", "producer", "queue")

    #: messages that count as pending
    weight = 1

    def __init__(
        self,
        producer: AsyncProducer,
        delivery: Delivery,
        message: Message | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.producer = producer
        self.delivery = delivery
        self.message = message
        self.future = future
        self.queue: MessageQueue | None = None
        self.address = ""

    def done(self) -> bool:
        return False  # also when nobody waits any more: the answer has to be counted

    def set_result(self, answer: Command) -> None:
        self.producer._answered(self, answer)

    def set_exception(self, error: Exception) -> None:
        self.producer._failed(self, error)

    def resolve(self, results: list[SendResult]) -> None:
        if not self.future.done():
            self.future.set_result(results[0])

    def reject(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _SendMany(_Send):
    """A batch that somebody made; its future gets all results."""

    __slots__ = ()

    def resolve(self, results: list[SendResult]) -> None:
        if not self.future.done():
            self.future.set_result(results)


class _Collected(_Send):
    """A batch that was collected from single sends."""

    __slots__ = ("sends", "weight")

    def __init__(self, producer: AsyncProducer, delivery: Delivery, sends: list[_Send]) -> None:
        super().__init__(producer, delivery, None, sends[0].future)
        self.sends = sends
        self.weight = len(sends)

    def resolve(self, results: list[SendResult]) -> None:
        for send, result in zip(self.sends, results, strict=True):
            send.resolve([result])

    def reject(self, error: Exception) -> None:
        for send in self.sends:
            send.reject(error)
