"""Both producers against a real server."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from client_helpers import Collector, fresh, until
from servers import ServerProcess, lasting_ports, start_server

from rocketq.client import AsyncProducer, Producer, PushConsumer
from rocketq.client.selectors import by_hash
from rocketq.errors import BrokerError, ConfigError, ConnectFailed, InvalidMessage, RemotingError
from rocketq.message import Message, MessageQueue, ReceivedMessage


async def read_all(namesrv: str, topic: str, number: int, expression: str = "*") -> list[ReceivedMessage]:
    """The first `number` messages of a topic."""
    collector = Collector()
    consumer = PushConsumer(fresh("Reader"), namesrv, collector, from_where="FIRST", batch=32)
    consumer.subscribe(topic, expression)
    async with consumer:
        await until(lambda: len(collector.messages) >= number, f"{number} messages of {topic}")
    return collector.messages


def test_what_is_sent_arrives_as_it_was(namesrv: str) -> None:
    topic = fresh("Sent")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            plain = Message(topic, b"plain", tag="TagA", keys=["k1", "k2"], properties={"colour": "blü"}, flag=5)
            result = await producer.send(plain)
            await producer.send(Message(topic, b"large" * 2000))
            await producer.send_oneway(Message(topic, b"oneway"))
        assert result.status == "SEND_OK"
        assert result.message_id == plain.unique_id
        got = {message.body: message for message in await read_all(namesrv, topic, 3)}
        assert set(got) == {b"plain", b"large" * 2000, b"oneway"}
        message = got[b"plain"]
        assert (message.tag, message.keys, message.properties["colour"], message.flag) == (
            "TagA",
            ["k1", "k2"],
            "blü",
            5,
        )
        assert (message.message_id, message.offset_message_id) == (result.message_id, result.offset_message_id)
        assert (message.queue, message.queue_offset) == (result.queue, result.queue_offset)
        assert len(got[b"large" * 2000].stored_body) < 1000

    asyncio.run(main())


def test_the_sync_producer_sends_the_same(namesrv: str) -> None:
    topic = fresh("Sync")
    with Producer("PG", namesrv) as producer:
        result = producer.send(Message(topic, b"one", tag="A"))
        assert result.status == "SEND_OK"
        batch = producer.send_batch([Message(topic, b"two"), Message(topic, b"three")])
        assert batch[0].queue == batch[1].queue
        assert batch[1].queue_offset == batch[0].queue_offset + 1
        producer.send_oneway(Message(topic, b"four"))
        many = producer.send_many([Message(topic, f"m{number}".encode()) for number in range(100)])
        assert len({(one.queue, one.queue_offset) for one in many}) == 100
        assert len(producer.queues(topic)) == 4
    got = asyncio.run(read_all(namesrv, topic, 104))
    assert {message.body for message in got} == {b"one", b"two", b"three", b"four"} | {
        f"m{number}".encode() for number in range(100)
    }


def test_a_key_keeps_to_its_queue_and_a_selector_decides(namesrv: str) -> None:
    topic = fresh("Keyed")

    def last(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
        assert key == "anything"
        return queues[-1]

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            queues = await producer.queues(topic)
            for key in ("a", "b", "c", 17):
                results = [await producer.send(Message(topic, b"x"), key=key) for _ in range(3)]
                expected = by_hash(queues, Message(topic, b"x"), key)
                assert {one.queue for one in results} == {expected}
            chosen = await producer.send(Message(topic, b"x"), selector=last, key="anything")
            assert chosen.queue == queues[-1]
            fixed = await producer.send(Message(topic, b"x"), queue=queues[2])
            assert fixed.queue == queues[2]

    asyncio.run(main())
    with Producer("PG", namesrv) as producer:
        queues = producer.queues(topic)
        assert producer.send(Message(topic, b"x"), key="a").queue == by_hash(queues, Message(topic, b"x"), "a")


def test_a_selector_that_raises_is_the_senders_problem(namesrv: str) -> None:
    def broken(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
        raise KeyError("no such customer")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            for _ in range(2):  # without and with a connection
                with pytest.raises(KeyError, match="customer"):
                    await producer.send(Message(fresh("Broken"), b"x"), selector=broken)
                await producer.send(Message(fresh("Fine"), b"x"))

    asyncio.run(main())


def test_pipelined_sends_keep_their_order_in_a_queue(server: ServerProcess) -> None:
    """With our broker, that is: Apache's handles the requests of a connection in several threads."""
    topic, namesrv = fresh("Piped"), server.namesrv

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            queue = (await producer.queues(topic))[1]
            futures = [
                producer.send_nowait(Message(topic, b"%d" % n), queue=queue, timeout=60.0) for n in range(3000)
            ]
            results = await asyncio.gather(*futures)
        offsets = [result.queue_offset for result in results]
        assert offsets == sorted(offsets)
        assert len(set(offsets)) == 3000

    asyncio.run(main())


def test_collected_messages_share_requests_but_not_results(namesrv: str) -> None:
    topic = fresh("Lingered")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, linger_ms=5, batch_bytes=20_000) as producer:
            messages = [Message(topic, b"%d" % n * 10, tag=f"t{n % 3}") for n in range(500)]
            results = await asyncio.gather(*[producer.send(message) for message in messages])
            delayed = await producer.send(Message(topic, b"not in a batch", delay_level=1))
            assert delayed.status == "SEND_OK"
        assert [result.message_id for result in results] == [message.unique_id for message in messages]
        assert len({(result.queue, result.queue_offset) for result in results}) == 500
        got = {message.message_id: message for message in await read_all(namesrv, topic, 501)}
        for message, result in zip(messages, results, strict=True):
            found = got[result.message_id]
            assert (found.body, found.tag) == (message.body, message.tag)
            assert (found.queue, found.queue_offset) == (result.queue, result.queue_offset)

    asyncio.run(main())


