"""Requests and replies between Java's client and ours, on both brokers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from peer import Peer
from wire import Server, create_topic

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

GetClient = Callable[[str], Peer]
PAIRS = [
    ("rocketq", "rocketq"),
    ("rocketq", "java-5.4.0"),
    ("java-5.4.0", "rocketq"),
    ("java-4.9.8", "rocketq"),
    ("rocketq", "java-4.9.8"),
    ("java-5.4.0", "java-5.4.0"),
    ("rocketq", "java-5.4.0-long"),
]


@contextmanager
def responding(peer: Peer, server: Server, topic: str) -> Iterator[None]:
    name = f"responder_{topic}"
    peer.ask("Rpc.respond", namesrv=server.namesrv, topic=topic, group=f"G_{topic}", name=name)
    yield
    peer.ask("stop", name=name)


@pytest.mark.parametrize(("asking", "answering"), PAIRS)
def test_a_request_gets_its_reply(
    server: Server, client: GetClient, name: str, asking: str, answering: str
) -> None:
    create_topic(server, name)
    with responding(client(answering), server, name):
        for number in range(4):
            reply = client(asking).ask(
                "Rpc.request",
                namesrv=server.namesrv,
                topic=name,
                text=f"question {number}",
                within=30_000,
                blocking=number % 2 == 1,
            )
            assert reply["body"] == b"QUESTION %d" % number
            assert reply["topic"] == "DefaultCluster_REPLY_TOPIC"
            properties = reply["properties"]
            assert properties["MSG_TYPE"] == "reply"
            assert {
                "CORRELATION_ID",
                "REPLY_TO_CLIENT",
                "TTL",
                "PUSH_REPLY_TIME",
                "ARRIVE_TIME",
            } <= properties.keys()


@pytest.mark.parametrize("asking", ["rocketq", "java-5.4.0"])
def test_a_request_that_nobody_answers_ends(server: Server, client: GetClient, name: str, asking: str) -> None:
    create_topic(server, name)
    with pytest.raises(RuntimeError, match=r"no reply|wait reply message timeout"):
        client(asking).ask(
            "Rpc.request", namesrv=server.namesrv, topic=name, text="question", within=3000, blocking=False
        )
