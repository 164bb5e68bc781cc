"""Real peers: Apache's server, the Java and the Go client, and ours, each as processes.

They skip where Java, Maven or Go are missing; with ROCKETQ_REQUIRE_PEERS=1, as CI sets it, they fail.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from apache import SERVER_VERSION, Apache, PeerMissing
from ours import Rocketq
from peer import Peer, go_peer, java_peer, rocketq_peer
from wire import Server

CLIENTS = ["java-4.9.8", "java-5.4.0", "go", "rocketq"]
_numbers = itertools.count(1)


def missing(reason: PeerMissing) -> NoReturn:
    """Skips at home, fails in CI."""
    if os.environ.get("ROCKETQ_REQUIRE_PEERS") == "1":
        pytest.fail(f"a real peer is missing: {reason}", pytrace=False)
    pytest.skip(str(reason))


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


def _start_client(name: str, directory: Path) -> Peer:
    """`name`: one of CLIENTS, perhaps with `-tls` or `-binary`, or mqadmin."""
    if name == "mqadmin":
        return java_peer(SERVER_VERSION, directory, kind="server")
    make, *rest = name.split("-")
    if make == "java":
        return java_peer(rest[0], directory, variant="".join(rest[1:]))
    if make == "go":
        return go_peer(directory)
    return rocketq_peer(directory, variant="".join(rest))


@pytest.fixture(scope="session")
def client(workshop: Path) -> Iterator[Callable[[str], Peer]]:
    """Gives the client of that name, started when it is first asked for."""
    running: dict[str, Peer] = {}

    def get(name: str) -> Peer:
        if name not in running:
            try:
                running[name] = _start_client(name, workshop / "clients")
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
