"""What a slave copies from its master besides the log: topics, groups, offsets, how far delays and timers are.

Every 3 s offsets and what moves as fast; every minute, and as soon as the log has a topic that is not known here, the
settings as well (`SlaveSynchronize`; Apache's slaves copy offsets every minute). What the master says replaces what is
here, offsets by group and topic: what was committed here while the master was away stays until it says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from rocketq import javajson
from rocketq.broker.assignment import Assignment
from rocketq.broker.delay import Delay
from rocketq.broker.groups import Groups
from rocketq.broker.offsets import Offsets
from rocketq.broker.timer import Timer
from rocketq.broker.topics import Topics
from rocketq.errors import BrokerError, RocketQError
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.bodies import DataVersion, SubscriptionGroupConfig, TopicConfig
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.waiting import cancel_all

log = logging.getLogger("rocketq.broker")

#: Seconds between two rounds, and between two that copy everything.
ROUND, ALL = 3.0, 60.0
#: Seconds that the master may take to answer.
TIMEOUT = 10.0


class SlaveSync:
    """Copies tables from the master at `master` (`host:port`, empty while it is not known)."""

    def __init__(
        self,
        client: AsyncClient,
        topics: Topics,
        groups: Groups,
        offsets: Offsets,
        delay: Delay,
        timer: Timer,
        assignment: Assignment,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._topics = topics
        self._groups = groups
        self._offsets = offsets
        self._delay = delay
        self._timer = timer
        self._assignment = assignment
        self._clock = clock
        self.master = ""
        self._wake = asyncio.Event()
        self._next_all = 0.0
        self._task: asyncio.Task[None] | None = None
        self._said = ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_all([self._task])
            self._task = None

    def found(self, master: str) -> None:
        """Where the master is now."""
        if master and master != self.master:
            log.info("the master is %s", master)
            self.master = master
            self.soon()

    def soon(self) -> None:
        """Copy everything in the next round, now."""
        self._next_all = 0.0
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if self.master:
                try:
                    await self.round()
                    self._said = ""
                except (RocketQError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                    if str(error) != self._said:
                        log.warning("master %s did not tell its tables, trying again: %s", self.master, error)
                    self._said = str(error)
                except Exception:  # whatever it is: nobody would notice that nothing is copied any more
                    log.exception("the tables of master %s cannot be copied, trying again", self.master)
            timer = loop.call_later(ROUND, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    async def round(self) -> None:
        """Copy what is due. Raises RemotingError, BrokerError, ValueError for an answer that cannot be read."""
        everything = self._clock() >= self._next_all
        if everything:
            self._next_all = self._clock() + ALL  # first, as somebody may want another one meanwhile
            try:
                await self._copy_topics()
                await self._copy_groups()
                self._assignment.copy(javajson.loads(await self._ask(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE)))
            except BaseException:
                self._next_all = 0.0
                raise
        self._offsets.copy(javajson.loads(await self._ask(RequestCode.GET_ALL_CONSUMER_OFFSET)))
        self._delay.copy(javajson.loads(await self._ask(RequestCode.GET_ALL_DELAY_OFFSET)))
        try:
            check = await self._ask(RequestCode.GET_TIMER_CHECK_POINT)
            metrics = javajson.loads(await self._ask(RequestCode.GET_TIMER_METRICS)) if everything else None
        except BrokerError as error:  # it has no timer
            log.debug("%s", error)
        else:
            self._timer.copy(check, metrics)

    async def _ask(self, code: int) -> bytes:
        answer = await self._client.call(self.master, code, timeout=TIMEOUT)
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, self.master)
        return bytes(answer.body)

    async def _copy_topics(self) -> None:
        self._topics.copy(*topics_of(javajson.loads(await self._ask(RequestCode.GET_ALL_TOPIC_CONFIG))))

    async def _copy_groups(self) -> None:
        table = javajson.loads(await self._ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG))
        self._groups.copy(*groups_of(table))


def topics_of(table: dict[str, Any]) -> tuple[list[TopicConfig], DataVersion]:
    """A master's topics and their version. Raises ValueError, KeyError, TypeError, AttributeError for others."""
    topics = [TopicConfig.from_json(value) for value in table["topicConfigTable"].values()]
    return topics, DataVersion.from_json(table["dataVersion"])


def groups_of(
    table: dict[str, Any],
) -> tuple[list[SubscriptionGroupConfig], dict[str, dict[str, int]], DataVersion]:
    """A master's groups, what they may not do, and their version. Raises as :func:`topics_of`."""
    groups = [SubscriptionGroupConfig.from_json(value) for value in table["subscriptionGroupTable"].values()]
    return groups, table.get("forbiddenTable") or {}, DataVersion.from_json(table["dataVersion"])
