"""The pull consumer against a real server."""

from __future__ import annotations

import asyncio
import logging

import pytest
from client_helpers import fresh, until

from rocketq.client import AsyncProducer, PullConsumer
from rocketq.client.assigned import Assigned
from rocketq.errors import ConfigError, ConnectFailed
from rocketq.message import Message, MessageQueue, ReceivedMessage


async def publish(namesrv: str, topic: str, *bodies: str, tag: str | None = None) -> MessageQueue:
    """Sends to the first queue of the topic, which it returns."""
    async with AsyncProducer("PG", namesrv) as producer:
        queue = (await producer.queues(topic))[0]
        for body in bodies:
            await producer.send(Message(topic, body.encode(), tag=tag), queue=queue)
    return queue


async def drain(consumer: PullConsumer, number: int) -> list[str]:
    bodies: list[str] = []
    while len(bodies) < number:
        messages = await consumer.poll(10.0)
        assert messages, f"nothing more after {bodies}"
        bodies += [message.body.decode() for message in messages]
    return bodies


def test_assigned_queues_are_read_from_where_one_says(namesrv: str) -> None:
    topic, group = fresh("Assigned"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(50)])
        async with PullConsumer(group, namesrv, from_where="FIRST", auto_commit=False) as consumer:
            assert queue in await consumer.queues(topic)
            await consumer.assign([queue])
            assert consumer.position(queue) == 0
            assert await drain(consumer, 50) == [str(n) for n in range(50)]
            assert consumer.position(queue) == 50
            await consumer.seek(queue, 47)
            assert consumer.position(queue) == 47
            assert await drain(consumer, 3) == ["47", "48", "49"]
            await consumer.seek_to_begin(queue)
            first = await consumer.poll(10.0, max_messages=2)
            assert [message.body for message in first] == [b"0", b"1"]
            await consumer.seek_to_time(queue, first[0].store_timestamp)
            assert (await drain(consumer, 1))[0] == "0"
            await consumer.seek_to_end(queue)
            assert await consumer.poll(0.05) == []
            await publish(namesrv, topic, "new")
            assert await drain(consumer, 1) == ["new"]

    asyncio.run(main())


def test_only_what_is_committed_counts_for_the_next_one(namesrv: str) -> None:
    topic, group = fresh("Committed"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(10)])
        async with PullConsumer(group, namesrv, from_where="FIRST", auto_commit=False) as consumer:
            await consumer.assign([queue])
            assert await consumer.committed(queue) is None
            assert [m.body for m in await consumer.poll(10.0, max_messages=4)] == [b"0", b"1", b"2", b"3"]
            await consumer.commit()
            assert await consumer.committed(queue) == 4
            await consumer.poll(10.0, max_messages=4)
        async with PullConsumer(group, namesrv) as consumer:
            await consumer.assign([queue])
            assert await drain(consumer, 6) == [str(n) for n in range(4, 10)]
        async with PullConsumer(group, namesrv) as consumer:  # closing committed
            assert await consumer.committed(queue) == 10

    asyncio.run(main())


def test_automatic_commits_leave_out_the_poll_that_is_being_worked_on(namesrv: str) -> None:
    topic, group = fresh("Auto"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(10)])
        async with PullConsumer(group, namesrv, from_where="FIRST", persist_interval=0.02) as consumer:
            await consumer.assign([queue])
            await consumer.poll(10.0, max_messages=4)
            await consumer.poll(10.0, max_messages=3)
            committed: list[int | None] = []

            async def look() -> None:
                while not committed or committed[-1] != 4:
                    committed.append(await consumer.committed(queue))
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(look(), 20)
            await asyncio.sleep(0.1)
            assert await consumer.committed(queue) == 4
            await consumer.commit()
            await consumer._commit(consumer.assigned.values(), wait=True)  # as the next automatic one does
            assert await consumer.committed(queue) == 7

    asyncio.run(main())


def test_what_was_being_worked_on_when_something_raised_comes_again(namesrv: str) -> None:
    topic, group = fresh("Raises"), fresh("G")

    async def work(queue: MessageQueue) -> None:
        async with PullConsumer(group, namesrv, from_where="FIRST") as consumer:
            await consumer.assign([queue])
            for expected in (b"a", b"b"):
                (message,) = await consumer.poll(10.0, max_messages=1)
                assert message.body == expected
            raise ValueError("b cannot be worked on just now")

    async def main() -> None:
        queue = await publish(namesrv, topic, "a", "b", "c")
        with pytest.raises(ValueError, match="just now"):
            await work(queue)
        async with PullConsumer(group, namesrv, from_where="FIRST") as consumer:
            await consumer.assign([queue])
            assert await drain(consumer, 2) == ["b", "c"]

    asyncio.run(main())


