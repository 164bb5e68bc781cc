"""The worker of one process: a push consumer for every registered function, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rocketq import signals
from rocketq.app import RocketQ
from rocketq.client import ClientInstance, PopConsumer, PushConsumer
from rocketq.client.admin import Admin
from rocketq.client.pop_or_pull import can_pop
from rocketq.consumers import DEFAULT_CONCURRENCY, Consumer
from rocketq.errors import ConfigError, RemotingError, RouteNotFound
from rocketq.message import MessageQueue, ReceivedMessage, local_address
from rocketq.remoting.bodies import TopicConfig
from rocketq.remoting.waiting import cancel_all
from rocketq.worker.execution import Execution, Outcome
from rocketq.worker.ticks import Ticks

logger = logging.getLogger("rocketq.worker")

T = TypeVar("T")

#: Between two attempts to reach a NameServer at start, in seconds.
START_PAUSE = 1.0
#: Queues of a topic that a worker creates; as many as Apache's brokers give by default.
NEW_QUEUES = 8
#: Of a topic of ticks: only in one queue is a message before or behind another.
TICK_QUEUES = 1


class Worker:
    """Runs the consumers of `app` in the current event loop: sync functions in threads, async ones in the loop.

    `groups`: only the consumers of these groups; empty: all. `concurrency`: for consumers that do not set their own.
    `shutdown_timeout`: seconds that what is in flight gets when the worker stops. `member`: which one of several
    worker processes of this application on this host it is; broadcast consumers keep their place under it.
    `create_topics`: create the topics that do not exist yet (otherwise the first message does, where brokers allow it).
    Raises ConfigError when there is nothing to run or a function's signature cannot be filled.
    """

    def __init__(
        self,
        app: RocketQ,
        *,
        groups: Iterable[str] = (),
        concurrency: int = DEFAULT_CONCURRENCY,
        shutdown_timeout: float = 30.0,
        member: int = 0,
        create_topics: bool = False,
    ) -> None:
        self.app = app
        self.concurrency = concurrency
        self.shutdown_timeout = shutdown_timeout
        self.member = member
        self.create_topics = create_topics
        known = {consumer.group: consumer for consumer in app.consumers}
        wanted = list(groups) or list(known)
        unknown = [group for group in wanted if group not in known]
        if unknown:
            raise ConfigError(f"{app.name} has no consumer group {', '.join(unknown)}; it has: {', '.join(known)}")
        if not wanted:
            raise ConfigError(
                f"{app.name} has no consumers: decorate functions with @app.consumer(topic) and import their modules "
                "where the application is made"
            )
        self.consumers: list[Consumer] = [known[group] for group in wanted]
        for consumer in self.consumers:
            _ = consumer.arguments  # a signature that cannot be filled is an error of the start, not of a message
        self._stop = asyncio.Event()
        self._running: list[_Running] = []

    def stop(self) -> None:
        """Make `run` end; may be called again. Not thread-safe: use `loop.call_soon_threadsafe`."""
        self._stop.set()

    @property
    def in_flight(self) -> int:
        """Functions that are running now."""
        return sum(running.in_flight for running in self._running)

    async def run(self) -> bool:
        """Consume until `stop`. Returns True when everything in flight was finished, False when some was left to be
        delivered again. A NameServer that cannot be reached at the start is waited for."""
        # Where a broadcast consumer stands is kept in a local file that is found again by the client's id.
        given = self.app.connection_options.get("client_id")
        name = given or f"{local_address()}@{self.app.name}"
        if self.member:
            name += f"-{self.member}"
        steady = self._instance(name)
        # brokers know one grace of an instance
        instances = {
            grace: self._instance(f"{name}-grace-{grace}" if given else None)
            for grace in {consumer.grace for consumer in self.consumers if not consumer.broadcast}
        }
        finished = []
        try:
            self._running = [
                _Running(
                    self.app,
                    consumer,
                    self.concurrency,
                    steady if consumer.broadcast else instances[consumer.grace],
                )
                for consumer in self.consumers
            ]
            await asyncio.gather(*[self._start(running) for running in self._running])
            if not self._stop.is_set():
                signals.emit(signals.worker_ready, self.app, worker=self)
                await self._stop.wait()
            signals.emit(signals.worker_stopping, self.app, worker=self)
        finally:
            finished = await asyncio.gather(*[one.close(self.shutdown_timeout) for one in self._running])
            await self.app.aclose()
            self.app.close()
        return all(finished)

    def _instance(self, client_id: str | None) -> ClientInstance:
        return ClientInstance(self.app.namesrv, **{**self.app.connection_options, "client_id": client_id})

    async def _start(self, running: _Running) -> None:
        """Start one consumer, as often as it takes; returns early when the worker is told to stop."""
        complained = False
        while not self._stop.is_set():
            try:
                if running.ticks is not None:
                    await asyncio.to_thread(create_topic, self.app, running.consumer.topic, TICK_QUEUES)
                elif self.create_topics:
                    await asyncio.to_thread(create_topic, self.app, running.consumer.topic)
                await running.start()
                return
            except (RemotingError, RouteNotFound) as error:  # no NameServer, or no broker at it yet
                if not complained:
                    logger.warning("waiting for %s: %s", self.app.namesrv, error)
                    complained = True
            await self._until_stopped(asyncio.sleep(START_PAUSE))

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def create_topic(app: RocketQ, topic: str, queues: int = NEW_QUEUES) -> None:
    """Create a topic on every broker, unless it is there. Raises RemotingError, BrokerError, RouteNotFound."""
    known = ("tls", "access_key", "secret_key")
    admin_options = {name: app.connection_options[name] for name in known if name in app.connection_options}
    with Admin(app.namesrv, **admin_options) as admin:
        try:
            admin.route(topic)
        except RouteNotFound:
            admin.create_topic(TopicConfig(topic, read_queue_nums=queues, write_queue_nums=queues))
            logger.info("created topic %s with %d queues", topic, queues)


class _Running:
    """One consumer with its member of the group and, for a sync function, its threads."""

    def __init__(self, app: RocketQ, consumer: Consumer, concurrency: int, instance: ClientInstance) -> None:
        self.app = app
        self.consumer = consumer
        self.execution = Execution(app, consumer)
        self.size = consumer.concurrency or concurrency
        self.pool = None if consumer.is_async else ThreadPoolExecutor(self.size, thread_name_prefix=consumer.group)
        self.instance = instance
        self.member: PopConsumer | PushConsumer | None = None
        self.ticks = Ticks(app, consumer) if consumer.schedule is not None else None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        return self.member.in_flight if self.member is not None else 0

    async def start(self) -> None:
        """Raises what the member's `start` does; may be called again then."""
        if self.member is None:
            self.member = self._pop_consumer() if await self._pops() else self._push_consumer()
            self.member.subscribe(self.consumer.topic, self.consumer.expression)
        await self.member.start()
        if self.ticks is not None:
            self._ticking = asyncio.create_task(self.ticks.keep(), name=f"rocketq-ticks-{self.consumer.group}")

    async def _pops(self) -> bool:
        consumer = self.consumer
        if consumer.mode != "auto" or not consumer.may_pop:
            return consumer.mode == "pop"
        await self.instance.acquire()
        try:
            pops = await can_pop(self.instance, consumer.group, consumer.topic)
        finally:
            await self.instance.release()
        logger.info("group %s: %s consumes by %s", consumer.group, consumer.name, "POP" if pops else "pull")
        return pops

    def _pop_consumer(self) -> PopConsumer:
        consumer = self.consumer
        # a tick whose function takes long is not for another worker
        own: dict[str, Any] = {"consume_timeout": math.inf} if self.ticks is not None else {}
        return PopConsumer(
            consumer.group,
            handler=self.handle,
            instance=self.instance,
            from_where=consumer.from_where,
            concurrency=self.size,
            max_reconsume_times=consumer.max_retries,
            lease=consumer.lease,
            grace=consumer.grace,
            trace=self.app.trace,
            on_retried=self.retried,
            on_dead_lettered=self.dead_lettered,
            **own,
        )

    def _push_consumer(self) -> PushConsumer:
        consumer = self.consumer
        return PushConsumer(
            consumer.group,
            handler=self.handle,
            instance=self.instance,
            model="BROADCASTING" if consumer.broadcast else "CLUSTERING",
            from_where=consumer.from_where,
            ordered=consumer.ordered,
            concurrency=self.size,
            max_reconsume_times=consumer.max_retries,
            trace=self.app.trace,
            on_rebalanced=self.rebalanced,
            on_retried=self.retried,
            on_dead_lettered=self.dead_lettered,
        )

    async def handle(self, messages: list[ReceivedMessage]) -> Outcome:
        (message,) = messages
        if self.ticks is not None:
            outcome = await self.ticks.take(message)
            if outcome is not None:
                return outcome
        if self.pool is None:
            return await self.execution.arun(message)
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.execution.run, message)

    def rebalanced(self, topic: str, assigned: list[MessageQueue], revoked: list[MessageQueue]) -> None:
        signals.emit(
            signals.rebalanced, self.app, consumer=self.consumer, topic=topic, assigned=assigned, revoked=revoked
        )

    def retried(self, message: ReceivedMessage) -> None:
        signals.emit(signals.retried, self.app, consumer=self.consumer, message=message)

    def dead_lettered(self, message: ReceivedMessage) -> None:
        signals.emit(signals.dead_lettered, self.app, consumer=self.consumer, message=message)

    async def close(self, timeout: float) -> bool:
        if self._ticking is not None:
            await cancel_all([self._ticking])
        finished = self.member is None or await self.member.close(timeout)
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        return finished
