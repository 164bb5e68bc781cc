"""What several of the peer tests do."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from peer import Consumption, Peer
from wire import Server, committed, members, wait_until

Message = dict[str, Any]


def bodies(count: int, prefix: str = "m") -> list[bytes]:
    return [f"{prefix}-{number:04d}".encode() for number in range(count)]


def plain(count: int, prefix: str = "m", **fields: object) -> list[Message]:
    """Messages to send: bodies `prefix-0000` and so on, all with the same other fields."""
    return [{"body": body, **fields} for body in bodies(count, prefix)]


def by_queue(messages: list[Message]) -> dict[int, list[Message]]:
    queues: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        queues[message["queue"]].append(message)
    return queues


def or_none(peer: Peer, verb: str, **arguments: object) -> Any:
    """What the clients raise as "no message" is nothing yet."""
    try:
        return peer.ask(verb, **arguments)
    except RuntimeError as error:
        # Apache's clients: MQClientException CODE: 208 (no message) and 17 (nothing in the index yet)
        if "208" in str(error) or "no message" in str(error).lower():
            return None
        raise


def stopped_after(server: Server, topic: str, consumer: Consumption, count: int) -> list[Message]:
    """Stops the only member of a group once its commits say that `count` messages of the topic are done.

    Java's and our client commit as they stop, after their handlers have ended (Java otherwise first after 10 seconds).
    Go does not wait for its handlers: it has to have committed before, which it does every 5 seconds.
    """

    def done() -> int:
        offsets = [committed(server, consumer.group, topic, queue) for queue in range(4)]
        return sum(offset or 0 for offset in offsets)

    commits_as_it_stops = not consumer.peer.name.startswith("go")
    if commits_as_it_stops:
        consumer.stop()
    wait_until(lambda: done() >= count, f"{consumer.peer.name} commits {count} messages for {consumer.group}", 40)
    assert done() == count
    return consumer.stop()


def settled(server: Server, sender: Peer, topic: str, consumers: list[Consumption]) -> list[set[int]]:
    """Sends probes until the topic's four queues are evenly shared out, and gives each member's queues."""
    group = consumers[0].group
    wait_until(lambda: len(members(server, group)) == len(consumers), f"all members of {group} are known", 60)
    probe = 0

    def agreed() -> list[set[int]]:
        nonlocal probe
        probe += 1
        probes = plain(12, f"probe-{probe}")
        sender.send(server, topic, probes)
        wanted = {message["body"] for message in probes}
        wait_until(lambda: wanted <= {b for consumer in consumers for b in consumer.bodies()}, "the probes", 60)
        parts = [{m["queue"] for m in list(consumer.messages) if m["body"] in wanted} for consumer in consumers]
        shared = Counter(queue for part in parts for queue in part) == Counter(range(4))
        return parts if shared and {len(part) for part in parts} == {4 // len(consumers)} else []

    parts: list[set[int]] = wait_until(agreed, f"the members of {group} agree on the queues", 60, interval=0.3)
    return parts
