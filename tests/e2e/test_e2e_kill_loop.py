"""kill -9 of the server under load, again and again: what was acknowledged is consumed, in order per queue."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest
from servers import ServerProcess, lasting_ports, start_server, wait_until

from rocketq.client import Producer, PushConsumer
from rocketq.errors import RocketQError
from rocketq.message import Message, ReceivedMessage

TOPIC = "KillLoop"
ROUNDS = 5
QUEUES = 4


class Load:
    """Sends numbered messages to fixed queues, one in flight a queue, and notes which were acknowledged."""

    def __init__(self, namesrv: str) -> None:
        self.acknowledged: set[str] = set()
        self.stop = threading.Event()
        self._namesrv = namesrv
        self._threads = [threading.Thread(target=self._run, args=(queue,)) for queue in range(QUEUES)]
        for thread in self._threads:
            thread.start()

    def _run(self, queue_id: int) -> None:
        number = 0
        with Producer("kill-loop", self._namesrv, retries=0) as producer:
            while not self.stop.is_set():
                name = f"{queue_id}:{number}"
                number += 1  # an attempt without an answer is never repeated: its number is used up
                try:
                    queues = producer.queues(TOPIC)
                    queue = next(queue for queue in queues if queue.queue_id == queue_id)
                    producer.send(Message(TOPIC, name.encode()), queue=queue, timeout=1.0)
                except (RocketQError, StopIteration):
                    self.stop.wait(0.05)
                else:
                    self.acknowledged.add(name)

    def finish(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


class Drain:
    """An ordered consumer in a loop of its own; `seen` holds, per queue, the order of first deliveries."""

    def __init__(self, namesrv: str) -> None:
        self.seen: dict[int, list[int]] = {queue: [] for queue in range(QUEUES)}
        self.names: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.consumer = asyncio.run_coroutine_threadsafe(self._start(namesrv), self._loop).result(30)

    async def _start(self, namesrv: str) -> PushConsumer:
        consumer = PushConsumer("kill-loop-drain", namesrv, self._handle, ordered=True, from_where="FIRST")
        consumer.subscribe(TOPIC)
        await consumer.start()
        return consumer

    async def _handle(self, messages: list[ReceivedMessage]) -> None:
        for message in messages:
            name = message.body.decode()
            if name not in self.names:
                self.names.add(name)
                queue, number = name.split(":")
                self.seen[int(queue)].append(int(number))

    def finish(self) -> None:
        asyncio.run_coroutine_threadsafe(self.consumer.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_nothing_acknowledged_is_lost_when_the_server_is_killed_in_a_loop(tmp_path: Path, flush: str) -> None:
    config = tmp_path / "broker.conf"
    config.write_text(f"flushDiskType={flush}\nmappedFileSizeCommitLog=1048576\n")

    ports = lasting_ports()

    def start() -> ServerProcess:
        return start_server(tmp_path / "data", "--config", str(config), **ports)

    server = start()
    namesrv = server.namesrv
    with Producer("create", namesrv) as producer:
        producer.send(Message(TOPIC, b"x:0"))  # creates the topic with four queues
    load = Load(namesrv)
    drain = Drain(namesrv)
    try:
        chance = random.Random(7)
        for _ in range(ROUNDS):
            goal = len(load.acknowledged) + chance.randrange(150, 400)
            wait_until(lambda goal=goal: len(load.acknowledged) >= goal, 60, f"{goal} acknowledged sends")
            server.kill()
            server = start()
        load.finish()
        wait_until(lambda: load.acknowledged <= drain.names, 60, "every acknowledged message was consumed")
        for queue, numbers in drain.seen.items():
            assert numbers == sorted(numbers), f"queue {queue} was consumed out of order"
    finally:
        load.finish()
        drain.finish()
        server.kill()
