"""Replies to requests: pushed to the one who asked, stored, and what the one who replies is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker

from rocketq.broker import reply
from rocketq.broker.server import Broker
from rocketq.properties import decode_properties, encode_properties
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import Command, encode_response

TOPIC = "DefaultCluster_REPLY_TOPIC"
ASKED = {"CORRELATION_ID": "n1", "REPLY_TO_CLIENT": "asking", "TTL": "3000", "MSG_TYPE": "reply", "UNIQ_KEY": "U1"}


async def join(wire: Wire, client_id: str = "asking") -> None:
    body = {"clientID": client_id, "producerDataSet": [{"groupName": "PG"}], "consumerDataSet": []}
    assert (await wire.call(34, body=json.dumps(body).encode())).code == 0


def send(
    wire: Wire, properties: dict[str, str] = ASKED, *, code: int = 325, body: bytes = b"42", **more: Any
) -> int:
    text = encode_properties(properties)
    if code == 325:
        ext = {"a": "RG", "b": TOPIC, "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 1_700_000_000_000, "h": 7}
        ext |= {"i": text, "j": 0, "k": "false"}
    else:
        ext = {"producerGroup": "RG", "topic": TOPIC, "defaultTopic": "TBW102", "defaultTopicQueueNums": 4}
        ext |= {"queueId": 0, "sysFlag": 0, "bornTimestamp": 1_700_000_000_000, "flag": 7, "properties": text}
        ext |= {"reconsumeTimes": 0, "unitMode": "false"}
    serialize_type = more.pop("serialize_type", JSON)
    return wire.send(code, ext | more, body, serialize_type=serialize_type)


async def pushed(wire: Wire, code: int = 0) -> Command:
    """What the broker pushes, answered with `code`."""
    await wire.until(lambda: wire.requests, what="the push")
    push = wire.requests.pop(0)
    assert push.code == 326
    wire.writer.write(encode_response(push, code))
    return push


@pytest.mark.parametrize("code", [324, 325])
@pytest.mark.parametrize("serialize_type", [JSON, BINARY])
def test_a_reply_is_pushed_to_the_one_who_asked_and_stored(tmp_path: Path, code: int, serialize_type: int) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await join(wire)
        replying = await Wire.connect(broker.port)
        opaque = send(replying, code=code, serialize_type=serialize_type)
        push = await pushed(wire)
        assert bytes(push.body) == b"42"
        ext = dict(push.ext)
        properties = decode_properties(ext.pop("properties"))
        pushed_at = int(properties.pop("PUSH_REPLY_TIME"))
        assert properties == ASKED
        assert pushed_at == int(ext.pop("storeTimestamp"))
        port = replying.writer.get_extra_info("sockname")[1]
        assert ext == {
            "producerGroup": "RG",
            "topic": TOPIC,
            "defaultTopic": "TBW102",
            "defaultTopicQueueNums": "4",
            "queueId": "0",
            "sysFlag": "0",
            "bornTimestamp": "1700000000000",
            "flag": "7",
            "reconsumeTimes": "0",
            "unitMode": "false",
            "bornHost": f"127.0.0.1:{port}",
            "storeHost": broker.address,
        }
        answer = await replying.answer(opaque)
        assert (answer.code, answer.remark) == (0, None)
        (stored,) = await wire.messages(TOPIC)
        assert (stored.body, stored.flag, stored.properties) == (b"42", 7, ASKED)
        assert (answer.ext["queueId"], answer.ext["queueOffset"]) == ("0", "0")
        assert answer.ext["msgId"] == stored.offset_message_id
        assert {"MSG_REGION", "TRACE_ON"} <= answer.ext.keys()
        await replying.close()

    with_broker(tmp_path, test)


def test_a_reply_is_not_stored_where_that_is_switched_off(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await join(wire)
        replying = await Wire.connect(broker.port)
        opaque = send(replying)
        await pushed(wire)
        answer = await replying.answer(opaque)
        assert (answer.code, answer.ext["msgId"], answer.ext["queueOffset"]) == (0, "0", "0")
        assert await wire.messages(TOPIC) == []
        await replying.close()

    with_broker(tmp_path, test, store_reply_message_enable=False)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in ASKED.items() if key != name}


NOT_PUSHED = [
    (without("REPLY_TO_CLIENT"), "reply message properties[REPLY_TO_CLIENT] is null"),
    ({**ASKED, "REPLY_TO_CLIENT": "gone"}, "push reply message fail, channel of <gone> not found."),
]


@pytest.mark.parametrize(("properties", "remark"), NOT_PUSHED)
def test_a_reply_that_nobody_waits_for_is_stored_and_said(
    tmp_path: Path, properties: dict[str, str], remark: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        answer = await wire.answer(send(wire, properties))
        assert (answer.code, answer.remark, answer.ext["queueOffset"]) == (1, remark, "0")
        assert [message.body for message in await wire.messages(TOPIC)] == [b"42"]
        broker.config.store_reply_message_enable = False
        answer = await wire.answer(send(wire, properties))
        assert (answer.code, answer.remark, "msgId" in answer.ext) == (1, remark, False)

    with_broker(tmp_path, test)


def test_one_who_asked_and_refuses_or_goes_or_is_silent_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "TIMEOUT", 60.0)

    async def test(broker: Broker, wire: Wire) -> None:
        asking = await Wire.connect(broker.port)
        await join(asking)
        opaque = send(wire)
        await pushed(asking, code=1)
        refused = await wire.answer(opaque)
        assert refused.code == 1
        assert "fail: it answered code 1" in str(refused.remark)
        with monkeypatch.context() as patch:
            patch.setattr(reply, "TIMEOUT", 0.3)
            silent = await wire.answer(send(wire))
        assert silent.code == 1
        assert "within 0.3 s" in str(silent.remark)
        opaque = send(wire)
        await asking.until(lambda: len(asking.requests) == 2, what="the push")
        await asking.close()
        lost = await wire.answer(opaque)
        assert (lost.code, "fail" in str(lost.remark)) == (1, True)
        after = await wire.answer(send(wire))
        assert "channel of <asking> not found" in str(after.remark)

    with_broker(tmp_path, test)


def test_replies_that_nobody_takes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "MAX_BYTES", 1000)

    async def test(broker: Broker, wire: Wire) -> None:
        await join(wire)
        replying = await Wire.connect(broker.port)
        first = send(replying, body=b"x" * 900)
        await wire.until(lambda: wire.requests, what="the push")
        busy = await replying.answer(send(replying, body=b"x" * 200))
        assert (busy.code, busy.remark) == (2, "too many replies wait for those who asked")
        second = send(replying, body=b"x" * 100)
        await wire.until(lambda: len(wire.requests) == 2, what="the second push")
        for opaque in (first, second):
            await pushed(wire)
            assert (await replying.answer(opaque)).code == 0
        alone = send(replying, body=b"x" * 2000)
        await pushed(wire)
        assert (await replying.answer(alone)).code == 0
        await replying.close()

    with_broker(tmp_path, test)


def test_the_connection_that_was_heard_last_gets_the_reply(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await join(wire)
        newer = await Wire.connect(broker.port)
        await join(newer)
        replying = await Wire.connect(broker.port)
        opaque = send(replying)
        await pushed(newer)
        assert (await replying.answer(opaque)).code == 0
        assert wire.requests == []
        await newer.close()
        await replying.close()

    with_broker(tmp_path, test)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"b": "bad topic"}, 29, "illegal characters"),
    ({"b": "SCHEDULE_TOPIC_XXXX"}, 16, "forbidden"),
    ({"b": "Unknown", "c": ""}, 17, "not exist"),
    ({"e": "9"}, 29, "queueId[9] is illegal"),
    ({"body": b""}, 13, "body is empty"),
    ({"i": "x\x01" + "y" * 33_000 + "\x02"}, 13, "illegal"),
    ({"g": str(2**70)}, 1, ""),
]


@pytest.mark.parametrize(("request_", "code", "remark"), BAD, ids=[str(bad[0])[:30] for bad in BAD])
def test_replies_that_are_refused_reach_nobody(
    tmp_path: Path, request_: dict[str, Any], code: int, remark: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await join(wire)
        answer = await wire.answer(send(wire, **request_))
        assert answer.code == code, answer.remark
        assert remark in str(answer.remark)
        await wire.call(30, {"topic": TOPIC, "queueId": 0})
        assert wire.requests == []
        assert await wire.messages(TOPIC) == []

    with_broker(tmp_path, test)


def test_under_sync_flush_the_answer_waits_for_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            await join(wire)
            replying = await Wire.connect(broker.port)
            opaque = send(replying)
            await pushed(wire)
            assert (await replying.answer(opaque)).code == 0
            assert broker.store.durable_offset == broker.store.written_offset > 0
            await replying.close()

    asyncio.run(main())
