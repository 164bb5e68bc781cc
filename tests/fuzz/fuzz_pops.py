"""The log of what POP consumers hold: check points, acknowledgements and orderly batches, ours and Apache's.

Input: records, separated by two 0xff bytes; each one is a byte (bits 0 and 1: its kind, bit 2: it is in a queue of
Apache's, bit 3: it comes while the broker runs) and the JSON. A record that says nothing is stepped over; what the
others say is given out again when it is due, and acknowledged.
"""

import logging
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from broker_wire import config
from fuzz_files import clock
from fuzz_tables import NOBODY, OneFile

from rocketq.broker.checkpoints import CheckPoints
from rocketq.broker.offsets import Offsets
from rocketq.broker.orderly import OrderInfo
from rocketq.broker.revivelog import ReviveLog
from rocketq.record import decode_record, encode_record

BETWEEN = b"\xff\xff"
_KINDS = (b"ck", b"ack", b"bAck", b"order")
_LATEST = 1 << 62


class _Store:
    """Takes records, and has none."""

    def __init__(self) -> None:
        self.appended = 0

    def append(self, topic: str, queue_id: int, body: bytes, properties: str, **more: Any) -> Any:
        self.appended += 1
        assert len(body) < 1 << 20
        return SimpleNamespace(queue_offset=self.appended)

    def max_offset(self, topic: str, queue_id: int) -> int:
        return self.appended

    def write(self) -> None: ...

    def store_time(self, topic: str, queue_id: int, offset: int) -> int:
        return 0


@cache
def _config() -> Any:
    return config(Path("/"))


def _work(points: CheckPoints) -> None:
    """What is done with leases."""
    for point in points:
        first = point.key.start_offset
        assert point.bits(point.open_offsets) == point.masked(0, 0) | point.bits(point.offsets)
        assert point.masked(first, 3) >= 0
    while due := points.take_due(_LATEST, 10):
        for point in due:
            assert point.open_offsets
            assert all(offset >= 0 for offset in point.open_offsets)
            points.remove(point)


def run_one(data: bytes) -> None:
    store: Any = _Store()
    offsets = Offsets(Path("/"), OneFile(b""), NOBODY, NOBODY, store, clock)
    log = ReviveLog(_config(), store, offsets, clock)
    logging.disable(logging.CRITICAL)
    try:
        for number, part in enumerate(data.split(BETWEEN)[:8]):
            if not part:
                continue
            how, queue_id = part[0], 3 * (part[0] >> 2 & 1)
            tag = b"TAGS\x01" + _KINDS[how & 3] + b"\x02"
            packed = encode_record(queue_id, number, number, b"T", part[1:], tag, 0, 0, 0, bytes(8), 0, bytes(8))
            log._take(decode_record(packed), queue_id, foreign=bool(how & 8))
        log.maintain()
        for (topic, group, queue_id), info in list(log.orders.items()):
            assert OrderInfo.from_json(info.to_json()) == info
            info.blocked_until(None, 0)
            info.count_info(queue_id)
            for offset in info.offsets[:4]:
                info = info.ack(offset) or info
            info.then((info.next_offset(),), 0, 1, None)
            log.ordered(topic, group, queue_id, info)
        _work(log.points)
    finally:
        logging.disable(logging.NOTSET)


def seeds() -> list[bytes]:
    ck = b'{"bm":0,"bn":"b","c":"G","d":[0,1,2],"it":60000,"n":3,"pt":1700,"q":0,"so":5,"t":"T"}'
    ack = b'{"ao":6,"bn":"b","c":"G","pt":1700,"q":0,"so":5,"t":"T"}'
    many = b'{"aol":[5,7],"bn":"b","c":"G","pt":1700,"q":0,"so":5,"t":"T"}'
    info = b'{"cm":1,"i":60000,"l":1,"o":[3,1],"oc":{"3":1},"ot":{"4":9},"popTime":1}'
    order = b'{"t":"T","c":"G","q":0,"at":3,"info":%s}' % info
    records = [b"\0" + ck, b"\1" + ack, b"\2" + many, b"\3" + order]
    return [*records, BETWEEN.join(records), b"\x0c" + ck + BETWEEN + b"\x0d" + ack]
