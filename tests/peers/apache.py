"""The real Apache RocketMQ for the peer tests: its jars (fetched with Maven, cached), its NameServer and Broker.

The cache is ``$ROCKETQ_PEER_CACHE`` (default ``~/.cache/rocketq-peers``). Heaps are small and the JIT stops at its
first tier: these processes live for seconds and the machine has two cores.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from servers import free_port
from wire import SYSTEM_ERROR, call, wait_until

HERE = Path(__file__).parent
SERVER_VERSION = "5.4.0"
CLIENT_VERSIONS = ("4.9.8", "5.4.0")
JVM = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
]


class PeerMissing(Exception):
    """Something that a real peer needs is not on this machine; the text says what."""


def missing(reason: PeerMissing) -> NoReturn:
    """Skips at home, fails in CI."""
    if os.environ.get("ROCKETQ_REQUIRE_PEERS") == "1":
        pytest.fail(f"a real peer is missing: {reason}", pytrace=False)
    pytest.skip(str(reason))


def cache_directory() -> Path:
    default = Path.home() / ".cache" / "rocketq-peers"
    directory = Path(os.environ.get("ROCKETQ_PEER_CACHE") or default)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise PeerMissing(f"{name} is not installed")
    return found


def run(command: list[str], **options: object) -> None:
    """Runs a build command; what it said is part of the error when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        raise PeerMissing(str(error)) from None
    if done.returncode:
        raise PeerMissing(
            f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """What the cache holds under that name; the first process that asks for it makes it, others wait meanwhile."""
    target = cache_directory() / name
    with target.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_name(f"{name}.{os.getpid()}.partial")
            make(partial)
            partial.rename(target)
    return target


def jars(kind: str, version: str) -> Path:
    """The directory with the jars of `kind` ("server" or "client") and all that they need."""

    def fetch(into: Path) -> None:
        tool("java")
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into}"]
        pom = str(HERE / "java" / "pom.xml")
        run([tool("mvn"), "-q", "-B", "-f", pom, f"-P{kind}", f"-Dpeer.version={version}", *goal])

    return made_once(f"{kind}-{version}", fetch)


def end(process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> None:
    """Ends a process of ours, and kills it when it does not follow within a minute (Apache's broker takes 15 s)."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


class Apache:
    """One NameServer and one Broker of Apache RocketMQ on loopback, all they write under `directory`.

    With `namesrv` there is only the broker, which registers there. `config`: further properties of the broker.
    """

    kind = "apache"

    def __init__(
        self,
        directory: Path,
        *,
        store: Path | None = None,
        namesrv: str = "",
        config: dict[str, object] | None = None,
    ) -> None:
        self.directory = directory
        self.store = store or directory / "store"
        self.namesrv = namesrv
        self.broker = ""
        self._own_namesrv = not namesrv
        self._config = config or {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Apache:
        """Returns when both serve and the broker is known to the NameServer."""
        libraries = jars("server", SERVER_VERSION)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._own_namesrv:
            self.start_namesrv()
        broker_port = free_port(-2, 1)
        self.broker = f"127.0.0.1:{broker_port}"
        self._java(
            "Broker",
            libraries,
            ["-Xms256m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m"],
            "org.apache.rocketmq.broker.BrokerStartup",
            {
                "brokerClusterName": "DefaultCluster",
                "brokerName": "broker-a",
                "brokerId": 0,
                "brokerIP1": "127.0.0.1",
                "listenPort": broker_port,
                "namesrvAddr": self.namesrv,
                "storePathRootDir": self.store,
                "storePathCommitLog": self.store / "commitlog",
                "autoCreateTopicEnable": "true",
                "mappedFileSizeCommitLog": 64 << 20,
                "mappedFileSizeConsumeQueue": 300_000,
                "flushConsumerOffsetInterval": 500,
                "enablePropertyFilter": "true",
                "traceTopicEnable": "true",
                "recallMessageEnable": "true",
                "transactionCheckInterval": 2000,
                "transactionTimeOut": 2000,
                **self._config,
            },
        )
        self._wait_for("Broker", "boot success")
        wait_until(self._is_registered, "the route of TBW102", 60)
        # Until it has measured for the first time it fails when it is asked for what it has (GET_BROKER_RUNTIME_INFO)
        wait_until(lambda: call(self.broker, 28).code != SYSTEM_ERROR, "what the broker says of itself")
        return self

    def start_namesrv(self) -> str:
        """The NameServer alone; gives its address."""
        self.directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.namesrv = f"127.0.0.1:{port}"
        self._java(
            "NameServer",
            jars("server", SERVER_VERSION),
            ["-Xms64m", "-Xmx128m"],
            "org.apache.rocketmq.namesrv.NamesrvStartup",
            {"listenPort": port, "kvConfigPath": self.directory / "kvConfig.json"},
        )
        self._wait_for("NameServer", "boot success")
        return self.namesrv

    def stop(self) -> None:
        """Ends both cleanly."""
        while self._processes:
            end(self._processes.pop())

    def kill(self) -> None:
        """kill -9, as a crash of the machine's processes (not of the machine) would do."""
        while self._processes:
            end(self._processes.pop(), signal.SIGKILL)

    def kill_broker(self) -> None:
        """kill -9 of the broker; the NameServer goes on."""
        end(self._processes.pop(), signal.SIGKILL)

    def _java(self, name: str, libraries: Path, heap: list[str], main: str, properties: dict[str, object]) -> None:
        config = self.directory / f"{name}.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        home = [f"-Duser.home={self.directory}", f"-Drocketmq.log.root.dir={self.directory}"]
        command = [tool("java"), *heap, *JVM, *home, "-cp", f"{libraries}/*", main, "-c", str(config)]
        with open(self.directory / f"{name}.out", "wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, "ROCKETMQ_HOME": str(self.directory), "NAMESRV_ADDR": self.namesrv},
            )
        self._processes.append(process)

    def _is_registered(self) -> bool:
        """A broker that has not yet found the NameServer alive skips its first registration, and tries again after
        10 seconds; setting brokerPermission (UPDATE_BROKER_CONFIG) makes it register at once."""
        if call(self.namesrv, 105, {"topic": "TBW102"}).code == 0:
            return True
        call(self.broker, 25, body=b"brokerPermission=6\n")
        return False

    def _wait_for(self, name: str, text: str) -> None:
        out = self.directory / f"{name}.out"
        deadline = time.monotonic() + 60
        while text not in out.read_text(errors="replace"):
            dead = [process for process in self._processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Apache's {name} is not up: {out} ends with\n{out.read_text()[-2000:]}")
            time.sleep(0.05)
