"""Timer messages: when they come, how often, and what becomes of them over restarts. The clock is the test's."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from timer_kit import DAY, HOUR, START, Kit

from rocketq import properties as props
from rocketq.broker import timer as timer_module
from rocketq.broker.timed import due_of, out_of, second_of
from rocketq.errors import StoreFull
from rocketq.names import TIMER_TOPIC
from rocketq.record import decode_record
from rocketq.store.files import OsFiles
from rocketq.store.store import MessageStore
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerlog import UNIT_SIZE


@pytest.fixture
def kit(tmp_path: Path) -> Any:
    kit = Kit(tmp_path)
    yield kit
    kit.close()


def test_messages_come_to_the_millisecond_in_the_order_of_their_times(kit: Kit) -> None:
    dues = [START + 5000, START + 1999, START + 2001, START + 2000, START + 300, START + 60_000]
    for due in dues:
        kit.send(str(due), due)
    kit.advance(61_000)
    came = kit.delivered()
    assert [body for body, _ in came] == [str(due) for due in sorted(dues)]
    # TIMER_OUT_MS cannot say the first ms of a second exactly
    assert [at - int(body) for body, at in came] == [1 if due % 1000 == 1 else 0 for due in sorted(dues)]


@pytest.mark.parametrize("due", range(START + 998, START + 1003))
def test_a_time_is_kept_as_the_last_ms_before_it_in_the_second_that_apache_uses(due: int) -> None:
    out = out_of(due)
    assert due_of({"TIMER_OUT_MS": str(out)}) in (due, due + 1)
    # Apache delivers when the second is over
    assert out // 1000 == second_of(due)
    assert (out // 1000 + 1) * 1000 >= due


@pytest.mark.parametrize(
    ("properties", "due"),
    [
        ({"TIMER_OUT_MS": "7000"}, 8000),
        ({"TIMER_OUT_MS": "7000", "TIMER_DELIVER_MS": "7300"}, 7300),
        ({"TIMER_OUT_MS": "7000", "TIMER_DELIVER_MS": "8000"}, 8000),
        ({"TIMER_OUT_MS": "7000", "TIMER_DELIVER_MS": "9000"}, 8000),
        ({"TIMER_OUT_MS": "7000", "TIMER_DELIVER_MS": "x"}, 8000),
    ],
)
def test_what_apache_rounded_down_is_never_early(properties: dict[str, str], due: int) -> None:
    assert due_of(properties) == due


def test_messages_of_apache_come_at_their_time(kit: Kit) -> None:
    kit.send("rounded", START + 3000, TIMER_OUT_MS=str(START + 2000))
    kit.send("exact", START + 2400, TIMER_OUT_MS=str(START + 2000), TIMER_DELIVER_MS=str(START + 2400))
    kit.advance(10_000)
    assert kit.delivered() == [("exact", START + 2400), ("rounded", START + 3000)]


def test_only_what_is_due_soon_is_in_memory(kit: Kit) -> None:
    for number in range(2000):
        kit.send(str(number), START + 60_000 + 10 * number)
    kit.work()
    assert kit.timer.in_memory == 0
    assert kit.timer.counts.pending == 2000
    kit.advance(65_000)
    assert 0 < kit.timer.in_memory < 500
    assert len(kit.advance(20_000)) + len(kit.delivered()) >= 2000
    assert len(kit.delivered()) == 2000
    assert kit.timer.counts.pending == 0


def test_a_slot_with_more_messages_than_fit_is_read_in_parts(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer_module, "_KEEP", 50)
    monkeypatch.setattr(timer_module, "_READ_PER_TURN", 7)
    dues = [START + 60_000 + number * 379 % 1000 for number in range(500)]
    for number, due in enumerate(dues):
        kit.send(f"{due}-{number:03d}", due)
    most = 0
    came: list[str] = []
    for _ in range(70):
        came += kit.advance(1000)
        most = max(most, kit.timer.in_memory)
    assert most <= 100
    assert len(came) == 500
    assert [body[:13] for body in came] == sorted([body[:13] for body in came])
    assert [at - int(body[:13]) for body, at in kit.delivered()] == [int(int(b[:13]) % 1000 == 1) for b in came]


def test_what_comes_into_a_slot_that_is_being_read_is_not_missed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer_module, "_KEEP", 20)
    monkeypatch.setattr(timer_module, "_READ_PER_TURN", 5)
    for number in range(200):
        kit.send(f"a{number}", START + 10_000 + number)
    kit.now = START + 8000
    for number in range(400):
        kit.timer.turn()
        if number % 3 == 0:
            kit.send(f"b{number}", START + 10_000 + number)
    kit.advance(3000)
    assert len(kit.delivered()) == 200 + 134
    assert len(set(kit.delivered())) == 334


def test_what_is_late_comes_at_once(kit: Kit) -> None:
    kit.advance(5000)
    kit.send("late", START + 1000)
    kit.work()
    assert kit.delivered() == [("late", kit.now)]


@pytest.mark.parametrize("days", [3, 30])
def test_what_is_due_beyond_the_wheel_is_stored_anew_until_then(kit: Kit, days: int) -> None:
    due = kit.now + days * DAY
    kit.send("far", due)
    kit.work()
    while kit.now < due - HOUR:  # hours at once: nothing else happens
        kit.now += HOUR
        kit.work()
    assert kit.delivered() == []
    assert kit.store.max_offset(TIMER_TOPIC, 0) >= days / 2
    kit.advance(HOUR)
    assert kit.delivered() == [("far", due)]
    entry = kit.store.consume_entry("T", 0, 0)
    assert entry is not None
    text = decode_record(kit.store.record_at(entry[0])).properties
    assert f"{props.TIMER_ROLL_TIMES}\x01{kit.store.max_offset(TIMER_TOPIC, 0) - 1}\x02" in text


def test_the_window_stays_below_what_is_kept_of_the_log(tmp_path: Path) -> None:
    kit = Kit(tmp_path, file_reserved_time=3)
    assert kit.timer.window == 2 * HOUR
    kit.close()


def test_a_broker_that_was_away_for_weeks_delivers_what_was_due_meanwhile(kit: Kit) -> None:
    kit.send("a", START + 10_000)
    kit.send("b", START + DAY)
    kit.work()
    kit.close()
    kit.now += 40 * DAY
    kit.open()
    kit.send("new", kit.now + DAY)
    kit.work()
    assert [body for body, _ in kit.delivered()] == ["a", "b"]
    assert kit.advance(DAY) == ["new"]


def test_a_record_that_is_no_timer_message_is_stepped_over_with_a_warning(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    kit.append("stray", {"UNIQ_KEY": "stray"})
    kit.append("bad", {"TIMER_OUT_MS": "soon", "REAL_TOPIC": "T", "REAL_QID": "0"})
    kit.append("no queue", {"TIMER_OUT_MS": "1", "REAL_TOPIC": "T"})
    kit.send("good", START + 1000)
    with caplog.at_level(logging.WARNING):
        assert kit.advance(2000) == ["good"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3
    assert "message 0 of rmq_sys_wheel_timer (CommitLog offset 0)" in warnings[0]


# recalling


def test_a_recalled_message_never_comes(kit: Kit) -> None:
    kit.send("keep", START + 5000)
    kit.send("gone", START + 5000)
    kit.send("later", START + 5001)
    kit.work()
    kit.recall("gone", START + 5000)
    assert kit.advance(10_000) == ["keep", "later"]
    assert kit.timer.counts.pending == 0


def test_a_recall_counts_in_the_last_moment(kit: Kit) -> None:
    kit.send("gone", START + 5000)
    kit.advance(4749)  # 1 ms before
    kit.recall("gone", START + 5000)
    assert kit.advance(5000) == []


def test_a_recall_outlives_the_process(kit: Kit) -> None:
    kit.send("gone", START + 5000)
    kit.recall("gone", START + 5000)
    kit.work()
    kit.checkpoint()
    kit.kill()
    assert kit.advance(10_000) == []


def test_a_recall_that_was_stored_before_a_crash_counts_after_it_although_both_are_overdue(kit: Kit) -> None:
    kit.send("gone", START + 5000)
    for number in range(1500):
        kit.send(str(number), START + 5000)
    kit.recall("gone", START + 5000)
    kit.kill()
    kit.now = START + 9000
    kit.work()
    assert "gone" not in [body for body, _ in kit.delivered()]
    assert len(kit.delivered()) == 1500


def test_recalls_of_53_name_the_topic_too(kit: Kit) -> None:
    kit.send("gone", START + 5000)
    kit.send("gone", START + 5000, TIMER_DEL_UNIQKEY="T+gone")
    assert kit.advance(9000) == []


def test_a_message_due_in_a_month_can_be_recalled(kit: Kit) -> None:
    due = kit.now + 30 * DAY
    kit.send("far", due)
    kit.work()
    kit.now += 5 * DAY
    kit.work()
    kit.recall("far", due)
    while kit.now < due + HOUR:
        kit.now += HOUR
        kit.work()
    assert kit.delivered() == []


# restarts


@pytest.mark.parametrize("again", [Kit.kill, Kit.reopen])
@pytest.mark.parametrize("saved", [True, False])
def test_nothing_is_lost_or_comes_twice_over_a_restart_within_a_second(kit: Kit, again: Any, saved: bool) -> None:
    dues = [START + 2000 + number for number in range(0, 900, 3)]
    for due in dues:
        kit.send(str(due), due)
    kit.advance(2000)
    if saved:
        kit.checkpoint()
    kit.advance(300)
    assert 0 < len(kit.delivered()) < 300
    again(kit)
    kit.now += 50
    kit.advance(5000)
    assert [body for body, _ in kit.delivered()] == [str(due) for due in dues]


@pytest.mark.parametrize("lost", ["timerwheel", "timerlog/00000000000000000000", "config/timercheck"])
def test_timer_log_and_wheel_are_made_again_from_the_commit_log(kit: Kit, lost: str) -> None:
    far = kit.now + 3 * DAY
    kit.send("far", far)
    for number in range(100):
        kit.send(str(number), START + 5000 + number * 100)
    kit.recall("90", START + 14_000)
    kit.advance(2 * DAY)
    assert len(kit.delivered()) == 99
    kit.close()
    (kit.directory / lost).unlink()
    kit.open()
    kit.work()
    assert len(kit.delivered()) == 99
    assert kit.advance(DAY) == ["far"]


def test_nothing_comes_twice_when_the_clock_is_set_back_into_the_second_before(kit: Kit) -> None:
    kit.send("once", START + 900)
    assert kit.advance(1000) == ["once"]
    kit.checkpoint()  # all that is due before START + 1000 was delivered
    kit.now = START + 800
    kit.kill()
    assert kit.advance(3000) == []
    kit.send("later", kit.now + 100)
    assert kit.advance(1000) == ["later"]


def test_nothing_comes_twice_when_the_clock_is_set_back_before_a_crash(kit: Kit) -> None:
    kit.send("a", START + 1500)
    kit.send("b", START + 3000)
    kit.work()
    kit.checkpoint()
    kit.advance(4000)
    kit.now -= 3500
    kit.kill()
    kit.advance(10_000)
    assert [body for body, _ in kit.delivered()] == ["a", "b"]


def test_nothing_comes_twice_when_a_second_crash_follows_before_the_clock_has_caught_up(kit: Kit) -> None:
    kit.send("a", START + 12_000)
    kit.work()
    kit.checkpoint()
    kit.now += 12_500
    kit.work()
    kit.now = START + 5000
    kit.kill()
    kit.send("b", kit.now + 1000)
    kit.advance(4000)
    kit.checkpoint()
    kit.kill()
    kit.advance(10_000)
    assert [body for body, _ in kit.delivered()] == ["a", "b"]


@pytest.mark.parametrize("saved", [True, False])
def test_what_came_while_the_clock_was_behind_does_not_come_again_after_a_crash(kit: Kit, saved: bool) -> None:
    kit.send("first", START + 8000)
    kit.advance(8000)
    kit.checkpoint()
    kit.now -= 14_000
    kit.send("late", kit.now + 500)  # before what was gone through: it stands in the wheel behind that
    assert kit.advance(600) == ["late"]
    if saved:
        kit.checkpoint()
    kit.now = START + 5000
    kit.kill()
    assert kit.advance(6000) == []


@pytest.mark.parametrize("left", [0, 2048, 4096])
def test_a_checkpoint_whose_first_sector_the_disk_lost_is_not_believed(kit: Kit, left: int) -> None:
    """A power failure may leave its later sectors only: it begins with zeros then, and ends where they end."""
    kit.send("far", START + 3 * DAY)
    kit.send("soon", START + 5000)
    kit.advance(6000)
    kit.checkpoint()
    (kit.directory / "config" / "timercheck").write_bytes(bytes(left))
    kit.now += 4 * DAY
    kit.kill()
    assert kit.advance(5000) == ["far"]


def test_units_behind_the_checkpoint_are_found_again_without_going_through_the_topic(kit: Kit) -> None:
    kit.send("a", START + 100_000)
    kit.work()
    kit.checkpoint()
    for number in range(60):  # three files of the log
        kit.send(str(number), START + 100_000)
    kit.work()
    kit.kill()
    assert kit.timer._next == 61
    assert kit.timer.counts.pending == 61
    assert len(kit.advance(101_000)) == 61


@pytest.mark.parametrize("moment", ["making", "preparing", "cutting"])
def test_a_kill_while_a_file_of_the_log_has_not_its_size_costs_no_walk_through_the_topic(
    kit: Kit, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    count = 19 if moment == "making" else 5  # a file has room for 19
    for number in range(count):
        kit.send(str(number), START + 100_000)
    kit.work()
    kit.checkpoint()
    directory = kit.directory / "timerlog"
    if moment == "cutting":
        os.truncate(directory / f"{0:020}", kit.timer._log.end)
    else:
        (directory / f"{1024:020}").write_bytes(b"")
    kit.kill()
    assert "are gone through" not in caplog.text
    kit.send("more", START + 100_000)
    assert len(kit.advance(101_000)) == count + 1
    assert {path.stat().st_size for path in directory.iterdir()} == {1024}


@pytest.mark.parametrize("units", [0, 4])
def test_a_file_of_the_log_that_lost_units_is_not_believed(
    kit: Kit, caplog: pytest.LogCaptureFixture, units: int
) -> None:
    for number in range(5):
        kit.send(str(number), START + 100_000)
    kit.work()
    kit.checkpoint()
    os.truncate(kit.directory / "timerlog" / f"{0:020}", units * UNIT_SIZE)
    kit.kill()
    assert "all 5 timer messages are gone through" in caplog.text
    assert len(kit.advance(101_000)) == 5


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_kill_while_old_files_of_the_log_go_costs_no_walk_through_the_topic(
    kit: Kit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    for number in range(60):
        kit.send(str(number), START + (1000 if number < 50 else 100_000))
    kit.advance(2000)
    files, first_left = kit.timer._files, kit.store.consume_entry(TIMER_TOPIC, 0, 45)
    assert first_left is not None
    unlink, gone = OsFiles.unlink, []

    def remove(files: OsFiles, path: str) -> None:
        if "timerlog" in path and len(gone) == removed:
            raise OSError(errno.EIO, "killed", path)
        gone.append(path)
        unlink(files, path)

    with monkeypatch.context() as patch:
        patch.setattr(OsFiles, "unlink", remove)
        patch.setattr(MessageStore, "min_physical_offset", first_left[0])
        kit.checkpoint()
    assert len(gone) == removed
    assert files.check.log_start == 2048
    kit.kill()
    assert "are gone through" not in caplog.text
    assert sorted(path.name for path in (kit.directory / "timerlog").iterdir()) == [
        f"{at:020}" for at in (2048, 3072)
    ]
    assert len(kit.advance(100_000)) == 10


def test_files_of_the_timer_log_go_with_the_commit_log(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        kit.send(str(number), START + 1000)
    kit.advance(2000)
    log = kit.directory / "timerlog"
    assert len(list(log.iterdir())) == 6
    log_offset = kit.store.consume_entry(TIMER_TOPIC, 0, 50)
    assert log_offset is not None
    kit.timer._files.forget_before(log_offset[0])
    kit.timer._files.remove_forgotten()
    assert sorted(path.name for path in log.iterdir())[0] == f"{2048:020d}"
    kit.reopen()
    kit.send("new", kit.now + 1000)
    assert kit.advance(2000) == ["new"]


def test_a_full_disk_delays_and_loses_nothing(kit: Kit) -> None:
    for number in range(10):
        kit.send(str(number), START + 1000)
    kit.work()
    kit.now += 5000
    kit.store.writable = False
    with pytest.raises(StoreFull):
        kit.work()
    kit.store.writable = True
    kit.work()
    assert [body for body, _ in kit.delivered()] == [str(number) for number in range(10)]
    assert kit.timer.counts.pending == 0


def test_what_waits_for_a_topic_that_is_being_deleted_goes_with_it_and_holds_up_no_other(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    kit.send("old", START + 1000, REAL_TOPIC="Bad")
    kit.advance(2000)
    removed = kit.store.forget_topic("Bad")
    assert removed is not None
    for number in range(3):
        kit.send(f"gone{number}", START + 4000, REAL_TOPIC="Bad")
        kit.send(f"good{number}", START + 4000)
    assert kit.advance(3000) == ["good0", "good1", "good2"]
    assert "timer: 3 messages go with topic Bad, it is being deleted" in caplog.text
    assert kit.timer.counts.pending == 0
    removed.result()
    kit.store.topic_gone("Bad")
    kit.send("new", kit.now + 1000, REAL_TOPIC="Bad")
    kit.advance(2000)
    assert kit.store.max_offset("Bad", 0) == 1


def test_a_message_that_does_not_fit_into_a_file_any_more_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under its real topic, whose name is longer, it takes more room than while it waits."""
    kit, name = Kit(tmp_path, mapped_file_size_commit_log=4096), "T" * 120
    kit.send("x" * 1800, START + 1000, REAL_TOPIC=name, UNIQ_KEY="big", more="y" * 1850)
    kit.send("good", START + 1000)
    assert kit.advance(2000) == ["good"]
    assert f"is lost: a message to {name} takes" in caplog.text
    kit.close()


