"""Store directories of Apache's broker: ours opens them, and writes the same bytes for the same messages."""

import pytest
from store_kit import Golden, Opener

from rocketq.hashing import tags_code
from rocketq.properties import decode_properties
from rocketq.record import decode_record
from rocketq.store import GetStatus
from rocketq.store.consumequeue import ENTRY

NAMES = ["disk_default", "disk_small", "disk_options"]
LMQ = "%LMQ%"


@pytest.fixture(params=NAMES)
def golden(request):
    return Golden(request.param)


def test_every_record_of_an_apache_store_is_read(golden, opened):
    golden.build(opened.directory)
    store = opened(**golden.settings)
    assert opened.recovery.clean
    assert opened.recovery.problems == []
    for listed in golden.records:
        record = decode_record(store.record_at(listed["physicalOffset"]), check_crc=True)
        assert record.topic == listed["topic"]
        assert record.magic == int(listed["magic"], 16)
        assert record.queue_offset == listed["queueOffset"]
        assert record.store_timestamp == listed["storeTimestamp"]
        assert decode_properties(record.properties) == listed["properties"]


def test_the_golden_stores_cover_what_is_special():
    magics, flags = set(), set()
    for name in NAMES:
        for record in Golden(name).records:
            magics.add(record["magic"])
            flags.add(record["sysFlag"])
    assert magics == {"0xdaa320a7", "0xdaa320ab"}
    assert {16, 192, 8, 769} <= flags  # IPv6 host, inner batch, committed transaction, compressed


def test_every_consume_queue_of_an_apache_store_is_read(golden, opened):
    golden.build(opened.directory)
    store = opened(**golden.settings)
    counts = {}
    for queue in golden.listing["consumequeue"]:
        key = queue["topic"], queue["queueId"]
        for entry in queue["entries"]:
            offset = counts.get(key, 0)
            counts[key] = offset + 1
            expected = (entry["commitLogOffset"], entry["size"], entry["tagsCode"])
            assert store.consume_entry(*key, offset) == expected
            result = store.read(*key, offset, 1)
            assert result.status is GetStatus.FOUND
            assert bytes(result.buffers[0]) == bytes(store.record_at(entry["commitLogOffset"]))
    assert {key: store.max_offset(*key) for key in counts} == counts
    assert set(store.queues()) == set(counts)


def test_every_index_entry_of_an_apache_store_is_found(golden, opened):
    golden.build(opened.directory)
    store = opened(**golden.settings)
    looked_up = 0
    for index in golden.listing["index"]:
        for entry in index["entries"][1:]:
            for key in entry["key"]:
                topic, _, name = key.partition("#")
                kind = "T" if name.startswith("T#") else "K"
                result = store.query(topic, name.removeprefix("T#"), begin=0, end=1 << 60, max_count=64, kind=kind)
                offsets = [decode_record(record).physical_offset for record in result.buffers]
                assert entry["phyOffset"] in offsets
                looked_up += 1
    assert looked_up >= 4


def test_an_address_in_the_extension_file_does_not_hide_a_message_from_its_tag(opened):
    golden = Golden("disk_options")
    golden.build(opened.directory)
    store = opened(**golden.settings)
    assert store.consume_entry("OTopic", 0, 0)[2] == -(2**63)
    result = store.read("OTopic", 0, 0, 32, codes=frozenset({tags_code("TagA")}))
    records = [decode_record(buffer) for buffer in result.buffers]
    assert [decode_properties(record.properties).get("TAGS") for record in records] == ["TagA"]
    assert result.next_offset == 3


def test_derived_files_are_rebuilt_with_apaches_bytes(golden, opened):
    golden.build(opened.directory, derived=False)
    opened(**golden.settings).close()
    assert opened.recovery.rebuilt
    check_derived(golden, opened.directory)


def check_derived(golden, directory):
    for queue in golden.listing["consumequeue"]:
        if queue["topic"].startswith(LMQ):
            continue  # light queues are Apache's alone
        path = directory / "consumequeue" / queue["topic"] / str(queue["queueId"]) / queue["file"]
        data = path.read_bytes()
        assert len(data) == queue["size"]
        entries = list(ENTRY.iter_unpack(data[: 20 * len(queue["entries"])]))
        for entry, listed in zip(entries, queue["entries"], strict=True):
            code = listed["tagsCode"]
            if code < -(2**31):  # an address in the extension file, which is a cache
                code = next(
                    tags_code(record["properties"].get("TAGS", ""))
                    for record in golden.records
                    if record["physicalOffset"] == listed["commitLogOffset"]
                )
            assert entry == (listed["commitLogOffset"], listed["size"], code)
        assert not any(data[20 * len(queue["entries"]) :])
    slots = golden.settings["max_hash_slot_num"]
    files = sorted((directory / "index").iterdir())
    assert len(files) == len(golden.listing["index"])
    for path, index in zip(files, golden.listing["index"], strict=True):
        with path.open("rb") as file:
            assert file.read(40).hex() == index["headerHex"]
            for slot, number in index["usedSlots"].items():
                file.seek(40 + 4 * int(slot))
                assert int.from_bytes(file.read(4), "big") == number
            file.seek(40 + 4 * slots)
            for entry in index["entries"]:
                assert file.read(20).hex() == entry["hex"]
        assert path.stat().st_size == index["size"]


def test_the_same_messages_make_the_same_files(golden, tmp_path):
    clock = {"now": 0}
    opener = Opener(tmp_path / "ours")
    store = opener(clock_ms=lambda: clock["now"], **golden.settings)
    delays = store.config.delay_levels()
    for file in golden.listing["commitlog"]:
        data = golden.log(file)
        start = int(file["file"])
        for listed in file["records"]:
            if listed.get("blank"):
                continue
            record = decode_record(data, listed["physicalOffset"] - start)
            clock["now"] = record.store_timestamp
            properties = decode_properties(record.properties)
            level = int(properties.get("DELAY", "0")) if record.topic == "SCHEDULE_TOPIC_XXXX" else 0
            if record.topic == "BTopic":  # a batch takes several offsets at once
                store.consume_queues.obtain(record.topic, record.queue_id).next_offset = record.queue_offset
            store.append(
                record.topic,
                record.queue_id,
                record.body,
                record.properties,
                tag=properties.get("TAGS"),
                unique_id=properties.get("UNIQ_KEY"),
                keys=properties.get("KEYS"),
                flag=record.flag,
                sys_flag=record.sys_flag,
                born_timestamp=record.born_timestamp,
                born_host=record.born_host,
                store_host=record.store_host,
                reconsume_times=record.reconsume_times,
                prepared_transaction_offset=record.prepared_transaction_offset,
                deliver_time=record.store_timestamp + delays[level - 1] if level else None,
            )
            if record.queue_offset % 3:
                store.write()
    store.write()
    store.close()
    for file in golden.listing["commitlog"]:
        with (tmp_path / "ours" / "commitlog" / file["file"]).open("rb") as ours:
            assert ours.read(file["usedBytes"]) == golden.log(file)[: file["usedBytes"]]
            assert ours.seek(0, 2) == file["size"]
    check_derived(golden, tmp_path / "ours")


def test_the_checkpoint_has_apaches_times(tmp_path):
    golden = Golden("disk_options")
    golden.build(tmp_path / "store", derived=False)
    opener = Opener(tmp_path / "store")
    opener(**golden.settings).close()
    page = (tmp_path / "store" / "checkpoint").read_bytes()
    assert page[:40].hex() == golden.listing["checkpoint"]["hex40"]
    assert len(page) == 4096
    assert not any(page[40:64])
    assert not any(page[104:])
