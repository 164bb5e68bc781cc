"""Old files go, at the right time and in the right order, and nothing that anybody needs."""

import errno
import os
import threading
import time

import pytest
from servers import wait_until
from store_kit import bodies, send

from rocketq.errors import ConfigError
from rocketq.store import GetStatus, OsFiles, StoreConfig

HOUR = 3_600_000
#: 12:00 local time, an hour in which nothing is cleaned by itself
NOON = int(time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))) * 1000


class Disk(OsFiles):
    """A disk whose use a test says, and that may refuse to remove files."""

    def __init__(self):
        self.used = 0.5
        self.failing = False
        self.removed = []

    def disk(self, path):
        return self.used, 1 << 40

    def unlink(self, path):
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().unlink(path)
        self.removed.append(path)


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def store(opened, disk, clock):
    return opened(files=disk, clock_ms=clock, clean_resource_interval=0, max_index_num=100)


def fill(store, count=100, topic="T", queue_id=0, label="m"):
    for number in range(count):
        send(store, topic, queue_id, f"{label}-{number}".encode().ljust(1000), keys=f"k{number}")


def checkpoint(store):
    """Have everything on disk, and a checkpoint that says so."""
    end = store.readable
    store._saved_at = float("-inf")

    def saved():
        store.maintain()
        return store._saved_offset == end and store._safe == store._saved_last

    wait_until(saved, what="a checkpoint")


def settle(store):
    """Let retention do what it wants to do."""
    for _ in range(30):
        store.maintain()
        if store.retention._removing is not None:
            store.retention._removing.result()
    for thread in (store._helper, store._maker):
        thread.submit(lambda: None).result()


def test_two_that_remove_files_wait_for_each_other(store, clock, monkeypatch):
    """The helper's thread is in the middle of it when the owner removes what is left."""
    fill(store)
    checkpoint(store)
    clock.now += 100 * HOUR
    removed, owners_turn, owner = [], threading.Event(), threading.current_thread()

    def unlink(path):
        if threading.current_thread() is owner:
            owners_turn.set()
        elif not removed:
            owners_turn.wait(0.3)
        removed.append(path)
        os.unlink(path)

    monkeypatch.setattr(store.files, "unlink", unlink)
    store.retention.request()
    store.maintain()
    store.retention.finish()
    store._maker.submit(lambda: None).result()  # it may be about to make the next one
    assert len(removed) == len(set(removed)) > 1
    assert names(store) == [f"{start:020d}" for start in starts(store)]
    assert store.retention._removing is None


def names(store):
    """The files of the log, without the one that is made ahead of need."""
    ahead = store.log._prepared
    return sorted(set(os.listdir(store.log.directory)) - ({os.path.basename(ahead.path)} if ahead else set()))


def starts(store):
    return [file.start for file in store.log.files]


def test_nothing_goes_while_it_is_young_and_the_disk_is_empty(store):
    fill(store)
    checkpoint(store)
    before = starts(store)
    settle(store)
    store.retention.request()
    settle(store)
    assert starts(store) == before
    assert len(before) > 5


def test_expired_files_go_in_the_hour_that_is_set(store, clock):
    fill(store)
    checkpoint(store)
    clock.now += 73 * HOUR  # 13:00
    settle(store)
    assert store.min_physical_offset == 0
    clock.now += 15 * HOUR  # 04:00
    settle(store)
    assert len(starts(store)) == 1
    assert names(store) == [f"{start:020d}" for start in starts(store)]


def test_only_what_is_expired_goes(store, clock):
    fill(store, 50, label="old")
    kept_from = store.written_offset
    clock.now += 50 * HOUR
    fill(store, 50, label="new")
    checkpoint(store)
    clock.now += 23 * HOUR
    store.retention.request()
    settle(store)
    first, second = store.log.files[:2]
    assert 0 < first.start <= kept_from < second.start
    assert bodies(store, offset=store.min_offset("T", 0))[-50:] == [
        f"new-{number}".encode().ljust(1000) for number in range(50)
    ]


def test_a_request_works_at_any_hour_and_not_for_ever(store, clock):
    fill(store)
    checkpoint(store)
    clock.now += 80 * HOUR  # 20:00
    store.retention.request()
    settle(store)
    assert len(starts(store)) == 1
    fill(store)
    checkpoint(store)
    clock.now += 72 * HOUR
    settle(store)
    assert len(starts(store)) > 1


@pytest.mark.parametrize(
    ("used", "age", "settings", "goes"),
    [
        (0.70, 80, {}, False),
        (0.76, 80, {}, True),
        (0.76, 70, {}, False),
        (0.86, 1, {}, True),
        (0.86, 1, {"clean_file_forcibly_enable": False}, False),
        (0.86, 80, {"clean_file_forcibly_enable": False}, True),
        (0.96, 0, {}, True),
        (0.61, 80, {"disk_max_used_space_ratio": 60}, True),
        (0.61, 1, {"disk_space_clean_forcibly_ratio": 60}, True),
    ],
)
def test_how_full_the_disk_is_decides(opened, disk, clock, used, age, settings, goes):
    store = opened(files=disk, clock_ms=clock, clean_resource_interval=0, **settings)
    fill(store)
    checkpoint(store)
    clock.now += age * HOUR
    disk.used = used
    settle(store)
    assert (store.min_physical_offset > 0) == goes
    assert store.log.end > store.readable  # the file that is written to stays


