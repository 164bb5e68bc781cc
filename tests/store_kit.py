"""Helpers for tests of the store: small stores, messages, and the store directories of a real Apache broker."""

import gzip
import json
from pathlib import Path

from rocketq.record import decode_record, pack_host
from rocketq.store import Appended, MessageStore, StoreConfig
from rocketq.store.check import StoreCheck, mend

GOLDEN = Path(__file__).parent / "golden"
HOST = pack_host("127.0.0.1", 40_000)
#: Small files, so that everything rolls.
SMALL = {
    "mapped_file_size_commit_log": 16_384,
    "mapped_file_size_consume_queue": 400,
    "max_hash_slot_num": 64,
    "max_index_num": 100_000,
}
#: For the disk of this machine, which may be full of other things.
ANY_DISK = {
    "disk_space_warning_level_ratio": 100,
    "disk_max_used_space_ratio": 100,
    "disk_space_clean_forcibly_ratio": 100,
}


class Opener:
    """Opens stores in one directory, one after the other."""

    def __init__(self, directory):
        self.directory = directory
        self.stores = []
        self.recovery = None

    def __call__(self, *, files=None, clock_ms=None, follows=False, **settings):
        defaults = SMALL if files else SMALL | ANY_DISK
        config = StoreConfig(store_path_root_dir=str(self.directory), **{**defaults, **settings})
        extra = {"clock_ms": clock_ms} if clock_ms else {}
        store = MessageStore(config, files=files, follows=follows, **extra)
        self.recovery = store.open()
        self.stores.append(store)
        return store

    def close(self):
        for store in self.stores:
            store.close()

    def crash(self, store):
        """Leave the directory as a process that was killed leaves it."""
        abandon(store)
        self.stores.remove(store)


def problems_of(directory, **settings):
    """What a check of the store in a directory says."""
    return StoreCheck(StoreConfig(store_path_root_dir=str(directory), **{**SMALL, **settings})).run()


def mended(directory):
    """Repair the store in a directory; what was done."""
    return mend(StoreConfig(store_path_root_dir=str(directory), **SMALL), problems_of(directory))


def abandon(store):
    """Let go of an open store without saving anything that is in memory."""
    if store._saving is not None:
        store._saving.result()
    store._end_threads()
    store._flusher.on_durable = None
    store._flusher.stop()
    store.log._prepared = None
    store.log.close()
    store.consume_queues.close()
    store.index.close()
    store._marks.unlock()


def delete_topic(store, topic):
    """Delete the queues of a topic, and wait for it."""
    removed = store.forget_topic(topic)
    if removed is not None:
        removed.result()
        save_checkpoint(store).result()
        store.topic_gone(topic)


def save_checkpoint(store):
    """A checkpoint of what was dispatched; returns a future."""
    store.begin_checkpoint()
    while (saved := store.continue_checkpoint()) is None:
        pass
    return saved


def send(
    store,
    topic="T",
    queue_id=0,
    body=b"hello",
    *,
    tag=None,
    keys=None,
    unique_id=None,
    sys_flag=0,
    host=HOST,
    deliver_time=None,
    write=True,
) -> Appended:
    """Append one message and, unless told otherwise, write it."""
    properties = {"UNIQ_KEY": unique_id, "TAGS": tag, "KEYS": keys}
    appended = store.append(
        topic,
        queue_id,
        body,
        "".join(f"{name}\x01{value}\x02" for name, value in properties.items() if value),
        tag=tag,
        unique_id=unique_id,
        keys=keys,
        flag=7,
        sys_flag=sys_flag,
        born_timestamp=1_700_000_000_000,
        born_host=host,
        store_host=host,
        deliver_time=deliver_time,
    )
    if write:
        store.write()
    return appended


def bodies(store, topic="T", queue_id=0, offset=0, **options):
    """The bodies of all messages of a queue from `offset` on."""
    found = []
    while True:
        result = store.read(topic, queue_id, offset, 32, **options)
        for buffer in result.buffers:
            at = 0
            while at < len(buffer):
                record = decode_record(buffer, at, check_crc=True)
                found.append(record.body)
                at += record.size
        if result.next_offset <= offset:
            return found
        offset = result.next_offset


class Golden:
    """A store directory that Apache's 5.4.0 broker left after a clean stop."""

    def __init__(self, name):
        self.source = GOLDEN / name
        self.listing = json.loads((self.source / "store.json").read_text())
        index_size = self.listing["index"][0]["size"]
        small = index_size < 1_000_000
        self.settings = {
            "mapped_file_size_commit_log": self.listing["commitlog"][0]["size"],
            "mapped_file_size_consume_queue": self.listing["consumequeue"][0]["size"],
            "max_hash_slot_num": 64 if small else 5_000_000,
            "max_index_num": 48 if small else 20_000_000,
        }

    @property
    def records(self):
        return [r for file in self.listing["commitlog"] for r in file["records"] if not r.get("blank")]

    def log(self, file):
        return gzip.decompress((self.source / file["dump"]).read_bytes())

    def build(self, directory, *, derived=True):
        """Make the directory again: the CommitLog and, unless told otherwise, what is derived from it."""
        for file in self.listing["commitlog"]:
            write(directory / "commitlog" / file["file"], self.log(file), file["size"])
        write(directory / "checkpoint", bytes.fromhex(self.listing["checkpoint"]["hex40"]), 4096)
        write(directory / "lock", b"lock", 4)
        if not derived:
            return
        for queue in self.listing["consumequeue"]:
            raw = b"".join(bytes.fromhex(entry["hex"]) for entry in queue["entries"])
            write(
                directory / "consumequeue" / queue["topic"] / str(queue["queueId"]) / queue["file"],
                raw,
                queue["size"],
            )
        for index in self.listing["index"]:
            path = directory / "index" / index["file"]
            write(path, bytes.fromhex(index["headerHex"]), index["size"])
            with path.open("r+b") as file:
                for slot, number in index["usedSlots"].items():
                    file.seek(40 + 4 * int(slot))
                    file.write(number.to_bytes(4, "big"))
                file.seek(40 + 4 * self.settings["max_hash_slot_num"])
                file.write(b"".join(bytes.fromhex(entry["hex"]) for entry in index["entries"]))


def write(path, data, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
