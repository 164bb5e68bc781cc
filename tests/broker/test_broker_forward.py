"""Operators' business with running consumers: moving groups, and questions that are passed on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, with_broker

from rocketq import javajson
from rocketq.broker.server import Broker
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection

MOVED = 21


async def join(wire: Wire, group: str, topic: str, model: str = "CLUSTERING", client: str = "c1") -> None:
    consumer = {
        "groupName": group,
        "consumeType": "CONSUME_PASSIVELY",
        "messageModel": model,
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
        "subscriptionDataSet": [{"topic": topic, "subString": "*", "subVersion": 1, "expressionType": "TAG"}],
    }
    body = {"clientID": client, "producerDataSet": [], "consumerDataSet": [consumer]}
    assert (await wire.call(34, {}, json.dumps(body).encode())).code == 0


async def reset(wire: Wire, group: str, topic: str, **fields: Any) -> Any:
    return await wire.call(222, {"group": group, "topic": topic, "timestamp": 0, "isForce": "true"} | fields)


async def offset_of(wire: Wire, group: str, topic: str, queue: int = 0) -> int:
    answer = await wire.call(14, {"consumerGroup": group, "topic": topic, "queueId": queue})
    return int(answer.ext["offset"])


async def commit(wire: Wire, group: str, topic: str, offset: int) -> Any:
    return await wire.call(15, {"consumerGroup": group, "topic": topic, "queueId": 0, "commitOffset": offset})


def test_a_held_pull_learns_at_once_that_its_group_was_moved(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(3):
            await wire.store("F")
        consumer = await Wire.connect(broker.port)
        await join(consumer, "G", "F")
        held = consumer.pull_request("F", 3, suspend=60_000)
        other = consumer.pull_request("F", 3, group="Other", suspend=60_000)
        await wire.until(lambda: broker.hold.count == 2)
        assert (await reset(wire, "G", "F", queueId=0, offset=1)).code == 0
        answer = await consumer.answer(held)
        assert (answer.code, answer.remark, answer.ext["nextBeginOffset"]) == (MOVED, "OFFSET_RESET", "1")
        assert other not in consumer.answers
        assert len(await consumer.messages("F", 1)) == 2
        await consumer.close()

    with_broker(tmp_path, test)


def test_late_commits_do_not_undo_a_move_until_the_consumer_knows(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(5):
            await wire.store("F")
        await join(wire, "G", "F")
        assert (await commit(wire, "G", "F", 4)).remark is None
        assert (await reset(wire, "G", "F", queueId=0, offset=2)).code == 0
        looks = {"consumerGroup": "G", "topic": "F", "queueId": 0, "maxMsgNums": 1, "pollTime": 0, "bornTime": 0}
        for code in (200052, 200054):  # who only looks is not the consumer
            assert (await wire.call(code, looks)).code == 0
        late = await commit(wire, "G", "F", 5)
        assert (late.code, late.remark) == (0, "Offset has been previously reset")
        assert await offset_of(wire, "G", "F") == 2
        moved = await wire.pull("F", 5, commitOffset=5, sysFlag=5)
        assert (moved.code, moved.ext["nextBeginOffset"]) == (MOVED, "2")
        assert await offset_of(wire, "G", "F") == 2
        assert (await commit(wire, "G", "F", 3)).remark is None
        assert await offset_of(wire, "G", "F") == 3

    with_broker(tmp_path, test)


def test_a_consumer_that_starts_after_the_move_is_served_without_being_sent_away(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(5):
            await wire.store("F")
        await join(wire, "G", "F")
        assert (await reset(wire, "G", "F", queueId=0, offset=2)).code == 0
        answer = await wire.pull("F", await offset_of(wire, "G", "F"), commitOffset=2)
        assert answer.code == 0
        assert (await commit(wire, "G", "F", 5)).remark is None

    with_broker(tmp_path, test)


def test_members_of_a_broadcasting_group_are_all_asked_to_move(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("F")
        members = [await Wire.connect(broker.port) for _ in range(2)]
        for number, member in enumerate(members):
            await join(member, "G", "F", "BROADCASTING", f"c{number}")
        assert (await reset(wire, "G", "F", timestamp=-1)).code == 0
        for member in members:
            pushed = await member.until(lambda: [r for r in member.requests if r.code == 220])  # noqa: B023
            table = javajson.loads(pushed[0].body)["offsetTable"]
            assert {queue.queue_id: offset for queue, offset in table.items()} == {0: 1, 1: 0, 2: 0, 3: 0}
            await member.close()

    with_broker(tmp_path, test)


@pytest.mark.parametrize(
    ("fields", "code", "remark"),
    [
        ({"group": "None"}, 26, "Group None does not exist"),
        ({"topic": "None"}, 17, "Topic None does not exist"),
        ({"queueId": 0, "offset": 9}, 1, "Target offset 9 not in consume queue range [0-1]"),
    ],
)
def test_a_group_cannot_be_moved_to_what_is_not_there(
    tmp_path: Path, fields: dict[str, Any], code: int, remark: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("F")
        await join(wire, "G", "F")
        answer = await wire.call(222, {"group": "G", "topic": "F", "timestamp": 0, "isForce": "true"} | fields)
        assert (answer.code, answer.remark) == (code, remark)
        assert broker.offsets.resets == {}

    with_broker(tmp_path, test)


def test_a_consumer_is_asked_over_its_own_connection_and_its_answer_relayed(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        consumer = await Wire.connect(broker.port)
        await join(consumer, "G", "F")
        stored = await wire.store("F", b"again")
        ext = {"consumerGroup": "G", "clientId": "c1", "msgId": stored.ext["msgId"], "brokerName": "broker-a"}
        asked = wire.send(309, ext)
        question = (await consumer.until(lambda: [r for r in consumer.requests if r.code == 309]))[0]
        assert b"again" in bytes(question.body)
        assert question.ext["msgId"] == stored.ext["msgId"]
        consumer.writer.write(encode_response(question, 0, "done", body=b'{"consumeResult":"CR_SUCCESS"}'))
        answer = await wire.answer(asked)
        assert (answer.code, answer.remark, bytes(answer.body)) == (0, "done", b'{"consumeResult":"CR_SUCCESS"}')
        ext["msgId"] = stored.ext["msgId"][:-4] + "FFFF"
        assert "not in this broker's log" in str((await wire.call(309, ext)).remark)
        ext["msgId"] = "xyz"
        assert (await wire.call(309, ext)).code == 29
        await consumer.close()

    with_broker(tmp_path, test)


def test_a_consumer_that_does_not_answer_costs_only_the_asker_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        silent, talking = await Wire.connect(broker.port), await Wire.connect(broker.port)
        port, call = silent.writer.get_extra_info("sockname")[1], Connection.call

        async def impatient(connection: Connection, *question: Any) -> Command:
            """Only the silent one's time is over soon: the other one's machine may be busy."""
            *what, _ = question
            return await call(connection, *what, 0.3 if connection.peer.endswith(f":{port}") else 60.0)

        monkeypatch.setattr(Connection, "call", impatient)
        await join(silent, "G", "F", client="silent")
        await join(talking, "G", "F", client="talking")
        asked = wire.send(307, {"consumerGroup": "G", "clientId": "silent"})
        assert (await wire.store("F")).code == 0
        answer = await wire.answer(asked)
        assert answer.code == 207
        assert "<G> <silent> Timeout" in str(answer.remark)

        status = asyncio.create_task(wire.call(223, {"group": "G", "topic": "F", "clientAddr": ""}))
        question = (await talking.until(lambda: [r for r in talking.requests if r.code == 221]))[0]
        said = b'{"messageQueueTable":{{"brokerName":"broker-a","queueId":0,"topic":"F"}:7}}'
        talking.writer.write(encode_response(question, 0, body=said))
        table = javajson.loads((await status).body)["consumerTable"]
        assert {client: list(queues.values()) for client, queues in table.items()} == {"talking": [7]}
        await silent.close()
        await talking.close()

    with_broker(tmp_path, test)
