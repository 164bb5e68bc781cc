"""Sharing queues among the members of a group."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.client.assigned import Assigned
from rocketq.client.pull import PullConsumer
from rocketq.message import MessageQueue
from rocketq.rebalance import STRATEGIES, average, average_by_circle, consistent_hash, fixed


def queues(number: int) -> list[MessageQueue]:
    return [MessageQueue("T", "b", index) for index in range(number)]


def clients(number: int) -> list[str]:
    return [f"10.0.0.1@{index:03d}#1" for index in range(number)]


def ids(share: list[MessageQueue]) -> list[int]:
    return [queue.queue_id for queue in share]


@pytest.mark.parametrize(
    ("queue_count", "client_count", "shares"),
    [
        (8, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (8, 3, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (7, 4, [[0, 1], [2, 3], [4, 5], [6]]),
        (2, 3, [[0], [1], []]),
        (0, 2, [[], []]),
    ],
)
def test_average_gives_neighbours_and_the_rest_to_the_first(
    queue_count: int, client_count: int, shares: list[list[int]]
) -> None:
    members = clients(client_count)
    assert [ids(average(one, members, queues(queue_count))) for one in members] == shares


def test_by_circle_deals_queues_out_in_turn() -> None:
    members = clients(3)
    assert [ids(average_by_circle(one, members, queues(8))) for one in members] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_consistent_hash_moves_only_the_queues_of_the_member_that_left() -> None:
    members, all_queues = clients(4), queues(64)
    before = {queue: one for one in members for queue in consistent_hash(one, members, all_queues)}
    left = members[1]
    remaining = [one for one in members if one != left]
    after = {queue: one for one in remaining for queue in consistent_hash(one, remaining, all_queues)}
    assert all(after[queue] == owner for queue, owner in before.items() if owner != left)
    assert left in before.values()


def test_consistent_hash_places_points_by_the_md5_of_java_texts() -> None:
    # computed by hand: first four bytes of MD5, ring of ten points a member, clockwise successor
    import hashlib

    def point(text: str) -> int:
        return int(hashlib.md5(text.encode()).hexdigest()[:8], 16)

    members = clients(2)
    ring = sorted((point(f"{one}-{node}"), one) for one in members for node in range(10))
    for queue in queues(16):
        at = point(f"MessageQueue [topic=T, brokerName=b, queueId={queue.queue_id}]")
        owner = next((one for place, one in ring if place >= at), ring[0][1])
        assert queue in consistent_hash(owner, members, queues(16))


def test_a_fixed_list_keeps_only_queues_that_exist() -> None:
    strategy = fixed([MessageQueue("T", "b", 1), MessageQueue("T", "b", 9)])
    assert ids(strategy("whoever", [], queues(4))) == [1]


def test_a_queue_that_its_pull_lets_go_of_while_another_is_given_up_is_gone() -> None:
    async def main() -> None:
        consumer = PullConsumer("G", "127.0.0.1:1")
        consumer.subscribe("T")
        first, second = queues(2)
        consumer.assigned = {first: Assigned(first, 0), second: Assigned(second, 0)}

        async def share(topic: str) -> list[MessageQueue]:
            return []

        async def revoke(one: Assigned) -> None:
            consumer.assigned.clear()

        consumer.membership.share = share  # type: ignore[method-assign]
        consumer._revoke = revoke  # type: ignore[method-assign]
        consumer.membership.announce = share  # type: ignore[assignment]
        assert await consumer.rebalance()
        assert consumer.assigned == {}

    asyncio.run(main())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_stranger_gets_nothing(name: str) -> None:
    assert STRATEGIES[name]("stranger", clients(2), queues(4)) == []


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=60, deadline=None)
@given(queue_count=st.integers(0, 40), client_count=st.integers(1, 12))
def test_every_queue_has_exactly_one_owner(name: str, queue_count: int, client_count: int) -> None:
    members, everything = clients(client_count), queues(queue_count)
    shares = [STRATEGIES[name](one, members, everything) for one in members]
    assert sorted(queue for share in shares for queue in share) == everything
    if name.startswith("AVG"):
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
