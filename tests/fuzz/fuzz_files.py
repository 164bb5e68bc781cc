"""Every file that a broker reads when it starts: it starts, or says with a RocketQError what is wrong; nothing else.

Input: one byte names the file, one says how to change it (bit 0: the broker was killed; bit 1: the rest is the whole
file; else the rest is four bytes for a place and what to write there; bit 2: the file ends behind it).
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
from functools import cache
from pathlib import Path

from broker_wire import config, running
from store_kit import bodies

from rocketq.broker.server import Broker
from rocketq.errors import RocketQError

NOW = 1_800_000_000_000
SETTINGS = {
    "mapped_file_size_commit_log": 16_384,
    "mapped_file_size_consume_queue": 400,
    "mapped_file_size_timer_log": 1040,
    "max_hash_slot_num": 64,
    "max_index_num": 100,
}


def _clock() -> int:
    return NOW


@cache
def good() -> Path:
    """The directory of a broker that has used all its files."""
    directory = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-"))

    async def fill() -> None:
        async with running(directory, clock_ms=_clock, **SETTINGS) as (_, wire):
            for number in range(40):
                properties = {"KEYS": f"k{number}", "TAGS": "a", "UNIQ_KEY": f"{number:032X}"}
                if number % 4 == 1:
                    properties["TIMER_DELIVER_MS"] = str(NOW + 60_000 * number)
                if number % 4 == 2:
                    properties["DELAY"] = "3"
                answer = await wire.store("TU"[number % 2], b"x" * (number + 1), properties=properties, timeout=60)
                assert answer.code == 0, answer.remark
            await wire.call(34, {}, b'{"clientID":"c","consumerDataSet":[{"groupName":"G"}]}')
            await wire.call(25, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 3})

    asyncio.run(fill())
    for table in (directory / "config").glob("*.json"):
        shutil.copy(table, f"{table}.bak")
    return directory


@cache
def names() -> list[str]:
    root = good()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def changed(directory: Path, data: bytes) -> str:
    """Apply an input to a copy of the good directory; the name of the file."""
    how = data[1]
    name = names()[data[0] % len(names())]
    path = directory / name
    if how & 1:
        (directory / "abort").write_bytes(b"1")
    if how & 2:
        path.write_bytes(data[2:])
        return name
    with open(path, "r+b") as file:
        size = path.stat().st_size
        at = int.from_bytes(data[2:6], "big") % (size + 1)
        file.seek(at)
        file.write(data[6:] if how & 4 else data[6 : 6 + size - at])
        if how & 4:
            file.truncate()
    return name


async def _start(directory: Path) -> None:
    broker = Broker(config(directory, **SETTINGS), clock_ms=_clock)
    try:
        await broker.start()
    except RocketQError:
        return
    try:
        for key in broker.store.queues():
            with contextlib.suppress(RocketQError):
                bodies(broker.store, *key)
        for number in range(0, 40, 10):
            with contextlib.suppress(RocketQError):
                broker.store.query("T", f"k{number}", begin=0, end=NOW, max_count=32)
    finally:
        await broker.stop()


def run_one(data: bytes) -> None:
    if len(data) < 2:
        return
    logging.disable(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-")) / "store"
    try:
        shutil.copytree(good(), directory)
        changed(directory, data)
        asyncio.run(_start(directory))
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(directory.parent)


def seeds() -> list[bytes]:
    root = good()
    found = []
    for number, name in enumerate(names()):
        content = (root / name).read_bytes()[:2048].rstrip(b"\0")
        for how in range(4):
            found.append(bytes([number, how]) + (content if how & 2 else b"\0\0\0\x10" + content[16:64]))
    return found
