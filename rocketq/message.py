"""The values everybody shares: messages going out and coming in, queues, ids."""

from __future__ import annotations

import itertools
import math
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import NamedTuple

from rocketq import properties as names
from rocketq.errors import InvalidMessage
from rocketq.names import reply_topic
from rocketq.properties import decode_properties
from rocketq.record import (
    BORN_HOST_V6,
    COMPRESSED,
    COMPRESSION_MASK,
    LZ4,
    MAGIC_V1,
    MAGIC_V2,
    PHYSICAL_OFFSET_AT,
    STORE_HOST_V6,
    SYS_FLAG_AT,
    ZSTD,
    CorruptRecord,
    Record,
    decode_record,
    encode_record,
    unpack_host,
)

_INT = struct.Struct(">i")
_LONG = struct.Struct(">q")
_RECORD_START = struct.Struct(">iI12xq")

#: Bytes that a compressed body may unpack to: 16 times what brokers take by default (maxMessageSize), and little enough
#: that a few KiB which unpack to GiBs do not cost a consumer its memory.
MAX_UNPACKED_BODY = 64 << 20


class MessageQueue(NamedTuple):
    """One queue of a topic on one broker. Sorts by topic, broker, id, as rebalancing needs it."""

    topic: str
    broker_name: str
    queue_id: int