def test_closing_sends_what_still_waits_for_company(namesrv: str) -> None:
    topic = fresh("Flushed")

    async def main() -> None:
        producer = AsyncProducer("PG", namesrv, linger_ms=60_000)
        await producer.start()
        future = producer.send_nowait(Message(topic, b"x"))
        await producer.close()
        assert future.result().status == "SEND_OK"
        with pytest.raises(ConfigError, match="not started"):
            producer.send_nowait(Message(topic, b"x"))

    asyncio.run(main())


def test_more_than_max_pending_wait_their_turn(namesrv: str) -> None:
    topic = fresh("Bounded")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, max_pending=5) as producer:
            most = 0

            async def send() -> None:
                nonlocal most
                await producer.send(Message(topic, b"x"))

            tasks = [asyncio.create_task(send()) for _ in range(200)]
            while not all(task.done() for task in tasks):
                most = max(most, producer._pending)
                await asyncio.sleep(0)
            assert 1 <= most <= 5
            assert not any(task.exception() for task in tasks)

    asyncio.run(main())


def test_cancelled_sends_do_not_count_as_pending_for_ever(namesrv: str) -> None:
    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            future = producer.send_nowait(Message(fresh("Cancelled"), b"x"))
            future.cancel()
        assert producer._pending == 0

    asyncio.run(main())


def test_a_message_that_the_broker_refuses_raises_its_reason(namesrv: str) -> None:
    async def main() -> None:
        async with AsyncProducer("PG", namesrv, max_message_size=64 << 20, compress_from=1 << 30) as producer:
            with pytest.raises(BrokerError) as caught:
                await producer.send(Message(fresh("Huge"), random.Random(1).randbytes(4 * 1024 * 1024 + 1)))
            assert caught.value.code == 13

    asyncio.run(main())


def test_without_a_name_server_sending_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        async def main() -> None:
            async with AsyncProducer("PG", address) as producer:
                with pytest.raises(ConnectFailed, match=address):
                    await producer.send(Message("T", b"x"))

        asyncio.run(main())
        with Producer("PG", address) as producer, pytest.raises(ConnectFailed, match=address):
            producer.send(Message("T", b"x"))


def test_a_producer_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    config = tmp_path / "broker.conf"
    config.write_text("mappedFileSizeCommitLog=8388608\n")
    options = ("--config", str(config))
    ports = lasting_ports()
    first = start_server(tmp_path / "data", *options, **ports)
    acknowledged: list[bytes] = []
    failed = 0

    async def main() -> None:
        nonlocal failed
        stop = False

        async def load(producer: AsyncProducer) -> None:
            nonlocal failed
            number = 0
            while not stop:
                body = b"%d" % number
                number += 1
                try:
                    await producer.send(Message("Restarted", body))
                except RemotingError:
                    failed += 1
                    await asyncio.sleep(0.01)
                except BrokerError:
                    failed += 1
                else:
                    acknowledged.append(body)

        async with AsyncProducer("PG", first.namesrv, route_refresh=1.0) as producer:
            task = asyncio.create_task(load(producer))
            await until(lambda: len(acknowledged) > 50)
            await asyncio.to_thread(first.stop)
            second = await asyncio.to_thread(start_server, tmp_path / "data", *options, **ports)
            with second:
                before = len(acknowledged)
                await until(lambda: len(acknowledged) > before + 50, "sends after the restart")
                stop = True
                await task
                got = {message.body for message in await read_all(second.namesrv, "Restarted", len(acknowledged))}
                assert got >= set(acknowledged)

    asyncio.run(main())


def test_threads_share_a_sync_producer(namesrv: str) -> None:
    topic = fresh("Threads")
    results: list[tuple[MessageQueue, int]] = []
    with Producer("PG", namesrv) as producer:

        def work() -> None:
            for _ in range(50):
                result = producer.send(Message(topic, b"x"))
                results.append((result.queue, result.queue_offset))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(results)) == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_the_producer(namesrv: str) -> None:
    topic = fresh("Forked")
    with Producer("PG", namesrv) as producer:
        producer.send(Message(topic, b"before"))
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if producer.send(Message(topic, b"child")).status == "SEND_OK" else 2
            finally:
                os._exit(code)
        for number in range(20):
            producer.send(Message(topic, b"parent%d" % number))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    got = asyncio.run(read_all(namesrv, topic, 22))
    assert {message.body for message in got} >= {b"before", b"child", b"parent19"}
    assert len({message.message_id for message in got}) == 22


def test_who_was_not_started_says_so() -> None:
    async def main() -> None:
        producer = AsyncProducer("PG", "127.0.0.1:9876")
        for use in (producer.send, producer.send_oneway, producer.request):
            with pytest.raises(ConfigError, match="is not started"):
                await use(Message("T", b"x"))
        with pytest.raises(ConfigError, match="is not started"):
            await producer.introduce("T")

    asyncio.run(main())


def test_bad_options_are_refused_at_once() -> None:
    with pytest.raises(ConfigError):
        AsyncProducer("PG")
    with pytest.raises(ConfigError):
        AsyncProducer("PG", "nowhere")
    with pytest.raises(InvalidMessage):
        Producer("bad group", "127.0.0.1:9876")
    with pytest.raises(TypeError):
        AsyncProducer("PG", "127.0.0.1:9876", no_such_option=1)
