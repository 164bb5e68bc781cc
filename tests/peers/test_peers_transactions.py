"""Transactions: Java's clients on our server, ours on Apache's, and a store with open ones that moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache import Apache
from ours import Rocketq
from peer import Peer
from wire import Server, create_topic, wait_until

from rocketq.client import Producer
from rocketq.message import Message, ReceivedMessage

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

GetClient = Callable[[str], Peer]
#: Brokers ask soon, and no sooner than a busy client answers; Apache's of the fixture does already.
SOON = {"transactionTimeOut": 2000, "transactionCheckInterval": 2000}
SIZES = {"mappedFileSizeCommitLog": 64 << 20, "mappedFileSizeConsumeQueue": 300_000}


@pytest.fixture(scope="module")
def asking(workshop: Path) -> Iterator[Rocketq]:
    server = Rocketq(workshop / "asking", config=SOON).start()
    yield server
    server.stop()


@pytest.fixture(params=["asking", "apache"])
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


def came(client: GetClient, server: Server, topic: str) -> list[str]:
    """The bodies of all messages of a topic."""
    java = client("java-5.4.0")
    found: list[str] = []
    for queue in java.ask("queues", namesrv=server.namesrv, topic=topic):
        offset = queue["min"]
        while offset < queue["max"]:
            at = {"namesrv": server.namesrv, "topic": topic, "broker": queue["broker"], "queue": queue["queue"]}
            pulled = java.ask("pull", offset=offset, **at)
            found += [message["body"].decode() for message in pulled["messages"]]
            offset = pulled["next"]
    # Apache's broker asks again before it has noted an answer, and carries out both
    return sorted(set(found) if server.kind == "apache" else found)


@pytest.mark.parametrize("make", ["java-4.9.8", "java-5.4.0", "rocketq"])
def test_what_clients_decide_and_what_brokers_ask(server: Server, client: GetClient, name: str, make: str) -> None:
    create_topic(server, name)
    peer = client(make)

    def send(text: str, now: str, **more: str) -> str:
        at = {"namesrv": server.namesrv, "topic": name, "group": f"G_{name}"}
        return str(peer.ask("Transactions.send", text=f"{name} {text}", now=now, **at, **more))

    commit, rollback, unknown = "COMMIT_MESSAGE", "ROLLBACK_MESSAGE", "UNKNOW"
    assert send("commit", commit) == f"SEND_OK {commit}"
    assert send("rollback", rollback) == f"SEND_OK {rollback}"
    assert send("asked commit", unknown, asked=commit) == f"SEND_OK {unknown}"
    send("asked rollback", unknown, asked=rollback)
    send("asked twice", unknown, asked=f"LATER_{commit}")
    wanted = sorted(f"{name} {text}" for text in ("commit", "asked commit", "asked twice"))
    wait_until(lambda: came(client, server, name) == wanted, "what is committed", 60)

    def asked(text: str) -> int:
        return int(peer.ask("Transactions.asked", text=f"{name} {text}"))

    wait_until(lambda: asked("asked rollback"), "a question", 60)
    assert asked("asked twice") >= 2
    if server.kind == "rocketq":  # Apache's writes down the ends later than it asks here
        assert (asked("asked rollback"), asked("asked twice")) == (1, 2)
        assert (asked("commit"), asked("rollback")) == (0, 0)
    assert came(client, server, name) == wanted


def test_our_transactions(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    asked: list[bytes] = []

    def check(message: ReceivedMessage) -> bool | None:
        assert message.topic == name
        asked.append(message.body)
        if message.body in (b"commit", b"rollback"):
            return None  # decided: Apache's broker asks as long as it has not noted that, and would end it twice
        if asked.count(b"asked twice") == 1 and message.body == b"asked twice":
            return None
        return message.body != b"asked rollback"

    with Producer(f"G_{name}", server.namesrv, check=check) as producer:
        with producer.transaction(Message(name, b"commit")):
            pass
        with producer.transaction(Message(name, b"rollback")) as transaction:
            transaction.rollback()
        for body in (b"asked commit", b"asked rollback", b"asked twice"):
            producer.transaction(Message(name, body)).begin()
        wanted = ["asked commit", "asked twice", "commit"]
        wait_until(lambda: came(client, server, name) == wanted, "what is committed", 60)
        wait_until(lambda: b"asked rollback" in asked, "a question", 60)
    assert asked.count(b"asked twice") >= 2
    if server.kind == "rocketq":
        assert asked.count(b"asked twice") == 2
        assert {b"commit", b"rollback"}.isdisjoint(asked)
    assert came(client, server, name) == wanted


def test_open_transactions_move_with_their_store_from_apache_to_ours_and_back(
    request: pytest.FixtureRequest, client: GetClient, tmp_path: Path, name: str
) -> None:
    request.getfixturevalue("apache")  # skips where it cannot run
    ours = Rocketq(tmp_path / "rocketq", config={**SIZES, "transactionCheckInterval": 500})
    theirs = Apache(tmp_path / "apache", store=ours.store)

    def begin(server: Server, *bodies: str) -> None:
        with Producer("movers", server.namesrv) as producer:
            for body in bodies:
                with producer.transaction(Message(name, body.encode())) as transaction:
                    if body.startswith("open"):
                        transaction.decided = True  # as if the process had died
                    elif body.startswith("rollback"):
                        transaction.rollback()

    def settle(server: Server, wanted: list[str]) -> None:
        """Answer what is asked, until all are there."""
        with Producer(
            "movers", server.namesrv, check=lambda message: message.body.startswith(b"open"), check_topics=[name]
        ):
            wait_until(lambda: came(client, server, name) == wanted, f"{wanted}", 60)

    theirs.start()
    try:
        create_topic(theirs, name)
        begin(theirs, "commit 1", "open 1", "rollback 1", "open 2")
        wait_until(lambda: came(client, theirs, name) == ["commit 1"], "a commit")
        # its ops are written up to 3 s later, what it has consumed of them after the next round
        theirs.stop()
        ours.start()
        try:
            settle(ours, ["commit 1", "open 1", "open 2"])
            begin(ours, "commit 2", "open 3", "rollback 2", "open 4")
        finally:
            ours.stop()
        theirs.start()
        settle(theirs, ["commit 1", "commit 2", "open 1", "open 2", "open 3", "open 4"])
    finally:
        theirs.kill()
