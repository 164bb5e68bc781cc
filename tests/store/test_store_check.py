"""Damage of every kind of file is found and named, nothing damaged is handed out, and repair keeps all the rest."""

import random
import shutil
import struct

import pytest
from store_kit import bodies, mended, problems_of, send

from rocketq.errors import StoreError, StoreLocked
from rocketq.store import GetStatus
from rocketq.store.configfile import save_json
from rocketq.store.files import OsFiles


@pytest.fixture
def filled(opened):
    """A closed store of 240 messages in three queues and several files; gives (offset, size) of each message."""
    store = opened()
    places = {}
    for n in range(240):
        sent = send(
            store,
            queue_id=n % 3,
            body=b"%d" % n + b"." * 50,
            tag=f"t{n % 2}",
            keys=f"k{n}",
            unique_id=f"U{n:031X}",
        )
        places[n] = (sent.physical_offset, sent.size)
    assert len(store.log.files) > 2
    store.close()
    save_json(
        opened.directory / "config" / "topics.json", {"topicConfigTable": {"T": {"topicName": "T"}}}, OsFiles()
    )
    return places


def flip(path, at, bit=0):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def log_file(opened, offset):
    return opened.directory / "commitlog" / f"{offset - offset % 16_384:020d}", offset % 16_384


def damage(opened, places, *numbers):
    """Change a byte in the bodies of some messages."""
    for number in numbers:
        path, at = log_file(opened, places[number][0])
        flip(path, at + 92)


def test_a_sound_store_has_no_problems_and_is_left_as_it_is(opened, filled):
    before = {path: path.read_bytes() for path in opened.directory.rglob("*") if path.is_file()}
    assert problems_of(opened.directory) == []
    assert {path: path.read_bytes() for path in opened.directory.rglob("*") if path.is_file()} == before


def test_a_store_that_was_killed_has_no_problems(opened):
    store = opened()
    for n in range(100):
        send(store, body=b"%d" % n, keys=f"k{n}")
    opened.crash(store)
    assert problems_of(opened.directory) == []


def test_damaged_messages_are_named_and_taken_out_and_all_others_stay(opened, filled):
    damage(opened, filled, 30, 31, 150)
    found = problems_of(opened.directory)
    assert [(problem.kind, problem.start, problem.end) for problem in found] == [
        ("log", filled[30][0], filled[32][0]),
        ("log", filled[150][0], filled[151][0]),
    ]
    assert [problem.messages for problem in found] == [[("T", 0, 10), ("T", 1, 10)], [("T", 0, 50)]]
    path, at = log_file(opened, filled[30][0])
    assert (found[0].file, found[0].position) == (str(path), at)
    kept = path.read_bytes()[at : at + filled[32][0] - filled[30][0]]
    mended(opened.directory)
    assert (opened.directory / "damaged" / f"{filled[30][0]:020d}").read_bytes() == kept
    for _ in range(2):
        store = opened()
        for queue in range(3):
            wanted = [b"%d" % n + b"." * 50 for n in range(queue, 240, 3) if n not in (30, 31, 150)]
            assert bodies(store, queue_id=queue) == wanted
            assert (store.min_offset("T", queue), store.max_offset("T", queue)) == (0, 80)
        assert [
            len(store.query("T", f"k{n}", begin=0, end=1 << 60, max_count=9).buffers) for n in (29, 30, 32)
        ] == [
            1,
            0,
            1,
        ]
        store.close()
        assert problems_of(opened.directory) == []
        shutil.rmtree(opened.directory / "consumequeue")  # and again, from the log alone
    store = opened()
    assert send(store, body=b"new").queue_offset == 80


def test_nobody_checks_a_store_that_is_in_use(opened, filled):
    opened()
    with pytest.raises(StoreLocked):
        problems_of(opened.directory)


