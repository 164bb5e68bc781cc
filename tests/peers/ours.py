"""Our own server as a process, in the shape that `apache.Apache` has too."""

from __future__ import annotations

import os
from pathlib import Path

from servers import ServerProcess

#: A file that what clients ask for is added to (see recording.py; docs/generate_compatibility.py shows it).
RECORD = os.environ.get("ROCKETQ_PEERS_RECORD")


def record_parts() -> Path:
    """Where the servers of this session write their parts of the record."""
    assert RECORD
    parts = Path(f"{RECORD}.parts").absolute()
    parts.mkdir(exist_ok=True)
    return parts


def _program() -> tuple[str, ...]:
    if not RECORD:
        return "-m", "rocketq"
    return str(Path(__file__).with_name("recording.py")), str(record_parts())


class Rocketq:
    """`rocketq server` on loopback, with the given `broker.conf` properties; ports 0 are others at each start."""

    kind = "rocketq"

    def __init__(
        self,
        directory: Path,
        *,
        config: dict[str, object] | None = None,
        namesrv_port: int = 0,
        broker_port: int = 0,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        #: Where the broker keeps what Apache's keeps under storePathRootDir.
        self.store = self.data / "broker-0"
        self.namesrv = self.broker = ""
        self._config = {"brokerName": "broker-a", **(config or {})}
        self._ports = ("--namesrv-port", str(namesrv_port), "--broker-port", str(broker_port))
        self._process: ServerProcess | None = None

    def start(self) -> Rocketq:
        """Returns when the server has printed its ready line."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "broker.conf"
        config.write_text("".join(f"{key}={value}\n" for key, value in self._config.items()))
        self._process = ServerProcess(
            "server", "--data", self.data, "--config", config, *self._ports, program=_program()
        )
        self.namesrv, self.broker = self._process.namesrv, self._process.broker
        return self

    def stop(self) -> None:
        """SIGTERM, which must end it well."""
        if self._process:
            code, errors = self._process.stop(), "".join(self._process.errors)
            self._process = None
            assert code == 0, f"rocketq server ended with {code}:\n{errors[-3000:]}"

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process = None
