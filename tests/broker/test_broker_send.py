"""Sending: what is stored, what is refused, and how the answers look."""

from __future__ import annotations

import asyncio
import select
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.broker.batch import DISK_BUSY
from rocketq.broker.server import Broker
from rocketq.errors import StoreError, StoreFull
from rocketq.message import parse_offset_message_id
from rocketq.properties import encode_properties
from rocketq.remoting.codes import BINARY, JSON
from rocketq.store.store import Appended

ADDED = {"MSG_REGION": "DefaultRegion", "TRACE_ON": "true", "CLUSTER": "DefaultCluster"}


@pytest.mark.parametrize("serialize_type", [JSON, BINARY])
def test_a_message_is_stored_as_it_was_sent(tmp_path: Path, serialize_type: int) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        own = {"UNIQ_KEY": "AB12", "TAGS": "t", "KEYS": "k1 k2", "WAIT": "true", "user": "ü \U0001f600"}
        answer = await wire.store("T", b"body", queue=2, properties=own, h=7, j=3, serialize_type=serialize_type)
        assert answer.code == 0
        assert answer.serialize_type == serialize_type
        host, port, offset = parse_offset_message_id(answer.ext.pop("msgId"))
        assert (host, port) == ("127.0.0.1", broker.port)
        assert answer.ext == {
            "queueId": "2",
            "queueOffset": "0",
            "transactionId": "AB12",
            "MSG_REGION": "DefaultRegion",
            "TRACE_ON": "true",
        }
        (message,) = await wire.messages("T", queue=2)
        assert message.body == b"body"
        assert message.properties == own | ADDED
        assert message.physical_offset == offset
        assert message.record.flag == 7
        assert message.reconsume_times == 3
        assert message.born_timestamp == 1_700_000_000_000
        assert message.born_host == ("127.0.0.1", wire.writer.get_extra_info("sockname")[1])
        assert message.store_host == ("127.0.0.1", broker.port)

    with_broker(tmp_path, test)


