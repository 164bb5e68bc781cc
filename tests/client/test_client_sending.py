"""The producer's decisions: what goes out, where to, and what answers mean."""

from __future__ import annotations

import json
import random
import struct
import threading
from pathlib import Path

import pytest

from rocketq.client.batch import encode_batch
from rocketq.client.routes import RouteTable
from rocketq.client.sending import SendCore, SendOptions
from rocketq.errors import BrokerError, ConnectFailed, InvalidMessage, RouteNotFound
from rocketq.message import Message, MessageQueue, UniqueIds
from rocketq.remoting.bodies import BrokerData, QueueData, TopicRoute
from rocketq.remoting.command import Command, FrameDecoder

GOLDEN = Path(__file__).parents[1] / "golden" / "java_client.jsonl"


def core(*brokers: str, **options: object) -> SendCore:
    table = RouteTable()
    if brokers:
        datas = [BrokerData("C", name, {0: f"{name}:10911"}) for name in brokers]
        queues = [QueueData(name, 2, 2, 6) for name in brokers]
        table.learn("T", TopicRoute(datas, queues), 0.0)
    return SendCore("PG", table, SendOptions(**options), random.Random(7))  # type: ignore[arg-type]


def decode(frame: list[bytes | memoryview]) -> Command:
    (command,) = FrameDecoder().feed(b"".join(frame))
    return command


def golden_ext(name: str) -> dict[str, str]:
    for line in GOLDEN.read_text().splitlines():
        if json.loads(line)["name"] == name:
            return json.loads(json.loads(line)["request_header"])["extFields"]  # type: ignore[no-any-return]
    raise AssertionError(name)


def test_the_template_says_the_same_as_the_fields() -> None:
    one = core()
    message = Message("T", b"body", tag="Tüg", keys=["k1", 'q"uote'], properties={"u": "ä\n"}, flag=7)
    outgoing = one.prepare(message)
    queue = MessageQueue("T", "b-ä", 3)
    for oneway in (False, True):
        command = decode(one.frame(outgoing, queue, 1700000000000, 2**31 - 1, oneway))
        assert command.code == 310
        assert command.opaque == 2**31 - 1
        assert command.is_oneway is oneway
        assert command.body == b"body"
        assert command.ext == one.fields(outgoing, queue, 1700000000000)


def test_single_sends_and_batches_have_the_fields_of_the_java_client() -> None:
    one, queue = core(), MessageQueue("T", "broker-a", 2)
    single = one.prepare(Message("T", b"x", tag="TagA"))
    assert set(one.fields(single, queue, 1)) == set(golden_ext("producer_310"))
    batch = one.prepare_batch([Message("T", b"x"), Message("T", b"y", tag="B")])
    assert set(one.fields(batch, queue, 1)) == set(golden_ext("producer_320"))
    command = decode(one.frame(batch, queue, 1, 5))
    assert command.code == 320
    assert command.ext["m"] == "true"
    assert command.ext == one.fields(batch, queue, 1)
    assert len(batch.ids) == 2
    assert command.ext["i"].count("UNIQ_KEY") == 1


def test_a_retry_carries_its_count_in_the_header() -> None:
    message = Message("%RETRY%G", b"x")
    message.properties.update({"RECONSUME_TIME": "3", "MAX_RECONSUME_TIMES": "5"})
    one, queue = core(), MessageQueue("%RETRY%G", "b", 0)
    outgoing = one.prepare(message)
    command = decode(one.frame(outgoing, queue, 1, 5))
    assert (command.ext["j"], command.ext["l"]) == ("3", "5")
    assert "RECONSUME_TIME" not in command.ext["i"]
    assert command.ext == one.fields(outgoing, queue, 1)


def test_the_unique_id_stays_when_a_message_is_sent_again() -> None:
    one, message = core(), Message("T", b"x")
    first = one.prepare(message).ids
    assert one.prepare(message).ids == first
    assert message.unique_id == first[0]


