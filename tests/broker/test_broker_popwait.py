"""In which order pops that wait are served, and when their answers leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from rocketq.broker.popwait import Line, PopWait, Waiter
from rocketq.remoting.server import Connection


class Peer:
    """Stands in for a connection."""

    closed = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def line(group: str) -> Line:
    return Line(group, "T", -1, "*", "TAG", False)


def served(messages: int, *waiting: tuple[str, Peer]) -> list[str]:
    """What happens when so many messages come for each of the groups that wait, on these connections."""
    happened: list[str] = []
    left: dict[str, int] = {}

    def serve(group: str, number: int) -> Callable[[bool], bool]:
        def attempt(final: bool) -> bool:
            left.setdefault(group, messages)
            happened.append(f"try {group}{number}")
            left[group] -= 1
            return left[group] >= 0

        return attempt

    async def main() -> None:
        wait = PopWait(100, 100, lambda connection: happened.append(f"send {connection}"))
        for number, (group, peer) in enumerate(waiting):
            waiter = Waiter(line(group), cast(Connection, cast(Any, peer)), serve(group, number))
            assert wait.add(waiter, ("T",), 60)
        wait.wake("T")
        wait.serve_arrived(lambda: happened.append("answer"))
        wait.stop()

    asyncio.run(main())
    return happened


def test_a_message_leaves_before_its_producer_is_answered_and_the_next_one_finds_nothing() -> None:
    peer = Peer("a")
    assert served(1, ("g", peer), ("g", peer))[:4] == ["try g0", "send a", "answer", "try g1"]


def test_the_others_of_a_connection_leave_together() -> None:
    peer, other = Peer("a"), Peer("b")
    happened = served(9, ("g", peer), ("g", peer), ("g", other), ("g", peer))
    assert happened == ["try g0", "send a", "answer", "try g1", "try g2", "try g3", "send a", "send b"]
