"""For how long a publisher believes what NameServers told, and when it asks them again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from rocketq.client.admin import Admin
from rocketq.errors import ConnectFailed
from rocketq_kombu.registry import Registry


class NameServers:
    """Knows nothing, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.text: str | None = None

    def kv_get(self, namespace: str, key: str) -> str | None:
        self.asked += 1
        if self.away:
            raise ConnectFailed("no connection to it")
        return self.text


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told() -> tuple[NameServers, Clock, Registry]:
    servers, clock = NameServers(), Clock()
    return servers, clock, Registry(cast(Admin, cast(Any, servers)), "/", clock)


def test_who_publishes_often_never_waits_for_a_nameserver(told: tuple[NameServers, Clock, Registry]) -> None:
    servers, clock, registry = told
    registry.place("q")
    asked = servers.asked
    for _ in range(50):
        clock.now += 0.1
        before = servers.asked
        registry.place("q")
        assert servers.asked == before
        registry.look_ahead()
        asked += servers.asked - before
    assert 9 <= asked <= 11, "every half second"


def test_what_is_too_old_is_asked_for_first(told: tuple[NameServers, Clock, Registry]) -> None:
    servers, clock, registry = told
    registry.place("q")
    clock.now += 0.6
    registry.place("q")
    clock.now += 0.6
    registry.place("q")
    registry.look_ahead()
    assert servers.asked == 2, "and not once more afterwards"


def test_nobody_is_told_of_an_answer_that_he_does_not_need_yet(told: tuple[NameServers, Clock, Registry]) -> None:
    servers, clock, registry = told
    registry.place("q")
    clock.now += 0.6
    registry.place("q")
    registry.place("p")
    servers.text = "not ours"
    registry.look_ahead()
    assert servers.asked == 3
    clock.now += 0.6
    with pytest.raises(ValueError, match="malformed"):
        registry.place("q")
    servers.away = True
    clock.now += 60
    assert registry.place("q") is None, "what was known before"
    with pytest.raises(ConnectFailed):
        registry.place("new")
