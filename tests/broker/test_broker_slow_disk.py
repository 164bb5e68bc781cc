"""A disk that cannot keep up: sends are refused before memory or the event loop pay for it, all else goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_wire import Wire, running

from rocketq.broker.batch import DISK_BUSY, QUEUE_FULL
from rocketq.broker.server import Broker
from rocketq.store.files import Buffer, OsFiles

SYNC = {"flush_disk_type": "SYNC_FLUSH", "sync_flush_timeout": 60_000}


class SlowDisk(OsFiles):
    """A disk that forces and reserves nothing while it `hangs`, and takes `seconds` for a write."""

    def __init__(self) -> None:
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.seconds = 0.0

    @contextmanager
    def hangs(self) -> Iterator[None]:
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    def fdatasync(self, fd: int) -> None:
        self._goes_on.wait()
        super().fdatasync(fd)

    def allocate(self, fd: int, size: int) -> None:
        self._goes_on.wait()
        super().allocate(fd, size)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> None:
        time.sleep(self.seconds)
        super().pwrite(fd, data, offset)


async def eventually(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        await asyncio.sleep(0.01)


async def goes_on(broker: Broker) -> None:
    """Sends are taken again."""
    await eventually(lambda: not broker.batch.busy, "the end of flow control")


@pytest.mark.parametrize("connections", [1, 5])
def test_so_many_sends_wait_for_the_disk_and_no_more(tmp_path: Path, connections: int) -> None:
    most, sends = 300, 6000 // connections

    async def main() -> None:
        disk = SlowDisk()
        settings = {**SYNC, "send_thread_pool_queue_capacity": most}
        async with running(tmp_path, files=disk, **settings) as (broker, wire):
            await wire.store("T")
            wires = [wire] + [await Wire.connect(broker.port) for _ in range(connections - 1)]
            with disk.hangs():
                opaques = {one: [one.message("T", b"x" * 1000) for _ in range(sends)] for one in wires}
                # what a connection had in one read is taken as a whole
                await eventually(
                    lambda: sum(len(one.answers) for one in wires) > connections * sends // 2, "the refusals"
                )
                answers = [answer for one in wires for answer in one.answers.values()]
                assert {(answer.code, answer.remark) for answer in answers} == {(2, QUEUE_FULL)}
                assert most < broker.store.undispatched < connections * sends - len(answers) + 1
                assert len(await wire.messages("T")) == 1  # others do not wait
            codes: Counter[int] = Counter()
            for one in wires:
                for opaque in opaques[one]:
                    codes[(await one.answer(opaque, 20)).code] += 1
            assert set(codes) == {0, 2}
            assert broker.store.max_offset("T", 0) == 1 + codes[0]
            await goes_on(broker)
            assert (await wire.store("T")).code == 0
            for one in wires[1:]:
                await one.close()

    asyncio.run(main())


def test_messages_that_nobody_waits_for_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocketq.broker.batch.MAX_UNSEEN", 50)

    async def main() -> None:
        disk = SlowDisk()
        async with running(tmp_path, files=disk, **SYNC) as (broker, wire):
            await wire.store("T")
            with disk.hangs():
                for _ in range(60):
                    wire.message("T", oneway=True)
                    wire.message("T", properties={"WAIT": "false"})
                await eventually(lambda: broker.batch.busy, "flow control")
                refused = await wire.store("T", properties={"WAIT": "false"})
                assert (refused.code, refused.remark) == (2, DISK_BUSY)
            await goes_on(broker)
            assert (await wire.store("T")).code == 0

    asyncio.run(main())


def test_sends_are_refused_after_a_slow_write_until_the_disk_has_it(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SlowDisk()
        settings = {"os_page_cache_busy_time_out_mills": 200, "flush_interval_commit_log": 50}
        async with running(tmp_path, files=disk, **settings) as (broker, wire):
            await wire.store("T", b"first")
            await goes_on(broker)  # on a busy machine that may have been slow as well
            with disk.hangs():
                disk.seconds = 0.25
                assert (await wire.store("T", b"slow")).code == 0
                disk.seconds = 0.0
                refused = await wire.store("T", b"too soon")
                assert (refused.code, refused.remark) == (2, DISK_BUSY)
                assert [message.body for message in await wire.messages("T")] == [b"first", b"slow"]
            await goes_on(broker)
            assert (await wire.store("T", b"after")).code == 0

    asyncio.run(main())


def test_sends_are_refused_before_they_would_wait_for_the_next_file_of_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        disk = SlowDisk()
        async with running(tmp_path, files=disk, mapped_file_size_commit_log=16 << 20) as (broker, wire):
            await wire.store("T", b"first")
            for _ in range(10):
                assert (await wire.store("T", b"x" * (1 << 20))).code == 0
            if broker.store._preparing is not None:
                broker.store._preparing.result()
            with disk.hangs():
                broker.store.log.drop_prepared()  # in case that it was quicker
                broker.store.maintain()
                taken = 0
                while (answer := await wire.store("T", b"x" * (1 << 20))).code == 0:
                    taken += 1
                assert (answer.code, answer.remark) == (2, DISK_BUSY)
                assert 3 <= taken <= 5
                assert broker.store.log.end - broker.store.written_offset > 0
                assert (await wire.messages("T", 0, maxMsgNums=1))[0].body == b"first"
            await goes_on(broker)
            for _ in range(5):
                assert (await wire.store("T", b"x" * (1 << 20))).code == 0
            assert len(broker.store.log.files) == 2

    asyncio.run(main())
