"""The POP consumer against a real server."""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_helpers import Collector, Silent, fresh, until
from servers import ServerProcess, lasting_ports, start_server

from rocketq.client import (
    AsyncProducer,
    ClientInstance,
    ConsumeResult,
    PopConsumer,
    Producer,
    PushConsumer,
    RetryLater,
)
from rocketq.client import pop_consumer as pop_consumer_module
from rocketq.client.leases import Held, Leases
from rocketq.client.membership import now_ms
from rocketq.client.pop_calls import OLDEST, Popped, pop_request
from rocketq.client.pop_or_pull import can_pop
from rocketq.client.results import DeadLetter, HandlerResult
from rocketq.errors import ConfigError, ConnectFailed, RocketQError
from rocketq.filters import Sql
from rocketq.message import Message, ReceivedMessage
from rocketq.names import AUTO_CREATE_TOPIC
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_request
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse
from rocketq.remoting.receipts import Receipt
from rocketq.remoting.session import split_address


async def publish(namesrv: str, topic: str, *bodies: str, **more: Any) -> None:
    async with AsyncProducer("PG", namesrv) as producer:
        for body in bodies:
            await producer.send(Message(topic, body.encode(), **more))


def consumer_of(
    namesrv: str, group: str, topic: str, handler: Any, expression: Any = "*", **more: Any
) -> PopConsumer:
    consumer = PopConsumer(group, namesrv, handler, **{"from_where": "FIRST", **more})
    consumer.subscribe(topic, expression)
    return consumer


def test_a_broker_whose_clock_is_far_ahead_is_popped_all_the_same() -> None:
    """It takes our pops for old ones and refuses them at once; nothing else tells us its time."""
    hour, refused = 3_600_000, 0

    class Calls:
        holder = None

        def losses(self, broker: str) -> int:
            return 0

        def address(self, broker: str) -> str:
            return "127.0.0.1:10911"

        async def begin(self, broker: str, request: Any, timeout: float) -> asyncio.Future[Command]:
            nonlocal refused
            born, poll = request.header.born_time, request.header.poll_time
            if time.time() * 1000 + hour - born - poll > 500:
                refused += 1
                answer = asyncio.get_running_loop().create_future()
                answer.set_result(Command(ResponseCode.POLLING_TIMEOUT, flag=1))
                return answer
            assert time.time() * 1000 + hour - born >= 0, "it would wait for longer than we do"
            raise ConnectFailed("it waits for messages now")

    async def main() -> None:
        consumer = consumer_of("127.0.0.1:1", "G", "T", Collector())
        consumer._calls = Calls()  # type: ignore[assignment]
        while refused < 1000:
            await consumer._pop_once("T", "b", 8)

    with pytest.raises(ConnectFailed, match="waits for messages now"):
        asyncio.run(main())
    assert 0 < refused < 600


class Calls:
    """Notes what brokers are asked for, and until when somebody listens."""

    group, holder = "G", None

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[Any, float, asyncio.Future[Command]]] = []

    def losses(self, broker: str) -> int:
        return 0

    def submit(self, broker: str, request: Any, timeout: float) -> asyncio.Future[Command]:
        self.asked.append((request, self.now + timeout, asyncio.get_running_loop().create_future()))
        return self.asked[-1][2]

    def leases(self) -> tuple[Leases, Held]:
        """A lease of 8 s, taken at 0."""
        receipt = Receipt(0, 1000, 8000, 0, "0", "broker-a", 0, 0, "T")
        leases = Leases(self, 8.0, clock=lambda: self.now)  # type: ignore[arg-type]
        (held,) = leases.take(Popped([object()], [receipt]), 0)  # type: ignore[list-item]
        return leases, held


def test_a_renewal_that_is_answered_late_counts_and_the_acknowledgement_waits_for_it() -> None:
    """The broker takes none any more that names the receipt which it has replaced."""

    async def main() -> None:
        calls = Calls()
        leases, held = calls.leases()
        calls.now = 4.0
        leases._renew()
        ((_, deadline, renewal),) = calls.asked
        leases.ack([held])
        calls.now = 7.9
        assert calls.now < deadline, "nobody listens any more, and it may yet be renewed"
        answer = ChangeInvisibleTimeResponse(pop_time=5000, invisible_time=8000, revive_qid=0)
        renewal.set_result(Command(0, flag=1, ext=answer.to_ext()))
        await asyncio.sleep(0)
        leases._flush()
        request, _, _ = calls.asked[1]
        assert request.code == RequestCode.BATCH_ACK_MESSAGE
        assert b'"pt":5000' in request.body

    asyncio.run(main())


