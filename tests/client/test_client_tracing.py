"""Clients that write down what they do, against a real server; and the tracer by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from client_helpers import Collector, fresh, until

from rocketq import trace as traces
from rocketq.client import AsyncProducer, ConsumeResult, Producer, PullConsumer, PushConsumer, RetryLater, tracing
from rocketq.client.admin import Admin
from rocketq.client.browse import Browser
from rocketq.client.tracing import BATCH, MAX_QUEUED, Tracer
from rocketq.client.transactions import AsyncTransaction, Transaction
from rocketq.errors import ConnectFailed
from rocketq.message import Message
from rocketq.trace import Trace, decode


def traced(namesrv: str, message_id: str, count: int, topic: str = "RMQ_SYS_TRACE_TOPIC") -> list[Trace]:
    """The records about a message, in the order of their times; waits until there are `count`."""
    deadline = time.monotonic() + 30
    with Admin(namesrv, timeout=10) as admin:
        while True:
            found = Browser(admin).by_key(topic, message_id)
            records = [one for message in found for one in decode(message.body.decode())]
            records = [one for one in records if one.message_id == message_id]
            if len(records) >= count:
                return sorted(records, key=lambda one: one.time)
            assert time.monotonic() < deadline, f"{len(records)} of {count} records came"
            time.sleep(0.05)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_AGE", 0.2)


def test_a_message_is_followed_from_its_producer_to_its_consumers(namesrv: str) -> None:
    topic, group = fresh("Traced"), fresh("G")
    failed: list[str] = []

    def once(messages: list) -> RetryLater | ConsumeResult:
        if messages[0].body == b"bad" and not failed:
            failed.append(messages[0].message_id)
            return RetryLater(1, error=ValueError("bad"))
        return ConsumeResult.SUCCESS

    async def main() -> tuple[str, str]:
        begun = int(time.time() * 1000)
        async with AsyncProducer("PG", namesrv, trace=True) as producer:
            good = await producer.send(Message(topic, b"good", tag="t", keys=["k1", "k2"]))
            bad = await producer.send(Message(topic, b"bad", delay_level=1))
            batch = await producer.send_batch([Message(topic, b"one"), Message(topic, b"three", keys="k3")])
            address = producer.instance.routes.master(good.queue.broker_name)
            handler = Collector(once)
            consumer = PushConsumer(group, namesrv, handler, from_where="FIRST", trace=True)
            consumer.subscribe(topic)
            async with consumer:
                await until(
                    lambda: handler.bodies.count("bad") == 2 and len(handler.bodies) == 5, "all deliveries"
                )
        ended = int(time.time() * 1000)

        pub, before, after = await asyncio.to_thread(traced, namesrv, good.message_id, 3)
        assert pub == Trace(
            traces.PUB,
            good.message_id,
            pub.time,
            "DefaultRegion",
            "PG",
            topic,
            "t",
            "k1 k2",
            address,
            4,
            pub.cost,
            traces.NORMAL,
            good.offset_message_id,
        )
        assert begun <= pub.time <= before.time <= after.time <= ended
        assert 0 <= pub.cost <= ended - begun
        assert (before.kind, before.group, before.keys, before.retries) == (traces.SUB_BEFORE, group, "k1 k2", 0)
        assert (after.kind, after.group, after.success, after.outcome) == (traces.SUB_AFTER, group, True, 0)
        assert before.request_id == after.request_id != ""

        records = await asyncio.to_thread(traced, namesrv, bad.message_id, 5)
        assert records[0].message_type == traces.DELAY
        ends = [one for one in records if one.kind == traces.SUB_AFTER]
        assert [(one.success, one.outcome) for one in ends] == [(False, traces.EXCEPTION), (True, traces.SUCCESS)]
        assert [one.retries for one in records if one.kind == traces.SUB_BEFORE] == [0, 1]

        pubs = [(await asyncio.to_thread(traced, namesrv, one.message_id, 3))[0] for one in batch]
        assert [(one.body_length, one.keys) for one in pubs] == [(3, ""), (5, "k3")]
        return good.message_id, bad.message_id

    asyncio.run(main())


def test_a_blocking_producer_traces_in_the_background(namesrv: str) -> None:
    topic, traces_topic = fresh("Blocking"), fresh("OwnTraces")
    with Producer("PG", namesrv, trace=traces_topic) as producer:
        one = producer.send(Message(topic, b"one"))
        many = producer.send_many([Message(topic, b"two"), Message(topic, b"three")])
        late = producer.send(Message(topic, b"late"), delay=60.0)
        assert late.recall_handle
        assert producer.recall(topic, late.recall_handle) == late.message_id
    assert not [thread for thread in threading.enumerate() if thread.name == "rocketq-background"]
    # it was all sent before the end
    for result in (one, *many):
        assert [record.kind for record in traced(namesrv, result.message_id, 1, traces_topic)] == [traces.PUB]
    records = traced(namesrv, late.message_id, 2, traces_topic)
    assert [(record.kind, record.topic) for record in records] == [(traces.PUB, topic), (traces.RECALL, topic)]


def test_ends_of_transactions_are_traced(namesrv: str) -> None:
    topic = fresh("Ended")
    ended: list[tuple[str, str, str]] = []

    def note(transaction: Transaction | AsyncTransaction, state: str) -> None:
        assert transaction.result is not None
        ended.append((transaction.result.message_id, transaction.result.transaction_id or "", state))

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, trace=True) as producer:
            async with producer.transaction(Message(topic, b"x", tag="t", keys="k")) as committed:
                pass
            note(committed, "COMMIT_MESSAGE")
            async with producer.transaction(Message(topic, b"x", tag="t", keys="k")) as dropped:
                await dropped.rollback()
            note(dropped, "ROLLBACK_MESSAGE")

    asyncio.run(main())
    with Producer("PG", namesrv, trace=True) as producer:
        with producer.transaction(Message(topic, b"x", tag="t", keys="k")) as committed:
            pass
        note(committed, "COMMIT_MESSAGE")
        broker = producer.routes.master(committed.result.queue.broker_name)
    for message_id, transaction_id, state in ended:
        pub, end = traced(namesrv, message_id, 2)
        assert (pub.kind, pub.message_type) == (traces.PUB, traces.HALF)
        assert end == Trace(
            traces.END_TRANSACTION,
            message_id,
            end.time,
            "DefaultRegion",
            "PG",
            topic,
            "t",
            "k",
            broker,
            message_type=traces.COMMIT,
            transaction_id=transaction_id,
            state=state,
        )
        assert end.time >= pub.time


def test_a_pull_consumer_traces_what_it_was_given(namesrv: str) -> None:
    topic = fresh("Polled")

    async def main() -> str:
        async with AsyncProducer("PG", namesrv) as producer:
            sent = await producer.send(Message(topic, b"x"))
        consumer = PullConsumer(fresh("G"), namesrv, from_where="FIRST", trace=True)
        consumer.subscribe(topic)
        async with consumer:
            assert len(await consumer.poll(20.0)) == 1
        return sent.message_id

    records = traced(namesrv, asyncio.run(main()), 2)
    assert [record.kind for record in records] == [traces.SUB_BEFORE, traces.SUB_AFTER]


def test_what_is_not_to_be_traced_is_not(namesrv: str) -> None:
    async def main() -> None:
        async with AsyncProducer("PG", namesrv, trace=fresh("Own")) as producer:
            tracer = producer.tracer
            assert tracer is not None
            kept: list[Trace] = []
            tracer.add = kept.append  # type: ignore[method-assign]
            await producer.send(Message(tracer.topic, b"x"))
            assert kept == []
            await producer.send(Message(fresh("Normal"), b"x"))
            assert len(kept) == 1
            outgoing = producer.core.prepare(Message("T", b"x"))
            assert tracing.sent("PG", outgoing, [], {"TRACE_ON": "false"}, "", 0.0, "Traces") == []
        async with AsyncProducer("PG", namesrv) as plain:
            assert plain.tracer is None

    asyncio.run(main())


class Sender:
    """Takes trace messages, when it is let."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closed = False
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def send(self, message: Message, *, timeout: float) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.messages.append(message)

    def counts(self) -> list[int]:
        return [len(decode(message.body.decode())) for message in self.messages]


