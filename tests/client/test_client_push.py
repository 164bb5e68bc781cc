"""The push consumer against a real server."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import pytest
from client_helpers import Collector, fresh, until

from rocketq import javajson
from rocketq.client import AsyncProducer, ConsumeResult, PullConsumer, PushConsumer, RetryLater
from rocketq.client.offsets import BrokerOffsets, LocalOffsets
from rocketq.client.results import HandlerResult
from rocketq.errors import ConfigError, ConnectFailed, InvalidMessage
from rocketq.message import Message, MessageQueue, ReceivedMessage


async def publish(namesrv: str, topic: str, *bodies: str, tag: str | None = None, key: object = None) -> None:
    async with AsyncProducer("PG", namesrv) as producer:
        for body in bodies:
            await producer.send(Message(topic, body.encode(), tag=tag), key=key)


def test_only_messages_with_a_wanted_tag_arrive_even_when_hashes_collide(namesrv: str) -> None:
    topic, group = fresh("Tags"), fresh("G")

    async def main() -> None:
        # "Aa" and "BB" have the same Java hash
        for tag in ("Aa", "BB", "C", "D"):
            await publish(namesrv, topic, f"{tag}1", f"{tag}2", tag=tag)
        await publish(namesrv, topic, "untagged")
        collector = Collector()
        consumer = PushConsumer(group, namesrv, collector, from_where="FIRST")
        consumer.subscribe(topic, "Aa || C")
        async with consumer:
            await until(lambda: len(collector.messages) >= 4)
            await publish(namesrv, topic, "C3", tag="C")
            await until(lambda: len(collector.messages) >= 5)
        assert sorted(collector.bodies) == ["Aa1", "Aa2", "C1", "C2", "C3"]

    asyncio.run(main())


def test_a_group_goes_on_where_it_stopped(namesrv: str) -> None:
    topic, group = fresh("Resume"), fresh("G")

    async def consume(number: int) -> list[str]:
        collector = Collector()
        consumer = PushConsumer(group, namesrv, collector, from_where="FIRST")
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(collector.messages) >= number)
        return collector.bodies

    async def main() -> None:
        await publish(namesrv, topic, *[f"a{n}" for n in range(20)])
        assert len(await consume(20)) == 20
        await publish(namesrv, topic, *[f"b{n}" for n in range(10)])
        assert sorted(await consume(10)) == [f"b{n}" for n in range(10)]

    asyncio.run(main())


def test_a_group_from_a_time_skips_what_is_older(namesrv: str) -> None:
    topic = fresh("FromTime")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            queue = (await producer.queues(topic))[0]
            for n in range(5):
                await producer.send(Message(topic, b"old%d" % n), queue=queue)
            await asyncio.sleep(0.02)  # the border has to lie between two milliseconds
            reader = Collector()
            everything = PushConsumer(fresh("G"), namesrv, reader, from_where="FIRST")
            everything.subscribe(topic)
            async with everything:
                await until(lambda: len(reader.messages) == 5)
            border = max(message.store_timestamp for message in reader.messages) + 1
            for n in range(5):
                await producer.send(Message(topic, b"new%d" % n), queue=queue)
        collector = Collector()
        consumer = PushConsumer(fresh("G"), namesrv, collector, from_where=border)
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(collector.messages) >= 5)
        assert collector.bodies == [f"new{n}" for n in range(5)]

    asyncio.run(main())


def test_a_batch_is_one_call_and_results_may_differ_by_message(namesrv: str) -> None:
    topic, group = fresh("Mixed"), fresh("G")
    retried: list[str] = []

    def decide(messages: list[ReceivedMessage]) -> HandlerResult:
        return [
            RetryLater(1) if message.body == b"3" and not message.reconsume_times else ConsumeResult.SUCCESS
            for message in messages
        ]

    async def main() -> None:
        await publish(namesrv, topic, *[str(n) for n in range(8)], key="one queue")
        collector = Collector(decide)
        consumer = PushConsumer(
            group,
            namesrv,
            collector,
            from_where="FIRST",
            batch=8,
            on_retried=lambda message: retried.append(message.body.decode()),
        )
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(collector.messages) >= 9)
        assert collector.bodies == [str(n) for n in range(8)] + ["3"]
        assert len(collector.calls) == 2
        again = collector.messages[-1]
        assert (again.topic, again.stored_topic, again.reconsume_times) == (topic, f"%RETRY%{group}", 1)
        assert again.message_id == collector.messages[3].message_id
        assert retried == ["3"]

    asyncio.run(main())


@pytest.mark.parametrize("verdict", [ConsumeResult.DEAD_LETTER, RetryLater(1), RuntimeError("no")])
def test_what_fails_too_often_ends_in_the_dead_letter_queue(namesrv: str, verdict: object) -> None:
    topic, group = fresh("Dead"), fresh("G")
    dead: list[str] = []

    def decide(messages: list[ReceivedMessage]) -> HandlerResult:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict  # type: ignore[return-value]

    async def main() -> None:
        await publish(namesrv, topic, "poison", tag="T")
        collector = Collector(decide)
        consumer = PushConsumer(
            group,
            namesrv,
            collector,
            from_where="FIRST",
            max_reconsume_times=0,
            on_dead_lettered=lambda message: dead.append(message.body.decode()),
        )
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: dead)
        assert (collector.bodies, dead) == (["poison"], ["poison"])
        letters = Collector()
        reader = PushConsumer(fresh("G"), namesrv, letters, from_where="FIRST")
        reader.subscribe(f"%DLQ%{group}")
        async with reader:
            await until(lambda: letters.messages)
        (letter,) = letters.messages
        assert (letter.body, letter.tag, letter.properties["RETRY_TOPIC"]) == (b"poison", "T", topic)

    asyncio.run(main())


def test_ordered_messages_wait_for_the_one_that_fails(namesrv: str) -> None:
    topic, group = fresh("Ordered"), fresh("G")
    seen: list[tuple[str, int]] = []

    async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
        (message,) = messages
        seen.append((message.body.decode(), message.reconsume_times))
        if message.body == b"2" and message.reconsume_times < 2:
            return ConsumeResult.SUSPEND
        if message.body == b"4" and message.reconsume_times < 1:
            raise RuntimeError("once")
        return None

    async def main() -> None:
        await publish(namesrv, topic, *[str(n) for n in range(6)], key="k")
        consumer = PushConsumer(group, namesrv, handler, from_where="FIRST", ordered=True, suspend=0.02)
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(seen) >= 9)
        assert seen == [("0", 0), ("1", 0), ("2", 0), ("2", 1), ("2", 2), ("3", 0), ("4", 0), ("4", 1), ("5", 0)]

    asyncio.run(main())


def test_an_ordered_message_that_never_succeeds_is_given_up_when_there_is_a_limit(namesrv: str) -> None:
    topic, group = fresh("OrderedDead"), fresh("G")
    seen: list[str] = []
    dead: list[str] = []

    async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
        seen.extend(message.body.decode() for message in messages)
        return ConsumeResult.SUSPEND if messages[0].body == b"bad" else ConsumeResult.SUCCESS

    async def main() -> None:
        await publish(namesrv, topic, "bad", "good", key="k")
        consumer = PushConsumer(
            group,
            namesrv,
            handler,
            from_where="FIRST",
            ordered=True,
            suspend=0.01,
            max_reconsume_times=2,
            on_dead_lettered=lambda message: dead.append(message.body.decode()),
        )
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: "good" in seen)
        assert (seen, dead) == (["bad", "bad", "bad", "good"], ["bad"])

    asyncio.run(main())


def test_members_share_the_queues_and_take_over_from_each_other(namesrv: str) -> None:
    topic, group = fresh("Shared"), fresh("G")
    events: list[tuple[str, int, int]] = []

    def member(name: str, collector: Collector) -> PushConsumer:
        def rebalanced(changed: str, assigned: list[MessageQueue], revoked: list[MessageQueue]) -> None:
            if changed == topic:
                events.append((name, len(assigned), len(revoked)))

        consumer = PushConsumer(group, namesrv, collector, from_where="FIRST", on_rebalanced=rebalanced)
        consumer.subscribe(topic)
        return consumer

    def queues(consumer: PushConsumer) -> int:
        return len([queue for queue in consumer.assigned if queue.topic == topic])

    async def main() -> None:
        await publish(namesrv, topic, *[f"a{n}" for n in range(8)])
        one, two = Collector(), Collector()
        first, second = member("first", one), member("second", two)
        async with first:
            await until(lambda: len(one.messages) >= 8)
            async with second:
                await until(lambda: (queues(first), queues(second)) == (2, 2), "two queues each")
                await publish(namesrv, topic, *[f"b{n}" for n in range(8)])
                # what the first has not committed yet may come to the second again
                await until(lambda: len({*one.bodies, *two.bodies}) >= 16)
                assert len([body for body in two.bodies if body.startswith("b")]) == 4
            await until(lambda: queues(first) == 4, "all queues again")
            await publish(namesrv, topic, *[f"c{n}" for n in range(8)])
            await until(lambda: len({*one.bodies, *two.bodies}) >= 24)
        assert set(one.bodies) >= {f"c{n}" for n in range(8)}
        assert ("first", 4, 0) in events
        assert ("first", 0, 2) in events
        assert ("second", 2, 0) in events

    asyncio.run(main())


def test_order_holds_when_a_member_joins_an_ordered_group(namesrv: str) -> None:
    topic, group = fresh("OrderedJoin"), fresh("G")
    seen: dict[int, list[int]] = defaultdict(list)
    running: set[int] = set()

    async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
        (message,) = messages
        queue = message.queue_id
        assert queue not in running, "two handlers at once in one queue"
        running.add(queue)
        await asyncio.sleep(0.001)
        seen[queue].append(message.queue_offset)
        running.discard(queue)
        return ConsumeResult.SUCCESS

    def member() -> PushConsumer:
        consumer = PushConsumer(group, namesrv, handler, from_where="FIRST", ordered=True)
        consumer.subscribe(topic)
        return consumer

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            await asyncio.gather(*[producer.send(Message(topic, b"x"), timeout=30) for _ in range(800)])
        async with member():
            await until(lambda: sum(map(len, seen.values())) > 100)
            second = member()
            async with second:
                await until(lambda: len([q for q in second.assigned if q.topic == topic]) == 2, "a share")
                await until(lambda: sum(len(set(offsets)) for offsets in seen.values()) >= 800)
        for offsets in seen.values():
            firsts = list(dict.fromkeys(offsets))
            assert firsts == sorted(firsts)
            assert offsets == firsts, "something was delivered twice although every lock was handed over"

    asyncio.run(main())


def test_everybody_gets_a_broadcast_message_and_remembers_it_locally(
    namesrv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = fresh("Broadcast"), fresh("G")
    monkeypatch.setenv("ROCKETMQ_CLIENT_LOCALOFFSETSTOREDIR", str(tmp_path))

    def member(collector: Collector, client_id: str) -> PushConsumer:
        consumer = PushConsumer(
            group, namesrv, collector, model="BROADCASTING", from_where="FIRST", client_id=client_id
        )
        consumer.subscribe(topic)
        return consumer

    async def main() -> None:
        await publish(namesrv, topic, "a", "b", "c")
        one, two = Collector(lambda _: ConsumeResult.RETRY_LATER), Collector()
        async with member(one, "c1"), member(two, "c2"):
            await until(lambda: len(one.messages) >= 3 and len(two.messages) >= 3)
        assert sorted(one.bodies) == sorted(two.bodies) == ["a", "b", "c"]
        again = Collector()
        async with member(again, "c2"):
            await publish(namesrv, topic, "d")
            await until(lambda: again.messages)
        assert again.bodies == ["d"]

    asyncio.run(main())
    text = (tmp_path / "c2" / group / "offsets.json").read_text()
    assert text.startswith('{\n\t"offsetTable":{\n\t\t{"brokerName":"')
    assert len(javajson.loads(text)["offsetTable"]) == 4


def test_damaged_offset_files_fall_back_to_the_one_before(tmp_path: Path) -> None:
    queue = MessageQueue("T", "b", 0)

    async def main() -> None:
        store = LocalOffsets("c", "g", tmp_path)
        for offset in (5, 9):
            store.update(queue, offset)
            await store.persist([queue])
        assert await LocalOffsets("c", "g", tmp_path).read(queue) == 9
        store.path.write_text("{ torn")
        assert await LocalOffsets("c", "g", tmp_path).read(queue) == 5
        assert await LocalOffsets("c", "other", tmp_path).read(queue) is None

    asyncio.run(main())


def test_an_offset_that_stays_the_same_is_sent_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was killed has forgotten what it was told last, and an ordered consumer may have no news for it."""
    queue, sent = MessageQueue("T", "b", 0), []

    class Calls:
        group = "G"

        async def commit(self, queue: MessageQueue, offset: int, *, oneway: bool) -> None:
            sent.append(offset)

    async def main() -> None:
        store = BrokerOffsets(Calls(), zero_if_young=False)  # type: ignore[arg-type]
        store.update(queue, 5)
        for _ in range(3):
            await store.persist([queue])
        assert sent == [5]
        monkeypatch.setattr("rocketq.client.offsets.AGAIN", 0.0)
        await store.persist([queue])
        assert sent == [5, 5]

    asyncio.run(main())


