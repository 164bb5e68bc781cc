"""What the timer keeps: with any checkpoint, timer log, wheel and messages in its topic it delivers and stops.

Input: four lengths of two bytes, and as many bytes each: the beginning of `timercheck`, units of the timer log, slots
of the wheel (their second in the first 8 bytes says where they are), and the properties of one more message. Bit 0 of
the first length: the checkpoint's mark gets the CRC that makes it ours; bit 1: a check looks at the files first.
"""

import logging
import struct
import zlib
from functools import cache
from pathlib import Path

from broker_wire import config
from scratch import contents, lay_out, scratch, small_wheel
from timer_kit import START, Kit

from rocketq.broker.timerlist import waiting_for
from rocketq.errors import StoreError
from rocketq.store import timerwheel
from rocketq.store.check import StoreCheck

_LOG_FILE = 1040
_SLOT = 32
_WAITING = 6
SETTINGS = {
    "mapped_file_size_timer_log": _LOG_FILE,
    "mapped_file_size_commit_log": 16_384,
    "mapped_file_size_consume_queue": 400,
    "max_hash_slot_num": 64,
    "max_index_num": 100,
}


@cache
def good() -> dict[str, bytes]:
    """The files of a timer with messages, one of which was taken back and one delivered."""
    with scratch() as directory, small_wheel():
        kit = Kit(directory, **SETTINGS)
        kit.send("first", kit.now + 200)
        for number in range(_WAITING):
            kit.send(str(number), START + 5000 + number // 3 * 2000 + number)
        kit.recall("3", START + 7003)
        kit.advance(500)
        kit.checkpoint()
        kit.close()
        return contents(directory)


def _parts(data: bytes) -> tuple[int, list[bytes]]:
    """The switches, and what the lengths cut."""
    parts, at = [], 8
    for start in range(0, 8, 2):
        length = int.from_bytes(data[start : start + 2], "big") >> 2
        parts.append(data[at : at + length])
        at += length
    return data[1] & 3, parts


def _files(switches: int, check: bytes, units: bytes, slots: bytes) -> dict[str, bytes]:
    files = dict(good())
    page = bytearray(check[:4096].ljust(4096, b"\0"))
    if switches & 1:
        page[64:72] = b"rocketq\x02"
        page[88:96] = zlib.crc32(page[:56] + page[64:88]).to_bytes(8, "big")
    files["config/timercheck"] = bytes(page)
    for start in range(0, len(units), _LOG_FILE):
        files[f"timerlog/{start:020d}"] = units[start : start + _LOG_FILE].ljust(_LOG_FILE, b"\0")
    wheel = bytearray(timerwheel.SLOTS * _SLOT)
    for at in range(0, len(slots) - _SLOT + 1, _SLOT):
        place = int.from_bytes(slots[at : at + 8], "big", signed=True) % timerwheel.SLOTS * _SLOT
        wheel[place : place + _SLOT] = slots[at : at + _SLOT]
    files["timerwheel"] = bytes(wheel)
    return files


def _run(directory: Path, properties: bytes) -> None:
    kit = Kit(directory, **SETTINGS)
    try:
        text = properties.decode(errors="replace")[:1000]
        kit.store.append("rmq_sys_wheel_timer", 0, b"more", text, **_MORE)
        kit.store.write()
        for wait in (0, 300, 5000, 4000, 200_000):
            kit.now += wait
            kit.work()
            second = kit.now // 1000
            seconds = range(second, second + 250)
            waiting_for(kit.store, kit.timer._wheel, kit.timer._log, "T", 10, kit.now, seconds, set())
        sent = {"first", "more", *map(str, range(_WAITING))}  # what is damaged may come twice
        assert sent.issuperset(body for body, _ in kit.delivered())
    finally:
        kit.close()


_MORE = {"tag": None, "unique_id": None, "keys": None, "flag": 0, "sys_flag": 0, "born_timestamp": START}
_MORE |= {"born_host": bytes(8), "store_host": bytes(8)}


def run_one(data: bytes) -> None:
    if len(data) < 8:
        return
    logging.disable(logging.CRITICAL)
    try:
        with scratch() as directory, small_wheel():
            switches, (check, units, slots, properties) = _parts(data)
            lay_out(directory, _files(switches, check, units, slots))
            if switches & 2:
                StoreCheck(config(directory, **SETTINGS).store()).run()
            try:
                _run(directory, properties)
            except StoreError:
                return
    finally:
        logging.disable(logging.NOTSET)


def _input(switches: int, *parts: bytes) -> bytes:
    lengths = [len(part) << 2 for part in parts]
    lengths[0] |= switches
    return struct.pack(">4H", *lengths) + b"".join(parts)


def seeds() -> list[bytes]:
    files = good()
    wheel = files["timerwheel"]
    slots = [wheel[at : at + _SLOT] for at in range(0, len(wheel), _SLOT)]
    used = b"".join(slot for slot in slots if slot.strip(b"\0"))
    units = b"".join(files[name] for name in sorted(files) if name.startswith("timerlog/")).rstrip(b"\0")
    units += bytes(-len(units) % 52)
    more = f"REAL_TOPIC\x01T\x02REAL_QID\x010\x02TIMER_OUT_MS\x01{START + 5500}\x02".encode()
    check = files["config/timercheck"][:96]
    found = [_input(switches, check, units, used, more) for switches in range(4)]
    return [
        *found,
        _input(1, check, b"", b"", more),
        _input(0, b"", units, used, b""),
        _input(3, check, units, b"", b""),
    ]
