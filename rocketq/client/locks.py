"""Queue locks at the broker: who has one consumes the queue alone, which ordered consumption needs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable

from rocketq.client.instance import ClientInstance
from rocketq.client.troubles import Troubles
from rocketq.errors import RemotingError
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import LockBatchBody, LockBatchResponse
from rocketq.remoting.codes import RequestCode, ResponseCode

log = logging.getLogger("rocketq.client")

TIMEOUT = 1.0
#: Seconds between renewals; in the environment in ms (Apache's property `rocketmq.client.rebalance.lockInterval`).
INTERVAL = float(os.environ.get("ROCKETMQ_CLIENT_REBALANCE_LOCKINTERVAL") or 20_000) / 1000


class Locks:
    """Locks of one group and client; the broker forgets them after 60 s without a renewal."""

    def __init__(self, instance: ClientInstance, group: str) -> None:
        self._instance = instance
        self._group = group
        self._troubles = Troubles()

    async def lock(self, queues: Iterable[MessageQueue]) -> dict[MessageQueue, bool]:
        """Takes or renews locks; says which queues are ours now and which another member's.

        Queues whose broker cannot be asked are left out.
        """
        answers: dict[MessageQueue, bool] = {}
        parts = [self._lock(address, part) for address, part in self._by_broker(queues)]
        for part in await asyncio.gather(*parts):
            answers.update(part)
        return answers

    async def unlock(self, queues: Iterable[MessageQueue]) -> None:
        """Lets others have the queues."""
        for address, part in self._by_broker(queues):
            try:
                await self._instance.remoting.oneway(address, RequestCode.UNLOCK_BATCH_MQ, {}, self._body(part))
            except RemotingError as error:
                log.info("group %s: broker %s was not told of unlocked queues: %s", self._group, address, error)

    def _by_broker(self, queues: Iterable[MessageQueue]) -> list[tuple[str, list[MessageQueue]]]:
        parts: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            address = self._instance.routes.master(queue.broker_name)
            if address is not None:
                parts.setdefault(address, []).append(queue)
        return list(parts.items())

    def _body(self, queues: list[MessageQueue]) -> bytes:
        return LockBatchBody(self._group, self._instance.client_id, queues).encode()

    async def _lock(self, address: str, queues: list[MessageQueue]) -> dict[MessageQueue, bool]:
        try:
            answer = await self._instance.remoting.call(
                address, RequestCode.LOCK_BATCH_MQ, {}, self._body(queues), timeout=TIMEOUT
            )
        except RemotingError as error:
            level = self._troubles.level(address)
            log.log(level, "group %s: broker %s does not answer for locks: %s", self._group, address, error)
            return {}
        if answer.code != ResponseCode.SUCCESS:
            level = self._troubles.level(address)
            log.log(level, "group %s: broker %s gives no locks: %s", self._group, address, answer.remark)
            return {}
        self._troubles.over(address)
        held = set(LockBatchResponse.decode(bytes(answer.body)).queues)
        return {queue: queue in held for queue in queues}
