"""The bytes of a log that a slave takes in: what is whole becomes readable, the rest is a StoreError; nothing else.

Input: one byte says where what the master sends is cut in two, the rest is its log.
"""

import contextlib
import itertools
import logging

from fuzz_store import SIZE, seed_log
from scratch import scratch
from store_kit import Opener, abandon, bodies

from rocketq.errors import StoreError
from rocketq.record import CorruptRecord


def run_one(data: bytes) -> None:
    cut = data[0] * len(data) // 256 if data else 0
    log = data[1:]
    logging.disable(logging.CRITICAL)
    try:
        with scratch() as directory:
            store = Opener(directory)(mapped_file_size_commit_log=SIZE, follows=True)
            try:
                edges = sorted({0, cut, *range(0, len(log), SIZE), len(log)})
                for start, end in itertools.pairwise(edges):
                    store.append_raw(start, log[start:end])
            except StoreError:
                pass
            assert store.readable <= store.written_offset
            for key in store.queues():
                with contextlib.suppress(CorruptRecord):  # a slave does not look at bodies, consumers do
                    bodies(store, *key)
            abandon(store)
    finally:
        logging.disable(logging.NOTSET)


def seeds() -> list[bytes]:
    log = seed_log()
    return [b"\x80" + log, b"\x13" + log[: SIZE + 300], b"\0" + log[:SIZE]]
