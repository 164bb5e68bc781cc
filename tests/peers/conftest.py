"""Real peers: Apache's server, the Java and the Go client, and ours, each as processes.

They skip where Java, Maven or Go are missing; with ROCKETQ_REQUIRE_PEERS=1, as CI sets it, they fail.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache import Apache, PeerMissing, missing
from ours import RECORD, Rocketq, record_parts
from peer import Peer, fetch, start_client
from recording import merge
from wire import Server

_numbers = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test: downloads are no part of the time that a test may take."""
    if not session.config.option.collectonly and any(item.get_closest_marker("peer") for item in session.items):
        fetch()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="session")
def apache(workshop: Path) -> Iterator[Apache]:
    server = Apache(workshop / "apache")
    try:
        server.start()
    except PeerMissing as reason:
        missing(reason)
    yield server
    server.kill()  # its clean stop takes 15 seconds


@pytest.fixture(scope="session")
def rocketq(workshop: Path) -> Iterator[Rocketq]:
    server = Rocketq(workshop / "rocketq").start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(workshop: Path) -> Iterator[Callable[[str], Peer]]:
    """Gives the client of that name, started when it is first asked for."""
    running: dict[str, Peer] = {}

    def get(name: str) -> Peer:
        if name not in running:
            try:
                running[name] = start_client(name, workshop / "clients")
            except PeerMissing as reason:
                missing(reason)
        return running[name]

    yield get
    for peer in running.values():
        peer.close()


@pytest.fixture(params=["rocketq", "apache"])
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def name() -> str:
    """A name for topics and groups that no other test uses."""
    return f"T{int(time.time())}_{next(_numbers)}"


def pytest_sessionfinish() -> None:
    if RECORD:
        merge(record_parts(), Path(RECORD))
        shutil.rmtree(record_parts())
