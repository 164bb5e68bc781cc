"""Consumers whose server goes away and comes back."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
from client_helpers import Collector, until
from servers import ServerProcess, lasting_ports, start_server

from rocketq.client import AsyncProducer, PushConsumer
from rocketq.message import Message


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_consumer_goes_on_after_the_server_was_away(tmp_path: Path, ordered: bool, end: str) -> None:
    config = tmp_path / "broker.conf"
    config.write_text("mappedFileSizeCommitLog=8388608\n")

    ports = lasting_ports()

    def start() -> ServerProcess:
        return start_server(tmp_path / "data", "--config", str(config), **ports)

    async def send(namesrv: str, prefix: str) -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            for n in range(40):
                await producer.send(Message("Restart", f"{prefix}{n}".encode()))

    async def main() -> None:
        collector = Collector()
        with start() as first:
            await send(first.namesrv, "a")
            consumer = PushConsumer(
                "RG", first.namesrv, collector, from_where="FIRST", ordered=ordered, persist_interval=0.1
            )
            consumer.subscribe("Restart")
            await consumer.start()
            await until(lambda: len(set(collector.bodies)) == 40)
            await asyncio.to_thread(getattr(first, end))
        second = await asyncio.to_thread(start)
        with second:
            await send(second.namesrv, "b")
            await until(lambda: len(set(collector.bodies)) == 80, "what was sent after the restart", 60)
            await consumer.close()
        by_queue: dict[int, list[int]] = defaultdict(list)
        for message in collector.messages:
            by_queue[message.queue_id].append(message.queue_offset)
        for offsets in by_queue.values():
            firsts = list(dict.fromkeys(offsets))
            assert firsts == sorted(firsts) or not ordered

    asyncio.run(main())


def test_a_consumer_finds_another_name_server(tmp_path: Path) -> None:
    async def main() -> None:
        collector = Collector()
        with start_server(tmp_path) as server:
            consumer = PushConsumer("NG", f"127.0.0.1:1;{server.namesrv}", collector, from_where="FIRST")
            consumer.subscribe("Either")
            async with AsyncProducer("PG", f"{server.namesrv};127.0.0.1:1") as producer, consumer:
                await producer.send(Message("Either", b"x"))
                await until(lambda: collector.messages)

    asyncio.run(main())
