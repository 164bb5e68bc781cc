"""Two brokers under one NameServer: sends move to the other one, new brokers and queues are found by themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from client_helpers import Collector, fresh, until
from servers import ServerProcess

from rocketq.client import AsyncProducer, Producer, PushConsumer
from rocketq.client.admin import Admin
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.remoting.bodies import TopicConfig


def name_server(directory: Path) -> ServerProcess:
    return ServerProcess("namesrv", "--host", "127.0.0.1", "--port", "0", "--data", directory / "namesrv")


def broker(directory: Path, name: str, namesrv: str) -> ServerProcess:
    small = ("--set", "mappedFileSizeCommitLog=8388608", "--set", "brokerIP1=127.0.0.1")
    place = ("--host", "127.0.0.1", "--port", "0", "--data", directory / name)
    return ServerProcess("broker", "--name", name, "--namesrv", namesrv, *place, *small)


def test_sends_go_on_with_the_other_broker_when_one_dies(tmp_path: Path) -> None:
    topic = fresh("Two")

    async def main() -> None:
        with (
            name_server(tmp_path) as names,
            broker(tmp_path, "a", names.namesrv) as dying,
            broker(tmp_path, "b", names.namesrv),
            Producer("PG", names.namesrv) as sync,
        ):
            async with AsyncProducer("PG", names.namesrv) as producer:
                while len({queue.broker_name for queue in await producer.queues(topic)}) < 2:
                    await producer.instance.refresh_routes()
                results = [await producer.send(Message(topic, b"x")) for _ in range(16)]
                assert {result.queue.broker_name for result in results} == {"a", "b"}
                assert {sync.send(Message(topic, b"x")).queue.broker_name for _ in range(16)} == {"a", "b"}
                dying.kill()
                for _ in range(16):
                    assert (await producer.send(Message(topic, b"x"))).queue.broker_name == "b"
                    assert sync.send(Message(topic, b"x")).queue.broker_name == "b"

    asyncio.run(main())


def test_a_consumer_finds_a_broker_that_is_added(tmp_path: Path) -> None:
    topic = fresh("Grown")

    async def main() -> None:
        collector = Collector()
        with name_server(tmp_path) as names, broker(tmp_path, "a", names.namesrv):
            async with AsyncProducer("PG", names.namesrv, route_refresh=0.2) as producer:
                await producer.send(Message(topic, b"first"))
                consumer = PushConsumer(
                    fresh("G"), names.namesrv, collector, from_where="FIRST", route_refresh=0.2
                )
                consumer.subscribe(topic)
                async with consumer:
                    await until(lambda: collector.messages)
                    with broker(tmp_path, "b", names.namesrv), Producer("PG2", names.namesrv) as outsider:
                        # the topic appears on b as soon as somebody who knows only the default topic sends there
                        other = fresh("Elsewhere")
                        while "b" not in {queue.broker_name for queue in outsider.queues(other)}:
                            outsider.routes.forget(other)
                        onto_b = next(queue for queue in outsider.queues(other) if queue.broker_name == "b")
                        outsider.send(Message(topic, b"second"), queue=onto_b._replace(topic=topic))
                        await until(lambda: "second" in collector.bodies)
                        await until(
                            lambda: "b" in {q.broker_name for q in consumer.assigned if q.topic == topic},
                            "queues of b",
                        )

    asyncio.run(main())


def test_a_reply_comes_from_a_broker_that_does_not_have_the_topic(tmp_path: Path) -> None:
    topic, replies = fresh("Asked"), "DefaultCluster_REPLY_TOPIC"

    async def main() -> None:
        with (
            name_server(tmp_path) as names,
            broker(tmp_path, "a", names.namesrv),
            broker(tmp_path, "b", names.namesrv) as other,
            Admin(names.namesrv) as admin,
        ):
            admin.create_topic(TopicConfig(topic, 2, 2), broker="a")
            through = ["b"]
            async with (
                AsyncProducer("PG", names.namesrv) as asking,
                AsyncProducer("RG", names.namesrv) as answering,
            ):

                async def answer(messages: list[ReceivedMessage]) -> None:
                    for message in messages:
                        queue = MessageQueue(replies, through[0], 0)
                        await answering.send(message.reply(message.body.upper()), queue=queue)

                async def knows_both() -> bool:
                    await answering.instance.refresh_routes()
                    return len(await answering.queues(replies)) == 2

                while not await knows_both():
                    await asyncio.sleep(0.05)
                consumer = PushConsumer(fresh("G"), names.namesrv, answer, from_where="FIRST")
                consumer.subscribe(topic)
                async with consumer:
                    assert (await asking.request(Message(topic, b"one"), timeout=20.0)).body == b"ONE"
                    through[0] = "a"
                    other.kill()
                    for _ in range(3):  # a broker that is gone keeps nobody waiting
                        assert (await asking.request(Message(topic, b"two"), timeout=5.0)).body == b"TWO"

    asyncio.run(main())
