"""Pulling and long polling."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker

from rocketq.broker.server import Broker
from rocketq.message import decode_messages
from rocketq.remoting.codes import BINARY, JSON


@pytest.mark.parametrize("serialize_type", [JSON, BINARY])
def test_a_pull_answers_with_the_records_and_where_to_go_on(tmp_path: Path, serialize_type: int) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for number in range(40):
            await wire.store("T", b"m%d" % number)
        answer = await wire.pull("T", serialize_type=serialize_type)
        assert answer.serialize_type == serialize_type
        assert (answer.code, answer.remark) == (0, "FOUND")
        assert answer.ext == {
            "suggestWhichBrokerId": "0",
            "nextBeginOffset": "32",
            "minOffset": "0",
            "maxOffset": "40",
            "topicSysFlag": "0",
            "groupSysFlag": "0",
        }
        assert [message.body for message in decode_messages(answer.body)] == [b"m%d" % n for n in range(32)]
        assert len(await wire.messages("T", 32)) == 8
        assert broker.statistics.get_messages == 40

    with_broker(tmp_path, test)


def test_a_pull_gets_no_more_bytes_than_allowed_but_always_one_message(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(5):
            await wire.store("T", b"x" * 100_000)
        assert len(await wire.messages("T")) == 2
        broker.config.max_transfer_bytes_on_message_in_memory = 10
        assert len(await wire.messages("T")) == 1

    with_broker(tmp_path, test)


def test_only_messages_of_the_wanted_tags_come(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for tag in ("a", "b", "c", "a", ""):
            await wire.store("T", (tag or "none").encode(), properties={"TAGS": tag} if tag else {})
        got = await wire.messages("T", subscription="a || c")
        assert [message.body for message in got] == [b"a", b"c", b"a"]
        answer = await wire.pull("T", subscription="zzz")
        assert (answer.code, answer.remark, answer.ext["nextBeginOffset"]) == (20, "NO_MATCHED_MESSAGE", "5")

    with_broker(tmp_path, test)


def test_a_held_pull_is_answered_by_the_message_it_waits_for(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"old")
        opaque = wire.pull_request("T", 1, suspend=60_000, subscription="a")
        producer = await Wire.connect(broker.port)
        await producer.store("T", b"other queue", queue=1, properties={"TAGS": "a"})
        await producer.store("T", b"other tag", properties={"TAGS": "b"})
        await wire.call(
            30, {"topic": "T", "queueId": 0}
        )  # anything that was woken would have been answered by now
        assert opaque not in wire.answers
        assert broker.hold.count == 1
        await producer.store("T", b"mine", properties={"TAGS": "a"})
        answer = await wire.answer(opaque)
        assert answer.code == 0
        assert [message.body for message in decode_messages(answer.body)] == [b"mine"]
        assert broker.hold.count == 0
        await producer.close()

    with_broker(tmp_path, test)


def test_all_pulls_of_a_queue_are_woken_together(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"old")
        opaques = [wire.pull_request("T", 1, suspend=60_000, group=f"G{number}") for number in range(50)]
        await wire.until(lambda: broker.hold.count == 50)
        await wire.store("T", b"new")
        for opaque in opaques:
            assert (await wire.answer(opaque)).code == 0
        assert broker.hold.count == 0

    with_broker(tmp_path, test)


def test_a_held_pull_ends_at_its_deadline(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        begun = time.monotonic()
        answer = await wire.pull("T", 1, suspend=300)
        assert (answer.code, answer.remark, answer.ext["nextBeginOffset"]) == (19, "OFFSET_OVERFLOW_ONE", "1")
        assert time.monotonic() - begun >= 0.3
        assert broker.hold.count == 0
        assert broker.hold._buckets == {}
        assert broker.hold._queues == {}
        assert broker.hold._connections == {}

    with_broker(tmp_path, test)


def test_a_pull_that_may_not_wait_is_answered_at_once(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        assert (await wire.pull("T", 1)).code == 19
        assert broker.hold.count == 0

    with_broker(tmp_path, test)


def test_without_long_polling_a_pull_is_held_for_a_short_time(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        assert (await wire.pull("T", 1, suspend=60_000)).code == 19

    with_broker(tmp_path, test, long_polling_enable=False, short_polling_time_mills=50)


def test_a_lost_connection_takes_its_held_pulls_with_it(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        other = await Wire.connect(broker.port)
        for _ in range(3):
            other.pull_request("T", 1, suspend=60_000)
        await wire.until(lambda: broker.hold.count == 3)
        await other.close()
        await wire.until(lambda: broker.hold.count == 0, what="the end of the pulls")
        assert broker.hold._connections == {}

    with_broker(tmp_path, test)


def test_a_pull_may_commit_an_offset(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(3):
            await wire.store("T")
        await wire.pull("T", 2, sysFlag=5, commitOffset=2)
        assert broker.offsets.query("G", "T", 0) == 2
        assert (await wire.call(14, {"consumerGroup": "G", "topic": "T", "queueId": 0})).ext["offset"] == "2"

    with_broker(tmp_path, test)


REFUSED: list[tuple[dict[str, Any], int, str, dict[str, str]]] = [
    ({"topic": "Nope"}, 17, "topic[Nope] not exist", {}),
    ({"queue": 4}, 29, "queueId[4] is illegal", {}),
    ({"queue": -1}, 29, "queueId[-1] is illegal", {}),
    ({"group": "bad group"}, 26, "subscription group [bad group] does not exist", {}),
    ({"sysFlag": 0, "group": "Unknown"}, 24, "the consumer's group info not exist", {}),
    ({"expressionType": "XPATH", "subscription": "a = 1"}, 1, "does not support consumer to filter", {}),
    ({"queueOffset": "zz"}, 1, "", {}),
]


@pytest.mark.parametrize(("request_", "code", "text", "ext"), REFUSED)
def test_pulls_that_are_refused(
    tmp_path: Path, request_: dict[str, Any], code: int, text: str, ext: dict[str, str]
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        answer = await wire.pull(**({"topic": "T"} | request_))
        assert answer.code == code, answer.remark
        assert text in (answer.remark or "")
        assert answer.ext == ext

    with_broker(tmp_path, test)


def test_a_broker_without_read_permission_refuses_pulls(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        await wire.call(25, {}, b"brokerPermission=2")
        answer = await wire.pull("T")
        assert (answer.code, answer.ext) == (16, {"forbiddenType": "1"})

    with_broker(tmp_path, test)


def test_under_sync_flush_a_held_pull_sees_only_what_is_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            await wire.store("T")
            opaque = wire.pull_request("T", 1, suspend=60_000)
            await wire.until(lambda: broker.hold.count == 1)
            await wire.store("T", b"durable")
            answer = await wire.answer(opaque)
            (message,) = decode_messages(answer.body)
            assert message.body == b"durable"
            assert message.physical_offset < broker.store.durable_offset

    asyncio.run(main())
