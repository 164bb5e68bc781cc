"""What the tests of the client share: conditions with a deadline, names nobody used before, a collecting handler."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable

from rocketq.client import ConsumeResult
from rocketq.client.results import HandlerResult
from rocketq.message import ReceivedMessage

_numbers = itertools.count(1)


def fresh(what: str) -> str:
    """A topic's or group's name that no other test uses."""
    return f"{what}_{os.getpid()}_{next(_numbers)}"


async def until(condition: Callable[[], object], what: str = "the condition", deadline: float = 30.0) -> None:
    """Returns when `condition()` is true; fails after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"{what} did not come true within {deadline} s")
        await asyncio.sleep(0.005)


class Collector:
    """A handler that notes what it gets; `decide` says what it answers."""

    def __init__(self, decide: Callable[[list[ReceivedMessage]], HandlerResult] | None = None) -> None:
        self.messages: list[ReceivedMessage] = []
        self.calls: list[list[ReceivedMessage]] = []
        self.decide = decide or (lambda _: ConsumeResult.SUCCESS)

    async def __call__(self, messages: list[ReceivedMessage]) -> HandlerResult:
        self.calls.append(messages)
        self.messages += messages
        return self.decide(messages)

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.messages]
