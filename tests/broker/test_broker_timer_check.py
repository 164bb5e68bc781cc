"""`StoreCheck` and the files that a timer leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_wire import config
from timer_kit import DAY, START, Kit

from rocketq.store.check import StoreCheck, mend
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
