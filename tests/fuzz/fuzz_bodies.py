"""Every body that comes over the wire: garbage is a ValueError or CorruptRecord, nothing else.

Input: one byte for the kind of body, then the body.
"""

from collections.abc import Callable
from typing import Any

from rocketq import javajson
from rocketq.errors import RocketQError
from rocketq.message import decode_messages, decompress
from rocketq.properties import decode_properties
from rocketq.recall import RecallHandle
from rocketq.record import decode_record, split_records
from rocketq.remoting import bodies
from rocketq.remoting.receipts import parse_receipt
from rocketq.trace import decode as decode_traces


def _typed(data: bytes) -> None:
    for kind in (getattr(bodies, name) for name in sorted(bodies.__all__)):
        try:
            body = kind.decode(data)
        except ValueError:
            continue
        body.encode()


def _registration(data: bytes) -> None:
    body = bodies.RegisterBrokerBody.decode(data, compressed=True, max_size=1 << 20)
    assert bodies.RegisterBrokerBody.decode(body.encode_compressed(), compressed=True) == body


def _json(data: bytes) -> None:
    value = javajson.loads(data)
    try:
        written = javajson.dumps(value)
    except TypeError:  # an object as a key that is no queue can be read only
        return
    javajson.loads(written)


def _records(data: bytes) -> None:
    for start, _ in split_records(data):
        decode_record(data, start, check_crc=True)


def _properties(data: bytes) -> None:
    text = data.decode()
    for name, value in decode_properties(text).items():
        assert name
        assert value


KINDS: tuple[Callable[[bytes], Any], ...] = (
    _typed,
    _registration,
    _json,
    decode_messages,
    _records,
    _properties,
    lambda data: decompress(data[1:], data[0]) if data else None,
    lambda data: parse_receipt(data.decode(), "T", "G"),
    lambda data: RecallHandle.decode(data.decode()),
    lambda data: decode_traces(data.decode()),
)


def run_one(data: bytes) -> None:
    if data:
        try:
            KINDS[data[0] % len(KINDS)](data[1:])
        except (ValueError, RocketQError):
            return


def seeds() -> list[bytes]:
    from golden_frames import recorded

    found = []
    for one in recorded():
        if one.body:
            kinds = (0, 2) if one.body[:1] in (b"{", b"[") else (1, 3, 4, 6)
            found += [bytes([kind]) + one.body for kind in kinds if len(one.body) < 4096]
        properties = one.header.partition(b'"i":"')[2].partition(b'"')[0]
        if properties:
            found.append(b"\x05" + properties.replace(b"\\u0001", b"\x01").replace(b"\\u0002", b"\x02"))
    found += [b"\x070 1700000000000 60000 0 0 broker-a 0 5", b"\x08djEgdG9waWMgYnJva2VyIDE3MDAgaWQ="]
    found.append(
        b"\x09Pub\x011\x01region\x01group\x01topic\x01id\x01tag\x01key\x01host\x0110\x015\x010\x01off\x01true\x02"
    )
    return list(dict.fromkeys(found))
