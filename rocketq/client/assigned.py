"""One queue that is ours for now: what is held of it, its tasks, its lock."""

from __future__ import annotations

import asyncio
import os
import time

from rocketq.client.process_queue import ProcessQueue
from rocketq.message import MessageQueue, ReceivedMessage

#: Seconds that a lock counts as ours after the broker's last word. In the environment, in ms and under the name of
#: Apache's property `rocketmq.client.rebalance.lockMaxLiveTime`; has to be well below the broker's own (60 s).
LOCK_LIVES = float(os.environ.get("ROCKETMQ_CLIENT_REBALANCE_LOCKMAXLIVETIME") or 30_000) / 1000


class Assigned:
    """State of an assigned queue. Times are seconds of the monotonic clock, `last_…_ms` of the wall clock."""

    def __init__(self, queue: MessageQueue, start_offset: int) -> None:
        self.queue = queue
        self.process: ProcessQueue[ReceivedMessage] = ProcessQueue(start_offset)
        self.tasks: list[asyncio.Task[None]] = []
        #: Set when something was done, so that pulling may go on.
        self.room = asyncio.Event()
        #: Set when messages came in (ordered consumption waits for it).
        self.arrived = asyncio.Event()
        self.locked_at = float("-inf")
        #: `Membership.losses` when it was last known that nobody else had the queue meanwhile.
        self.losses = 0
        self.last_pull_ms = 0
        self.last_consume_ms = 0

    def __repr__(self) -> str:
        return f"<Assigned {self.queue} {len(self.process)} messages>"

    @property
    def locked(self) -> bool:
        return time.monotonic() - self.locked_at < LOCK_LIVES

    def drop(self) -> None:
        """Not ours any more: no more pulls, nothing new to handlers, no more commits of what they do."""
        self.process.dropped = True
        self.process.pending.clear()
        self.room.set()
        self.arrived.set()
