"""What a client library does for a living, with every library on both servers.

The pairs of a foreign client with Apache's own server test the tests; the others are the point.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest
from peer import CLIENTS, Peer
from scenarios import Message, bodies, by_queue, or_none, plain, settled, stopped_after
from wire import Server, committed, create_topic, extent, stored_record, wait_for_route, wait_until

from rocketq.record import COMPRESSED

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
JAVA = ["java-4.9.8", "java-5.4.0"]


@pytest.fixture(params=CLIENTS)
def peer(request: pytest.FixtureRequest, client: GetClient) -> Peer:
    return client(request.param)


def assert_sent(results: list[Message], count: int) -> None:
    assert [result["status"] for result in results] == ["SEND_OK"] * count
    assert len({(result["queue"], result["queue_offset"]) for result in results}) == count
    for result in results:
        # 32 hexadecimal digits with an IPv4 address in it, 56 with an IPv6 address.
        assert all(len(part) in (32, 56) for part in result["message_id"].split(",")), result
        assert all(len(part) == 32 for part in result["offset_message_id"].split(",")), result


def test_what_is_sent_in_each_way_arrives_once(server: Server, peer: Peer, name: str) -> None:
    # The first send finds no route and lets the broker create the topic.
    assert_sent(peer.send(server, name, plain(8, "sync", tag="A", keys="k")), 8)
    assert_sent(peer.send(server, name, plain(8, "async"), how="async"), 8)
    assert peer.send(server, name, plain(8, "oneway"), how="oneway") == []
    (batch,) = peer.send(server, name, plain(8, "batch"), how="batch")
    assert batch["status"] == "SEND_OK"
    assert len(batch["offset_message_id"].split(",")) == 8
    wanted = sorted(body for way in ("sync", "async", "oneway", "batch") for body in bodies(8, way))
    stored = lambda: sum(extent(server, name, queue)[1] for queue in range(4))  # noqa: E731
    wait_until(lambda: stored() >= 32, "all 32 are stored")
    wait_for_route(server, name)

    consumer = peer.consume(server, name, f"G_{name}")
    consumer.wait(32)
    received = consumer.stop()
    assert sorted(message["body"] for message in received) == wanted
    assert stored() == 32
    for queue, messages in by_queue(received).items():
        offsets = sorted(message["queue_offset"] for message in messages)
        assert offsets == list(range(len(offsets))), f"queue {queue}"
    batched = [message for message in received if message["body"].startswith(b"batch")]
    assert len({message["queue"] for message in batched}) == 1
    assert len({message["message_id"] for message in received}) == 32
    tagged = [message for message in received if message["body"].startswith(b"sync")]
    assert {(message["tag"], message["keys"]) for message in tagged} == {("A", "k")}


def test_messages_of_a_key_keep_their_order(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    keys = [f"key-{number}" for number in range(6)]
    messages = [{"body": f"{key}:{step}".encode(), "hash": key} for step in range(10) for key in keys]
    assert_sent(peer.send(server, name, messages, how="hash"), 60)
    consumer = peer.consume(server, name, f"G_{name}", orderly=True)
    consumer.wait(60)
    steps: dict[str, list[int]] = defaultdict(list)
    queues: dict[str, set[int]] = defaultdict(set)
    for message in consumer.stop():
        key, step = message["body"].decode().split(":")
        steps[key].append(int(step))
        queues[key].add(message["queue"])
    assert dict(steps) == {key: list(range(10)) for key in keys}
    assert all(len(found) == 1 for found in queues.values())
    assert len(set.union(*queues.values())) > 1


def test_a_tag_expression_selects(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    # "Aa" and "BB" have the same hash: the broker cannot tell them apart, the consumer must.
    tags = ["red", "green", "blue", "Aa", "BB", ""] * 8
    random.Random(7).shuffle(tags)
    messages = [{"body": f"{tag}-{n}".encode(), "tag": tag} for n, tag in enumerate(tags)]
    peer.send(server, name, messages)
    consumer = peer.consume(server, name, f"G_{name}", expression="red || Aa")
    consumer.wait(16)
    wanted = {message["body"] for message in messages if message["tag"] in ("red", "Aa")}
    # A last one that must come shows that nothing else was about to.
    peer.send(server, name, [{"body": b"BB-last", "tag": "BB"}, {"body": b"red-last", "tag": "red"}])
    consumer.wait(17)
    assert sorted(message["body"] for message in consumer.stop()) == sorted(wanted | {b"red-last"})


def test_each_member_of_a_broadcast_group_gets_everything(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    peer.send(server, name, plain(4, "before"))
    both = [peer.consume(server, name, f"G_{name}", broadcast=True) for _ in range(2)]
    peer.send(server, name, plain(12, "after"))
    for consumer in both:
        consumer.wait(16)
    wanted = sorted(bodies(4, "before") + bodies(12, "after"))
    assert [sorted(message["body"] for message in consumer.stop()) for consumer in both] == [wanted, wanted]


def test_a_failed_message_comes_back_and_then_goes_to_the_dead_letters(
    server: Server, peer: Peer, name: str
) -> None:
    group = f"G_{name}"
    create_topic(server, name)
    create_topic(server, f"%RETRY%{group}", 1)
    (sent,) = peer.send(server, name, [{"body": b"stubborn", "tag": "T", "keys": "k1"}])
    consumer = peer.consume(server, name, group, fail=99, max_reconsume=2)
    received = consumer.wait(3)
    dead = f"%DLQ%{group}"
    wait_until(lambda: extent(server, dead, 0) == (0, 1), "one dead letter")
    consumer.stop()
    assert [message["reconsume_times"] for message in received] == [0, 1, 2]
    assert {message["body"] for message in received} == {b"stubborn"}
    assert {message["topic"] for message in received} == {name}
    assert {(message["tag"], message["keys"]) for message in received} == {("T", "k1")}
    for again in received[1:]:
        assert again["properties"]["RETRY_TOPIC"] == name
        assert again["properties"]["ORIGIN_MESSAGE_ID"] in (sent["message_id"], sent["offset_message_id"])
        assert again["now"] - sent_at(received[0]) >= 900


def sent_at(message: Message) -> int:
    stored: int = message["stored"]
    return stored


def test_an_orderly_consumer_that_fails_is_given_the_same_message_first(
    server: Server, peer: Peer, name: str
) -> None:
    create_topic(server, name, 1)
    peer.send(server, name, plain(3))
    consumer = peer.consume(server, name, f"G_{name}", orderly=True, fail=2, max_reconsume=5)
    consumer.wait(9)
    attempts = [(message["body"], message["reconsume_times"]) for message in consumer.stop()]
    assert attempts == [(body, attempt) for body in bodies(3) for attempt in range(3)]


def test_a_delayed_message_comes_when_its_level_says(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    consumer = peer.consume(server, name, f"G_{name}")
    peer.send(server, name, [{"body": b"late", "delay": 1}, {"body": b"now"}])
    received = {message["body"]: message for message in consumer.wait(2)}
    consumer.stop()
    assert received.keys() == {b"late", b"now"}
    assert received[b"late"]["now"] - received[b"late"]["born"] >= 990
    assert received[b"late"]["topic"] == name
    assert received[b"late"]["queue"] in range(4)


def test_a_large_body_travels_compressed(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    body = b"".join(b"%d bottles of beer " % number for number in range(300))
    assert len(body) > 5000
    peer.send(server, name, [{"body": body}])
    consumer = peer.consume(server, name, f"G_{name}")
    (message,) = consumer.wait(1)
    consumer.stop()
    assert message["body"] == body
    record = stored_record(server, message["physical_offset"])
    assert record.sys_flag & COMPRESSED
    assert len(record.body) < 3000


def test_a_group_goes_on_where_it_stopped(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    peer.send(server, name, plain(20, "first"))
    consumer = peer.consume(server, name, f"G_{name}")
    consumer.wait(20)
    received = stopped_after(server, name, consumer, 20)
    assert sorted(message["body"] for message in received) == bodies(20, "first")
    peer.send(server, name, plain(20, "second"))
    consumer = peer.consume(server, name, f"G_{name}")
    consumer.wait(20)
    assert sorted(message["body"] for message in consumer.stop()) == bodies(20, "second")


def test_two_members_share_the_queues(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name)
    both = [peer.consume(server, name, f"G_{name}") for _ in range(2)]
    queues = settled(server, peer, name, both)
    assert sorted(len(own) for own in queues) == [2, 2]
    peer.send(server, name, plain(100))
    wait_until(
        lambda: sum(body.startswith(b"m-") for consumer in both for body in consumer.bodies()) >= 100,
        "all 100",
        60,
    )
    parts = [[m for m in consumer.stop() if m["body"].startswith(b"m-")] for consumer in both]
    assert sorted(message["body"] for part in parts for message in part) == bodies(100)
    assert [{message["queue"] for message in part} for part in parts] == queues


def test_a_pull_consumer_takes_its_share_and_commits(server: Server, peer: Peer, name: str) -> None:
    create_topic(server, name, 1)
    peer.send(server, name, plain(30))
    first = peer.ask("poll", namesrv=server.namesrv, topic=name, group=f"G_{name}", name=name, count=30)
    assert [message["body"] for message in first["messages"]] == bodies(30)
    # clients do not wait for answers to their last commits
    wait_until(lambda: committed(server, f"G_{name}", name, 0) == 30, "the commit")
    peer.send(server, name, plain(5, "more"))
    second = peer.ask("poll", namesrv=server.namesrv, topic=name, group=f"G_{name}", name=name, count=5)
    assert [message["body"] for message in second["messages"]] == bodies(5, "more")


@pytest.fixture(params=JAVA)
def java(request: pytest.FixtureRequest, client: GetClient) -> Peer:
    return client(request.param)


def test_messages_are_found_by_id_by_key_and_by_time(server: Server, java: Peer, name: str) -> None:
    create_topic(server, name, 2)
    where = {"namesrv": server.namesrv, "topic": name}
    early = java.send(server, name, plain(3, "early", keys="one two"))
    late = java.send(server, name, plain(3, "late", keys="three"))
    for sent, body in zip(early + late, bodies(3, "early") + bodies(3, "late"), strict=True):
        found = java.ask("view", message_id=sent["offset_message_id"], **where)
        assert (found["body"], found["queue"], found["queue_offset"]) == (
            body,
            sent["queue"],
            sent["queue_offset"],
        )
        by_unique_id = wait_until(
            lambda sent=sent: or_none(java, "view", message_id=sent["message_id"], **where), "index"
        )
        assert by_unique_id["body"] == body
    by_key = wait_until(lambda: or_none(java, "query", key="two", **where), "index of key two")
    assert sorted(message["body"] for message in by_key) == bodies(3, "early")
    assert not or_none(java, "query", key="four", **where)

    queues = java.ask("queues", **where)
    assert [queue["min"] for queue in queues] == [0, 0]
    assert sum(queue["max"] for queue in queues) == 6
    every = [java.ask("view", message_id=sent["offset_message_id"], **where) for sent in early + late]
    for queue in queues:
        own = [message for message in every if message["queue"] == queue["queue"]]
        at = {**where, "broker": queue["broker"], "queue": queue["queue"]}
        assert queue["earliest"] == own[0]["stored"]
        assert java.ask("search", timestamp=own[0]["stored"] - 1000, **at) == 0
        assert java.ask("search", timestamp=own[-1]["stored"] + 3_600_000, **at) in (len(own), len(own) - 1)
        for message in own:
            first = min(other["queue_offset"] for other in own if other["stored"] == message["stored"])
            assert java.ask("search", timestamp=message["stored"], **at) == first


def test_a_queue_is_pulled_from_any_offset(server: Server, java: Peer, name: str) -> None:
    create_topic(server, name, 1)
    (first, *_) = java.send(
        server, name, [{"body": body, "tag": f"t{n % 2}"} for n, body in enumerate(bodies(10))]
    )
    at = {"namesrv": server.namesrv, "topic": name, "broker": first["broker"], "queue": 0}
    whole = java.ask("pull", offset=0, **at)
    assert (whole["status"], whole["next"], whole["min"], whole["max"]) == ("FOUND", 10, 0, 10)
    assert [message["body"] for message in whole["messages"]] == bodies(10)
    part = java.ask("pull", offset=4, max=3, **at)
    assert (part["next"], [message["body"] for message in part["messages"]]) == (7, bodies(10)[4:7])
    odd = java.ask("pull", offset=0, expression="t1", **at)
    assert [message["body"] for message in odd["messages"]] == bodies(10)[1::2]
    none = java.ask("pull", offset=0, expression="t7", **at)
    assert (none["status"], none["messages"]) == ("NO_MATCHED_MSG", [])
    beyond = java.ask("pull", offset=500, **at)
    assert (beyond["status"], beyond["next"]) == ("OFFSET_ILLEGAL", 10)


@pytest.mark.parametrize("make", [*JAVA, "rocketq"])
def test_an_assigned_queue_is_read_from_where_it_was_committed(
    server: Server, client: GetClient, make: str, name: str
) -> None:
    peer = client(make)
    create_topic(server, name, 1)
    (first, *_) = peer.send(server, name, plain(20))
    at = {"namesrv": server.namesrv, "topic": name, "broker": first["broker"], "queue": 0, "group": f"G_{name}"}
    sought = peer.ask("lite", offset=5, count=15, **at)
    assert [message["body"] for message in sought["messages"]] == bodies(20)[5:]
    assert sought["committed"] == 20
    wait_until(lambda: committed(server, f"G_{name}", name, 0) == 20, "Java's client first says so of itself")
    peer.send(server, name, plain(4, "more"))
    went_on = peer.ask("lite", count=4, **at)
    assert [message["body"] for message in went_on["messages"]] == bodies(4, "more")
