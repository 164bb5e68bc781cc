"""Kombu's own integration tests, as they are, against our server."""

from __future__ import annotations

import kombu
import pytest
from kombu_suite import integration_tests
from servers import ServerProcess

common = integration_tests()
#: Where nobody listens.
DEAD = 1


@pytest.fixture
def connection(url: str) -> kombu.Connection:
    return kombu.Connection(url)


@pytest.fixture
def invalid_connection() -> kombu.Connection:
    return kombu.Connection(f"rocketq://127.0.0.1:{DEAD}")


@pytest.fixture
def failover_connection(server: ServerProcess) -> kombu.Connection:
    # the port is named as well: Kombu leaves URLs of this kind to the transport
    return kombu.Connection(f"rocketq://127.0.0.1:{DEAD};rocketq://{server.namesrv}", port=DEAD)


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
