"""Which queues a member of a consumer group gets: pure functions.

A strategy is ``(client_id, all_clients, queues) -> queues``. Every member computes its own share, so all must see
the same sorted lists and use the same strategy; a member that is not in `all_clients` gets nothing. The rules are
Apache's, so that members of both kinds can share a group (`AllocateMessageQueueAveragely` and its siblings).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from rocketq.message import MessageQueue

Strategy = Callable[[str, Sequence[str], Sequence[MessageQueue]], list[MessageQueue]]

VIRTUAL_NODES = 10


def average(client_id: str, all_clients: Sequence[str], queues: Sequence[MessageQueue]) -> list[MessageQueue]:
    """Neighbouring queues, shares differ by one at most; the default (`AVG`)."""
    if client_id not in all_clients:
        return []
    index = all_clients.index(client_id)
    count, rest = divmod(len(queues), len(all_clients))
    start = index * count + min(index, rest)
    return list(queues[start : start + count + (index < rest)])


def average_by_circle(
    client_id: str, all_clients: Sequence[str], queues: Sequence[MessageQueue]
) -> list[MessageQueue]:
    """Queues dealt out in turn, like cards (`AVG_BY_CIRCLE`)."""
    if client_id not in all_clients:
        return []
    return list(queues[all_clients.index(client_id) :: len(all_clients)])


@lru_cache(maxsize=16)
def _ring(all_clients: tuple[str, ...]) -> tuple[list[int], list[str]]:
    owners = {_point(f"{client}-{node}"): client for client in all_clients for node in range(VIRTUAL_NODES)}
    points = sorted(owners)
    return points, [owners[point] for point in points]


def _point(key: str) -> int:
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[:4], "big")


def consistent_hash(
    client_id: str, all_clients: Sequence[str], queues: Sequence[MessageQueue]
) -> list[MessageQueue]:
    """A ring of ten points a member: a change of members moves few queues (`CONSISTENT_HASH`)."""
    if client_id not in all_clients:
        return []
    points, owners = _ring(tuple(all_clients))
    mine = []
    for queue in queues:
        key = f"MessageQueue [topic={queue.topic}, brokerName={queue.broker_name}, queueId={queue.queue_id}]"
        if owners[bisect_left(points, _point(key)) % len(points)] == client_id:
            mine.append(queue)
    return mine


def fixed(queues: Iterable[MessageQueue]) -> Strategy:
    """A strategy that always gives these queues, whoever else there is (`CONFIG`)."""
    wanted = frozenset(queues)

    def strategy(client_id: str, all_clients: Sequence[str], queues: Sequence[MessageQueue]) -> list[MessageQueue]:
        return [queue for queue in queues if queue in wanted]

    return strategy


#: Strategies by Apache's names, for settings.
STRATEGIES: dict[str, Strategy] = {
    "AVG": average,
    "AVG_BY_CIRCLE": average_by_circle,
    "CONSISTENT_HASH": consistent_hash,
}
AVG = average
AVG_BY_CIRCLE = average_by_circle
CONSISTENT_HASH = consistent_hash