def test_a_queue_that_is_taken_away_while_offsets_are_sent_costs_no_other() -> None:
    first, second, sent = MessageQueue("T", "b", 0), MessageQueue("T", "b", 1), []

    class Calls:
        group = "G"

        async def commit(self, queue: MessageQueue, offset: int, *, oneway: bool) -> None:
            sent.append(queue)
            store.forget(second)

    async def main() -> None:
        for queue in (first, second):
            store.update(queue, 5)
        assert await store.persist([first, second], wait=True) == {first}
        assert sent == [first]

    store = BrokerOffsets(Calls(), zero_if_young=False)  # type: ignore[arg-type]
    asyncio.run(main())


def test_closing_waits_for_handlers_and_what_was_not_begun_comes_again(namesrv: str) -> None:
    topic, group = fresh("Closing"), fresh("G")
    begun: list[str] = []
    finished: list[str] = []

    async def slow(messages: list[ReceivedMessage]) -> HandlerResult:
        begun.append(messages[0].body.decode())
        await asyncio.sleep(0.2)
        finished.append(messages[0].body.decode())
        return ConsumeResult.SUCCESS

    async def main() -> None:
        await publish(namesrv, topic, *[str(n) for n in range(10)], key="k")
        consumer = PushConsumer(group, namesrv, slow, from_where="FIRST", concurrency=2)
        consumer.subscribe(topic)
        await consumer.start()
        await until(lambda: len(begun) == 2)
        assert await consumer.close()
        assert finished == begun
        rest = Collector()
        successor = PushConsumer(group, namesrv, rest, from_where="FIRST")
        successor.subscribe(topic)
        async with successor:
            await until(lambda: len(rest.messages) >= 8)
        assert sorted(rest.bodies + finished, key=int) == [str(n) for n in range(10)]

    asyncio.run(main())


