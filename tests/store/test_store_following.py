"""A store that follows another one's log: raw bytes in, whole messages out."""

import random

import pytest
from store_kit import HOST, Opener, bodies, delete_topic, problems_of, send

from rocketq.errors import StoreError, StoreFull
from rocketq.record import encode_record


@pytest.fixture
def pair(tmp_path):
    """A store, and `follow(**settings)` that opens its copy."""
    master, copy = Opener(tmp_path / "master"), Opener(tmp_path / "copy")
    yield master(), lambda **settings: copy(follows=True, **settings), copy
    copy.close()
    master.close()


def fill(store, rng, count):
    for number in range(count):
        topic = rng.choice(["A", "B", "C"])
        body = f"{topic}{number}".encode() * rng.randint(1, 60)
        sys_flag = rng.choice([0, 0, 0, 4])
        send(
            store,
            topic,
            rng.randrange(3),
            body,
            tag=rng.choice(["x", None]),
            unique_id=f"U{number}",
            sys_flag=sys_flag,
        )


def transfer(master, copy, rng=None, until=None, begin=0):
    """Give `copy` what it lacks, up to `until`, in pieces of any size."""
    offset = copy.written_offset or begin
    while offset < (until or master.readable):
        size = rng.randint(1, 900) if rng else 4096
        data = bytes(master.raw(offset, size))
        copy.append_raw(offset, data)
        offset += len(data)


def log_bytes(store, begin=0):
    data = b""
    while piece := store.raw(begin + len(data), 1 << 20):
        data += piece
    return data


def same(master, copy):
    assert log_bytes(copy, copy.min_physical_offset) == log_bytes(master, copy.min_physical_offset)
    for topic, queue_id in master.queues():
        assert copy.max_offset(topic, queue_id) == master.max_offset(topic, queue_id)
        low = copy.min_offset(topic, queue_id)
        assert bodies(copy, topic, queue_id, low) == bodies(master, topic, queue_id, low)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_pieces_of_any_size_make_the_same_store(pair, seed, flush):
    master, follow, _ = pair
    rng = random.Random(seed)
    copy = follow(flush_disk_type=flush)
    for _ in range(3):
        fill(master, rng, 150)
        transfer(master, copy, rng)
        copy.maintain()
    copy.flush()
    copy.advance()
    same(master, copy)
    for number in range(0, 150, 10):
        for topic in "ABC":
            looked = [
                store.query(topic, f"U{number}", begin=0, end=2**62, max_count=9) for store in (master, copy)
            ]
            assert looked[0].buffers == looked[1].buffers


def test_only_whole_records_are_handed_out(pair):
    master, follow, _ = pair
    copy = follow()
    first, second = send(master, body=b"first"), send(master, body=b"second")
    arrived = []
    copy.on_arrive = lambda batch: arrived.extend(each.physical_offset for each in batch)
    for offset in range(second.physical_offset + second.size):
        assert arrived == [
            each.physical_offset for each in (first, second) if each.physical_offset + each.size <= offset
        ]
        copy.append_raw(offset, bytes(master.raw(offset, 1)))
    assert arrived == [first.physical_offset, second.physical_offset]
    assert bodies(copy) == [b"first", b"second"]


@pytest.mark.parametrize("how", ["crash", "close"])
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_that_ends_in_a_record_goes_on_with_whole_ones(pair, seed, how):
    master, follow, opener = pair
    rng = random.Random(seed)
    fill(master, rng, 300)
    copy = follow()
    transfer(master, copy, rng, until=rng.randint(1, master.readable))
    if how == "crash":
        opener.crash(copy)
    else:
        opener.stores.remove(copy)
        copy.close()
    copy = follow()
    assert copy.written_offset == copy.readable
    transfer(master, copy, rng)
    same(master, copy)


@pytest.mark.parametrize("how", ["crash", "close"])
def test_an_empty_copy_may_begin_in_the_middle_of_the_log(pair, how):
    master, follow, opener = pair
    rng = random.Random(7)
    while len(master.log.files) < 4:
        fill(master, rng, 50)
    begin = master.last_file
    assert begin > 0
    copy = follow()
    copy.maintain()
    transfer(master, copy, rng, begin=begin)
    fill(master, rng, 50)
    transfer(master, copy, rng)
    same(master, copy)
    if how == "crash":
        opener.crash(copy)
    else:
        opener.stores.remove(copy)
        copy.close()
    copy = follow()
    assert copy.min_physical_offset == begin
    fill(master, rng, 50)
    transfer(master, copy, rng)
    same(master, copy)


