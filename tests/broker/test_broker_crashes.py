"""Every moment at which a whole broker may be killed or lose its power: what it answered for is there when it is back.

Sends, delays, timer messages, recalls, pops and acknowledgements go over a real connection to a broker whose disk is
recorded. Afterwards brokers are started in directories as crashes leave them, with clocks eleven days ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running
from crash_disk import Crash, Create, RecordingFiles, Rename, Sync, Write, crashes, left_by
from pop_kit import Held, ack_all, lease, pop

from rocketq.broker.server import Broker
from rocketq.names import SCHEDULE_TOPIC, TIMER_TOPIC
from rocketq.record import decode_record, split_records

POWER_FAILURES = int(os.environ.get("ROCKETQ_CRASH_POWER", "2"))
SEED = int(os.environ.get("ROCKETQ_CRASH_SEED", "0"))
#: One of so many moments is looked at: starting a broker takes a while.
STRIDE = int(os.environ.get("ROCKETQ_CRASH_STRIDE", "7"))
SETTINGS: dict[str, Any] = {
    "mapped_file_size_commit_log": 16_384,
    "mapped_file_size_consume_queue": 400,
    "mapped_file_size_timer_log": 1024,
    "max_hash_slot_num": 16,
    "max_index_num": 100,
    "flush_consumer_offset_interval": 10,
}
DAY = 86_400_000


class Driver:
    """Asks the broker for things, and notes what it answered for."""

    def __init__(self, disk: RecordingFiles, broker: Broker, wire: Wire) -> None:
        self.disk = disk
        self.broker = broker
        self.wire = wire
        self.number = 0
        self.accepted: list[str] = []

    def names(self, count: int) -> list[str]:
        self.number += count
        return [f"m{number}" for number in range(self.number - count, self.number)]

    async def send(self, count: int, **properties: str) -> dict[str, Any]:
        """Several at once; returns their answers by body."""
        bodies = self.names(count)
        asked = {
            body: self.wire.message("T", body.encode() + b" " * 40, properties={"UNIQ_KEY": body, **properties})
            for body in bodies
        }
        answers = {body: await self.wire.answer(opaque) for body, opaque in asked.items()}
        for body, answer in answers.items():
            assert answer.code == 0, answer
            self.disk.promise("accepted", body)
            self.accepted.append(body)
            if "DELAY" in properties:  # as in Apache's: how far a level is is saved now and then
                self.disk.promise("perhaps twice", body)
        return answers

    async def recall(self, body: str, handle: str) -> None:
        self.disk.promise("recalling", body)
        answer = await self.wire.call(370, {"producerGroup": "PG", "topic": "T", "recallHandle": handle})
        assert answer.code == 0, answer
        self.disk.promise("recalled", body)

    async def commit(self, offset: int) -> None:
        header = {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": offset}
        self.disk.promise("committing", offset)  # it may be saved before it is answered
        answer = await self.wire.call(15, header)
        assert answer.code == 0, answer

    async def delivered(self, count: int) -> None:
        await self.wire.until(lambda: self.broker.store.max_offset("T", 0) >= count, 20)

    async def saved(self) -> None:
        """A round of periodic work with a checkpoint: what was accepted is on disk, whatever the flush mode."""
        accepted = list(self.accepted)
        self.broker.store._saved_at = float("-inf")
        before = self.broker.store._saved_offset
        await self.wire.until(lambda: self.broker.store._saved_offset != before, 20)
        for body in accepted:
            self.disk.promise("on disk", body)


async def drive(directory: Path, flush: str) -> list[Any]:
    disk = RecordingFiles(directory)
    async with running(directory / "store", files=disk, flush_disk_type=flush, **SETTINGS) as (broker, wire):
        driver = Driver(disk, broker, wire)
        await driver.send(3)
        far = await driver.send(4, TIMER_DELIVER_MS=str(int(time.time() * 1000) + 10 * DAY))
        soon = await driver.send(6, TIMER_DELAY_MS="200")
        await driver.recall("m4", far["m4"].ext["recallHandle"])
        await driver.send(2, DELAY="1")
        await wire.pull("T", group="G")  # makes the group known
        await driver.commit(2)
        await driver.delivered(3 + len(soon))
        await driver.saved()
        await driver.send(9)
        await driver.send(3, TIMER_DELAY_MS="1500")
        await driver.recall("m6", far["m6"].ext["recallHandle"])
        await driver.commit(11)
        await driver.delivered(3 + len(soon) + 2 + 9 + 3)
        await driver.saved()
        await driver.send(5, DELAY="2")
        await driver.commit(20)
    return disk.operations


def bodies(broker: Broker, topic: str) -> Counter[str]:
    """What is in a topic, and how often."""
    found: Counter[str] = Counter()
    for name, queue_id in broker.store.queues():
        if name != topic:
            continue
        offset = broker.store.min_offset(topic, queue_id)
        while (read := broker.store.read(topic, queue_id, offset, 32)).count:
            for buffer in read.buffers:
                for start, _ in split_records(buffer):
                    found[decode_record(buffer, start, check_crc=True).body.decode().strip()] += 1
            offset = read.next_offset
    return found


@contextlib.asynccontextmanager
async def later(directory: Path, flush: str) -> AsyncIterator[Broker]:
    """A broker in the directory, eleven days after."""
    ahead = 11 * DAY

    def clock_ms() -> int:
        return time.time_ns() // 1_000_000 + ahead

    async with running(directory / "store", clock_ms=clock_ms, flush_disk_type=flush, **SETTINGS) as (broker, _):
        yield broker


async def check(crash: Crash, directory: Path, flush: str) -> None:
    promised: dict[str, list[Any]] = {}
    for kind, what in crash.promises():
        promised.setdefault(kind, []).append(what)
    accepted = set(promised.get("accepted", ()))
    recalled, recalling = set(promised.get("recalled", ())), set(promised.get("recalling", ()))
    log_is_whole = crash.seed is None or flush == "SYNC_FLUSH"
    async with later(directory, flush) as broker:
        if not log_is_whole:
            accepted = set(promised.get("on disk", ()))
            for topic in ("T", TIMER_TOPIC, SCHEDULE_TOPIC):
                accepted |= bodies(broker, topic).keys() & set(promised.get("accepted", ()))
        wanted = accepted - recalling
        deadline = time.monotonic() + 60
        while wanted - (found := bodies(broker, "T")).keys():
            missing = f"{sorted(wanted - found.keys())} did not come"
            assert time.monotonic() < deadline, f"{missing}; the timer: {broker.timer.runtime()}"
            await asyncio.sleep(0.01)
        if log_is_whole:
            assert not recalled & found.keys(), "it was taken back"
        twice = {body for body, count in found.items() if count > 1}
        assert twice <= set(promised.get("perhaps twice", ())), f"{twice} came twice"
        offset = broker.offsets.query("G", "T", 0)
        assert offset <= max(promised.get("committing", [0]))
        assert offset <= broker.store.max_offset("T", 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_what_a_broker_answered_for_is_there_after_a_crash(tmp_path: Path, flush: str) -> None:
    operations = asyncio.run(drive(tmp_path, flush))
    power_failures = POWER_FAILURES if flush == "SYNC_FLUSH" else POWER_FAILURES // 2
    for crash in list(crashes(operations, power_failures, seed=SEED))[:: max(1, STRIDE)]:
        with left_by(crash) as directory:
            asyncio.run(check(crash, directory, flush))


async def drive_pops(directory: Path, flush: str) -> tuple[list[Any], int]:
    """What was done to the disk, and when that ended (ms): what is promised as leased is so until later."""
    disk = RecordingFiles(directory)
    now = time.time_ns() // 1_000_000  # no lease ends because the machine is busy
    settings = SETTINGS | {"files": disk, "clock_ms": lambda: now, "flush_disk_type": flush}
    async with running(directory / "store", **settings) as (broker, wire):
        driver = Driver(disk, broker, wire)

        async def acknowledged(done: list[Held]) -> None:
            for each in done:
                disk.promise("acknowledging", each.message.body.decode().strip())
            assert (await ack_all(wire, done)).code == 0
            for each in done:
                disk.promise("acknowledged", each.message.body.decode().strip())

        async def popped(**more: Any) -> list[Held]:
            got = await pop(wire, "T", **more)
            for each in got:
                disk.promise("leased", each.message.body.decode().strip())
            return got

        await driver.send(12)
        first = await popped(maxMsgNums=5, invisibleTime=600_000)
        await acknowledged(first[:2])
        renewed = await lease(wire, first[2].receipt, 1_000_000)
        await driver.saved()
        second = await pop(wire, "T", maxMsgNums=4, invisibleTime=100)
        await acknowledged([Held(first[2].message, renewed), first[4], second[3]])  # type: ignore[arg-type]
        now += 100
        await wire.until(lambda: broker.store.max_offset("%RETRY%G_T", 0) == 3, 20, "what was not acknowledged")
        again = await popped(invisibleTime=600_000)
        await acknowledged(again[::2])
        await driver.saved()
        await driver.send(3)
        await acknowledged(await popped(maxMsgNums=2, invisibleTime=600_000))
    return disk.operations, now


def leased(broker: Broker) -> set[str]:
    """The messages that somebody holds."""
    found = set()
    for point in broker.revive_log.points:
        for offset in point.open_offsets:
            entry = broker.store.consume_entry(point.key.topic, point.key.queue_id, offset)
            assert entry is not None
            data = broker.store.record_at(entry[0])
            assert data is not None
            found.add(bytes(decode_record(data).body).decode().strip())
    return found


async def check_pops(crash: Crash, directory: Path, flush: str, ended: int) -> None:
    promised: dict[str, set[str]] = {}
    for kind, what in crash.promises():
        promised.setdefault(kind, set()).add(what)
    now = ended

    log_is_whole = crash.seed is None or flush == "SYNC_FLUSH"
    async with running(directory / "store", clock_ms=lambda: now, flush_disk_type=flush, **SETTINGS) as (
        broker,
        wire,
    ):
        if log_is_whole:
            lost = promised.get("leased", set()) - promised.get("acknowledging", set()) - leased(broker)
            assert not lost, f"nobody holds {sorted(lost)} any more"
        now += 11 * DAY
        broker.revive.turn()
        wanted = promised.get("accepted", set()) - promised.get("acknowledging", set())
        if not log_is_whole:
            wanted &= bodies(broker, "T").keys()
        found: set[str] = set()
        deadline = time.monotonic() + 60
        while wanted - found:
            assert time.monotonic() < deadline, f"{sorted(wanted - found)} did not come"
            got = await pop(wire, "T", invisibleTime=600_000, bornTime=0)
            names = [each.message.body.decode().strip() for each in got]
            assert not found.intersection(names), "given out twice within a lease"
            found.update(names)
        if log_is_whole:
            assert not promised.get("acknowledged", set()) & found, "it was acknowledged"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_what_was_acknowledged_stays_so_and_the_rest_comes_after_a_crash(tmp_path: Path, flush: str) -> None:
    operations, ended = asyncio.run(drive_pops(tmp_path, flush))
    power_failures = POWER_FAILURES if flush == "SYNC_FLUSH" else POWER_FAILURES // 2
    for crash in list(crashes(operations, power_failures, seed=SEED))[:: max(1, STRIDE)]:
        with left_by(crash) as directory:
            asyncio.run(check_pops(crash, directory, flush, ended))


def test_a_stop_says_of_the_log_only_what_is_on_disk(tmp_path: Path) -> None:
    """A power failure in the middle of it must not leave a table that knows of more than the log does."""
    now = 1_800_000_000_000
    disk = RecordingFiles(tmp_path)

    async def main() -> None:
        nonlocal now
        settings = {"clock_ms": lambda: now, "flush_interval_commit_log": 3_600_000, "message_delay_level": "1s"}
        async with running(tmp_path / "store", files=disk, **(SETTINGS | settings)) as (broker, wire):
            for properties in ({"DELAY": "1"}, {"TIMER_DELAY_MS": "1000"}, {"TRAN_MSG": "true", "PGROUP": "PG"}):
                assert (await wire.store("T", properties=properties)).code == 0
            now += 1000
            await wire.until(lambda: broker.store.max_offset("T", 0) == 2)

    asyncio.run(main())
    operations = disk.operations
    files = {operation.inode: operation.path for operation in operations if isinstance(operation, Create)}
    log = next(inode for inode, path in files.items() if path.startswith("store/commitlog/"))
    written = max(at for at, each in enumerate(operations) if isinstance(each, Write) and each.inode == log)
    forced = next(at for at, each in enumerate(operations[written:], written) if each == Sync(log))
    said = {}
    for at, operation in enumerate(operations):
        if isinstance(operation, Rename):
            said[operation.new] = at
        elif isinstance(operation, Write):
            said[files[operation.inode]] = at
    for name in ("halfMessages.json", "timercheck"):  # a stop always saves these
        assert said[f"store/config/{name}"] > forced, name