def test_closing_gives_up_on_a_handler_that_hangs_and_its_message_comes_again(namesrv: str) -> None:
    topic, group = fresh("Hanging"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, "stuck")
        begun = asyncio.Event()

        async def hang(messages: list[ReceivedMessage]) -> HandlerResult:
            begun.set()
            await asyncio.Event().wait()
            return ConsumeResult.SUCCESS

        consumer = PushConsumer(group, namesrv, hang, from_where="FIRST")
        consumer.subscribe(topic)
        await consumer.start()
        await begun.wait()
        assert not await consumer.close(0.05)
        rest = Collector()
        successor = PushConsumer(group, namesrv, rest, from_where="FIRST")
        successor.subscribe(topic)
        async with successor:
            await until(lambda: rest.messages)
        assert rest.bodies == ["stuck"]

    asyncio.run(main())


def test_a_handler_that_takes_too_long_loses_its_messages(namesrv: str) -> None:
    topic, group = fresh("Expired"), fresh("G")
    retried: list[str] = []

    async def main() -> None:
        await publish(namesrv, topic, "slow")
        release = asyncio.Event()

        async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
            await release.wait()
            return ConsumeResult.RETRY_LATER  # must not hand it back a second time

        consumer = PushConsumer(
            group,
            namesrv,
            handler,
            from_where="FIRST",
            consume_timeout=0.05,
            persist_interval=0.05,
            on_retried=lambda message: retried.append(message.body.decode()),
        )
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: retried)
            (one,) = [one for one in consumer.assigned.values() if one.process.next_offset == 1]
            assert len(one.process) == 0
            release.set()
            await until(lambda: not consumer.consuming.running)
        assert retried == ["slow"]

    asyncio.run(main())