def test_threads_that_send_first_at_once_have_whole_unique_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, go_on = threading.Event(), threading.Event()

    def slow_address() -> bytes:
        if not looking.is_set():
            looking.set()
            assert go_on.wait(30)
        return bytes(4)

    monkeypatch.setattr("rocketq.message._local_address", slow_address)
    ids = UniqueIds()
    made: list[str] = []
    first = threading.Thread(target=lambda: made.append(ids.new()))
    first.start()
    assert looking.wait(30)
    made.append(ids.new())
    go_on.set()
    first.join(30)
    assert [len(each) for each in made] == [32, 32]
    assert made[0] != made[1]


def test_large_bodies_are_compressed_before_their_size_counts() -> None:
    outgoing = core(max_message_size=1000).prepare(Message("T", b"x" * 100_000))
    assert outgoing.sys_flag == 0x301
    assert len(outgoing.body) < 1000
    with pytest.raises(InvalidMessage, match="exceed the limit of 1000"):
        core(max_message_size=1000).prepare(Message("T", random.Random(1).randbytes(100_000)))


def test_a_body_over_the_limit_is_refused_even_when_it_is_not_compressed() -> None:
    with pytest.raises(InvalidMessage, match="exceed the limit of 1000"):
        core(max_message_size=1000).prepare(Message("T", b"x" * 1001))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Message("bad topic", b"x"), "illegal characters"),
        (Message("SCHEDULE_TOPIC_XXXX", b"x"), "forbidden"),
        (Message("T", b""), "at least one"),
        (Message("T", "text"), "has to be bytes"),  # type: ignore[arg-type]
        (Message("T", b"x", properties={"p": "v" * 33_000}), "32767"),
    ],
)
def test_what_a_broker_would_refuse_does_not_leave(message: Message, text: str) -> None:
    with pytest.raises(InvalidMessage, match=text):
        core().prepare(message)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message("T", b"x"), Message("U", b"x")],
        [Message("T", b"x", delay_level=3)],
        [Message("%RETRY%G", b"x")],
        [Message("T", b"x"), Message("T", b"")],
        [Message("T", b"x" * 3000), Message("T", b"x" * 3000)],
    ],
)
def test_what_does_not_fit_into_a_batch_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InvalidMessage):
        core(max_message_size=5000).prepare_batch(messages)


def test_the_size_estimate_of_a_batched_message_is_not_too_small() -> None:
    one = core()
    message = Message("T", b"x" * 10, tag="ä" * 20, keys="k")
    estimate = one.batched_size(message)
    outgoing = one.prepare(message)
    assert estimate >= len(encode_batch([(0, message.body, outgoing.properties.encode())]))


def test_sends_take_turns_over_all_queues() -> None:
    one = core("a", "b")
    delivery = one.delivery(one.prepare(Message("T", b"x")), 10.0)
    seen = [one.choose(delivery, one.routes.topics["T"], None, 0.0) for _ in range(8)]
    assert len(set(seen)) == 4
    assert seen[:4] == seen[4:]


def test_a_retry_goes_to_another_broker_and_attempts_are_counted() -> None:
    one = core("a", "b", retries=2)
    delivery = one.delivery(one.prepare(Message("T", b"x")), 10.0)
    error = BrokerError(14, "full")
    assert one.may_retry(delivery, "a", error, 1.0)
    assert one.pause_before_retry(delivery, 1.0) == 0.0
    assert {one.choose(delivery, one.routes.topics["T"], None, 0.0).broker_name for _ in range(8)} == {"b"}
    assert one.may_retry(delivery, "b", error, 2.0)
    assert not one.may_retry(delivery, "a", error, 3.0)


def test_a_lone_broker_gets_a_moment_before_the_next_attempt() -> None:
    one = core("a", retries=2)
    delivery = one.delivery(one.prepare(Message("T", b"x")), 10.0)
    pauses = []
    while one.may_retry(delivery, "a", ConnectFailed("down"), 1.0):
        pauses.append(one.pause_before_retry(delivery, 1.0))
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1]


@pytest.mark.parametrize("code", [17, 14, 1, 2, 16, 204, 205, 1500])
def test_these_refusals_are_tried_elsewhere(code: int) -> None:
    one = core("a", "b")
    assert one.may_retry(one.delivery(one.prepare(Message("T", b"x")), 9.0), "a", BrokerError(code), 1.0)


