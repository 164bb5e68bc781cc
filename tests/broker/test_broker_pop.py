"""POP against a running broker: leases, acknowledgements, what comes again and when."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from broker_wire import Wire, config, running, with_broker
from pop_kit import Held, PopKit, ack, ack_all, bodies, create, held, lease, now_ms, pop, pop_ext, receipt_ext
from test_broker_faults import FullDisk

from rocketq.broker.checkpoints import CheckPoint, CheckPoints, Key
from rocketq.broker.server import Broker
from rocketq.errors import StoreFull
from rocketq.message import decode_messages
from rocketq.remoting.command import Command
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse
from rocketq.remoting.receipts import Receipt, batch_ack


async def stored(wire: Wire, topic: str, count: int, **more: Any) -> list[bytes]:
    sent = [b"%d" % number for number in range(count)]
    for body in sent:
        assert (await wire.store(topic, body, **more)).code == 0
    return sent


async def until_popped(wire: Wire, topic: str, count: int, timeout: float = 30.0, **more: Any) -> list[Any]:
    """Pops until so many messages came."""
    got: list[Any] = []
    deadline = time.monotonic() + timeout
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} messages"
        got += await pop(wire, topic, pollTime=1000, **more)
    return got


def test_what_is_popped_is_held_and_what_is_acknowledged_is_gone(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 5)
        first = await pop(wire, "T", maxMsgNums=3)
        assert bodies(first) == sent[:3]
        rest = await pop(wire, "T")
        assert bodies(rest) == sent[3:]
        assert await pop(wire, "T") == []
        assert (await ack(wire, first[0].receipt)).code == 0
        assert (await ack(wire, first[0].receipt)).code == 0  # once more changes nothing
        assert (await ack_all(wire, first[1:] + rest)).code == 0
        assert len(broker.revive_log.points) == 0
        assert await pop(wire, "T") == []
        assert bodies(await pop(wire, "T", "another")) == sent

    with_broker(tmp_path, test)


class Clock:
    """A broker's, which stands still until the test moves it: no lease ends because a machine is busy."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


def test_what_is_not_acknowledged_comes_again_when_its_lease_is_over(tmp_path: Path) -> None:
    clock = Clock()

    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 4, properties={"TAGS": "A", "KEYS": "k"})
        first = await pop(wire, "T", invisibleTime=300)
        popped_at = first[0].receipt.pop_time
        await ack(wire, first[2].receipt)
        clock.now += 299
        broker.revive.turn()
        assert await pop(wire, "T") == []
        clock.now += 1
        again = await until_popped(wire, "T", 3, invisibleTime=60_000)
        assert sorted(bodies(again)) == [sent[0], sent[1], sent[3]]
        for each in again:
            message = each.message
            assert message.store_timestamp == popped_at + 300
            assert (message.topic, message.reconsume_times, message.tag) == ("T", 1, "A")
            assert message.properties["ORIGIN_GROUP"] == "G"
            assert message.properties["1ST_POP_TIME"] == str(popped_at)
            assert each.receipt.topic == "%RETRY%G_T"
            assert each.receipt.flag == "1"
        assert (await ack_all(wire, again)).code == 0
        assert len(broker.revive_log.points) == 0

    with_broker(tmp_path, test, clock_ms=clock)