def test_pulling_waits_while_too_much_is_held(namesrv: str) -> None:
    topic, group = fresh("Flow"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, *[str(n) for n in range(200)], key="k")
        release = asyncio.Event()
        seen: list[str] = []

        async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
            await release.wait()
            seen.extend(message.body.decode() for message in messages)
            return ConsumeResult.SUCCESS

        consumer = PushConsumer(group, namesrv, handler, from_where="FIRST", max_messages=40, pull_batch=10)
        consumer.subscribe(topic)
        async with consumer:
            held = [one for one in consumer.assigned.values() if one.queue.topic == topic]
            await until(lambda: sum(len(one.process) for one in held) > 40)
            await asyncio.sleep(0.1)
            assert sum(len(one.process) for one in held) <= 50
            release.set()
            await until(lambda: len(seen) >= 200)
        assert sorted(seen, key=int) == [str(n) for n in range(200)]

    asyncio.run(main())


def test_an_offset_that_is_not_there_is_put_right(namesrv: str) -> None:
    topic, group = fresh("Illegal"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, *[str(n) for n in range(8)])
        collector = Collector()
        consumer = PushConsumer(group, namesrv, collector, from_where="FIRST")
        consumer.subscribe(topic)
        async with consumer:
            await until(lambda: len(collector.messages) == 8)
            queues = [queue for queue in consumer.assigned if queue.topic == topic]
        async with PullConsumer(group, namesrv, auto_commit=False) as tool:
            for queue in queues:
                await tool.committed(queue)
                await tool.membership.calls.commit(queue, 9999, oneway=False)
        late = Collector()
        consumer = PushConsumer(group, namesrv, late, from_where="FIRST")
        consumer.subscribe(topic)
        async with consumer:
            await until(
                lambda: all(one.process.next_offset == 2 for q, one in consumer.assigned.items() if q in queues)
            )
            await until(lambda: len([queue for queue in consumer.assigned if queue in queues]) == 4)
            await publish(namesrv, topic, *[f"new{n}" for n in range(4)])
            await until(lambda: len(late.messages) >= 4)
        assert sorted(late.bodies) == [f"new{n}" for n in range(4)]

    asyncio.run(main())


