"""A fuzz target for the store's reader: a damaged CommitLog is recovered, or refused with StoreError; nothing else.

python tests/fuzz/fuzz_store.py [corpus …]            with atheris, if it is installed
python tests/fuzz/fuzz_store.py --rounds N --seed S   a plain random loop otherwise
"""

import argparse
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from store_kit import Opener, abandon, bodies, send

from rocketq.errors import StoreError
from rocketq.record import decode_record

SIZE = 4096


def seed_log() -> bytes:
    """Two files of a good log."""
    directory = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-"))
    store = Opener(directory)(mapped_file_size_commit_log=SIZE)
    for number in range(40):
        send(store, "TU"[number % 2], body=b"%d" % number * 5, tag="A", keys="k", unique_id=f"{number:032X}")
    abandon(store)
    log = b"".join(path.read_bytes() for path in sorted((directory / "commitlog").iterdir()))
    shutil.rmtree(directory)
    return log[: 2 * SIZE]


def run_one(data: bytes) -> bool:
    """Open a store whose log is `data`; whether it opened. Any other exception is a finding."""
    directory = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-"))
    try:
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
    finally:
        shutil.rmtree(directory)


def mutated(rng: random.Random, log: bytes) -> bytes:
    """A good log with some bytes changed, zeroed, moved or cut off."""
    data = bytearray(log)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                end = min(len(data), at + rng.choice((1, 8, 100, 512, 1500)))
                data[at:end] = bytes(end - at)
            case 2:
                data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.randbytes(4)))
            case 3:
                other = rng.randrange(len(data))
                piece = data[other : other + rng.randrange(200)]
                data[at : at + len(piece)] = piece
            case 4:
                data[at:] = bytes(len(data) - at)
    return bytes(data[: 2 * SIZE])


def loop(rounds: int, seed: int) -> int:
    """The plain loop; returns how many logs could be opened. A finding names the seed and the bytes."""
    rng = random.Random(seed)
    log = seed_log()
    opened = 0
    for number in range(rounds):
        data = mutated(rng, log) if number % 10 else rng.randbytes(rng.randrange(SIZE))
        try:
            opened += run_one(data)
        except Exception as error:
            raise AssertionError(f"round {number} of seed {seed}: {data.hex()}") from error
    return opened


def main() -> None:
    logging.disable(logging.CRITICAL)
    try:
        import atheris
    except ImportError:
        parser = argparse.ArgumentParser(description="Fuzz the store's reader without atheris.")
        parser.add_argument("--rounds", type=int, default=2000)
        parser.add_argument("--seed", type=int, default=random.randrange(2**32))
        options = parser.parse_args()
        sys.stdout.write(f"atheris is not installed: {options.rounds} random rounds, seed {options.seed}\n")
        sys.stdout.write(f"{loop(options.rounds, options.seed)} could be opened, none did harm\n")
        return
    atheris.Setup(sys.argv, run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
