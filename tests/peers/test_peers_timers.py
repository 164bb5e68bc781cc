"""Timer messages, recall and priorities: Java's client on our server, ours on Apache's, and a store that moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest
from apache import Apache
from ours import Rocketq
from peer import Peer
from wire import Server, create_topic, wait_until

from rocketq.client import Producer
from rocketq.errors import BrokerError
from rocketq.message import Message

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
JAVA = "java-5.4.0"
SIZES = {"mappedFileSizeCommitLog": 64 << 20, "mappedFileSizeConsumeQueue": 300_000}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def producing(server: Server) -> Iterator[Producer]:
    producer = Producer("timers", server.namesrv)
    try:
        yield producer
    finally:
        producer.close()


def came(client: Callable[[str], Peer], server: Server, topic: str) -> dict[str, int]:
    """Bodies and store times of all messages of a topic; each has come once."""
    found: dict[str, int] = {}
    java = client(JAVA)
    for queue in java.ask("queues", namesrv=server.namesrv, topic=topic):
        offset = queue["min"]
        while offset < queue["max"]:
            at = {"namesrv": server.namesrv, "topic": topic, "broker": queue["broker"], "queue": queue["queue"]}
            pulled = java.ask("pull", offset=offset, **at)
            for message in pulled["messages"]:
                body = message["body"].decode()
                assert body not in found, f"{body} came twice"
                found[body] = message["stored"]
            offset = pulled["next"]
    return found


#: How late a message may be where the machine is busy, ms; otherwise Apache's broker waits for the next full second.
LATEST = 10_000


def test_javas_timer_messages_come_in_time_and_can_be_recalled(
    server: Server, client: GetClient, name: str
) -> None:
    java = client(JAVA)
    create_topic(server, name)
    at = {"namesrv": server.namesrv, "topic": name}
    due = {"delay": now_ms() + 1200, "seconds": now_ms() + 2000, "deliver": now_ms() + 2500}
    sent = [
        java.ask("Timers.send", text="delay", delayMs=1200, **at),
        java.ask("Timers.send", text="seconds", delaySec=2, **at),
        java.ask("Timers.send", text="deliver", deliverMs=due["deliver"], **at),
    ]
    recalled = java.ask("Timers.send", text="recalled", delayMs=10_000, **at)
    recalled_due = now_ms() + 10_000
    assert {result["status"] for result in [*sent, recalled]} == {"SEND_OK"}
    assert java.ask("Timers.recall", handle=recalled["handle"], **at) == recalled["id"]
    wait_until(lambda: len(came(client, server, name)) >= 3, "three timer messages")
    time.sleep(max(0, recalled_due + (1000 if server.kind == "rocketq" else 3000) - now_ms()) / 1000)
    found = came(client, server, name)
    assert found.keys() == due.keys()
    for body, stored in found.items():
        assert 0 <= stored - due[body] < LATEST, f"{body} was {stored - due[body]} ms late"
    with pytest.raises(RuntimeError, match="timestamp invalid"):
        java.ask("Timers.recall", handle=sent[0]["handle"], **at)


def test_our_timer_messages_come_in_time_and_can_be_recalled(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    deliver = now_ms() + 12_000
    due = {"delay": now_ms() + 1200, "at": deliver}
    with producing(server) as producer:
        producer.send(Message(name, b"delay"), delay=1.2)
        producer.send(Message(name, b"at"), at=datetime.fromtimestamp(deliver / 1000, timezone.utc))
        recalled = producer.send(Message(name, b"recalled"), delay=10.0)
        assert recalled.recall_handle
        assert producer.recall(name, recalled.recall_handle) == recalled.message_id
        wait_until(lambda: len(came(client, server, name)) >= 2, "two timer messages")
        found = came(client, server, name)
        assert found.keys() == due.keys()
        for body, stored in found.items():
            assert 0 <= stored - due[body] < LATEST, f"{body} was {stored - due[body]} ms late"
        with pytest.raises(BrokerError, match="timestamp invalid"):
            producer.recall(name, recalled.recall_handle)


def test_priorities_choose_queues(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    java = client(JAVA)
    at = {"namesrv": server.namesrv, "topic": name}
    assert [java.ask("Timers.send", text="x", priority=n, **at)["queue"] for n in (3, 0, 9)] == [3, 0, 3]
    with producing(server) as producer:
        assert [producer.send(Message(name, b"x"), priority=n).queue.queue_id for n in (3, 0, 9)] == [3, 0, 3]


def test_what_waits_moves_with_its_store_from_apache_to_ours_and_back(
    request: pytest.FixtureRequest, client: GetClient, tmp_path: Path, name: str
) -> None:
    request.getfixturevalue("apache")  # skips where it cannot run
    ours = Rocketq(tmp_path / "rocketq", config=SIZES)
    theirs = Apache(tmp_path / "apache", store=ours.store)
    due: dict[str, int] = {}

    def send(server: Server, prefix: str, ahead: int) -> list[str]:
        """Five messages, a second apart; their recall handles."""
        handles = []
        with producing(server) as producer:
            for number in range(5):
                at = now_ms() + ahead + 1000 * number
                message = Message(name, f"{prefix}{number}".encode())
                message.properties["TIMER_DELIVER_MS"] = str(at)
                handles.append(producer.send(message).recall_handle or "")
                due[f"{prefix}{number}"] = at
        return handles

    def recall(server: Server, handle: str, body: str) -> None:
        with producing(server) as producer:
            producer.recall(name, handle)
        del due[body]

    theirs.start()
    try:
        create_topic(theirs, name)
        first = send(theirs, "a", 20_000)  # as long as it may take until our broker is there
        second = send(theirs, "b", 60_000)
        recall(theirs, first[1], "a1")
        time.sleep(2.5)  # it saves its wheel every second
    finally:
        theirs.kill()
    ours.start()
    try:
        recall(ours, first[3], "a3")
        recall(ours, second[2], "b2")
        third = send(ours, "c", 65_000)
        recall(ours, third[0], "c0")
        wait_until(lambda: len(came(client, ours, name)) >= 3, "what was sent to Apache's broker", 60)
        found = came(client, ours, name)
        assert found.keys() == {"a0", "a2", "a4"}
        assert all(0 <= stored - due[body] < LATEST for body, stored in found.items())
    finally:
        ours.stop()
    theirs.start()
    try:
        recall(theirs, third[4], "c4")
        wait_until(lambda: len(came(client, theirs, name)) >= len(due), "what was sent to our broker", 120)
        time.sleep(2)
        found = came(client, theirs, name)
        assert found.keys() == due.keys()
        assert all(stored >= due[body] for body, stored in found.items())
    finally:
        theirs.kill()
