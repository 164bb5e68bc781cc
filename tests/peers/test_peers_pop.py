"""POP: Java's push consumer and the single requests of Java's client and ours, on our server and on Apache's."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache import Apache
from peer import Consumption, Peer, start_client
from wire import Server, call, create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
JAVA = "java-5.4.0"
#: The shortest lease that Java's push consumer accepts, ms.
LEASE = 5000
#: Seconds for what is to come: Apache's broker may overlook a pop that waits, for 15 seconds each time.
PATIENCE = 90


def in_pop_mode(server: Server, client: GetClient, topic: str) -> str:
    """A topic of four queues, and the group `G_<topic>` that brokers let pop it; gives the group."""
    create_topic(server, topic)
    group = f"G_{topic}"
    client(JAVA).ask("Pop.mode", namesrv=server.namesrv, address=server.broker, topic=topic, group=group)
    return group


def popping(peer: Peer, server: Server, topic: str, **options: Any) -> Consumption:
    return peer.consume(server, topic, f"G_{topic}", verb="Pop.consume", **{"lease": LEASE, **options})


def popped(server: Server, take: Callable[[], Any]) -> Any:
    """What our broker gives at once; Apache's may skip a queue, and is asked again."""
    return wait_until(take, "messages", PATIENCE if server.kind == "apache" else 0)


def test_a_group_takes_each_message_of_its_tags_once(server: Server, client: GetClient, name: str) -> None:
    in_pop_mode(server, client, name)
    java = client(JAVA)
    one, two = (popping(java, server, name, expression="red || blue") for _ in range(2))
    tags = ["red", "green", "blue"]
    java.send(server, name, [{"body": f"{n}".encode(), "tag": tags[n % 3]} for n in range(60)])
    wanted = sorted(f"{n}".encode() for n in range(60) if n % 3 != 1)
    wait_until(lambda: len(one.bodies() + two.bodies()) >= len(wanted), "all messages of the tags", PATIENCE)
    time.sleep(LEASE / 1000 + (1 if server.kind == "rocketq" else 4))  # what is not acknowledged comes again now
    one.stop()
    two.stop()
    assert sorted(one.bodies() + two.bodies()) == wanted
    assert {message["queue"] for message in one.messages + two.messages} == {0, 1, 2, 3}


def test_what_fails_comes_again_after_its_back_off(server: Server, client: GetClient, name: str) -> None:
    in_pop_mode(server, client, name)
    java = client(JAVA)
    consumption = popping(java, server, name, fail=1, lease=60_000)
    java.send(server, name, [{"body": b"%d" % n} for n in range(8)])
    came = consumption.wait(16, PATIENCE)
    consumption.stop()
    assert Counter(message["body"] for message in came) == {b"%d" % n: 2 for n in range(8)}
    for n in range(8):
        first, second = (message for message in came if message["body"] == b"%d" % n)
        assert (first["reconsume_times"], second["reconsume_times"]) == (0, 1)
        assert second["topic"] == name
        assert second["now"] - first["now"] >= 1000


def test_what_a_killed_consumer_held_comes_to_another_when_its_lease_is_over(
    server: Server, client: GetClient, name: str, tmp_path: Path
) -> None:
    in_pop_mode(server, client, name)
    java = client(JAVA)
    victim = start_client(JAVA, tmp_path)
    # none comes again before all have come
    lease = LEASE if server.kind == "rocketq" else 4 * LEASE
    doomed = popping(victim, server, name, hold=True, lease=lease)
    java.send(server, name, [{"body": b"%d" % n} for n in range(6)])
    wait_until(lambda: len(set(doomed.bodies())) == 6, "all are held", PATIENCE)
    victim.kill()
    lost = {message["body"]: int(message["properties"]["1ST_POP_TIME"]) for message in doomed.messages}
    heir = popping(java, server, name)
    came = heir.wait(6, PATIENCE)
    heir.stop()
    assert sorted(message["body"] for message in came) == sorted(lost)
    for message in came:
        assert message["reconsume_times"] == 1
        assert message["now"] - lost[message["body"]] >= lease


@pytest.fixture(params=[JAVA, "rocketq"])
def ask(request: pytest.FixtureRequest, server: Server, client: GetClient, name: str) -> Callable[..., Any]:
    """Asks the client for one of the requests of POP, of a group of a new topic with one queue."""
    create_topic(server, name, queues=1)
    at = {
        "namesrv": server.namesrv,
        "address": server.broker,
        "broker": "broker-a",
        "topic": name,
        "group": f"G_{name}",
    }
    defaults = {"Pop.take": {"count": 8, "lease": 60_000, "poll": 0}}
    return lambda do, **how: client(request.param).ask(do, **{**at, **defaults.get(do, {}), **how})


