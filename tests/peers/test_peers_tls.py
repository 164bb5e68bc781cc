"""TLS between the makes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache import Apache, PeerMissing, missing, tool
from ours import Rocketq
from peer import Peer
from scenarios import bodies, plain
from wire import Server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]


@pytest.fixture
def enforcing(tmp_path: Path) -> Iterator[Rocketq]:
    """Our server, which speaks nothing but TLS."""
    try:
        openssl = tool("openssl")
    except PeerMissing as reason:
        missing(reason)
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    settings = {"tls.server.mode": "enforcing", "tls.server.certPath": cert, "tls.server.keyPath": key}
    server = Rocketq(tmp_path / "rocketq", config=settings).start()
    yield server
    server.stop()


def works(server: Server, peer: Peer, topic: str) -> None:
    peer.send(server, topic, plain(20, "sync"))
    peer.send(server, topic, plain(20, "async"), how="async")
    consumer = peer.consume(server, topic, f"G_{topic}")
    consumer.wait(40)
    assert sorted(message["body"] for message in consumer.stop()) == bodies(20, "async") + bodies(20, "sync")


def test_clients_of_all_makes_speak_tls_to_our_server(enforcing: Rocketq, client: GetClient, name: str) -> None:
    for number, make in enumerate(("java-4.9.8-tls", "java-5.4.0-tls", "rocketq-tls")):
        works(enforcing, client(make), f"{name}_{number}")
    with pytest.raises(RuntimeError):
        client("rocketq").send(enforcing, f"{name}_plain", plain(1))


def test_our_client_speaks_tls_to_apaches_server(apache: Apache, client: GetClient, name: str) -> None:
    works(apache, client("rocketq-tls"), name)