def record(number: int, keys: str = "") -> Trace:
    return Trace(traces.RECALL, f"ID{number}", number, "r", "g", "t", keys=keys)


def tracing_with(test: Callable[[Tracer, Sender], object]) -> None:
    async def main() -> None:
        sender = Sender()
        tracer = Tracer("PG", "Traces", sender)
        await tracer.start()
        await test(tracer, sender)  # type: ignore[misc]
        await tracer.close()
        assert sender.closed

    asyncio.run(main())


def test_records_leave_ten_at_a_time_or_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_AGE", 3600.0)

    async def test(tracer: Tracer, sender: Sender) -> None:
        for number in range(BATCH - 1):
            tracer.add(record(number))
        for _ in range(10):
            await asyncio.sleep(0)
        assert sender.messages == []
        tracer.add(record(BATCH))
        await until(lambda: sender.counts() == [BATCH], "the tenth to send them all")
        assert set(sender.messages[0].keys) == {f"ID{number}" for number in (*range(BATCH - 1), BATCH)}
        for number in range(25):
            tracer.add(record(number))
        await until(lambda: sum(sender.counts()) == BATCH + 25, "all to leave")
        assert max(sender.counts()) == BATCH
        tracer.add(record(1))
        await tracer.close()
        assert sender.counts()[-1] == 1

    tracing_with(test)


