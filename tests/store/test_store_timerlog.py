"""Timer log, timer wheel and timer checkpoint: the bytes that Apache's broker reads and writes."""

import errno
import os
import struct

import pytest

from rocketq.store.files import OsFiles
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerlog import MAGIC_DEFAULT, MAGIC_DELETE, MAGIC_ROLL, TimerLog, Unit
from rocketq.store.timerwheel import SLOTS, Slot, TimerWheel


@pytest.fixture
def make_log(tmp_path):
    logs = []

    def make(size=1024, files=None):
        log = TimerLog(str(tmp_path / "timerlog"), size, files or OsFiles())
        assert log.open()
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def fill(log, count):
    positions = []
    for number in range(count):
        previous = positions[-1] if positions else -1
        positions.append(log.append(previous, MAGIC_DEFAULT, 5000, number, 1000 + number, 100, 7))
    log.write()
    return positions


def test_a_unit_has_the_bytes_of_apache(make_log, tmp_path):
    log = make_log()
    log.append(-1, MAGIC_DEFAULT | MAGIC_ROLL, 1_795_420_095_000, 86_400_000, 4_197_137, 320, -12345)
    log.write()
    raw = (tmp_path / "timerlog" / "00000000000000000000").read_bytes()
    assert len(raw) == 1024
    assert struct.unpack(">iqiqiqiiq", raw[:52]) == (
        52, -1, 3, 1_795_420_095_000, 86_400_000, 4_197_137, 320, -12345, 0,
    )  # fmt: skip
    assert not any(raw[52:])


def test_a_file_without_room_for_a_unit_ends_with_a_filler(make_log, tmp_path):
    log = make_log()
    positions = fill(log, 40)
    assert positions[18:20] == [936, 1024]  # 16 bytes for the filler have to be left
    raw = (tmp_path / "timerlog" / "00000000000000000000").read_bytes()
    assert struct.unpack(">iqi", raw[988:1004]) == (36, 0, struct.unpack(">i", struct.pack(">I", 0xCBD43194))[0])
    assert sorted(os.listdir(tmp_path / "timerlog")) == [f"{start:020d}" for start in (0, 1024, 2048)]
    assert [unit.physical for unit in map(log.unit, positions)] == list(range(1000, 1040))


def test_chains_are_read_backwards_across_files(make_log):
    log = make_log()
    position = fill(log, 100)[-1]
    seen = []
    while position >= 0:
        unit = log.unit(position)
        seen.append(unit.physical)
        position = unit.previous
    assert seen == list(range(1099, 999, -1))


def test_a_scan_finds_all_units_and_ends_where_none_is(make_log):
    log = make_log()
    positions = fill(log, 50)
    log.close()
    again = make_log()
    assert [position for position, _ in again.scan(0)] == positions
    assert [position for position, _ in again.scan(positions[30])] == positions[30:]
    again.cut(positions[20])
    assert [position for position, _ in again.scan(0)] == positions[:20]
    assert again.unit(positions[20]) is None
    assert again.append(positions[19], MAGIC_DELETE, 1, 2, 3, 4, 5) == positions[20]
    again.write()
    assert again.unit(positions[20]) == Unit(positions[19], MAGIC_DELETE, 3, 3, 4)


