"""A store directory goes from Apache's broker to ours and back, and nobody's groups notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache import Apache
from ours import Rocketq
from peer import Peer
from scenarios import Message, bodies, or_none, plain
from wire import Server, committed, create_topic, extent, stored_record, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
SIZES = {"mappedFileSizeCommitLog": 64 << 20, "mappedFileSizeConsumeQueue": 300_000}


def everything(server: Server, reader: Peer, topic: str) -> list[Message]:
    """All messages of the topic's queues as `reader` pulls them, without what a move may change."""
    found: list[Message] = []
    for queue in reader.ask("queues", namesrv=server.namesrv, topic=topic):
        offset = queue["min"]
        while offset < queue["max"]:
            at = {"namesrv": server.namesrv, "topic": topic, "broker": queue["broker"], "queue": queue["queue"]}
            pulled = reader.ask("pull", offset=offset, **at)
            assert pulled["status"] == "FOUND", pulled
            found += pulled["messages"]
            offset = pulled["next"]
    return found


def fill(server: Server, writer: Peer, topic: str, round_: str) -> None:
    writer.send(server, topic, plain(40, f"{round_} single", tag="A", keys=f"key-{round_}"))
    writer.send(server, topic, plain(40, f"{round_} batch", tag="B"), how="batch")
    writer.send(server, topic, [{"body": round_.encode() * 3000, "keys": "large"}])


def consumed(server: Server, consumer: Peer, topic: str, group: str, count: int) -> list[bytes]:
    consumption = consumer.consume(server, topic, group)
    consumption.wait(count)
    return sorted(message["body"] for message in consumption.stop())


def offsets_on_disk(store: Path, group: str, topic: str, total: int) -> bool:
    """consumerOffset.json holds the group's offsets; fastjson leaves numeric keys unquoted, so it is no JSON."""
    path = store / "config" / "consumerOffset.json"
    if not path.exists():
        return False
    text = path.read_text()
    start = text.find(f'"{topic}@{group}"')
    if start < 0:
        return False
    table = text[text.index("{", start) + 1 : text.index("}", start)]
    return sum(int(entry.split(":")[1]) for entry in table.split(",")) == total


def test_a_store_moves_from_apache_to_ours_and_back(
    request: pytest.FixtureRequest, client: GetClient, tmp_path: Path, name: str
) -> None:
    """Brokers in turn on one directory, ended cleanly or by kill -9: each sees what was, and adds to it."""
    request.getfixturevalue("apache")  # skips where it cannot run
    java, group = client("java-5.4.0"), f"G_{name}"
    ours = Rocketq(tmp_path / "rocketq", config=SIZES)
    theirs = Apache(tmp_path / "apache", store=ours.store)
    store = ours.store
    brokers: list[tuple[Any, str]] = [
        (theirs, "stop"),
        (ours, "stop"),
        (theirs, "kill"),
        (ours, "kill"),
        (theirs, "kill"),
    ]
    before: list[Message] = []
    for number, (server, how) in enumerate(brokers):
        server.start()
        try:
            if number == 0:
                create_topic(server, name, 3)
            assert everything(server, java, name) == before
            queues = {queue["queue"]: queue for queue in java.ask("queues", namesrv=server.namesrv, topic=name)}
            assert sorted(queues) == [0, 1, 2]
            if number:
                last = f"round{number - 1}"
                at = {"namesrv": server.namesrv, "topic": name, "key": f"key-{last}"}

                def found(at: dict[str, str] = at) -> list[bytes]:
                    return [message["body"] for message in or_none(java, "query", **at) or []]

                wait_until(lambda: len(found()) == 32, "the index has as many as a query asks for")
                assert set(found()) <= set(bodies(40, f"{last} single"))
                record = stored_record(server, before[0]["physical_offset"])
                assert (record.body, record.topic) == (before[0]["body"], name)
            # What the last broker took after the group had stopped is all that the group has still to do.
            fill(server, java, name, f"round{number}")
            fresh = [f"round{number}"] if number == 0 else [f"round{number - 1} left", f"round{number}"]
            wanted = sorted(
                body
                for part in fresh
                for body in (
                    bodies(7, part)
                    if part.endswith("left")
                    else [*bodies(40, f"{part} single"), *bodies(40, f"{part} batch"), part.encode() * 3000]
                )
            )
            assert consumed(server, java, name, group, len(wanted)) == wanted
            done = sum(extent(server, name, queue)[1] for queue in queues)
            # Java's client does not wait for answers to its last commits

            def commits(server: Server = server, queues: dict[int, Any] = queues) -> int:
                return sum(committed(server, group, name, queue) or 0 for queue in queues)

            wait_until(lambda done=done, commits=commits: commits() >= done, "the commits")
            assert commits() == done
            java.send(server, name, plain(7, f"round{number} left"))
            before = everything(server, java, name)
            wait_until(
                lambda done=done: offsets_on_disk(store, group, name, done),
                "the offsets are in consumerOffset.json",
            )
            assert name in json.loads((store / "config" / "topics.json").read_text())["topicConfigTable"]
            groups = json.loads((store / "config" / "subscriptionGroup.json").read_text())[
                "subscriptionGroupTable"
            ]
            assert group in groups
        finally:
            getattr(server, how)()
