"""Clients of every make as processes on a string, all with the same verbs.

`java/Peer.java`, `go/main.go` and `rocketq_peer.py` read one JSON object a line and answer with one JSON object a
line; messages that their consumers receive come as lines in between.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apache import CLIENT_VERSIONS, HERE, JVM, SERVER_VERSION, PeerMissing, end, jars, made_once, run, tool
from wire import Server, wait_in_queues, wait_until

CLIENTS = ["java-4.9.8", "java-5.4.0", "go", "rocketq"]
_numbers = itertools.count(1)


class Consumption:
    """A running consumer in a peer and what it has received so far."""

    def __init__(self, peer: Peer, name: str, group: str) -> None:
        self.peer = peer
        self.name = name
        self.group = group
        self.messages: list[dict[str, Any]] = []
        self.running = True

    def bodies(self) -> list[bytes]:
        return [message["body"] for message in list(self.messages)]

    def wait(self, count: int, timeout: float = 40.0) -> list[dict[str, Any]]:
        wait_until(
            lambda: len(self.messages) >= count,
            f"{self.peer.name}: {count} messages for {self.group}",
            timeout,
        )
        return list(self.messages)

    def stop(self) -> list[dict[str, Any]]:
        """Leaves the group; gives all that was received."""
        if self.running:
            self.running = False
            self.peer.ask("stop", name=self.name)
        return list(self.messages)


class Peer:
    """One client process; `server` in each call says which NameServer it shall use."""

    def __init__(
        self, name: str, command: list[str], directory: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / f"{name}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env={**os.environ, **(environment or {})},
            )
        self._replies: dict[int, dict[str, Any]] = {}
        self._consumptions: dict[str, Consumption] = {}
        self._changed = threading.Condition()
        self._ready = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        with self._changed:
            started = self._changed.wait_for(lambda: self._ready or self._process.poll() is not None, 60)
        assert started, f"{name} did not get ready"
        assert self._ready, f"{name} died: {self.log()}"

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-12000:]

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            with self._changed:
                if said.get("event") == "ready":
                    self._ready = True
                elif said.get("event") == "message":
                    self._consumptions[said["consumer"]].messages.append(_decoded(said))
                else:
                    self._replies[said["id"]] = said
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def ask(self, do: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
        """One verb; raises RuntimeError with the client's own words when it fails."""
        number = next(_numbers)
        line = json.dumps({"id": number, "do": do, **arguments})
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        with self._changed:
            self._changed.wait_for(lambda: number in self._replies or not self._reader.is_alive(), timeout)
            reply = self._replies.pop(number, None)
        if reply is None and self.name.startswith("rocketq"):
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(1)
        assert reply is not None, f"{self.name} did not answer {line[:300]}: {self.log()}"
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {do}: {reply['error']}")
        return _decoded(reply["result"])

    def send(
        self, server: Server, topic: str, messages: Iterable[dict[str, Any]], how: str = "sync"
    ) -> list[dict[str, Any]]:
        """Sends dicts of body, tag, keys, delay, hash, properties, broker, queue (see the peers' sources).

        `how` is sync, async, oneway, batch or hash (the queue is chosen by the hash of each message's `hash`).
        """
        packed = [{**message, "body": base64.b64encode(message["body"]).decode()} for message in messages]
        results: list[dict[str, Any]] = self.ask(
            "send", namesrv=server.namesrv, topic=topic, messages=packed, how=how
        )
        if server.kind == "apache" and not any("delay" in message for message in packed):
            wait_in_queues(server, topic, [result for result in results if "queue" in result])
        return results

    def consume(self, server: Server, topic: str, group: str, **options: Any) -> Consumption:
        """Starts a push consumer, with another `verb` perhaps.

        Options: expression or sql, trace (ours), orderly, broadcast, last, fail, max_reconsume.
        """
        name = f"{self.name}-{next(_numbers)}"
        consumption = self._consumptions[name] = Consumption(self, name, group)
        self.ask(
            options.pop("verb", "consume"), name=name, namesrv=server.namesrv, topic=topic, group=group, **options
        )
        return consumption

    def kill(self) -> None:
        """kill -9."""
        end(self._process, signal.SIGKILL)
        self._reader.join(10)

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            end(self._process)
        self._reader.join(10)


