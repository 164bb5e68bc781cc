"""Our server dies under the clients and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ours import Rocketq
from peer import Peer
from scenarios import bodies, plain
from servers import lasting_ports
from wire import create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
#: Java 4.9 (it waits 30 seconds for the answers of pulls that were under way) and Go (it tells the broker who it is
#: every 30 seconds) come back too, but not soon.
MAKES = ["java-5.4.0", "rocketq"]


def test_clients_go_on_when_the_server_was_killed_and_is_back(
    client: GetClient, tmp_path: Path, name: str
) -> None:
    server = Rocketq(tmp_path / "rocketq", **lasting_ports()).start()
    try:
        topics = {make: create_topic(server, f"{name}_{number}") for number, make in enumerate(MAKES)}
        consumers = {make: client(make).consume(server, topic, f"G_{topic}") for make, topic in topics.items()}
        for make, topic in topics.items():
            client(make).send(server, topic, plain(30, "before"))
        for consumer in consumers.values():
            consumer.wait(30)
        server.kill()
        server.start()
        for make, topic in topics.items():
            for message in plain(30, "after"):

                def sent(make: str = make, topic: str = topic, message: dict[str, object] = message) -> bool:
                    try:
                        client(make).send(server, topic, [message])
                    except RuntimeError:
                        return False  # the client has not found its way back yet
                    return True

                wait_until(sent, f"{make} sends again", 60, interval=0.2)
        wanted = set(bodies(30, "before") + bodies(30, "after"))
        for make, consumer in consumers.items():
            wait_until(lambda consumer=consumer: wanted <= set(consumer.bodies()), f"all messages at {make}", 60)
            assert set(consumer.bodies()) == wanted
        for consumer in consumers.values():
            consumer.stop()
    finally:
        server.stop()
