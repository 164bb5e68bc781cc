"""Consumers that want what a SQL92 expression matches."""

from __future__ import annotations

import asyncio

import pytest
from client_helpers import Collector, fresh, until

from rocketq import Sql
from rocketq.client import AsyncProducer, PullConsumer, PushConsumer
from rocketq.errors import BrokerError
from rocketq.message import Message


async def publish(namesrv: str, topic: str, *amounts: int) -> None:
    async with AsyncProducer("PG", namesrv) as producer:
        for amount in amounts:
            properties = {"amount": str(amount)}
            await producer.send(Message(topic, b"%d" % amount, tag="t", properties=properties))


def test_a_push_consumer_gets_what_its_expression_matches(namesrv: str) -> None:
    topic, group = fresh("SqlPush"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, *range(10))
        handler = Collector()
        consumer = PushConsumer(group, namesrv, handler, from_where="FIRST")
        consumer.subscribe(topic, Sql("amount > 7 AND TAGS = 't'"))
        async with consumer:
            await until(lambda: sorted(handler.bodies) == ["8", "9"], "what was stored")
            await publish(namesrv, topic, 1, 2, 11, 3, 12)
            await until(lambda: len(handler.bodies) >= 4, "what came while pulls were held")
        assert sorted(handler.bodies) == ["11", "12", "8", "9"]

    asyncio.run(main())


def test_a_pull_consumer_gets_what_its_expression_matches(namesrv: str) -> None:
    topic = fresh("SqlPull")

    async def main() -> None:
        await publish(namesrv, topic, *range(10))
        for by_hand in (False, True):
            consumer = PullConsumer(fresh("G"), namesrv, from_where="FIRST", auto_commit=False)
            if not by_hand:
                consumer.subscribe(topic, Sql("amount IN ('2', '5')"))
            async with consumer:
                if by_hand:
                    await consumer.assign(await consumer.queues(topic), Sql("amount IN ('2', '5')"))
                found: list[bytes] = []
                while len(found) < 2:
                    messages = await consumer.poll(10.0)
                    assert messages, f"nothing more after {found}"
                    found += [message.body for message in messages]
            assert sorted(found) == [b"2", b"5"]

    asyncio.run(main())


def test_a_bad_expression_does_not_start(namesrv: str) -> None:
    topic = fresh("SqlBad")

    async def main() -> None:
        await publish(namesrv, topic, 1)
        push = PushConsumer(fresh("G"), namesrv, Collector())
        push.subscribe(topic, Sql("amount >"))
        with pytest.raises(BrokerError, match="position 9") as caught:
            await push.start()
        assert caught.value.code == 23
        pull = PullConsumer(fresh("G"), namesrv)
        pull.subscribe(topic, Sql("amount >"))
        with pytest.raises(BrokerError, match="position 9"):
            await pull.start()
        push.subscribe(topic, Sql("amount > 0"))  # and may be put right
        async with push:
            await until(lambda: push.assigned, "a share of the queues")

    asyncio.run(main())
