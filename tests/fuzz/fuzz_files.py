"""Every file that a broker reads when it starts: it starts, or says with a RocketQError what is wrong; nothing else.

Input: one byte names the file, one says how to change it (bit 0: the broker was killed; bit 1: the rest is the whole
file; else the rest is four bytes for a place and what to write there; bit 2: the file ends behind it).
"""

import asyncio
import contextlib
import logging
from functools import cache
from pathlib import Path

from broker_wire import config, running
from scratch import contents, lay_out, scratch, small_wheel
from store_kit import bodies

from rocketq.broker.server import Broker
from rocketq.errors import RocketQError

NOW = 1_800_000_000_000
_MESSAGES = 16
SETTINGS = {
    "mapped_file_size_commit_log": 8192,
    "mapped_file_size_consume_queue": 100,
    "mapped_file_size_timer_log": 260,
    "max_hash_slot_num": 64,
    "max_index_num": 30,
}


def clock() -> int:
    return NOW


@cache
def good() -> dict[str, bytes]:
    """The files of a broker that has used all of them."""

    async def fill(directory: Path) -> None:
        async with running(directory, clock_ms=clock, **SETTINGS) as (_, wire):
            for number in range(_MESSAGES):
                properties = {"KEYS": f"k{number}", "TAGS": "a", "UNIQ_KEY": f"{number:032X}"}
                if number % 4 == 1:
                    properties["TIMER_DELIVER_MS"] = str(NOW + 10_000 * number)
                if number % 4 == 2:
                    properties["DELAY"] = "3"
                answer = await wire.store("TU"[number % 2], b"x" * (number + 1), properties=properties, timeout=60)
                assert answer.code == 0, answer.remark
            await wire.call(34, {}, b'{"clientID":"c","consumerDataSet":[{"groupName":"G"}]}')
            await wire.call(25, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 3})

    with scratch() as directory, small_wheel():
        asyncio.run(fill(directory))
        files = contents(directory)
    tables = [name for name in files if name.endswith(".json")]
    named = {name: content for name, content in files.items() if not name.startswith("index/")}
    index = [content for name, content in files.items() if name.startswith("index/")]
    named |= {f"index/2027011508000000{number}": content for number, content in enumerate(index)}
    return dict(sorted({**named, **{f"{name}.bak": files[name] for name in tables}}.items()))


def changed(data: bytes) -> dict[str, bytes]:
    """The good files with what an input changes."""
    files, how = dict(good()), data[1]
    name = list(files)[data[0] % len(files)]
    if how & 1:
        files["abort"] = b"1"
    if how & 2:
        files[name] = data[2:]
        return files
    old = files[name]
    at = int.from_bytes(data[2:6], "big") % (len(old) + 1)
    new = data[6:] if how & 4 else data[6 : 6 + len(old) - at]
    files[name] = old[:at] + new + (b"" if how & 4 else old[at + len(new) :])
    return files


async def _start(directory: Path) -> None:
    broker = Broker(config(directory, **SETTINGS), clock_ms=clock)
    try:
        await broker.start()
    except RocketQError:
        return
    try:
        for key in broker.store.queues():
            with contextlib.suppress(RocketQError):
                bodies(broker.store, *key)
        for number in range(0, _MESSAGES, 4):
            with contextlib.suppress(RocketQError):
                broker.store.query("T", f"k{number}", begin=0, end=NOW, max_count=32)
    finally:
        await broker.stop()


_loops: list[asyncio.AbstractEventLoop] = []


def end() -> None:
    """Close what runs."""
    while _loops:
        _loops[0].run_until_complete(_loops[0].shutdown_default_executor())
        _loops.pop().close()


def run_one(data: bytes) -> None:
    if len(data) < 2:
        return
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    logging.disable(logging.CRITICAL)
    try:
        with scratch() as directory, small_wheel():
            lay_out(directory, changed(data))
            _loops[0].run_until_complete(_start(directory))
    finally:
        logging.disable(logging.NOTSET)


def seeds() -> list[bytes]:
    found = []
    for number, content in enumerate(good().values()):
        content = content[:2048].rstrip(b"\0")
        for how in range(4):
            found.append(bytes([number, how]) + (content if how & 2 else b"\0\0\0\x10" + content[16:64]))
    return found
