"""Queue locks: which member of an orderly group may consume a queue (codes 41 and 42).

A lock belongs to a client id, is renewed by asking again, and lapses 60 s after the last time it was granted
(`RebalanceLockManager`). As in Apache's broker nothing else is checked: neither group nor topic need exist.
"""

from __future__ import annotations

from collections.abc import Callable

from rocketq.message import MessageQueue
from rocketq.remoting.bodies import LockBatchBody, LockBatchResponse
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply


class QueueLocks:
    """The locks of all groups. `clock` gives seconds that never go back, `lifetime` is in seconds."""

    def __init__(self, clock: Callable[[], float], lifetime: float = 60.0) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._groups: dict[str, dict[MessageQueue, tuple[str, float]]] = {}

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.LOCK_BATCH_MQ: self._lock_batch, RequestCode.UNLOCK_BATCH_MQ: self._unlock_batch}

    def lock(self, group: str, client_id: str, queues: list[MessageQueue]) -> list[MessageQueue]:
        """Lock or renew `queues`; returns those that `client_id` now holds."""
        now = self._clock()
        held = self._groups.setdefault(group, {})
        granted = []
        for queue in queues:
            owner, expires = held.get(queue, (client_id, 0.0))
            if owner == client_id or expires <= now:
                held[queue] = (client_id, now + self._lifetime)
                granted.append(queue)
        return granted

    def unlock(self, group: str, client_id: str, queues: list[MessageQueue]) -> None:
        """Give back those of `queues` that `client_id` holds; others are left alone."""
        held = self._groups.get(group, {})
        for queue in queues:
            if queue in held and held[queue][0] == client_id:
                del held[queue]
        if not held:
            self._groups.pop(group, None)

    def group_has_locks(self, group: str) -> bool:
        """True while any queue of the group is locked: then its consumers are orderly ones."""
        now = self._clock()
        return any(expires > now for _, expires in self._groups.get(group, {}).values())

    def expire(self) -> None:
        """Forget lapsed locks, so that groups which are gone cost no memory."""
        now = self._clock()
        for group, held in list(self._groups.items()):
            for queue, (_, expires) in list(held.items()):
                if expires <= now:
                    del held[queue]
            if not held:
                del self._groups[group]

    def _lock_batch(self, connection: Connection, request: Command) -> Reply:
        body = LockBatchBody.decode(request.body)
        granted = self.lock(body.consumer_group, body.client_id, body.queues)
        return encode_response(request, ResponseCode.SUCCESS, body=LockBatchResponse(granted).encode())

    def _unlock_batch(self, connection: Connection, request: Command) -> Reply:
        body = LockBatchBody.decode(request.body)
        self.unlock(body.consumer_group, body.client_id, body.queues)
        return encode_response(request, ResponseCode.SUCCESS)