def test_a_topic_that_does_not_exist_yet_is_waited_for(namesrv: str) -> None:
    topic = fresh("Later")

    async def main() -> None:
        collector = Collector()
        consumer = PushConsumer(fresh("G"), namesrv, collector, from_where="FIRST")
        consumer.subscribe(topic)
        async with consumer:
            await publish(namesrv, topic, "x")
            await until(lambda: collector.messages)

    asyncio.run(main())


def test_hooks_that_raise_do_not_stop_the_consumption(namesrv: str) -> None:
    topic = fresh("Hooks")

    def broken(*_: object) -> None:
        raise RuntimeError("a hook")

    async def main() -> None:
        collector = Collector(lambda messages: RetryLater(1) if messages[0].body == b"bad" else None)
        consumer = PushConsumer(
            fresh("G"),
            namesrv,
            collector,
            from_where="FIRST",
            concurrency=1,
            on_retried=broken,
            on_dead_lettered=broken,
            on_rebalanced=broken,
        )
        consumer.subscribe(topic)
        await publish(namesrv, topic, "bad", *["good"] * 8)
        async with consumer:
            await until(lambda: collector.bodies.count("good") == 8)
            await until(lambda: all(not len(one.process) for one in consumer.assigned.values()))

    asyncio.run(main())


def test_bad_settings_are_refused_before_anything_happens(namesrv: str) -> None:
    async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
        return None

    for options in (
        {"model": "UNICAST"},
        {"from_where": "MIDDLE"},
        {"concurrency": 0},
        {"batch": 0},
        {"max_reconsume_times": -1},
        {"ordered": True, "model": "BROADCASTING"},
    ):
        with pytest.raises(ConfigError):
            PushConsumer("G", namesrv, handler, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage):
        PushConsumer("bad group", namesrv, handler)
    consumer = PushConsumer("G", namesrv, handler)
    with pytest.raises(InvalidMessage):
        consumer.subscribe("bad topic")
    with pytest.raises(InvalidMessage):
        consumer.subscribe("T", " || ")
    with pytest.raises(ConfigError, match="subscribe"):
        asyncio.run(consumer.start())


def test_start_can_be_repeated_after_no_name_server_answered() -> None:
    async def main() -> None:
        consumer = PushConsumer("G", "127.0.0.1:1", Collector())
        consumer.subscribe("T")
        for _ in range(2):
            with pytest.raises(ConnectFailed):
                await consumer.start()
        assert await consumer.close()

    asyncio.run(main())


def test_the_heartbeat_looks_like_that_of_the_java_client(namesrv: str) -> None:
    golden = Path(__file__).parents[1] / "golden" / "java_client.jsonl"
    lines = [json.loads(line) for line in golden.read_text().splitlines()]
    java = json.loads(next(line for line in lines if line["name"] == "push_34")["request_body"])
    (theirs,) = java["consumerDataSet"]
    consumer = PushConsumer("JCG", namesrv, Collector(), from_where="FIRST")
    consumer.subscribe("JTopic", "TagA || TagB")
    ours = consumer.consumer_data().to_json()
    assert {**ours, "subscriptionDataSet": 0} == {**theirs, "subscriptionDataSet": 0}
    (subscription,) = ours["subscriptionDataSet"]
    version = theirs["subscriptionDataSet"][0]["subVersion"]
    assert {**subscription, "subVersion": version} == theirs["subscriptionDataSet"][0]