def test_a_clean_stop_leaves_nothing_in_the_wheel_that_was_delivered(kit: Kit) -> None:
    """Apache's broker, which may come next, knows no other sign of it."""
    dues = [START + 2000 + number for number in range(1, 900, 3)]
    for due in dues:
        kit.send(str(due), due)
    kit.recall(str(dues[-1]), dues[-1])
    kit.advance(2050)
    left = len(dues) - len(kit.delivered())
    assert 0 < left < len(dues)
    kit.close()
    check = TimerCheck.decode((kit.directory / "config" / "timercheck").read_bytes())
    assert check is not None
    assert check.read_time == START + 2000
    kit.open()
    slot = kit.timer._wheel.get(START // 1000 + 2)
    assert slot is not None
    found, position = 0, slot.last
    while position >= 0:
        unit = kit.timer._log.unit(position)
        assert unit is not None
        found, position = found + 1, unit.previous
    assert found == left + 1
    kit.advance(5000)
    assert [body for body, _ in kit.delivered()] == [str(due) for due in dues[:-1]]


def test_a_second_that_is_done_is_left_behind_by_a_clean_stop(kit: Kit) -> None:
    kit.send("a", START + 1200)
    kit.advance(1300)
    kit.close()
    check = TimerCheck.decode((kit.directory / "config" / "timercheck").read_bytes())
    assert check is not None
    assert check.read_time == START + 2000
    kit.open()
    kit.send("b", kit.now + 100)
    assert kit.advance(100) == ["b"]


def test_a_disk_without_room_for_the_next_file_of_the_log_costs_no_checkpoint(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(15):  # more than half a file
        kit.send(str(number), START + 100_000)
    kit.work()
    monkeypatch.setattr(kit.timer._log._files, "allocate", full)
    for count in (15, 16):
        kit.checkpoint()
        assert kit.timer._files.check.queue_offset == count
        kit.send("more", START + 100_000)
        kit.work()
    assert caplog.text.count("cannot be made yet") == 1
