"""Brokers of one make with NameServers of the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from apache import Apache
from peer import Peer
from scenarios import bodies, plain
from servers import ServerProcess
from wire import call, create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]


def works(server: object, java: Peer, name: str) -> None:
    create_topic(server, name)
    java.send(server, f"{name}_auto", plain(3))  # created by the first send
    java.send(server, name, plain(20))
    for topic, count in ((name, 20), (f"{name}_auto", 3)):
        consumer = java.consume(server, topic, f"G_{topic}")
        consumer.wait(count)
        assert sorted(message["body"] for message in consumer.stop()) == bodies(count)


class Address:
    kind = "mixed"

    def __init__(self, namesrv: str, broker: str) -> None:
        self.namesrv, self.broker = namesrv, broker


def test_apaches_broker_registers_with_our_nameserver(
    request: pytest.FixtureRequest, client: GetClient, tmp_path: Path, name: str
) -> None:
    request.getfixturevalue("apache")  # skips where it cannot run
    with ServerProcess("namesrv", "--host", "127.0.0.1", "--port", "0", "--data", tmp_path / "kv") as namesrv:
        broker = Apache(tmp_path / "apache", namesrv=namesrv.namesrv).start()
        try:
            works(broker, client("java-5.4.0"), name)
        finally:
            broker.kill()
        # The connection dropped: the route is gone at once, not after the 120 seconds of a missing heartbeat.
        wait_until(
            lambda: call(namesrv.namesrv, 105, {"topic": name}).code == 17, "the dead broker's route is gone"
        )


def test_our_broker_registers_with_apaches_nameserver(
    request: pytest.FixtureRequest, client: GetClient, tmp_path: Path, name: str
) -> None:
    namesrv = request.getfixturevalue("apache").namesrv
    options = ("--name", "ours", "--host", "127.0.0.1", "--port", "0", "--data", tmp_path / "data")
    with ServerProcess("broker", "--namesrv", namesrv, *options) as broker:
        server = Address(namesrv, broker.broker)
        create_topic(server, name)
        java = client("java-5.4.0")
        sent = java.send(server, name, plain(20))
        assert {result["broker"] for result in sent} == {"ours"}
        consumer = java.consume(server, name, f"G_{name}")
        consumer.wait(20)
        assert sorted(message["body"] for message in consumer.stop()) == bodies(20)
        assert broker.stop() == 0
        wait_until(
            lambda: call(namesrv, 105, {"topic": name}).code == 17, "the route of the broker that left is gone"
        )
