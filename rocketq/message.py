"""The values everybody shares: messages going out and coming in, queues, ids."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from rocketq import properties as names
from rocketq.errors import InvalidMessage
from rocketq.properties import decode_properties
from rocketq.record import (
    COMPRESSED,
    COMPRESSION_MASK,
    LZ4,
    ZSTD,
    CorruptRecord,
    Record,
    decode_record,
    split_records,
    unpack_host,
)


class MessageQueue(NamedTuple):
    """One queue of a topic on one broker. Sorts by topic, broker, id, as rebalancing needs it."""

    topic: str
    broker_name: str
    queue_id: int


class Message:
    """A message to send.

    `tag` is what consumers filter by, `keys` what people look it up by, `sharding_key` what ordered sends choose
    the queue by, `delay_level` 1 to 18 the broker's delays (1 s 5 s 10 s 30 s 1 m … 2 h; 0: none). `properties`
    are the user's own. `unique_id` is set when it is first sent.
    """

    __slots__ = ("_properties", "body", "flag", "topic")

    def __init__(
        self,
        topic: str,
        body: bytes,
        *,
        tag: str | None = None,
        keys: str | Iterable[str] = (),
        sharding_key: str | None = None,
        delay_level: int = 0,
        properties: Mapping[str, str] | None = None,
        flag: int = 0,
    ) -> None:
        self.topic = topic
        self.body = body
        self.flag = flag
        own: dict[str, str] = {}
        for name, value in (properties or {}).items():
            if name in names.RESERVED or not name or not value or not {"\x01", "\x02"}.isdisjoint(name + value):
                raise InvalidMessage(
                    f"property {name!r}={value!r} for topic {topic}: names must not be reserved, neither may be "
                    "empty or contain \\x01 or \\x02"
                )
            own[name] = value
        if tag:
            own[names.TAGS] = tag
        joined = keys if isinstance(keys, str) else " ".join(keys)
        if joined:
            own[names.KEYS] = joined
        if sharding_key:
            own[names.SHARDING_KEY] = sharding_key
        if delay_level:
            own[names.DELAY] = str(delay_level)
        own[names.WAIT] = "true"
        self._properties = own

    def __repr__(self) -> str:
        return f"<Message topic={self.topic} tag={self.tag} body={len(self.body)} bytes>"

    @property
    def properties(self) -> dict[str, str]:
        """All properties, the protocol's included; changes count for the next send."""
        return self._properties

    @property
    def tag(self) -> str | None:
        return self._properties.get(names.TAGS)

    @property
    def keys(self) -> list[str]:
        return self._properties.get(names.KEYS, "").split()

    @property
    def sharding_key(self) -> str | None:
        return self._properties.get(names.SHARDING_KEY)

    @property
    def delay_level(self) -> int:
        return int(self._properties.get(names.DELAY, "0"))

    @property
    def unique_id(self) -> str | None:
        return self._properties.get(names.UNIQ_KEY)


class ReceivedMessage:
    """A message as a consumer gets it; parts are decoded when they are looked at.

    `topic` is the topic it was sent to, also for a retry (then `stored_topic` is `%RETRY%group`).
    """

    __slots__ = ("_body", "_properties", "broker_name", "record")

    def __init__(self, record: Record, broker_name: str = "") -> None:
        self.record = record
        self.broker_name = broker_name
        self._body: bytes | None = None
        self._properties: dict[str, str] | None = None

    def __repr__(self) -> str:
        r = self.record
        return f"<ReceivedMessage {self.topic}/{r.queue_id}@{r.queue_offset} id={self.message_id}>"

    @property
    def properties(self) -> dict[str, str]:
        if self._properties is None:
            self._properties = decode_properties(self.record.properties)
        return self._properties

    @property
    def body(self) -> bytes:
        """The body, decompressed. Raises CorruptRecord when it cannot be."""
        if self._body is None:
            self._body = decompress(self.record.body, self.record.sys_flag)
        return self._body

    @property
    def topic(self) -> str:
        if self.record.topic.startswith("%RETRY%"):
            return self.properties.get(names.RETRY_TOPIC, self.record.topic)
        return self.record.topic

    @property
    def stored_topic(self) -> str:
        return self.record.topic

    @property
    def tag(self) -> str | None:
        return self.properties.get(names.TAGS)

    @property
    def keys(self) -> list[str]:
        return self.properties.get(names.KEYS, "").split()

    @property
    def sharding_key(self) -> str | None:
        return self.properties.get(names.SHARDING_KEY)

    @property
    def message_id(self) -> str:
        """The producer's unique id, or the offset id of a message without one."""
        return self.properties.get(names.UNIQ_KEY) or self.offset_message_id

    @property
    def offset_message_id(self) -> str:
        return offset_message_id(self.record.store_host, self.record.physical_offset)

    @property
    def queue(self) -> MessageQueue:
        return MessageQueue(self.record.topic, self.broker_name, self.record.queue_id)

    @property
    def queue_id(self) -> int:
        return self.record.queue_id

    @property
    def queue_offset(self) -> int:
        return self.record.queue_offset

    @property
    def physical_offset(self) -> int:
        return self.record.physical_offset

    @property
    def reconsume_times(self) -> int:
        """How often it was delivered and failed before; 0 on the first delivery."""
        return self.record.reconsume_times

    @property
    def born_timestamp(self) -> int:
        """When the producer made it, ms since the epoch."""
        return self.record.born_timestamp

    @property
    def store_timestamp(self) -> int:
        """When the broker stored it, ms since the epoch."""
        return self.record.store_timestamp

    @property
    def born_host(self) -> tuple[str, int]:
        return unpack_host(self.record.born_host)

    @property
    def store_host(self) -> tuple[str, int]:
        return unpack_host(self.record.store_host)


