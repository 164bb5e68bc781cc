"""What several of the peer tests do."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from peer import Consumption, Peer
from wire import Server, members, wait_until

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


def settled(server: Server, sender: Peer, topic: str, consumers: list[Consumption]) -> list[set[int]]:
    """Sends probes until each of the topic's four queues belongs to one member, and gives each one's queues."""
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
        return (
            parts if Counter(queue for part in parts for queue in part) == Counter(range(4)) and all(parts) else []
        )

    parts: list[set[int]] = wait_until(agreed, f"the members of {group} agree on the queues", 60, interval=0.3)
    return parts
