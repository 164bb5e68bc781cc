"""Our own server as a process, in the shape that `apache.Apache` has too."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

from apache import end

_READY = re.compile(r"rocketq server ready namesrv=(\S+) broker=(\S+) pid=\d+")


class Rocketq:
    """`rocketq server` on free ports of loopback."""

    kind = "rocketq"

    def __init__(
        self, directory: Path, *, store: Path | None = None, config: dict[str, object] | None = None
    ) -> None:
        self.directory = directory
        self.store = store or directory / "store"
        self.namesrv = self.broker = ""
        self._config = config or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Rocketq:
        """Returns when the server has printed its ready line."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "broker.conf"
        config.write_text("".join(f"{key}={value}\n" for key, value in self._config.items()))
        command = [sys.executable, "-m", "rocketq", "server", "--data", str(self.store), "--config", str(config)]
        log = self.directory / "server.log"
        with open(log, "ab") as err:
            self._process = subprocess.Popen(
                [*command, "--namesrv-port", "0", "--broker-port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                cwd=self.directory,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        assert self._process.stdout
        said = b""
        while not (ready := _READY.search(said.decode(errors="replace"))):
            readable, _, _ = select.select([self._process.stdout], [], [], 20)
            data = os.read(self._process.stdout.fileno(), 4096) if readable else b""
            if not data:
                self.kill()
                raise RuntimeError(f"rocketq server is not up; it said {said!r} and\n{log.read_text()[-3000:]}")
            said += data
        self.namesrv, self.broker = ready.groups()
        return self

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: int) -> None:
        if self._process:
            end(self._process, how)
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None
