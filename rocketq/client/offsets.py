"""Where consumers keep their offsets: on the broker (a group shares them), or in a local file (broadcast)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from rocketq import javajson
from rocketq.client.queue_calls import QueueCalls
from rocketq.client.troubles import Troubles
from rocketq.errors import RocketQError
from rocketq.message import MessageQueue

log = logging.getLogger("rocketq.client")

#: Seconds after which an offset is sent once more although it is the same: a broker that was killed has forgotten the
#: last ones that it was told.
AGAIN = 10.0


class OffsetStore(Protocol):
    """Offsets of one consumer. `update` only remembers, `persist` writes."""

    async def read(self, queue: MessageQueue) -> int | None:
        """The stored offset, None when there is none. Raises RocketQError when it cannot be known."""
        ...

    def update(self, queue: MessageQueue, offset: int) -> None: ...

    async def persist(self, queues: Iterable[MessageQueue], *, wait: bool = False) -> set[MessageQueue]:
        """Writes what was remembered for these queues; failures are logged. `wait`: until it is known to be there.

        Returns the queues of which that is known.
        """
        ...

    def forget(self, queue: MessageQueue) -> None: ...

    def known(self, queue: MessageQueue) -> int | None:
        """What was remembered last."""
        ...


class BrokerOffsets:
    """Offsets on the broker that has the queue. `zero_if_young`: see `QueueCalls.committed`."""

    def __init__(self, calls: QueueCalls, *, zero_if_young: bool) -> None:
        self._calls = calls
        self._zero_if_young = zero_if_young
        self._table: dict[MessageQueue, int] = {}
        #: what was sent last, and when
        self._sent: dict[MessageQueue, tuple[int, float]] = {}
        self._troubles = Troubles()

    async def read(self, queue: MessageQueue) -> int | None:
        return await self._calls.committed(queue, zero_if_young=self._zero_if_young)

    def update(self, queue: MessageQueue, offset: int) -> None:
        self._table[queue] = offset

    def known(self, queue: MessageQueue) -> int | None:
        return self._table.get(queue)

    async def persist(self, queues: Iterable[MessageQueue], *, wait: bool = False) -> set[MessageQueue]:
        old = time.monotonic() - AGAIN
        due = [queue for queue in queues if queue in self._table and (wait or self._is_due(queue, old))]
        stored = await asyncio.gather(*[self._persist(queue, wait) for queue in due])
        return {queue for queue, known in zip(due, stored, strict=True) if known}

    def _is_due(self, queue: MessageQueue, old: float) -> bool:
        offset, sent_at = self._sent.get(queue, (None, old))
        return self._table.get(queue) != offset or sent_at <= old

    async def _persist(self, queue: MessageQueue, wait: bool) -> bool:
        """Whether it is known to be there."""
        offset = self._table.get(queue)
        if offset is None:  # it was taken away meanwhile
            return False
        try:
            await self._calls.commit(queue, offset, oneway=not wait)
        except RocketQError as error:
            level = self._troubles.level(queue.broker_name)
            log.log(
                level, "group %s: offset %d of %s is not committed: %s", self._calls.group, offset, queue, error
            )
            return False
        self._troubles.over(queue.broker_name)
        self._sent[queue] = offset, time.monotonic()
        return wait

    def forget(self, queue: MessageQueue) -> None:
        self._table.pop(queue, None)
        self._sent.pop(queue, None)


def default_directory() -> Path:
    """`~/.rocketmq_offsets`, where Apache's clients keep them, or ROCKETMQ_CLIENT_LOCALOFFSETSTOREDIR."""
    return Path(os.environ.get("ROCKETMQ_CLIENT_LOCALOFFSETSTOREDIR") or Path.home() / ".rocketmq_offsets")


class LocalOffsets:
    """Offsets in `<directory>/<client id>/<group>/offsets.json`, in the format of Apache's `LocalFileOffsetStore`.

    The previous content stays beside it as `offsets.json.bak`, which is read when the file is damaged.
    """

    def __init__(self, client_id: str, group: str, directory: Path | None = None) -> None:
        self.path = (directory or default_directory()) / client_id / group / "offsets.json"
        self._table: dict[MessageQueue, int] | None = None
        self._written: bytes | None = None

    async def read(self, queue: MessageQueue) -> int | None:
        return self._load().get(queue)

    def update(self, queue: MessageQueue, offset: int) -> None:
        self._load()[queue] = offset

    def known(self, queue: MessageQueue) -> int | None:
        return self._load().get(queue)

    def forget(self, queue: MessageQueue) -> None:
        """Broadcast consumers keep every queue: it may come back."""

    def _load(self) -> dict[MessageQueue, int]:
        if self._table is None:
            self._table = {}
            for path in (self.path, self.path.with_name("offsets.json.bak")):
                try:
                    data = javajson.loads(path.read_bytes())
                    table = data["offsetTable"]
                    self._table = {
                        queue: int(offset) for queue, offset in table.items() if isinstance(queue, MessageQueue)
                    }
                    break
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    log.warning("offsets in %s cannot be read: %s", path, error)
        return self._table

    async def persist(self, queues: Iterable[MessageQueue], *, wait: bool = False) -> set[MessageQueue]:
        data = javajson.dumps({"offsetTable": self._load()}, pretty=True)
        if data == self._written:
            return set(queues)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self.path.replace(self.path.with_name("offsets.json.bak"))
            fresh = self.path.with_name("offsets.json.tmp")
            fresh.write_bytes(data)
            fresh.replace(self.path)
        except OSError as error:
            log.warning("offsets cannot be written to %s: %s", self.path, error)
            return set()
        self._written = data
        return set(queues)
