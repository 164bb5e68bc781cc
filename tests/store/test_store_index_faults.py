"""An index on a disk that fails: whatever fails, however often, its files become those of one that never failed."""

import errno
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.store.files import OsFiles
from rocketq.store.index import Index
from rocketq.store.values import Appended

#: Three pages of slots, and files that are full after a few batches.
SLOTS, CAPACITY = 2500, 40
ENTRIES_AT = 40 + 4 * SLOTS
KINDS = ["entries", "slots", "header", "new file", "size of a new file"]
ALWAYS = 1 << 60


class FailingDisk(OsFiles):
    """From the operation with the number `first` on, so many of a kind fail. `half`: writes get half of it done."""

    def __init__(self, kind=None, first=0, times=0, half=False):
        self.seen = Counter()
        self.failed = 0
        self.opened = set()
        self.fail(kind, first, times, half)

    def fail(self, kind, first=0, times=ALWAYS, half=False):
        self.kind, self.half = kind, half
        self.first = self.seen[kind] + first
        self.last = self.first + times

    def heal(self):
        self.kind = None

    def _do(self, kind):
        number = self.seen[kind]
        self.seen[kind] += 1
        if kind == self.kind and self.first <= number < self.last:
            self.failed += 1
            return True
        return False

    def pwrite(self, fd, data, offset):
        if self._do("header" if offset < 40 else "slots" if offset < ENTRIES_AT else "entries"):
            if self.half:
                super().pwrite(fd, bytes(data)[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(fd, data, offset)

    def open(self, path, *, create=False, write=True, scan=False):
        if create and self._do("new file"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        fd = super().open(path, create=create, write=write, scan=scan)
        self.opened.add(fd)
        return fd

    def close(self, fd):
        self.opened.remove(fd)
        super().close(fd)

    def truncate(self, fd, size):
        if self._do("size of a new file"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().truncate(fd, size)


class Driver:
    """An index, the messages that it was given, and what went wrong."""

    def __init__(self, directory, disk):
        self.disk = disk
        self.directory = directory / "index"
        self.index = self._open()
        self.offsets = []

    def _open(self):
        index = Index(str(self.directory), SLOTS, CAPACITY, self.disk)
        index.open()
        return index

    def add(self, count):
        """Each with an id, one key that it shares with every seventh, and the tag that all have."""
        numbers = range(len(self.offsets), len(self.offsets) + count)
        self.offsets += [100 + 300 * number for number in numbers]
        self.index.add(
            Appended(
                *("T", 0, number, 100 + 300 * number, 300, 1_700_000_000_000 + 400 * number, 0, 0, None),
                *(f"U{number}", f"k{number % 7}", "t"),
            )
            for number in numbers
        )

    def attempt(self, action):
        try:
            action()
        except OSError:
            assert self.disk.failed
            return False
        return True

    def check(self):
        """Every key leads to its messages, newest first."""
        offsets = self.offsets
        every = range(len(offsets))
        wanted = {f"T#U{number}": [offsets[number]] for number in every[::5]}
        wanted |= {f"T#k{key}": offsets[key::7][::-1] for key in range(7)}
        wanted["T#T#t"] = offsets[::-1]
        assert {key: self.index.find(key, 0, 1 << 60, ALWAYS) for key in wanted} == wanted
        assert self.index.find("T#T#t", 0, 1 << 60, 3) == offsets[::-1][:3]

    def finish(self):
        """What is in the files when everything is written; a start finds all of it."""
        self.disk.heal()
        self.index.flush()
        self.check()
        self.index.close()
        assert not self.disk.opened
        self.index = self._open()
        self.check()
        self.index.close()
        return [path.read_bytes() for path in sorted(self.directory.iterdir())]


#: Messages (three entries each) that are collected and entered, or None: everything is written.
PLAN = [3, 5, None, 4, 1, 9, None, None, 2, 30, 1, None, 6, None]


def run(driver):
    for count in PLAN:
        if count is None:
            done = driver.attempt(driver.index.flush)
        else:
            driver.add(count)
            done = driver.attempt(driver.index.build)
        if not done:
            driver.check()
    return driver.finish()


@pytest.fixture(autouse=True)
def few_slots_wait(monkeypatch):
    """Slots are written also before a file is full."""
    monkeypatch.setattr("rocketq.store.index._MAX_HEADS", 12)


@pytest.mark.parametrize(("times", "half"), [(1, False), (1, True), (2, True), (7, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_fails_every_key_is_entered_once(tmp_path, kind, times, half):
    (tmp_path / "sound").mkdir()
    sound = FailingDisk()
    wanted = run(Driver(tmp_path / "sound", sound))
    assert len(wanted) == 5
    assert min(sound.seen[kind] for kind in KINDS) >= 5
    for first in range(sound.seen[kind]):
        (tmp_path / str(first)).mkdir()
        disk = FailingDisk(kind, first, times, half)
        assert run(Driver(tmp_path / str(first), disk)) == wanted, f"{kind} {first} failed {times} times"
        assert disk.failed


counts = st.none() | st.integers(1, 20)
faults = st.tuples(st.none() | st.sampled_from(KINDS), st.integers(0, 3), st.integers(1, 4), st.booleans())


@given(st.lists(st.tuples(counts, faults), max_size=25))
@settings(max_examples=60, deadline=None)
def test_an_index_that_failed_now_and_then_is_one_that_never_did(steps):
    with tempfile.TemporaryDirectory(prefix="rocketq-index-") as directory:
        failing = Driver(Path(directory, "failing"), FailingDisk())
        sound = Driver(Path(directory, "sound"), FailingDisk())
        for count, fault in steps:
            failing.disk.fail(*fault)
            for driver in (failing, sound):
                if count is not None:
                    driver.add(count)
                driver.attempt(driver.index.flush if count is None else driver.index.build)
            failing.check()
        assert not sound.disk.failed
        assert failing.finish() == sound.finish()


def test_a_file_that_cannot_get_its_size_leaves_nothing_behind(tmp_path):
    disk = FailingDisk()
    driver = Driver(tmp_path, disk)
    disk.fail("size of a new file")
    driver.add(3)
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            driver.index.flush()
        driver.check()
    assert os.listdir(driver.directory) == []
    assert not disk.opened
    disk.heal()
    driver.index.flush()
    assert len(driver.finish()) == 1


def test_a_file_is_forced_to_disk_again_when_its_slots_are_written_after_its_last_entry(tmp_path):
    disk = FailingDisk()
    driver = Driver(tmp_path, disk)
    driver.add(13)  # 39 entries: it is full
    driver.index.build()
    (full,) = driver.index.take_changed()[0]
    disk.fail("slots")
    driver.add(1)
    assert not driver.attempt(driver.index.build)
    disk.heal()
    driver.index.build()
    files, directories = driver.index.take_changed()
    assert len(files) == 2
    assert full in files
    assert directories == {str(driver.directory)}
    driver.index.flush()
    assert driver.index.take_changed()[0] == files - {full}
    driver.index.flush()
    assert driver.index.take_changed() == (set(), set())


def test_what_waits_is_found_by_its_time_and_forgotten_by_a_cut(tmp_path):
    disk = FailingDisk()
    driver = Driver(tmp_path, disk)
    disk.fail("entries")
    driver.add(5)
    assert not driver.attempt(driver.index.build)
    middle = 1_700_000_000_000 + 800
    assert driver.index.find("T#T#t", middle, middle, 9) == [driver.offsets[2]]
    disk.heal()
    driver.index.cut(0)
    assert driver.index.find("T#T#t", 0, 1 << 60, 9) == []