class Message:
    """A message to send.

    `tag` is what consumers filter by, `keys` what people look it up by, `sharding_key` what ordered sends choose
    the queue by, `delay_level` 1 to 18 the broker's delays (1 s 5 s 10 s 30 s 1 m … 2 h; 0: none). `delay` (timedelta
    or seconds) and `at` (datetime; without a zone: local time) let a 5.x broker deliver it then, to the millisecond
    (Apache's: at the next full second); one of the three. `priority` from 0 chooses the queue of that number, or the
    last one, where brokers are 5.4 or later. `properties` are the user's own. `unique_id` is set when it is first sent.
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
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
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
        if delay is not None or at is not None:
            self.postpone(delay=delay, at=at)
        if priority is not None:
            self.prioritize(priority)

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

    @property
    def priority(self) -> int | None:
        value = self._properties.get(names.PRIORITY)
        return None if value is None else int(value)

    def postpone(self, *, delay: timedelta | float | None = None, at: datetime | None = None) -> None:
        """Let brokers keep the message until then; see `delay` and `at` of the class. A time that is over is now.

        Raises InvalidMessage when both are given, or a delay level too, or what is given is no time.
        """
        if (delay is not None and at is not None) or self.delay_level > 0:
            raise InvalidMessage(
                f"message for topic {self.topic}: only one of delay, at and delay_level can count"
            )
        properties = self._properties
        properties.pop(names.TIMER_DELAY_MS, None)
        properties.pop(names.TIMER_DELIVER_MS, None)
        try:
            if delay is not None:
                seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
                if seconds < 0:
                    raise ValueError("it is negative")
                # rather a fraction of a ms late than early
                properties[names.TIMER_DELAY_MS] = str(math.ceil(round(seconds * 1000, 6)))
            elif at is not None:
                since = at.astimezone(timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)
                properties[names.TIMER_DELIVER_MS] = str(max(0, -(-since // timedelta(milliseconds=1))))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"delay={delay!r}" if delay is not None else f"at={at!r}"
            raise InvalidMessage(f"message for topic {self.topic}: {what} cannot be used: {error}") from None

    def prioritize(self, priority: int) -> None:
        """Give the message a priority, from 0. Raises InvalidMessage."""
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority < 2**31:
            raise InvalidMessage(f"message for topic {self.topic}: priority={priority!r} is no number from 0 on")
        self._properties[names.PRIORITY] = str(priority)


class ReceivedMessage:
    """A message as a consumer gets it; parts are decoded when they are looked at.

    `topic` is the topic it was sent to, also for a retry (then `stored_topic` is `%RETRY%group`). Bytes that are
    not a record show when a part is read, as CorruptRecord. It keeps the whole answer that it came in alive.
    """

    __slots__ = (
        "_body",
        "_data",
        "_properties",
        "_spans",
        "_start",
        "broker_name",
        "local_retries",
        "queue_offset",
        "size",
    )

    def __init__(self, record: Record, broker_name: str = "") -> None:
        data = encode_record(
            record.queue_id,
            record.queue_offset,
            record.physical_offset,
            record.topic.encode(),
            record.body,
            record.properties.encode(),
            record.flag,
            record.sys_flag,
            record.born_timestamp,
            record.born_host,
            record.store_timestamp,
            record.store_host,
            record.reconsume_times,
            record.prepared_transaction_offset,
        )
        self._set(data, 0, len(data), record.queue_offset, broker_name)

    def _set(self, data: bytes, start: int, size: int, queue_offset: int, broker_name: str) -> None:
        self._data = data
        self._start = start
        self.size = size
        self.queue_offset = queue_offset
        self.broker_name = broker_name
        #: Deliveries that failed in this process without a way over the broker (ordered consumers).
        self.local_retries = 0
        self._spans: tuple[int, int, int, int, int] | None = None
        self._body: bytes | None = None
        self._properties: dict[str, str] | None = None

    def __repr__(self) -> str:
        place = f"{self.queue_id}@{self.queue_offset}"
        try:
            return f"<ReceivedMessage {self.topic}/{place} id={self.message_id}>"
        except CorruptRecord as error:
            return f"<ReceivedMessage damaged {place}: {error}>"

    def _locate(self) -> tuple[int, int, int, int, int]:
        """Start and end of body, start and end of topic, start of properties."""
        data, end = self._data, self._start + self.size
        flags = data[self._start + SYS_FLAG_AT + 3]
        at = self._start + 88
        if flags & (BORN_HOST_V6 | STORE_HOST_V6):
            at += 12 * (bool(flags & BORN_HOST_V6) + bool(flags & STORE_HOST_V6))
        body_end = at + int.from_bytes(data[at - 4 : at], "big", signed=True)
        if not at <= body_end < end - 3:
            raise CorruptRecord(f"body of {body_end - at} bytes does not fit its record of {self.size}")
        topic = body_end + 1
        topic_end = topic + data[body_end]
        if data[self._start + 7] == MAGIC_V2 & 0xFF:
            topic += 1
            topic_end = topic + int.from_bytes(data[body_end:topic], "big")
        properties = topic_end + 2
        if properties + int.from_bytes(data[topic_end:properties], "big", signed=True) != end:
            raise CorruptRecord(f"the parts of a record do not add up to its size of {self.size}")
        self._spans = spans = (at, body_end, topic, topic_end, properties)
        return spans

    @property
    def record(self) -> Record:
        """Everything, decoded anew at each call. Raises CorruptRecord."""
        return decode_record(self._data, self._start)

    @property
    def properties(self) -> dict[str, str]:
        if self._properties is None:
            start = (self._spans or self._locate())[4]
            try:
                text = self._data[start : self._start + self.size].decode()
            except UnicodeDecodeError as error:
                raise CorruptRecord(f"properties are not UTF-8: {error}") from None
            self._properties = decode_properties(text)
        return self._properties

    @property
    def body(self) -> bytes:
        """The body, decompressed. Raises CorruptRecord when it cannot be, or not within MAX_UNPACKED_BODY."""
        if self._body is None:
            start, end, *_ = self._spans or self._locate()
            self._body = decompress(self._data[start:end], self.sys_flag)
        return self._body

    @property
    def stored_body(self) -> bytes:
        """The body as it is stored, perhaps compressed (see `sys_flag`)."""
        start, end, *_ = self._spans or self._locate()
        return self._data[start:end]

    @property
    def topic(self) -> str:
        stored = self.stored_topic
        if stored.startswith("%RETRY%"):
            return self.properties.get(names.RETRY_TOPIC, stored)
        return stored

    @property
    def stored_topic(self) -> str:
        _, _, start, end, _ = self._spans or self._locate()
        return _topic_name(self._data[start:end])

    @property
    def tag(self) -> str | None:
        return self.properties.get(names.TAGS)

    def has_tag(self, tags: Collection[str]) -> bool:
        """Whether it has one of these tags; also when it is damaged, for whoever handles it to find out."""
        try:
            return self.tag in tags
        except CorruptRecord:
            return True

    @property
    def keys(self) -> list[str]:
        return self.properties.get(names.KEYS, "").split()

    @property
    def sharding_key(self) -> str | None:
        return self.properties.get(names.SHARDING_KEY)

    def reply(self, body: bytes) -> Message:
        """The reply to this message, for any producer to send: ``await producer.send(request.reply(b"42"))``.

        It goes to whoever waits for it in `producer.request`. Raises InvalidMessage when nobody asked for one.
        """
        asked = self.properties
        wanted = (names.CORRELATION_ID, names.REPLY_TO_CLIENT, names.CLUSTER)
        if missing := [name for name in wanted if name not in asked]:
            raise InvalidMessage(f"message {self.message_id} is no request: it has no {', '.join(missing)}")
        answer = Message(reply_topic(asked[names.CLUSTER]), body)
        answer.properties[names.MSG_TYPE] = names.REPLY
        for name in (names.CORRELATION_ID, names.REPLY_TO_CLIENT, names.TTL):
            if name in asked:
                answer.properties[name] = asked[name]
        return answer

    @property
    def message_id(self) -> str:
        """The producer's unique id, or the offset id of a message without one."""
        return self.properties.get(names.UNIQ_KEY) or self.offset_message_id

    @property
    def offset_message_id(self) -> str:
        return offset_message_id(self.record.store_host, self.physical_offset)

    @property
    def queue(self) -> MessageQueue:
        return MessageQueue(self.stored_topic, self.broker_name, self.queue_id)

    @property
    def queue_id(self) -> int:
        return _INT.unpack_from(self._data, self._start + 12)[0]  # type: ignore[no-any-return]

    @property
    def flag(self) -> int:
        """The producer's own number; the broker does not look at it."""
        return _INT.unpack_from(self._data, self._start + 16)[0]  # type: ignore[no-any-return]

    @property
    def sys_flag(self) -> int:
        return _INT.unpack_from(self._data, self._start + SYS_FLAG_AT)[0]  # type: ignore[no-any-return]

    @property
    def physical_offset(self) -> int:
        return _LONG.unpack_from(self._data, self._start + PHYSICAL_OFFSET_AT)[0]  # type: ignore[no-any-return]

    @property
    def reconsume_times(self) -> int:
        """How often it was delivered and failed before; 0 on the first delivery."""
        at = self._start + 72
        flags = self.sys_flag
        if flags & (BORN_HOST_V6 | STORE_HOST_V6):
            at += 12 * (bool(flags & BORN_HOST_V6) + bool(flags & STORE_HOST_V6))
        return int.from_bytes(self._data[at : at + 4], "big", signed=True) + self.local_retries

    @property
    def attempt(self) -> int:
        """Which delivery this is: 1 for the first, and one more each time it failed or came back unfinished."""
        return self.reconsume_times + 1

    @property
    def born_timestamp(self) -> int:
        """When the producer made it, ms since the epoch."""
        return _LONG.unpack_from(self._data, self._start + 40)[0]  # type: ignore[no-any-return]

    @property
    def store_timestamp(self) -> int:
        """When the broker stored it, ms since the epoch."""
        at = self._start + (68 if self.sys_flag & BORN_HOST_V6 else 56)
        return _LONG.unpack_from(self._data, at)[0]  # type: ignore[no-any-return]

    @property
    def born_host(self) -> tuple[str, int]:
        return unpack_host(self.record.born_host)

    @property
    def store_host(self) -> tuple[str, int]:
        return unpack_host(self.record.store_host)


