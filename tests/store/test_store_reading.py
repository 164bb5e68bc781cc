"""Appending and reading: places, statuses, filters, limits, times, keys."""

import os

import pytest
from store_kit import HOST, bodies, delete_topic, save_checkpoint, send

from rocketq.errors import InvalidMessage, StoreFull
from rocketq.hashing import tags_code
from rocketq.record import decode_record, pack_host
from rocketq.store import GetStatus

V6 = pack_host("2001:db8::1", 10_911)


def test_messages_come_back_in_order_with_their_places(opened):
    store = opened()
    places = [send(store, queue_id=n % 2, body=b"%d" % n) for n in range(10)]
    assert [place.queue_offset for place in places] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert bodies(store, queue_id=0) == [b"0", b"2", b"4", b"6", b"8"]
    assert bodies(store, queue_id=1) == [b"1", b"3", b"5", b"7", b"9"]
    for place in places:
        record = decode_record(store.record_at(place.physical_offset), check_crc=True)
        assert (record.queue_id, record.queue_offset) == (place.queue_id, place.queue_offset)
        assert record.physical_offset == place.physical_offset
        assert record.size == place.size
        assert record.flag == 7
        assert record.store_timestamp == place.store_timestamp


def test_nothing_is_readable_before_it_is_written(opened):
    store = opened()
    place = send(store, write=False)
    assert store.max_offset("T", 0) == 0
    assert store.record_at(place.physical_offset) is None
    assert store.read("T", 0, 0, 32).status is GetStatus.NO_MESSAGE_IN_QUEUE
    store.write()
    assert bodies(store) == [b"hello"]


def test_arrivals_are_told_once_and_in_order(opened):
    store = opened()
    told = []
    store.on_arrive = told.extend
    places = [send(store, body=b"%d" % n, write=n % 3 == 2) for n in range(9)]
    assert told == places


def test_consecutive_records_are_one_slice(opened):
    store = opened()
    for n in range(6):
        send(store, queue_id=0, write=False)
        if n == 2:
            send(store, queue_id=1, write=False)
    store.write()
    result = store.read("T", 0, 0, 32)
    assert (result.count, len(result.buffers)) == (6, 2)
    assert result.size == sum(map(len, result.buffers))


def test_a_record_never_crosses_a_file(opened):
    store = opened()
    sent = [b"%03d" % n * 300 for n in range(60)]
    for body in sent:
        send(store, body=body, write=False)
    store.write()
    assert bodies(store) == sent
    assert len(store.log.files) > 3
    for n in range(60):
        offset, size, _ = store.consume_entry("T", 0, n)
        assert store.log.find(offset) is store.log.find(offset + size - 1)


@pytest.mark.parametrize("host", [V6, HOST])
def test_long_topics_and_ipv6_hosts_are_stored(opened, host):
    store = opened()
    topic = "%RETRY%" + "g" * 150
    send(store, topic, host=host, tag="A")
    record = decode_record(store.read(topic, 0, 0, 1).buffers[0], check_crc=True)
    assert (record.topic, record.born_host, record.store_host) == (topic, host, host)
    assert store.store_time(topic, 0, 0) == record.store_timestamp


STATUSES = [
    ("nothing", 5, GetStatus.NO_MATCHED_LOGIC_QUEUE, 0),
    ("T", -1, GetStatus.OFFSET_TOO_SMALL, 0),
    ("T", 3, GetStatus.OFFSET_OVERFLOW_ONE, 3),
    ("T", 4, GetStatus.OFFSET_OVERFLOW_BADLY, 3),
    ("T", 2, GetStatus.FOUND, 3),
]


@pytest.mark.parametrize(("topic", "offset", "status", "following"), STATUSES)
def test_a_read_says_how_it_ended(opened, topic, offset, status, following):
    store = opened()
    for _ in range(3):
        send(store)
    result = store.read(topic, 0, offset, 32)
    assert (result.status, result.next_offset) == (status, following)


def test_a_read_stops_at_its_count_and_at_its_bytes(opened):
    store = opened()
    for _ in range(20):
        place = send(store, body=b"x" * 100)
    assert store.read("T", 0, 0, 5).count == 5
    assert store.read("T", 0, 0, 32, max_bytes=3 * place.size).count == 3
    assert store.read("T", 0, 0, 32, max_bytes=1).count == 1


def test_tags_filter_and_the_offset_moves_on(opened):
    store = opened()
    for n in range(40):
        send(store, body=b"%d" % n, tag="A" if n % 10 == 3 else "B")
    result = store.read("T", 0, 0, 2, codes=frozenset({tags_code("A")}))
    assert (result.count, result.next_offset) == (2, 14)
    assert bodies(store, codes=frozenset({tags_code("A")})) == [b"3", b"13", b"23", b"33"]
    result = store.read("T", 0, 0, 32, codes=frozenset({tags_code("C")}))
    assert (result.status, result.next_offset) == (GetStatus.NO_MATCHED_MESSAGE, 40)


