"""Queue locks of orderly groups, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.broker.locks import QueueLocks
from rocketq.message import MessageQueue
from rocketq.store.files import OsFiles

Q0, Q1 = MessageQueue("T", "b", 0), MessageQueue("T", "b", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def new_locks(directory: Path, clock: Clock) -> QueueLocks:
    return QueueLocks(directory / "queueLocks.json", OsFiles(), clock, lifetime=60)


def test_a_queue_belongs_to_whoever_locks_it_first(tmp_path: Path) -> None:
    locks = new_locks(tmp_path, Clock())
    assert locks.lock("g", "a", [Q0]) == [Q0]
    assert locks.lock("g", "b", [Q0, Q1]) == [Q1]
    assert locks.lock("other group", "b", [Q0]) == [Q0]


def test_a_lock_lapses_unless_it_is_renewed(tmp_path: Path) -> None:
    clock = Clock()
    locks = new_locks(tmp_path, clock)
    locks.lock("g", "a", [Q0, Q1])
    clock.now = 50
    assert locks.lock("g", "a", [Q0]) == [Q0]
    clock.now = 61
    assert locks.lock("g", "b", [Q0, Q1]) == [Q1]
    assert locks.group_has_locks("g")


def test_only_the_owner_can_unlock(tmp_path: Path) -> None:
    locks = new_locks(tmp_path, Clock())
    locks.lock("g", "a", [Q0])
    locks.unlock("g", "b", [Q0])
    assert locks.lock("g", "b", [Q0]) == []
    locks.unlock("g", "a", [Q0])
    assert locks.lock("g", "b", [Q0]) == [Q0]


def test_lapsed_locks_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    locks = new_locks(tmp_path, clock)
    locks.lock("g", "a", [Q0])
    clock.now = 61
    assert not locks.group_has_locks("g")
    locks.expire()
    assert locks._groups == {}


def test_a_broker_that_was_killed_still_knows_the_owners(tmp_path: Path) -> None:
    clock = Clock()
    locks = new_locks(tmp_path, clock)
    locks.lock("g", "a", [Q0])
    locks.lock("other", "b", [Q0, Q1])
    asyncio.run(locks.save())
    clock.now = 1000  # renewals are not written: at the start everybody gets a whole life
    again = new_locks(tmp_path, clock)
    again.load()
    assert again.lock("g", "b", [Q0, Q1]) == [Q1]
    assert again.lock("other", "b", [Q0, Q1]) == [Q0, Q1]
    clock.now = 1061
    assert again.lock("g", "b", [Q0]) == [Q0]


def test_a_full_disk_costs_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    locks = new_locks(tmp_path / "file", Clock())
    (tmp_path / "file").write_bytes(b"")  # no directory can be made here
    assert locks.lock("g", "a", [Q0]) == [Q0]
    asyncio.run(locks.save())
    assert "would be forgotten by a restart" in caplog.text
    (tmp_path / "file").unlink()
    asyncio.run(locks.save())  # what could not be written is still due
    assert (tmp_path / "file" / "queueLocks.json").exists()


steps = st.lists(
    st.tuples(
        st.sampled_from(["lock", "unlock", "expire"]),
        st.sampled_from(["a", "b", "c"]),
        st.sets(st.integers(0, 3)),
        st.floats(0, 40),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_no_two_clients_ever_hold_one_queue(actions: list[tuple[str, str, set[int], float]]) -> None:
    clock = Clock()
    locks = new_locks(Path("unused"), clock)
    granted: dict[MessageQueue, tuple[str, float]] = {}
    for action, client, ids, passed in actions:
        clock.now += passed
        queues = [MessageQueue("T", "b", number) for number in sorted(ids)]
        if action == "lock":
            for queue in locks.lock("g", client, queues):
                owner, until = granted.get(queue, (client, 0.0))
                assert owner == client or until <= clock.now
                granted[queue] = (client, clock.now + 60)
        elif action == "unlock":
            locks.unlock("g", client, queues)
            for queue in queues:
                if granted.get(queue, ("", 0.0))[0] == client:
                    del granted[queue]
        else:
            locks.expire()