def test_a_message_without_unique_id_gets_one(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        answer = await wire.store("T")
        (message,) = await wire.messages("T")
        assert len(answer.ext["transactionId"]) == 32
        assert message.properties == {"UNIQ_KEY": answer.ext["transactionId"]} | ADDED

    with_broker(tmp_path, test)


def test_many_requests_of_one_write_are_answered_in_one_batch(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        writes = 0
        write = broker.store.write

        def counted(dispatch: bool = True) -> Any:
            nonlocal writes
            writes += 1
            return write(dispatch)

        broker.store.write = counted  # type: ignore[method-assign]
        opaques = [wire.message("T", b"x%d" % number) for number in range(100)]
        answers = [await wire.answer(opaque) for opaque in opaques]
        assert [answer.ext["queueOffset"] for answer in answers] == [str(offset) for offset in range(1, 101)]
        assert writes < 20, "requests that arrive together are written together"

    with_broker(tmp_path, test)


def test_an_answer_has_left_when_its_message_becomes_readable(tmp_path: Path) -> None:
    """The producer goes on while the broker makes entries of its message."""

    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        seen: list[bool] = []
        arrive = broker.store.on_arrive
        assert arrive is not None

        def arrived(batch: list[Appended]) -> None:
            seen.append(bool(select.select([wire.writer.get_extra_info("socket").fileno()], [], [], 5)[0]))
            arrive(batch)

        broker.store.on_arrive = arrived
        await wire.store("T")
        assert seen == [True]

    with_broker(tmp_path, test)


def test_a_pull_behind_a_send_of_the_same_write_sees_its_message(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        sent, pulled = wire.message("T", b"new"), wire.pull_request("T", 1)
        assert (await wire.answer(sent)).code == 0
        assert (await wire.answer(pulled)).code == 0

    with_broker(tmp_path, test)


def test_a_oneway_send_is_stored_and_not_answered(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        silent = wire.message("T", b"one", oneway=True)
        refused = wire.message("bad topic", oneway=True)
        await wire.store("T", b"two")
        assert [message.body for message in await wire.messages("T")] == [b"one", b"two"]
        assert silent not in wire.answers
        assert refused not in wire.answers

    with_broker(tmp_path, test)


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("empty body", {"body": b""}, 13, "body is empty"),
    ("too long", {"body": b"x" * 1001}, 13, "msg body length limit 1000B"),
    ("properties too long", {"properties": {"k": "v" * 32768}}, 13, "msg properties length limit 32KB"),
    ("properties too long with ours", {"properties": {"k": "v" * 32700}}, 13, "properties length limit"),
    ("many bytes a character", {"properties": {"k": "ü" * 16400}}, 13, "properties length limit"),
    ("blank topic", {"topic": ""}, 29, "blank"),
    ("illegal topic", {"topic": "a b"}, 29, "illegal characters"),
    ("long topic", {"topic": "a" * 128}, 29, "longer than topic max length"),
    ("system topic", {"topic": "SCHEDULE_TOPIC_XXXX"}, 16, "forbidden"),
    ("timer's topic", {"topic": "rmq_sys_wheel_timer"}, 16, "forbidden"),
    ("queue out of range", {"queue": 8}, 29, "request queueId[8] is illegal"),
    ("transaction without group", {"properties": {"TRAN_MSG": "true"}}, 13, "names no producer group"),
    ("transaction flag alone", {"f": 4}, 13, "its property TRAN_MSG does not"),
    (
        "transaction with an impossible delay",
        {"properties": {"TRAN_MSG": "true", "PGROUP": "P", "TIMER_DELAY_SEC": "x"}},
        13,
        "is not a number",
    ),
    (
        "timer without number",
        {"properties": {"TIMER_DELAY_SEC": "1.5"}},
        13,
        "TIMER_DELAY_SEC=1.5 is not a number",
    ),
    ("timer too far", {"properties": {"TIMER_DELAY_MS": str(2**63 - 1)}}, 13, "is too far ahead"),
    ("recall of the past", {"properties": {"TIMER_DELIVER_MS": "1", "TIMER_DEL_UNIQKEY": "A"}}, 13, "is over"),
    ("delay without number", {"properties": {"DELAY": "x"}}, 1, "DELAY"),
    ("inner batch", {"properties": {"INNER_NUM": "1"}}, 13, "illegal"),
    ("number out of range", {"h": 2**40}, 1, "header"),
    ("no number", {"e": "zz"}, 1, "header"),
]


@pytest.mark.parametrize(("what", "request_", "code", "text"), REFUSED, ids=lambda value: value)
def test_what_is_refused_is_not_stored(
    tmp_path: Path, what: str, request_: dict[str, Any], code: int, text: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        fields = {"topic": "T", "queue": 0} | request_
        await wire.store("T", b"first", d=8)
        answer = await wire.store(**fields)
        assert answer.code == code, answer.remark
        assert text.lower() in (answer.remark or "").lower()
        assert broker.store.max_offset("T", 0) == 1
        assert sum(broker.store.max_offset(*queue) for queue in broker.store.queues()) == 1

    with_broker(tmp_path, test, max_message_size=1000)


def test_an_unknown_topic_is_created_after_the_default_one(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("Four", d=4)
        await wire.store("Eight", d=40)
        assert broker.topics.table["Four"].write_queue_nums == 4
        assert broker.topics.table["Eight"].read_queue_nums == 8
        assert broker.topics.table["Four"].perm == 6
        assert (await wire.store("Nope", c="NoSuchDefault")).code == 17
        broker.config.auto_create_topic_enable = False
        assert (await wire.store("Never")).code == 17
        assert "Never" not in broker.topics.table

    with_broker(tmp_path, test)


def test_a_broker_without_write_permission_refuses_ordered_topics_only(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        order = {"topic": "Ordered", "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6}
        order |= {"topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "true"}
        assert (await wire.call(17, order)).code == 0
        assert (await wire.store("Ordered")).code == 0
        assert (await wire.call(25, {}, b"brokerPermission=4")).code == 0
        answer = await wire.store("Ordered")
        assert (answer.code, "sending message is forbidden" in (answer.remark or "")) == (16, True)
        assert (await wire.store("Plain")).code == 0

    with_broker(tmp_path, test)


def item(body: bytes, properties: dict[str, str], flag: int = 0) -> bytes:
    raw = encode_properties(properties).encode()
    size = 22 + len(body) + len(raw)
    head = struct.pack(">iiiii", size, 0, 0, flag, len(body))
    return head + body + struct.pack(">h", len(raw)) + raw


def batch_header(topic: str, **more: Any) -> dict[str, Any]:
    ext = {"a": "PG", "b": topic, "c": "TBW102", "d": 4, "e": 1, "f": 0, "g": 1, "h": 0, "j": 0, "m": "true"}
    return ext | {"i": encode_properties({"UNIQ_KEY": "WHOLE"})} | more


def test_the_messages_of_a_batch_keep_exactly_their_properties(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        body = item(b"one", {"UNIQ_KEY": "U1", "TAGS": "a"}) + item(b"two", {}, flag=5)
        answer = await wire.call(320, batch_header("T"), body)
        assert (answer.code, answer.ext["queueOffset"], answer.ext["transactionId"]) == (0, "0", "WHOLE")
        messages = await wire.messages("T", queue=1)
        assert [message.properties for message in messages] == [{"UNIQ_KEY": "U1", "TAGS": "a"}, {}]
        assert [message.record.flag for message in messages] == [0, 5]
        assert answer.ext["msgId"] == ",".join(message.offset_message_id for message in messages)

    with_broker(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 13),
        (b"garbage", 1),
        (item(b"x", {})[:-1], 1),
        (item(b"x", {"a": "b"})[:-3], 1),
        (item(b"ok", {}) + item(b"", {}), 13),
        (item(b"ok", {}) + item(b"later", {"DELAY": "1"}), 13),
        (item(b"half", {"TRAN_MSG": "true"}), 13),
        (struct.pack(">iiiii", 22, 0, 0, 0, -5) + b"\x00\x00", 1),
        (struct.pack(">iiiii", 2**31 - 1, 0, 0, 0, 2**31 - 1) + b"\x00\x00", 1),
    ],
)
def test_a_bad_batch_stores_nothing(tmp_path: Path, body: bytes, code: int) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        answer = await wire.call(320, batch_header("T"), body)
        assert answer.code == code, answer.remark
        assert answer.remark
        assert list(broker.store.queues()) == []

    with_broker(tmp_path, test)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.text(st.characters(codec="utf-8"), max_size=10))))
def test_batches_of_any_bytes_round_trip(messages: list[tuple[bytes, str]]) -> None:
    from rocketq.broker.send import Sender

    body = b"".join(
        item(content, {"k": text.replace("\x01", "").replace("\x02", "") or "v"}) for content, text in messages
    )
    items = Sender._items(None, body, "T")  # type: ignore[arg-type]
    assert [content for _, content, *_ in items] == [content for content, _ in messages]


def test_priority_chooses_the_queue(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        assert (await wire.store("T", properties={"_SYS_MSG_PRIORITY_": "2"})).ext["queueId"] == "2"
        assert (await wire.store("T", properties={"_SYS_MSG_PRIORITY_": "99"})).ext["queueId"] == "3"
        keyed = {"_SYS_MSG_PRIORITY_": "2", "__SHARDINGKEY": "k"}
        assert (await wire.store("T", properties=keyed)).ext["queueId"] == "0"

    with_broker(tmp_path, test)


def test_a_delayed_message_waits_in_the_schedule_topic(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        answer = await wire.store("T", b"later", queue=3, properties={"DELAY": "99", "TAGS": "t"})
        assert (answer.code, answer.ext["queueId"], answer.ext["queueOffset"]) == (0, "3", "0")
        entry = broker.store.consume_entry("SCHEDULE_TOPIC_XXXX", 17, 0)
        assert entry is not None
        (message,) = await wire.messages("SCHEDULE_TOPIC_XXXX", queue=17)
        assert message.properties["REAL_TOPIC"] == "T"
        assert message.properties["REAL_QID"] == "3"
        assert message.properties["DELAY"] == "18"
        assert abs(entry[2] - message.store_timestamp - 7_200_000) < 60_000
        assert broker.store.max_offset("T", 3) == 0

    with_broker(tmp_path, test)


def test_a_message_of_a_retry_topic_ends_in_the_dead_letters(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        assert (await wire.store("%RETRY%G", b"again", j=2, l=2, d=1)).code == 0
        assert (await wire.store("%RETRY%G", b"enough", j=3, l=2, properties={"DELAY": "5"})).code == 0
        assert [message.body for message in await wire.messages("%RETRY%G")] == [b"again"]
        (dead,) = await wire.messages("%DLQ%G")
        assert (dead.body, dead.properties["DELAY"]) == (b"enough", "-1")
        # clients before 3.4.9 fill maxReconsumeTimes with nonsense: the group's 16 counts
        assert (await wire.store("%RETRY%G", b"old", j=3, l=2, version=120)).code == 0
        assert len(await wire.messages("%RETRY%G")) == 2

    with_broker(tmp_path, test)


class Broken:
    """Stands in for the store's write."""

    def __init__(self, broker: Broker, error: Exception) -> None:
        self.broker, self.error = broker, error
        self.write = broker.store.write

    def __call__(self, dispatch: bool = True) -> Any:
        raise self.error

    def __enter__(self) -> None:
        self.broker.store.write = self  # type: ignore[method-assign, assignment]

    def __exit__(self, *_: object) -> None:
        self.broker.store.write = self.write  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("error", "code"), [(StoreFull("no space left"), 14), (StoreError("input/output error"), 1)]
)
def test_a_write_that_fails_is_told_to_every_producer_of_the_batch(
    tmp_path: Path, error: Exception, code: int
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        with Broken(broker, error):
            opaques = [wire.message("T") for _ in range(10)]
            answers = [await wire.answer(opaque) for opaque in opaques]
        assert {answer.code for answer in answers} == {code}
        assert all(str(error) in (answer.remark or "") for answer in answers)
        assert broker.statistics.put_failed == 10

    with_broker(tmp_path, test)


def test_producers_are_slowed_down_while_the_disk_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        broker.batch._catch_up = sys.maxsize  # the broker decides anew twice a second
        broker.batch.relax()
        answer = await wire.store("T")
        assert (answer.code, answer.remark) == (2, DISK_BUSY)
        broker.batch._catch_up = 0
        broker.batch.relax()
        assert (await wire.store("T")).code == 0

    with_broker(tmp_path, test)


def test_answers_of_a_slow_disk_wait_and_then_say_so(tmp_path: Path) -> None:
    """SYNC_FLUSH: nothing is acknowledged before it is durable; after syncFlushTimeout the answer is 10."""

    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH", sync_flush_timeout=50) as (broker, wire):
            advance = broker.store.advance
            broker.store.advance = lambda: 0  # type: ignore[method-assign]
            begun = time.monotonic()
            opaque = wire.message("T", b"slow")
            quick = await wire.store("T", b"quick", properties={"WAIT": "false"})
            assert quick.code == 0
            answer = await wire.answer(opaque)
            assert time.monotonic() - begun >= 0.05
            assert answer.code == 10
            assert answer.ext["msgId"]
            broker.store.advance = advance  # type: ignore[method-assign]

    asyncio.run(main())


def test_sync_flush_answers_when_the_message_is_on_disk_and_visible(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            opaques = [wire.message("T", b"m%d" % number) for number in range(50)]
            answers = [await wire.answer(opaque) for opaque in opaques]
            assert {answer.code for answer in answers} == {0}
            assert broker.store.durable_offset == broker.store.written_offset
            assert broker.store.max_offset("T", 0) == 50

    asyncio.run(main())