@pytest.mark.parametrize("renewing", [False, True])
def test_what_fails_after_the_acknowledgement_gives_nothing_back(renewing: bool) -> None:
    async def main() -> None:
        calls = Calls()
        leases, held = calls.leases()
        if renewing:
            calls.now = 4.0
            leases._renew()
        leases.ack([held])
        leases.give_back(held, 10)
        for _, _, renewal in calls.asked:
            answer = ChangeInvisibleTimeResponse(pop_time=5000, invisible_time=8000, revive_qid=0)
            renewal.set_result(Command(0, flag=1, ext=answer.to_ext()))
        await asyncio.sleep(0)
        leases._flush()
        assert [request.code for request, _, _ in calls.asked[renewing:]] == [RequestCode.BATCH_ACK_MESSAGE]

    asyncio.run(main())


def test_who_waits_for_a_message_gets_it_before_who_sent_it_is_answered(server: ServerProcess) -> None:
    topic = fresh("PopOrder")
    address = split_address(server.broker)
    fields = {
        "producerGroup": "PG",
        "topic": topic,
        "defaultTopic": AUTO_CREATE_TOPIC,
        "defaultTopicQueueNums": "1",
    }
    fields |= {"queueId": "0", "sysFlag": "0", "bornTimestamp": str(now_ms()), "flag": "0"}
    send = encode_request(RequestCode.SEND_MESSAGE, 1, fields, b"x")
    ask = encode_request(RequestCode.GET_MAX_OFFSET, 2, {"topic": topic, "queueId": "0"})

    def answered(sock: socket.socket, seconds: float) -> bool:
        return bool(select.select([sock], [], [], seconds)[0]) and bool(sock.recv(65536))

    def pop(opaque: int) -> bytes:
        more = {"lease_ms": 60_000, "poll_ms": 20_000, "now_ms": now_ms(), "init_mode": OLDEST}
        request = pop_request(topic, topic, "", count=1, **more)
        return encode_request(request.code, opaque, request.header)

    with socket.create_connection(address) as sender, socket.create_connection(address) as consumer:
        sender.sendall(send)
        assert answered(sender, 10)
        consumer.sendall(pop(3))
        assert answered(consumer, 10)
        first = 0
        for number in range(4, 54):
            consumer.sendall(pop(number) + ask)
            assert answered(consumer, 10), "the pop waits, and what came behind it is answered"
            sender.sendall(send)
            assert answered(sender, 10)
            if answered(consumer, 0):  # it is there already
                first += 1
            else:  # two connections: a busy system may hold one up
                assert answered(consumer, 10)
        assert first > 40


def test_messages_come_once_and_the_next_member_goes_on(namesrv: str) -> None:
    topic, group = fresh("Pop"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, *[f"a{n}" for n in range(50)])
        first = Collector()
        async with consumer_of(namesrv, group, topic, first):
            await until(lambda: len(first.messages) >= 50)
            await publish(namesrv, topic, "more")  # by the long poll
            await until(lambda: len(first.messages) >= 51)
        assert sorted(first.bodies) == sorted(["more", *[f"a{n}" for n in range(50)]])
        await publish(namesrv, topic, "b1", "b2")
        second = Collector()
        async with consumer_of(namesrv, group, topic, second):
            await until(lambda: len(second.messages) >= 2)
        assert sorted(second.bodies) == ["b1", "b2"]

    asyncio.run(main())


