"""A local server for as long as something needs it: tests, demos, `rocketq worker --embedded`.

with EmbeddedServer() as server:
    app = RocketQ("shop", namesrv=server.namesrv)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from rocketq.errors import RocketQError

__all__ = ["EmbeddedServer"]

READY = "rocketq server ready "


class EmbeddedServer:
    """`rocketq server` (NameServer and Broker) in a process of its own on free loopback ports.

    `data`: the data directory, kept afterwards; None takes a temporary one that is removed in `stop`. `arguments` are
    further options of `rocketq server`. After `start`: `namesrv` and `broker` are its addresses, `pid` its process.
    It ends with this process, even when that is killed.
    """

    def __init__(self, data: str | Path | None = None, *arguments: str) -> None:
        self.data = None if data is None else Path(data)
        self.arguments = arguments
        self.namesrv = self.broker = ""
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> EmbeddedServer:
        """Start it and wait until it serves. Raises RocketQError when it does not come up; its log says why."""
        if self.data is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="rocketq-", ignore_cleanup_errors=True)
        data = self.data or Path(self._temporary.name if self._temporary else "")
        ports = ["--namesrv-port", "0", "--broker-port", "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rocketq.embedded", "server", "--data", str(data), *ports, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C goes to the whole foreground group; this server has to outlive its user's graceful stop.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line.startswith(READY):
            code = self._process.wait()
            self._clean()
            raise RocketQError(f"the embedded server on {data} did not start (exit code {code}): {line.strip()}")
        found = dict(word.split("=", 1) for word in line[len(READY) :].split())
        self.namesrv, self.broker, self.pid = found["namesrv"], found["broker"], int(found["pid"])
        return self

    def stop(self) -> None:
        """Stop it gracefully and remove a temporary data directory."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._clean()

    def _clean(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def end_with_parent() -> None:
    """The parent holds the other end of stdin: when that closes, the parent is gone, however it went."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from rocketq.cli.main import main

    threading.Thread(target=end_with_parent, daemon=True).start()
    main(prog_name="rocketq")