def _decoded(value: Any) -> Any:
    """The value with every base64 body turned into bytes."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return {
            key: base64.b64decode(item) if key == "body" and isinstance(item, str) else _decoded(item)
            for key, item in value.items()
        }
    return value


#: The account of the variant `acl`.
ACCESS_KEY, SECRET_KEY = "shop-service", "secret of the shop"
#: What a client may be asked to do differently: the binary header encoding, TLS (without verifying), an account, and
#: in Java the long names of header fields in sends (codes 10 and 324 in place of 310 and 325).
VARIANTS = {
    "": {},
    "binary": {"rocketmq.serialize.type": "ROCKETMQ"},
    "tls": {"tls.enable": "true"},
    "long": {"org.apache.rocketmq.client.sendSmartMsg": "false"},
    "acl": {"peer.accessKey": ACCESS_KEY, "peer.secretKey": SECRET_KEY},
}


def java_classes(version: str, libraries: Path) -> Path:
    """Our Java classes, compiled against the jars of that version."""
    sources = sorted((HERE / "java").glob("*.java"))
    if not version.startswith("4."):
        sources += sorted((HERE / "java" / "v5").glob("*.java"))
    text = b"".join(source.read_bytes() for source in sources)

    def compiled(into: Path) -> None:
        run([tool("javac"), "-nowarn", "-cp", f"{libraries}/*", "-d", str(into), *map(str, sources)])

    return made_once(f"classes-{version}-{zlib.crc32(text):08x}", compiled)


def java_peer(version: str, directory: Path, *, kind: str = "client", variant: str = "") -> Peer:
    """The Java client of that version; of kind "server" it has mqadmin as well."""
    libraries = jars(kind, version)
    classes = java_classes(version, libraries)
    settings = {
        "user.home": directory,
        "rocketmq.client.logRoot": directory,
        "rocketmq.log.root.dir": directory,
        "rocketmq.client.localOffsetStoreDir": directory / f"offsets-{version}",
        "rocketmq.client.rebalance.waitInterval": 1000,
        "rocketmq.client.rebalance.lockInterval": 1000,
        **VARIANTS[variant],
    }
    path = f"{classes}:{libraries}/*"
    if variant == "acl" and version.startswith("4."):
        path += f":{jars('acl', version)}/*"
    options = ["-Xms32m", "-Xmx256m", *JVM, *(f"-D{key}={value}" for key, value in settings.items())]
    command = [tool("java"), *options, "-cp", path, "Peer"]
    return Peer("-".join(filter(None, ("java", kind, version, variant))), command, directory)


def go_program() -> Path:
    source = HERE / "go"
    text = "".join((source / name).read_text() for name in ("main.go", "go.mod", "go.sum"))

    def built(into: Path) -> None:
        run([tool("go"), "build", "-o", str(into), "."], cwd=source)

    return made_once(f"go-peer-{zlib.crc32(text.encode()):08x}", built)


def go_peer(directory: Path, *, variant: str = "") -> Peer:
    binary = go_program()
    environment = {"HOME": str(directory), "ROCKETMQ_GO_LOG_LEVEL": "error"}
    if variant == "acl":
        environment |= {"PEER_ACCESS_KEY": ACCESS_KEY, "PEER_SECRET_KEY": SECRET_KEY}
    return Peer("-".join(filter(None, ("go", variant))), [str(binary)], directory, environment)


def rocketq_peer(directory: Path, *, variant: str = "") -> Peer:
    """Our client."""
    command = [sys.executable, str(HERE / "rocketq_peer.py"), variant]
    return Peer("-".join(filter(None, ("rocketq", variant))), command, directory, {"HOME": str(directory)})


def fetch() -> None:
    """Download and build what all peers need; what cannot be had is left to the tests that ask for it."""
    with contextlib.suppress(PeerMissing):
        jars("server", SERVER_VERSION)
        for version in CLIENT_VERSIONS:
            java_classes(version, jars("client", version))
        jars("acl", CLIENT_VERSIONS[0])
    with contextlib.suppress(PeerMissing):
        go_program()


def start_client(name: str, directory: Path) -> Peer:
    """`name`: one of CLIENTS, perhaps with `-tls`, `-acl` or `-binary`, or mqadmin."""
    if name == "mqadmin":
        return java_peer(SERVER_VERSION, directory, kind="server")
    make, *rest = name.split("-")
    if make == "java":
        return java_peer(rest[0], directory, variant="".join(rest[1:]))
    if make == "go":
        return go_peer(directory, variant="".join(rest))
    return rocketq_peer(directory, variant="".join(rest))
