"""What is there after a process died, a disk lost power, or bytes were damaged."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import wait_until
from store_kit import Opener, abandon, bodies, mended, problems_of, send, write

from rocketq.errors import StoreError
from rocketq.record import decode_record
from rocketq.store import GetStatus, OsFiles
from rocketq.store.commitlog import CommitLog
from rocketq.store.marks import Checkpoint
from rocketq.store.recovery import Scan


def fill(store, count, queues=3, size=50):
    for n in range(count):
        send(
            store,
            queue_id=n % queues,
            body=b"%d" % n + b"." * size,
            tag=f"t{n % 2}",
            keys=f"k{n}",
            unique_id=f"U{n:031X}",
            write=n % 7 == 6,
        )
    store.write()


def everything(store, queues=3):
    return [bodies(store, queue_id=n) for n in range(queues)]


def keys_found(store, count):
    """How many records each of the keys k0 … finds."""
    return [len(store.query("T", f"k{n}", begin=0, end=1 << 60, max_count=9).buffers) for n in range(count)]


def log_path(opened, offset=0):
    return opened.directory / "commitlog" / f"{offset:020d}"


def patch(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_closed_store_opens_without_reading_the_log(opened):
    store = opened()
    fill(store, 500)
    before = everything(store)
    store.close()
    store = opened()
    assert opened.recovery.clean
    assert opened.recovery.records == 0
    assert everything(store) == before
    assert keys_found(store, 500) == [1] * 500
    assert send(store).queue_offset == len(before[0])


def test_a_killed_store_has_everything_that_was_written(opened):
    store = opened()
    fill(store, 500)
    before = everything(store)
    send(store, body=b"never written", write=False)
    opened.crash(store)
    store = opened()
    assert not opened.recovery.clean
    assert opened.recovery.problems == []
    assert everything(store) == before
    assert keys_found(store, 500) == [1] * 500
    assert send(store).queue_offset == len(before[0])


def test_recovery_costs_what_came_after_the_checkpoint(opened):
    store = opened()
    fill(store, 500)
    store._save_now()
    fill(store, 20)
    before = everything(store)
    opened.crash(store)
    store = opened()
    assert opened.recovery.records == 20
    assert everything(store) == before
    assert keys_found(store, 500) == [2] * 20 + [1] * 480


def test_maintain_saves_a_checkpoint_by_itself(opened, monkeypatch):
    monkeypatch.setattr("rocketq.store.store._CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr("rocketq.store.store._QUEUES_PER_TURN", 2)
    store = opened()
    fill(store, 100, queues=7)
    end = store.written_offset

    def saved():
        store.maintain()
        return store._marks.load().offset == end

    wait_until(saved)
    opened.crash(store)
    store = opened()
    assert opened.recovery.records == 0
    assert sum(map(len, everything(store, 7))) == 100


def test_a_tail_that_is_torn_at_any_byte_is_cut(opened, tmp_path, caplog):
    caplog.set_level("ERROR")
    store = opened()
    fill(store, 20)
    before = everything(store)
    last = send(store, body=b"the last one", keys="last")
    opened.crash(store)
    whole = log_path(opened).read_bytes()
    for kept in range(last.size):
        directory = tmp_path / f"cut-{kept}"
        shutil.copytree(opened.directory, directory)
        torn = whole[: last.physical_offset + kept]
        write(directory / "commitlog" / log_path(opened).name, torn, len(whole))
        opener = Opener(directory)
        store = opener()
        assert everything(store) == before
        assert store.written_offset == last.physical_offset
        assert opener.recovery.cut_bytes <= kept
        assert bool(opener.recovery.problems) == any(torn[last.physical_offset :])
        assert keys_found(store, 20) == [1] * 20
        assert send(store, body=b"new").queue_offset == last.queue_offset
        abandon(store)
        shutil.rmtree(directory)


@pytest.mark.parametrize("clean", [True, False])
def test_damage_in_the_middle_keeps_the_store_shut_and_says_where(opened, clean, caplog):
    store = opened()
    fill(store, 60)
    (offset, size, _) = store.consume_entry("T", 0, 5)
    opened.crash(store)
    if clean:  # a directory of Apache's: no mark that says that the log was checked
        (opened.directory / "abort").unlink()
    patch(log_path(opened), offset + size // 2 + 10, b"\xff\xff")
    before = log_path(opened).read_bytes()
    with pytest.raises(StoreError) as caught:
        opened()
    assert f"{log_path(opened)} is damaged at byte {offset} (offset {offset})" in str(caught.value)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [str(caught.value)]
    assert log_path(opened).read_bytes() == before
    assert (opened.directory / "abort").exists() != clean
    mended(opened.directory)
    store = opened()
    assert bodies(store) == [b"%d" % n + b"." * 50 for n in range(0, 60, 3) if n != 15]


def test_damage_in_an_older_file_is_found_when_the_whole_log_is_read(opened):
    store = opened()
    fill(store, 300)
    assert len(store.log.files) > 2
    opened.crash(store)
    shutil.rmtree(opened.directory / "consumequeue", ignore_errors=True)
    second = log_path(opened, 16_384)
    patch(second, 20, b"\x77")
    with pytest.raises(StoreError, match="16384"):
        opened()


def test_pages_that_the_disk_lost_with_the_power_are_a_gap_and_the_rest_is_cut(opened):
    store = opened()
    fill(store, 200)
    (offset, _, _) = store.consume_entry("T", 0, 20)
    opened.crash(store)
    start = offset - offset % 4096
    patch(log_path(opened), start, bytes(4096))
    store = opened()
    (problem,) = opened.recovery.problems
    assert "power" in problem
    assert str(log_path(opened)) in problem
    assert store.written_offset <= start
    kept = everything(store)
    assert kept[0] == [b"%d" % n + b"." * 50 for n in range(0, 3 * len(kept[0]), 3)]
    assert sum(map(len, kept)) > 10
    fill(store, 50)
    after = everything(store)
    opened.crash(store)
    assert everything(opened()) == after


@pytest.mark.parametrize("left", [4, 5, 7])
def test_a_sector_that_the_disk_lost_behind_its_flushed_part_is_a_gap(opened, left):
    """The head of the next record was its last bytes, and goes on in a sector that the disk has."""
    store = opened()
    send(store, body=b"flushed")
    send(store, body=bytes(512 - (store.written_offset + 91 + len("T")) % 512 - left))
    offset = store.written_offset
    assert offset % 512 == 512 - left
    send(store, body=b"x" * 600)
    send(store, body=b"behind")
    opened.crash(store)
    patch(log_path(opened), offset, bytes(left))
    store = opened()
    (problem,) = opened.recovery.problems
    assert "power" in problem
    assert store.written_offset == offset
    assert len(bodies(store)) == 2


@pytest.mark.parametrize(("left", "size"), [(3, 600), (2, 70_000)])
def test_a_record_that_lacks_only_the_first_bytes_of_its_size_is_a_gap(opened, left, size):
    """As above, where the disk has so much of the head that it looks like another one."""
    settings = {"mapped_file_size_commit_log": 1 << 18}
    store = opened(**settings)
    send(store, body=bytes(2 * 512 - 91 - len("T") - left))
    offset = store.written_offset
    assert offset % 512 == 512 - left
    send(store, body=b"x" * size)
    send(store, body=b"behind")
    opened.crash(store)
    whole = log_path(opened).read_bytes()
    patch(log_path(opened), offset, bytes(left))
    patch(log_path(opened), offset + 300, b"y")  # and this is damage
    with pytest.raises(StoreError, match=f"offset {offset}"):
        opened(**settings)
    log_path(opened).write_bytes(whole)
    patch(log_path(opened), offset, bytes(left))
    store = opened(**settings)
    (problem,) = opened.recovery.problems
    assert "power" in problem
    assert store.written_offset == offset
    assert len(bodies(store)) == 1


def test_a_filler_that_lacks_only_the_first_bytes_of_its_size_is_a_gap(opened):
    store = opened()
    end = 16_384 - 515
    while (room := end - store.written_offset) > 3000:
        send(store, body=bytes(2000))
    send(store, body=bytes(room - 91 - len("T")))
    assert store.written_offset == end
    count = len(bodies(store))
    send(store, body=b"in the next file" * 50)
    opened.crash(store)
    patch(log_path(opened), end, bytes(3))
    store = opened()
    assert store.written_offset == end
    assert len(bodies(store)) == count


def test_a_gap_before_the_checkpoint_is_damage(opened):
    """Also when the whole log is read because ConsumeQueues are missing, and by every later start."""
    store = opened()
    fill(store, 200)
    (offset, _, _) = store.consume_entry("T", 0, 20)
    store._save_now()
    fill(store, 10)
    before = everything(store)
    opened.crash(store)
    whole = log_path(opened).read_bytes()
    patch(log_path(opened), offset - offset % 512, bytes(1024))
    shutil.rmtree(opened.directory / "consumequeue")
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged at byte"):
            opened()
    log_path(opened).write_bytes(whole)
    store = opened()
    assert opened.recovery.rebuilt
    assert everything(store) == before


def test_a_gap_after_an_orderly_stop_is_damage(opened):
    store = opened()
    fill(store, 200)
    (offset, _, _) = store.consume_entry("T", 2, 64)
    store.close()
    (opened.directory / "checkpoint").unlink()
    assert offset > 16_384  # in the file that is checked after an orderly stop
    patch(log_path(opened, offset - offset % 16_384), offset % 16_384, bytes(600))
    with pytest.raises(StoreError, match=f"offset {offset}"):
        opened()


def test_a_file_that_a_crash_left_short_is_read_to_its_end_and_completed(opened):
    """A start cuts a torn tail by making the file shorter, and then as long as it was."""
    store = opened()
    fill(store, 30)
    end, before = store.written_offset, everything(store)
    opened.crash(store)
    os.truncate(log_path(opened), end)
    assert problems_of(opened.directory) == []
    store = opened()
    assert opened.recovery.problems == []
    assert everything(store) == before
    assert log_path(opened).stat().st_size == 16_384
    assert send(store).physical_offset == end


def test_rubbish_behind_the_end_is_never_mistaken_for_messages(opened):
    store = opened()
    fill(store, 30)
    end, before = store.written_offset, everything(store)
    opened.crash(store)
    patch(log_path(opened), end + 100, random.Random(1).randbytes(3000))
    store = opened()
    assert opened.recovery.cut_bytes == 3100
    assert everything(store) == before
    assert not any(log_path(opened).read_bytes()[end:])


def test_an_index_file_without_its_header_does_not_hide_what_the_one_before_lost(opened):
    """Both were written after the checkpoint: slots are on disk that name entries which are not, and no new header."""
    settings = {"max_hash_slot_num": 2, "max_index_num": 12}
    store = opened(**settings)
    for n in range(5):
        send(store, keys=f"k{n}")
    store._save_now()
    for n in range(5, 12):
        send(store, keys=f"k{n}")
    store.index.flush()
    (first, second) = (file.path for file in store.index.files)
    opened.crash(store)
    patch(Path(second), 0, bytes(40))
    patch(Path(first), 40 + 4 * 2 + 20 * 6, bytes(20 * 6))  # there is no entry 0
    assert keys_found(opened(**settings), 12) == [1] * 12


def test_removed_consume_queues_are_rebuilt(opened):
    store = opened()
    fill(store, 300)
    before = everything(store)
    store.close()
    shutil.rmtree(opened.directory / "consumequeue")
    store = opened()
    assert opened.recovery.rebuilt
    assert everything(store) == before
    assert keys_found(store, 300) == [1] * 300
    store.close()
    shutil.rmtree(opened.directory / "consumequeue" / "T" / "1")
    store = opened()
    assert opened.recovery.rebuilt
    assert everything(store) == before


def test_consume_queues_that_are_missing_after_a_crash_are_rebuilt(opened):
    store = opened()
    fill(store, 300)
    store._save_now()
    fill(store, 10)
    before = everything(store)
    opened.crash(store)
    shutil.rmtree(opened.directory / "consumequeue")
    store = opened()
    assert opened.recovery.rebuilt
    assert everything(store) == before


def test_a_log_whose_first_files_are_gone_begins_where_it_begins(opened):
    store = opened()
    fill(store, 300)
    places = [store.consume_entry("T", 0, n) for n in range(store.max_offset("T", 0))]
    store.close()
    log_path(opened).unlink()
    first = next(n for n, place in enumerate(places) if place[0] >= 16_384)
    for _ in range(2):
        store = opened()
        assert store.min_physical_offset == 16_384
        assert (store.min_offset("T", 0), store.max_offset("T", 0)) == (first, 100)
        assert store.read("T", 0, 0, 1).status is GetStatus.OFFSET_TOO_SMALL
        assert len(bodies(store, offset=first)) == 100 - first
        assert decode_record(store.record_at(0)).physical_offset == 16_384
        assert store.offset_by_time("T", 0, 0) == first
        store.close()
        shutil.rmtree(opened.directory / "consumequeue")


def test_a_queue_that_lost_everything_keeps_its_numbers(opened):
    store = opened()
    for n in range(48):
        send(store, "old", body=b"%d" % n)
    fill(store, 300)
    store.close()
    log_path(opened).unlink()
    store = opened()
    assert (store.min_offset("old", 0), store.max_offset("old", 0)) == (48, 48)
    assert store.read("old", 0, 0, 1).next_offset == 48
    assert store.offset_by_time("old", 0, 0) == store.offset_by_time("old", 0, 1 << 60) == 48
    assert store.earliest_store_time("old", 0) == -1
    assert send(store, "old").queue_offset == 48
    assert bodies(store, "old", offset=48) == [b"hello"]


def test_a_missing_file_in_the_middle_keeps_the_store_shut(opened):
    store = opened()
    fill(store, 300)
    store.close()
    log_path(opened, 16_384).unlink()
    with pytest.raises(StoreError, match=r"00000000000000032768.*missing"):
        opened()


def test_files_made_ahead_are_used_after_a_crash_and_removed_by_a_close(opened):
    store = opened()
    fill(store, 60)
    store.log.prepare_next()
    assert log_path(opened, 16_384).exists()
    opened.crash(store)
    store = opened()
    assert sum(map(len, everything(store))) == 60
    fill(store, 100)
    assert sum(map(len, everything(store))) == 160
    store.log.prepare_next()
    ahead = log_path(opened, store.log.end)
    assert ahead.exists()
    store.close()
    assert not ahead.exists()


def test_a_checkpoint_of_another_log_is_not_believed(opened):
    store = opened()
    fill(store, 100)
    before = everything(store)
    opened.crash(store)
    (opened.directory / "checkpoint").write_bytes(Checkpoint(1, 1, 0, 5000, 4000, 3).encode())
    assert everything(opened()) == before


@pytest.mark.parametrize("page", [b"", b"\xff" * 4096, b"short"])
def test_a_damaged_checkpoint_only_costs_time(opened, page):
    store = opened()
    fill(store, 100)
    before = everything(store)
    store.close()
    (opened.directory / "checkpoint").write_bytes(page)
    (opened.directory / "abort").write_bytes(b"1")
    assert everything(opened()) == before


WRITER = """
import sys
from store_kit import Opener, send
from pathlib import Path
opener = Opener(Path(sys.argv[1]))
store = opener()
number = sum(store.max_offset("T", n) for n in range(3))
while True:
    batch = [send(store, queue_id=n % 3, body=b"%d" % n, keys=f"k{n}", write=False)
             for n in range(number, number + 5)]
    number += 5
    store.write()
    print(number, flush=True)
    if number % 50 == 0:
        store.maintain()
