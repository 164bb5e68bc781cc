"""Different clients together: each reads what the others wrote, and they share the queues of one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
from peer import CLIENTS, Peer
from scenarios import Message, bodies, plain, settled
from wire import Server, create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
LARGE = b"".join(b"%d green bottles, " % number for number in range(500))


def seen(message: Message) -> tuple[object, ...]:
    properties = message["properties"]
    return (
        message["body"],
        message["tag"],
        message["keys"],
        properties.get("city"),
        message["queue"],
        message["queue_offset"],
        message["born"],
        message["stored"],
        message["reconsume_times"],
        message["topic"],
    )


def test_every_client_reads_what_every_client_wrote(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    everybody = [*CLIENTS, "java-5.4.0-binary"]
    for writer in everybody:
        fields = {"tag": f"tag-{writer}", "keys": f"key-{writer}", "properties": {"city": "Łódź 東京"}}
        client(writer).send(server, name, plain(6, f"single {writer}", **fields))
        client(writer).send(server, name, plain(6, f"batch {writer}", **fields), how="batch")
        client(writer).send(server, name, [{"body": LARGE + writer.encode(), **fields}])
    read = {}
    for reader in everybody:
        group = f"G_{name}_{reader}".replace(".", "_")
        consumer = client(reader).consume(server, name, group)
        consumer.wait(13 * len(everybody))
        read[reader] = sorted(seen(message) for message in consumer.stop())
    wanted = sorted(
        body
        for writer in everybody
        for body in (*bodies(6, f"single {writer}"), *bodies(6, f"batch {writer}"), LARGE + writer.encode())
    )
    assert [body for body, *_ in read["java-5.4.0"]] == wanted
    assert {(tag, keys, city) for _, tag, keys, city, *_ in read["java-5.4.0"]} == {
        (f"tag-{writer}", f"key-{writer}", "Łódź 東京") for writer in everybody
    }
    for reader in everybody:
        assert read[reader] == read["java-5.4.0"], reader


# The first one has all queues until the second one comes. With orderly consumption Go never comes first: it lets the
# locks of queues that it hands over run out (60 seconds) instead of unlocking them.
CONCURRENTLY = [("java-5.4.0", "rocketq"), ("rocketq", "java-4.9.8"), ("go", "rocketq")]
ORDERLY = [("java-4.9.8", "rocketq"), ("rocketq", "java-5.4.0"), ("rocketq", "go")]


@pytest.mark.parametrize(
    ("makes", "orderly"),
    [
        *(pytest.param(makes, False, id="+".join(makes)) for makes in CONCURRENTLY),
        *(pytest.param(makes, True, id="orderly-" + "+".join(makes)) for makes in ORDERLY),
    ],
)
def test_a_group_of_two_makes_divides_the_queues(
    server: Server, client: GetClient, name: str, makes: tuple[str, str], orderly: bool
) -> None:
    create_topic(server, name)
    sender = client("java-5.4.0")
    both = [client(make).consume(server, name, f"G_{name}", orderly=orderly) for make in makes]
    parts = settled(server, sender, name, both)
    assert sorted(len(part) for part in parts) == [2, 2]
    keys = [f"m-{number % 10}" for number in range(200)]
    sender.send(
        server, name, [{"body": f"{key}:{n:03d}".encode(), "hash": key} for n, key in enumerate(keys)], how="hash"
    )
    wanted = [f"{key}:{n:03d}".encode() for n, key in enumerate(keys)]
    wait_until(
        lambda: sum(b.startswith(b"m-") for consumer in both for b in consumer.bodies()) >= 200, "all 200", 60
    )
    shares = [[m for m in consumer.stop() if m["body"].startswith(b"m-")] for consumer in both]
    assert sorted(message["body"] for share in shares for message in share) == sorted(wanted)
    for share, part in zip(shares, parts, strict=True):
        assert {message["queue"] for message in share} <= part
        if orderly:
            order: dict[int, list[int]] = defaultdict(list)
            for message in share:
                order[message["queue"]].append(message["queue_offset"])
            assert all(offsets == sorted(offsets) for offsets in order.values())


@pytest.mark.parametrize("stays", ["java-5.4.0", "rocketq"])
def test_the_member_that_stays_takes_over_the_queues_of_one_that_leaves(
    server: Server, client: GetClient, name: str, stays: str
) -> None:
    leaves = "rocketq" if stays == "java-5.4.0" else "java-5.4.0"
    create_topic(server, name)
    staying, leaving = (client(make).consume(server, name, f"G_{name}") for make in (stays, leaves))
    settled(server, client("java-5.4.0"), name, [staying, leaving])
    leaving.stop()
    assert settled(server, client("java-5.4.0"), name, [staying]) == [{0, 1, 2, 3}]
    client("java-5.4.0").send(server, name, plain(40))
    wait_until(lambda: set(bodies(40)) <= set(staying.bodies()), "all 40 at the one that stayed", 60)
    everything = staying.stop() + leaving.messages
    assert sorted(m["body"] for m in everything if m["body"].startswith(b"m-")) == bodies(40)
