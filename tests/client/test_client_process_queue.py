"""What a member holds of a queue."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.client.process_queue import ProcessQueue, over_threshold


@dataclass(frozen=True)
class Item:
    queue_offset: int
    size: int = 10


def items(*offsets: int) -> list[Item]:
    return [Item(offset) for offset in offsets]


def test_the_smallest_unfinished_offset_may_be_committed() -> None:
    held: ProcessQueue[Item] = ProcessQueue(5)
    assert held.commit_offset == 5
    held.add(items(5, 6, 8), 9)
    taken = held.take(10)
    held.done([taken[2]])
    assert (held.commit_offset, len(held), held.bytes) == (5, 2, 20)
    held.done([taken[0]])
    assert held.commit_offset == 6
    held.done([taken[1]])
    assert (held.commit_offset, len(held), held.bytes) == (9, 0, 0)


def test_filtered_messages_count_as_consumed_once_nothing_is_held() -> None:
    held: ProcessQueue[Item] = ProcessQueue(0)
    held.add(items(3), 4)
    held.add([], 40)
    assert held.commit_offset == 3
    held.done(held.take(1))
    assert held.commit_offset == 40


def test_messages_that_are_held_already_are_ignored() -> None:
    held: ProcessQueue[Item] = ProcessQueue(0)
    held.add(items(0, 1, 2), 3)
    held.add(items(1, 2, 3), 4)
    assert [item.queue_offset for item in held.take(10)] == [0, 1, 2, 3]


def test_what_is_put_back_comes_first_and_in_order() -> None:
    held: ProcessQueue[Item] = ProcessQueue(0)
    held.add(items(0, 1, 2, 3), 4)
    taken = held.take(3)
    held.done(taken[:1])
    held.put_back(taken[1:])
    assert [item.queue_offset for item in held.take(10)] == [1, 2, 3]
    assert held.commit_offset == 1


def test_done_twice_is_done_once() -> None:
    held: ProcessQueue[Item] = ProcessQueue(0)
    held.add(items(0, 1), 2)
    second = held.take(2)[1:]
    held.done(second)
    held.done(second)
    assert (len(held), held.bytes) == (1, 10)


def test_thresholds_say_why_pulling_has_to_wait() -> None:
    held: ProcessQueue[Item] = ProcessQueue(0)
    held.add(items(0, 1, 2, 50), 51)
    limits = {"max_messages": 4, "max_bytes": 40, "max_span": 50}
    assert over_threshold(held, **limits) is None
    assert "4 messages" in (over_threshold(held, **{**limits, "max_messages": 3}) or "")
    assert "40 bytes" in (over_threshold(held, **{**limits, "max_bytes": 39}) or "")
    assert "offsets 0 to 50" in (over_threshold(held, **{**limits, "max_span": 49}) or "")
    assert over_threshold(held, max_messages=4, max_bytes=40, max_span=None) is None


@settings(max_examples=100, deadline=None)
@given(data=st.data(), gaps=st.lists(st.integers(1, 3), min_size=1, max_size=40))
def test_nothing_unfinished_is_ever_committed(data: st.DataObject, gaps: list[int]) -> None:
    offsets, at = [], 0
    for gap in gaps:
        at += gap
        offsets.append(at)
    held: ProcessQueue[Item] = ProcessQueue(0)
    unfinished = {}
    rest = items(*offsets)
    last_commit = 0
    while rest or unfinished:
        if rest and (not unfinished or data.draw(st.booleans())):
            number = data.draw(st.integers(1, len(rest)))
            batch, rest = rest[:number], rest[number:]
            held.add(batch, batch[-1].queue_offset + 1)
            unfinished.update({item.queue_offset: item for item in held.take(number)})
        else:
            done = data.draw(st.lists(st.sampled_from(sorted(unfinished)), min_size=1, unique=True))
            held.done([unfinished.pop(offset) for offset in done])
        assert held.commit_offset >= last_commit
        last_commit = held.commit_offset
        assert all(offset >= held.commit_offset for offset in unfinished)
        assert len(held) == len(unfinished)
        assert held.bytes == 10 * len(unfinished)
    assert held.commit_offset == offsets[-1] + 1