@pytest.mark.parametrize("end", [0, 936, 1024, 1024 + 52])
def test_a_cut_leaves_whole_files_and_removes_those_behind(make_log, tmp_path, end):
    log = make_log()
    fill(log, 60)
    log.cut(end)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "timerlog").iterdir()}
    assert set(sizes.values()) == {1024}
    assert len(sizes) == max(1, -(-end // 1024))
    assert fill(log, 30)[0] == (1024 if end == 988 else end)


def test_files_whose_records_are_gone_are_removed(make_log, tmp_path):
    log = make_log()
    fill(log, 60)  # 19 a file
    for physical, left in ((1018, 4), (1019, 3), (1500, 1)):
        for path in log.forget_before(physical):
            os.unlink(path)
        assert len(list((tmp_path / "timerlog").iterdir())) == left


def test_a_missing_or_short_file_shows(make_log, tmp_path):
    log = make_log()
    fill(log, 60)
    log.close()
    (tmp_path / "timerlog" / f"{1024:020d}").unlink()
    assert not TimerLog(str(tmp_path / "timerlog"), 1024, OsFiles()).open()


def test_what_could_not_be_written_is_written_by_the_next_call(make_log):
    class Full(OsFiles):
        full = False

        def pwrite(self, fd, data, offset):
            if self.full:
                raise OSError(28, "No space left on device")
            super().pwrite(fd, data, offset)

    files = Full()
    log = make_log(files=files)
    fill(log, 5)
    files.full = True
    position = log.append(-1, 1, 5000, 1, 77, 100, 7)
    with pytest.raises(OSError, match="No space"):
        log.write()
    assert log.unit(position) is None
    files.full = False
    log.write()
    assert log.unit(position).physical == 77


# the wheel


@pytest.fixture
def wheel(tmp_path):
    wheel = TimerWheel(str(tmp_path / "timerwheel"), OsFiles())
    assert not wheel.open()
    yield wheel
    wheel.close()


def save(wheel):
    wheel.begin_save()
    wheel.save()
    wheel.end_save()


def test_the_wheel_has_the_bytes_of_apache(wheel, tmp_path):
    second = 1_795_420_098
    wheel.put(second, Slot(104, 520, 3))
    assert wheel.get(second) == Slot(104, 520, 3)
    save(wheel)
    assert wheel.get(second) == Slot(104, 520, 3)
    with (tmp_path / "timerwheel").open("rb") as file:
        file.seek(second % 1_209_600 * 32)
        assert file.read(32) == struct.pack(">qqqii", second, 104, 520, 3, 0)
    assert (tmp_path / "timerwheel").stat().st_size == 38_707_200


def test_a_slot_of_two_weeks_ago_is_empty(wheel):
    wheel.put(1_000_000, Slot(0, 0, 1))
    save(wheel)
    assert wheel.get(1_000_000 + SLOTS) is None
    assert wheel.next_used(1_000_000 + SLOTS, 1_000_000 + SLOTS + 5) == 1_000_000 + SLOTS + 5


def test_the_first_save_forces_to_disk_what_a_killed_run_wrote(wheel, make_log, monkeypatch):
    """Neither its slots nor its units are written once more."""
    forced = []
    monkeypatch.setattr(OsFiles, "fdatasync", lambda files, fd: forced.append(os.readlink(f"/proc/self/fd/{fd}")))
    other = TimerWheel(wheel.path, OsFiles())
    assert other.open()
    save(other)
    save(other)
    other.close()
    assert forced == [wheel.path]
    log = make_log()
    fill(log, 5)
    log.write()
    assert len(log.take_unsynced()) == 1
    again = make_log()
    assert len(again.take_unsynced()) == 1
    assert again.take_unsynced() == []


def test_slots_that_are_not_saved_are_not_in_the_file(wheel, tmp_path):
    wheel.put(5, Slot(0, 0, 1))
    wheel.begin_save()
    wheel.put(6, Slot(52, 52, 1))
    assert (wheel.get(5), wheel.get(6)) == (Slot(0, 0, 1), Slot(52, 52, 1))
    wheel.save()
    wheel.end_save()
    other = TimerWheel(wheel.path, OsFiles())
    assert other.open()
    assert (other.get(5), other.get(6)) == (Slot(0, 0, 1), None)
    other.close()


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(("start", "used"), [(7, 7), (7, 8), (7, 90_000), (SLOTS - 3, SLOTS + 5), (7, SLOTS + 6)])
def test_the_next_used_slot_is_found(wheel, saved, start, used):
    wheel.put(used, Slot(0, 0, 1))
    if saved:
        save(wheel)
    assert wheel.next_used(start, used + 10) == used
    assert wheel.next_used(start, used) == used
    assert wheel.next_used(used + 1, used + 10) == used + 10


# the checkpoint


def test_the_checkpoint_has_the_bytes_of_apache():
    page = TimerCheck(1_795_420_324_000, 936, 18, 18, 1_795_420_324_683, 203, log_offset=77).encode()
    assert len(page) == 4096
    assert page[:56].hex() == (
        "000001a2076400a000000000000003a8000000000000001200000000000000120000000000000000000001a20764034b"
        "00000000000000cb"
    )
    assert TimerCheck.decode(page).log_offset == 77


def test_a_checkpoint_that_apache_changed_says_so():
    page = bytearray(TimerCheck(1000, 52, 1, 1, log_offset=77).encode())
    page[7] ^= 1
    decoded = TimerCheck.decode(bytes(page))
    assert decoded.log_offset is None
    assert decoded.log_end == 52


@pytest.mark.parametrize("page", [b"", b"x" * 55, bytes(2048), bytes(512) + b"x" * 512])
def test_a_checkpoint_that_is_cut_short_or_was_never_written_is_none(page):
    assert TimerCheck.decode(page) is None


def test_the_next_file_is_there_before_it_is_needed(make_log, tmp_path):
    directory = tmp_path / "timerlog"
    log = make_log()
    log.prepare_next()
    assert not list(directory.iterdir())  # many brokers never need one
    fill(log, 8)
    log.prepare_next()
    assert len(list(directory.iterdir())) == 1
    fill(log, 5)
    log.prepare_next()
    log.prepare_next()
    assert len(list(directory.iterdir())) == 2
    positions = fill(log, 10)
    assert 1024 in positions
    log.prepare_next()
    assert len(list(directory.iterdir())) == 2
    log.close()
    assert len(list(directory.iterdir())) == 2
    log = make_log()
    fill(log, 10)
    log.prepare_next()
    log.close()  # what nobody needed goes
    assert len(list(directory.iterdir())) == 2


class FullDisk(OsFiles):
    """A disk on which a file gets half of its blocks."""

    def allocate(self, fd, size):
        super().allocate(fd, size // 2)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_for_which_there_is_no_room_leaves_nothing_behind(make_log, tmp_path):
    log = make_log()
    fill(log, 15)
    log._files = FullDisk()
    with pytest.raises(OSError, match="No space"):
        log.prepare_next()
    assert len(list((tmp_path / "timerlog").iterdir())) == 1
    log._files = OsFiles()
    log.close()
    assert make_log().covers(15 * 52)


def test_names_that_a_killed_run_may_not_have_forced_to_disk_are_forced(make_log):
    assert not make_log().take_renamed()
    fill(make_log(), 1)
    assert make_log().take_renamed()