def test_a_new_group_begins_with_what_comes_or_at_a_time(namesrv: str) -> None:
    topic = fresh("PopFrom")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            queue = (await producer.queues(topic))[0]
            await producer.send(Message(topic, b"old"), queue=queue)
            await asyncio.sleep(0.01)  # a border between two milliseconds
            border = time.time_ns() // 1_000_000
            await asyncio.sleep(0.01)
            await producer.send(Message(topic, b"new"), queue=queue)
        from_time = Collector()
        async with consumer_of(namesrv, fresh("G"), topic, from_time, from_where=border):
            await until(lambda: from_time.messages)
            await publish(namesrv, topic, "last")
            await until(lambda: len(from_time.messages) == 2)
        assert from_time.bodies == ["new", "last"]

    asyncio.run(main())


def test_only_wanted_messages_reach_the_handler(namesrv: str) -> None:
    topic = fresh("PopTags")

    async def main() -> None:
        for tag in ("Aa", "BB", "C"):  # the first two have the same Java hash
            await publish(namesrv, topic, tag, tag=tag, properties={"size": str(len(tag))})
        tagged, matched = Collector(), Collector()
        async with (
            consumer_of(namesrv, fresh("G"), topic, tagged, "Aa || C"),
            consumer_of(namesrv, fresh("G"), topic, matched, Sql("size = 2 AND TAGS <> 'Aa'")),
        ):
            await until(lambda: len(tagged.messages) >= 2 and matched.messages)
            await publish(namesrv, topic, "last", tag="C", properties={"size": "2"})
            await until(lambda: "last" in tagged.bodies and "last" in matched.bodies)
        assert sorted(tagged.bodies) == ["Aa", "C", "last"]
        assert matched.bodies == ["BB", "last"]

    asyncio.run(main())


def test_what_fails_comes_again_when_the_handler_says_and_then_is_a_dead_letter(namesrv: str) -> None:
    topic, group = fresh("PopFails"), fresh("G")

    async def main() -> None:
        retried, dead = [], []
        times: list[float] = []

        def decide(messages: list[ReceivedMessage]) -> HandlerResult:
            times.append(time.time())
            return RetryLater(delay=0.4, error=ValueError("broken"))

        handler = Collector(decide)
        async with consumer_of(
            namesrv,
            group,
            topic,
            handler,
            max_reconsume_times=2,
            on_retried=lambda message: retried.append(message.reconsume_times),
            on_dead_lettered=lambda message: dead.append(message.body),
        ):
            await publish(namesrv, topic, "stubborn")
            await until(lambda: dead)
        assert [message.reconsume_times for message in handler.messages] == [0, 1, 2]
        assert {message.topic for message in handler.messages} == {topic}
        assert all(later - sooner >= 0.39 for sooner, later in itertools.pairwise(times))
        assert (retried, dead) == ([0, 1], [b"stubborn"])
        letters = Collector()
        async with consumer_of(namesrv, fresh("G"), f"%DLQ%{group}", letters):
            await until(lambda: letters.messages)
        (letter,) = letters.messages
        assert letter.body == b"stubborn"
        assert "broken" in str(letter.properties)

    asyncio.run(main())


def test_a_rejected_message_is_a_dead_letter_at_once(namesrv: str) -> None:
    topic, group = fresh("PopRejects"), fresh("G")

    async def main() -> None:
        handler = Collector(lambda messages: DeadLetter(ValueError("no use")))
        dead: list[bytes] = []
        async with consumer_of(
            namesrv, group, topic, handler, on_dead_lettered=lambda message: dead.append(message.body)
        ):
            await publish(namesrv, topic, "hopeless")
            await until(lambda: dead)
        assert len(handler.messages) == 1

    asyncio.run(main())


def test_long_work_keeps_its_lease_and_nobody_else_gets_it(namesrv: str) -> None:
    topic, group = fresh("PopLong"), fresh("G")

    async def main() -> None:
        begun: list[str] = []

        async def slow(messages: list[ReceivedMessage]) -> HandlerResult:
            begun.append(messages[0].body.decode())
            await asyncio.sleep(6.0)  # more than twice the lease
            return ConsumeResult.SUCCESS

        await publish(namesrv, topic, "one", "two")
        other = Collector()
        async with consumer_of(namesrv, group, topic, slow, lease=2.5):
            await until(lambda: len(begun) == 2)
            async with consumer_of(namesrv, group, topic, other, lease=2.5):
                await asyncio.sleep(5.5)
        assert sorted(begun) == ["one", "two"]
        assert other.messages == []
        async with consumer_of(namesrv, group, topic, other):
            await publish(namesrv, topic, "three")
            await until(lambda: other.messages)
        assert other.bodies == ["three"]

    asyncio.run(main())


