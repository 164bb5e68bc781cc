"""Pulls filtered by SQL92 expressions: what they get, how long they are held, and what a bad expression is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from broker_wire import Wire, with_broker

from rocketq.broker import filtering
from rocketq.broker.server import Broker
from rocketq.message import decode_messages
from rocketq.remoting.bodies import SubscriptionData
from rocketq.remoting.command import Command

SQL = {"expressionType": "SQL92"}


def heartbeat(topic: str, expression: str, version: int, kind: str = "SQL92") -> bytes:
    subscription = {"topic": topic, "subString": expression, "subVersion": version, "expressionType": kind}
    consumer = {
        "groupName": "G",
        "consumeType": "CONSUME_PASSIVELY",
        "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
        "subscriptionDataSet": [subscription],
        "unitMode": False,
    }
    return json.dumps({"clientID": "c1", "producerDataSet": [], "consumerDataSet": [consumer]}).encode()


def bodies(answer: Command) -> list[bytes]:
    return [message.body for message in decode_messages(answer.body)] if answer.code == 0 else []


async def store_some(wire: Wire, topic: str = "T") -> None:
    for amount in range(10):
        tag = "odd" if amount % 2 else "even"
        await wire.store(topic, b"%d" % amount, properties={"amount": str(amount), "TAGS": tag})
    await wire.store(topic, b"none")


def test_a_pull_gets_what_its_expression_matches(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await store_some(wire)
        for expression, expected in (
            ("amount > 7", [b"8", b"9"]),
            ("amount BETWEEN 2 AND 5 AND TAGS = 'odd'", [b"3", b"5"]),
            ("amount IS NULL", [b"none"]),
        ):
            answer = await wire.pull("T", subscription=expression, **SQL)
            assert bodies(answer) == expected
            assert answer.ext["nextBeginOffset"] == "11"
        answer = await wire.pull("T", subscription="amount > 100", **SQL)
        assert (answer.code, answer.remark, answer.ext["nextBeginOffset"]) == (20, "NO_MATCHED_MESSAGE", "11")

    with_broker(tmp_path, test)


def test_a_held_pull_is_answered_by_a_message_that_matches_only(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        opaque = wire.pull_request("T", 1, suspend=60_000, subscription="amount > 3", **SQL)
        await wire.until(lambda: broker.hold.count == 1, what="the pull to be held")
        producer = await Wire.connect(broker.port)
        for amount in ("1", "2", "x"):
            await producer.store("T", amount.encode(), properties={"amount": amount})
        await producer.store("T")
        # what was woken by these would have been answered by now
        await wire.call(30, {"topic": "T", "queueId": 0})
        assert opaque not in wire.answers
        assert broker.hold.count == 1
        await producer.store("T", b"4", properties={"amount": "4"})
        answer = await wire.answer(opaque)
        assert bodies(answer) == [b"4"]
        assert answer.ext["nextBeginOffset"] == "6"
        assert broker.hold.count == 0
        await producer.close()

    with_broker(tmp_path, test)


def test_a_held_pull_that_nothing_matched_ends_behind_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr("rocketq.broker.hold.time", clock)

    async def test(broker: Broker, wire: Wire) -> None:
        nonlocal ahead
        await wire.store("T")
        opaque = wire.pull_request("T", 1, suspend=60_000, subscription="amount > 3", **SQL)
        await wire.until(lambda: broker.hold.count == 1, what="the pull to be held")
        producer = await Wire.connect(broker.port)
        await producer.store("T", properties={"amount": "1"})
        await producer.store("T", properties={"amount": "2"})
        ahead = 60.0
        answer = await wire.answer(opaque)
        assert (answer.code, answer.ext["nextBeginOffset"]) == (19, "3")
        await producer.close()

    with_broker(tmp_path, test)


BAD = [
    ("a >", "position 4: expected a property, a value or '(', found the end of the expression"),
    ("", "position 1"),
    ("a = 'x", "no closing quote"),
    ("(" * 5000, "nests deeper"),
    ("a = '" + "x" * 10_000 + "'", "longer than"),
]


@pytest.mark.parametrize(("expression", "reason"), BAD, ids=[bad[0][:10] for bad in BAD])
def test_a_bad_expression_is_told_to_pulls_and_to_those_who_ask(
    tmp_path: Path, expression: str, reason: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        answer = await wire.pull("T", subscription=expression, **SQL)
        assert answer.code == 23
        assert reason in str(answer.remark)
        assert len(str(answer.remark)) < 500
        wanted = SubscriptionData("T", expression, expression_type="SQL92", sub_version=1)
        body = json.dumps({"subscriptionData": json.loads(wanted.encode())}).encode()
        asked = await wire.call(46, body=body)
        assert (asked.code, asked.remark) == (23, answer.remark)
        await wire.call(34, body=heartbeat("T", expression, 1))
        registered = await wire.pull("T", sysFlag=0)
        assert (registered.code, registered.remark) == (23, answer.remark)
        assert bodies(await wire.pull("T")) == [b"hello"]  # the connection goes on

    with_broker(tmp_path, test)


def test_a_good_expression_is_accepted_when_asked(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        body = json.dumps(
            {"subscriptionData": {"topic": "T", "subString": "a = 1", "expressionType": "SQL92"}}
        ).encode()
        assert (await wire.call(46, body=body)).code == 0
        broker.config.enable_property_filter = False
        refused = await wire.call(46, body=body)
        text = "The broker does not support consumer to filter message by SQL92"
        assert (refused.code, refused.remark) == (1, text)
        await wire.store("T")
        answer = await wire.pull("T", subscription="a = 1", **SQL)
        assert (answer.code, answer.remark) == (1, text)

    with_broker(tmp_path, test)


def test_heartbeats_say_what_pulls_get_and_newer_ones_change_it(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await store_some(wire)
        await wire.call(34, body=heartbeat("T", "amount > 7", 10))
        assert bodies(await wire.pull("T", sysFlag=0, subVersion=10)) == [b"8", b"9"]
        await wire.call(34, body=heartbeat("T", "amount < 1", 10))  # not newer: not taken over
        assert bodies(await wire.pull("T", sysFlag=0, subVersion=10)) == [b"8", b"9"]
        assert (await wire.pull("T", sysFlag=0, subVersion=11)).code == 25
        await wire.call(34, body=heartbeat("T", "amount < 1", 11))
        assert bodies(await wire.pull("T", sysFlag=0, subVersion=11)) == [b"0"]
        await wire.call(34, body=heartbeat("T", "even", 12, kind="TAG"))
        assert bodies(await wire.pull("T", sysFlag=0, subVersion=12)) == [b"%d" % n for n in range(0, 10, 2)]

    with_broker(tmp_path, test)


def test_expressions_are_compiled_once_and_do_not_pile_up() -> None:
    filtering._sql_filter.cache_clear()
    first = filtering.filter_for("a = 1", "SQL92")
    assert filtering.filter_for("a = 1", "SQL92") is first
    for number in range(1000):
        filtering.filter_for(f"a = {number}", "SQL92")
    assert filtering._sql_filter.cache_info().currsize == 256
