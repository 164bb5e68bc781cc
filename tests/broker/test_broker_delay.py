"""Delay levels: messages come when they are due, after restarts too, and a bad one stops nobody."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rocketq.broker.delay import Delay
from rocketq.config import BrokerConfig
from rocketq.errors import ConfigError
from rocketq.names import SCHEDULE_TOPIC
from rocketq.record import CorruptRecord, Record, decode_record, pack_host
from rocketq.store.files import OsFiles
from rocketq.store.store import Appended, MessageStore

HOST = pack_host("127.0.0.1", 1)


class Bench:
    """A store and its delays, on a clock that the test moves (ms)."""

    def __init__(self, path: Path, levels: str = "1s 1h", file_size: int = 1 << 20) -> None:
        self.now = 1_700_000_000_000
        self.config = BrokerConfig(
            store_path_root_dir=str(path), mapped_file_size_commit_log=file_size, message_delay_level=levels
        )
        self.path = path
        self.store = MessageStore(self.config.store(), clock_ms=lambda: self.now)
        self.store.open()
        self.delay = self._delay()

    def _delay(self) -> Delay:
        return Delay(self.config, self.path / "delayOffset.json", OsFiles(), self.store, lambda: self.now)

    def put(self, level: int, body: bytes, properties: str | None = None) -> None:
        text = "REAL_TOPIC\x01T\x02REAL_QID\x010\x02TAGS\x01a\x02" if properties is None else properties
        self.store.append(
            SCHEDULE_TOPIC,
            level - 1,
            body,
            text,
            tag=None,
            unique_id=None,
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=0,
            born_host=HOST,
            store_host=HOST,
            deliver_time=self.delay.deliver_time(level),
        )
        self.store.write()

    def delivered(self) -> list[bytes]:
        read = self.store.read("T", 0, 0, 100)
        return [decode_record(view).body for view in map(self._record, range(read.count))]

    def _record(self, offset: int) -> memoryview:
        entry = self.store.consume_entry("T", 0, offset)
        assert entry is not None
        record = self.store.record_at(entry[0])
        assert record is not None
        return record


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within 20 s"
        await asyncio.sleep(0.005)


def test_messages_come_when_they_are_due_and_not_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> None:
        bench.put(1, b"first")
        bench.put(2, b"in an hour")
        await bench.delay.start()
        bench.now += 999
        bench.put(1, b"second")
        bench.store.maintain()
        for _ in range(3):  # turns in which nothing may be delivered
            await asyncio.sleep(0)
        assert bench.delivered() == []
        bench.now += 1
        await until(lambda: bench.delivered() == [b"first"])
        bench.now += 999
        await until(lambda: bench.delivered() == [b"first", b"second"])
        bench.now += 3_600_000
        await until(lambda: bench.delivered() == [b"first", b"second", b"in an hour"])
        await bench.delay.stop()

    asyncio.run(scenario())
    bench.store.close()


def test_a_delivered_message_keeps_its_properties_and_gets_the_code_of_its_tag(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> None:
        bench.put(1, b"x", "REAL_TOPIC\x01T\x02REAL_QID\x010\x02TAGS\x01a\x02DELAY\x011\x02")
        bench.now += 1000
        await bench.delay.start()
        await until(lambda: bench.delivered() == [b"x"])
        await bench.delay.stop()

    asyncio.run(scenario())
    entry = bench.store.consume_entry("T", 0, 0)
    assert entry is not None
    assert entry[2] == ord("a")
    assert "DELAY\x011\x02" in decode_record(bench._record(0)).properties
    bench.store.close()


def test_a_message_without_a_real_topic_is_stepped_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> None:
        bench.put(1, b"lost", "TAGS\x01a\x02")
        bench.put(1, b"good")
        bench.now += 1000
        await bench.delay.start()
        await until(lambda: bench.delivered() == [b"good"])
        await bench.delay.stop()

    asyncio.run(scenario())
    assert "names no REAL_TOPIC" in caplog.text
    bench.store.close()


def test_a_record_that_cannot_be_read_is_stepped_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)

    def decode(data: memoryview) -> Record:
        record = decode_record(data)
        if record.body == b"bad":
            raise CorruptRecord("its parts do not fit")
        return record

    monkeypatch.setattr("rocketq.broker.delay.decode_record", decode)

    async def scenario() -> None:
        bench.put(1, b"bad")
        bench.put(1, b"good")
        bench.now += 1000
        await bench.delay.start()
        await until(lambda: bench.delivered() == [b"good"])
        await bench.delay.stop()

    asyncio.run(scenario())
    assert "its parts do not fit" in caplog.text
    bench.store.close()


def test_a_disk_that_cannot_be_read_for_a_while_does_not_end_the_deliveries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rocketq.broker.delay._RETRY_AFTER", 0.01)
    bench = Bench(tmp_path)
    entry = bench.store.consume_entry
    broken = True

    def consume_entry(topic: str, queue_id: int, offset: int) -> tuple[int, int, int] | None:
        if broken and topic == SCHEDULE_TOPIC:
            raise OSError(errno.EIO, "Input/output error")
        return entry(topic, queue_id, offset)

    monkeypatch.setattr(bench.store, "consume_entry", consume_entry)

    async def scenario() -> None:
        nonlocal broken
        bench.put(1, b"late")
        bench.now += 1000
        await bench.delay.start()
        await until(lambda: "Input/output error" in caplog.text)
        broken = False
        await until(lambda: bench.delivered() == [b"late"])
        await bench.delay.stop()

    asyncio.run(scenario())
    bench.store.close()


def test_a_store_that_refuses_delays_the_delivery_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rocketq.broker.delay._RETRY_AFTER", 0.01)
    bench = Bench(tmp_path)

    async def scenario() -> None:
        bench.put(1, b"first")
        bench.put(1, b"second")
        bench.now += 1000
        bench.store.writable, bench.store.why_not_writable = False, "the disk is full"
        await bench.delay.start()
        await until(lambda: "the store refuses them: the disk is full" in caplog.text)
        bench.store.writable = True
        await until(lambda: bench.delivered() == [b"first", b"second"])
        await bench.delay.stop()

    asyncio.run(scenario())
    bench.store.close()


def test_what_waits_for_a_topic_that_is_being_deleted_goes_with_it_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, "1s 1s")

    async def scenario() -> None:
        await bench.delay.start()
        bench.put(1, b"old", "REAL_TOPIC\x01Bad\x02REAL_QID\x010\x02")
        bench.now += 1000
        await until(lambda: bench.store.max_offset("Bad", 0) == 1)
        removed = bench.store.forget_topic("Bad")
        assert removed is not None
        for level in (1, 2):
            bench.put(level, b"gone", "REAL_TOPIC\x01Bad\x02REAL_QID\x010\x02")
            bench.put(level, b"good")
        bench.now += 1000
        await until(lambda: bench.delivered() == [b"good"] * 2)
        assert caplog.text.count("1 messages go with topic Bad, it is being deleted") == 2
        removed.result()
        bench.store.topic_gone("Bad")
        bench.put(1, b"new", "REAL_TOPIC\x01Bad\x02REAL_QID\x010\x02")
        bench.now += 1000
        await until(lambda: bench.store.max_offset("Bad", 0) == 1)
        await bench.delay.stop()

    asyncio.run(scenario())
    bench.store.close()


def test_a_message_that_does_not_fit_into_a_file_any_more_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under its real topic, whose name is longer, it takes more room than while it waits."""
    bench = Bench(tmp_path, file_size=4096)
    name = "T" * 120

    async def scenario() -> None:
        bench.put(1, b"x" * 3760, f"REAL_TOPIC\x01{name}\x02REAL_QID\x010\x02")
        bench.put(1, b"good")
        bench.now += 1000
        await bench.delay.start()
        await until(lambda: bench.delivered() == [b"good"])
        assert f"delay level 1, offset 0: the message is lost: a message to {name} takes" in caplog.text
        await bench.delay.stop()

    asyncio.run(scenario())
    bench.store.close()


def test_others_have_their_turns_while_all_levels_have_much_to_deliver(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "1s 1s 1s")
    for level in (1, 2, 3):
        for number in range(300):
            bench.put(level, b"%d" % number)
    bench.now += 1000
    turn, delivered = 0, Counter[int]()

    def arrived(batch: list[Appended]) -> None:
        delivered[turn] += len(batch)

    async def scenario() -> None:
        nonlocal turn
        bench.store.on_arrive = arrived
        await bench.delay.start()
        while delivered.total() < 900:
            turn += 1
            assert turn < 10_000
            await asyncio.sleep(0)
        await bench.delay.stop()
        assert max(delivered.values()) <= 256

    asyncio.run(scenario())
    bench.store.close()


@pytest.mark.parametrize("levels", ["", "5", "5x", "0s", "-1s", "1s two"])
def test_levels_that_make_no_sense_are_refused(tmp_path: Path, levels: str) -> None:
    with pytest.raises(ConfigError, match="messageDelayLevel"):
        Bench(tmp_path, levels)
