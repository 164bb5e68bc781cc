"""Clients while something is wrong: nothing lost, nobody stuck, and not a line in the log for every attempt."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from client_helpers import Collector, Silent, fresh, until

from rocketq import message as message_module
from rocketq.client import AsyncProducer, ConsumeResult, PopConsumer, Producer, PullConsumer, PushConsumer
from rocketq.client import member as members
from rocketq.client.assigned import Assigned
from rocketq.client.instance import ClientInstance
from rocketq.client.membership import CLUSTERING, Membership
from rocketq.client.pulling import Puller, PullRules
from rocketq.client.troubles import REPEAT, Troubles
from rocketq.errors import BrokerError, ConfigError, ConnectFailed, InvalidMessage
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.rebalance import average
from rocketq.remoting.bodies import ConsumerList
from rocketq.remoting.command import Command


async def publish(namesrv: str, topic: str, number: int) -> MessageQueue:
    """Messages 0, 1, … in one queue."""
    async with AsyncProducer("PG", namesrv) as producer:
        queue = (await producer.queues(topic))[0]
        for n in range(number):
            await producer.send(Message(topic, b"%d" % n), queue=queue)
        return queue


# the log


def test_a_failure_that_goes_on_is_said_at_its_begin_and_rarely_after() -> None:
    now = 0.0
    troubles = Troubles(lambda: now)
    assert troubles.level("a") == logging.WARNING
    assert troubles.level("b", logging.INFO) == logging.INFO
    now = REPEAT - 1
    assert troubles.level("a") == logging.DEBUG
    now = REPEAT
    assert troubles.level("a") == logging.WARNING
    assert troubles.over("a")
    assert not troubles.over("a")
    assert troubles.level("a") == logging.WARNING


def test_a_broker_that_is_away_is_one_line_not_one_for_each_queue_and_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    membership: Any = SimpleNamespace(group="G")
    rules = PullRules(32, 10, 10, None, commits=True)
    puller = Puller(membership, rules, arrived=lambda _: None, illegal_offset=lambda *_: None, statistics={})  # type: ignore[arg-type,return-value]
    queues = [Assigned(MessageQueue("T", "b", n), 0) for n in range(8)]
    with caplog.at_level(logging.INFO, "rocketq.client"):
        for _ in range(5):
            for one in queues:
                puller._pause_after(one, ConnectFailed("it is away"))
        assert len(caplog.records) == 1
        for _ in range(5):
            for one in queues[:3]:
                puller._pause_after(one, BrokerError(1, "a queue that is broken"))
        assert len(caplog.records) == 1 + 3


# membership


def test_a_broker_that_does_not_know_us_yet_is_no_reason_to_let_go_of_queues() -> None:
    answers = [["other"], ["me", "other"]]
    wished: list[bool] = []

    async def call(*_: Any, **__: Any) -> Command:
        return Command(0, body=ConsumerList(answers.pop(0)).encode())

    instance: Any = SimpleNamespace(
        client_id="me",
        timeout=1.0,
        rng=random.Random(1),
        routes=SimpleNamespace(some_broker=lambda *_: "b:1"),
        remoting=SimpleNamespace(call=call),
        heartbeat_soon=lambda: wished.append(True),
    )
    membership = Membership(
        "G", instance, model=CLUSTERING, from_where="LAST", strategy=average, consume_type="CONSUME_PASSIVELY"
    )
    assert asyncio.run(membership.members("T")) is None
    assert wished
    assert asyncio.run(membership.members("T")) == ["me", "other"]


def test_a_strategy_that_fails_for_one_topic_leaves_no_queue_of_another_idle(namesrv: str) -> None:
    good, bad = fresh("Good"), fresh("Bad")

    def strategy(me: str, everybody: Sequence[str], queues: Sequence[MessageQueue]) -> list[MessageQueue]:
        if any(queue.topic == bad for queue in queues):
            raise RuntimeError("not this one")
        return average(me, everybody, queues)

    async def main() -> None:
        await publish(namesrv, good, 5)
        await publish(namesrv, bad, 1)
        collector = Collector()
        consumer = PushConsumer(fresh("G"), namesrv, collector, from_where="FIRST", strategy=strategy)
        consumer.subscribe(good)
        consumer.subscribe(bad)
        async with consumer:
            await until(lambda: len(collector.messages) == 5)

    asyncio.run(main())


def test_a_topic_without_a_route_is_looked_for_every_few_seconds(
    namesrv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def wait_event(event: asyncio.Event, timeout: float) -> bool:
        pauses.append(timeout)
        await asyncio.sleep(0)
        return False

    async def main() -> None:
        consumer = PushConsumer(fresh("G"), namesrv, Collector())
        consumer.subscribe(fresh("Never"))
        async with consumer:
            monkeypatch.setattr(members, "wait_event", wait_event)
            consumer.wake()
            await until(lambda: len(pauses) > 8)
        assert pauses[0] == 1.0
        assert max(pauses) <= 5.0

    asyncio.run(main())


# offsets


def test_an_ordered_queue_that_is_reset_waits_for_its_running_handler(namesrv: str) -> None:
    topic = fresh("Reset")

    async def main() -> None:
        queue = await publish(namesrv, topic, 3)
        running, most, bodies, go_on = 0, 0, [], asyncio.Event()

        async def handler(messages: list[ReceivedMessage]) -> ConsumeResult:
            nonlocal running, most
            running += 1
            most = max(most, running)
            bodies.append(messages[0].body)
            await go_on.wait()
            running -= 1
            return ConsumeResult.SUCCESS

        consumer = PushConsumer(fresh("G"), namesrv, handler, from_where="FIRST", ordered=True)
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: bodies)
            reset = asyncio.create_task(consumer.reset_offsets(topic, {queue: 1}))
            await until(lambda: queue not in consumer.assigned)
            await consumer.rebalance()
            assert queue not in consumer.assigned
            go_on.set()
            await reset
            await until(lambda: len(bodies) == 3)
        assert most == 1
        assert bodies == [b"0", b"1", b"2"]

    asyncio.run(main())


def test_what_was_fetched_is_not_lost_when_the_next_offset_is_not_there(namesrv: str) -> None:
    topic = fresh("Gap")

    async def main() -> None:
        queue = await publish(namesrv, topic, 10)
        async with PullConsumer(fresh("G"), namesrv, from_where="FIRST") as consumer:
            await consumer.assign([queue])
            assert [m.body for m in await consumer.poll(10.0, max_messages=4)] == [b"0", b"1", b"2", b"3"]
            # the log was trimmed behind what is held
            one = consumer.assigned[queue]
            await consumer._illegal_offset(one, 50)
            assert consumer.assigned[queue] is one
            assert one.process.next_offset == 50
            assert [m.body for m in await consumer.poll(10.0, max_messages=2)] == [b"4", b"5"]
            # the broker lost its newest messages
            await consumer._illegal_offset(one, 10)
            assert [m.body for m in await consumer.poll(10.0)] == [b"6", b"7", b"8", b"9"]

    asyncio.run(main())


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_queue_that_goes_takes_no_commit_of_what_is_being_worked_on(namesrv: str, by_hand: bool) -> None:
    topic = fresh("Revoked")

    async def main() -> None:
        queue = await publish(namesrv, topic, 10)
        consumer = PullConsumer(fresh("G"), namesrv, from_where="FIRST", persist_interval=60)
        if not by_hand:
            consumer.subscribe(topic)
        async with consumer:
            if by_hand:
                await consumer.assign([queue])
            await consumer.poll(10.0, max_messages=4)
            await consumer.poll(10.0, max_messages=3)
            if by_hand:
                await consumer.assign([])
            else:
                await consumer._revoke(consumer.assigned[queue])
            assert await consumer.committed(queue) == 4

    asyncio.run(main())


def test_a_second_member_of_one_client_leaves_nothing_behind(namesrv: str) -> None:
    topic, group = fresh("Twice"), fresh("G")

    async def main() -> None:
        instance = ClientInstance(namesrv)
        first, second = PullConsumer(group, instance=instance), PullConsumer(group, instance=instance)
        first.subscribe(topic)
        second.subscribe(topic)
        async with first:
            with pytest.raises(ConfigError, match="already is a member"):
                await second.start()
        assert instance._users == 0

    asyncio.run(main())


# handlers


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot tell who was cancelled")
@pytest.mark.parametrize("ordered", [False, True])
def test_a_handler_whose_own_task_was_cancelled_has_failed_and_others_go_on(namesrv: str, ordered: bool) -> None:
    topic = fresh("Inner")

    async def main() -> None:
        queue = await publish(namesrv, topic, 3)
        done: list[bytes] = []
        failed = False

        async def handler(messages: list[ReceivedMessage]) -> None:
            nonlocal failed
            if messages[0].body == b"0" and not failed:
                failed = True
                inner = asyncio.create_task(asyncio.sleep(60))
                inner.cancel()
                await inner
            done.append(messages[0].body)

        consumer = PushConsumer(
            fresh("G"), namesrv, handler, from_where="FIRST", concurrency=1, ordered=ordered, suspend=0.01
        )
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: {b"1", b"2"} <= set(done))
            await until(lambda: consumer.assigned[queue].process.commit_offset == 3)
        assert failed
        assert done[0] == (b"0" if ordered else b"1")

    asyncio.run(main())


# producers


def test_a_waiting_sender_with_a_bad_message_does_not_hold_up_the_others(namesrv: str) -> None:
    topic = fresh("Turn")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, max_pending=1) as producer:
            messages = [Message(topic, b"a"), Message(topic, b""), Message(topic, b"c")]
            sends = [asyncio.create_task(producer.send(message)) for message in messages]
            await asyncio.wait(sends, timeout=20)
            assert sends[0].result().status == sends[2].result().status == "SEND_OK"
            with pytest.raises(InvalidMessage):
                sends[1].result()

    asyncio.run(main())


def test_closing_ends_while_senders_wait_for_room(namesrv: str) -> None:
    topic = fresh("Shut")

    async def main() -> None:
        producer = AsyncProducer("PG", namesrv, max_pending=1)
        await producer.start()
        sends = [asyncio.create_task(producer.send(Message(topic, b"x"))) for _ in range(4)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(producer.close())
        _, waiting = await asyncio.wait([*sends, closing], timeout=20)
        assert not waiting
        assert sends[0].result().status == "SEND_OK"
        assert all(isinstance(send.exception(), ConfigError) for send in sends[1:])

    asyncio.run(main())


def test_a_broker_that_hangs_leaves_time_for_another_one(namesrv: str) -> None:
    topic = fresh("Hangs")
    settings: dict[str, Any] = {"retries": 5, "attempt_timeout": 0.2}

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, **settings) as producer:
            assert {queue.broker_name for queue in await producer.queues(topic)} > {"silent"}
            for number in range(10):
                assert (await producer.send(Message(topic, b"%d" % number), timeout=30)).status == "SEND_OK"

    with Producer("PG", namesrv) as producer:
        producer.send(Message(topic, b"makes the topic"))
    with Silent(namesrv, topic) as silent:
        asyncio.run(main())
        heard = silent.heard
        assert heard
        with Producer("PG", namesrv, **settings) as producer:
            for number in range(10):
                assert producer.send(Message(topic, b"%d" % number), timeout=30).status == "SEND_OK"
        assert silent.heard > heard


@pytest.mark.parametrize("kind", [PushConsumer, PopConsumer])
def test_a_damaged_message_is_a_dead_letter_and_costs_no_other(
    namesrv: str, monkeypatch: pytest.MonkeyPatch, kind: type[PushConsumer] | type[PopConsumer]
) -> None:
    """Apache's brokers store a batch as it came; nothing that looks at properties must stumble over it."""
    topic, group = fresh("Damaged"), fresh("G")
    decode = message_module.decode_messages

    def damage(data: bytes | memoryview, broker_name: str = "") -> list[ReceivedMessage]:
        return decode(bytes(data).replace(b"poison", b"pois\xffn"), broker_name)

    for user in ("queue_calls", "pop_calls"):
        monkeypatch.setattr(f"rocketq.client.{user}.decode_messages", damage)

    async def main() -> None:
        dead: list[bytes] = []
        got: list[bytes] = []

        async def handle(messages: list[ReceivedMessage]) -> None:
            got.extend(message.body for message in messages if message.properties)

        consumer = kind(
            *(group, namesrv, handle),
            from_where="FIRST",
            trace=True,
            max_reconsume_times=0,
            concurrency=1,
            on_dead_lettered=lambda message: dead.append(message.body),
        )
        consumer.subscribe(topic, "A")
        async with AsyncProducer("PG", namesrv) as producer:
            queue = (await producer.queues(topic))[0]
            await producer.send(Message(topic, b"bad", tag="A", properties={"why": "poison"}), queue=queue)
            await producer.send(Message(topic, b"good", tag="A"), queue=queue)
        async with consumer:
            await until(lambda: dead and got)
        assert (dead, got) == ([b"bad"], [b"good"])

    asyncio.run(main())
