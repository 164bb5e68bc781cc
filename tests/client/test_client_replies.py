"""Requests that wait for a reply, from coroutines and from threads, against a real server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from client_helpers import fresh

from rocketq.client import AsyncProducer, ConsumeResult, Producer, PushConsumer
from rocketq.errors import ConfigError, InvalidMessage, RequestTimeout
from rocketq.message import Message, ReceivedMessage


@asynccontextmanager
async def responding(namesrv: str, topic: str) -> AsyncIterator[list[ReceivedMessage]]:
    """A consumer that replies with the body in capitals, except to `quiet`; yields what it got."""
    got: list[ReceivedMessage] = []
    async with AsyncProducer("RG", namesrv) as producer:
        await producer.send(Message(topic, b"quiet"))  # now there is a topic to subscribe to

        async def answer(messages: list[ReceivedMessage]) -> ConsumeResult:
            for message in messages:
                got.append(message)
                if message.body != b"quiet":
                    await producer.send(message.reply(message.body.upper()))
            return ConsumeResult.SUCCESS

        consumer = PushConsumer(fresh("G"), namesrv, answer, from_where="FIRST")
        consumer.subscribe(topic)
        async with consumer:
            yield got


def test_many_requests_get_their_own_replies(namesrv: str) -> None:
    topic = fresh("Ask")

    async def main() -> None:
        async with responding(namesrv, topic) as got, AsyncProducer("PG", namesrv) as producer:
            requests = [producer.request(Message(topic, b"m%d" % n), timeout=20.0) for n in range(20)]
            replies = await asyncio.gather(*requests)
            assert [reply.body for reply in replies] == [b"M%d" % n for n in range(20)]
            assert len(producer.instance.requests) == 0
            (asked,) = [message for message in got if message.body == b"m7"]
            reply = replies[7]
            for name in ("CORRELATION_ID", "REPLY_TO_CLIENT", "TTL"):
                assert reply.properties[name] == asked.properties[name]
            assert asked.properties["TTL"] == "20000"
            assert asked.properties["REPLY_TO_CLIENT"] == producer.instance.client_id
            assert reply.topic.endswith("_REPLY_TOPIC")
            assert int(reply.properties["ARRIVE_TIME"]) >= int(reply.properties["PUSH_REPLY_TIME"])
            assert len((await producer.request(Message(topic, b"x" * 10_000), timeout=20.0)).body) == 10_000

    asyncio.run(main())


def test_a_request_without_reply_ends_in_time(namesrv: str) -> None:
    topic = fresh("Quiet")

    async def main() -> None:
        async with responding(namesrv, topic) as got, AsyncProducer("PG", namesrv) as producer:
            with pytest.raises(RequestTimeout, match=f"no reply to message .* of topic {topic} within 2 s"):
                await producer.request(Message(topic, b"quiet"), timeout=2.0)
            assert len(producer.instance.requests) == 0
            # what comes after that time disturbs nobody
            asked = Message(topic, b"late")
            asked.properties.update(CORRELATION_ID="old", REPLY_TO_CLIENT=producer.instance.client_id, TTL="1")
            await producer.send(asked)
            assert (await producer.request(Message(topic, b"next"), timeout=20.0)).body == b"NEXT"
            assert {b"quiet", b"late", b"next"} <= {message.body for message in got}

    asyncio.run(main())


def test_only_requests_can_be_replied_to(namesrv: str) -> None:
    topic = fresh("Plain")

    async def main() -> None:
        async with responding(namesrv, topic) as got, AsyncProducer("PG", namesrv) as producer:
            await producer.request(Message(topic, b"asked"), timeout=20.0)
            plain = next(message for message in got if message.body == b"quiet")
            with pytest.raises(InvalidMessage, match="is no request: it has no CORRELATION_ID, REPLY_TO_CLIENT"):
                plain.reply(b"nothing")

    asyncio.run(main())


def test_replies_are_not_batched_with_other_messages(namesrv: str) -> None:
    topic = fresh("Linger")

    async def main() -> None:
        async with responding(namesrv, topic) as got, AsyncProducer("PG", namesrv) as producer:
            await producer.request(Message(topic, b"asked"), timeout=20.0)
            reply = next(message for message in got if message.body == b"asked").reply(b"again")
            assert not producer.core.batchable(reply)
            with pytest.raises(InvalidMessage, match="batch"):
                await producer.send_batch([reply])

    asyncio.run(main())


def test_threads_ask_through_one_producer(namesrv: str) -> None:
    topic = fresh("Threads")
    ready, done = threading.Event(), threading.Event()

    async def respond() -> None:
        async with responding(namesrv, topic):
            ready.set()
            await asyncio.to_thread(done.wait, 60.0)

    responder = threading.Thread(target=lambda: asyncio.run(respond()))
    responder.start()
    assert ready.wait(30.0)
    replies: dict[int, bytes] = {}
    producer = Producer("PG", namesrv)
    try:
        ask = lambda n: replies.update({n: producer.request(Message(topic, b"m%d" % n), timeout=20.0).body})  # noqa: E731
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        assert replies == {number: b"M%d" % number for number in range(8)}
        with pytest.raises(RequestTimeout, match="no reply"):
            producer.request(Message(topic, b"quiet"), timeout=2.0)
        child = os.fork()
        if child == 0:  # it asks over connections of its own
            code = 1
            try:
                code = 0 if producer.request(Message(topic, b"forked"), timeout=20.0).body == b"FORKED" else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert producer.request(Message(topic, b"still"), timeout=20.0).body == b"STILL"
    finally:
        producer.close()
        done.set()
        responder.join(30.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "rocketq-requests"]
    with pytest.raises(ConfigError, match="closed"):
        producer.request(Message(topic, b"too late"))
