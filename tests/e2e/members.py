"""Members of consumer groups as processes of their own, which tests stop, kill and cut off.

A member prints one line a message, its body, and one for each rebalance. `python members.py NAMESRV TOPIC GROUP KIND`
with KIND `push`, `orderly`, `pull` or `pop`; `LEASE` and `CONCURRENCY` are of all members here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from rocketq.client import PopConsumer, PullConsumer, PushConsumer
from rocketq.message import MessageQueue, ReceivedMessage

#: Seconds of a lease of POP, and calls of the handler that run at once.
LEASE = 3.0
CONCURRENCY = 4
#: Ordered members ask for their locks so often, and count on them for so long (ms).
LOCKS = {
    "ROCKETMQ_CLIENT_REBALANCE_LOCKINTERVAL": "500",
    "ROCKETMQ_CLIENT_REBALANCE_LOCKMAXLIVETIME": "1500",
}


class MemberProcess:
    """One member. `seen`: bodies in the order in which its handler got them; `queues`: how many it has now."""

    def __init__(self, namesrv: str, topic: str, group: str, kind: str) -> None:
        self.seen: list[str] = []
        self.errors: list[str] = []
        self.queues = 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), namesrv, topic, group, kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **LOCKS},
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, value = line.rstrip("\n").partition(" ")
            if kind == "got":
                self.seen.append(value)
            else:
                self.queues = int(value)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5.0)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


async def _consume(namesrv: str, topic: str, group: str, kind: str) -> None:
    def say(text: str) -> None:
        os.write(1, f"{text}\n".encode())  # whole lines, also when many handlers run

    async def handle(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            say(f"got {message.body.decode()}")

    queues: set[MessageQueue] = set()

    def rebalanced(of: str, assigned: list[MessageQueue], revoked: list[MessageQueue]) -> None:
        if of == topic:
            queues.difference_update(revoked)
            queues.update(assigned)
            say(f"queues {len(queues)}")

    consumer: PushConsumer | PopConsumer | PullConsumer
    if kind == "pop":
        consumer = PopConsumer(
            group,
            namesrv,
            handle,
            from_where="FIRST",
            lease=LEASE,
            concurrency=CONCURRENCY,
            heartbeat_interval=0.5,
            route_refresh=1.0,
        )
    elif kind == "pull":
        consumer = PullConsumer(
            group,
            namesrv,
            from_where="FIRST",
            persist_interval=0.2,
            rebalance_interval=1.0,
            on_rebalanced=rebalanced,
            heartbeat_interval=0.5,
            route_refresh=1.0,
        )
    else:
        consumer = PushConsumer(
            group,
            namesrv,
            handle,
            from_where="FIRST",
            ordered=kind == "orderly",
            concurrency=CONCURRENCY,
            persist_interval=0.2,
            rebalance_interval=1.0,
            on_rebalanced=rebalanced,
            heartbeat_interval=0.5,
            route_refresh=1.0,
        )
    consumer.subscribe(topic)
    async with consumer:
        while isinstance(consumer, PullConsumer):
            await handle(await consumer.poll())
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(_consume(*sys.argv[1:]))