def test_a_read_that_matches_nothing_gives_up_after_800_entries(opened):
    store = opened(mapped_file_size_commit_log=1 << 20)
    for _ in range(1000):
        send(store, tag="B", write=False)
    store.write()
    result = store.read("T", 0, 0, 32, codes=frozenset({tags_code("A")}))
    assert (result.status, result.next_offset) == (GetStatus.NO_MATCHED_MESSAGE, 800)


def test_a_match_sees_the_record(opened):
    store = opened()
    for n in range(5):
        send(store, body=b"%d" % n)
    result = store.read("T", 0, 0, 32, match=lambda record: decode_record(record).body in (b"1", b"4"))
    assert [decode_record(buffer).body for buffer in result.buffers] == [b"1", b"4"]


def test_prepared_messages_have_no_place_in_a_queue(opened):
    store = opened()
    send(store, sys_flag=0)
    prepared = send(store, sys_flag=4, unique_id="prepared")
    rolled_back = send(store, sys_flag=12, unique_id="rolled back")
    committed = send(store, sys_flag=8)
    assert (prepared.queue_offset, rolled_back.queue_offset, committed.queue_offset) == (0, 0, 1)
    assert store.max_offset("T", 0) == 2
    assert decode_record(store.record_at(prepared.physical_offset)).sys_flag == 4
    found = [len(query(store, key)) for key in ("prepared", "rolled back")]
    assert found == [1, 0]


def query(store, key, topic="T", begin=0, end=1 << 60, max_count=64, kind="K"):
    result = store.query(topic, key, begin=begin, end=end, max_count=max_count, kind=kind)
    return [decode_record(buffer).body for buffer in result.buffers]


def test_messages_are_found_by_unique_id_key_and_tag(opened):
    store = opened()
    for n in range(30):
        send(
            store,
            body=b"%d" % n,
            unique_id=f"7F0000011234ABCD{n:016X}",
            keys=f"all k{n}  odd{n % 2}",
            tag=f"t{n % 3}",
        )
    assert query(store, f"7F0000011234ABCD{7:016X}") == [b"7"]
    assert query(store, "k12") == [b"12"]
    assert query(store, "odd1") == [b"%d" % n for n in range(29, 0, -2)]
    assert query(store, "t1", kind="T") == [b"%d" % n for n in range(28, 0, -3)]
    assert query(store, "all", max_count=4) == [b"29", b"28", b"27", b"26"]
    assert query(store, "k12", topic="U") == []


def test_a_query_looks_into_older_index_files_and_at_times(opened):
    clock = {"now": 1_000_000_000_000}
    store = opened(clock_ms=lambda: clock["now"], max_index_num=50)
    for n in range(200):
        clock["now"] += 1000
        send(store, body=b"%d" % n, keys=f"k{n % 100}")
    assert query(store, "k5") == [b"105", b"5"]
    assert len(store.index.files) > 3
    middle = 1_000_000_000_000 + 100_000
    assert query(store, "k5", begin=middle) == [b"105"]
    assert query(store, "k5", end=middle) == [b"5"]
    result = store.query("T", "k5", begin=0, end=1 << 60, max_count=1)
    assert result.last_update_timestamp == clock["now"]
    assert result.last_update_physical_offset == store.consume_entry("T", 0, 199)[0]


def test_index_files_sort_by_age_when_the_clock_was_set_back(opened):
    store = opened(max_index_num=50)
    send(store, body=b"0", keys="k")
    store.close()
    (path,) = (opened.directory / "index").iterdir()
    path.rename(path.with_name("99981231235959999"))
    store = opened(max_index_num=50)
    for n in range(1, 100):
        send(store, body=b"%d" % n, keys="k")
    assert query(store, "k", max_count=2) == [b"99", b"98"]
    names = [os.path.basename(file.path) for file in store.index.files]
    assert names[:2] == ["99981231235959999", "99981231235960000"]
    assert names == sorted(names)


@pytest.fixture
def timed(opened):
    """Messages stored at 100, 200, 200, 300."""
    times = iter([100, 200, 200, 300])
    store = opened(clock_ms=lambda: next(times))
    for _ in range(4):
        send(store)
    return store


@pytest.mark.parametrize(
    ("time", "lower", "upper"),
    [(50, 0, 0), (100, 0, 0), (150, 1, 0), (200, 1, 2), (250, 3, 2), (300, 3, 3), (400, 4, 3)],
)
def test_offsets_are_found_by_time(timed, time, lower, upper):
    assert timed.offset_by_time("T", 0, time) == lower
    assert timed.offset_by_time("T", 0, time, upper=True) == upper


def test_store_times_are_told(timed):
    assert [timed.store_time("T", 0, n) for n in range(5)] == [100, 200, 200, 300, -1]
    assert timed.earliest_store_time("T", 0) == 100
    assert timed.earliest_store_time("U", 0) == -1
    assert timed.offset_by_time("U", 0, 1) == 0


def test_a_deliver_time_takes_the_place_of_the_tag(opened):
    store = opened()
    send(store, "SCHEDULE_TOPIC_XXXX", 2, tag="A", deliver_time=1_800_000_000_000)
    assert store.consume_entry("SCHEDULE_TOPIC_XXXX", 2, 0)[2] == 1_800_000_000_000


