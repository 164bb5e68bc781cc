"""Kombu's own integration tests, as they are, against Apache's server."""

from __future__ import annotations

import kombu
import pytest
from apache import Apache
from kombu_suite import integration_tests

from rocketq_kombu import sources

common = integration_tests()
#: Where nobody listens.
DEAD = 1

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kombu's tests wait a second: Apache's broker may overlook a request that it holds until its time is over."""
    monkeypatch.setattr(sources, "POLL", 0.2)
    monkeypatch.setattr(sources.WorkSource, "at_once", 2.0)


@pytest.fixture
def connection(apache: Apache, name: str) -> kombu.Connection:
    return kombu.Connection(f"rocketq://{apache.namesrv}/{name}")


@pytest.fixture
def invalid_connection() -> kombu.Connection:
    return kombu.Connection(f"rocketq://127.0.0.1:{DEAD}")


@pytest.fixture
def failover_connection(apache: Apache) -> kombu.Connection:
    # the port is named as well: Kombu leaves URLs of this kind to the transport
    return kombu.Connection(f"rocketq://127.0.0.1:{DEAD};rocketq://{apache.namesrv}", port=DEAD)


class TestBasicFunctionality(common.BasicFunctionality):
    pass


class TestExchangeTypes(common.BaseExchangeTypes):
    pass


class TestTimeToLive(common.BaseTimeToLive):
    pass


class TestPriority(common.BasePriority):
    pass


class TestMessage(common.BaseMessage):
    pass


class TestEventLoop(common.BaseEventLoop):
    pass


class TestFailover(common.BaseFailover):
    pass
