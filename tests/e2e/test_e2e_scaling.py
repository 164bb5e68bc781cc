"""The cluster changes while it works: queues added, a broker added, a broker drained and taken away."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from servers import ServerProcess, start_server, wait_until

from rocketq.client import Producer, PushConsumer
from rocketq.client.admin import Admin
from rocketq.errors import RocketQError
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.remoting.bodies import TopicConfig

TOPIC = "Scaling"
REFRESH = 0.5


def start_broker(directory: Path, name: str, namesrv: str) -> ServerProcess:
    config = directory / f"{name}.conf"
    config.write_text(
        f"brokerName={name}\nlistenPort=0\nbrokerIP1=127.0.0.1\nstorePathRootDir={directory / name}\n"
        "mappedFileSizeCommitLog=1048576\n"
    )
    return ServerProcess("broker", "-c", config, "-n", namesrv)


class Sender:
    """Sends numbered messages one after the other, and notes to which queue each acknowledged one went."""

    def __init__(self, namesrv: str) -> None:
        self.acknowledged: dict[str, MessageQueue] = {}
        self.failures: list[RocketQError] = []
        self._stop = threading.Event()
        self._namesrv = namesrv
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Producer("scaling", self._namesrv, route_refresh=REFRESH) as producer:
            number = 0
            while not self._stop.is_set():
                number += 1
                try:
                    result = producer.send(Message(TOPIC, str(number).encode()), timeout=30.0)
                except RocketQError as error:
                    self.failures.append(error)
                else:
                    self.acknowledged[str(number)] = result.queue

    def uses(self, *queues: tuple[str, int]) -> bool:
        """True when the newest sends went to all of `queues`."""
        newest = list(self.acknowledged.values())[-100:]
        return {(queue.broker_name, queue.queue_id) for queue in newest} >= set(queues)

    def only(self, broker: str) -> bool:
        """True when the newest sends went to `broker` alone."""
        newest = list(self.acknowledged.values())[-50:]
        return {queue.broker_name for queue in newest} == {broker}

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()


class Group:
    """Two members of one group on a loop of their own."""

    def __init__(self, namesrv: str) -> None:
        self.consumed: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._members = [
            asyncio.run_coroutine_threadsafe(self._start(namesrv), self._loop).result(30) for _ in range(2)
        ]

    async def _start(self, namesrv: str) -> PushConsumer:
        member = PushConsumer(
            "scaling-group",
            namesrv,
            self._handle,
            from_where="FIRST",
            route_refresh=REFRESH,
            rebalance_interval=REFRESH,
        )
        member.subscribe(TOPIC)
        await member.start()
        return member

    async def _handle(self, messages: list[ReceivedMessage]) -> None:
        self.consumed.extend(message.body.decode() for message in messages)

    def assigned(self) -> list[MessageQueue]:
        queues = [queue for member in self._members for queue in list(member.assigned)]
        return sorted(queue for queue in queues if queue.topic == TOPIC)

    def finish(self) -> None:
        for member in self._members:
            asyncio.run_coroutine_threadsafe(member.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.mark.slow
def test_queues_and_brokers_come_and_go_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    with ServerProcess("namesrv", "--port", "0") as namesrv_process:
        namesrv = namesrv_process.namesrv
        with (
            Admin(namesrv) as admin,
            start_broker(tmp_path, "a", namesrv) as a,
            start_broker(tmp_path, "b", namesrv),
        ):
            on_a = {broker.name: broker for broker in admin.brokers()}["a"]
            assert on_a.address == a.broker
            admin.create_topic(TopicConfig(topic_name=TOPIC, read_queue_nums=2, write_queue_nums=2), broker="a")
            sender = Sender(namesrv)
            group = Group(namesrv)
            try:
                wait_until(lambda: sender.uses(("a", 0), ("a", 1)), what="sends to both queues of a")

                admin.create_topic(
                    TopicConfig(topic_name=TOPIC, read_queue_nums=4, write_queue_nums=4), broker="a"
                )
                wait_until(lambda: sender.uses(("a", 2), ("a", 3)), what="sends to the new queues of a")
                wait_until(lambda: len(group.assigned()) == 4, what="four queues with owners")

                admin.create_topic(
                    TopicConfig(topic_name=TOPIC, read_queue_nums=2, write_queue_nums=2), broker="b"
                )
                wait_until(lambda: sender.uses(("b", 0), ("b", 1)), what="sends to broker b")
                wait_until(lambda: len(group.assigned()) == 6, what="six queues with owners")

                admin.wipe_write("a")
                wait_until(lambda: sender.only("b"), what="sends to b alone")
                to_a = {name for name, queue in list(sender.acknowledged.items()) if queue.broker_name == "a"}
                wait_until(lambda: to_a <= set(group.consumed), what="everything on a was consumed")
                assert sender.failures == []  # up to here nobody noticed anything
                assert a.stop() == 0
                wait_until(lambda: len(group.assigned()) == 2, what="only the queues of b with owners")

                seen = len(sender.acknowledged)
                wait_until(lambda: len(sender.acknowledged) > seen + 100, what="sends after a was taken away")
                sender.finish()
                wait_until(lambda: set(sender.acknowledged) <= set(group.consumed), what="everything was consumed")
            finally:
                sender.finish()
                group.finish()


def test_a_topic_is_in_the_routes_when_its_creation_is_answered(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, Admin(server.namesrv) as admin:
        for number in range(20):
            name = f"Fresh{number}"
            admin.create_topic(TopicConfig(topic_name=name, read_queue_nums=2, write_queue_nums=2))
            assert [data.write_queue_nums for data in admin.route(name).queue_datas] == [2]