def test_record_at_refuses_places_where_no_record_begins(opened):
    store = opened()
    place = send(store)
    assert store.record_at(place.physical_offset + 1) is None
    assert store.record_at(place.size) is None
    assert store.record_at(1 << 40) is None
    assert store.record_at(-5) is None
    assert decode_record(store.record_at(0)).body == b"hello"


def test_what_does_not_fit_is_refused_and_changes_nothing(opened):
    store = opened()
    with pytest.raises(InvalidMessage, match="16384"):
        send(store, body=b"x" * 16_300)
    with pytest.raises(InvalidMessage, match="32767"):
        send(store, keys="k" * 32_800)
    assert send(store).queue_offset == 0
    assert bodies(store) == [b"hello"]


def test_a_deleted_topic_is_gone_and_begins_again_at_zero(opened):
    store = opened()
    for n in range(60):
        send(store, body=b"%d" % n)
    send(store, "other")
    delete_topic(store, "T")
    assert set(store.queues()) == {("other", 0)}
    assert not (opened.directory / "consumequeue" / "T").exists()
    assert store.read("T", 0, 0, 1).status is GetStatus.NO_MATCHED_LOGIC_QUEUE
    assert send(store, body=b"new").queue_offset == 0
    opened.crash(store)
    store = opened()
    assert bodies(store) == [b"new"]
    assert bodies(store, "other") == [b"hello"]


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_messages_that_are_under_way_do_not_bring_a_deleted_topic_back(opened, flush):
    store = opened(flush_disk_type=flush)
    send(store, write=False)
    send(store, "other", write=False)
    delete_topic(store, "T")
    store.write()
    store.maintain()
    assert set(store.queues()) == {("other", 0)}
    assert send(store, body=b"new").queue_offset == 0
    store.close()
    assert bodies(opened()) == [b"new"]


def test_ten_thousand_queues_are_light(opened):
    store = opened(mapped_file_size_commit_log=64 << 20, mapped_file_size_consume_queue=6_000_000)
    before = len(os.listdir("/proc/self/fd"))
    for topic in range(2500):
        for queue_id in range(4):
            send(store, f"topic-{topic}", queue_id, write=False)
        if topic % 100 == 99:
            store.write()
    assert not os.listdir(opened.directory / "consumequeue")  # an idle queue has no file
    store.consume_queues.flush(1000)
    assert len(os.listdir(opened.directory / "consumequeue")) == 250
    store.maintain()
    assert len(os.listdir("/proc/self/fd")) - before < 100
    assert store.max_offset("topic-2499", 3) == 1
    assert bodies(store, "topic-0", 0) == bodies(store, "topic-2499", 3) == [b"hello"]
    opened.crash(store)
    store = opened(mapped_file_size_commit_log=64 << 20, mapped_file_size_consume_queue=6_000_000)
    assert store.max_offset("topic-2499", 3) == 1
    assert len(os.listdir("/proc/self/fd")) - before < 100


def test_a_topic_takes_nothing_until_all_of_it_is_deleted(opened):
    store = opened()
    send(store, body=b"old")
    send(store, "other")
    for step in (store.forget_topic("T"), save_checkpoint(store)):
        with pytest.raises(StoreFull, match="T is being deleted"):
            send(store, body=b"too soon")
        send(store, "other")
        step.result()
    store.topic_gone("T")
    assert send(store, body=b"new").queue_offset == 0
    opened.crash(store)
    assert bodies(opened()) == [b"new"]


def test_a_checkpoint_that_is_waited_for_is_no_long_turn_and_does_not_wait_for_what_comes_meanwhile(opened):
    store = opened()
    for number in range(100):
        send(store, f"topic-{number}")
    store.begin_checkpoint()
    turns, more = 0, 0
    while (saved := store.continue_checkpoint()) is None:
        turns += 1
        assert turns < 100
        for _ in range(40):
            send(store, f"more-{more}", write=False)
            more += 1
        store.write()
        assert store.max_offset("more-0", 0) == 1
    saved.result()
    assert turns >= 4
    opened.crash(store)
    again = opened()
    assert opened.recovery.records <= more + 1
    assert all(again.max_offset(f"topic-{number}", 0) == 1 for number in range(100))
    assert again.max_offset(f"more-{more - 1}", 0) == 1


def test_a_file_of_somebody_else_is_named_and_keeps_no_topic_from_being_deleted(opened, caplog):
    store = opened()
    send(store, body=b"old")
    send(store, queue_id=1, body=b"old")
    store.consume_queues.flush(2)
    strays = [opened.directory / "consumequeue" / "T" / name for name in ("0/stray", "note")]
    for stray in strays:
        stray.write_text("an operator's")
    delete_topic(store, "T")
    assert all(str(stray) in caplog.text for stray in strays)
    assert all(stray.read_text() == "an operator's" for stray in strays)
    assert [send(store, queue_id=queue_id, body=b"new").queue_offset for queue_id in (0, 1)] == [0, 0]
    opened.crash(store)
    store = opened()
    assert bodies(store) == bodies(store, queue_id=1) == [b"new"]
