"""kill -9 of a master under load: producers go on with another one, consumers with the slave, and nothing is lost."""

from __future__ import annotations

import asyncio
import collections
import shutil
import sys
import threading
from pathlib import Path

import pytest
from servers import wait_until

sys.path.insert(0, str(Path(__file__).parent))

from brokers import TOPIC, Brokers, create_topic

from rocketq.client import Producer, PushConsumer
from rocketq.errors import RocketQError
from rocketq.message import Message, ReceivedMessage


class Load:
    """Sends numbered messages from several threads and notes which were answered as safe, and what users would see."""

    def __init__(self, namesrv: str) -> None:
        self.safe: dict[str, str] = {}
        self.errors: list[RocketQError] = []
        self._namesrv = namesrv
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        number = 0
        with Producer(f"load-{index}", self._namesrv, route_refresh=1.0) as producer:
            while not self._stop.is_set():
                name = f"{index}:{number}"
                number += 1
                try:
                    result = producer.send(Message(TOPIC, name.encode()), timeout=20.0)
                except RocketQError as error:
                    self.errors.append(error)
                else:
                    if result.status == "SEND_OK":
                        self.safe[name] = result.queue.broker_name

    def on(self, broker: str) -> int:
        """Answered messages that are on a broker."""
        return sum(1 for name in list(self.safe.values()) if name == broker)

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Drain:
    """A consumer in a loop of its own; `seen` counts deliveries."""

    def __init__(self, namesrv: str) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.consumer = asyncio.run_coroutine_threadsafe(self._start(namesrv), self._loop).result(30)

    async def _start(self, namesrv: str) -> PushConsumer:
        consumer = PushConsumer("drain", namesrv, self._handle, from_where="FIRST", route_refresh=1.0)
        consumer.subscribe(TOPIC)
        await consumer.start()
        return consumer

    async def _handle(self, messages: list[ReceivedMessage]) -> None:
        self.seen.update(message.body.decode() for message in messages)

    def finish(self) -> None:
        asyncio.run_coroutine_threadsafe(self.consumer.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_two_brokers_had_outlives_the_masters_disk(tmp_path: Path) -> None:
    brokers = Brokers(tmp_path, "brokerRole=SYNC_MASTER", "inSyncReplicas=2")
    load = drain = None
    try:
        brokers.start_all()
        namesrv = brokers.namesrv.namesrv
        create_topic(namesrv, 2)
        load = Load(namesrv)
        wait_until(lambda: load.on("broker-a") > 100, 60, "answered messages on broker-a")
        brokers.kill("a")
        shutil.rmtree(tmp_path / "a")
        on_b = load.on("broker-b")
        wait_until(lambda: load.on("broker-b") > on_b + 100, 60, "answered messages on broker-b")
        load.finish()
        assert not load.errors, load.errors[:3]
        drain = Drain(namesrv)  # knows nothing but the slave and the other master
        wait_until(lambda: load.safe.keys() <= drain.seen.keys(), 60, "every answered message was consumed")
    finally:
        for one in (load, drain):
            if one is not None:
                one.finish()
        brokers.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_consumers_read_from_the_slave_until_the_master_is_back(tmp_path: Path) -> None:
    brokers = Brokers(tmp_path)
    load = drain = None
    try:
        brokers.start_all()
        namesrv = brokers.namesrv.namesrv
        create_topic(namesrv, 2)
        load = Load(namesrv)
        drain = Drain(namesrv)
        for _ in range(2):
            on_a, on_b = load.on("broker-a"), load.on("broker-b")
            wait_until(lambda on_a=on_a: load.on("broker-a") > on_a + 100, 60, "answered messages on broker-a")
            brokers.kill("a")
            wait_until(lambda on_b=on_b: load.on("broker-b") > on_b + 100, 60, "answered messages on broker-b")
            brokers.start("a", "broker-a")
        load.finish()
        assert not load.errors, load.errors[:3]
        wait_until(lambda: load.safe.keys() <= drain.seen.keys(), 60, "every answered message was consumed")
        twice = [name for name, count in drain.seen.items() if count > 1]
        # a running consumer goes on where it is; what producers sent again themselves may be there twice
        assert len(twice) <= 2 * 4 * 2, twice
    finally:
        for one in (load, drain):
            if one is not None:
                one.finish()
        brokers.stop()