def test_subscribers_share_the_queues(namesrv: str) -> None:
    topic, group = fresh("Subscribed"), fresh("G")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            for n in range(8):
                await producer.send(Message(topic, b"%d" % n, tag="even" if n % 2 == 0 else "odd"))
        first = PullConsumer(group, namesrv, from_where="FIRST")
        first.subscribe(topic, "even")
        got: list[ReceivedMessage] = []
        async with first:
            while len(got) < 4:
                got += await first.poll(10.0)
            second = PullConsumer(group, namesrv, from_where="FIRST")
            second.subscribe(topic, "even")
            async with second:
                await until(lambda: len(first.assigned) == len(second.assigned) == 2, "two queues each")
            await until(lambda: len(first.assigned) == 4, "all queues again")
        assert sorted(message.body for message in got) == [b"0", b"2", b"4", b"6"]

    asyncio.run(main())


def test_misuse_is_named(namesrv: str) -> None:
    async def main() -> None:
        consumer = PullConsumer(fresh("G"), namesrv)
        with pytest.raises(ConfigError, match="start"):
            await consumer.poll()
        with pytest.raises(ConfigError, match="start"):
            await consumer.assign([])
        consumer.subscribe(fresh("T"))
        async with consumer:
            with pytest.raises(ConfigError, match="exclude"):
                await consumer.assign([MessageQueue("T", "b", 0)])
            with pytest.raises(ConfigError, match="not assigned"):
                consumer.position(MessageQueue("T", "b", 0))

    asyncio.run(main())


def cut(consumer: PullConsumer, queue: MessageQueue) -> None:
    """Let the connection to the queue's broker end: it takes the consumer for gone."""
    address = consumer.instance.routes.master(queue.broker_name)
    assert address is not None
    connection = consumer.instance.remoting.connected(address)
    assert connection is not None
    connection.abort()


@pytest.mark.parametrize("auto_commit", [True, False])
def test_who_was_taken_for_gone_goes_on_where_the_group_is(namesrv: str, auto_commit: bool) -> None:
    topic, group = fresh("Heirs"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(50)])
        heir = PullConsumer(group, namesrv, auto_commit=False)
        consumer = PullConsumer(
            group, namesrv, from_where="FIRST", auto_commit=auto_commit, persist_interval=0.05, pull_batch=10
        )
        consumer.subscribe(topic)
        async with heir, consumer:
            assert (await drain(consumer, 1))[0] == "0"
            if auto_commit:  # all of it, so that no commit is under way
                done = consumer.position(queue)
                await consumer.poll(0.0, max_messages=1)
                while await heir.committed(queue) != done:
                    await asyncio.sleep(0.01)
            await heir.assign([queue])
            await heir.seek(queue, 40)
            await heir.commit()
            assert await heir.committed(queue) == 40
            cut(consumer, queue)
            await consumer.poll(0.0, max_messages=1)  # what it holds it may give out, and commits it not
            if not auto_commit:
                await consumer.commit()
            bodies: list[bytes] = []
            while b"49" not in bodies:
                bodies += [message.body for message in await consumer.poll(10.0)]
                assert (await heir.committed(queue) or 0) >= 40
            assert bodies[-10:] == [b"%d" % n for n in range(40, 50)]
            if not auto_commit:
                await consumer.commit()
        assert await committed(namesrv, group, queue) == 50

    asyncio.run(main())


def test_a_queue_that_is_had_again_is_not_committed_where_it_was_before(namesrv: str) -> None:
    topic, group = fresh("Again"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(20)])
        heir = PullConsumer(group, namesrv, auto_commit=False)
        consumer = PullConsumer(group, namesrv, from_where="FIRST", persist_interval=60.0)
        consumer.subscribe(topic)
        async with heir, consumer:
            assert [message.body for message in await consumer.poll(10.0, max_messages=1)] == [b"0"]
            await heir.assign([queue])
            await heir.seek(queue, 15)
            await heir.commit()
            one = consumer.assigned[queue]
            cut(consumer, queue)
            await until(lambda: consumer.membership.losses(queue) != one.losses, "the loss")
            await consumer._commit([one], wait=True)
            await until(lambda: consumer.assigned.get(queue) not in (None, one), "the queue again")
            await consumer._commit(consumer.assigned.values(), wait=True)
            assert await heir.committed(queue) == 15

    asyncio.run(main())


