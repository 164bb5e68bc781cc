"""Timers against a model: whatever happens, every message comes once, at its time, unless it was recalled before."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from timer_kit import Kit

from rocketq.broker import timer as timer_module
from rocketq.broker.timed import due_of, out_of


class Timers(RuleBasedStateMachine):
    """The wheel reaches 8 s ahead and the heap holds few: messages are stored anew and slots are read in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(timer_module, "_KEEP", 6)
        self.patch.setattr(timer_module, "_READ_PER_TURN", 3)
        self.patch.setattr(timer_module, "_FIRE_PER_TURN", 4)
        self.patch.setattr(timer_module, "_FILE_PER_TURN", 5)
        self.directory = Path(tempfile.mkdtemp(prefix="rocketq-timers-"))
        self.kit = Kit(self.directory, timer_roll_window_slot=8, message_index_enable=False)
        self.due: dict[str, int] = {}
        self.recalled: set[str] = set()
        self.number = 0

    def teardown(self) -> None:
        self.kit.close()
        self.patch.undo()
        shutil.rmtree(self.directory)

    @rule(ahead=st.integers(-500, 40_000), count=st.integers(1, 4))
    def send(self, ahead: int, count: int) -> None:
        for _ in range(count):
            self.number += 1
            name = f"m{self.number}"
            due = self.kit.now + ahead
            self.kit.send(name, due)
            self.due[name] = due_of({"TIMER_OUT_MS": str(out_of(due))})

    @rule(count=st.integers(5, 20), ahead=st.integers(0, 5000), spread=st.integers(0, 100))
    def send_many_into_one_second(self, count: int, ahead: int, spread: int) -> None:
        for index in range(count):
            self.number += 1
            due = self.kit.now + ahead + index * spread % 1000
            self.kit.send(f"m{self.number}", due)
            self.due[f"m{self.number}"] = due_of({"TIMER_OUT_MS": str(out_of(due))})

    @rule(turns=st.integers(1, 8))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.kit.timer.turn()

    @rule(ms=st.integers(1, 6000))
    def advance(self, ms: int) -> None:
        self.kit.advance(ms)
        self.all_that_is_due_came()

    @rule(ms=st.integers(1, 30_000))
    def jump(self, ms: int) -> None:
        """The process did not get to run for that time."""
        self.kit.now += ms

    @precondition(lambda self: any(due > self.kit.now for due in self.due.values()))
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        pending = [name for name, due in self.due.items() if due > self.kit.now]
        name = data.draw(st.sampled_from(pending))
        self.kit.recall(name, self.due[name])
        self.recalled.add(name)

    @rule()
    def checkpoint(self) -> None:
        self.kit.checkpoint()

    @rule()
    def kill(self) -> None:
        self.kit.kill()

    @rule()
    def restart(self) -> None:
        self.kit.reopen()

    @rule(lost=st.sampled_from(["timerwheel", "config/timercheck", f"timerlog/{0:020d}"]))
    def lose_what_is_derived(self, lost: str) -> None:
        self.kit.close()
        (self.directory / lost).unlink(missing_ok=True)
        self.kit.open()

    @invariant()
    def none_is_early_comes_twice_or_was_recalled(self) -> None:
        came = self.kit.delivered()
        names = [name for name, _ in came]
        assert len(set(names)) == len(names)
        assert self.recalled.isdisjoint(names)
        for name, at in came:
            assert at >= self.due[name]

    def all_that_is_due_came(self) -> None:
        due = {name for name, due in self.due.items() if due <= self.kit.now}
        assert {name for name, _ in self.kit.delivered()} == due - self.recalled


TestTimers = Timers.TestCase
TestTimers.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