def decode_messages(data: bytes | memoryview, broker_name: str = "") -> list[ReceivedMessage]:
    """The messages of a pull's body. Raises CorruptRecord."""
    return [ReceivedMessage(decode_record(data, start), broker_name) for start, _ in split_records(data)]


def decompress(body: bytes, sys_flag: int) -> bytes:
    """`body` without the compression that `sys_flag` names. Raises CorruptRecord when that is impossible."""
    if not sys_flag & COMPRESSED:
        return body
    kind = sys_flag & COMPRESSION_MASK
    if kind in (LZ4, ZSTD):
        raise CorruptRecord(
            f"the body is compressed with {'LZ4' if kind == LZ4 else 'ZSTD'}, which this client does not read"
        )
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise CorruptRecord(f"the body is not what its compression flag says: {error}") from None


def offset_message_id(store_host: bytes, physical_offset: int) -> str:
    """The id that a broker gives a message: its packed address and its place in the CommitLog, in hex."""
    return (store_host + physical_offset.to_bytes(8, "big", signed=True)).hex().upper()


def parse_offset_message_id(text: str) -> tuple[str, int, int]:
    """(host, port, physical offset) of an offset message id. Raises InvalidMessage."""
    try:
        raw = bytes.fromhex(text)
        if len(raw) not in (16, 28):
            raise ValueError
    except ValueError:
        raise InvalidMessage(f"{text!r} is not an offset message id (32 or 56 hex digits)") from None
    host, port = unpack_host(raw[:-8])
    return host, port, int.from_bytes(raw[-8:], "big", signed=True)


def _local_address() -> bytes:
    """An address of this host for unique ids; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return socket.inet_aton(probe.getsockname()[0])
        except OSError:
            return socket.inet_aton("127.0.0.1")


class UniqueIds:
    """Makes `UNIQ_KEY` values: ip, pid, a random part, ms since the month began, a counter (32 hex digits).

    A fork gets a new prefix by itself. `clock` gives ms since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._pid = -1
        self._prefix = ""
        self._month = 0.0
        self._next_month = 0.0
        self._counter = itertools.count()

    def _start(self, now: float) -> None:
        local = time.localtime(now)
        year, month = local.tm_year, local.tm_mon
        self._month = time.mktime((year, month, 1, 0, 0, 0, 0, 0, -1))
        self._next_month = time.mktime((year, month + 1, 1, 0, 0, 0, 0, 0, -1))
        if self._pid != os.getpid():
            self._pid = os.getpid()
            raw = _local_address() + struct.pack(">H", self._pid & 0xFFFF) + os.urandom(4)
            self._prefix = raw.hex().upper()
            self._counter = itertools.count(int.from_bytes(os.urandom(2), "big"))

    def new(self) -> str:
        now = self._clock()
        if now >= self._next_month or now < self._month or self._pid != os.getpid():
            self._start(now)
        elapsed = int((now - self._month) * 1000) & 0xFFFFFFFF
        return f"{self._prefix}{elapsed:08X}{next(self._counter) & 0xFFFF:04X}"


new_unique_id = UniqueIds().new