def test_a_store_that_was_too_full_is_writable_again_when_files_went(store, disk):
    fill(store)
    checkpoint(store)
    disk.used = 0.95
    files = len(starts(store))
    store.maintain()
    assert not store.writable
    assert bodies(store, offset=store.min_offset("T", 0))
    settle(store)
    assert len(starts(store)) < files
    disk.used = 0.5
    store.maintain()
    assert store.writable
    send(store, body=b"again")
    assert bodies(store, offset=store.min_offset("T", 0))[-1] == b"again"


def test_what_is_not_behind_a_saved_checkpoint_stays(opened, disk, clock):
    disk.used = 0.95
    store = opened(files=disk, clock_ms=clock, clean_resource_interval=0)
    disk.used = 0.5
    store.maintain()
    fill(store)
    disk.used = 0.88
    store._saved_at = float("inf")  # no checkpoint for now
    settle(store)
    assert store.min_physical_offset == 0
    store._saved_at = float("-inf")
    wait_until(lambda: (settle(store), store.min_physical_offset)[1] > 0, what="old files are gone")


def test_consume_queues_and_index_follow_the_log(store, disk, clock):
    fill(store, 100, queue_id=0)
    fill(store, 30, queue_id=1)
    checkpoint(store)
    queue_files = os.path.join(store.config.store_path_root_dir, "consumequeue/T/0")
    index_files = os.path.join(store.config.store_path_root_dir, "index")
    before = len(os.listdir(queue_files)), len(os.listdir(index_files))
    clock.now += 80 * HOUR
    store.retention.request()
    settle(store)
    assert store.min_physical_offset > 0
    # 20 entries a file: those of queue 0 are all gone, and its last file says where it goes on
    assert len(os.listdir(queue_files)) == 1 < before[0]
    assert len(os.listdir(index_files)) < before[1]
    assert store.min_offset("T", 0) == store.max_offset("T", 0) == 100
    assert store.read("T", 0, 0, 32).status is GetStatus.OFFSET_TOO_SMALL
    low = store.min_offset("T", 1)
    assert 0 < low < 30
    assert bodies(store, queue_id=1, offset=low) == [
        f"m-{number}".encode().ljust(1000) for number in range(low, 30)
    ]
    assert store.query("T", "k29", begin=0, end=1 << 62, max_count=10).buffers
    send(store, body=b"next")
    assert store.max_offset("T", 0) == 101
    assert bodies(store, offset=100) == [b"next"]


@pytest.mark.parametrize("crash", [False, True])
def test_a_cleaned_store_opens_as_it_was(opened, disk, clock, crash):
    store = opened(files=disk, clock_ms=clock, clean_resource_interval=0, max_index_num=100)
    fill(store, 100, queue_id=0)
    fill(store, 30, queue_id=1)
    checkpoint(store)
    clock.now += 80 * HOUR
    store.retention.request()
    settle(store)
    edges = [(store.min_offset("T", queue), store.max_offset("T", queue)) for queue in (0, 1)]
    begins = store.min_physical_offset
    assert begins > 0
    if crash:
        opened.crash(store)
    else:
        store.close()
    again = opened(clock_ms=clock)
    assert again.min_physical_offset == begins
    assert [(again.min_offset("T", queue), again.max_offset("T", queue)) for queue in (0, 1)] == edges
    assert len(bodies(again, queue_id=1, offset=edges[1][0])) == edges[1][1] - edges[1][0]


def test_a_reader_keeps_what_it_holds(store, clock):
    fill(store)
    checkpoint(store)
    held = store.read("T", 0, 0, 4).buffers[0]
    before = bytes(held)
    clock.now += 80 * HOUR
    store.retention.request()
    settle(store)
    assert store.min_physical_offset > 0
    assert bytes(held) == before


def test_a_file_that_cannot_be_removed_is_tried_again_and_leaves_no_hole(opened, disk, clock, caplog):
    store = opened(files=disk, clock_ms=clock, clean_resource_interval=0)
    fill(store)
    checkpoint(store)
    clock.now += 80 * HOUR
    disk.failing = True
    store.retention.request()
    settle(store)
    assert "cannot be removed" in caplog.text
    assert len(names(store)) > 5
    disk.failing = False
    settle(store)
    assert names(store) == [f"{start:020d}" for start in starts(store)]
    assert [path for path in disk.removed if "commitlog" in path] == sorted(
        path for path in disk.removed if "commitlog" in path
    )


def test_what_was_decided_is_done_before_the_store_closes(opened, disk, clock):
    store = opened(files=disk, clock_ms=clock, clean_resource_interval=0)
    fill(store)
    checkpoint(store)
    clock.now += 80 * HOUR
    store.retention.request()
    store.maintain()
    kept = starts(store)
    assert kept[0] > 0
    store.close()
    assert names(store) == [f"{start:020d}" for start in kept]


@pytest.mark.parametrize(("text", "hours"), [("04", [4]), ("4;16", [4, 16]), ("", []), ("00; 23;", [0, 23])])
def test_hours_of_deletion(text, hours, tmp_path):
    assert StoreConfig(store_path_root_dir=str(tmp_path), delete_when=text).delete_hours() == hours


@pytest.mark.parametrize("text", ["24", "four", "-1", "4,5"])
def test_hours_that_cannot_be_are_refused(text, tmp_path):
    with pytest.raises(ConfigError, match="deleteWhen"):
        StoreConfig(store_path_root_dir=str(tmp_path), delete_when=text)
