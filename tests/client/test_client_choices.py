"""Selectors, back-off from slow brokers, compression, batches: the small pure parts."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.client.batch import Accumulator, encode_batch
from rocketq.client.compress import compress
from rocketq.client.fault import LatencyFaults, back_off_ms
from rocketq.client.selectors import by_hash, hash_of, random, round_robin
from rocketq.message import Message, MessageQueue

GOLDEN = Path(__file__).parents[1] / "golden" / "java_client.jsonl"
QUEUES = [MessageQueue("T", "b", index) for index in range(4)]


def message(**options: str) -> Message:
    return Message("T", b"x", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("hello", 99162322),
        ("", 0),
        (5, 5),
        (-5, -5),
        (2**31, -(2**31)),  # Long.hashCode: the halves folded
        (2**32 + 7, 6),
        (-1 - 2**32, 1),
        (True, 1231),
        (False, 1237),
        (1.5, 48568),
    ],
)
def test_keys_hash_as_in_java(key: object, expected: int) -> None:
    assert hash_of(key) == expected


def test_the_same_key_goes_to_the_same_queue() -> None:
    assert by_hash(QUEUES, message(), "hello") == QUEUES[99162322 % 4]
    assert by_hash(QUEUES, message(), -5) == QUEUES[1]
    assert by_hash(QUEUES, message(), -(2**31)) == QUEUES[0]


def test_the_sharding_key_counts_where_there_is_no_key() -> None:
    assert by_hash(QUEUES, message(sharding_key="hello"), None) == QUEUES[99162322 % 4]
    with pytest.raises(ValueError, match="sharding_key"):
        by_hash(QUEUES, message(), None)


def test_round_robin_visits_every_queue_in_turn() -> None:
    seen = [round_robin(QUEUES, message(), None) for _ in range(8)]
    assert sorted(seen[:4]) == QUEUES
    assert seen[:4] == seen[4:]


def test_random_chooses_a_queue_of_the_list() -> None:
    assert {random(QUEUES, message(), None) for _ in range(200)} == set(QUEUES)


@pytest.mark.parametrize(
    ("latency", "pause"),
    [(0, 0), (49, 0), (550, 2000), (551, 2000), (1800, 5000), (3000, 6000), (10_000, 10_000), (99_999, 30_000)],
)
def test_slow_brokers_are_left_out_by_their_latency(latency: int, pause: int) -> None:
    assert back_off_ms(latency) == pause


def test_a_broker_comes_back_after_its_pause_or_a_quick_answer() -> None:
    faults = LatencyFaults()
    faults.observe("slow", 2000, now=100.0)
    assert not faults.available("slow", 104.9)
    assert faults.available("slow", 105.0)
    faults.failed("slow", 200.0)
    assert faults.prefer(["slow", "good"], str, 205.0) == ["good"]
    faults.observe("slow", 3, 206.0)
    assert faults.prefer(["slow", "good"], str, 206.0) == ["slow", "good"]


def test_when_all_brokers_are_slow_all_are_used() -> None:
    faults = LatencyFaults()
    faults.failed("a", 0.0)
    faults.failed("b", 0.0)
    assert faults.prefer(["a", "b"], str, 1.0) == ["a", "b"]


def test_only_large_bodies_are_compressed_and_say_so() -> None:
    assert compress(b"x" * 4095) == (b"x" * 4095, 0)
    body, flags = compress(b"x" * 4096)
    assert flags == 0x301
    assert zlib.decompress(body) == b"x" * 4096


def test_what_consumers_would_not_unpack_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocketq.client.compress.MAX_UNPACKED_BODY", 10_000)
    assert compress(b"x" * 10_000)[1] == 0x301
    assert compress(b"x" * 10_001) == (b"x" * 10_001, 0)


def test_a_batch_has_the_bytes_of_the_java_client() -> None:
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    golden = bytes.fromhex(next(line for line in lines if line["name"] == "producer_320")["request_body_hex"])
    items, rest = [], golden
    while rest:  # split by the layout of the protocol description, then put together again
        size, body_length = int.from_bytes(rest[:4], "big"), int.from_bytes(rest[16:20], "big")
        items.append((0, rest[20 : 20 + body_length], rest[22 + body_length : size]))
        rest = rest[size:]
    assert [body for _, body, _ in items] == [b"batch0", b"batch1", b"batch2"]
    assert encode_batch(items) == golden


def test_a_batch_leaves_when_it_is_full_or_has_waited() -> None:
    accumulator: Accumulator[str] = Accumulator(linger=0.01, max_bytes=100)
    assert accumulator.add("q", "a", 60, now=1.0) == []
    (full,) = accumulator.add("q", "b", 60, now=1.001)  # does not fit beside a
    assert full.items == ["a"]
    assert accumulator.next_deadline == pytest.approx(1.011)
    (exact,) = accumulator.add("q", "c", 40, now=1.002)
    assert exact.items == ["b", "c"]
    assert accumulator.add("q", "d", 1, now=2.0) == []
    assert accumulator.add("r", "e", 1, now=2.005) == []
    assert accumulator.due(2.009) == []
    assert [batch.items for batch in accumulator.due(2.0101)] == [["d"]]
    assert [batch.items for batch in accumulator.flush()] == [["e"]]
    assert accumulator.next_deadline is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 120)), max_size=60))
def test_batches_lose_nothing_keep_the_order_and_the_limit(sizes: list[tuple[str, int]]) -> None:
    accumulator: Accumulator[tuple[int, int]] = Accumulator(linger=1.0, max_bytes=120)
    out = []
    for number, (key, size) in enumerate(sizes):
        out += accumulator.add(key, (number, size), size, now=0.0)
    out += accumulator.flush()
    assert all(sum(size for _, size in batch.items) <= 120 for batch in out)
    for key in "abc":
        sent = [number for batch in out if batch.key == key for number, _ in batch.items]
        assert sent == [number for number, (other, _) in enumerate(sizes) if other == key]
