"""The push consumer: pulls from its share of the queues and calls a handler."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from rocketq.client.assigned import Assigned
from rocketq.client.consuming import Concurrently, Handler, MessageHook, Orderly, Rules
from rocketq.client.instance import ClientInstance
from rocketq.client.locks import Locks
from rocketq.client.member import REBALANCE_INTERVAL, GroupMember, RebalanceHook
from rocketq.client.membership import BROADCASTING, CLUSTERING, Membership
from rocketq.client.offsets import BrokerOffsets, LocalOffsets, OffsetStore
from rocketq.client.pulling import Puller, PullRules
from rocketq.client.rebalance import Strategy, average
from rocketq.client.results import ConsumeResult, HandlerResult, RetryLater
from rocketq.client.send_back import SendBack
from rocketq.client.waiting import cancel_all
from rocketq.errors import ConfigError, RouteNotFound
from rocketq.message import MessageQueue, ReceivedMessage, local_address
from rocketq.names import retry_topic
from rocketq.remoting.bodies import ConsumeMessageDirectlyResult

log = logging.getLogger("rocketq.client")

#: Delivery attempts of a message unless said otherwise (ordered: without end).
MAX_RECONSUME_TIMES = 16
#: Seconds that the running handler of an ordered queue may delay its release.
RELEASE_WAIT = 20.0


class PushConsumer(GroupMember):
    """A member of a consumer group: messages come to its handler.

    `handler` is an async function ``(messages) -> ConsumeResult``; it may also return a `RetryLater`, a list with one
    result a message, or None for success; whatever it raises means RETRY_LATER. It gets 1 to `batch` messages of one
    queue at a time, and `concurrency` bounds how many calls run at once.

    `model`: CLUSTERING (each message to one member) or BROADCASTING (to all; offsets in a local file, no retries).
    `ordered`: one call at a time per queue, in order, under a lock at the broker. `from_where`: where a group without
    a stored offset begins: "LAST" (brokers begin young, small queues at their start even so), "FIRST", or ms since the
    epoch. `max_reconsume_times`: redeliveries before the dead
    letter queue (default 16; ordered: no limit). `strategy`: how the group shares the queues, a plain function (see
    `rebalance`). `consume_timeout`: seconds until messages are taken from a handler that does not return and handed
    back (not ordered). `suspend`: seconds before an ordered queue goes on after a failure.

    Per queue at most `max_messages`, `max_bytes` and (not ordered) `max_span` offsets are held. `on_rebalanced(topic,
    assigned, revoked)`, `on_retried(message)`, `on_dead_lettered(message)` are called as it happens. Further options
    (`tls`, `route_cache`, …) are those of `ClientInstance`; or give an `instance` to share connections.

    Raises InvalidMessage for an illegal group or topic, ConfigError for bad settings.
    """

    def __init__(
        self,
        group: str,
        namesrv: str | None = None,
        handler: Handler | None = None,
        *,
        model: str = CLUSTERING,
        from_where: str | int = "LAST",
        ordered: bool = False,
        concurrency: int = 20,
        batch: int = 1,
        pull_batch: int = 32,
        max_reconsume_times: int | None = None,
        strategy: Strategy = average,
        offset_store: OffsetStore | None = None,
        consume_timeout: float = 900.0,
        suspend: float = 1.0,
        max_messages: int = 1000,
        max_bytes: int = 100 * 1024 * 1024,
        max_span: int = 2000,
        persist_interval: float = 5.0,
        rebalance_interval: float = REBALANCE_INTERVAL,
        on_rebalanced: RebalanceHook | None = None,
        on_retried: MessageHook | None = None,
        on_dead_lettered: MessageHook | None = None,
        instance: ClientInstance | None = None,
        **options: Any,
    ) -> None:
        if (namesrv is None) == (instance is None):
            raise ConfigError(f"consumer group {group}: give the NameServers' addresses, or an instance")
        if concurrency < 1 or batch < 1 or pull_batch < 1:
            raise ConfigError(f"consumer group {group}: concurrency, batch and pull_batch have to be at least 1")
        if max_reconsume_times is not None and max_reconsume_times < 0:
            raise ConfigError(f"consumer group {group}: max_reconsume_times must not be negative")
        if ordered and model == BROADCASTING:
            raise ConfigError(f"consumer group {group}: ordered and broadcast exclude each other")
        if model == BROADCASTING and instance is None:
            # the offset file is found again under this id, as in Apache's clients
            options.setdefault("client_id", f"{local_address()}@DEFAULT")
        instance = instance or ClientInstance(namesrv or "", **options)
        membership = Membership(
            group,
            instance,
            model=model,
            from_where=from_where,
            strategy=strategy,
            consume_type="CONSUME_PASSIVELY",
        )
        self.broadcast = model == BROADCASTING
        if offset_store is None:
            if self.broadcast:
                offset_store = LocalOffsets(instance.client_id, group)
            else:
                offset_store = BrokerOffsets(membership.calls, zero_if_young=from_where == "LAST")
        super().__init__(
            membership,
            offset_store,
            persist_interval=persist_interval,
            rebalance_interval=rebalance_interval,
            on_rebalanced=on_rebalanced,
        )
        self.ordered = ordered
        self.concurrency = concurrency
        self.handler = handler
        limit = MAX_RECONSUME_TIMES if max_reconsume_times is None else max_reconsume_times
        self._send_back = None if self.broadcast else SendBack(instance, group, limit)
        kind: type[Concurrently] | type[Orderly] = Orderly if ordered else Concurrently
        self.consuming: Concurrently | Orderly = kind(
            Rules(group, batch, concurrency, self.broadcast, consume_timeout, suspend, max_reconsume_times),
            self._get_handler,
            self._send_back,
            on_retried,
            on_dead_lettered,
            self.statistics,
        )
        self._puller = Puller(
            membership,
            PullRules(
                pull_batch, max_messages, max_bytes, None if ordered else max_span, commits=not self.broadcast
            ),
            arrived=self.consuming.arrived,
            illegal_offset=self._illegal_offset,
            statistics=self.statistics,
        )
        self._locks = Locks(instance, group) if ordered else None
        self._releasing: dict[MessageQueue, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def subscribe(self, topic: str, expression: str = "*") -> None:
        """Wants messages of `topic`: all (`*`), or those with a tag of ``A || B``. Before or after `start`."""
        self.membership.subscribe(topic, expression)
        if self._running:
            self.instance.heartbeat_soon()
            self.wake()

    async def start(self) -> None:
        """Joins the group and begins to consume.

        Raises ConfigError without handler or subscription, ConnectFailed when no NameServer answers (then it may be
        called again). A topic that does not exist yet is waited for.
        """
        if self._running:
            return
        if self.handler is None or not self.membership.subscriptions:
            raise ConfigError(
                f"consumer group {self.group}: set a handler and subscribe to a topic before start()"
            )
        await self.instance.acquire()
        try:
            for topic in list(self.membership.subscriptions):
                try:
                    await self.instance.topic(topic)
                except RouteNotFound:
                    log.warning("group %s: topic %s does not exist yet, waiting for it", self.group, topic)
            self.instance.add_member(self)
        except BaseException:
            await self.instance.release()
            raise
        if not self.broadcast:
            self.membership.subscribe(retry_topic(self.group), "*")
        if self._send_back is not None:
            await self._send_back.start()
        self.consuming.begin()
        self._running = True
        await self.instance.heartbeat()
        settled = await self._balance()
        self._tasks = [
            asyncio.create_task(self._keep_balanced(settled), name=f"rocketq-rebalance-{self.group}"),
            asyncio.create_task(self._keep_offsets(), name=f"rocketq-offsets-{self.group}"),
        ]
        if self._locks is not None:
            self._tasks.append(asyncio.create_task(self._keep_locks(), name=f"rocketq-locks-{self.group}"))

    async def close(self, timeout: float = 30.0) -> bool:
        """Leaves the group: no more pulls, waits up to `timeout` seconds for running handlers, commits, unregisters.

        What was not finished is delivered again, to other members too. Returns whether everything was finished.
        """
        if not self._running:
            return True
        self._running = False
        await cancel_all(self._tasks)
        for one in self.assigned.values():
            await cancel_all(one.tasks[:1])
        clean = await self.consuming.finish(timeout)
        for one in self.assigned.values():
            await cancel_all(one.tasks)
        if self._releasing:
            await asyncio.wait(list(self._releasing.values()), timeout=RELEASE_WAIT)
        await self._commit(self.assigned.values(), wait=True)
        if self._locks is not None:
            await self._locks.unlock(list(self.assigned))
        for one in self.assigned.values():
            one.drop()
        self.assigned.clear()
        await self.instance.remove_member(self)
        if self._send_back is not None:
            await self._send_back.close()
        await self.instance.release()
        return clean

    async def __aenter__(self) -> PushConsumer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _get_handler(self) -> Handler:
        assert self.handler is not None
        return self.handler

    # queues come and go

    async def _acquire(self, wanted: list[MessageQueue]) -> list[Assigned]:
        if self._locks is None:
            return await super()._acquire(wanted)
        wanted = [queue for queue in wanted if queue not in self._releasing]
        locked_at = time.monotonic()
        locked = await self._locks.lock(wanted)
        fresh = await super()._acquire([queue for queue in wanted if queue in locked])
        for one in fresh:
            one.locked_at = locked_at
        return fresh

    def _begin(self, one: Assigned) -> None:
        super()._begin(one)
        if isinstance(self.consuming, Orderly):
            one.tasks.append(asyncio.create_task(self.consuming.consume(one), name=f"rocketq-consume-{one.queue}"))

    async def _revoke(self, one: Assigned) -> None:
        """Lets go of a queue. An ordered one stays locked until its running handler is done."""
        if self._locks is None:
            await super()._revoke(one)
            return
        del self.assigned[one.queue]
        self.membership.calls.forget(one.queue)
        task = self._releasing[one.queue] = asyncio.create_task(self._release(one))
        task.add_done_callback(lambda _: self._released(one.queue))

    async def _release(self, one: Assigned) -> None:
        assert self._locks is not None
        one.drop()
        await self._stop(one, None)
        await self._commit([one], wait=True)
        self.offsets.forget(one.queue)
        await self._locks.unlock([one.queue])

    def _released(self, queue: MessageQueue) -> None:
        self._releasing.pop(queue, None)
        if self._running:
            self.wake()

    async def _stop(self, one: Assigned, except_for: asyncio.Task[None] | None) -> None:
        """Ends the tasks of a dropped queue; a running handler may finish."""
        pull, *consume = one.tasks
        if pull is not except_for:
            await cancel_all([pull])
        if consume:
            await asyncio.wait(consume, timeout=RELEASE_WAIT)
            await cancel_all(consume)

    # periodic work

    async def _keep_offsets(self) -> None:
        while True:
            await asyncio.sleep(self.persist_interval)
            await self._commit(self.assigned.values())
            await self.consuming.expire()

    async def _keep_locks(self) -> None:
        assert self._locks is not None
        while True:
            await asyncio.sleep(self._locks.interval)
            asked_at = time.monotonic()
            held = await self._locks.lock(list(self.assigned))
            for queue, one in self.assigned.items():
                if queue in held:
                    one.locked_at = asked_at
                    one.arrived.set()

    async def consume_directly(self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult:
        begun = time.monotonic()
        remark: str | None = None
        try:
            result: HandlerResult = await self._get_handler()([message])
            if isinstance(result, (list, tuple)):
                result = result[0]
            retry = isinstance(result, RetryLater) or result not in (None, ConsumeResult.SUCCESS)
            outcome = "CR_LATER" if retry else "CR_SUCCESS"
        except Exception as error:  # noqa: BLE001 - the operator who asked for it gets it as text
            outcome = "CR_THROW_EXCEPTION"
            remark = f"{type(error).__name__}: {error}"
        return ConsumeMessageDirectlyResult(
            consume_result=outcome,
            order=self.ordered,
            auto_commit=True,
            remark=remark,
            spent_time_mills=int((time.monotonic() - begun) * 1000),
        )