def test_who_stops_gives_back_what_was_not_begun(namesrv: str) -> None:
    topic, group = fresh("PopStops"), fresh("G")

    async def main() -> None:
        holding = asyncio.Event()
        begun: list[str] = []

        async def stuck(messages: list[ReceivedMessage]) -> HandlerResult:
            begun.append(messages[0].body.decode())
            await holding.wait()
            return ConsumeResult.SUCCESS

        await publish(namesrv, topic, *[f"m{n}" for n in range(8)])
        first = consumer_of(namesrv, group, topic, stuck, concurrency=2, lease=60.0)
        await first.start()
        await until(lambda: len(begun) == 2 and len(first._leases) >= 4)
        closing = asyncio.create_task(first.close())
        other = Collector()
        async with consumer_of(namesrv, group, topic, other):
            await until(lambda: len(other.messages) == 6)
            assert {message.attempt for message in other.messages} == {1}
            holding.set()
            assert await closing
        assert sorted([*begun, *other.bodies]) == [f"m{n}" for n in range(8)]

    asyncio.run(main())


def test_a_broker_that_hangs_keeps_nobody_from_what_the_others_have(namesrv: str) -> None:
    topic, group = fresh("PopHangs"), fresh("G")

    async def main() -> None:
        handler = Collector()
        consumer = consumer_of(namesrv, group, topic, handler, from_where="LAST", timeout=2.0)
        async with consumer:
            assert {queue.broker_name for queue in (await consumer.instance.topic(topic)).read_queues} > {"silent"}
            assert await can_pop(consumer.instance, group, topic)
            async with AsyncProducer("PG", namesrv) as producer:
                await producer.send(Message(topic, b"new"), queue=queue)
            await until(lambda: "new" in handler.bodies)

    with Producer("PG", namesrv) as producer:
        queue = producer.send(Message(topic, b"makes the topic")).queue
    with Silent(namesrv, topic):
        asyncio.run(main())


def test_messages_that_are_done_while_their_leases_are_renewed_make_room_for_others(namesrv: str) -> None:
    """Their acknowledgements wait for the renewals: it is later than when handlers return that there is room."""
    topic, group = fresh("PopRoom"), fresh("G")

    async def main() -> None:
        got: list[str] = []
        late: list[Callable[[], None]] = []

        async def handle(messages: list[ReceivedMessage]) -> HandlerResult:
            if not got:
                await until(lambda: len(leases) == 2)
                for held in leases._held:
                    held.losses -= 1  # as if the connection had been lost since
                leases._renew()
            got.append(messages[0].body.decode())
            return ConsumeResult.SUCCESS

        def slow(broker: str, request: Any, timeout: float) -> asyncio.Future[Command]:
            if request.code != RequestCode.CHANGE_MESSAGE_INVISIBLETIME:
                return submit(broker, request, timeout)
            future: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
            late.append(
                lambda: submit(broker, request, timeout).add_done_callback(lambda f: future.set_result(f.result()))
            )
            return future

        await publish(namesrv, topic, "a", "b", "c")
        consumer = consumer_of(namesrv, group, topic, handle, concurrency=1, lease=600.0)
        leases, submit = consumer._leases, consumer._calls.submit
        consumer._calls.submit = slow  # type: ignore[method-assign]
        async with consumer:
            await until(lambda: len(got) == 2 and consumer.in_flight == 0)
            for answer in late:
                answer()
            await until(lambda: len(got) == 3)

    asyncio.run(main())


def test_a_result_that_cannot_be_carried_out_costs_no_worker(namesrv: str) -> None:
    topic, group = fresh("PopNever"), fresh("G")

    async def main() -> None:
        pop_consumer_module.LEVELS = (0.1,) * 18  # type: ignore[misc]
        results: list[HandlerResult] = [RetryLater(delay=float("inf")), ConsumeResult.SUCCESS]
        handler = Collector(lambda messages: results.pop(0))
        async with consumer_of(namesrv, group, topic, handler, concurrency=1):
            await publish(namesrv, topic, "x")
            await until(lambda: len(handler.messages) == 2)

    levels = pop_consumer_module.LEVELS
    try:
        asyncio.run(main())
    finally:
        pop_consumer_module.LEVELS = levels  # type: ignore[misc]


