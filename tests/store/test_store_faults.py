"""Disks that are full or broken, directories that are in use, and what is promised about the order of things."""

import errno
import os
import re
import struct
import subprocess
import sys
import threading

import pytest
from servers import wait_until
from store_kit import HOST, SMALL, Opener, bodies, delete_topic, send

from rocketq.errors import ConfigError, StoreError, StoreFull, StoreLocked
from rocketq.store import MessageStore, OsFiles, StoreConfig


class BadDisk(OsFiles):
    """A disk on which operations fail as long as they are named in `failing`; records what it is asked to do."""

    def __init__(self):
        self.failing = {}
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.free = 1 << 40

    def _do(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name in self.failing:
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

    def pwritev(self, fd, buffers, offset):
        if "half" in self.failing:  # some of it gets there
            data = b"".join(buffers)
            super().pwrite(fd, data[: len(data) // 2], offset)
        self._do("pwritev", fd, offset, sum(map(len, buffers)))
        super().pwritev(fd, buffers, offset)

    def pwrite(self, fd, data, offset):
        self._do("pwrite", fd, offset, len(data))
        super().pwrite(fd, data, offset)

    def allocate(self, fd, size):
        self._do("allocate", fd, size)
        super().allocate(fd, size)

    def fdatasync(self, fd):
        self.gate.wait(20)
        self._do("fdatasync", fd)
        super().fdatasync(fd)

    def fsync_dir(self, path):
        self._do("fsync_dir", path)
        super().fsync_dir(path)

    def disk(self, path):
        return 0.5, self.free


@pytest.fixture
def disk():
    return BadDisk()


def test_a_full_disk_takes_the_batch_back_and_reads_go_on(opened, disk):
    store = opened(files=disk)
    send(store, body=b"before")
    end = store.written_offset
    disk.failing = {"half": 1, "pwritev": errno.ENOSPC}
    disk.free = 0
    for n in range(5):
        send(store, body=b"lost" * n, queue_id=n % 2, write=False)
    with pytest.raises(StoreFull, match="No space left"):
        store.write()
    assert store.written_offset == end
    assert (store.max_offset("T", 0), store.max_offset("T", 1)) == (1, 0)
    assert bodies(store) == [b"before"]
    assert not store.writable
    assert "free" in store.why_not_writable
    with pytest.raises(StoreFull, match="No space left"):
        send(store)
    disk.failing = {}
    store.maintain()
    assert not store.writable
    disk.free = 1 << 40
    store.maintain()
    assert store.writable
    assert send(store, body=b"after").queue_offset == 1
    opened.crash(store)
    assert bodies(opened()) == [b"before", b"after"]


def test_a_disk_that_is_full_when_a_file_is_needed_takes_the_batch_back(opened, disk):
    store = opened(files=disk)
    for _ in range(10):
        send(store, body=b"x" * 1000)
    end, rest = store.written_offset, store.log.end - store.written_offset
    if store._preparing is not None:
        store._preparing.result()
    store.log.drop_prepared()
    disk.failing = {"allocate": errno.ENOSPC}
    disk.free = 0
    while rest > 0:  # a batch for two files, the second of which cannot be made
        rest -= send(store, body=b"y" * 1000, write=False).size
    with pytest.raises(StoreError):
        store.write()
    assert store.written_offset == end
    assert bodies(store) == [b"x" * 1000] * 10
    assert not store.writable


def test_a_small_real_disk_fills_up_and_is_used_again(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", mount], check=False).returncode
    ):
        pytest.skip("mounting needs root")
    try:
        opener = Opener(mount / "store")
        limits = {"disk_space_warning_level_ratio": 100, "disk_max_used_space_ratio": 99, "max_index_num": 1000}
        store = opener(**limits)
        sent = []

        def fill():
            for n in range(1000):
                send(store, body=b"%d" % n * 100, keys=f"k{n}", queue_id=n % 3)
                sent.append(b"%d" % n * 100)

        with pytest.raises(StoreFull, match=re.escape(str(mount))):
            fill()
        assert len(sent) > 50
        for queue_id in range(3):
            assert bodies(store, queue_id=queue_id) == sent[queue_id::3]
        store.maintain()
        assert not store.writable
        subprocess.run(["mount", "-o", "remount,size=20m", mount], check=True)
        store.maintain()
        assert store.writable
        send(store, body=b"again", queue_id=0)
        opener.crash(store)
        store = opener(**limits)
        assert bodies(store, queue_id=0) == [*sent[::3], b"again"]
        opener.close()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def test_a_disk_past_its_mark_is_not_written_to(opened, disk):
    store = opened(files=disk, disk_space_warning_level_ratio=60)
    assert store.writable
    disk.disk = lambda path: (0.61, 1 << 30)
    store.maintain()
    with pytest.raises(StoreFull, match=r"61\.0% full, diskSpaceWarningLevelRatio=60"):
        send(store)
    disk.disk = lambda path: (0.59, 1 << 30)
    store.maintain()
    send(store)


def test_index_and_queue_files_that_cannot_be_written_stop_writes_but_lose_nothing(opened, disk):
    store = opened(files=disk)
    sent = [b"%d" % n for n in range(20)]
    for body in sent:
        send(store, body=body, keys="k")
    disk.failing = {"pwrite": errno.ENOSPC}
    disk.free = 0
    store.maintain()
    assert not store.writable
    assert bodies(store) == sent
    assert under_key(store) == 20
    disk.failing, disk.free = {}, 1 << 40
    store.maintain()
    assert store.writable
    assert under_key(store) == 20
    store.close()
    store = opened()
    assert bodies(store) == sent
    assert under_key(store) == 20


def under_key(store):
    return len(store.query("T", "k", begin=0, end=1 << 60, max_count=64).buffers)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_few_messages_are_taken_while_their_index_entries_cannot_be_written(opened, disk, number):
    store = opened(files=disk)
    disk.failing = {"pwrite": number}
    disk.pwritev = lambda fd, buffers, offset: os.pwrite(fd, b"".join(buffers), offset)  # its blocks are reserved
    disk.free = 0
    for _ in range(64):  # as many as are collected
        send(store, keys="k")
    for _ in range(3):
        with pytest.raises(StoreFull, match=os.strerror(number)):
            send(store, keys="k")
        store.maintain()
    assert under_key(store) == 64
    disk.failing, disk.free = {}, 1 << 40
    store.maintain()
    send(store, body=b"after")
    store.close()
    store = opened()
    assert len(bodies(store)) == 65
    assert under_key(store) == 64


def test_little_of_another_log_is_taken_while_its_entries_cannot_be_written(opened, disk, tmp_path):
    opener = Opener(tmp_path / "master")
    master = opener()
    for n in range(200):
        send(master, body=b"%d" % n, keys="k" if n % 4 else None, unique_id=f"U{n}")
    copy = opened(files=disk, follows=True)
    disk.failing = {"pwrite": errno.EIO}
    disk.pwritev = lambda fd, buffers, offset: os.pwrite(fd, b"".join(buffers), offset)  # its blocks are reserved
    disk.free = 0

    def transfer():
        while copy.written_offset < master.readable:
            copy.append_raw(copy.written_offset, bytes(master.raw(copy.written_offset, 100)))

    with pytest.raises(StoreFull, match=os.strerror(errno.EIO)):
        transfer()
    taken = bodies(copy)
    assert len(taken) == 64
    copy.maintain()
    with pytest.raises(StoreFull):
        transfer()
    assert bodies(copy) == taken
    disk.failing, disk.free = {}, 1 << 40
    copy.maintain()
    transfer()
    assert bodies(copy) == bodies(master)
    for n in range(0, 200, 10):
        found = [store.query("T", f"U{n}", begin=0, end=1 << 60, max_count=9) for store in (master, copy)]
        assert found[0].buffers == found[1].buffers != []
    opener.close()


def test_a_long_queue_that_cannot_be_written_leaves_no_message_of_its_batch_out(opened, disk, monkeypatch):
    monkeypatch.setattr("rocketq.store.consumequeue._MAX_TAIL", 100)  # 5 entries
    store = opened(files=disk)
    sent = [b"%d" % n for n in range(20)]
    disk.failing = {"pwrite": errno.ENOSPC}
    disk.pwritev = lambda fd, buffers, offset: os.pwrite(fd, b"".join(buffers), offset)  # its blocks are reserved
    disk.free = 0
    for n, body in enumerate(sent):
        send(store, body=body, queue_id=n % 2, write=False)
    store.write()
    assert [bodies(store, queue_id=queue_id) for queue_id in (0, 1)] == [sent[::2], sent[1::2]]
    assert not store.writable
    disk.failing, disk.free = {}, 1 << 40
    store.maintain()
    assert send(store, body=b"after").queue_offset == 10
    store.close()
    assert bodies(opened()) == [*sent[::2], b"after"]


def test_queue_files_that_cannot_be_forced_to_disk_at_the_end_make_the_stop_an_unclean_one(opened, disk):
    store = opened(files=disk)
    send(store)
    wait_until(lambda: store.durable_offset == store.written_offset)
    disk.failing = {"fdatasync": errno.EIO}
    with pytest.raises(StoreError, match="could not be forced to disk"):
        store.close()
    opened.stores.clear()
    assert (opened.directory / "abort").exists()
    opened()
    assert not opened.recovery.clean


def test_a_message_goes_past_an_empty_file_that_is_too_small_for_it(opened):
    store = opened()
    send(store, body=b"before")
    store.log.prepare_next()  # as `maintain` does ahead of need
    opened.crash(store)
    store = opened(mapped_file_size_commit_log=1 << 20)
    send(store, body=b"x" * 40_000)
    send(store, body=b"after")
    assert bodies(store) == [b"before", b"x" * 40_000, b"after"]
    opened.crash(store)
    assert bodies(opened(mapped_file_size_commit_log=1 << 20)) == [b"before", b"x" * 40_000, b"after"]


def test_a_message_that_cannot_be_packed_does_no_harm_to_the_file_it_would_have_begun(opened):
    store = opened()
    while store.log.end == 0 or store.log.end - store.written_offset > 1000:
        send(store)
    with pytest.raises(struct.error):
        store.append(
            "T",
            0,
            b"x" * 2000,
            "",
            tag=None,
            unique_id=None,
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=0,
            born_host=HOST,
            store_host=HOST,
            reconsume_times=1 << 31,
        )
    send(store, body=b"after")
    count = store.max_offset("T", 0)
    assert bodies(store)[-1] == b"after"
    opened.crash(store)
    assert len(bodies(opened())) == count


def test_only_topics_that_have_queues_are_deleted(opened):
    store = opened()
    elsewhere = opened.directory / "elsewhere"
    elsewhere.mkdir()
    delete_topic(store, "../elsewhere")
    delete_topic(store, str(elsewhere))
    assert elsewhere.exists()


def test_a_failed_flush_ends_writing_for_good(opened, disk):
    store = opened(files=disk, flush_disk_type="SYNC_FLUSH")
    arrived = []
    store.on_arrive = arrived.extend
    first = send(store)
    wait_until(lambda: store.advance() == store.written_offset)
    disk.failing = {"fdatasync": errno.EIO}
    send(store)
    wait_until(lambda: store._flusher.failure)
    disk.failing = {}
    store.maintain()
    assert not store.writable
    assert "could not be forced to disk" in store.why_not_writable
    with pytest.raises(StoreFull, match="restart"):
        send(store)
    assert arrived == [first]
    assert store.durable_offset == first.size
    assert store.max_offset("T", 0) == 1
    store.close()
    opened.stores.clear()
    assert (opened.directory / "abort").exists()


def test_a_failed_flush_ends_writing_for_good_where_nobody_waits_for_it(opened, disk):
    store = opened(files=disk, flush_disk_type="ASYNC_FLUSH", flush_interval_commit_log=10)
    first = send(store, body=b"first")
    wait_until(lambda: store.durable_offset == first.size)
    disk.failing = {"fdatasync": errno.EIO}
    send(store, body=b"second")
    wait_until(lambda: store._flusher.failure)
    disk.failing = {}
    store.maintain()
    with pytest.raises(StoreFull, match=r"could not be forced to disk.*restart"):
        send(store)
    assert store.durable_offset == first.size
    assert bodies(store) == [b"first", b"second"]
    store.close()
    opened.stores.clear()
    assert (opened.directory / "abort").exists()


def test_sync_flush_serves_nothing_before_it_is_on_disk(opened, disk):
    store = opened(files=disk, flush_disk_type="SYNC_FLUSH")
    arrived, durable = [], []
    first = send(store, "first")
    wait_until(lambda: store.advance() == store.written_offset)
    store.on_arrive = arrived.extend
    store.on_durable = durable.append
    disk.gate.clear()
    places = [send(store, body=b"%d" % n, keys="k") for n in range(5)]
    assert store.advance() == first.size
    assert arrived == []
    assert store.max_offset("T", 0) == 0
    assert store.record_at(places[0].physical_offset) is None
    assert store.query("T", "k", begin=0, end=1 << 60, max_count=9).buffers == []
    assert store.written_offset == places[-1].physical_offset + places[-1].size
    disk.gate.set()
    wait_until(lambda: durable and durable[-1] == store.written_offset)
    assert arrived == []  # the owner decides when
    assert store.advance() == store.written_offset
    assert arrived == places
    assert bodies(store) == [b"%d" % n for n in range(5)]


def test_many_batches_share_one_flush(opened, disk):
    store = opened(files=disk, flush_disk_type="SYNC_FLUSH", mapped_file_size_commit_log=1 << 20)
    send(store)
    wait_until(lambda: store.advance() == store.written_offset)
    disk.gate.clear()
    disk.calls.clear()
    for _ in range(100):
        send(store)
    disk.gate.set()
    wait_until(lambda: store.advance() == store.written_offset)
    assert 1 <= sum(call[0] == "fdatasync" for call in disk.calls) <= 3


def test_every_acknowledged_byte_was_forced_to_disk_after_it_was_written(opened, disk):
    store = opened(files=disk, flush_disk_type="SYNC_FLUSH")
    written = {}  # file descriptor -> writes that are not forced yet
    for round_number in range(30):
        send(store, body=bytes(900))
        target = store.written_offset
        wait_until(lambda target=target: store.durable_offset >= target)
        for call in disk.calls:
            if call[0] == "pwritev":
                written[call[1]] = written.get(call[1], 0) + 1
            elif call[0] == "fdatasync":
                written.pop(call[1], None)
        disk.calls.clear()
        assert not written, round_number
        store.advance()


def test_a_new_file_is_on_disk_with_its_name_before_it_is_written_to(opened, disk):
    store = opened(files=disk)
    send(store)
    names = [call[0] for call in disk.calls]
    made = names.index("allocate")
    assert names[made : made + 3] == ["allocate", "fdatasync", "fsync_dir"]
    assert names.index("pwritev") > made + 2


def test_async_flush_reaches_the_disk_by_itself(opened):
    store = opened(flush_interval_commit_log=10)
    for _ in range(3):
        send(store)
        wait_until(lambda: store.durable_offset == store.written_offset)


def test_where_blocks_cannot_be_reserved_files_are_sparse(opened, disk, monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    store = opened()
    send(store)
    assert os.path.getsize(store.log.files[0].path) == SMALL["mapped_file_size_commit_log"]


HOLDER = """
import sys
from pathlib import Path
from store_kit import Opener
store = Opener(Path(sys.argv[1]))()
print("open", flush=True)
sys.stdin.read()
"""


def test_a_directory_that_is_in_use_is_refused_with_the_owners_pid(opened):
    tests = os.path.dirname(os.path.dirname(__file__))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(opened.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": tests},
    )
    try:
        assert holder.stdout.readline() == b"open\n"
        assert (opened.directory / "lock").read_bytes() == b"lock"
        assert (opened.directory / "abort").read_bytes() == str(holder.pid).encode()
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            opened()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    opened()  # a dead owner does not hold it


def test_two_stores_of_one_process_do_not_share_a_directory(opened):
    opened()
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        opened()


def test_a_closed_store_can_be_opened_by_another(opened):
    opened().close()
    assert not (opened.directory / "abort").exists()
    opened()


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="SOMETIMES"):
        StoreConfig(store_path_root_dir=str(tmp_path), flush_disk_type="SOMETIMES")
    with pytest.raises(ConfigError, match="one directory"):
        StoreConfig(store_path_root_dir=str(tmp_path), store_path_commit_log="/a,/b")
    with pytest.raises(ConfigError, match="5x"):
        StoreConfig(store_path_root_dir=str(tmp_path), message_delay_level="1s 5x").delay_levels()


def test_consume_queues_of_another_file_size_are_refused_with_advice(opened):
    store = opened()
    for _ in range(100):
        send(store)
    store.close()
    with pytest.raises(StoreError, match="mappedFileSizeConsumeQueue=600"):
        opened(mapped_file_size_consume_queue=600).max_offset("T", 0)
    abandoned = MessageStore(StoreConfig(store_path_root_dir=str(opened.directory), **SMALL))
    opened.stores[-1].close()
    abandoned.open()
    assert abandoned.max_offset("T", 0) == 100
    abandoned.close()


def test_reading_a_backlog_keeps_little_mapped(opened):
    store = opened(mapped_file_size_commit_log=4 << 20, mapped_file_size_consume_queue=6_000_000)
    body = bytes(100_000)
    for _ in range(400):
        send(store, body=body)

    def mapped():
        """MiB of the store's own files."""
        total, ours = 0, False
        with open("/proc/self/smaps") as file:
            for line in file:
                if re.match("[0-9a-f]+-", line):
                    ours = str(opened.directory) in line
                elif ours and line.startswith("Rss:"):
                    total += int(line.split()[1])
        return total >> 10

    store.maintain()
    before = mapped()
    highest = 0
    offset = 0
    while offset < 400:
        result = store.read("T", 0, offset, 32)
        offset = result.next_offset
        for buffer in result.buffers:
            bytes(buffer)
        highest = max(highest, mapped())
    assert highest - before < 45
    store.maintain()
    assert len([file for file in store.log.files if file.mapping is not None]) <= 4
