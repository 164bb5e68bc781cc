"""Received messages: decoded on demand, and the same as the record says."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.message import MAX_UNPACKED_BODY, ReceivedMessage, decode_messages, offset_message_id
from rocketq.properties import encode_properties
from rocketq.record import CorruptRecord, decode_record, encode_record, pack_host
from rocketq.remoting.headers.pop import PopMessageResponse
from rocketq.remoting.receipts import receipts

HOSTS = st.sampled_from([pack_host("10.1.2.3", 4), pack_host("2001:db8::7", 65535)])


@settings(max_examples=150, deadline=None)
@given(
    topic=st.sampled_from(["T", "%RETRY%group", "long" * 40]),
    body=st.binary(max_size=300),
    properties=st.dictionaries(
        st.sampled_from(["TAGS", "KEYS", "UNIQ_KEY", "ü"]), st.text("abc ü", min_size=1, max_size=9)
    ),
    born_host=HOSTS,
    store_host=HOSTS,
    times=st.integers(0, 20),
    data=st.data(),
)
def test_every_part_is_what_the_record_says(
    topic: str,
    body: bytes,
    properties: dict[str, str],
    born_host: bytes,
    store_host: bytes,
    times: int,
    data: st.DataObject,
) -> None:
    text = encode_properties(properties)
    one = encode_record(
        3, 77, 1 << 40, topic.encode(), body, text.encode(), 9, 0, 11, born_host, 12, store_host, times
    )
    raw = one * data.draw(st.integers(1, 3))
    messages = decode_messages(raw, "broker-a")
    assert len(messages) == len(raw) // len(one)
    for message in messages:
        record = message.record
        assert record == decode_record(one)
        assert message.body == message.stored_body == body
        assert message.properties == properties
        assert message.stored_topic == topic
        assert (message.queue_id, message.queue_offset, message.physical_offset) == (3, 77, 1 << 40)
        assert (message.flag, message.reconsume_times) == (9, times)
        assert (message.born_timestamp, message.store_timestamp) == (11, 12)
        assert message.size == len(one)
        assert message.message_id == properties.get("UNIQ_KEY", offset_message_id(store_host, 1 << 40))
        again = ReceivedMessage(record, "broker-a")
        assert (again.body, again.topic, again.queue) == (message.body, message.topic, message.queue)


def record(**changes: object) -> bytes:
    host = pack_host("127.0.0.1", 1)
    fields: dict[str, object] = {"topic": b"T", "body": b"hello", "properties": b"", "sys_flag": 0} | changes
    return encode_record(
        0, 0, 0, fields["topic"], fields["body"], fields["properties"], 0, fields["sys_flag"], 0, host, 0, host  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_retry_shows_the_topic_it_was_sent_to() -> None:
    (message,) = decode_messages(record(topic=b"%RETRY%g", properties=b"RETRY_TOPIC\x01Orders\x02"))
    assert (message.topic, message.stored_topic) == ("Orders", "%RETRY%g")


def test_local_retries_count() -> None:
    (message,) = decode_messages(record())
    message.local_retries += 2
    assert message.reconsume_times == 2


def test_a_compressed_body_is_unpacked_once_asked_for() -> None:
    packed = zlib.compress(b"x" * 5000)
    (message,) = decode_messages(record(body=packed, sys_flag=0x301))
    assert message.body == b"x" * 5000
    assert message.stored_body == packed
    for broken in (b"no zlib", packed[:-1]):
        (message,) = decode_messages(record(body=broken, sys_flag=0x1))
        with pytest.raises(CorruptRecord, match="not what its compression flag says"):
            _ = message.body


def test_a_small_body_that_unpacks_to_very_much_is_not_unpacked() -> None:
    (message,) = decode_messages(record(body=zlib.compress(bytes(MAX_UNPACKED_BODY), 1), sys_flag=0x301))
    assert len(message.body) == MAX_UNPACKED_BODY == 64 << 20
    deflate = zlib.compressobj(1)
    begin = deflate.flush(zlib.Z_FULL_FLUSH)
    mebibyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    (message,) = decode_messages(record(body=begin + mebibyte * 512, sys_flag=0x301))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecord, match=f"unpacks to more than {MAX_UNPACKED_BODY}"):
            _ = message.body
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_UNPACKED_BODY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("flag", "kind"), [(0x101, "LZ4"), (0x201, "ZSTD")])
def test_a_body_of_another_compression_says_which(flag: int, kind: str) -> None:
    (message,) = decode_messages(record(body=b"packed", sys_flag=flag))
    with pytest.raises(CorruptRecord, match=f"compressed with {kind}, which this client does not read"):
        _ = message.body


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_corrupt_record(data: st.DataObject) -> None:
    raw = bytearray(record(properties=b"TAGS\x01a\x02") * 2)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        for message in decode_messages(bytes(raw[:cut])):
            _ = (message.body, message.properties, message.topic, message.reconsume_times)
            _ = (message.message_id, message.born_host, message.store_timestamp)
    except CorruptRecord:
        pass


def test_a_damaged_message_can_still_be_shown_and_handed_back() -> None:
    raw = bytearray(record(properties=b"TAGS\x01a\x02"))
    raw[84:88] = b"\x7f\xff\xff\xff"  # the length of the body
    (message,) = decode_messages(bytes(raw))
    assert "damaged" in repr(message)
    assert (message.physical_offset, message.reconsume_times) == (0, 0)
    with pytest.raises(CorruptRecord):
        _ = message.body


def test_a_damaged_message_has_a_receipt_all_the_same() -> None:
    (message,) = decode_messages(record(properties=b"\xff"))
    with_retries = PopMessageResponse(
        pop_time=1, invisible_time=2, revive_qid=0, rest_num=0, start_offset_info="1 0 7;0 0 0"
    )
    (receipt,) = receipts(with_retries, [message], "T", "G", "b")
    assert (receipt.topic, receipt.start_offset, receipt.offset) == ("T", 0, 0)
