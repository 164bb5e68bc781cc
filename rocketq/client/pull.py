"""The pull consumer: whoever uses it asks for messages and says how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rocketq.client.assigned import Assigned
from rocketq.client.instance import ClientInstance
from rocketq.client.member import REBALANCE_INTERVAL, GroupMember, RebalanceHook
from rocketq.client.membership import CLUSTERING, Membership
from rocketq.client.offsets import BrokerOffsets
from rocketq.client.producer import AsyncProducer
from rocketq.client.pulling import Puller, PullRules
from rocketq.client.tracing import Tracer, group_of, topic_of
from rocketq.errors import ConfigError, RouteNotFound
from rocketq.filters import Sql
from rocketq.message import MessageQueue, ReceivedMessage
from rocketq.rebalance import Strategy, average
from rocketq.remoting.bodies import ConsumeMessageDirectlyResult
from rocketq.remoting.waiting import cancel_all, wait_event


class PullConsumer(GroupMember):
    """Messages on request, by `poll`.

    Either `subscribe` to topics (the group shares their queues, as push consumers do) or `assign` queues (nobody is
    asked). The position of a queue begins at the group's stored offset, else at `from_where` ("LAST", "FIRST", or ms
    since the epoch), and moves with what `poll` returns. With `auto_commit` what earlier polls returned is committed
    every `persist_interval` seconds and by `close`; without it `commit` does.

    `trace`: write down in RMQ_SYS_TRACE_TOPIC (or the topic of that name) what `poll` returned, and when.

    Per queue up to `max_messages` are fetched ahead, `pull_batch` a request. Further options (`tls`, `route_cache`, …)
    are those of `ClientInstance`; or give an `instance` to share connections. Raises InvalidMessage for an illegal
    group or topic, ConfigError for bad settings.
    """

    def __init__(
        self,
        group: str,
        namesrv: str | None = None,
        *,
        from_where: str | int = "LAST",
        auto_commit: bool = True,
        pull_batch: int = 32,
        max_messages: int = 1000,
        max_bytes: int = 100 * 1024 * 1024,
        strategy: Strategy = average,
        persist_interval: float = 5.0,
        rebalance_interval: float = REBALANCE_INTERVAL,
        on_rebalanced: RebalanceHook | None = None,
        trace: bool | str = False,
        instance: ClientInstance | None = None,
        **options: Any,
    ) -> None:
        if (namesrv is None) == (instance is None):
            raise ConfigError(f"consumer group {group}: give the NameServers' addresses, or an instance")
        membership = Membership(
            group,
            instance or ClientInstance(namesrv or "", **options),
            model=CLUSTERING,
            from_where=from_where,
            strategy=strategy,
            consume_type="CONSUME_ACTIVELY",
        )
        super().__init__(
            membership,
            BrokerOffsets(membership.calls, zero_if_young=from_where == "LAST"),
            persist_interval=persist_interval,
            rebalance_interval=rebalance_interval,
            on_rebalanced=on_rebalanced,
        )
        self.auto_commit = auto_commit
        self._puller = Puller(
            membership,
            PullRules(pull_batch, max_messages, max_bytes, None, commits=False, carry_expression=True),
            arrived=lambda _: self._arrived.set(),
            illegal_offset=self._illegal_offset,
            statistics=self.statistics,
            overtaken=self._overtaken,
        )
        self._tracer: Tracer | None = None
        trace_topic = topic_of(trace)
        if trace_topic is not None:
            sender = AsyncProducer(group_of(group, "CONSUME"), instance=self.instance)
            self._tracer = Tracer(group, trace_topic, sender)
        self._arrived = asyncio.Event()
        self._by_hand = False
        #: Positions before the last poll: what may be committed without a word of the user.
        self._safe: dict[MessageQueue, int] = {}
        #: Queues whose position the user has chosen, and of which no commit is known to be stored since.
        self._sought: set[MessageQueue] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """Wants messages of `topic`: all (`*`), those with a tag of ``A || B``, or those that `Sql("…")` matches.

        Excludes `assign`.
        """
        if self._by_hand:
            raise ConfigError(f"consumer group {self.group}: subscribe() and assign() exclude each other")
        self.membership.subscribe(topic, expression)
        if self._running:
            self.instance.heartbeat_soon()
            self.wake()

    async def start(self) -> None:
        """Gets ready; with subscriptions it joins the group.

        Raises ConnectFailed when no NameServer answers, BrokerError when a broker cannot filter by a `Sql` expression.
        """
        if self._running:
            return
        await self.instance.acquire()
        try:
            for topic in list(self.membership.subscriptions):
                try:
                    await self.instance.topic(topic)
                except RouteNotFound:
                    continue  # it may come
            await self.membership.check()
            if self.membership.subscriptions:
                self.instance.add_member(self)
        except BaseException:
            await self.instance.release()
            raise
        if self._tracer is not None:
            await self._tracer.start()
        self._running = True
        self._tasks = [asyncio.create_task(self._keep_offsets(), name=f"rocketq-offsets-{self.group}")]
        if self.membership.subscriptions:
            await self.instance.heartbeat()
            settled = await self._balance()
            self._tasks.append(
                asyncio.create_task(self._keep_balanced(settled), name=f"rocketq-rebalance-{self.group}")
            )

    async def close(self) -> None:
        """Commits (with `auto_commit`) what polls returned, leaves the group, closes the connections.

        The end of an `async with` block that raises leaves out the last poll, which was being worked on.
        """
        self._all_safe()
        await self._close()

    async def _close(self) -> None:
        if not self._running:
            return
        self._running = False
        await cancel_all(self._tasks)
        for one in self.assigned.values():
            one.drop()
            await cancel_all(one.tasks)
        if self.auto_commit:
            await self._commit(self.assigned.values(), wait=True)
        self.assigned.clear()
        if self._tracer is not None:
            await self._tracer.close()
        await self.instance.remove_member(self)
        await self.instance.release()

    async def __aenter__(self) -> PullConsumer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.close() if error is None else self._close())

    # queues and positions

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be read. Raises RouteNotFound, RemotingError."""
        return list((await self.instance.topic(topic)).read_queues)

    async def assign(self, queues: Iterable[MessageQueue], expression: str | Sql = "*") -> None:
        """Takes exactly these queues, whatever other members have; after `start`. Excludes `subscribe`.

        Raises RouteNotFound, RemotingError, BrokerError (also for a `Sql` expression that the broker cannot read).
        """
        if not self._running:
            raise ConfigError(f"consumer group {self.group}: start() first, then assign()")
        if self.membership.subscriptions and not self._by_hand:
            raise ConfigError(f"consumer group {self.group}: subscribe() and assign() exclude each other")
        self._by_hand = True
        wanted = set(queues)
        for topic in {queue.topic for queue in wanted}:
            await self.instance.topic(topic)
            self.membership.subscribe(topic, expression)
        await self.membership.check()
        for queue in [queue for queue in self.assigned if queue not in wanted]:
            await self._revoke(self.assigned[queue])
        for queue in sorted(wanted - self.assigned.keys()):
            stored = await self.offsets.read(queue)
            start = stored if stored is not None and stored >= 0 else await self.membership.first_offset(queue)
            self._take(queue, start)

    def _take(self, queue: MessageQueue, offset: int) -> None:
        one = self.assigned[queue] = Assigned(queue, offset)
        self._begin(one)

    async def _start_again_at(self, one: Assigned, offset: int) -> None:
        if self.assigned.get(one.queue) is one:
            one.drop()
            self._safe.pop(one.queue, None)
            current = asyncio.current_task()
            self._take(one.queue, offset)
            self.assigned[one.queue].losses = one.losses
            await cancel_all([task for task in one.tasks if task is not current])

    def _mine(self, queue: MessageQueue) -> Assigned:
        one = self.assigned.get(queue)
        if one is None:
            raise ConfigError(f"consumer group {self.group}: {queue} is not assigned to this consumer")
        return one

    async def seek(self, queue: MessageQueue, offset: int) -> None:
        """Goes on at `offset` of an assigned queue; what was fetched ahead is thrown away. Raises ConfigError."""
        one = self._mine(queue)
        self._sought.add(queue)
        await self._start_again_at(one, offset)

    async def seek_to_begin(self, queue: MessageQueue) -> None:
        """Goes on at the oldest message."""
        await self.seek(queue, await self.membership.calls.min_offset(queue))

    async def seek_to_end(self, queue: MessageQueue) -> None:
        """Goes on with what arrives from now on."""
        await self.seek(queue, await self.membership.calls.max_offset(queue))

    async def seek_to_time(self, queue: MessageQueue, timestamp_ms: int) -> None:
        """Goes on at the first message stored at that time (ms since the epoch) or later."""
        await self.seek(queue, await self.membership.calls.offset_by_time(queue, timestamp_ms))

    def position(self, queue: MessageQueue) -> int:
        """The offset of the message that comes next. Raises ConfigError for a queue that is not assigned."""
        return self._mine(queue).process.commit_offset

    async def committed(self, queue: MessageQueue) -> int | None:
        """What the group has stored for a queue, None when nothing.

        Raises RouteNotFound, RemotingError, BrokerError.
        """
        await self.instance.topic(queue.topic)
        return await self.membership.calls.committed(queue)

    # messages

    async def poll(self, timeout: float = 5.0, max_messages: int = 32) -> list[ReceivedMessage]:
        """Up to `max_messages` of one queue, in order; waits up to `timeout` seconds for some, then returns none."""
        if not self._running:
            raise ConfigError(f"consumer group {self.group}: not started (or closed)")
        end = time.monotonic() + timeout
        self._all_safe()
        while True:
            self._arrived.clear()
            for queue, one in list(self.assigned.items()):
                if one.process.pending:
                    self._safe.setdefault(queue, one.process.commit_offset)  # it came while we waited
                    messages = one.process.take(max_messages)
                    one.process.done(messages)
                    one.room.set()
                    self.assigned[queue] = self.assigned.pop(queue)  # the others come first next time
                    if self._tracer is not None:
                        self._tracer.done(self._tracer.taken(messages), None)
                    return messages
            left = end - time.monotonic()
            if left <= 0:
                return []
            await wait_event(self._arrived, left)

    async def commit(self) -> None:
        """Stores the positions of all assigned queues at the brokers; failures are logged.

        Not of those in which another member of the group went on while the broker took this one for gone.
        """
        self._all_safe()
        await self._commit(self.assigned.values(), wait=True)

    def _all_safe(self) -> None:
        """The user is done with what polls returned."""
        self._safe = {queue: one.process.commit_offset for queue, one in self.assigned.items()}

    async def _commit(self, queues: Iterable[Assigned], *, wait: bool = False) -> set[MessageQueue]:
        queues = await self._not_overtaken(queues)
        wait = wait or any(one.queue in self._sought for one in queues)
        stored = await super()._commit(queues, wait=wait)
        for one in queues:
            chosen_anew = self.assigned.get(one.queue) is not one
            if one.queue in stored and not chosen_anew:
                self._sought.discard(one.queue)
        return stored

    async def _overtaken(self, one: Assigned) -> bool:
        """As for all members, but what the user takes by hand, or goes back to, is the user's affair."""
        if self._by_hand or one.queue in self._sought:
            return False
        overtaken = await super()._overtaken(one)
        if overtaken and one.queue not in self.assigned:
            self._safe.pop(one.queue, None)  # when it is ours again, this is behind where the group is
        return overtaken

    def _done_up_to(self, one: Assigned) -> int:
        position = one.process.commit_offset
        return self._safe.get(one.queue, position) if self.auto_commit else position

    async def _keep_offsets(self) -> None:
        while True:
            await asyncio.sleep(self.persist_interval)
            if self.auto_commit:
                await self._commit([one for queue, one in self.assigned.items() if queue in self._safe])

    async def _revoke(self, one: Assigned) -> None:
        """Lets go of a queue: with `auto_commit` what was polled before the last poll is stored, else nothing."""
        del self.assigned[one.queue]
        self.membership.calls.forget(one.queue)
        one.drop()
        await cancel_all(one.tasks)
        if self.auto_commit:
            await self._commit([one], wait=True)
        self._safe.pop(one.queue, None)
        self._sought.discard(one.queue)
        self.offsets.forget(one.queue)

    async def consume_directly(self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult:
        return ConsumeMessageDirectlyResult(
            consume_result="CR_THROW_EXCEPTION", remark="a pull consumer has no handler to consume a message with"
        )
