"""The CommitLog record: what is stored, and what a pull answers with, byte for byte.

Layout (big-endian; `CommitLog`, `MessageExtEncoder`, `MessageDecoder`)::

    4 total size | 4 magic | 4 body CRC | 4 queue id | 4 flag | 8 queue offset | 8 physical offset | 4 sysFlag
    8 born time | 8/20 born host | 8 store time | 8/20 store host | 4 reconsume times
    8 prepared transaction offset | 4+n body | 1+n (v1) or 2+n (v2) topic | 2+n properties

Hosts are an IP address and an int32 port; sysFlag says which of them are IPv6. The CRC is zlib's, 31 bits, over
the body as stored. v2 is used when the topic is longer than 127 bytes.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from rocketq.errors import StoreError

MAGIC_V1 = 0xDAA320A7
MAGIC_V2 = 0xDAA320AB
#: Magic of the filler at the end of a CommitLog file: int32 remaining, int32 this, nothing else.
MAGIC_BLANK = 0xCBD43194
BLANK_SIZE = 8

# sysFlag (`MessageSysFlag`)
COMPRESSED = 0x1
MULTI_TAGS = 0x2
TRANSACTION_MASK = 0xC
TRANSACTION_PREPARED = 0x4
TRANSACTION_COMMIT = 0x8
TRANSACTION_ROLLBACK = 0xC
BORN_HOST_V6 = 0x10
STORE_HOST_V6 = 0x20
NEED_UNWRAP = 0x40
INNER_BATCH = 0x80
COMPRESSION_MASK = 0x700
LZ4 = 0x100
ZSTD = 0x200
ZLIB = 0x300

_HEAD_V4 = struct.Struct(">IIIiiqqiq8sq8siqi")
_PREFIX = struct.Struct(">IIIiiqqiq")  # up to and with the born time
_INT = struct.Struct(">i")
_IQI = struct.Struct(">iqi")
_SHORT = struct.Struct(">h")
_USHORT = struct.Struct(">H")
_LONG = struct.Struct(">q")

#: Positions of fields inside every record.
QUEUE_OFFSET_AT = 20
PHYSICAL_OFFSET_AT = 28
SYS_FLAG_AT = 36


class CorruptRecord(StoreError):
    """Bytes that should be a record are not; the text says what is wrong."""


class Record(NamedTuple):
    """One decoded record. `body` is as stored (perhaps compressed), hosts are packed (see :func:`pack_host`)."""

    size: int
    magic: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    physical_offset: int
    sys_flag: int
    born_timestamp: int
    born_host: bytes
    store_timestamp: int
    store_host: bytes
    reconsume_times: int
    prepared_transaction_offset: int
    body: bytes
    topic: str
    properties: str


def body_crc(body: bytes) -> int:
    """The 31-bit CRC that a record carries for its body."""
    return zlib.crc32(body) & 0x7FFFFFFF


def pack_host(host: str, port: int) -> bytes:
    """8 bytes for an IPv4 host, 20 for an IPv6 one. Raises ValueError for a name that is not an address."""
    return ipaddress.ip_address(host.partition("%")[0]).packed + port.to_bytes(4, "big")


def unpack_host(packed: bytes) -> tuple[str, int]:
    """The address and port of a packed host."""
    return str(ipaddress.ip_address(packed[:-4])), int.from_bytes(packed[-4:], "big")


def encode_record(
    queue_id: int,
    queue_offset: int,
    physical_offset: int,
    topic: bytes,
    body: bytes,
    properties: bytes,
    flag: int,
    sys_flag: int,
    born_timestamp: int,
    born_host: bytes,
    store_timestamp: int,
    store_host: bytes,
    reconsume_times: int = 0,
    prepared_transaction_offset: int = 0,
) -> bytes:
    """The bytes of one record. IPv6 flags are set from the hosts' lengths, the version from the topic's."""
    body_length = len(body)
    topic_length = len(topic)
    crc = zlib.crc32(body) & 0x7FFFFFFF
    if topic_length <= 127:
        magic = MAGIC_V1
        topic_head = topic_length.to_bytes(1, "big")
    else:
        magic = MAGIC_V2
        topic_head = topic_length.to_bytes(2, "big")
    size = 82 + body_length + len(topic_head) + topic_length + len(properties) + 8
    born_v6 = len(born_host) == 20
    store_v6 = len(store_host) == 20
    if not born_v6 and not store_v6:
        head = _HEAD_V4.pack(
            size,
            magic,
            crc,
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6),
            born_timestamp,
            born_host,
            store_timestamp,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            body_length,
        )
    else:
        size += 12 * (born_v6 + store_v6)
        flags = sys_flag & ~(BORN_HOST_V6 | STORE_HOST_V6)
        flags |= BORN_HOST_V6 * born_v6 | STORE_HOST_V6 * store_v6
        head = b"".join(
            (
                _PREFIX.pack(
                    size, magic, crc, queue_id, flag, queue_offset, physical_offset, flags, born_timestamp
                ),
                born_host,
                _LONG.pack(store_timestamp),
                store_host,
                _IQI.pack(reconsume_times, prepared_transaction_offset, body_length),
            )
        )
    return b"".join((head, body, topic_head, topic, _USHORT.pack(len(properties)), properties))


def decode_record(data: bytes | memoryview, offset: int = 0, *, check_crc: bool = False) -> Record:
    """The record at `offset` of `data`.

    Raises CorruptRecord when the bytes are cut short, lie about their sizes, or (with `check_crc`) when the body
    does not match its CRC.
    """
    try:
        size, magic, crc, queue_id, flag, queue_offset, physical_offset, sys_flag, born = _PREFIX.unpack_from(
            data, offset
        )
        if magic not in (MAGIC_V1, MAGIC_V2):
            raise CorruptRecord(f"magic {magic:#010x} is not that of a record")
        end = offset + size
        if end > len(data):
            raise CorruptRecord(f"record of {size} bytes is cut short after {len(data) - offset}")
        at = offset + 48
        width = 20 if sys_flag & BORN_HOST_V6 else 8
        born_host = bytes(data[at : at + width])
        at += width
        (store_timestamp,) = _LONG.unpack_from(data, at)
        at += 8
        width = 20 if sys_flag & STORE_HOST_V6 else 8
        store_host = bytes(data[at : at + width])
        at += width
        reconsume_times, prepared, body_length = _IQI.unpack_from(data, at)
        at += 16
        if body_length < 0 or at + body_length > end:
            raise CorruptRecord(f"body of {body_length} bytes exceeds its record of {size}")
        body = bytes(data[at : at + body_length])
        at += body_length
        if magic == MAGIC_V1:
            topic_length = data[at]
            at += 1
        else:
            (topic_length,) = _USHORT.unpack_from(data, at)
            at += 2
        topic = bytes(data[at : at + topic_length]).decode()
        at += topic_length
        (properties_length,) = _SHORT.unpack_from(data, at)
        at += 2
        if properties_length < 0 or at + properties_length != end:
            raise CorruptRecord(f"the parts of a record add up to {at + properties_length - offset}, not {size}")
        properties = bytes(data[at:end]).decode()
    except (struct.error, IndexError):
        raise CorruptRecord(f"record is cut short after {len(data) - offset} bytes") from None
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"topic or properties are not UTF-8: {error}") from None
    if check_crc and body_crc(body) != crc:
        raise CorruptRecord(f"body CRC is {body_crc(body):#x}, the record says {crc:#x}")
    return Record(
        size,
        magic,
        crc,
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        sys_flag,
        born,
        born_host,
        store_timestamp,
        store_host,
        reconsume_times,
        prepared,
        body,
        topic,
        properties,
    )


def split_records(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """(start, size) of each record of a pull's body. Raises CorruptRecord where the sizes do not fit."""
    offset = 0
    end = len(data)
    while offset < end:
        if end - offset < 4:
            raise CorruptRecord(f"{end - offset} bytes left over after the last record")
        (size,) = _INT.unpack_from(data, offset)
        if size < 91 or offset + size > end:
            raise CorruptRecord(f"record size {size} does not fit the {end - offset} bytes that are left")
        yield offset, size
        offset += size
