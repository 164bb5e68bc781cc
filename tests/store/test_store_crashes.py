"""Every moment at which a store may be killed or lose its power: it opens, keeps what it promised, and invents nothing.

`ROCKETQ_CRASH_POWER=50` looks at so many power failures after each operation (default 2), with other seeds each time
that `ROCKETQ_CRASH_SEED` changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_disk import Crash, RecordingFiles, crashes, left_by
from store_kit import Opener, abandon, bodies, delete_topic, send

from rocketq.store.configfile import load_json, save_json
from rocketq.store.files import OsFiles

POWER_FAILURES = int(os.environ.get("ROCKETQ_CRASH_POWER", "2"))
SEED = int(os.environ.get("ROCKETQ_CRASH_SEED", "0"))
SETTINGS = {
    "mapped_file_size_commit_log": 4096,
    "mapped_file_size_consume_queue": 100,
    "max_hash_slot_num": 4,
    "max_index_num": 12,
    # no flush of its own accord: operations come in the same order every time
    "flush_interval_commit_log": 3_600_000,
    "disk_space_warning_level_ratio": 100,
    "disk_space_clean_forcibly_ratio": 100,
    "disk_max_used_space_ratio": 100,
}
DAY = 86_400_000


class Scenario:
    """Drives a store and notes what it may rely on from then on."""

    def __init__(self, directory: Path, sync: bool) -> None:
        self.root = directory
        self.disk = RecordingFiles(directory)
        self.now = 1_800_000_000_000
        self.settings = {**SETTINGS, "flush_disk_type": "SYNC_FLUSH" if sync else "ASYNC_FLUSH"}
        self.opener = Opener(directory / "store")
        self.number = 0
        self.open()

    def open(self) -> None:
        self.store = self.opener(files=self.disk, clock_ms=lambda: self.now, **self.settings)

    def send(self, *sizes: int, topic: str = "A", queue_id: int = 0, **more: Any) -> None:
        """One batch."""
        batch = []
        for size in sizes:
            self.number += 1
            body = b"%d:" % self.number + bytes([65 + self.number % 26]) * size
            self.disk.promise("sent", (topic, queue_id, body))
            words = {"keys": f"k{self.number}", "unique_id": f"{self.number:08X}", "tag": "t", **more}
            batch.append((body, send(self.store, topic, queue_id, body, write=False, **words)))
        self.store.write()
        self.flushed_if_sync()
        for body, place in batch:
            self.disk.promise("written", (topic, queue_id, place.queue_offset, body, place.physical_offset))
        self.promise_durable()

    def flushed_if_sync(self) -> None:
        if self.store.config.sync_flush:
            self.flush()

    def flush(self) -> None:
        self.store._flusher.flush()
        self.store.advance()

    def promise_durable(self) -> None:
        self.disk.promise("durable", self.store.durable_offset)

    def checkpoint(self) -> None:
        self.flush()
        self.promise_durable()
        self.store._save_now()

    def save(self, value: int) -> None:
        self.disk.promise("saving", value)
        save_json(self.root / "config" / "table.json", {"value": value}, self.disk)
        self.disk.promise("saved", value)

    def clean(self) -> None:
        """Let everything expire and be removed."""
        self.now += 30 * DAY
        self.send(10)
        self.checkpoint()
        self.store._safe = self.store._last[0]
        self.disk.promise("expired", self.store.written_offset)
        self.store.retention.request()
        for _ in range(30):
            self.store.retention._next_round = 0.0
            self.store.maintain()
            if self.store.retention._removing is not None:
                self.store.retention._removing.result()

    def end(self, clean: bool) -> list[Any]:
        if clean:
            self.promise_durable()
            self.store.close()
            self.disk.promise("durable", self.store.written_offset)
        else:
            abandon(self.store)
        self.opener.stores.clear()
        return self.disk.operations


def some_of_everything(scenario: Scenario) -> None:
    scenario.send(30)
    scenario.send(200, 300, 10, topic="B", queue_id=1)
    scenario.save(1)
    scenario.checkpoint()
    scenario.send(*[500] * 9)  # over the end of a file
    scenario.send(0, topic="C")
    scenario.checkpoint()
    scenario.save(2)
    for size in (900, 1500, 40):
        scenario.send(size, topic="B", queue_id=1)
    scenario.disk.promise("deleted", "C")  # until that is done, either may be
    delete_topic(scenario.store, "C")
    scenario.send(5)
    scenario.checkpoint()
    scenario.save(3)
    scenario.send(*[20] * 12, topic="B")


def with_cleaning(scenario: Scenario) -> None:
    for _ in range(6):
        scenario.send(*[700] * 4)
    scenario.checkpoint()
    scenario.clean()
    scenario.send(60, topic="B")
    scenario.checkpoint()


def with_queues_after_a_checkpoint(scenario: Scenario) -> None:
    scenario.checkpoint()
    scenario.send(30)
    scenario.send(40, topic="B", queue_id=1)
    scenario.checkpoint()


def with_a_kill(scenario: Scenario) -> None:
    """What the first run made is there for the second one, and yet not on disk."""
    scenario.checkpoint()
    scenario.send(30)
    scenario.send(*[700] * 6, topic="B", queue_id=1)
    for queue in (("A", 0), ("B", 1)):
        assert queue in scenario.store.queues()
    scenario.store.consume_queues.flush(2)
    scenario.store.index.flush()
    scenario.end(clean=False)
    scenario.open()
    scenario.send(20)
    scenario.checkpoint()


def check(crash: Crash, directory: Path, sync: bool, killed: bool) -> None:
    """Open what the crash left, and compare it with what was promised. `killed`: nothing that was written is lost."""
    sent: dict[tuple[str, int], set[bytes]] = {}
    written: dict[tuple[str, int, int], tuple[bytes, int]] = {}
    last: dict[str, Any] = {"durable": 0, "expired": 0, "saving": 0, "saved": 0}
    deleted = set()
    for kind, what in crash.promises():
        if kind == "sent":
            sent.setdefault(what[:2], set()).add(what[2])
        elif kind == "written":
            written[what[:3]] = what[3:]
        elif kind == "deleted":
            deleted.add(what)
        else:
            last[kind] = what
    opener = Opener(directory / "store")
    settings = {**SETTINGS, "flush_disk_type": "SYNC_FLUSH" if sync else "ASYNC_FLUSH"}
    store = opener(**settings)
    try:
        for (topic, queue_id, offset), (body, physical) in written.items():
            if topic not in deleted and physical >= last["expired"] and (killed or physical < last["durable"]):
                found = store.read(topic, queue_id, offset, 1)
                assert found.count == 1, f"{topic} {queue_id} {offset} is lost: {found}"
                assert body in bytes(found.buffers[0])
                key = "k" + body.partition(b":")[0].decode()
                assert store.query(topic, key, begin=0, end=1 << 60, max_count=1).buffers, f"{key} is not found"
        for topic, queue_id in store.queues():
            for body in bodies(store, topic, queue_id, store.min_offset(topic, queue_id)):
                assert body in sent[topic, queue_id], "it was never sent"
        table = load_json(directory / "config" / "table.json", OsFiles())
        assert last["saved"] <= (table["value"] if table else 0) <= last["saving"]
        # and it goes on
        place = send(store, "A", 0, b"afterwards")
        store._flusher.flush()
        store.advance()
        assert b"afterwards" in bytes(store.read("A", 0, place.queue_offset, 1).buffers[0])
    finally:
        store.close()
    again = opener(**settings)
    assert opener.recovery.clean
    again.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("scenario", "clean"),
    [
        (some_of_everything, False),
        (some_of_everything, True),
        (with_cleaning, True),
        (with_queues_after_a_checkpoint, False),
        (with_a_kill, False),
    ],
)
def test_whatever_a_crash_leaves_opens_with_all_that_was_promised(
    tmp_path: Path, scenario: Callable[[Scenario], None], clean: bool, sync: bool
) -> None:
    driver = Scenario(tmp_path, sync)
    scenario(driver)
    operations = driver.end(clean)
    closer = 3 if len(operations) < 150 else 1  # short ones are soon looked at
    for crash in crashes(operations, closer * POWER_FAILURES, seed=SEED):
        with left_by(crash) as directory:
            check(crash, directory, sync, crash.seed is None)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_a_crash_of_the_recovery_from_a_crash_costs_nothing_either(tmp_path: Path, sync: bool) -> None:
    driver = Scenario(tmp_path, sync)
    some_of_everything(driver)
    for first in list(crashes(driver.end(False), 1, seed=SEED + 1))[:: max(1, 40 // POWER_FAILURES)]:
        with left_by(first) as directory:
            disk = RecordingFiles(directory)
            before = len(disk.operations)
            opener = Opener(directory / "store")
            store = opener(files=disk, **driver.settings)
            store._save_now()
            abandon(store)
            operations = [*first.promises(), *disk.operations]
        for second in crashes(operations, 1, first=before + len(first.promises()), seed=SEED):
            with left_by(second) as directory:
                check(second, directory, sync, first.seed is None)
