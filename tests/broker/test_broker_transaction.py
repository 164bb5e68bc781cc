"""Transactional messages as clients see them, over a socket."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker
from test_broker_faults import FullDisk, eventually

from rocketq import javajson
from rocketq.broker.server import Broker
from rocketq.message import ReceivedMessage
from rocketq.properties import encode_properties
from rocketq.remoting.command import Command

COMMIT, ROLLBACK, UNDECIDED = 8, 12, 0
HALF, OPS, GIVEN_UP = "RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC", "TRANS_CHECK_MAX_TIME_TOPIC"
#: Rounds of questions are that often, ms, and about everything that is open.
QUICK: dict[str, Any] = {"transaction_check_interval": 20, "transaction_time_out": 0}
FLUSHES = pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])


async def half(wire: Wire, body: bytes = b"x", *, topic: str = "T", queue: int = 0, **properties: str) -> Command:
    """The answer to the send of a half message."""
    own = {"TRAN_MSG": "true", "PGROUP": "PG", "UNIQ_KEY": f"ID{body.decode()}"}
    answer = await wire.store(
        topic, body, queue=queue, properties=own | properties, f=4, g=time.time_ns() // 1_000_000
    )
    assert answer.code == 0, answer.remark
    return answer


def end_ext(sent: Command, how: int, **fields: Any) -> dict[str, Any]:
    return {
        "producerGroup": "PG",
        "tranStateTableOffset": sent.ext["queueOffset"],
        "commitLogOffset": int(sent.ext["msgId"][16:], 16),
        "commitOrRollback": how,
        "msgId": sent.ext["transactionId"],
        **fields,
    }


async def end(wire: Wire, sent: Command, how: int, **fields: Any) -> Command:
    return await wire.call(37, end_ext(sent, how, **fields))


async def heartbeat(wire: Wire, group: str = "PG") -> None:
    body = {"clientID": f"{group}@1", "producerDataSet": [{"groupName": group}], "consumerDataSet": []}
    assert (await wire.call(34, {}, json.dumps(body).encode())).code == 0


async def all_of(wire: Wire, topic: str, count: int, queue: int = 0) -> list[ReceivedMessage]:
    """The messages of a queue when it has so many."""
    while len(found := await wire.messages(topic, queue=queue)) < count:
        await asyncio.sleep(0.005)
    return found


async def ops(wire: Wire, count: int) -> list[str]:
    return [message.body.decode() for message in await all_of(wire, OPS, count)]


@FLUSHES
def test_a_message_is_seen_once_when_it_is_committed(tmp_path: Path, flush: str) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire, queue=2, TAGS="Tag", KEYS="k", own="1")
        assert (sent.ext["queueId"], sent.ext["queueOffset"], sent.ext["transactionId"]) == ("2", "0", "IDx")
        assert await wire.messages("T", queue=2) == []
        for _ in range(3):
            answer = await end(wire, sent, COMMIT)
            assert (answer.code, answer.remark) == (0, None)
        (message,) = await all_of(wire, "T", 1, queue=2)
        assert (message.body, message.tag, message.sys_flag & 12) == (b"x", "Tag", 8)
        assert message.properties["own"] == "1"
        assert message.properties["__transactionId__"] == "IDx"
        assert not {"REAL_TOPIC", "REAL_QID"} & message.properties.keys()
        assert message.record.prepared_transaction_offset == int(sent.ext["msgId"][16:], 16)
        refused = await end(wire, sent, ROLLBACK)
        assert refused.code == 4
        assert "was committed before; it cannot be rolled back" in (refused.remark or "")
        assert await ops(wire, 1) == ["0,"]

    with_broker(tmp_path, test, flush_disk_type=flush)


@FLUSHES
def test_a_message_is_never_seen_when_it_is_rolled_back(tmp_path: Path, flush: str) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire)
        for _ in range(2):
            answer = await end(wire, sent, ROLLBACK)
            assert (answer.code, answer.remark) == (0, "not set any response code")
        refused = await end(wire, sent, COMMIT)
        assert refused.code == 4
        assert "was rolled back before; it cannot be committed" in (refused.remark or "")
        assert await wire.messages("T") == []
        assert await ops(wire, 1) == ["0,"]

    with_broker(tmp_path, test, flush_disk_type=flush)


def test_who_has_not_decided_changes_nothing_and_gets_no_answer(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire)
        undecided = wire.send(37, end_ext(sent, UNDECIDED))
        wrong = await end(wire, sent, 5)
        assert (wrong.code, "commitOrRollback field wrong: 5" in (wrong.remark or "")) == (1, True)
        assert undecided not in wire.answers
        assert list(broker.transactions.halves.open) == [0]
        assert (await end(wire, sent, COMMIT)).code == 0

    with_broker(tmp_path, test)


@FLUSHES
def test_ends_that_come_together_are_carried_out_once(tmp_path: Path, flush: str) -> None:
    """In one read: the second one meets the first before that is written."""

    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire)
        how = [COMMIT, COMMIT, ROLLBACK, COMMIT]
        opaques = [wire.send(37, end_ext(sent, each)) for each in how]
        assert [(await wire.answer(opaque)).code for opaque in opaques] == [0, 0, 4, 0]
        assert len(await all_of(wire, "T", 1)) == 1
        other = await half(wire, b"y")
        for each in (ROLLBACK, ROLLBACK):
            wire.send(37, end_ext(other, each), oneway=True)
        assert (await end(wire, other, COMMIT)).code == 4
        assert len(await wire.messages("T")) == 1

    with_broker(tmp_path, test, flush_disk_type=flush)


def test_an_end_that_does_not_fit_its_half_message_is_refused(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire)
        ordinary = await wire.store("T", b"ordinary")
        missing = "Find prepared transaction message failed"
        for fields, remark in (
            ({"producerGroup": "other"}, "The producer group wrong"),
            ({"tranStateTableOffset": 7}, "The transaction state table offset wrong"),
            ({"commitLogOffset": 12345}, missing),
            ({"commitLogOffset": 2**60}, missing),
            ({"commitLogOffset": -5}, missing),
            ({"commitLogOffset": int(ordinary.ext["msgId"][16:], 16)}, missing),
        ):
            answer = await end(wire, sent, COMMIT, **fields)
            assert (answer.code, answer.remark) == (1, remark)
        assert [message.body for message in await wire.messages("T")] == [b"ordinary"]

    with_broker(tmp_path, test)


@pytest.mark.parametrize(
    ("properties", "wait"), [({"DELAY": "1"}, 1000), ({"TIMER_DELAY_MS": "700"}, 700)], ids=["level", "timer"]
)
def test_a_delay_begins_with_the_commit(tmp_path: Path, properties: dict[str, str], wait: int) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire, queue=1, **properties)
        rolled_back = await half(wire, b"never", queue=1, **properties)
        assert (await end(wire, rolled_back, ROLLBACK)).code == 0
        assert (await end(wire, sent, COMMIT)).code == 0
        (ended, *_) = await all_of(wire, OPS, 2)
        (message,) = await asyncio.wait_for(all_of(wire, "T", 1, queue=1), 30)
        assert message.body == b"x"
        assert message.store_timestamp - ended.store_timestamp >= wait - 5

    with_broker(tmp_path, test, message_delay_level="1s 5s")


@FLUSHES
def test_a_commit_that_cannot_be_written_can_be_made_later(tmp_path: Path, flush: str) -> None:
    async def main() -> None:
        disk = FullDisk()
        async with running(tmp_path, files=disk, flush_disk_type=flush) as (broker, wire):
            sent = await half(wire)
            disk.full = True
            opaques = [wire.send(37, end_ext(sent, COMMIT)) for _ in range(3)]
            assert [(await wire.answer(opaque)).code for opaque in opaques] == [14] * 3
            assert list(broker.transactions.halves.open) == [0]
            disk.full = False
            await eventually(lambda: broker.store.writable, "the end of the full disk")
            assert (await end(wire, sent, COMMIT)).code == 0
            assert len(await all_of(wire, "T", 1)) == 1

    asyncio.run(main())


def test_a_topic_that_is_gone_takes_no_commit_until_it_is_back(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire)
        assert (await wire.call(215, {"topic": "T"})).code == 0
        refused = await end(wire, sent, COMMIT)
        assert (refused.code, "does not exist any more" in (refused.remark or "")) == (17, True)
        await wire.store("T", b"first")
        assert (await end(wire, sent, COMMIT)).code == 0
        assert [message.body for message in await all_of(wire, "T", 2)] == [b"first", b"x"]

    with_broker(tmp_path, test)


# questions


def test_producers_are_asked_and_what_nobody_decides_is_given_up(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await half(wire, KEYS="k")
        # nobody is there to be asked, so nothing counts
        await eventually(lambda: broker.transactions.halves.open[0].check_from, "a round")
        other = await Wire.connect(broker.port)
        await heartbeat(other, "another group")
        await heartbeat(wire)
        await wire.until(lambda: len(wire.requests) >= 3, what="three questions")
        await eventually(lambda: 0 not in broker.transactions.halves.open, "the end")
        assert [request.code for request in wire.requests] == [39] * 3
        assert other.requests == []
        first = wire.requests[0]
        assert first.ext["tranStateTableOffset"] == sent.ext["queueOffset"]
        assert first.ext["offsetMsgId"] == sent.ext["msgId"]
        (message,) = await all_of(wire, GIVEN_UP, 1)
        assert (message.body, message.properties["REAL_TOPIC"]) == (b"x", "T")
        assert message.properties["TRANSACTION_CHECK_TIMES"] == "3"
        refused = await end(wire, sent, COMMIT, fromTransactionCheck="true")
        assert (refused.code, f"its message is in {GIVEN_UP}" in (refused.remark or "")) == (4, True)
        assert await wire.messages("T") == []

        broker.config.transaction_check_max = 1_000_000  # whoever answers may be slow
        wire.requests.clear()
        resumed = await wire.call(323, {"msgId": message.offset_message_id})
        assert resumed.code == 0
        await wire.until(lambda: wire.requests, what="a question once more")
        question = wire.requests[0]
        answer = await wire.call(
            37,
            {
                "producerGroup": "PG",
                "tranStateTableOffset": question.ext["tranStateTableOffset"],
                "commitLogOffset": question.ext["commitLogOffset"],
                "commitOrRollback": COMMIT,
                "fromTransactionCheck": "true",
                "msgId": question.ext["msgId"],
            },
        )
        assert answer.code == 0, answer.remark
        (message,) = await all_of(wire, "T", 1)
        assert (message.body, message.keys) == (b"x", ["k"])
        assert (await wire.call(323, {"msgId": message.offset_message_id})).code == 1
        assert (await wire.call(323, {"msgId": "nonsense"})).code == 29
        await other.close()

    with_broker(tmp_path, test, transaction_check_max=3, **QUICK)


def test_an_immunity_of_its_own_holds_questions_off(tmp_path: Path) -> None:
    now = [1_800_000_000_000]

    async def main() -> None:
        settings: dict[str, Any] = {"transaction_check_interval": 3_600_000, "transaction_time_out": 6000}
        async with running(tmp_path, clock_ms=lambda: now[0], **settings) as (broker, wire):
            await heartbeat(wire)
            ages = {"plain": 6000, "long": 60_000, "short": 2000, "nonsense": 6000}
            own = {"long": "60", "short": "2", "nonsense": "-1"}
            for body in ages:
                more = {"CHECK_IMMUNITY_TIME_IN_SECONDS": own[body]} if body in own else {}
                await half(wire, body.encode(), **more)
            begun = now[0]
            for age in sorted(set(ages.values())):
                for ahead in (age - 1, age):
                    now[0] = begun + ahead
                    wanted = {body for body, limit in ages.items() if limit <= ahead}
                    await broker.check_back.round()
                    await wire.call(106)  # what was asked has arrived before this answer
                    assert ids(wire) == wanted

    def ids(wire: Wire) -> set[str]:
        return {request.ext["msgId"][2:] for request in wire.requests}

    asyncio.run(main())


def test_a_message_that_gets_too_old_is_given_up(tmp_path: Path) -> None:
    now = [1_800_000_000_000]

    async def main() -> None:
        async with running(tmp_path, clock_ms=lambda: now[0], file_reserved_time=1, **QUICK) as (broker, wire):
            await half(wire)
            now[0] += 3_600_000
            await half(wire, b"y")
            now[0] += 1
            await eventually(lambda: list(broker.transactions.halves.open) == [1], "the end of the first")
            assert len(await all_of(wire, GIVEN_UP, 1)) == 1

    asyncio.run(main())


def test_a_producer_that_reads_nothing_stops_no_questions_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rocketq.remoting.connection.MAX_UNSENT", 2 << 20)

    async def test(broker: Broker, wire: Wire) -> None:
        await heartbeat(wire)
        silent = Wire(*await asyncio.open_connection("127.0.0.1", broker.port, limit=1))
        await heartbeat(silent)
        silent._task.cancel()
        for number in range(30):
            await half(wire, bytes(400_000), UNIQ_KEY=f"ID{number}")
        await eventually(lambda: "is not asked about more transactions now" in caplog.text, "a warning", 30)
        wire.requests.clear()
        await wire.until(
            lambda: len({request.ext["msgId"] for request in wire.requests}) == 30, 30, "all questions"
        )
        silent.writer.transport.abort()

    with_broker(
        tmp_path, test, transaction_check_interval=20, transaction_time_out=0, transaction_check_max=10_000
    )


# what a start finds


@pytest.mark.parametrize("lost", [None, "halfMessages.json", "consumerOffset.json", "both"])
def test_what_was_open_and_how_others_ended_is_known_after_a_restart(tmp_path: Path, lost: str | None) -> None:
    async def main() -> None:
        async with running(tmp_path, transaction_check_max=100_000, **QUICK) as (broker, wire):
            sent = [await half(wire, b"%d" % number, CHECK_IMMUNITY_TIME_IN_SECONDS="9999") for number in range(6)]
            assert (await end(wire, sent[0], COMMIT)).code == 0
            assert (await end(wire, sent[2], ROLLBACK)).code == 0
            await heartbeat(wire)
            asked = await half(wire, b"asked")
            await wire.until(lambda: broker.transactions.halves.open[6].checks >= 2, what="questions")
            asked_times = broker.transactions.halves.open[6].checks
        assert saved_offsets(tmp_path) == {"half": 1, "op": 0}
        for name in ["halfMessages.json", "consumerOffset.json"] if lost == "both" else [lost] if lost else []:
            for path in (tmp_path / "config").glob(f"{name}*"):
                path.unlink()
        async with running(tmp_path, transaction_check_interval=3_600_000) as (broker, wire):
            halves = broker.transactions.halves
            assert list(halves.open) == [1, 3, 4, 5, 6]
            if lost in (None, "consumerOffset.json"):
                assert halves.open[6].checks >= asked_times
            assert (await end(wire, sent[0], COMMIT)).code == 0
            assert (await end(wire, sent[0], ROLLBACK)).code == 4
            assert (await end(wire, sent[2], ROLLBACK)).code == 0
            assert (await end(wire, sent[2], COMMIT)).code == 4
            for each in (*sent[3:], asked, sent[1]):
                assert (await end(wire, each, COMMIT, fromTransactionCheck="true")).code == 0
            found = [message.body for message in await all_of(wire, "T", 6)]
            assert found == [b"0", b"3", b"4", b"5", b"asked", b"1"]
        assert saved_offsets(tmp_path) == {"half": 7, "op": 7}

    asyncio.run(main())


def saved_offsets(directory: Path) -> dict[str, int]:
    """What CID_RMQ_SYS_TRANS has consumed by the file."""
    offsets = javajson.loads((directory / "config" / "consumerOffset.json").read_bytes())["offsetTable"]
    return {what: offsets[f"{topic}@CID_RMQ_SYS_TRANS"]["0"] for what, topic in (("half", HALF), ("op", OPS))}


def test_what_ended_long_ago_is_not_ended_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocketq.broker.halves.REMEMBERED", 3)
    monkeypatch.setattr("rocketq.broker.halfrecovery.REMEMBERED", 3)

    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            sent = [await half(wire, b"%d" % number) for number in range(6)]
            for each in sent[:5]:
                assert (await end(wire, each, COMMIT)).code == 0
            assert len(broker.transactions.halves.ended) == 3
        async with running(tmp_path) as (broker, wire):
            assert list(broker.transactions.halves.ended) == [2, 3, 4]
            assert [(await end(wire, each, COMMIT)).code for each in sent] == [4, 4, 0, 0, 0, 0]
            refused = await end(wire, sent[0], COMMIT)
            assert "ended long ago" in (refused.remark or "")
            assert len(await all_of(wire, "T", 6)) == 6

    asyncio.run(main())


def test_ops_of_apaches_brokers_are_understood(tmp_path: Path) -> None:
    """Several offsets in one, some repeated, and 4.9's without a comma."""

    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            for number in range(6):
                await half(wire, b"%d" % number)
            host = broker.batch.store_host
            for body in (b"0,1,4,4,0,", b"3"):
                properties = encode_properties({"WAIT": "true", "TAGS": "d"})
                names: dict[str, Any] = {"tag": "d", "unique_id": None, "keys": None, "flag": 0, "sys_flag": 0}
                broker.store.append(
                    OPS, 0, body, properties, born_timestamp=1, born_host=host, store_host=host, **names
                )
            broker.store.write()
            for path in (tmp_path / "config").glob("halfMessages*"):
                path.unlink()
            broker.transactions._running = False  # as killed: nothing is saved
        async with running(tmp_path) as (broker, wire):
            assert list(broker.transactions.halves.open) == [2, 5]

    asyncio.run(main())
