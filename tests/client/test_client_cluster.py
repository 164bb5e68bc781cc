"""Two brokers under one NameServer: sends move to the other one, new brokers and queues are found by themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from client_helpers import Collector, fresh, until
from servers import ServerProcess

from rocketq.client import AsyncProducer, Producer, PushConsumer
from rocketq.message import Message


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