def test_a_copy_that_was_killed_before_it_had_a_message_may_begin_elsewhere(pair):
    """Its first file is there, and the master writes to a later one by now."""
    master, follow, opener = pair
    rng = random.Random(7)
    fill(master, rng, 50)
    copy = follow()
    copy.append_raw(0, bytes(master.raw(0, 60)))
    opener.crash(copy)
    while len(master.log.files) < 3:
        fill(master, rng, 50)
    copy = follow()
    assert copy.written_offset == 0
    transfer(master, copy, rng, begin=master.last_file)
    fill(master, rng, 100)
    transfer(master, copy, rng)
    same(master, copy)
    opener.crash(copy)
    same(master, follow())


def test_a_topic_that_was_deleted_and_made_anew_begins_again(pair):
    master, follow, _ = pair
    copy = follow()
    for body in (b"1", b"2", b"3"):
        send(master, body=body)
    transfer(master, copy)
    delete_topic(master, "T")
    for body in (b"4", b"5"):
        send(master, body=body)
    send(master, "U", body=b"6")
    transfer(master, copy)
    assert bodies(copy) == bodies(master) == [b"4", b"5"]


def test_a_copy_takes_no_messages_and_becomes_a_store_of_its_own(pair):
    master, follow, opener = pair
    copy = follow()
    send(master, body=b"1")
    transfer(master, copy)
    with pytest.raises(StoreFull, match="slave"):
        send(copy, body=b"2")
    opener.stores.remove(copy)
    copy.close()
    promoted = opener()
    send(promoted, body=b"2")
    assert bodies(promoted) == [b"1", b"2"]


def test_what_does_not_continue_the_log_is_an_error_and_changes_nothing(pair):
    master, follow, _ = pair
    copy = follow()
    send(master, body=b"1" * 200)
    transfer(master, copy)
    end = copy.written_offset
    for offset in (0, end - 1, end + 1):
        with pytest.raises(StoreError, match="do not continue"):
            copy.append_raw(offset, b"x")
    with pytest.raises(StoreError, match="mappedFileSizeCommitLog"):
        copy.append_raw(end, bytes(16_384))
    assert copy.written_offset == end
    with pytest.raises(StoreError, match="is no record"):
        copy.append_raw(end, b"this is no record at all")
    assert bodies(copy) == [b"1" * 200]


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_body_that_came_damaged_is_named_and_handed_to_nobody_and_those_behind_it_come(
    pair, tmp_path, caplog, flush
):
    master, follow, opener = pair
    copy = follow(flush_disk_type=flush)
    _, second, _ = (send(master, body=body).physical_offset for body in (b"1" * 50, b"2" * 50, b"3" * 50))
    sent = bytes(master.raw(0, 4096)).replace(b"2" * 50, b"2" * 25 + b"x" + b"2" * 24)
    copy.append_raw(0, sent)
    copy.flush()
    copy.advance()
    file = f"{tmp_path}/copy/commitlog/{0:020}"
    assert f"{file} is damaged at byte {second}: the master sent message 1 of topic T queue 0" in caplog.text
    assert bodies(copy) == [b"1" * 50, b"3" * 50]
    assert copy.max_offset("T", 0) == 3
    send(master, body=b"4")
    transfer(master, copy)
    copy.flush()
    copy.advance()
    assert bodies(copy) == [b"1" * 50, b"3" * 50, b"4"]
    assert log_bytes(copy) == sent + log_bytes(master)[len(sent) :]
    opener.stores.remove(copy)
    copy.close()
    assert [(problem.file, problem.position) for problem in problems_of(tmp_path / "copy")] == [(file, second)]
    assert bodies(follow()) == [b"1" * 50, b"3" * 50, b"4"]


def test_an_empty_copy_of_a_log_with_other_files_is_refused(pair):
    _, follow, _ = pair
    with pytest.raises(StoreError, match="mappedFileSizeCommitLog"):
        follow().append_raw(8192, b"x")


@pytest.mark.parametrize("topic", ["../../elsewhere", ".", "T" * 300])
def test_a_topic_that_would_leave_the_store_is_refused(pair, tmp_path, topic):
    _, follow, _ = pair
    copy = follow()
    record = encode_record(0, 0, 0, topic.encode(), b"x", b"", 0, 0, 1, HOST, 1, HOST)
    with pytest.raises(StoreError, match="cannot be a name"):
        copy.append_raw(0, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "master"]
