"""Masters and slaves as processes, and a client that sends to them."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from servers import ServerProcess, free_port, wait_until

from rocketq.client import Producer
from rocketq.client.admin import Admin
from rocketq.errors import RocketQError
from rocketq.message import Message
from rocketq.remoting.bodies import TopicConfig

TOPIC = "Faults"


class Brokers:
    """A NameServer, masters of two names, and a slave of the first one; all processes."""

    def __init__(self, root: Path, *settings: str) -> None:
        self.root = root
        self.settings = settings
        self.namesrv = ServerProcess("namesrv", "--port", "0")
        self.running: dict[str, ServerProcess] = {}
        self.ports: dict[str, int] = defaultdict(lambda: free_port(-2))

    def start(self, directory: str, name: str, *settings: str) -> None:
        arguments = ["broker", "--data", str(self.root / directory), "--namesrv", self.namesrv.namesrv]
        arguments += ["--name", name, "--host", "127.0.0.1", "--port", str(self.ports[directory])]
        shared = ("mappedFileSizeCommitLog=67108864", "haListenPort=0", "slaveReadEnable=true")
        shared += ("maxHashSlotNum=1000", "maxIndexNum=4000")
        for setting in (*shared, *settings):
            arguments += ["--set", setting]
        self.running[directory] = ServerProcess(*arguments)

    def start_all(self) -> None:
        self.start("a", "broker-a", *self.settings)
        self.start("a-slave", "broker-a", "brokerRole=SLAVE", "brokerId=1")
        self.start("b", "broker-b")

    def kill(self, directory: str) -> None:
        self.running.pop(directory).kill()

    def stop(self) -> None:
        for process in (*self.running.values(), self.namesrv):
            process.kill()

    def same_log(self, directory: str, other: str) -> bool:
        """Whether two brokers have the same CommitLog, byte by byte."""
        return _log(self.root / directory) == _log(self.root / other)


def _log(directory: Path) -> dict[str, bytes]:
    """The files of a CommitLog up to where it ends, by name."""
    files = {path.name: path.read_bytes().rstrip(b"\0") for path in (directory / "commitlog").iterdir()}
    return {name: data for name, data in files.items() if data}  # one that was made ahead of need is empty


class Load:
    """Sends numbered messages on and on, one after the other. `phase` names those that are sent now.

    `sent`: those that were answered SEND_OK; `statuses`: all answers so far; `errors`: what a user would see.
    """

    def __init__(self, namesrv: str, timeout: float = 30.0, name: str = "") -> None:
        self._name = name
        self.phase = "a"
        self._timeout = timeout
        self.sent: list[str] = []
        self.statuses: set[str] = set()
        self.errors: list[RocketQError] = []
        self._namesrv = namesrv
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with Producer("load", self._namesrv, route_refresh=1.0) as producer:
            while not self._stop.wait(0.004):
                name = f"{self.phase}{self._name}{number}"
                number += 1
                try:
                    status = producer.send(Message(TOPIC, name.encode()), timeout=self._timeout).status
                except RocketQError as error:
                    self.errors.append(error)
                    self._stop.wait(0.1)
                    continue
                self.statuses.add(status)
                if status == "SEND_OK":
                    self.sent.append(name)

    def of(self, phase: str) -> list[str]:
        return [name for name in list(self.sent) if name.startswith(phase)]

    def wait_sent(self, count: int) -> None:
        """Until so many more were answered."""
        goal = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= goal, 60, f"{count} more answered sends")

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()


def create_topic(namesrv: str, masters: int = 1) -> None:
    """On all masters."""
    with Admin(namesrv) as admin:
        admin.create_topic(TopicConfig(TOPIC, 4, 4))
        wait_until(lambda: len(admin.topic_masters(TOPIC)) == masters, 30, "all masters have the topic")
