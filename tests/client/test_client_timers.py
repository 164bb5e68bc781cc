"""Delays, delivery times, recall and priority of both producers, against a real server."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone

import pytest
from client_helpers import Collector, fresh, until

from rocketq import RocketQ
from rocketq.client import AsyncProducer, Producer, PushConsumer
from rocketq.errors import BrokerError, InvalidMessage
from rocketq.message import Message, ReceivedMessage
from rocketq.recall import RecallHandle


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def receive(namesrv: str, topic: str, number: int) -> list[ReceivedMessage]:
    """The first `number` messages of a topic, in the order in which they were stored, whichever queue came first."""

    async def main() -> list[ReceivedMessage]:
        collector = Collector()
        consumer = PushConsumer(fresh("Reader"), namesrv, collector, from_where="FIRST", batch=1)
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(collector.messages) >= number, f"{number} messages of {topic}")
        return sorted(collector.messages, key=lambda message: message.store_timestamp)

    return asyncio.run(main())


def test_messages_come_at_their_times(namesrv: str) -> None:
    topic = fresh("Timed")
    at = datetime.now(timezone.utc) + timedelta(seconds=1.2)
    with Producer("PG", namesrv) as producer:
        begun = now_ms()
        producer.send(Message(topic, b"delay"), delay=0.7)
        producer.send(Message(topic, b"timedelta", delay=timedelta(milliseconds=300)))
        producer.send(Message(topic, b"at"), at=at)
        producer.send(Message(topic, b"naive", at=at.astimezone().replace(tzinfo=None) + timedelta(seconds=0.3)))
        producer.send(Message(topic, b"past", at=at - timedelta(days=1)))
        producer.send(Message(topic, b"zero"), delay=0)
    due = {
        b"past": begun,
        b"zero": begun,
        b"timedelta": begun + 300,
        b"delay": begun + 700,
        b"at": at.timestamp() * 1000,
        b"naive": at.timestamp() * 1000 + 300,
    }
    for message in receive(namesrv, topic, len(due)):
        late = message.store_timestamp - due.pop(message.body)
        assert 0 <= late < 10_000, f"{message.body!r} came {late} ms after its time"
    assert not due


def test_a_recalled_message_does_not_come(namesrv: str) -> None:
    topic = fresh("Recalled")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            gone = await producer.send(Message(topic, b"gone"), delay=4.0)
            await producer.send(Message(topic, b"kept"), delay=4.0)
            assert gone.recall_handle is not None
            handle = RecallHandle.decode(gone.recall_handle)
            assert (handle.topic, handle.unique_id) == (topic, gone.message_id)
            assert 0 < handle.due - now_ms() <= 4001
            assert await producer.recall(topic, gone.recall_handle) == gone.message_id
            plain = await producer.send(Message(topic, b"plain"))
            assert plain.recall_handle is None

    asyncio.run(main())
    assert [message.body for message in receive(namesrv, topic, 2)] == [b"plain", b"kept"]


def test_a_delivered_message_cannot_be_recalled(namesrv: str) -> None:
    topic = fresh("Late")
    with Producer("PG", namesrv) as producer:
        handle = producer.send(Message(topic, b"x"), delay=0.05).recall_handle
        assert handle is not None
        receive(namesrv, topic, 1)
        with pytest.raises(BrokerError, match="timestamp invalid") as caught:
            producer.recall(topic, handle)
        assert caught.value.code == 604


@pytest.mark.parametrize("handle", ["", "xx", "djEgYSBi", "ü"])
def test_what_is_no_handle_is_refused_before_anybody_is_asked(handle: str) -> None:
    with Producer("PG", "127.0.0.1:1") as producer, pytest.raises(InvalidMessage, match="handle"):
        producer.recall("T", handle)


def test_a_handle_of_another_topic_is_refused() -> None:
    handle = RecallHandle("Other", "broker-a", 1, "A").encode()
    with Producer("PG", "127.0.0.1:1") as producer, pytest.raises(InvalidMessage, match="message to Other"):
        producer.recall("T", handle)


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"delay": timedelta(seconds=-1)},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": "soon"},
        {"at": "2031-01-01"},
        {"at": 17},
        {"delay": 1, "at": datetime(2031, 1, 1)},
        {"delay": 1, "delay_level": 3},
        {"priority": -1},
        {"priority": 2**31},
        {"priority": True},
        {"priority": "1"},
    ],
    ids=str,
)
def test_what_is_no_time_or_priority_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidMessage, match="message for topic T"):
        Message("T", b"x", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("delay", "ms"),
    [(0, 0), (0.001, 1), (0.0001, 1), (0.07, 70), (1.1, 1100), (timedelta(days=4000), 345_600_000_000)],
)
def test_a_delay_becomes_whole_milliseconds_and_never_less(delay: float, ms: int) -> None:
    assert Message("T", b"x", delay=delay).properties["TIMER_DELAY_MS"] == str(ms)


def test_a_time_becomes_whole_milliseconds_and_never_less() -> None:
    at = datetime(2031, 1, 1, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert Message("T", b"x", at=at).properties["TIMER_DELIVER_MS"] == "1925028000001"


def test_the_priority_chooses_the_queue(namesrv: str) -> None:
    topic = fresh("Priority")
    app = RocketQ("prioritize", namesrv)
    try:
        queues = [app.send(topic, str(priority), priority=priority).queue.queue_id for priority in (0, 2, 9)]
        assert queues == [0, 2, 3]
        message = Message(topic, b"x", priority=7)
        assert message.priority == 7
    finally:
        app.close()


def test_an_application_sends_delayed_in_coroutines_and_threads(namesrv: str) -> None:
    topic = fresh("AppTimed")
    app = RocketQ("timing", namesrv)

    async def main() -> None:
        await app.asend(topic, "two", delay=timedelta(seconds=3))
        await app.aclose()

    begun = now_ms()
    asyncio.run(main())
    try:
        assert app.send(topic, "one", delay=0.3).recall_handle
    finally:
        app.close()
    first, second = receive(namesrv, topic, 2)
    assert (first.body, second.body) == (b"one", b"two")
    assert second.store_timestamp - begun >= 3000
