"""Transactions of both producers and of an application, against real servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_helpers import Collector, fresh, until
from servers import ServerProcess, start_server, wait_until

from rocketq import RocketQ
from rocketq.client import AsyncProducer, Producer, PushConsumer
from rocketq.errors import ConfigError, InvalidMessage, RocketQError
from rocketq.message import Message, ReceivedMessage
from rocketq.trace import END_TRANSACTION, Trace


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """NameServer of a server that asks soon."""
    directory = tmp_path_factory.mktemp("asking")
    with asking_server(directory) as process:
        yield process.namesrv


def asking_server(directory: Path) -> ServerProcess:
    config = directory / "broker.conf"
    config.write_text("transactionTimeOut=50\ntransactionCheckInterval=50\n")
    return start_server(directory / "data", "--config", str(config))


def received(namesrv: str, topic: str, wanted: set[str]) -> list[ReceivedMessage]:
    """The messages of a topic up to one that is sent now, which has to come after all `wanted`."""
    collector = Collector()

    async def main() -> None:
        async with AsyncProducer(fresh("Last"), namesrv) as producer:
            for queue in await producer.queues(topic):
                await producer.send(Message(topic, b"last"), queue=queue)
            number = len(await producer.queues(topic))
        consumer = PushConsumer(fresh("Reader"), namesrv, collector, from_where="FIRST", batch=1)
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: collector.bodies.count("last") == number and wanted <= set(collector.bodies))

    asyncio.run(main())
    return [message for message in collector.messages if message.body != b"last"]


def bodies(namesrv: str, topic: str, wanted: set[str]) -> list[str]:
    return sorted(message.body.decode() for message in received(namesrv, topic, wanted))


class Failure(Exception):
    pass


def fail_after(step: Callable[[], None]) -> None:
    step()
    raise Failure


def test_a_block_commits_or_rolls_back(namesrv: str) -> None:
    topic = fresh("Tx")
    with Producer(fresh("PG"), namesrv) as producer:
        with producer.transaction(Message(topic, b"committed", tag="Tag", keys="k")) as transaction:
            assert transaction.result is not None
            assert transaction.result.status == "SEND_OK"
        with pytest.raises(Failure), producer.transaction(Message(topic, b"failed")):
            raise Failure
        with producer.transaction(Message(topic, b"rolled back")) as transaction:
            transaction.rollback()
            with pytest.raises(ConfigError, match="decided already"):
                transaction.commit()
        early = producer.transaction(Message(topic, b"committed early"))
        with pytest.raises(Failure), early:
            fail_after(early.commit)
        with pytest.raises(ConfigError, match="has not begun"):
            producer.transaction(Message(topic, b"x")).commit()
        with pytest.raises(InvalidMessage, match="check_after"):
            producer.transaction(Message(topic, b"x"), check_after=0)
    found = received(namesrv, topic, {"committed", "committed early"})
    assert sorted(message.body for message in found) == [b"committed", b"committed early"]
    (committed,) = [message for message in found if message.body == b"committed"]
    assert (committed.tag, committed.keys, committed.topic) == ("Tag", ["k"], topic)


def test_a_block_of_a_coroutine_commits_or_rolls_back(namesrv: str) -> None:
    topic = fresh("Tx")

    async def main() -> None:
        async with AsyncProducer(fresh("PG"), namesrv) as producer:
            message = Message(topic, b"committed")
            async with producer.transaction(message, key="k") as transaction:
                assert transaction.result is not None
            assert "TRAN_MSG" not in message.properties
            with pytest.raises(Failure):
                async with producer.transaction(Message(topic, b"failed")):
                    raise Failure
            async with producer.transaction(Message(topic, b"rolled back")) as transaction:
                await transaction.rollback()
            with pytest.raises(asyncio.CancelledError):
                async with producer.transaction(Message(topic, b"cancelled")):
                    raise asyncio.CancelledError
            await producer.send(message)

    asyncio.run(main())
    assert bodies(namesrv, topic, {"committed"}) == ["committed", "committed"]


def test_an_application_has_transactions(namesrv: str) -> None:
    topic = fresh("Tx")
    app = RocketQ(fresh("app"), namesrv)

    async def main() -> None:
        async with app.atransaction(topic, "async"):
            pass
        with pytest.raises(Failure):
            async with app.atransaction(topic, "async failed"):
                raise Failure
        await app.aclose()

    with app.transaction(topic, {"number": 1}, tag="new", key="ada") as transaction:
        assert transaction.result is not None
    with pytest.raises(Failure), app.transaction(topic, "failed"):
        raise Failure
    app.close()
    asyncio.run(main())
    assert bodies(namesrv, topic, {"async", '{"number":1}'}) == ["async", '{"number":1}']


def verdicts(name: str) -> Callable[[ReceivedMessage], bool | None]:
    """A check that says what the body says; None the first time for what is asked twice."""
    seen: set[bytes] = set()

    def check(message: ReceivedMessage) -> bool | None:
        assert message.topic == name
        if message.body == b"twice" and message.body not in seen:
            seen.add(message.body)
            return None
        if message.body == b"broken" and message.body not in seen:
            seen.add(message.body)
            raise Failure("the first time")
        return message.body != b"no"

    return check


@pytest.mark.parametrize("kind", ["sync", "coroutine function"])
def test_brokers_ask_an_asyncio_producer(asking: str, kind: str) -> None:
    topic = fresh("Tx")
    plain = verdicts(topic)

    async def check(message: ReceivedMessage) -> bool | None:
        return plain(message)

    async def main() -> None:
        producer = AsyncProducer(fresh("PG"), asking, check=plain if kind == "sync" else check)
        async with producer:
            for body in (b"yes", b"no", b"twice", b"broken"):
                await producer.transaction(Message(topic, body)).begin()
            assert await asyncio.to_thread(bodies, asking, topic, {"yes", "twice", "broken"}) == [
                "broken",
                "twice",
                "yes",
            ]

    asyncio.run(main())


def test_brokers_ask_a_blocking_producer(asking: str) -> None:
    topic = fresh("Tx")
    with Producer(fresh("PG"), asking, check=verdicts(topic)) as producer:
        for body in (b"yes", b"no", b"twice", b"broken"):
            producer.transaction(Message(topic, body)).begin()
        assert bodies(asking, topic, {"yes", "twice", "broken"}) == ["broken", "twice", "yes"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rocketq-background")]


def test_what_brokers_asked_for_is_traced(asking: str) -> None:
    topic = fresh("Tx")
    kept: list[Trace] = []

    async def main() -> None:
        async with AsyncProducer(fresh("PG"), asking, check=verdicts(topic), trace=True) as producer:
            assert producer.tracer is not None
            producer.tracer.add = kept.append  # type: ignore[method-assign]
            sent = {}
            for body in (b"yes", b"no"):
                await (transaction := producer.transaction(Message(topic, body))).begin()
                assert transaction.result is not None
                sent[transaction.result.message_id] = body
            await until(lambda: {trace.message_id for trace in ends()} == sent.keys(), "both ends")
            for trace in ends():
                state = "COMMIT_MESSAGE" if sent[trace.message_id] == b"yes" else "ROLLBACK_MESSAGE"
                assert (trace.topic, trace.state, trace.from_check) == (topic, state, True)

    def ends() -> list[Trace]:
        return [trace for trace in kept if trace.kind == END_TRANSACTION]

    asyncio.run(main())


def test_two_checks_of_a_group_are_refused_and_no_topic_without_brokers(namesrv: str) -> None:
    async def main() -> None:
        async with AsyncProducer(fresh("PG"), namesrv, check=lambda message: True) as first:
            second = AsyncProducer(first.group, instance=first.instance, check=lambda message: False)
            with pytest.raises(ConfigError, match="has a check"):
                await second.start()

    asyncio.run(main())
    with pytest.raises(RocketQError):
        Producer("PG", "127.0.0.1:1", check=lambda message: True, check_topics=["T"], timeout=0.2)


DIES = """
import os, sys
from rocketq import Message, Producer
producer = Producer("orders", sys.argv[1], check=lambda message: None)
with producer.transaction(Message(sys.argv[2], b"of a process that died")):
    os._exit(7)
"""


def test_another_process_is_asked_about_what_a_dead_one_left(tmp_path: Path) -> None:
    """And the server dies as well, with kill -9, between the half message and the commit."""
    topic = fresh("Tx")
    with asking_server(tmp_path) as server:
        done = subprocess.run([sys.executable, "-c", DIES, server.namesrv, topic], env=os.environ, timeout=60)
        assert done.returncode == 7
        server.kill()
    with asking_server(tmp_path) as server:
        asked: list[bytes] = []

        def check(message: ReceivedMessage) -> bool:
            asked.append(message.body)
            return True

        with Producer("orders", server.namesrv, check=check, check_topics=[topic]):
            wait_until(lambda: asked, what="a question")
            assert bodies(server.namesrv, topic, {"of a process that died"}) == ["of a process that died"]
        assert server.stop() == 0