def test_a_pop_waits_for_a_message_and_each_message_goes_to_one(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T", 4)
        asked = [wire.send(200050, pop_ext("T", pollTime=60_000)) for _ in range(5)]
        await wire.until(lambda: broker.pop_wait.count == 5, what="five waiting pops")
        info = await wire.call(200055, {"consumerGroup": "G", "topic": "T", "queueId": -1})
        assert info.ext["pollingNum"] == "5"
        for number in range(3):
            await wire.store("T", b"%d" % number, queue=number)
        got = []
        for opaque in asked[:3]:
            got += held(await wire.answer(opaque), "T")
        assert sorted(bodies(got)) == [b"0", b"1", b"2"]
        assert broker.pop_wait.count == 2
        assert not wire.answers

    with_broker(tmp_path, test)


def test_a_wait_ends_when_it_was_to_end(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T")
        before = now_ms()
        answer = await wire.call(200050, pop_ext("T", pollTime=300))
        assert answer.code == 210
        assert now_ms() - before >= 295
        assert {name: answer.ext[name] for name in ("startOffsetInfo", "msgOffsetInfo", "restNum")} == {
            "startOffsetInfo": "",
            "msgOffsetInfo": "",
            "restNum": "0",
        }

    with_broker(tmp_path, test)


def test_too_many_waiting_pops_are_told_so(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T")
        for _ in range(2):
            wire.send(200050, pop_ext("T", pollTime=60_000))
        assert (await wire.call(200050, pop_ext("T", pollTime=60_000))).code == 209
        assert (await wire.call(200050, pop_ext("T", "other", pollTime=200))).code == 210

    with_broker(tmp_path, test, pop_polling_size=2)


def test_nothing_is_given_out_while_too_much_is_leased(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await stored(wire, "T", 3)
        first = await pop(wire, "T", maxMsgNums=1)
        second = await pop(wire, "T", "other", maxMsgNums=1)
        assert (await wire.call(200050, pop_ext("T", pollTime=60_000))).code == 209
        waits = wire.send(200050, pop_ext("Empty", "ordered", pollTime=60_000, order="true"))
        assert (await ack_all(wire, first)).code == 0
        assert bodies(await pop(wire, "T")) == [b"1", b"2"]
        assert (await wire.call(200050, pop_ext("T", "third"))).code == 209
        assert (await ack_all(wire, second, "other")).code == 0
        assert waits not in wire.answers

    async def main() -> None:
        async with running(tmp_path, max_pop_check_points=2) as (broker, wire):
            await create(wire, "Empty")
            await test(broker, wire)

    asyncio.run(main())


def test_leases_that_were_settled_long_before_their_end_cost_nothing() -> None:
    points = CheckPoints()
    for number in range(20_000):
        point = CheckPoint(Key("T", "G", 0, number, 1000), range(number, number + 1), 3_600_000 - number)
        points.add(point)
        if number % 100:
            points.settle(point, 1)
    assert len(points) == 200
    assert len(points._heap) <= 2 * 200 + 1001
    assert len(points.take_due(3_601_001, 1000)) == 200


def test_what_is_due_is_taken_in_parts_of_so_many_messages() -> None:
    points = CheckPoints()
    sizes = [32, 32, 1, 30, 127, 1]
    for number, size in enumerate(sizes):
        points.add(
            CheckPoint(Key("T", "G", 0, 1000 * number, number), range(1000 * number, 1000 * number + size), 1)
        )
    first = next(iter(points))
    points.settle(first, (1 << 31) - 1)  # only one is left of it
    taken = [[len(point.offsets) for point in points.take_due(100, 64)] for _ in range(4)]
    assert taken == [[32, 32, 1, 30], [127], [1], []]


def test_a_lease_can_be_prolonged_and_shortened_while_it_lasts(tmp_path: Path) -> None:
    clock = Clock()

    async def test(broker: Broker, wire: Wire) -> None:
        await stored(wire, "T", 2)
        short, long = await pop(wire, "T", invisibleTime=400)
        renewed = await lease(wire, long.receipt, 60_000)
        assert isinstance(renewed, Receipt)
        clock.now += 400
        (again,) = await until_popped(wire, "T", 1)
        assert again.message.body == short.message.body
        # the old receipts are worth nothing any more
        for receipt in (short.receipt, long.receipt):
            refused = await lease(wire, receipt, 1000)
            assert isinstance(refused, Command)
            assert refused.code == 208
            assert "lease is over" in (refused.remark or "")
            assert (await ack(wire, receipt)).code == 0
        assert len(broker.revive_log.points) == 2
        at_once = await lease(wire, renewed, 1)
        assert isinstance(at_once, Receipt)
        clock.now += 1
        (again,) = await until_popped(wire, "T", 1)
        assert again.message.body == long.message.body
        assert again.message.reconsume_times == 1

    with_broker(tmp_path, test, clock_ms=clock)


def test_attempts_are_counted_and_then_it_is_a_dead_letter(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T")
        group = {"groupName": "G", "retryMaxTimes": 2, "retryQueueNums": 1}
        assert (await wire.call(200, {}, str(group).replace("'", '"').encode())).code == 0
        sent = await wire.store("T", b"stubborn", properties={"KEYS": "k"})
        for attempt in range(3):
            (got,) = await until_popped(wire, "T", 1, invisibleTime=50)
            assert got.message.reconsume_times == attempt
        await wire.until(lambda: broker.store.max_offset("%DLQ%G", 0) == 1, what="the dead letter")
        (dead,) = await wire.messages("%DLQ%G")
        assert dead.body == b"stubborn"
        assert dead.properties["RETRY_TOPIC"] == "T"
        assert dead.properties["UNIQ_KEY"] == sent.ext["transactionId"]
        assert await pop(wire, "T", pollTime=100) == []

    with_broker(tmp_path, test)


def test_what_is_given_back_was_no_attempt(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await stored(wire, "T", 1)
        (got,) = await pop(wire, "T")
        for _ in range(3):
            given = await wire.call(200053, receipt_ext(got.receipt, invisibleTime=1, giveBack="true"))
            assert given.code == 0, given.remark
            (got,) = await until_popped(wire, "T", 1)
            assert got.message.reconsume_times == 0
            assert got.message.properties["1ST_POP_TIME"]
        assert isinstance(await lease(wire, got.receipt, 1), Receipt)
        (got,) = await until_popped(wire, "T", 1)
        assert got.message.reconsume_times == 1

    with_broker(tmp_path, test)


def test_leases_that_end_at_once_are_ended_together(tmp_path: Path) -> None:
    """uvloop, which servers run on, has handles of another kind for what is due."""

    clock = itertools.count(now_ms())  # a ms goes by between any two looks: they are over when they begin

    async def test() -> None:
        async with running(tmp_path, clock_ms=lambda: next(clock)) as (_, wire):
            for body in (b"1", b"2"):
                await wire.store("T", body)
            got = await pop(wire, "T")
            asked = [wire.send(200053, receipt_ext(each.receipt, invisibleTime=1)) for each in got]
            assert [(await wire.answer(one)).code for one in asked] == [0, 0]
            again: list[Held] = []
            while len(again) < 2:
                again += await pop(wire, "T", pollTime=3000)
            assert bodies(again) == [b"1", b"2"]

    loop = uvloop.new_event_loop()
    loop.run_until_complete(asyncio.wait_for(test(), 30))
    loop.close()


def test_what_comes_again_keeps_its_priority(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "P", 4, message_type="PRIORITY")

        async def store(*priorities: int) -> None:
            for priority in priorities:
                await wire.store("P", b"%d" % priority, queue=0, properties={"_SYS_MSG_PRIORITY_": str(priority)})

        await store(1, 2, 1)
        first = await pop(wire, "P")
        assert bodies(first) == [b"2", b"1", b"1"]
        for got in first:
            assert isinstance(await lease(wire, got.receipt, 1), Receipt)
        await wire.until(lambda: broker.revive.revived == 3, what="they are there again")
        await store(3, 2, 0, 1)
        again = await pop(wire, "P", maxMsgNums=5)
        assert bodies(again) == [b"3", b"2", b"2", b"1", b"1"]
        assert [got.message.reconsume_times for got in again] == [0, 1, 0, 1, 1]
        for got in again[3:]:
            assert isinstance(await lease(wire, got.receipt, 1), Receipt)
        await wire.until(lambda: broker.revive.revived == 5, what="they are there once more")
        assert bodies(await pop(wire, "P")) == [b"1", b"1", b"1", b"0"]

    with_broker(tmp_path, test)


def test_filters_let_the_others_pass(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for number in range(40):
            await wire.store("T", b"%d" % number, properties={"TAGS": "AB"[number % 2]})
        got = await pop(wire, "T", exp="A", expType="TAG")
        assert bodies(got) == [b"%d" % number for number in range(0, 40, 2)]
        assert (await ack_all(wire, got)).code == 0
        assert len(broker.revive_log.points) == 0
        waiting = wire.send(200050, pop_ext("T", exp="A", expType="TAG", pollTime=60_000))
        await wire.until(lambda: broker.pop_wait.count == 1, what="the pop waits")
        await wire.store("T", b"b", properties={"TAGS": "B"})
        await wire.store("T", b"a", properties={"TAGS": "A"})
        assert bodies(held(await wire.answer(waiting), "T")) == [b"a"]

    with_broker(tmp_path, test)


def test_a_pop_that_waits_reads_on_behind_what_does_not_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is, and though nothing arrives: no pop reads all of it at once."""
    monkeypatch.setattr("rocketq.broker.pop._READS", 1)

    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(2500):
            wire.message("T", properties={"TAGS": "B"}, oneway=True)
        await wire.store("T", b"a", properties={"TAGS": "A"})
        got = await pop(wire, "T", exp="A", expType="TAG", pollTime=600_000, timeout=30)
        assert bodies(got) == [b"a"]

    with_broker(tmp_path, test)


def test_sql_filters_too(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for number in range(4):
            await wire.store("T", b"%d" % number, properties={"n": str(number)})
        got = await pop(wire, "T", exp="n BETWEEN 1 AND 2", expType="SQL92")
        assert bodies(got) == [b"1", b"2"]
        refused = await wire.call(200050, pop_ext("T", exp="n >", expType="SQL92"))
        assert refused.code == 23

    with_broker(tmp_path, test)


def test_a_new_group_begins_where_it_says(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 3)
        assert bodies(await pop(wire, "T", "old", initMode=0)) == sent
        # as on Apache's broker a queue whose first message is still in memory is young, and read from there
        assert bodies(await pop(wire, "T", "new", initMode=1)) == sent

    with_broker(tmp_path, test)


def test_a_group_that_begins_with_the_newest_gets_what_is_sent_while_it_waits(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        broker.offsets._memory = -1  # no queue is young
        for topic in ("Empty", "Old"):
            await create(wire, topic, 4)
            if topic == "Old":
                await stored(wire, topic, 3, queue=1)
            for group, more in (("G", {"queueId": 1}), ("All", {}), ("Ordered", {"order": "true"})):
                ext = pop_ext(topic, group, initMode=1, pollTime=60_000, exp="A", expType="TAG", **more)
                waiting = wire.send(200050, ext)
                await wire.until(lambda: broker.pop_wait.count == 1, what="the pop waits")
                await wire.store(topic, b"new", queue=1, properties={"TAGS": "A"})
                assert bodies(held(await wire.answer(waiting), topic, group)) == [b"new"]
                # the next group is a new one that looks at the newest, too
                await wire.store(topic, b"other", queue=1, properties={"TAGS": "B"})

    with_broker(tmp_path, test)


def test_a_group_that_begins_with_the_newest_begins_in_all_queues_at_once(tmp_path: Path) -> None:
    """Also in those that its first pop takes nothing of, as it is full."""

    async def test(broker: Broker, wire: Wire) -> None:
        broker.offsets._memory = -1
        await create(wire, "T", 4)
        for body in (b"old", b"newest", b"1", b"2", b"3"):
            for queue in range(4):
                await wire.store("T", body, queue=queue)
            if body == b"newest":
                assert bodies(await pop(wire, "T", initMode=1, maxMsgNums=1)) == [b"newest"]
        got = await until_popped(wire, "T", 15, initMode=1)
        assert sorted(bodies(got)) == [b"1"] * 4 + [b"2"] * 4 + [b"3"] * 4 + [b"newest"] * 3

    with_broker(tmp_path, test)


def test_what_is_to_be_retried_is_not_passed_over_by_who_wants_the_newest(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        broker.offsets._memory = -1
        sent = await stored(wire, "T", 3)
        assert bodies(await pop(wire, "T", invisibleTime=50)) == sent
        await wire.until(lambda: broker.revive.revived == 3, what="the leases' end")
        assert bodies(await pop(wire, "T", initMode=1)) == sent

    with_broker(tmp_path, test)


def test_priorities_come_first(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "P", 4, message_type="PRIORITY")
        for priority in (0, 2, 3, 1):
            await wire.store("P", b"%d" % priority, queue=0, properties={"_SYS_MSG_PRIORITY_": str(priority)})
        for _ in range(5):
            got = await pop(wire, "P", f"G{_}")
            assert bodies(got) == [b"3", b"2", b"1", b"0"]

    with_broker(tmp_path, test)


def test_an_orderly_group_gets_one_batch_of_a_queue_at_a_time(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 6)
        more = {"order": "true", "maxMsgNums": 2, "queueId": 0}
        first = await pop(wire, "T", attemptId="a", **more)
        assert bodies(first) == sent[:2]
        assert await pop(wire, "T", attemptId="b", **more) == []
        # whose answer was lost asks again with the same attempt
        again = await pop(wire, "T", attemptId="a", **more)
        assert bodies(again) == sent[:2]
        assert (await ack(wire, first[0].receipt)).code == 0  # of the lost answer: of no effect, if another ms
        waiting = wire.send(200050, pop_ext("T", attemptId="b", pollTime=60_000, **more))
        await wire.until(lambda: broker.pop_wait.count == 1, what="the pop waits")
        assert (await ack_all(wire, again)).code == 0
        second = held(await wire.answer(waiting), "T")
        assert bodies(second) == sent[2:4]
        # in mid batch the group is at the first message that is not acknowledged
        assert (await ack(wire, second[1].receipt)).code == 0
        assert broker.offsets.query("G", "T", 0) == 2
        assert (await ack(wire, second[0].receipt)).code == 0
        assert broker.offsets.query("G", "T", 0) == 4

    with_broker(tmp_path, test)


def test_an_orderly_batch_begins_anew_when_its_lease_is_over(tmp_path: Path) -> None:
    clock = Clock()

    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 4)
        more = {"order": "true", "maxMsgNums": 3}
        first = await pop(wire, "T", invisibleTime=200, **more)
        assert (await ack(wire, first[1].receipt)).code == 0
        assert isinstance(await lease(wire, first[0].receipt, 500), Receipt)
        waiting = wire.send(200050, pop_ext("T", pollTime=60_000, **more))
        clock.now += 499
        assert await pop(wire, "T", **more) == []
        clock.now += 1
        answer = await wire.answer(waiting)
        assert bodies(held(answer, "T")) == [sent[0], sent[2], sent[3]]
        assert answer.ext["orderCountInfo"] == "0 qo0%0 1;0 qo0%2 1;0 0 0"
        assert answer.ext["reviveQid"] == "999"

    with_broker(tmp_path, test, clock_ms=clock)


@pytest.mark.parametrize("order", ["true", "false"])
def test_a_group_that_is_moved_goes_on_there_at_once(tmp_path: Path, order: str) -> None:
    async def test() -> None:
        async with running(tmp_path) as (broker, wire):
            sent = await stored(wire, "T", 3)
            first = await pop(wire, "T", order=order)
            assert bodies(first) == sent
            assert (await ack_all(wire, first[1:])).code == 0
            waiting = wire.send(200050, pop_ext("T", order=order, pollTime=60_000, maxMsgNums=1))
            await wire.until(lambda: broker.pop_wait.count == 1, what="the pop waits")
            ext = {"topic": "T", "group": "G", "timestamp": -1, "isForce": "true", "queueId": 0, "offset": 0}
            assert (await wire.call(222, ext)).code == 0
            assert bodies(held(await wire.answer(waiting), "T")) == sent[:1]
        async with running(tmp_path) as (_, wire):
            if order == "false":
                assert bodies(await pop(wire, "T")) == sent[1:]

    asyncio.run(test())


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_restart_forgets_neither_leases_nor_acknowledgements(tmp_path: Path, flush: str) -> None:
    clock = Clock()

    async def test() -> None:
        async with running(tmp_path, clock_ms=clock, flush_disk_type=flush) as (_, wire):
            sent = await stored(wire, "T", 6)
            await stored(wire, "O", 3)
            first = await pop(wire, "T", maxMsgNums=4, invisibleTime=2000)
            await ack_all(wire, first[:2])
            renewed = await lease(wire, first[2].receipt, 60_000)
            ordered = await pop(wire, "O", order="true", maxMsgNums=2)
            await ack(wire, ordered[0].receipt)
        async with running(tmp_path, clock_ms=clock, flush_disk_type=flush) as (broker, wire):
            assert len(broker.revive_log.points) == 2
            assert bodies(await pop(wire, "T", order="false")) == sent[4:]
            assert await pop(wire, "O", order="true", maxMsgNums=2) == []
            clock.now += 2000
            (again,) = await until_popped(wire, "T", 1)
            assert again.message.body == sent[3]
            assert isinstance(renewed, Receipt)
            assert (await ack(wire, renewed)).code == 0
            assert (await ack(wire, ordered[1].receipt)).code == 0
            assert bodies(await pop(wire, "O", order="true", maxMsgNums=2)) == [b"2"]

    asyncio.run(test())


def test_a_crash_in_the_middle_of_a_renewal_leaves_one_lease(tmp_path: Path) -> None:
    """The new lease and the end of the old one are two records: only the first may be there."""
    kit = PopKit(tmp_path)
    kit.send("T", 0, b"x")
    kit.topics.adopt(kit.store.queues())
    (old,) = kit.pop("T")
    kit.log.settled = lambda key, offsets: None  # type: ignore[method-assign]
    assert kit.call(200053, receipt_ext(old.receipt, invisibleTime=90_000)).code == 0
    kit.kill()
    assert [point.invisible_time for point in kit.log.points] == [90_000]
    kit.advance(100_000)
    assert kit.store.max_offset("%RETRY%G_T", 0) == 1
    kit.close()


def test_nobody_is_served_before_it_is_known_what_is_held(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Broker(config(tmp_path))
        recover = broker.revive_log.recover

        def connect_and_recover() -> None:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", broker.port), timeout=10)
            recover()

        broker.revive_log.recover = connect_and_recover  # type: ignore[method-assign]
        await broker.start()
        socket.create_connection(("127.0.0.1", broker.port), timeout=10).close()
        await broker.stop()

    asyncio.run(test())


@pytest.mark.parametrize(("attempts", "again"), [(16, "%RETRY%G_T"), (0, "%DLQ%G")])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_crash_in_the_middle_of_a_revival_leaves_one_copy(
    tmp_path: Path, attempts: int, again: str, lost: int
) -> None:
    """What nobody acknowledged is stored once more, and behind it that it is settled: the last records may be lost."""
    kit = PopKit(tmp_path)
    kit.send("T", 0, b"a")
    kit.send("T", 0, b"b")
    kit.topics.adopt(kit.store.queues())
    kit.pop("T")
    kit.groups.table["G"].retry_max_times = attempts
    kit.save()
    before = kit.store.written_offset
    kit.advance(100_000)
    revived = [len(record) for record in kit.store.records(before)]
    assert len(revived) == 3
    kit.now -= 100_000  # a clock that was set back makes no lease of what is over
    kit.kill(sum(revived[-lost:]))
    assert len(kit.log.points) == 1
    kit.advance(0 if lost < 3 else 100_000)
    assert len(kit.log.points) == 0
    kit.kill()  # a later start knows it too
    kit.advance(100_000)
    (stored,) = kit.store.read(again, 0, 0, 32).buffers
    assert [message.body for message in decode_messages(stored)] == [b"a", b"b"]
    kit.close()


def test_a_topic_that_takes_nothing_now_holds_up_no_other_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = PopKit(tmp_path)
    for topic in "ABC":
        for body in (b"1", b"2"):
            kit.send(topic, 0, body)
    kit.topics.adopt(kit.store.queues())
    for topic in "ABC":
        kit.pop(topic)
    append, calls = kit.store.append, 0

    def refuse(topic: str, *arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += topic == "%RETRY%G_B"
        if topic == "%RETRY%G_B" and calls != 1:  # it is refused in the middle
            raise StoreFull("topic %RETRY%G_B is being deleted")
        return append(topic, *arguments, **more)

    monkeypatch.setattr(kit.revive, "_later", lambda seconds: None)
    kit.now += 100_000
    with monkeypatch.context() as patch:
        patch.setattr(kit.store, "append", refuse)
        kit.revive.turn()
        for _ in range(2):
            kit.revive.try_again()
    assert [point.key.topic for point in kit.log.points] == ["B"]
    kit.revive.try_again()
    assert not list(kit.log.points)
    assert not kit.revive._copied
    assert [kit.store.max_offset(f"%RETRY%G_{topic}", 0) for topic in "ABC"] == [2, 2, 2]
    kit.close()


def test_any_number_of_pops_that_are_refused_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are looked at in one turn, and due before the others."""
    kit, many = PopKit(tmp_path), 150
    for number in range(many):
        kit.send("B", 0, b"%d" % number)
    for topic in "AC":
        kit.send(topic, 0, b"x")
    kit.topics.adopt(kit.store.queues())
    for _ in range(many):
        kit.now += 1
        assert kit.pop("B", maxMsgNums=1)
    kit.now += 1
    assert kit.pop("A")
    assert kit.pop("C")
    append, refused = kit.store.append, 0

    def refuse(topic: str, *arguments: Any, **more: Any) -> Any:
        nonlocal refused
        if topic == "%RETRY%G_B":
            refused += 1
            raise StoreFull("topic %RETRY%G_B is being deleted")
        return append(topic, *arguments, **more)

    kit.now += 100_000
    with monkeypatch.context() as patch:
        patch.setattr(kit.store, "append", refuse)
        for _ in range(3):
            kit.revive.turn()
        assert [point.key.topic for point in kit.log.points] == ["B"] * many
        assert refused == many
        for _ in range(2):  # then one at a time asks whether it goes on
            kit.revive.try_again()
            kit.revive.turn()
        assert refused == many + 2
    kit.revive.try_again()
    for _ in range(3):
        kit.revive.turn()
    assert not list(kit.log.points)
    assert not kit.revive._aside
    assert [kit.store.max_offset(f"%RETRY%G_{topic}", 0) for topic in "ABC"] == [1, many, 1]
    kit.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_renewal_whose_answer_was_lost_can_be_asked_for_once_more(tmp_path: Path, killed: bool) -> None:
    """And the message be acknowledged by the receipt before: whatever it was that took the answer."""
    kit = PopKit(tmp_path)
    kit.send("T", 0, b"x")
    kit.send("T", 0, b"y")
    kit.topics.adopt(kit.store.queues())
    first, second = (held.receipt for held in kit.pop("T"))
    name = {"holder": "consumer"}
    for receipt in (first, second):
        assert kit.call(200053, receipt_ext(receipt, invisibleTime=90_000, **name)).code == 0
    if killed:
        kit.kill()
    assert kit.call(200053, receipt_ext(first, invisibleTime=90_000)).code == 208
    answer = kit.call(200053, receipt_ext(first, invisibleTime=90_000, **name))
    assert len(kit.log.points) == 2
    assert kit.call(200151, name, batch_ack("broker-a", "G", [second])).code == 0
    assert len(kit.log.points) == 1
    renewed = first.renewed(answer.header(ChangeInvisibleTimeResponse))
    assert kit.call(200051, receipt_ext(renewed)).code == 0
    assert len(kit.log.points) == 0
    assert kit.call(200053, receipt_ext(first, invisibleTime=90_000, **name)).code == 208
    kit.close()


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_broker_without_room_gives_nothing_out_that_it_cannot_note(tmp_path: Path, flush: str) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 3)
        (first, *_) = await pop(wire, "T", maxMsgNums=1)
        disk.full = True
        broker.store.maintain()  # which the broker does twice a second
        answer = await wire.call(200050, pop_ext("T"))
        assert (answer.code, "full" in (answer.remark or "")) == (14, True)
        assert (await ack(wire, first.receipt)).code == 14
        refused = await lease(wire, first.receipt, 1000)
        assert isinstance(refused, Command)
        assert refused.code == 14
        assert len(broker.revive_log.points) == 1
        disk.full = False
        broker.store.maintain()
        assert bodies(await pop(wire, "T")) == sent[1:]
        assert (await ack(wire, first.receipt)).code == 0

    disk = FullDisk()
    with_broker(tmp_path, test, files=disk, flush_disk_type=flush)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_pop_and_the_acknowledgements_of_its_read_are_written_at_once_or_not_at_all(
    tmp_path: Path, flush: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        sent = await stored(wire, "T", 4)
        first = await pop(wire, "T", maxMsgNums=2)
        writes: list[int] = []
        write = broker.store.log.write

        def counted(offset: int, parts: Any) -> None:
            writes.append(offset)
            write(offset, parts)

        monkeypatch.setattr(broker.store.log, "write", counted)

        async def both() -> tuple[Command, Command]:
            settled = wire.send(200151, {}, batch_ack("broker-a", "G", [each.receipt for each in first]))
            popped = wire.send(200050, pop_ext("T"))
            return await wire.answer(settled), await wire.answer(popped)

        disk.full = True
        assert [answer.code for answer in await both()] == [14, 14]
        assert len(writes) == 1
        assert [point.open_offsets for point in broker.revive_log.points] == [[0, 1]]
        disk.full = False
        broker.store.maintain()
        settled, popped = await both()
        assert settled.code == 0
        assert bodies(held(popped, "T")) == sent[2:]
        assert len(writes) == 2
        assert [point.open_offsets for point in broker.revive_log.points] == [[2, 3]]

    disk = FullDisk()
    with_broker(tmp_path, test, files=disk, flush_disk_type=flush)


def test_a_pop_that_waits_gets_what_was_sent_in_its_own_read(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T")
        sent = wire.message("T", b"before it")
        popped = wire.send(200050, pop_ext("T", pollTime=60_000))
        assert bodies(held(await wire.answer(popped), "T")) == [b"before it"]
        assert (await wire.answer(sent)).code == 0

    with_broker(tmp_path, test)


def test_peek_and_notification_give_nothing_out(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T", 2)
        where = {"consumerGroup": "G", "topic": "T", "queueId": -1}
        polled = where | {"pollTime": 60_000, "bornTime": 0}
        told = wire.send(200054, polled)
        await wire.until(lambda: broker.pop_wait.count == 1, what="the notification waits")
        assert (await wire.call(200052, where | {"maxMsgNums": 5})).code == 19
        await wire.store("T", b"x", queue=1)
        assert (await wire.answer(told)).ext["hasMsg"] == "true"
        for _ in range(2):
            peeked = await wire.call(200052, where | {"maxMsgNums": 5})
            assert [message.body for message in decode_messages(peeked.body)] == [b"x"]
        assert bodies(await pop(wire, "T")) == [b"x"]
        assert (await wire.call(200052, where | {"maxMsgNums": 5})).code == 19
        assert (await wire.call(200054, where | {"pollTime": 0, "bornTime": 0})).ext["hasMsg"] == "false"

    with_broker(tmp_path, test)


def test_deleting_a_topic_ends_its_leases(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "T")
        await wire.store("T", b"of the old topic")
        assert await pop(wire, "T", invisibleTime=1500)
        assert (await wire.call(215, {"topic": "T"})).code == 0
        await wire.until(lambda: len(broker.revive_log.points) == 0, what="the leases are gone")
        await create(wire, "T")
        await wire.store("T", b"of the new one")
        assert bodies(await pop(wire, "T")) == [b"of the new one"]
        assert len(broker.revive_log.points) == 1

    with_broker(tmp_path, test)


REFUSED: list[tuple[str, int, dict[str, Any], int, str]] = [
    ("unknown topic", 200050, {"topic": "nope"}, 17, "not exist"),
    ("too many", 200050, {"maxMsgNums": 33}, 29, "greater than 32"),
    ("none", 200050, {"maxMsgNums": 0}, 29, "0 messages"),
    ("no lease", 200050, {"invisibleTime": 0}, 29, "for 0 ms"),
    ("unknown queue", 200050, {"queueId": 9}, 29, "queueId[9] is illegal"),
    ("too late", 200050, {"bornTime": 1_000}, 210, "timeout too much"),
    ("filter of a kind that nobody knows", 200050, {"exp": "x", "expType": "MAGIC"}, 1, "MAGIC"),
    ("queue of an ack", 200051, {"queueId": 9}, 13, "queueId[9] is illegal"),
    ("offset of an ack", 200051, {"offset": 99}, 208, "offset is illegal"),
    ("receipt of an ack", 200051, {"extraInfo": "a b"}, 1, "receipt"),
    ("topic of a change", 200053, {"topic": "nope", "invisibleTime": 1}, 17, "not exist"),
    ("offset of a change", 200053, {"offset": 99, "invisibleTime": 1}, 208, "no message 99"),
    ("lease of a change", 200053, {"invisibleTime": -1}, 29, "-1 ms"),
]


@pytest.mark.parametrize(
    ("what", "code", "fields", "expected", "remark"), REFUSED, ids=[row[0] for row in REFUSED]
)
def test_refusals_say_why(
    tmp_path: Path, what: str, code: int, fields: dict[str, Any], expected: int, remark: str
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await stored(wire, "T", 2)
        (got, _) = await pop(wire, "T")
        ext = pop_ext("T") if code == 200050 else receipt_ext(got.receipt)
        answer = await wire.call(code, ext | fields)
        assert answer.code == expected, answer.remark
        assert remark in (answer.remark or "")
        assert len(broker.revive_log.points) == 1

    with_broker(tmp_path, test)


@pytest.mark.parametrize("body", [b"", b"{", b'{"acks":[{"c":1}]}', b'{"acks":[{"c":"G","t":"T","so":0,"q":0}]}'])
def test_acknowledgements_that_are_none_change_nothing(tmp_path: Path, body: bytes) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await stored(wire, "T", 1)
        await pop(wire, "T")
        assert (await wire.call(200151, {}, body)).code == 1
        assert len(broker.revive_log.points) == 1
        assert (await wire.call(200151, {}, b'{"acks":[]}')).code == 208

    with_broker(tmp_path, test)
