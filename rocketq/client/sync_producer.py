"""The synchronous producer: the same decisions as the asyncio one, over blocking sockets.

It has no thread of its own: routes are asked for again by the send that finds them older than 30 s or broken, and
heartbeats go along with sends. Threads may share it, and a forked child may go on using it.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from rocketq.client.namesrv import BlockingLookup, ServerList, look_up
from rocketq.client.redis_cache import RedisRoutes
from rocketq.client.routes import Known, RouteTable
from rocketq.client.selectors import Selector
from rocketq.client.sending import Delivery, Outgoing, SendCore, SendOptions, SendResult
from rocketq.client.transactions import Check, Transaction, check_ended
from rocketq.errors import ConfigError, RemotingError, RequestTimeout, RocketQError, RouteNotFound
from rocketq.message import Message, MessageQueue, ReceivedMessage, new_client_id
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import HeartbeatData, ProducerData
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.headers import EndTransactionHeader, UnregisterClientHeader
from rocketq.remoting.tls import TlsConfig

if TYPE_CHECKING:  # imported when needed: most producers use no event loop, and it takes time and memory
    from rocketq.client.background import Background
    from rocketq.client.producer import AsyncProducer


class Producer:
    """Sends messages of one producer group, each call until the broker has answered.

    The options are those of `AsyncProducer`, without automatic batches (`send_many` sends many at once). Nothing is
    connected before the first send, unless there are `check_topics`. With a `check` the first transaction starts a
    thread with connections of its own, in which brokers ask. Use it as a context manager, or call `close`. Raises
    InvalidMessage for an illegal group, ConfigError for bad options.
    """

    def __init__(
        self,
        group: str,
        namesrv: str,
        *,
        retries: int = 2,
        attempt_timeout: float | None = None,
        compress_from: int = SendOptions.compress_from,
        max_message_size: int = SendOptions.max_message_size,
        latency_fault: bool = False,
        tls: TlsConfig | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        route_cache: str | None = None,
        route_refresh: float = 30.0,
        heartbeat_interval: float = 30.0,
        timeout: float = 3.0,
        client_id: str | None = None,
        trace: bool | str = False,
        check: Check | None = None,
        check_topics: Sequence[str] = (),
    ) -> None:
        rng = random.Random()
        self.group = group
        self.routes = RouteTable()
        self.core = SendCore(
            group,
            self.routes,
            SendOptions(
                retries,
                compress_from,
                max_message_size,
                latency_fault=latency_fault,
                attempt_timeout=attempt_timeout,
            ),
            rng,
        )
        self._servers = ServerList(namesrv, rng)
        self._remoting = BlockingClient(tls=tls, credentials=Credentials.of(access_key, secret_key))
        cache = RedisRoutes(route_cache) if route_cache is not None else None
        self._names = BlockingLookup(self._remoting, cache, timeout)
        self._route_refresh = route_refresh
        self._heartbeat_interval = heartbeat_interval
        self._given_id = client_id

        def make_async() -> AsyncProducer:
            from rocketq.client.producer import AsyncProducer

            return AsyncProducer(
                group,
                namesrv,
                retries=retries,
                attempt_timeout=attempt_timeout,
                compress_from=compress_from,
                max_message_size=max_message_size,
                latency_fault=latency_fault,
                tls=tls,
                access_key=access_key,
                secret_key=secret_key,
                route_cache=route_cache,
                route_refresh=route_refresh,
                heartbeat_interval=heartbeat_interval,
                timeout=timeout,
                trace=trace,
                check=check,
            )

        self._make_async = make_async
        self._trace = trace
        self._check = check
        self._closed = False
        self._after_fork()
        try:
            for topic in check_topics:
                self.introduce(topic)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Producer {self.group} namesrv={self._servers.text}>"

    def _after_fork(self) -> None:
        """A process of its own has its own identity towards brokers, and its own lock."""
        self._pid = os.getpid()
        self.client_id = self._given_id or new_client_id()
        self._lookups = threading.Lock()
        self._beats: dict[str, float] = {}
        self._background: Background | None = None

    def close(self) -> None:
        """Says good-bye to the brokers and closes the connections."""
        if self._closed:
            return
        self._closed = True
        if self._background is not None and self._pid == os.getpid():
            self._background.close()
        header = UnregisterClientHeader(client_id=self.client_id, producer_group=self.group)
        for address in self._beats if self._pid == os.getpid() else ():
            if self._remoting.is_connected(address):
                try:
                    self._remoting.oneway(address, RequestCode.UNREGISTER_CLIENT, header)
                except RemotingError:
                    continue  # it notices that the connection is gone
        self._remoting.close()
        if self._names.cache is not None:
            self._names.cache.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # sending

    def send(
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
        delivery = self.core.delivery(self.core.prepare(message), time.monotonic() + timeout, queue, selector, key)
        return self._deliver(delivery, message)[0]

    def send_oneway(
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
        Raises InvalidMessage, RouteNotFound, RemotingError: then the message was not sent.
        """
        outgoing = self.core.prepare(message)
        delivery = self.core.delivery(outgoing, time.monotonic() + timeout, queue, selector, key)
        chosen, address = self._place(delivery, message)
        left = self._begin_attempt(delivery, address)
        fields = self.core.fields(outgoing, chosen, _now_ms())
        self._remoting.oneway(address, self.core.code(outgoing), fields, outgoing.body, timeout=left())

    def send_batch(
        self, messages: Sequence[Message], *, queue: MessageQueue | None = None, timeout: float = 3.0
    ) -> list[SendResult]:
        """Sends messages of one topic in one request, to one queue: all are stored or none. Raises as `send`."""
        outgoing = self.core.prepare_batch(messages)
        return self._deliver(self.core.delivery(outgoing, time.monotonic() + timeout, queue), None)

    def send_many(self, messages: Iterable[Message], *, timeout: float = 10.0) -> list[SendResult]:
        """Sends messages of any topics, with all of them under way at once; results in their order.

        They are requests of their own: some may be stored when this raises (as `send` does).
        """
        deadline = time.monotonic() + timeout
        messages = list(messages)
        deliveries = [self.core.delivery(self.core.prepare(message), deadline) for message in messages]
        by_broker: dict[str, list[tuple[int, MessageQueue]]] = {}
        for index, (delivery, message) in enumerate(zip(deliveries, messages, strict=True)):
            chosen, address = self._place(delivery, message)
            by_broker.setdefault(address, []).append((index, chosen))
        results: dict[int, SendResult] = {}
        for address, placed in by_broker.items():
            now = _now_ms()
            requests = []
            begun = time.monotonic()
            for index, chosen in placed:
                outgoing = deliveries[index].outgoing
                deliveries[index].started = begun
                requests.append((self.core.code(outgoing), self.core.fields(outgoing, chosen, now), outgoing.body))
            answers: list[Command | RemotingError]
            try:
                left = self._begin_attempt(deliveries[placed[0][0]], address)
                answers = list(self._remoting.call_many(address, requests, timeout=left()))
            except RemotingError as error:
                answers = [error] * len(requests)
            for (index, chosen), answer in zip(placed, answers, strict=True):
                results[index] = self._result(deliveries[index], messages[index], chosen, answer, address)
        return [results[index] for index in range(len(messages))]

    def request(self, message: Message, *, timeout: float = 3.0) -> ReceivedMessage:
        """Sends a message and waits for the reply of the consumer that gets it (`ReceivedMessage.reply`).

        `timeout` in seconds is for both ways together. The first request starts a thread with connections of its own.
        Raises as `send`, and RequestTimeout when there is no reply in time; the message may have been consumed all the
        same.
        """
        return self._in_background().request(message, timeout)

    def _in_background(self) -> Background:
        if self._closed:
            raise ConfigError(f"producer {self.group} is closed")
        if self._pid != os.getpid():
            self._after_fork()
        with self._lookups:
            if self._background is None:
                from rocketq.client.background import Background

                self._background = Background(self._make_async())
        return self._background

    def transaction(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: Selector | None = None,
        key: object = None,
        check_after: int | None = None,
        timeout: float = 3.0,
    ) -> Transaction:
        """A context manager: consumers get the message when its block ends well, and never when it raises.

        ``with producer.transaction(message) as transaction:`` sends a half message and raises as `send` when that
        fails; the block does the local work. `commit` and `rollback` decide sooner. When this process dies meanwhile a
        broker asks the group (see `check` of the class). `check_after`: it asks after so many seconds (default: the
        broker's `transactionTimeOut`, 6), and the block has no longer than that, or 6 s. A delay of the message begins
        with the commit; Apache's brokers lose transactional messages with a delay. `timeout` in seconds, for the half
        message and for the end.
        """
        return Transaction(self, message, check_after, timeout, queue=queue, selector=selector, key=key)

    def introduce(self, topic: str) -> None:
        """Sees to it that the brokers of a topic can ask this producer, if it has a `check`. Raises as `queues`."""
        if self._check is not None:
            self._in_background().introduce(topic)

    def end_transaction(self, address: str, half: Message, header: EndTransactionHeader, timeout: float) -> None:
        """Tells the broker at `address` how the transaction of `half` ends. Raises RemotingError, BrokerError."""
        answer = self._remoting.call(address, RequestCode.END_TRANSACTION, header, timeout=timeout)
        check_ended(answer, address)
        if self._trace:
            self._in_background().ended(half, header, address)

    def recall(self, topic: str, handle: str, *, timeout: float = 3.0) -> str:
        """Takes a message back that waits for its time; returns its unique id (RECALL_MESSAGE of RocketMQ 5).

        `handle` is the `recall_handle` of what its `send` returned. Raises InvalidMessage when it is none, BrokerError
        when the message was delivered already (code 604) or the broker does not recall (16), RouteNotFound,
        RemotingError.
        """
        broker, header = self.core.recall(topic, handle)
        self._topic(topic)
        address = self.routes.master(broker)
        if address is None:
            raise RouteNotFound(f"broker {broker}, which has the message, has no master just now (topic {topic})")
        answer = self._remoting.call(address, RequestCode.RECALL_MESSAGE, header, timeout=timeout)
        message_id = self.core.recalled(answer, address)
        if self._trace:
            self._in_background().recalled(topic, message_id)
        return message_id

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that take messages. Raises RouteNotFound, RemotingError."""
        return list(self._topic(topic).write_queues)

    # the way of a message

    def _deliver(self, delivery: Delivery, message: Message | None) -> list[SendResult]:
        outgoing = delivery.outgoing
        while True:
            chosen: MessageQueue | None = None
            try:
                chosen, address = self._place(delivery, message)
                left = self._begin_attempt(delivery, address)
                fields = self.core.fields(outgoing, chosen, _now_ms())
                answer = self._remoting.call(
                    address, self.core.code(outgoing), fields, outgoing.body, timeout=left()
                )
                return self._results(delivery, outgoing, chosen, answer, address)
            except RocketQError as error:
                self._before_retry(delivery, chosen, error)

    def _result(
        self,
        delivery: Delivery,
        message: Message,
        chosen: MessageQueue,
        answer: Command | RemotingError,
        address: str,
    ) -> SendResult:
        """What became of one of many; tried again by itself where that may help."""
        try:
            if isinstance(answer, RemotingError):
                raise answer
            return self._results(delivery, delivery.outgoing, chosen, answer, address)[0]
        except RocketQError as error:
            self._before_retry(delivery, chosen, error)
            return self._deliver(delivery, message)[0]

    def _results(
        self, delivery: Delivery, outgoing: Outgoing, chosen: MessageQueue, answer: Command, address: str
    ) -> list[SendResult]:
        results = self.core.results(outgoing, chosen, answer, address)
        now = time.monotonic()
        self.core.succeeded(delivery, chosen.broker_name, now)
        if self._trace and not self._closed:
            self._in_background().sent(outgoing, results, answer.ext, address, now - delivery.started)
        return results

    def _before_retry(self, delivery: Delivery, chosen: MessageQueue | None, error: RocketQError) -> None:
        """Waits where another attempt is due, raises `error` where not."""
        now = time.monotonic()
        if not self.core.may_retry(delivery, chosen.broker_name if chosen else "", error, now):
            raise error
        pause = self.core.pause_before_retry(delivery, now)
        if pause:
            time.sleep(pause)

    def _place(self, delivery: Delivery, message: Message | None) -> tuple[MessageQueue, str]:
        """Queue and address for the next attempt."""
        if self._closed:
            raise ConfigError(f"producer {self.group} is closed")
        known = self._topic(delivery.outgoing.topic, delivery.deadline)
        queue = self.core.choose(delivery, known, message, time.monotonic())
        address = self.routes.master(queue.broker_name)
        if address is None:
            raise RouteNotFound(f"broker {queue.broker_name} has no master just now (topic {queue.topic})")
        return queue, address

    def _begin_attempt(self, delivery: Delivery, address: str) -> Callable[[], float]:
        """Sees to it that the broker knows us; tells how many seconds are left of the attempt. Raises RemotingError."""
        delivery.started = now = time.monotonic()
        end = now + self.core.time_for_attempt(delivery.deadline, now)

        def left() -> float:
            return max(0.001, end - time.monotonic())

        self._beat(address, left())
        return left

    def _topic(self, topic: str, deadline: float = math.inf) -> Known:
        if self._pid != os.getpid():
            self._after_fork()
        known = self.routes.fresh(topic, time.monotonic(), self._route_refresh)
        if known is not None:
            return known
        left = deadline - time.monotonic()
        if not self._lookups.acquire(timeout=min(max(0.0, left), threading.TIMEOUT_MAX)):
            raise RequestTimeout(f"no NameServer said in time where topic {topic} is")
        try:
            known = self.routes.fresh(topic, time.monotonic(), self._route_refresh)
            if known is None:
                cached = self._names.cache is not None
                steps = look_up(self.routes, self._servers, topic, publish=True, cached=cached)
                known = self._names.run(steps, deadline).known
        finally:
            self._lookups.release()
        return known

    def _beat(self, address: str, timeout: float) -> None:
        """Tells the broker who we are, when the last time is long ago."""
        if self._check is not None:
            return  # brokers ask on the connections that they know us by, and nobody reads these
        now = time.monotonic()
        if now - self._beats.get(address, float("-inf")) < self._heartbeat_interval:
            return
        body = HeartbeatData(client_id=self.client_id, producer_data_set=[ProducerData(group_name=self.group)])
        self._remoting.oneway(address, RequestCode.HEART_BEAT, {}, body.encode(), timeout=timeout)
        self._beats[address] = now


def _now_ms() -> int:
    return int(time.time() * 1000)
