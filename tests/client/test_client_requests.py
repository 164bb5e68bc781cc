"""What brokers ask of clients."""

from __future__ import annotations

import asyncio
import json

import pytest
from client_helpers import Collector, fresh, until
from servers import ServerProcess

from rocketq import javajson
from rocketq.client import AsyncProducer, ConsumeResult, PushConsumer
from rocketq.message import Message, MessageQueue
from rocketq.record import encode_record
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Server


class Quiet:
    """A server without a word of its own."""

    def handle(self, connection: Connection, request: Command) -> bytes:
        return encode_response(request, 0)

    def end_batch(self, connection: Connection) -> None: ...

    def connection_lost(self, connection: Connection) -> None: ...


async def ask(consumer: PushConsumer, code: int, ext: dict[str, str], body: bytes = b"") -> Command:
    """The consumer's answer to a broker that asks it over the consumer's own connection."""
    broker = Server(Quiet())
    await broker.start()
    try:
        await consumer.instance.remoting.call(f"127.0.0.1:{broker.port}", 34)
        (connection,) = broker.connections
        return await connection.call(code, ext, body, timeout=10.0)
    finally:
        await broker.stop()


async def consumer_of(server: ServerProcess, topic: str, collector: Collector, number: int) -> PushConsumer:
    """A consumer that has had the topic's `number` messages."""
    async with AsyncProducer("PG", server.namesrv) as producer:
        for n in range(number):
            await producer.send(Message(topic, b"%d" % n))
    consumer = PushConsumer(fresh("G"), server.namesrv, collector, from_where="FIRST")
    consumer.subscribe(topic, "*")
    await consumer.start()
    await until(lambda: len(collector.messages) >= number)
    return consumer


def test_running_info_tells_how_the_consumer_is_doing(server: ServerProcess) -> None:
    topic = fresh("Info")

    async def main() -> None:
        consumer = await consumer_of(server, topic, Collector(), 8)
        ext = {"consumerGroup": consumer.group, "clientId": consumer.instance.client_id, "jstackEnable": "false"}
        answer = await ask(consumer, RequestCode.GET_CONSUMER_RUNNING_INFO, ext)
        assert answer.code == 0, answer.remark
        info = javajson.loads(answer.body)
        assert info["properties"]["PROP_CONSUMEORDERLY"] == "false"
        assert {one["topic"] for one in info["subscriptionSet"]} == {topic, f"%RETRY%{consumer.group}"}
        assert info["mqTable"][MessageQueue(topic, "broker-0", 0)]["commitOffset"] == 2
        assert info["statusTable"][topic]["consumeOKTPS"] > 0
        await consumer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (ConsumeResult.SUCCESS, "CR_SUCCESS"),
        ([ConsumeResult.SUCCESS], "CR_SUCCESS"),
        (ConsumeResult.RETRY_LATER, "CR_LATER"),
        (ValueError("not like this"), "CR_THROW_EXCEPTION"),
    ],
)
def test_one_message_can_be_consumed_on_demand(server: ServerProcess, verdict: object, outcome: str) -> None:
    topic = fresh("Direct")

    async def main() -> None:
        collector = Collector()
        consumer = await consumer_of(server, topic, collector, 1)

        def decide(_: object) -> object:
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

        collector.decide = decide  # type: ignore[assignment]
        ext = {
            "consumerGroup": consumer.group,
            "clientId": consumer.instance.client_id,
            "msgId": collector.messages[0].offset_message_id,
            "brokerName": "broker-0",
            "topic": topic,
        }
        raw = collector.messages[0].record
        body = encode_record(
            raw.queue_id,
            raw.queue_offset,
            raw.physical_offset,
            raw.topic.encode(),
            raw.body,
            raw.properties.encode(),
            raw.flag,
            raw.sys_flag,
            raw.born_timestamp,
            raw.born_host,
            raw.store_timestamp,
            raw.store_host,
        )
        answer = await ask(consumer, RequestCode.CONSUME_MESSAGE_DIRECTLY, ext, body)
        assert answer.code == 0, answer.remark
        result = json.loads(answer.body)
        assert result["consumeResult"] == outcome
        assert ("not like this" in result.get("remark", "")) == isinstance(verdict, Exception)
        assert collector.bodies == ["0", "0"]
        collector.decide = lambda _: ConsumeResult.SUCCESS
        await consumer.close()

    asyncio.run(main())


def test_offsets_can_be_reset_from_outside(server: ServerProcess) -> None:
    topic = fresh("Reset")

    async def main() -> None:
        collector = Collector()
        consumer = await consumer_of(server, topic, collector, 4)
        queue = MessageQueue(topic, "broker-0", 1)
        body = javajson.dumps({"offsetTable": {queue: 0, MessageQueue(topic, "elsewhere", 0): 0}})
        ext = {"group": consumer.group, "topic": topic, "timestamp": "0", "isForce": "false"}
        answer = await ask(consumer, RequestCode.RESET_CONSUMER_CLIENT_OFFSET, ext, body)
        assert answer.code == 0, answer.remark
        await until(lambda: len(collector.messages) == 5)
        assert collector.messages[-1].queue == queue
        await consumer.close()

    asyncio.run(main())


def test_the_status_tells_the_offsets_of_a_topic(server: ServerProcess) -> None:
    topic = fresh("Status")

    async def main() -> None:
        consumer = await consumer_of(server, topic, Collector(), 8)
        await until(lambda: all(not len(one.process) for one in consumer.assigned.values()))
        ext = {"group": consumer.group, "topic": topic, "clientAddr": ""}
        answer = await ask(consumer, RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, ext)
        status = javajson.loads(answer.body)
        assert status["messageQueueTable"] == {MessageQueue(topic, "broker-0", n): 2 for n in range(4)}
        await consumer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "ext"),
    [
        (RequestCode.GET_CONSUMER_RUNNING_INFO, {"consumerGroup": "other", "clientId": "c"}),
        (RequestCode.CONSUME_MESSAGE_DIRECTLY, {"consumerGroup": "other"}),
        (RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, {"group": "other", "topic": "T"}),
        (
            RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
            {"group": "other", "topic": "T", "timestamp": "0", "isForce": "1"},
        ),
    ],
)
def test_a_group_that_is_not_here_is_named(server: ServerProcess, code: int, ext: dict[str, str]) -> None:
    async def main() -> None:
        consumer = await consumer_of(server, fresh("Stranger"), Collector(), 1)
        answer = await ask(consumer, code, ext)
        assert answer.code == 1
        assert "other" in (answer.remark or "")
        await consumer.close()

    asyncio.run(main())


def test_requests_that_clients_do_not_serve_are_refused(server: ServerProcess) -> None:
    async def main() -> None:
        consumer = await consumer_of(server, fresh("Unserved"), Collector(), 1)
        assert (await ask(consumer, 310, {})).code == 3
        await consumer.close()

    asyncio.run(main())