def test_a_handler_that_does_not_return_loses_its_message(namesrv: str) -> None:
    topic, group = fresh("PopHangs"), fresh("G")

    async def main() -> None:
        calls: list[str] = []
        pop_consumer_module.LEVELS = (0.1,) * 18  # type: ignore[misc]

        async def hang(messages: list[ReceivedMessage]) -> HandlerResult:
            calls.append(messages[0].body.decode())
            await asyncio.sleep(60 if len(calls) == 1 else 0)
            return ConsumeResult.SUCCESS

        async with consumer_of(namesrv, group, topic, hang, consume_timeout=0.5) as consumer:
            await publish(namesrv, topic, "x")
            await until(lambda: len(calls) == 2)
            assert not await consumer.close(0.1) or consumer.in_flight == 0

    levels = pop_consumer_module.LEVELS
    try:
        asyncio.run(main())
    finally:
        pop_consumer_module.LEVELS = levels  # type: ignore[misc]


def test_a_group_that_pulls_is_joined_by_pull(namesrv: str) -> None:
    topic, group = fresh("PopMixed"), fresh("G")

    async def main() -> None:
        await publish(namesrv, topic, "x")
        instance = ClientInstance(namesrv)
        await instance.acquire()
        try:
            assert await can_pop(instance, group, topic)
            handler = Collector()
            pulling = PushConsumer(group, namesrv, handler, from_where="FIRST")
            pulling.subscribe(topic)
            async with pulling:
                assert not await can_pop(instance, group, topic)
            async with consumer_of(namesrv, group, topic, handler):
                assert await can_pop(instance, group, topic)
            assert await can_pop(instance, group, fresh("Nobody"))
        finally:
            await instance.release()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"lease": 0.5}, {"concurrency": 0}, {"max_reconsume_times": 17}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PopConsumer("G", "127.0.0.1:1", Collector(), **wrong)


@pytest.mark.slow
def test_a_broker_that_is_killed_forgets_no_lease_and_no_acknowledgement(tmp_path: Path) -> None:
    """Twice in the middle: everything is consumed, and only what was in flight then perhaps twice."""
    count = 1500
    seen: Counter[str] = Counter()
    in_flight: set[str] = set()

    async def handler(messages: list[ReceivedMessage]) -> HandlerResult:
        body = messages[0].body.decode()
        in_flight.add(body)
        await asyncio.sleep(0.005)
        seen[body] += 1
        in_flight.discard(body)
        return ConsumeResult.SUCCESS

    async def main() -> None:
        ports = lasting_ports()
        server = start_server(tmp_path / "data", **ports)
        perhaps_twice: set[str] = set()
        try:
            await publish(server.namesrv, "Killed", *[f"m{n}" for n in range(count)])
            consumer = consumer_of(server.namesrv, "G", "Killed", handler, lease=4.0)
            async with consumer:
                for share in (3, 2):
                    await until(lambda share=share: len(seen) >= count // share)
                    done = len(seen)
                    server.kill()
                    server = await asyncio.to_thread(start_server, tmp_path / "data", **ports)
                    # what was held then, and what was done and not acknowledged yet
                    await asyncio.sleep(1.0)
                    perhaps_twice |= in_flight | set(list(seen)[max(0, done - 300) :])
                await until(lambda: len(seen) == count, deadline=60.0)
            twice = {body for body, times in seen.items() if times > 1}
            assert twice <= perhaps_twice, sorted(twice - perhaps_twice)
            late = Collector()
            async with consumer_of(server.namesrv, "G", "Killed", late):
                await publish(server.namesrv, "Killed", "last")
                await until(lambda: "last" in late.bodies)
            assert set(late.bodies) <= {"last"} | perhaps_twice
        finally:
            server.stop()

    try:
        asyncio.run(main())
    except RocketQError as error:
        raise AssertionError(f"the consumer did not live through the kill: {error}") from error
