"""Every moment at which a broker with transactions may be killed or lose its power: each ends once, as it was answered.

Half messages, commits, rollbacks, ends that come twice, questions to producers and one that is given up go over a real
connection to a broker whose disk is recorded. Afterwards brokers are started in directories as crashes leave them, and
what was undecided is asked about and decided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running
from crash_disk import Crash, RecordingFiles, crashes, left_by
from test_broker_crashes import POWER_FAILURES, SEED, SETTINGS, STRIDE, bodies
from test_broker_transaction import COMMIT, GIVEN_UP, ROLLBACK, heartbeat

from rocketq.broker.halfrecords import read_half
from rocketq.broker.server import Broker
from rocketq.remoting.command import Command

#: What ends a half message: the fields of END_TRANSACTION.
Ext = dict[str, Any]
SAID = {COMMIT: "committed", ROLLBACK: "rolled back"}
#: Rounds of questions are begun by hand, and are about everything that is open.
BY_HAND: dict[str, Any] = SETTINGS | {"transaction_check_interval": 3_600_000, "transaction_time_out": 0}
CHECKS = 2


def ext_of(answer: Command) -> Ext:
    place = int(answer.ext["msgId"][16:], 16)
    return {"producerGroup": "PG", "tranStateTableOffset": answer.ext["queueOffset"], "commitLogOffset": place}


async def end(wire: Wire, ext: Ext, *hows: int) -> list[int]:
    """End a transaction, several times in one read; the codes of the answers."""
    opaques = [wire.send(37, ext | {"commitOrRollback": how, "msgId": "x"}) for how in hows]
    return [(await wire.answer(opaque)).code for opaque in opaques]


class Driver:
    """A producer that notes what it was answered."""

    def __init__(self, disk: RecordingFiles, broker: Broker, wire: Wire) -> None:
        self.disk = disk
        self.broker = broker
        self.wire = wire
        self.sent: dict[str, Ext] = {}

    async def begin(self, count: int, **properties: str) -> list[str]:
        """Half messages, several at once."""
        names = [f"m{len(self.sent) + number}" for number in range(count)]
        own = {"TRAN_MSG": "true", "PGROUP": "PG", **properties}
        opaques = [
            self.wire.message("T", name.encode().ljust(40), properties=own | {"UNIQ_KEY": name}, f=4)
            for name in names
        ]
        for name, opaque in zip(names, opaques, strict=True):
            answer = await self.wire.answer(opaque)
            assert answer.code == 0, answer.remark
            self.sent[name] = ext_of(answer)
            self.disk.promise("begun", (name, self.sent[name]))
        return names

    async def end(self, name: str, *hows: int, asked: bool = False) -> None:
        """The first end counts."""
        self.disk.promise("ending", (name, SAID[hows[0]]))
        ext = self.sent[name] | ({"fromTransactionCheck": "true"} if asked else {})
        assert await end(self.wire, ext, *hows) == [0 if how == hows[0] else 4 for how in hows]
        self.disk.promise("ended", (name, SAID[hows[0]]))

    async def ask(self, names: Iterable[str]) -> None:
        """A round of questions, which is about these, and is saved."""
        self.wire.requests.clear()
        await self.broker.check_back.round()
        await self.wire.until(lambda: {each.ext["msgId"] for each in self.wire.requests} == set(names), what="all")
        self.broker.transactions.note()
        await self.saved()

    async def saved(self) -> None:
        """A round of periodic work with a checkpoint."""
        store = self.broker.store
        store._saved_at = float("-inf")
        before = store._saved_offset
        await self.wire.until(lambda: store._saved_offset != before, 20, "a checkpoint")


async def drive(directory: Path, flush: str) -> list[Any]:
    disk = RecordingFiles(directory)
    settings = BY_HAND | {"transaction_check_max": CHECKS, "flush_disk_type": flush}
    async with running(directory / "store", files=disk, **settings) as (broker, wire):
        driver = Driver(disk, broker, wire)
        await heartbeat(wire)
        await driver.begin(5)
        await driver.end("m0", COMMIT)
        await driver.end("m1", ROLLBACK, COMMIT, ROLLBACK)
        await driver.end("m0", COMMIT)
        await driver.end("m2", COMMIT, COMMIT, ROLLBACK)
        await driver.ask(["m3", "m4"])
        await driver.end("m3", COMMIT, asked=True)
        await driver.begin(4)
        await driver.begin(2, TIMER_DELAY_MS="100")
        await driver.end("m5", COMMIT)
        await driver.end("m6", ROLLBACK)
        await driver.end("m9", COMMIT)
        await driver.ask(["m4", "m7", "m8", "m10"])
        disk.promise("giving up", "m4")
        await driver.ask(["m7", "m8", "m10"])
        await driver.end("m7", COMMIT, asked=True)
        await driver.begin(3)
        await driver.end("m12", ROLLBACK)
        await driver.end("m13", COMMIT)
        await wire.until(lambda: bodies(broker, "T")["m9"], what="the timer message")
    return disk.operations


def log_is_whole(crash: Crash, flush: str) -> bool:
    """False where a power failure may have taken what was answered: the newest of the log."""
    return crash.seed is None or flush == "SYNC_FLUSH"


async def check(crash: Crash, directory: Path, flush: str) -> None:
    promised: dict[str, list[Any]] = {}
    for kind, what in crash.promises():
        promised.setdefault(kind, []).append(what)
    begun, ending, ended = (dict(promised.get(kind, ())) for kind in ("begun", "ending", "ended"))
    undecided = set(begun) - set(ending) - set(promised.get("giving up", ()))
    async with running(directory / "store", flush_disk_type=flush, **BY_HAND) as (broker, wire):
        found = bodies(broker, "T")
        assert not undecided & found.keys(), "nobody decided"
        await heartbeat(wire)
        await broker.check_back.round()

        def asked() -> set[str]:
            return {each.ext["msgId"] for each in wire.requests}

        await wire.until(lambda: undecided <= asked(), what=f"questions about all of {sorted(undecided)}")
        assert not asked() & set(ended), "it was decided"

        committed = {name for name, how in ended.items() if how == "committed"}
        for name, how in ended.items():  # twice, and against what was decided
            hows = (COMMIT, ROLLBACK) if how == "committed" else (ROLLBACK, COMMIT)
            assert await end(wire, begun[name], *hows) == [0, 4], f"{name} was {how}"
        for name in undecided:
            how = COMMIT if int(name[1:]) % 2 else ROLLBACK
            assert await end(wire, begun[name], how) == [0], f"{name} was undecided"
            if how == COMMIT:
                committed.add(name)
        given_up = set()
        for name in set(begun) - set(ended) - undecided:  # decided, but not answered; given up
            (code,) = await end(wire, begun[name], COMMIT)
            if code == 0:
                committed.add(name)
            elif name in promised.get("giving up", ()):
                given_up.add(name)
            else:
                assert (code, ending[name]) == (4, "rolled back"), name

        deadline = time.monotonic() + 60
        while committed - (found := bodies(broker, "T")).keys():
            assert time.monotonic() < deadline, f"{sorted(committed - found.keys())} did not come"
            await asyncio.sleep(0.01)
        assert found == dict.fromkeys(committed, 1)
        assert bodies(broker, GIVEN_UP) == dict.fromkeys(given_up, 1)


async def check_the_rest(crash: Crash, directory: Path, flush: str) -> None:
    """What is left of transactions whose newest records the power failure took: none ends twice."""
    promised: dict[str, list[Any]] = {}
    for kind, what in crash.promises():
        promised.setdefault(kind, []).append(what)
    begun, ending = (dict(promised.get(kind, ())) for kind in ("begun", "ending"))
    async with running(directory / "store", flush_disk_type=flush, **BY_HAND) as (broker, wire):
        await heartbeat(wire)
        await broker.check_back.round()
        committed = set(bodies(broker, "T"))
        for name, ext in begun.items():
            half_is_there = read_half(broker.store, ext["commitLogOffset"]) is not None
            (code,) = await end(wire, ext, COMMIT)
            if code == 0:
                committed.add(name)
            elif half_is_there:
                assert code == 4
                assert ending.get(name) == "rolled back" or name in promised["giving up"], name
            else:
                assert name not in committed, f"the log lost the half message of {name} and has what came later"
        deadline = time.monotonic() + 60
        while committed - (found := bodies(broker, "T")).keys():
            assert time.monotonic() < deadline, f"{sorted(committed - found.keys())} did not come"
            await asyncio.sleep(0.01)
        assert found == dict.fromkeys(committed, 1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_transaction_ends_once_and_as_it_was_answered_whenever_the_broker_crashes(
    tmp_path: Path, flush: str
) -> None:
    operations = asyncio.run(drive(tmp_path, flush))
    power_failures = POWER_FAILURES if flush == "SYNC_FLUSH" else POWER_FAILURES // 2
    for crash in list(crashes(operations, power_failures, seed=SEED))[:: max(1, STRIDE)]:
        with left_by(crash) as directory:
            look = check if log_is_whole(crash, flush) else check_the_rest
            asyncio.run(look(crash, directory, flush))
