"""Master and slave of two makes: Apache's slave copies our master, ours copies Apache's, and Java reads from both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apache import Apache, PeerMissing, missing
from peer import Peer
from scenarios import bodies, plain
from servers import ServerProcess, free_port
from wire import call, create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
TOPIC, GROUP = "Copied", "G_copied"
SLAVE = {"brokerRole": "SLAVE", "brokerId": 1, "slaveReadEnable": "true"}
FILE = 64 << 20


class Ours:
    """One of our brokers, or with `namesrv` empty a NameServer and a broker, as processes with a store of their own."""

    kind = "rocketq"

    def __init__(self, directory: Path, namesrv: str, **settings: object) -> None:
        self.store = directory / "store"
        self._namesrv = None if namesrv else ServerProcess("namesrv", "--port", "0")
        self.namesrv = namesrv or (self._namesrv.namesrv if self._namesrv else "")
        arguments = ["broker", "--data", self.store, "--namesrv", self.namesrv, "--name", "broker-a"]
        arguments += ["--host", "127.0.0.1", "--port", str(free_port(-2, 1))]
        shared = {"mappedFileSizeCommitLog": FILE, "maxHashSlotNum": 1000, "maxIndexNum": 4000}
        for key, value in (shared | settings).items():
            arguments += ["--set", f"{key}={value}"]
        self._broker = ServerProcess(*arguments)
        self.broker = self._broker.broker

    def kill_broker(self) -> None:
        """kill -9 of the broker only, as the NameServer has to say that it is gone."""
        self._broker.kill()

    def stop_broker(self) -> int:
        """A clean stop of the broker only; its exit code."""
        return self._broker.stop()

    def end(self) -> None:
        for process in (self._broker, self._namesrv):
            if process is not None:
                process.__exit__(None, None, None)


def log_end(broker: str) -> int:
    """End of a broker's CommitLog (GET_BROKER_RUNTIME_INFO)."""
    table: dict[str, str] = json.loads(call(broker, 28).body)["table"]
    return int(table["commitLogMaxOffset"])


def log_bytes(store: Path, end: int) -> bytes:
    with open(store / "commitlog" / f"{0:020}", "rb") as file:
        return file.read(end)


def ha_status(broker: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(call(broker, 907).body)
    return status


@pytest.fixture(params=["apache follows ours", "ours follows apache"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Master and slave."""
    ours: Ours | None = None
    apache: Apache | None = None
    try:
        if request.param == "apache follows ours":
            ours = Ours(tmp_path / "ours", "")
            create_topic(ours, TOPIC)  # Apache's slaves copy topics as they start, and a minute later
            apache = Apache(tmp_path / "apache", namesrv=ours.namesrv, config=SLAVE)
            apache.start()
            yield ours, apache
        else:
            apache = Apache(tmp_path / "apache")
            create_topic(apache.start(), TOPIC)
            ours = Ours(tmp_path / "ours", apache.namesrv, **SLAVE)
            yield apache, ours
    except PeerMissing as reason:
        missing(reason)
    finally:
        if apache is not None:
            apache.kill()
        if ours is not None:
            ours.end()


def test_a_slave_has_the_masters_bytes_and_serves_a_java_client(pair: tuple[Any, Any], client: GetClient) -> None:
    master, slave = pair
    java = client("java-5.4.0")
    java.send(master, TOPIC, plain(60, "first", tag="A", keys="k"))
    java.send(master, TOPIC, plain(40, "second"), how="batch")
    java.send(master, TOPIC, [{"body": b"large" * 20_000}])
    count = 101

    def copied() -> int:
        end = log_end(master.broker)
        return end if log_end(slave.broker) == end > 10_000 else 0

    end = wait_until(copied, "the slave has the whole log", 60)
    assert log_bytes(slave.store, end) == log_bytes(master.store, end)

    def in_sync() -> list[bool]:
        return [seen["inSync"] for seen in ha_status(master.broker)["haConnectionInfo"]]

    wait_until(lambda: in_sync() == [True], "the master sees its slave in sync")
    assert not ha_status(slave.broker)["master"]

    def table(code: int, key: str) -> dict[str, Any]:
        answer = call(slave.broker, code)
        return dict(json.loads(answer.body)[key]) if answer.code == 0 else {}

    wait_until(lambda: TOPIC in table(21, "topicConfigTable"), "the slave has the topic", 90)
    refused = call(
        slave.broker,
        310,
        {"a": "P", "b": TOPIC, "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "0", "h": "0", "i": "", "j": "0"},
        b"x",
    )
    assert refused.code == (14 if isinstance(slave, Ours) else 2), refused.remark

    master.kill_broker()
    consumption = java.consume(slave, TOPIC, GROUP)
    consumption.wait(count, 90)
    found = sorted(message["body"] for message in consumption.stop())
    assert found == sorted([*bodies(60, "first"), *bodies(40, "second"), b"large" * 20_000])
