"""The push consumer: pulls from its share of the queues and calls a handler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from rocketq.client.assigned import Assigned
from rocketq.client.consuming import Concurrently, Handler, MessageHook, Orderly, Rules, consume_directly
from rocketq.client.instance import ClientInstance
from rocketq.client.locks import INTERVAL, Locks
from rocketq.client.member import REBALANCE_INTERVAL, GroupMember, RebalanceHook
from rocketq.client.membership import BROADCASTING, CLUSTERING, Membership
from rocketq.client.offsets import BrokerOffsets, LocalOffsets, OffsetStore
from rocketq.client.producer import AsyncProducer
from rocketq.client.pulling import Puller, PullRules
from rocketq.client.send_back import SendBack
from rocketq.client.tracing import Tracer, group_of, topic_of
from rocketq.errors import ConfigError
from rocketq.filters import Sql
from rocketq.message import MessageQueue, ReceivedMessage, local_address
from rocketq.names import retry_topic
from rocketq.rebalance import Strategy, average
from rocketq.remoting.bodies import ConsumeMessageDirectlyResult
from rocketq.remoting.waiting import cancel_all

log = logging.getLogger("rocketq.client")

#: Delivery attempts of a message unless said otherwise (ordered: without end).
MAX_RECONSUME_TIMES = 16
#: Seconds between two log lines about an ordered queue that cannot be let go because its handler still runs.
RELEASE_NOTICE = 20.0
#: Seconds between commits. An ordered consumer commits more often: after a crash the others start over from there.
PERSIST_INTERVAL, ORDERED_PERSIST_INTERVAL = 5.0, 0.5


class PushConsumer(GroupMember):
    """A member of a consumer group: messages come to its handler.

    `handler` is an async function ``(messages) -> ConsumeResult``; it may also return a `RetryLater`, a list with one
    result a message, or None for success; whatever it raises means RETRY_LATER. It gets 1 to `batch` messages of one
    queue at a time, and `concurrency` bounds how many calls run at once.

    `model`: CLUSTERING (each message to one member) or BROADCASTING (to all; offsets in a local file, no retries).
    `ordered`: one call at a time per queue, in order, under a lock at the broker; a queue that another member should
    have stays ours until its running handler has returned, and one whose lock lapsed (the process was stopped, the
    broker away) is begun anew where the group is. `from_where`: where a group without a stored offset begins: "LAST"
    (brokers begin young, small queues at their start even so), "FIRST", or ms since the epoch. `max_reconsume_times`:
    redeliveries before the dead letter queue (default 16; ordered: no limit), where it says what the handler raised.
    `strategy`: how the group shares the queues, a plain function (see `rebalance`). `consume_timeout`: seconds until
    messages are taken from a handler that does not return and handed back (not ordered). `suspend`: seconds before an
    ordered queue goes on after a failure. `persist_interval`: seconds between commits (default 5; ordered: 0.5).

    `trace`: write down in RMQ_SYS_TRACE_TOPIC (or the topic of that name) when each message was taken up, how long the
    handler had it and how that ended (`rocketq message trace`).

    Per queue at most `max_messages`, `max_bytes` and (not ordered) `max_span` offsets are held. `on_rebalanced(topic,
    assigned, revoked)`, `on_retried(message)`, `on_dead_lettered(message)` are called as it happens. Further options
    (`tls`, `access_key`, `route_cache`, …) are those of `ClientInstance`; or give an `instance` to share connections.

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
        persist_interval: float | None = None,
        rebalance_interval: float = REBALANCE_INTERVAL,
        on_rebalanced: RebalanceHook | None = None,
        on_retried: MessageHook | None = None,
        on_dead_lettered: MessageHook | None = None,
        trace: bool | str = False,
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
            persist_interval=persist_interval or (ORDERED_PERSIST_INTERVAL if ordered else PERSIST_INTERVAL),
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
        trace_topic = topic_of(trace)
        if trace_topic is not None:
            sender = AsyncProducer(group_of(group, "CONSUME"), instance=instance)
            self.consuming.tracer = Tracer(group, trace_topic, sender)
        self._puller = Puller(
            membership,
            PullRules(
                pull_batch,
                max_messages,
                max_bytes,
                None if ordered else max_span,
                # whether the lock still holds is looked at when an ordered queue commits, and nowhere else
                commits=not self.broadcast and not ordered,
            ),
            arrived=self.consuming.arrived,
            illegal_offset=self._illegal_offset,
            statistics=self.statistics,
            overtaken=None if self.broadcast or ordered else self._overtaken,
        )
        self._locks = Locks(instance, group) if ordered else None
        #: Ordered queues that are not ours any more except for their running handler, which nobody may overtake.
        self._releasing: dict[Assigned, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """Wants messages of `topic`: all (`*`), those with a tag of ``A || B``, or those that `Sql("…")` matches.

        Before or after `start`.
        """
        self.membership.subscribe(topic, expression)
        if self._running:
            self.instance.heartbeat_soon()
            self.wake()

    async def start(self) -> None:
        """Joins the group and begins to consume.

        Raises ConfigError without handler or subscription, ConnectFailed when no NameServer answers (then it may be
        called again), BrokerError when a broker cannot filter by a `Sql` expression. A topic that does not exist yet is
        waited for.
        """
        if self._running:
            return
        if self.handler is None or not self.membership.subscriptions:
            raise ConfigError(
                f"consumer group {self.group}: set a handler and subscribe to a topic before start()"
            )
        await self.membership.join(self)
        if not self.broadcast:
            self.membership.subscribe(retry_topic(self.group), "*")
        if self._send_back is not None:
            await self._send_back.start()
        if self.consuming.tracer is not None:
            await self.consuming.tracer.start()
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
        # A function in a thread goes on whatever becomes of its task: its queue stays locked until the lock lapses.
        busy = {call.assigned for call in self.consuming.running}
        for one in self.assigned.values():
            await cancel_all(one.tasks)
        await cancel_all([task for one, task in self._releasing.items() if one in busy])
        if self._releasing:
            await asyncio.wait(list(self._releasing.values()))
        await self._commit(self.assigned.values(), wait=True)
        if self._locks is not None:
            await self._locks.unlock([queue for queue, one in self.assigned.items() if one not in busy])
        for one in self.assigned.values():
            one.drop()
        self.assigned.clear()
        if self.consuming.tracer is not None:
            await self.consuming.tracer.close()
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

    @property
    def in_flight(self) -> int:
        """Handler calls that are running."""
        return len(self.consuming.running)

    def _get_handler(self) -> Handler:
        assert self.handler is not None
        return self.handler

    # queues come and go

    async def _acquire(self, wanted: list[MessageQueue]) -> list[Assigned]:
        if self._locks is None:
            return await super()._acquire(wanted)
        releasing = {one.queue for one in self._releasing}
        wanted = [queue for queue in wanted if queue not in releasing]
        locked_at = time.monotonic()
        answers = await self._locks.lock(wanted)
        fresh = await super()._acquire([queue for queue in wanted if answers.get(queue)])
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
        self._let_go(one)

    def _let_go(self, one: Assigned) -> None:
        del self.assigned[one.queue]
        self.membership.calls.forget(one.queue)
        one.drop()
        self._releasing[one] = asyncio.create_task(self._release(one), name=f"rocketq-release-{one.queue}")

    async def _release(self, one: Assigned) -> None:
        assert self._locks is not None
        try:
            await self._stop(one, None)
            await self._commit([one], wait=True)
            self.offsets.forget(one.queue)
            await self._locks.unlock([one.queue])
        finally:
            del self._releasing[one]
            if self._running:
                self.wake()

    async def _stop(self, one: Assigned, except_for: asyncio.Task[None] | None) -> None:
        """Ends the tasks of a dropped queue. An ordered handler that runs is waited for, however long it takes."""
        pull, *consume = one.tasks
        if pull is not except_for:
            await cancel_all([pull])
        while consume:
            _, running = await asyncio.wait(consume, timeout=RELEASE_NOTICE)
            consume = list(running)
            if consume:
                log.warning("group %s: %s is let go of when its running handler returns", self.group, one.queue)

    async def _commit(self, queues: Iterable[Assigned], *, wait: bool = False) -> set[MessageQueue]:
        """Not for queues in which another member may be further than we know."""
        if self._locks is not None:
            queues = [one for one in queues if one.locked]
        elif not self.broadcast:
            queues = await self._not_overtaken(queues)
        return await super()._commit(queues, wait=wait)

    # periodic work

    async def _keep_offsets(self) -> None:
        while True:
            await asyncio.sleep(self.persist_interval)
            await self._commit(self.assigned.values())
            await self.consuming.expire()

    async def _keep_locks(self) -> None:
        assert self._locks is not None
        while True:
            await asyncio.sleep(INTERVAL)
            asked_at = time.monotonic()
            owned = [one for one in (*self.assigned.values(), *self._releasing) if one.locked]
            answers = await self._locks.lock([one.queue for one in owned])
            for one in owned:
                if one.locked and one.queue in answers:
                    one.locked_at = asked_at if answers[one.queue] else float("-inf")
            for one in [one for one in self.assigned.values() if not one.locked]:
                log.warning(
                    "group %s lost its lock of %s, beginning anew where the group is", self.group, one.queue
                )
                self._let_go(one)

    async def consume_directly(self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult:
        return await consume_directly(self._get_handler(), message, ordered=self.ordered)