@pytest.mark.parametrize("error", [BrokerError(13), BrokerError(29), RouteNotFound("none"), InvalidMessage("no")])
def test_other_refusals_are_final(error: BrokerError) -> None:
    one = core("a", "b")
    assert not one.may_retry(one.delivery(one.prepare(Message("T", b"x")), 9.0), "a", error, 1.0)


def test_nothing_is_tried_again_after_the_time_or_when_the_queue_was_chosen() -> None:
    one = core("a", "b")
    outgoing = one.prepare(Message("T", b"x"))
    lost = ConnectFailed("down")
    assert not one.may_retry(one.delivery(outgoing, 9.0), "a", lost, 9.5)
    assert not one.may_retry(one.delivery(outgoing, 9.0, MessageQueue("T", "a", 0)), "a", lost, 1.0)
    assert not one.may_retry(one.delivery(outgoing, 9.0, key="order-7"), "a", lost, 1.0)


def test_failures_make_the_route_stale() -> None:
    one = core("a")
    one.may_retry(one.delivery(one.prepare(Message("T", b"x")), 9.0), "a", ConnectFailed("down"), 1.0)
    assert one.routes.fresh("T", 0.0, 30.0) is None


def test_slow_brokers_are_avoided_only_when_asked_for() -> None:
    for wanted, brokers in ((True, {"b"}), (False, {"a", "b"})):
        one = core("a", "b", latency_fault=wanted)
        delivery = one.delivery(one.prepare(Message("T", b"x")), 99.0)
        delivery.started = 0.0
        one.succeeded(delivery, "a", 2.0)
        seen = {one.choose(delivery, one.routes.topics["T"], None, 3.0).broker_name for _ in range(8)}
        assert seen == brokers


def respond(code: int, **ext: str) -> Command:
    return Command(code, flag=1, ext=ext, remark="because")


def test_results_tell_where_the_message_is() -> None:
    one, queue = core(), MessageQueue("T", "b", 2)
    outgoing = one.prepare(Message("T", b"x"))
    reply = respond(
        0, msgId="AB", queueId="2", queueOffset="77", transactionId="u", recallHandle="h", TRACE_ON="true"
    )
    (result,) = one.results(outgoing, queue, reply, "b:1")
    assert (result.status, result.message_id, result.offset_message_id) == ("SEND_OK", outgoing.ids[0], "AB")
    assert (result.queue, result.queue_offset, result.recall_handle) == (queue, 77, "h")
    moved = respond(10, msgId="AB", queueId="0", queueOffset="0")
    (result,) = one.results(outgoing, queue, moved, "b:1")
    assert (result.status, result.queue.queue_id) == ("FLUSH_DISK_TIMEOUT", 0)


def test_a_batch_has_a_result_for_each_message() -> None:
    one, queue = core(), MessageQueue("T", "b", 2)
    outgoing = one.prepare_batch([Message("T", b"x"), Message("T", b"y")])
    reply = respond(0, msgId="A1,A2", queueId="2", queueOffset="5")
    results = one.results(outgoing, queue, reply, "b:1")
    assert [(r.message_id, r.offset_message_id, r.queue_offset) for r in results] == [
        (outgoing.ids[0], "A1", 5),
        (outgoing.ids[1], "A2", 6),
    ]
    results = one.results(outgoing, queue, respond(0, msgId="A1", queueId="2", queueOffset="5"), "b:1")
    assert [result.offset_message_id for result in results] == ["A1", "A1"]


def test_a_refusal_names_the_broker_and_its_reason() -> None:
    one = core()
    with pytest.raises(BrokerError, match="b:1 answered code 14: because"):
        one.results(one.prepare(Message("T", b"x")), MessageQueue("T", "b", 2), respond(14), "b:1")


@pytest.mark.parametrize("group", ["", "bad group", "DEFAULT_PRODUCER", "g" * 200])
def test_bad_group_names_are_refused(group: str) -> None:
    with pytest.raises(InvalidMessage):
        SendCore(group, RouteTable(), SendOptions())


def test_frames_state_their_lengths() -> None:
    one = core()
    head, header, body = one.frame(one.prepare(Message("T", b"x" * 10)), MessageQueue("T", "b", 0), 1, 1)
    assert struct.unpack(">iI", head) == (4 + len(header) + len(body), len(header))