def test_the_oldest_record_waits_no_longer_than_a_while() -> None:
    async def test(tracer: Tracer, sender: Sender) -> None:
        tracer.add(record(1))
        await until(lambda: sender.counts() == [1], "one record to be old enough")

    tracing_with(test)


def test_too_many_records_are_dropped_and_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    async def test(tracer: Tracer, sender: Sender) -> None:
        sender.gate.clear()
        begun = asyncio.get_running_loop().time()
        for number in range(MAX_QUEUED + 100):
            tracer.add(record(number))
        assert tracer.dropped == 100
        assert asyncio.get_running_loop().time() - begun < 30
        sender.gate.set()
        await until(lambda: sum(sender.counts()) == MAX_QUEUED, "those that found room")

    tracing_with(test)
    assert len([line for line in caplog.messages if "trace records" in line]) == 1


def test_traces_that_cannot_be_sent_trouble_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def test(tracer: Tracer, sender: Sender) -> None:
        sender.error = ConnectFailed("no broker")
        for number in range(30):
            tracer.add(record(number))
        await until(lambda: tracer.dropped == 3, "three messages to fail")
        sender.error = None
        tracer.add(record(99))
        await until(lambda: sender.counts() == [1], "the next one to be sent")

    tracing_with(test)
    assert [line for line in caplog.messages if "no broker" in line] == [
        "group PG: trace records for topic Traces are lost: no broker"
    ]


def test_large_records_are_sent_alone_and_too_large_ones_not_at_all() -> None:
    async def test(tracer: Tracer, sender: Sender) -> None:
        for number in range(4):
            tracer.add(Trace(traces.SUB_BEFORE, f"ID{number}", keys=f"{'k' * 9000}{number}"))
        tracer.add(Trace(traces.SUB_BEFORE, "HUGE", keys="x" * 130_000))
        await until(lambda: sum(sender.counts()) == 4 and tracer.dropped == 1, "four of five to leave")
        assert sender.counts() == [1, 1, 1, 1]

    tracing_with(test)


def test_a_trace_broker_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "GOODBYE", 0.2)

    async def main() -> None:
        sender = Sender()
        sender.gate.clear()
        tracer = Tracer("PG", "Traces", sender)
        await tracer.start()
        tracer.add(record(1))
        await asyncio.wait_for(tracer.close(), 20)
        assert sender.closed

    asyncio.run(main())
