"""`StoreCheck` and the files that a timer leaves."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from broker_wire import config
from timer_kit import DAY, START, Kit

from rocketq.store.check import StoreCheck, mend
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerwheel import SLOTS


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path)
    kit.send("far", START + 20 * DAY)
    for number in range(100):
        kit.send(str(number), START + 5000 + number * 100)
    kit.recall("99", START + 14_900)
    kit.advance(10_000)
    assert 0 < len(kit.delivered()) < 90
    yield kit
    kit.close()


def test_what_a_timer_leaves_is_sound(kit: Kit) -> None:
    kit.close()
    assert StoreCheck(config(kit.directory, **kit.settings).store()).run() == []
    kit.open()


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_log_or_wheel_is_found_and_mended(kit: Kit, seed: int) -> None:
    chance = random.Random(seed)
    kit.close()
    if seed % 2:
        path = chance.choice(sorted((kit.directory / "timerlog").iterdir())[:-1])
        at = 52 * chance.randrange(19) + chance.choice((2, 22, 32, 38))  # size, time, record, its size
    else:
        path = kit.directory / "timerwheel"
        at = (START // 1000 + chance.randrange(6, 14)) % SLOTS * 32 + chance.choice(
            (5, 14, 22)
        )  # second, first, last
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))
    found = StoreCheck(config(kit.directory, **kit.settings).store()).run()
    assert {problem.kind for problem in found} == {"timer"}
    mend(config(kit.directory, **kit.settings).store(), found)
    kit.open()
    kit.work()
    kit.advance(20_000)
    assert sorted(body for body, _ in kit.delivered()) == sorted(map(str, range(99)))


@pytest.mark.parametrize("name", ["timerwheel", "timerlog/00000000000000000000"])
@pytest.mark.parametrize("size", [0, 1000])
def test_a_file_that_is_cut_short_is_found_and_mended(kit: Kit, name: str, size: int) -> None:
    kit.close()
    with (kit.directory / name).open("r+b") as file:
        file.truncate(size)
    store = config(kit.directory, **kit.settings).store()
    found = StoreCheck(store).run()
    assert [problem.kind for problem in found] == ["timer"]
    mend(store, found)
    kit.open()
    kit.advance(20_000)
    assert sorted(body for body, _ in kit.delivered()) == sorted(map(str, range(99)))


def test_a_checkpoint_of_another_time_is_not_believed(kit: Kit) -> None:
    kit.close()
    with (kit.directory / "config" / "timercheck").open("r+b") as file:
        file.write((START + 10_000 * DAY).to_bytes(8, "big"))
    kit.open()
    kit.advance(20_000)
    assert sorted(body for body, _ in kit.delivered()) == sorted(map(str, range(99)))


def test_a_record_that_the_disk_has_changed_costs_no_other(kit: Kit) -> None:
    copy = kit.store.consume_entry("T", 0, 3)
    assert copy is not None
    kit.close()
    with (kit.directory / "commitlog" / f"{0:020d}").open("r+b") as file:
        file.seek(copy[0] + copy[1] - 2)  # the last property
        file.write(b"\xff")
    kit.open()
    for _ in range(20):
        kit.now += 1000
        kit.work()
    assert kit.store.max_offset("T", 0) >= 99


@pytest.mark.parametrize(
    "wrong", [{"REAL_TOPIC": "../../T"}, {"REAL_TOPIC": "T\0"}, {"REAL_TOPIC": "T" * 300}, {"REAL_QID": "9" * 12}]
)
def test_a_message_that_was_changed_on_disk_has_no_place_and_holds_up_no_other(
    kit: Kit, wrong: dict[str, str]
) -> None:
    kit.send("changed", START + 10_500, **wrong)
    kit.advance(20_000)
    assert sorted(body for body, _ in kit.delivered()) == sorted(map(str, range(99)))


def test_what_was_due_weeks_ago_and_not_filed_comes_when_the_broker_is_back(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.send("first", kit.now + 500)
    kit.advance(2000)
    kit.checkpoint()
    kit.send("late", kit.now + 5000)  # the broker is killed before it has a turn
    kit.now += 40 * DAY
    kit.kill()
    kit.work()
    assert [body for body, _ in kit.delivered()] == ["first", "late"]
    kit.close()


@pytest.mark.parametrize("moment", ["making", "cutting", "removing"])
def test_what_a_kill_leaves_of_a_file_is_sound(kit: Kit, moment: str) -> None:
    """One that was not made yet, one that a start was about to cut, and one that was about to go."""
    kit.close()
    end, directory = kit.timer._log.end, kit.directory / "timerlog"
    last = end - end % 1024
    if moment == "making":
        (directory / f"{last + 1024:020}").write_bytes(b"")
    elif moment == "cutting":
        os.truncate(directory / f"{last:020}", end - last)
    else:
        check = kit.directory / "config" / "timercheck"
        saved = TimerCheck.decode(check.read_bytes())
        assert saved is not None
        check.write_bytes(replace(saved, log_start=1024).encode())
        with (directory / f"{0:020}").open("r+b") as file:
            file.write(bytes(1024))
    assert StoreCheck(config(kit.directory, **kit.settings).store()).run() == []
    kit.open()
    kit.advance(20_000)
    assert sorted(int(body) for body, _ in kit.delivered()) == list(range(99))
