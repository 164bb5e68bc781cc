"""Timer messages and recalls as clients see them, over a socket."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker
from test_broker_faults import FullDisk

from rocketq.broker.server import Broker
from rocketq.message import decode_messages
from rocketq.recall import RecallHandle
from rocketq.remoting.codes import BINARY, JSON

#: Where clocks of tests stand, ms.
START = 1_800_000_000_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def arrive(wire: Wire, topic: str, count: int) -> list[Any]:
    """The messages of a topic when there are so many."""
    deadline = time.monotonic() + 30
    found: list[Any] = []
    while len(found) < count:
        found += await wire.messages(topic, len(found))  # 32 at once at most
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
        await asyncio.sleep(0.005)
    return found


def recall_ext(handle: str, topic: str = "T") -> dict[str, str]:
    return {"producerGroup": "PG", "topic": topic, "recallHandle": handle}


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
@pytest.mark.parametrize("kind", [JSON, BINARY])
def test_a_timer_message_comes_at_its_time_with_what_apache_adds(tmp_path: Path, flush: str, kind: int) -> None:
    now = START

    async def test(broker: Broker, wire: Wire) -> None:
        nonlocal now
        due = now + 700
        properties = {"TIMER_DELIVER_MS": str(due), "UNIQ_KEY": "ABC", "TAGS": "Tag", "KEYS": "k"}
        sent = await wire.store("T", b"x", queue=2, properties=properties, serialize_type=kind)
        assert sent.code == 0, sent.remark
        assert (sent.ext["queueId"], sent.ext["queueOffset"]) == ("2", "0")
        handle = RecallHandle.decode(sent.ext["recallHandle"])
        assert handle[:2] == ("T", "broker-a")
        assert handle.unique_id == "ABC"
        assert handle.due == due
        assert await wire.messages("T", queue=2) == []
        now = due - 1
        for _ in range(10):
            broker.timer.turn()
        assert await wire.messages("T", queue=2) == []
        now = due
        deadline = time.monotonic() + 20
        while not (found := await wire.messages("T", queue=2)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        (message,) = found
        assert message.store_timestamp == due
        assert message.tag == "Tag"
        assert properties.items() <= message.properties.items()
        assert message.properties["REAL_TOPIC"] == "T"
        assert message.properties["REAL_QID"] == "2"
        assert message.properties["TIMER_DEQUEUE_MS"] == str(due)
        assert int(message.properties["TIMER_ENQUEUE_MS"]) % 1000 == 0

    with_broker(tmp_path, test, clock_ms=lambda: now, flush_disk_type=flush)


@pytest.mark.parametrize(
    "properties",
    [
        {"TIMER_DELIVER_MS": "1"},
        {"TIMER_DELAY_SEC": "0"},
        {"TIMER_DELAY_MS": "-5"},
        {"TIMER_DELAY_SEC": "0", "TIMER_DELAY_MS": "100000"},  # seconds come first
        {"TIMER_DELAY_MS": "100000", "TIMER_OUT_MS": "5"},  # was a timer message once
    ],
)
def test_what_is_due_already_is_delivered_at_once(tmp_path: Path, properties: dict[str, str]) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await wire.store("T", b"x", properties=properties)
        assert sent.code == 0
        assert "recallHandle" not in sent.ext
        (message,) = await wire.messages("T")
        assert properties.items() <= message.properties.items()

    with_broker(tmp_path, test)


def test_a_delay_level_counts_more_than_a_time(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await wire.store("T", b"x", properties={"DELAY": "1", "TIMER_DELAY_MS": "1"})
        assert "recallHandle" not in sent.ext
        (waiting,) = await wire.messages("SCHEDULE_TOPIC_XXXX")
        assert "TIMER_DELAY_MS" not in waiting.properties

    with_broker(tmp_path, test)


def test_a_broker_without_the_wheel_refuses(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "1"})
        assert (sent.code, sent.remark) == (1, "accurate timer message is not enabled, timerWheelEnable is false")
        assert not (tmp_path / "timerwheel").exists()

    with_broker(tmp_path, test, timer_wheel_enable=False)


def test_a_limit_is_obeyed_with_the_code_of_apache(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        assert (await wire.store("T", b"x", properties={"TIMER_DELAY_SEC": "60"})).code == 0
        sent = await wire.store("T", b"x", properties={"TIMER_DELAY_SEC": "61"})
        assert sent.code == 13
        assert "bigger than the max delay 60000ms" in (sent.remark or "")

    with_broker(tmp_path, test, timer_max_delay_sec=60)


def test_there_is_no_limit_by_default(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await wire.store("T", b"x", properties={"TIMER_DELAY_SEC": str(100 * 365 * 86400)})
        assert sent.code == 0
        assert RecallHandle.decode(sent.ext["recallHandle"]).due > 4_000_000_000_000

    with_broker(tmp_path, test)


def test_the_timer_topic_takes_no_messages_from_producers(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for properties in ({}, {"TIMER_OUT_MS": "1", "REAL_TOPIC": "T", "REAL_QID": "0"}):
            sent = await wire.store("rmq_sys_wheel_timer", b"x", properties=properties)
            assert sent.code == 16
            assert "forbidden" in (sent.remark or "")
        await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "50"})
        await arrive(wire, "T", 1)

    with_broker(tmp_path, test)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_recalled_messages_do_not_come(tmp_path: Path, flush: str) -> None:
    now = START

    async def test(broker: Broker, wire: Wire) -> None:
        nonlocal now
        handles = []
        for number in range(20):
            properties = {"TIMER_DELAY_MS": str(1500 + 10 * number), "UNIQ_KEY": f"U{number}"}
            handles.append((await wire.store("T", b"%d" % number, properties=properties)).ext["recallHandle"])
        recalled = [wire.send(370, recall_ext(handle)) for handle in handles[::2]]
        answers = [await wire.answer(opaque) for opaque in recalled]
        assert [answer.code for answer in answers] == [0] * 10
        assert [answer.ext["msgId"] for answer in answers] == [f"U{number}" for number in range(0, 20, 2)]
        now += 2000
        found = await arrive(wire, "T", 10)
        await wire.until(lambda: broker.timer.counts.pending == 0, what="a time at which none waits any more")
        assert broker.store.max_offset("T", 0) == 10
        assert {message.body for message in found} == {b"%d" % n for n in range(1, 20, 2)}

    with_broker(tmp_path, test, clock_ms=lambda: now, flush_disk_type=flush)


def test_a_recall_of_what_came_or_comes_is_answered_truly(tmp_path: Path) -> None:
    """Recalls race against the timer: success is answered exactly when the message does not come."""

    async def test(broker: Broker, wire: Wire) -> None:
        kept = set()
        for number in range(60):
            properties = {"TIMER_DELAY_MS": "30", "UNIQ_KEY": f"U{number}"}
            handle = (await wire.store("T", b"%d" % number, properties=properties)).ext["recallHandle"]
            await asyncio.sleep(0.02 + 0.0003 * number)
            answer = await wire.call(370, recall_ext(handle))
            assert answer.code in (0, 604)
            if answer.code:
                assert answer.remark == "recall failed, timestamp invalid"
                kept.add(b"%d" % number)
        await arrive(wire, "T", len(kept))
        await asyncio.sleep(0.1)
        assert {message.body for message in broker_messages(broker)} == kept

    def broker_messages(broker: Broker) -> list[Any]:
        read = broker.store.read("T", 0, 0, 100)
        return decode_messages(b"".join(read.buffers))

    with_broker(tmp_path, test)


def test_a_recall_that_could_not_be_stored_takes_nothing_back(tmp_path: Path) -> None:
    now, disk = START, FullDisk()

    async def test(broker: Broker, wire: Wire) -> None:
        nonlocal now
        handle = (await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "400"})).ext["recallHandle"]
        disk.full = True
        broker.store.maintain()  # which the broker does twice a second
        assert (await wire.call(370, recall_ext(handle))).code == 14
        disk.full = False
        broker.store.maintain()
        now += 400
        await arrive(wire, "T", 1)

    with_broker(tmp_path, test, files=disk, clock_ms=lambda: now)


REFUSED: list[tuple[str, dict[str, str], dict[str, Any], int, str]] = [
    ("disabled", {}, {"recall_message_enable": False}, 16, "operation is forbidden"),
    ("no permission", {}, {"broker_permission": 4}, 14, "broker service not available"),
    ("unknown topic", {"topic": "nope"}, {}, 17, "the topic[nope] not exist"),
    ("no handle", {"recallHandle": "xx"}, {}, 604, "recall handle is invalid"),
    ("other topic", {"recallHandle": RecallHandle("O", "broker-a", 2**42, "U").encode()}, {}, 604, "topic not match"),
    ("other broker", {"recallHandle": RecallHandle("T", "b", 2**42, "U").encode()}, {}, 604, "not available"),
    ("over", {"recallHandle": RecallHandle("T", "broker-a", 1, "U").encode()}, {}, 604, "timestamp invalid"),
    ("too far", {"recallHandle": RecallHandle("T", "broker-a", 2**42, "U").encode()}, {"timer_max_delay_sec": 9}, 604,
     "timestamp invalid"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ext", "settings", "code", "text"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_recalls_are_refused_as_by_apache(
    tmp_path: Path, ext: dict[str, str], settings: dict[str, Any], code: int, text: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        broker.topics.create_on_send("T", "TBW102", 4)
        handle = RecallHandle("T", "broker-a", now_ms() + 5000, "U").encode()
        answer = await wire.call(370, recall_ext(handle) | ext)
        assert answer.code == code, answer.remark
        assert text in (answer.remark or "")
        assert answer.ext == {"MSG_REGION": "DefaultRegion"}
        assert broker.store.max_offset("rmq_sys_wheel_timer", 0) == 0

    with_broker(tmp_path, test, **settings)


def test_operators_see_what_waits(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(3):
            await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "60000"})
        await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "1"})
        await arrive(wire, "T", 1)
        runtime = json.loads((await wire.call(28)).body)["table"]
        assert runtime["timerCongestNum"] == "3"
        assert runtime["timerOffsetBehind"] == "0"
        assert int(runtime["timerReadBehind"]) <= 60
        assert {"timerEnqueueTps", "timerDequeueTps"} <= runtime.keys()
        metrics = json.loads((await wire.call(61)).body)
        assert metrics["timingCount"]["T"]["count"] == 3
        await broker.timer.checkpoint()
        deadline = now_ms() + 15_000
        while not any((body := (await wire.call(60)).body)[:8]):
            assert now_ms() < deadline, "no checkpoint"
            await asyncio.sleep(0.05)
        read_time, log_end, offset, master, *_ = struct.unpack(">7q", body)
        assert 0 <= now_ms() - read_time < 60_000
        assert (log_end, offset, master) == (4 * 52, 4, 4)

    with_broker(tmp_path, test)


def test_what_waits_is_listed_in_order_of_time_without_what_was_taken_back(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        handles = []
        for number in (50, 3, 40, 2):
            properties = {"TIMER_DELAY_MS": str(number * 3_600_000), "UNIQ_KEY": f"U{number}"}
            handles.append((await wire.store("T", b"%d" % number, properties=properties)).ext["recallHandle"])
        await wire.store("Other", b"x", properties={"TIMER_DELAY_MS": "3600000"})
        await wire.store("T", b"x", properties={"TIMER_DELAY_MS": "1"})
        await arrive(wire, "T", 1)

        async def listed(topic: str = "T", most: int = 10) -> list[bytes]:
            answer = await wire.call(30061, {"topic": topic, "maxNum": most})
            assert answer.code == 0, answer.remark
            return [message.body for message in decode_messages(answer.body)]

        assert await listed() == [b"2", b"3", b"40", b"50"]
        assert await listed(most=2) == [b"2", b"3"]
        assert await listed("Other") == [b"x"]
        assert await listed("None") == []
        assert await listed(most=-1) == []
        assert (await wire.call(370, recall_ext(handles[1]))).code == 0
        assert await listed() == [b"2", b"40", b"50"]
        assert broker.timer.counts.pending == 5  # nothing was taken out

    with_broker(tmp_path, test)


def test_what_waits_survives_a_stop_and_is_delivered_when_it_is_overdue(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            for number in range(50):
                await wire.store("T", b"%d" % number, properties={"TIMER_DELAY_MS": str(100 + 10 * number)})
            await arrive(wire, "T", 5)
        await asyncio.sleep(0.3)
        async with running(tmp_path) as (broker, wire):
            deadline = time.monotonic() + 30
            while broker.store.max_offset("T", 0) < 50:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            messages = await wire.messages("T") + await wire.messages("T", 32)
            assert [int(message.body) for message in messages] == list(range(50))

    asyncio.run(main())
