"""What is asked of a hub in the middle of its round, from other threads, and in which order it comes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub

from rocketq_kombu.calls import Calls


class Round:
    """A hub, our calls, and how often the hub waited in vain for what is to be said."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.calls = Calls()
        self.in_vain = self.wanted = 0
        self.said: list[str] = []
        #: when set, what a thread does as soon as the hub waits
        self.meanwhile: Callable[[], None] | None = None
        poll = self.hub.poller.poll

        def watched(timeout: float) -> Any:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                threading.Thread(target=meanwhile).start()
            found = poll(timeout)
            self.in_vain += not found and timeout >= 0.5 and len(self.said) < self.wanted
            return found

        self.hub.poller.poll = watched
        self.calls.attach(self.hub)

    def say(self, word: str) -> Callable[[], None]:
        return lambda: self.said.append(word)

    def until(self, count: int) -> list[str]:
        """Go round until so much was said."""
        self.wanted = count
        while len(self.said) < count and self.in_vain < 3:
            self.hub.run_once()
        return self.said


@pytest.fixture
def round_() -> Iterator[Round]:
    found = Round()
    yield found
    found.calls.detach()
    found.hub.close()


def test_a_hub_that_is_about_to_wait_is_woken_for_what_is_due_later(round_: Round) -> None:
    round_.calls.soon(lambda: round_.calls.later(0.01, round_.say("later")))
    assert round_.until(1) == ["later"]
    assert not round_.in_vain


def test_it_is_woken_for_what_others_ask_of_it_meanwhile(round_: Round) -> None:
    round_.calls.soon(lambda: round_.hub.call_soon(round_.say("asked")))
    assert round_.until(1) == ["asked"]
    assert not round_.in_vain


def test_it_is_woken_by_other_threads(round_: Round) -> None:
    round_.calls.soon(round_.say("first"))
    round_.until(1)
    round_.meanwhile = lambda: round_.calls.soon(round_.say("soon"))
    round_.until(2)
    round_.meanwhile = lambda: round_.calls.later(0.01, round_.say("later"))
    round_.until(3)
    assert round_.said == ["first", "soon", "later"]
    assert not round_.in_vain


def test_what_comes_after_comes_after_the_files(round_: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback of the next round would come before: it is run before the hub looks at files.

    In between, who was written to has the CPU.
    """
    monkeypatch.setattr(os, "sched_yield", round_.say("given way"))
    out, into = os.pipe()
    hub = round_.hub

    def write() -> None:
        round_.said.append("written")
        hub.remove(into)

    def read() -> None:
        hub.remove(out)
        round_.calls.after(round_.say("after"))
        hub.add_writer(into, write)

    try:
        os.write(into, b"task")
        hub.add_reader(out, read)
        assert round_.until(3) == ["written", "given way", "after"]
        assert not round_.in_vain
    finally:
        os.close(out)
        os.close(into)


def test_what_comes_after_does_not_take_the_next_ones_along(round_: Round) -> None:
    """What is asked for while files are looked at comes after those of the next round."""
    waits = round_.hub.poller.poll

    def polled(timeout: float) -> Any:
        found = waits(timeout)
        rounds.append(len(round_.said))
        if len(rounds) == 1:
            round_.calls.after(round_.say("second"))
        return found

    rounds: list[int] = []
    round_.hub.poller.poll = polled
    round_.calls.after(round_.say("first"))
    for _ in range(4):
        round_.hub.run_once()
    assert round_.said == ["first", "second"]
    assert rounds[:3] == [0, 1, 2]


def test_what_is_asked_in_the_same_turn_is_done_in_it(round_: Round) -> None:
    round_.calls.soon(lambda: round_.calls.soon(lambda: round_.calls.post(round_.say("posted"))))
    round_.hub.run_once()
    assert round_.said == ["posted"]