@lru_cache(maxsize=1024)
def _topic_name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"a topic is not UTF-8: {error}") from None


def decode_messages(data: bytes | memoryview, broker_name: str = "") -> list[ReceivedMessage]:
    """The messages of a pull's body. Raises CorruptRecord where the sizes do not fit or no record begins."""
    if isinstance(data, memoryview):
        data = bytes(data)
    messages: list[ReceivedMessage] = []
    offset, end = 0, len(data)
    unpack = _RECORD_START.unpack_from
    new = ReceivedMessage.__new__
    while offset < end:
        if end - offset < 28:
            raise CorruptRecord(f"{end - offset} bytes left over after the last record")
        size, magic, queue_offset = unpack(data, offset)
        if size < 91 or offset + size > end:
            raise CorruptRecord(f"record size {size} does not fit the {end - offset} bytes that are left")
        if magic != MAGIC_V1 and magic != MAGIC_V2:
            raise CorruptRecord(f"magic {magic:#010x} is not that of a record")
        message = new(ReceivedMessage)
        message._set(data, offset, size, queue_offset, broker_name)
        messages.append(message)
        offset += size
    return messages


def decompress(body: bytes, sys_flag: int) -> bytes:
    """`body` without the compression that `sys_flag` names.

    Raises CorruptRecord when that is impossible, or when it would exceed MAX_UNPACKED_BODY.
    """
    if not sys_flag & COMPRESSED:
        return body
    kind = sys_flag & COMPRESSION_MASK
    if kind in (LZ4, ZSTD):
        raise CorruptRecord(
            f"the body is compressed with {'LZ4' if kind == LZ4 else 'ZSTD'}, which this client does not read"
        )
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(body, MAX_UNPACKED_BODY + 1)
    except zlib.error as error:
        raise CorruptRecord(f"the body is not what its compression flag says: {error}") from None
    if len(unpacked) > MAX_UNPACKED_BODY:
        raise CorruptRecord(
            f"the body of {len(body)} bytes unpacks to more than {MAX_UNPACKED_BODY}: it is not unpacked; "
            "send large bodies uncompressed, or in parts"
        )
    if not inflate.eof:
        raise CorruptRecord(f"the body is not what its compression flag says: its {len(body)} bytes are cut short")
    return unpacked


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


