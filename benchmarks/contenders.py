"""The servers of a benchmark run: each is started with a fresh store of its own, and looked at through /proc."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))
sys.path.append(str(Path(__file__).parent.parent / "tests" / "peers"))
from apache import SERVER_VERSION, jars, tool
from apache import PeerMissing as PeerMissing
from servers import free_port

# Full speed, unlike the peer tests' JVMs: the JIT and the collector that the JVM takes by itself.
APACHE_JAVA = (
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED --add-opens=java.base/java.nio=ALL-UNNAMED"
    " --add-opens=java.base/sun.nio.ch=ALL-UNNAMED"
)
READY = re.compile(r"rocketq server ready namesrv=(\S+):(\d+) broker=(\S+):(\d+) pid=(\d+)")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.005)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server:
    """One server with its store in a directory of its own, which `remove` deletes."""

    name = ""
    client = ""  # what clients.py calls its protocol

    def __init__(self, root: Path, **settings: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=root))
        self.settings = settings
        self.processes: list[subprocess.Popen[bytes]] = []
        self.port = 0
        self.namesrv = ""
        self.start_seconds = 0.0
        self.prepared: set[str] = set()  # what scenarios have already put into the store

    def start(self) -> None:
        """Starts it and returns when it can serve; `start_seconds` says how long that took."""
        began = time.monotonic()
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began

    def _launch(self) -> None:
        raise NotImplementedError

    def _run(self, command: str, log: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(
                shlex.split(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def _wait_for_log(self, log: str, pattern: str | re.Pattern[str], seconds: float = 60.0) -> re.Match[str]:
        found: list[re.Match[str]] = []

        def appeared() -> bool:
            text = (self.directory / log).read_text(errors="replace")
            match = re.search(pattern, text)
            if match:
                found.append(match)
            elif any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"{self.name} ended while starting:\n{text[-2000:]}")
            return bool(match)

        wait_for(appeared, f"{self.name} to start", seconds)
        return found[0]

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(ProcessLookupError):  # what a start script leaves behind
                os.killpg(process.pid, signal.SIGKILL)
        self.processes.clear()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def memory(self) -> dict[str, float]:
        """MiB of all its processes together: RSS, and how much of it is anonymous or mapped files."""
        total = {"VmRSS": 0.0, "RssAnon": 0.0, "RssFile": 0.0}
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                key, _, value = line.partition(":")
                if key in total:
                    total[key] += int(value.split()[0]) / 1024
        return total

    def cpu_seconds(self) -> float:
        """CPU time used so far, by all its processes."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]


class RocketQ(Server):
    """`rocketq server`: NameServer and Broker in one process."""

    name = "rocketq"
    client = "rocketq"

    def _launch(self) -> None:
        config = self.directory / "broker.conf"
        config.write_text("".join(f"{key}={value}\n" for key, value in self.settings.items()))
        log = self.directory / "server.log"
        log.write_bytes(b"")
        self._run(
            f"{sys.executable} -m rocketq server --data {self.directory}/data --namesrv-port 0 --broker-port 0"
            f" --config {config}",
            log.name,
        )
        ready = self._wait_for_log(log.name, READY)
        self.namesrv = f"{ready[1]}:{ready[2]}"
        self.port = int(ready[4])


class Apache(Server):
    """Apache RocketMQ's NameServer and Broker, from the jars that the peer tests fetch."""

    name = "apache"
    client = "rocketq"  # our client speaks to both

    def _launch(self) -> None:
        tool("java")
        self.libraries = jars("server", SERVER_VERSION)
        namesrv_port, self.port = free_port(), free_port(-2, 1)
        self.namesrv = f"127.0.0.1:{namesrv_port}"
        store = self.directory / "data"
        properties = {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "broker-a",
            "brokerId": "0",
            "brokerIP1": "127.0.0.1",
            "listenPort": str(self.port),
            "namesrvAddr": self.namesrv,
            "storePathRootDir": str(store),
            "storePathCommitLog": str(store / "commitlog"),
            **self.settings,
        }
        (self.directory / "broker.conf").write_text("".join(f"{k}={v}\n" for k, v in properties.items()))
        (self.directory / "namesrv.conf").write_text(f"listenPort={namesrv_port}\n")
        base = "org.apache.rocketmq."
        self._java("namesrv", base + "namesrv.NamesrvStartup", "-Xms256m -Xmx256m")
        self._wait_for_log("namesrv.log", "boot success")
        self._java("broker", base + "broker.BrokerStartup", "-Xms1g -Xmx1g -XX:MaxDirectMemorySize=1g")
        self._wait_for_log("broker.log", "boot success")
        wait_for(lambda: accepts(self.port), "Apache's broker to listen")

    def _java(self, part: str, main: str, memory: str) -> None:
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        (self.directory / f"{part}.log").write_bytes(b"")
        self._run(
            f"java {memory} {APACHE_JAVA} -Drocketmq.log.root.dir={home} -Duser.home={home} -cp {self.libraries}/*"
            f" {main} -c {self.directory}/{part}.conf",
            f"{part}.log",
            ROCKETMQ_HOME=str(home),
        )


class Redis(Server):
    """redis-server with an append-only file, fsync every second: the nearest to ASYNC_FLUSH."""

    name = "redis"
    client = "redis"

    def _launch(self) -> None:
        self.port = free_port()
        self._run(
            f"{tool('redis-server')} --port {self.port} --bind 127.0.0.1 --dir {self.directory}"
            " --appendonly yes --appendfsync everysec --save ''",
            "redis.log",
        )
        wait_for(lambda: accepts(self.port), "redis-server to listen")


class RabbitMQ(Server):
    """rabbitmq-server as a node of its own: durable queues, persistent messages."""

    name = "rabbitmq"
    client = "rabbitmq"

    def _launch(self) -> None:
        tool("rabbitmq-server")
        # Debian's /usr/sbin/rabbitmq-server changes to a user who may not write into our directory: go past it.
        script = next(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"), None)
        if script is None:
            raise PeerMissing("rabbitmq-server is not where Debian's package puts it")
        self.port = free_port()
        for sub in ("log", "mnesia"):
            (self.directory / sub).mkdir(exist_ok=True)
        (self.directory / "plugins").write_text("[].\n")
        self._run(
            str(script),
            "rabbitmq.log",
            RABBITMQ_NODENAME=f"bench{self.port}@localhost",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_LOG_BASE=str(self.directory / "log"),
            RABBITMQ_MNESIA_BASE=str(self.directory / "mnesia"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.directory / "plugins"),
            RABBITMQ_PID_FILE=str(self.directory / "pid"),
            HOME=str(self.directory),
            LC_ALL="C.UTF-8",
        )
        wait_for(lambda: accepts(self.port), "rabbitmq-server to listen")

    def pids(self) -> list[int]:
        """The Erlang VM is a child of the start script."""
        group = {os.getpgid(process.pid) for process in self.processes}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getpgid(int(entry.name)) in group:
                        found.append(int(entry.name))
                except ProcessLookupError:
                    continue
        return found


SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (RocketQ, Apache, Redis, RabbitMQ)}