def test_a_whole_file_of_the_log_can_be_taken_out(opened, filled):
    path, _ = log_file(opened, 16_384)
    path.write_bytes(random.Random(1).randbytes(16_384))
    (found,) = problems_of(opened.directory)
    lost = {number for number, (offset, _) in filled.items() if found.start <= offset < found.end}
    assert len(found.messages) == len(lost) > 10
    mended(opened.directory)
    store = opened()
    for queue in range(3):
        wanted = [b"%d" % n + b"." * 50 for n in range(queue, 240, 3) if n not in lost]
        assert bodies(store, queue_id=queue) == wanted


def test_what_the_disk_changed_in_an_earlier_runs_messages_is_never_handed_out(opened, filled, caplog):
    damage(opened, filled, 30)
    store = opened()
    assert bodies(store, queue_id=0) == [b"%d" % n + b"." * 50 for n in range(0, 240, 3) if n != 30]
    (said,) = {record.message for record in caplog.records if record.levelname == "ERROR"}
    path, at = log_file(opened, filled[30][0])
    assert f"{path} is damaged at byte {at}: topic T queue 0 message 10 " in said
    alone = store.read("T", 0, 10, 1)
    assert (alone.status, alone.next_offset) == (GetStatus.MESSAGE_WAS_REMOVING, 11)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_in_an_entry_is_found(opened, filled, seed):
    chance = random.Random(seed)
    queue = chance.choice(sorted((opened.directory / "consumequeue" / "T").glob("*/*")))
    size = len(queue.read_bytes().rstrip(b"\0")) // 20 * 20
    at = chance.randrange(size)
    flip(queue, at, chance.randrange(8))
    found = problems_of(opened.directory)
    assert found
    assert {problem.kind for problem in found} == {"derived"}
    mended(opened.directory)
    store = opened()
    assert [len(bodies(store, queue_id=n)) for n in range(3)] == [80, 80, 80]


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 0.99])
def test_a_damaged_entry_does_not_hide_those_behind_it(opened, filled, part):
    """Wherever a start looks for the end of a queue, which is in its last file."""
    path = max((opened.directory / "consumequeue" / "T" / "0").iterdir())
    entries = (len(path.read_bytes().rstrip(b"\0")) + 19) // 20
    flip(path, 20 * int(part * entries) + 8, 7)  # the sign of the size
    store = opened()
    assert store.max_offset("T", 0) == 80
    assert len(bodies(store)) == 79


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_the_index_is_found(opened, filled, seed):
    chance = random.Random(seed)
    (index,) = (opened.directory / "index").iterdir()
    data = index.read_bytes()
    count = struct.unpack_from(">i", data, 36)[0]
    number = chance.randrange(1, count)
    # hash or place of an entry; the seconds are only a hint
    flip(index, 40 + 4 * 64 + 20 * number + chance.randrange(12), chance.randrange(8))
    found = problems_of(opened.directory)
    assert found
    assert {(problem.kind, problem.file) for problem in found} == {("derived", str(index))}
    mended(opened.directory)
    store = opened()
    assert all(store.query("T", f"k{n}", begin=0, end=1 << 60, max_count=9).buffers for n in range(240))


def test_small_files_and_torn_tails_are_told_of(opened, filled):
    flip(opened.directory / "checkpoint", 80)
    (opened.directory / "config" / "groups.json").write_text("{")
    path, at = log_file(opened, filled[239][0] + filled[239][1])
    flip(path, at + 5)
    found = {problem.file.rpartition("/")[2]: problem.kind for problem in problems_of(opened.directory)}
    assert found == {path.name: "tail", "checkpoint": "small", "groups.json": "small"}


def test_queues_that_are_missing_or_too_short_are_told_of(opened, filled):
    shutil.rmtree(opened.directory / "consumequeue" / "T" / "1")
    max((opened.directory / "consumequeue" / "T" / "2").iterdir()).unlink()
    found = problems_of(opened.directory)
    assert [problem.kind for problem in found] == ["derived", "derived"]
    assert "topic T queue 1 0: there are no entries up to 80" in found[0].text


def test_a_directory_without_a_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="holds no store"):
        problems_of(tmp_path)
