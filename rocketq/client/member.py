"""A member of a consumer group: the share of the queues that it has, kept up to date. Base of both consumers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from rocketq import javajson
from rocketq.client.assigned import Assigned
from rocketq.client.instance import ClientInstance
from rocketq.client.membership import Membership
from rocketq.client.offsets import OffsetStore
from rocketq.client.pulling import Puller, Statistics
from rocketq.client.report import running_info
from rocketq.client.troubles import Troubles
from rocketq.errors import RocketQError
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import ConsumerData
from rocketq.remoting.waiting import cancel_all, wait_event

log = logging.getLogger("rocketq.client")

RebalanceHook = Callable[[str, list[MessageQueue], list[MessageQueue]], None]

REBALANCE_INTERVAL = 20.0
#: Seconds until a rebalance that could not be finished is tried again, doubling up to the limit: so soon at the
#: latest a topic that did not exist is found.
REBALANCE_AGAIN, REBALANCE_AGAIN_LIMIT = 1.0, 4.0


class GroupMember:
    """What push and pull consumers have in common. `assigned` are the queues that it has now."""

    ordered = False
    concurrency = 1

    def __init__(
        self,
        membership: Membership,
        offsets: OffsetStore,
        *,
        persist_interval: float,
        rebalance_interval: float,
        on_rebalanced: RebalanceHook | None,
    ) -> None:
        self.membership = membership
        self.group = membership.group
        self.instance: ClientInstance = membership.instance
        self.offsets = offsets
        self.persist_interval = persist_interval
        self.rebalance_interval = rebalance_interval
        self.assigned: dict[MessageQueue, Assigned] = {}
        self.statistics: dict[str, Statistics] = {}
        self._on_rebalanced = on_rebalanced
        self._puller: Puller
        self._troubles = Troubles()
        #: Queues that are to be taken again, once their tasks have ended and the new offset is stored.
        self._moving: set[MessageQueue] = set()
        self._wake = asyncio.Event()
        self._running = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.group} of {', '.join(self.membership.subscriptions)}>"

    # sharing queues

    def topics(self) -> Iterable[str]:
        return self.membership.subscriptions

    def consumer_data(self) -> ConsumerData:
        return self.membership.consumer_data()

    def wake(self) -> None:
        """Members or routes changed: shares out the queues again, now."""
        self._wake.set()

    async def _keep_balanced(self, settled: bool) -> None:
        again = REBALANCE_AGAIN
        while True:
            pause = self.rebalance_interval if settled else min(again, self.rebalance_interval)
            if await wait_event(self._wake, pause):
                again = REBALANCE_AGAIN
            elif not settled:
                again = min(again * 2, REBALANCE_AGAIN_LIMIT)
            settled = await self._balance()

    async def _balance(self) -> bool:
        self._wake.clear()
        try:
            return await self.rebalance()
        except Exception:  # a strategy or a hook may raise anything, and the consumer has to go on
            log.exception("group %s: rebalancing failed, trying again", self.group)
            return False

    async def rebalance(self) -> bool:
        """Makes the queues ours that are ours by now, and lets go of the others; False when that is not finished."""
        settled = True
        added: list[Assigned] = []
        changed: dict[str, tuple[list[MessageQueue], list[MessageQueue]]] = {}
        try:
            for topic in list(self.membership.subscriptions):
                share = await self.membership.share(topic)
                if share is None:
                    settled = False
                    continue
                mine = set(share)
                revoked = [queue for queue in self.assigned if queue.topic == topic and queue not in mine]
                for queue in revoked:
                    one = self.assigned.get(queue)  # its pull may have let go of it meanwhile
                    if one is not None:
                        await self._revoke(one)
                wanted = [queue for queue in share if queue not in self.assigned and queue not in self._moving]
                fresh = await self._acquire(wanted)
                settled = settled and len(fresh) == len(wanted)
                added += fresh
                if fresh or revoked:
                    changed[topic] = ([one.queue for one in fresh], revoked)
            if changed:
                await self.membership.announce(set(changed))
        finally:
            for one in added:  # whatever became of the other topics
                self._begin(one)
        for topic, (assigned, revoked) in changed.items():
            log.info("group %s, topic %s: %d queues more, %d less", self.group, topic, len(assigned), len(revoked))
            if self._on_rebalanced is not None:
                self._on_rebalanced(topic, assigned, revoked)
        return settled

    async def _acquire(self, wanted: list[MessageQueue]) -> list[Assigned]:
        """Those of the queues that could be had: with a known offset to begin at."""
        losses = [self.membership.losses(queue) for queue in wanted]
        offsets = await asyncio.gather(*[self._start_offset(queue) for queue in wanted])
        fresh = []
        for queue, offset, known_losses in zip(wanted, offsets, losses, strict=True):
            if offset is not None:
                one = self.assigned[queue] = Assigned(queue, offset)
                one.losses = known_losses
                fresh.append(one)
        return fresh

    def _begin(self, one: Assigned) -> None:
        """Starts what has to run for a queue that is ours now."""
        one.tasks.append(asyncio.create_task(self._puller.run(one), name=f"rocketq-pull-{one.queue}"))

    async def _revoke(self, one: Assigned) -> None:
        """Lets go of a queue."""
        del self.assigned[one.queue]
        self.membership.calls.forget(one.queue)
        one.drop()
        await cancel_all(one.tasks)
        await self._commit([one], wait=True)
        self.offsets.forget(one.queue)

    async def _start_offset(self, queue: MessageQueue) -> int | None:
        try:
            stored = await self.offsets.read(queue)
            if stored is not None and stored >= 0:
                return stored
            return await self.membership.first_offset(queue)
        except RocketQError as error:
            level = self._troubles.level(queue.broker_name)
            log.log(
                level, "group %s: where to begin in %s is not known, trying again: %s", self.group, queue, error
            )
            return None

    async def _start_again_at(self, one: Assigned, offset: int) -> None:
        """Gives the queue up and takes it again at another offset."""
        if self.assigned.get(one.queue) is not one:
            return
        del self.assigned[one.queue]
        self._moving.add(one.queue)
        one.drop()
        try:
            await self._stop(one, except_for=asyncio.current_task())
            self.offsets.update(one.queue, offset)
            await self.offsets.persist([one.queue], wait=True)
        finally:
            self._moving.discard(one.queue)
            self.wake()

    async def _stop(self, one: Assigned, except_for: asyncio.Task[None] | None) -> None:
        """Ends the tasks of a dropped queue."""
        await cancel_all([task for task in one.tasks if task is not except_for])

    async def _illegal_offset(self, one: Assigned, offset: int) -> None:
        log.warning(
            "group %s: offset %d of %s is not there (any more), going on at %d",
            self.group,
            one.process.next_offset,
            one.queue,
            offset,
        )
        if offset > one.process.next_offset:  # what is held was pulled before the broker deleted it
            one.process.next_offset = offset
        else:  # what is held and not done is there still where it is before the end
            await self._start_again_at(one, min(offset, one.process.commit_offset))

    # whether others went on

    async def _overtaken(self, one: Assigned) -> bool:
        """Whether another member went on in the queue while its broker took us for gone, as it does when a connection
        is lost. We begin anew then where the group is. Raises RocketQError when the broker cannot be asked.
        """
        losses = self.membership.losses(one.queue)
        if one.losses == losses:
            return False
        committed = await self.membership.calls.committed(one.queue)
        if committed is None or committed <= self._done_up_to(one):
            one.losses = losses
            return False
        if self.assigned.get(one.queue) is one:
            log.info("group %s: another member had %s, going on at %d", self.group, one.queue, committed)
            del self.assigned[one.queue]
            one.drop()
            self.offsets.forget(one.queue)
            self.wake()
        return True

    async def _not_overtaken(self, queues: Iterable[Assigned]) -> list[Assigned]:
        """Those of the queues for which it is known that nobody else is further."""
        queues = list(queues)
        asked = await asyncio.gather(*[self._overtaken(one) for one in queues], return_exceptions=True)
        for one, answer in zip(queues, asked, strict=True):
            if isinstance(answer, RocketQError):
                level = self._troubles.level(one.queue.broker_name)
                log.log(
                    level,
                    "group %s: no commit for %s, whether another member went on in it is not known: %s",
                    self.group,
                    one.queue,
                    answer,
                )
            elif isinstance(answer, BaseException):
                raise answer
        return [one for one, overtaken in zip(queues, asked, strict=True) if overtaken is False]

    def _done_up_to(self, one: Assigned) -> int:
        """What may be committed of a queue."""
        return one.process.commit_offset

    async def _commit(self, queues: Iterable[Assigned], *, wait: bool = False) -> set[MessageQueue]:
        """Stores how far the queues are done; failures are logged. Returns those of which it is known to be there."""
        queues = list(queues)
        for one in queues:
            self.offsets.update(one.queue, self._done_up_to(one))
        return await self.offsets.persist([one.queue for one in queues], wait=wait)

    # what brokers ask

    async def reset_offsets(self, topic: str, offsets: dict[MessageQueue, int]) -> None:
        for queue, offset in offsets.items():
            one = self.assigned.get(queue)
            if one is not None and queue.topic == topic:
                log.warning("group %s: %s is reset to offset %d by the broker", self.group, queue, offset)
                await self._start_again_at(one, offset)

    def consumer_status(self, topic: str) -> bytes:
        table = {queue: one.process.commit_offset for queue, one in self.assigned.items() if queue.topic == topic}
        return javajson.dumps({"consumerTable": {}, "messageQueueTable": table})

    def running_info(self) -> bytes:
        return running_info(self).encode()
