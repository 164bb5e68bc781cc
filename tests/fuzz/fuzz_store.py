"""A damaged CommitLog is recovered, or refused with StoreError; nothing else. Input: the log's bytes."""

import logging
from pathlib import Path

from scratch import scratch
from store_kit import Opener, abandon, bodies, send

from rocketq.errors import StoreError
from rocketq.record import decode_record

SIZE = 4096


def seed_log() -> bytes:
    """Two files of a good log."""
    with scratch() as directory:
        store = Opener(directory)(mapped_file_size_commit_log=SIZE)
        for number in range(40):
            send(store, "TU"[number % 2], body=b"%d" % number * 5, tag="A", keys="k", unique_id=f"{number:032X}")
        abandon(store)
        log = b"".join(path.read_bytes() for path in sorted((directory / "commitlog").iterdir()))
    return log[: 2 * SIZE]


def _open(directory: Path, data: bytes) -> bool:
    (directory / "commitlog").mkdir()
    for start in range(0, max(len(data), 1), SIZE):
        path = directory / "commitlog" / f"{start:020d}"
        path.write_bytes(data[start : start + SIZE].ljust(SIZE, b"\0"))
    (directory / "abort").write_bytes(b"1")
    opener = Opener(directory)
    try:
        store = opener(mapped_file_size_commit_log=SIZE)
    except StoreError:
        return False
    messages = {key: bodies(store, *key) for key in store.queues()}
    offset = 0
    while offset < store.written_offset:
        record = store.record_at(offset)
        if record is None:
            offset += SIZE - offset % SIZE  # a filler
            continue
        decode_record(record, check_crc=True)
        offset += len(record)
    abandon(store)
    # what was recovered once is recovered again, and without a complaint
    store = opener(mapped_file_size_commit_log=SIZE)
    assert opener.recovery.problems == []
    assert {key: bodies(store, *key) for key in store.queues()} == messages
    abandon(store)
    return True


def run_one(data: bytes) -> bool:
    """Open a store whose log is `data`; whether it opened. Any other exception is a finding."""
    logging.disable(logging.CRITICAL)
    try:
        with scratch() as directory:
            return _open(directory, data)
    finally:
        logging.disable(logging.NOTSET)


def seeds() -> list[bytes]:
    return [seed_log()]
