"""One server for the tests of a process; each test has a virtual host of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from servers import ServerProcess, start_server

import rocketq_kombu  # noqa: F401 Kombu alone looks for it when its first queue or serializer is used

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def url(server: ServerProcess) -> str:
    """Of the server, with a virtual host that no other test uses."""
    return f"rocketq://{server.namesrv}/t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def late() -> float:
    """Seconds that the machine may take beyond the end of a lease."""
    return 10.0


@pytest.fixture
def settles() -> float:
    """Seconds until what the broker has answered shows in what it counts and lists: ours answers after that."""
    return 0.0


@pytest.fixture
def overtakes() -> int:
    """Messages of a queue with priorities that may come before one of a higher priority."""
    return 0
