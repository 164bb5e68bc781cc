"""One real server process for all tests of the client."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from servers import ServerProcess, start_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def namesrv(request: pytest.FixtureRequest) -> str:
    """Addresses of the NameServers; ROCKETQ_TEST_NAMESRV names others, say those of an Apache cluster."""
    other = os.environ.get("ROCKETQ_TEST_NAMESRV")
    return other or str(request.getfixturevalue("server").namesrv)