def local_address() -> str:
    """The IPv4 address that this host uses to reach others, 127.0.0.1 without a network."""
    return socket.inet_ntoa(_local_address())


def new_client_id() -> str:
    """`ip@pid#nanoseconds`, as Java clients are known to brokers."""
    return f"{local_address()}@{os.getpid()}#{time.time_ns()}"


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
        pid = os.getpid()
        if self._pid != pid:
            raw = _local_address() + struct.pack(">H", pid & 0xFFFF) + os.urandom(4)
            self._prefix = raw.hex().upper()
            self._counter = itertools.count(int.from_bytes(os.urandom(2), "big"))
            self._pid = pid  # last: other threads take it that the rest is there
        local = time.localtime(now)
        year, month = local.tm_year, local.tm_mon
        self._month = time.mktime((year, month, 1, 0, 0, 0, 0, 0, -1))
        self._next_month = time.mktime((year, month + 1, 1, 0, 0, 0, 0, 0, -1))

    def new(self) -> str:
        now = self._clock()
        if now >= self._next_month or now < self._month or self._pid != os.getpid():
            self._start(now)
        elapsed = int((now - self._month) * 1000) & 0xFFFFFFFF
        return f"{self._prefix}{elapsed:08X}{next(self._counter) & 0xFFFF:04X}"


new_unique_id = UniqueIds().new
