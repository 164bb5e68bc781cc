"""Queue locks: which member of an orderly group may consume a queue (codes 41 and 42).

A lock belongs to a client id, is renewed by asking again, and lapses 60 s after the last time it was granted
(`RebalanceLockManager`). As in Apache's broker nothing else is checked: neither group nor topic need exist.

Owners are kept in a file, and a new one is on disk before it is told: a broker that comes back still knows who works
on which queue. Apache's broker forgets it, and whoever asks first works on a queue beside its owner. Renewals are not
written: what the file names counts as renewed when the broker starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketq.errors import StoreError
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import LockBatchBody, LockBatchResponse
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.configfile import load_table, save_json
from rocketq.store.files import Files

log = logging.getLogger("rocketq.broker")


class QueueLocks:
    """The locks of all groups. `clock` gives seconds that never go back, `lifetime` is in seconds."""

    def __init__(self, path: Path, files: Files, clock: Callable[[], float], lifetime: float = 60.0) -> None:
        self.path = path
        self._files = files
        self._clock = clock
        self._lifetime = lifetime
        self._groups: dict[str, dict[MessageQueue, tuple[str, float]]] = {}
        #: Counts changes of owners; those up to `_saved` are in the file.
        self._changes = self._saved = 0
        self._saving = asyncio.Lock()

    def load(self) -> None:
        """Take up the owners that the file names, as if they had just renewed. Raises StoreError."""
        load_table(self.path, self._files, self._take)

    def _take(self, saved: dict[str, Any]) -> None:
        expires = self._clock() + self._lifetime
        for group, owners in saved.get("lockTable", {}).items():
            self._groups[group] = {
                MessageQueue(lock["topic"], lock["brokerName"], lock["queueId"]): (lock["clientId"], expires)
                for lock in owners
            }

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.LOCK_BATCH_MQ: self._lock_batch, RequestCode.UNLOCK_BATCH_MQ: self._unlock_batch}

    def lock(self, group: str, client_id: str, queues: list[MessageQueue]) -> list[MessageQueue]:
        """Lock or renew `queues`; returns those that `client_id` now holds."""
        now = self._clock()
        held = self._groups.setdefault(group, {})
        granted = []
        for queue in queues:
            owner, expires = held.get(queue, ("", 0.0))
            if owner == client_id or expires <= now:
                self._changes += owner != client_id
                held[queue] = (client_id, now + self._lifetime)
                granted.append(queue)
        return granted

    def unlock(self, group: str, client_id: str, queues: list[MessageQueue]) -> None:
        """Give back those of `queues` that `client_id` holds; others are left alone."""
        held = self._groups.get(group, {})
        for queue in queues:
            if queue in held and held[queue][0] == client_id:
                del held[queue]
                self._changes += 1
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

    async def save(self) -> None:
        """Have every owner in the file; callers that wait at the same time share one write.

        A disk that cannot be written to costs the memory over a restart, no lock: that is logged.
        """
        wanted = self._changes
        async with self._saving:
            if self._saved >= wanted:
                return
            taken, value = self._changes, self._table()
            try:
                await asyncio.to_thread(save_json, self.path, value, self._files)
            except StoreError as error:
                log.error("who has locked which queue would be forgotten by a restart: %s", error)
                return
            self._saved = taken

    def _table(self) -> dict[str, Any]:
        return {
            "lockTable": {
                group: [
                    {
                        "topic": queue.topic,
                        "brokerName": queue.broker_name,
                        "queueId": queue.queue_id,
                        "clientId": owner,
                    }
                    for queue, (owner, _) in held.items()
                ]
                for group, held in self._groups.items()
            }
        }

    async def _lock_batch(self, connection: Connection, request: Command) -> bytes:
        body = LockBatchBody.decode(request.body)
        granted = self.lock(body.consumer_group, body.client_id, body.queues)
        if self._saved < self._changes:
            await self.save()
        return encode_response(request, ResponseCode.SUCCESS, body=LockBatchResponse(granted).encode())

    def _unlock_batch(self, connection: Connection, request: Command) -> Reply:
        body = LockBatchBody.decode(request.body)
        self.unlock(body.consumer_group, body.client_id, body.queues)
        return encode_response(request, ResponseCode.SUCCESS)
