"""Keeping process queues filled: one loop per assigned queue, always one pull ahead of the handlers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rocketq.client.assigned import Assigned
from rocketq.client.membership import Membership
from rocketq.client.process_queue import over_threshold
from rocketq.client.queue_calls import PullStatus
from rocketq.client.troubles import Troubles
from rocketq.errors import BrokerError, RequestTimeout, RocketQError
from rocketq.remoting.codes import ResponseCode

log = logging.getLogger("rocketq.client")

#: Seconds to wait after a pull that failed, and after the broker asked to be left alone for a moment.
AFTER_ERROR = 1.0
AFTER_FLOW_CONTROL = 0.02

#: The broker does not know the group or the subscription as we have it: it has to be told again.
_UNKNOWN_TO_BROKER = frozenset(
    {
        ResponseCode.SUBSCRIPTION_NOT_EXIST,
        ResponseCode.SUBSCRIPTION_NOT_LATEST,
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
    }
)


@dataclass
class Statistics:
    """Plain counters of one topic, for the running info."""

    ok: int = 0
    failed: int = 0
    seconds: float = 0.0
    pulls: int = 0
    pull_seconds: float = 0.0
    pulled: int = 0


@dataclass(frozen=True)
class PullRules:
    """How much is pulled at once, and how much may be held of a queue.

    `commits`: offsets go along with pulls. `carry_expression`: brokers need not know the group.
    """

    count: int
    max_messages: int
    max_bytes: int
    max_span: int | None
    commits: bool
    carry_expression: bool = False


class Puller:
    """Pulls for assigned queues and passes on what comes."""

    def __init__(
        self,
        membership: Membership,
        rules: PullRules,
        *,
        arrived: Callable[[Assigned], None],
        illegal_offset: Callable[[Assigned, int], Awaitable[None]],
        statistics: dict[str, Statistics],
        overtaken: Callable[[Assigned], Awaitable[bool]] | None = None,
    ) -> None:
        """`overtaken(queue)`, asked before each pull: another member is further in it, so it is not pulled from."""
        self._membership = membership
        self._rules = rules
        self._arrived = arrived
        self._illegal_offset = illegal_offset
        self._statistics = statistics
        self._overtaken = overtaken
        self._troubles = Troubles()

    async def run(self, one: Assigned) -> None:
        """Pulls until the queue is dropped. The next pull leaves before the handler sees what the last one brought."""
        process, rules = one.process, self._rules
        while not process.dropped:
            why = over_threshold(
                process,
                max_messages=rules.max_messages,
                max_bytes=rules.max_bytes,
                max_span=rules.max_span,
            )
            if why is not None:
                log.debug("group %s: no pull from %s: %s", self._membership.group, one.queue, why)
                one.room.clear()
                await one.room.wait()
                continue
            try:
                if self._overtaken is not None and await self._overtaken(one):
                    return
                await self._pull(one)
            except RocketQError as error:
                await asyncio.sleep(self._pause_after(one, error))

    def _pause_after(self, one: Assigned, error: RocketQError) -> float:
        group = self._membership.group
        if isinstance(error, BrokerError):
            if error.code == ResponseCode.FLOW_CONTROL:
                return AFTER_FLOW_CONTROL
            if error.code in _UNKNOWN_TO_BROKER:
                level = self._troubles.level(one.queue.broker_name, logging.INFO)
                log.log(level, "group %s: the broker of %s has to be told who we are: %s", group, one.queue, error)
                self._membership.instance.heartbeat_soon()
                return AFTER_ERROR
        if isinstance(error, RequestTimeout):
            log.info("group %s: a pull from %s got no answer, pulling again", group, one.queue)
            return 0.0
        # a broker that is away is said once, not for each of its queues
        level = self._troubles.level(one.queue if isinstance(error, BrokerError) else one.queue.broker_name)
        log.log(level, "group %s: pulling from %s failed, trying again: %s", group, one.queue, error)
        return AFTER_ERROR

    async def _pull(self, one: Assigned) -> None:
        process, queue, membership, rules = one.process, one.queue, self._membership, self._rules
        subscription = membership.subscriptions[queue.topic]
        begun = time.monotonic()
        one.last_pull_ms = int(time.time() * 1000)
        pulled = await membership.calls.pull(
            queue,
            process.next_offset,
            expression=subscription.expression,
            expression_type=subscription.kind,
            sub_version=0 if rules.carry_expression else subscription.told_version,
            count=rules.count,
            commit_offset=process.commit_offset if rules.commits and process.commit_offset > 0 else None,
            carry_expression=rules.carry_expression,
        )
        for what in (queue, queue.broker_name):
            if self._troubles.over(what):
                log.info("group %s: pulling from %s works again", membership.group, queue)
        if process.dropped:
            return
        if pulled.status is PullStatus.OFFSET_ILLEGAL:
            await self._illegal_offset(one, pulled.next_offset)
            return
        statistics = self._statistics.setdefault(queue.topic, Statistics())
        statistics.pulls += 1
        statistics.pull_seconds += time.monotonic() - begun
        statistics.pulled += len(pulled.messages)
        process.add(pulled.messages, pulled.next_offset)
        if pulled.messages:
            self._arrived(one)