def bodies(messages: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in messages]


def test_taking_acknowledging_and_leasing_anew(
    server: Server, client: GetClient, name: str, ask: Callable[..., Any]
) -> None:
    client("rocketq").send(server, name, [{"body": b"%d" % n} for n in range(6)])
    wait_until(lambda: ask("Pop.notified", poll=1000), "that there are messages")
    came = popped(server, lambda: ask("Pop.take", lease=8000, poll=5000))
    assert bodies(came) == [b"%d" % n for n in range(6)]
    receipts = [message["receipt"] for message in came]
    assert ask("Pop.take") == []
    assert not ask("Pop.notified", poll=0)
    assert ask("Pop.ack", receipts=receipts[:1]) == "OK"
    assert ask("Pop.ack", receipts=receipts[1:4], batch=True) == "OK"
    longer = ask("Pop.change", receipt=receipts[4], lease=60_000)
    soon = ask("Pop.change", receipt=receipts[5], lease=1000)
    (again,) = popped(server, lambda: ask("Pop.take", poll=10_000))
    assert (again["body"], again["topic"], again["reconsume_times"]) == (b"5", name, 1)
    assert again["receipt"] not in (receipts[5], soon)
    assert ask("Pop.ack", receipts=[again["receipt"], longer]) == "OK"
    assert ask("Pop.take", poll=9000) == []  # the first lease is over, and all is acknowledged


def test_an_ordered_queue_gives_nothing_until_all_is_acknowledged(
    server: Server, client: GetClient, name: str, ask: Callable[..., Any]
) -> None:
    client("rocketq").send(server, name, [{"body": b"%d" % n} for n in range(4)])
    came = wait_until(lambda: ask("Pop.take", count=2, order=True, poll=1000), "two messages")
    assert bodies(came) == [b"0", b"1"]
    assert ask("Pop.take", count=2, order=True) == []
    assert ask("Pop.ack", receipts=[came[0]["receipt"]]) == "OK"
    assert ask("Pop.take", count=2, order=True) == []
    ask("Pop.change", receipt=came[1]["receipt"], lease=1000)
    came = wait_until(lambda: ask("Pop.take", count=1, order=True, poll=1000), "the second message again")
    assert bodies(came) == [b"1"]
    assert ask("Pop.ack", receipts=[came[0]["receipt"]]) == "OK"
    came = popped(server, lambda: ask("Pop.take", count=2, order=True, poll=1000))
    assert bodies(came) == [b"2", b"3"]


def test_looking_without_taking(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    ours = client("rocketq")
    at = {"namesrv": server.namesrv, "address": server.broker, "broker": "broker-a", "topic": name}
    at["group"] = f"G_{name}"
    ours.send(server, name, [{"body": b"seen", "broker": "broker-a", "queue": 2}])
    for _ in range(2):
        assert bodies(wait_until(lambda: ours.ask("Pop.peek", count=8, **at), "the message")) == [b"seen"]
    assert ours.ask("Pop.waiting", **at) == 0
    took = popped(server, lambda: ours.ask("Pop.take", count=8, lease=1000, poll=0, **at))
    assert bodies(took) == [b"seen"]


def test_one_group_pops_from_our_broker_and_from_apaches(
    rocketq: Server, apache: Server, client: GetClient, name: str, tmp_path: Path
) -> None:
    del apache  # skips where it cannot run
    second = Apache(tmp_path, namesrv=rocketq.namesrv, config={"brokerName": "broker-b"}).start()
    try:
        java = client(JAVA)
        at = {"namesrv": rocketq.namesrv, "topic": name, "group": f"G_{name}"}
        for server in (rocketq, second):
            create_topic(server, name)
            java.ask("Pop.mode", address=server.broker, **at)

        def brokers() -> set[str]:
            route = call(rocketq.namesrv, 105, {"topic": name})
            return {broker["brokerName"] for broker in json.loads(route.body)["brokerDatas"]}

        wait_until(lambda: brokers() == {"broker-a", "broker-b"}, "the route of both")
        consumption = popping(java, rocketq, name)
        messages = [
            {"body": f"{broker} {queue}".encode(), "broker": broker, "queue": queue}
            for broker in ("broker-a", "broker-b")
            for queue in range(4)
        ]
        java.send(rocketq, name, messages)
        consumption.wait(len(messages), PATIENCE)
        assert sorted(bodies(consumption.stop())) == sorted(bodies(messages))
    finally:
        second.kill()