"""


def test_killing_a_writer_loses_nothing_that_it_acknowledged(opened):
    tests = os.path.dirname(os.path.dirname(__file__))
    acknowledged = 0
    for round_number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(opened.directory)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": tests},
        )
        goal = acknowledged + 700 + 301 * round_number
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged > goal:
                process.send_signal(signal.SIGKILL)
                break
        for line in process.stdout:
            if line.endswith(b"\n"):
                acknowledged = int(line)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    store = opened()
    assert not opened.recovery.clean
    total = sum(map(len, everything(store)))
    assert total >= acknowledged
    for queue_id, found in enumerate(everything(store)):
        assert found == [b"%d" % n for n in range(queue_id, total, 3)]
    assert keys_found(store, 200) == [1] * 200


def test_the_scanner_survives_any_bytes(tmp_path):
    rng = random.Random(7)
    path = tmp_path / f"{0:020d}"
    for _ in range(200):
        path.write_bytes(rng.randbytes(rng.randrange(8, 400)))
        log = CommitLog(str(tmp_path), 0, OsFiles())
        log.open()
        scan = Scan(log, OsFiles(), True)
        assert list(scan.records(0)) == []
        assert scan.next_record(0) is None


def test_a_record_without_room_for_the_end_of_its_file_is_none_for_the_search_either(tmp_path, opened):
    """Else the search finds the place that it is to leave, for ever."""
    store = opened()
    sent = send(store)
    store.close()
    record = next((opened.directory / "commitlog").iterdir()).read_bytes()[: sent.size]
    for room, found in (0, None), (7, None), (8, 0):
        (tmp_path / f"{0:020d}").write_bytes(record + bytes(room))
        log = CommitLog(str(tmp_path), 0, OsFiles())
        log.open()
        scan = Scan(log, OsFiles(), True)
        assert [each.offset for each in scan.records(0)] == [found] * (found is not None)
        assert scan.next_record(-1) == found
        assert scan.next_record(0) is None


def test_reserved_space_that_the_system_has_read_is_no_torn_tail(opened):
    store = opened(mapped_file_size_commit_log=8 << 20)
    fill(store, 30)
    end = store.written_offset
    for _ in range(2):
        opened.crash(store)
        assert len(log_path(opened).read_bytes()) == 8 << 20
        store = opened(mapped_file_size_commit_log=8 << 20)
        assert (opened.recovery.problems, opened.recovery.cut_bytes) == ([], 0)
        assert store.written_offset == end
    assert sum(map(len, everything(store))) == 30