def test_who_goes_back_stays_there_when_the_connection_is_lost(namesrv: str) -> None:
    topic, group = fresh("Back"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(20)])
        consumer = PullConsumer(group, namesrv, from_where="FIRST", auto_commit=False)
        consumer.subscribe(topic)
        async with consumer:
            assert len(await drain(consumer, 20)) == 20
            await consumer.commit()
            await consumer.seek(queue, 5)
            cut(consumer, queue)
            assert (await drain(consumer, 15))[0] == "5"
            assert consumer.position(queue) == 20

    asyncio.run(main())


def test_a_position_that_could_not_be_committed_stays_the_users_choice(
    namesrv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = fresh("Unstored"), fresh("G")
    refused = 0

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(20)])
        consumer = PullConsumer(
            group, namesrv, from_where="FIRST", persist_interval=0.02, max_messages=1, pull_batch=1
        )
        consumer.subscribe(topic)

        async def lost(queue: MessageQueue, offset: int, *, oneway: bool) -> None:
            nonlocal refused
            refused += 1
            if not oneway:
                raise ConnectFailed("the broker is away")

        async with consumer:
            assert len(await drain(consumer, 20)) == 20
            await consumer.commit()
            with monkeypatch.context() as away:
                away.setattr(consumer.membership.calls, "commit", lost)
                await consumer.seek(queue, 5)
                assert [message.body for message in await consumer.poll(10.0, max_messages=1)] == [b"5"]
                await until(lambda: refused >= 2, "two automatic commits")
                cut(consumer, queue)
            assert await drain(consumer, 14) == [str(n) for n in range(6, 20)]
            await consumer.poll(0.0)
            await until(lambda: not consumer._sought, "a commit that is stored")

    asyncio.run(main())


def test_a_position_that_is_chosen_during_a_commit_is_not_taken_for_committed(
    namesrv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = fresh("Meanwhile"), fresh("G")

    async def main() -> None:
        queue = await publish(namesrv, topic, *[str(n) for n in range(20)])
        consumer = PullConsumer(
            group, namesrv, from_where="FIRST", auto_commit=False, max_messages=1, pull_batch=1
        )
        consumer.subscribe(topic)
        commit = consumer.membership.calls.commit

        async def while_seeking(queue: MessageQueue, offset: int, *, oneway: bool) -> None:
            await consumer.seek(queue, 5)
            await commit(queue, offset, oneway=oneway)

        async with consumer:
            assert len(await drain(consumer, 20)) == 20
            monkeypatch.setattr(consumer.membership.calls, "commit", while_seeking)
            await consumer.commit()
            assert await consumer.committed(queue) == 20
            cut(consumer, queue)
            assert await drain(consumer, 15) == [str(n) for n in range(5, 20)]

    asyncio.run(main())


def test_why_a_commit_is_left_out_is_said_and_a_defect_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue = MessageQueue("T", "b", 0)
    error: Exception = ConnectFailed("the broker is away")

    async def committed(queue: MessageQueue) -> int:
        raise error

    async def main() -> None:
        nonlocal error
        consumer = PullConsumer("G", "127.0.0.1:1", auto_commit=False)
        monkeypatch.setattr(consumer.membership.calls, "committed", committed)
        consumer.assigned[queue] = Assigned(queue, 3)
        consumer.assigned[queue].losses = -1  # the connection was lost since
        await consumer.commit()
        await consumer.commit()
        assert consumer.offsets.known(queue) is None
        error = ZeroDivisionError("a defect")
        with pytest.raises(ZeroDivisionError):
            await consumer.commit()

    with caplog.at_level(logging.INFO, "rocketq.client"):
        asyncio.run(main())
    (line,) = caplog.messages
    assert f"no commit for {queue}" in line
    assert "the broker is away" in line


async def committed(namesrv: str, group: str, queue: MessageQueue) -> int | None:
    async with PullConsumer(group, namesrv, auto_commit=False) as consumer:
        return await consumer.committed(queue)
