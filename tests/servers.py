"""Real server processes for tests: started on free loopback ports, ended by whoever started them."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

READY = re.compile(r"rocketq (\w+) ready(?: namesrv=(\S+))?(?: broker=(\S+))? pid=(\d+)")


def wait_until(condition: Callable[[], object], deadline: float = 20.0, what: str = "the condition") -> None:
    """Return when `condition()` is true; fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {deadline} s")
        time.sleep(0.01)


#: Ports below those that the system gives to whoever asks for any port. Each process of the tests has its own of them,
#: and begins somewhere, as other tests may run on this machine.
_FIRST = 10_000 + 2500 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8)
_blocks = itertools.cycle(random.sample(range(_FIRST, _FIRST + 2500, 10), 250))


def free_port(*offsets: int) -> int:
    """A free port of 127.0.0.1, with those at the offsets (less than 5) from it, that nobody else is given.

    For what is told its port before it listens, and for what has to come back to the port that it had.
    """
    for port in (block + 5 for block in itertools.islice(_blocks, 250)):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for offset in (0, *offsets):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return port
    raise AssertionError("no free ports on 127.0.0.1")


def lasting_ports() -> dict[str, int]:
    """Of a server that is started again: `namesrv_port` and `broker_port` for `start_server`."""
    return {"namesrv_port": free_port(), "broker_port": free_port(-2, 1)}


class ServerProcess:
    """One `rocketq …` daemon. `namesrv` and `broker` are the addresses of its ready line.

    `program`: what Python runs, if not `-m rocketq`.
    """

    def __init__(
        self,
        *arguments: str | Path,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "rocketq"),
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.process = subprocess.Popen(
            [sys.executable, *program, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = READY.search(line)
        if match is None:
            self.kill()
            raise AssertionError(f"no ready line from {self.arguments}: {line!r} {''.join(self.errors)}")
        self.namesrv = match[2] or ""
        self.broker = match[3] or ""

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "the disk of " not in line or "% full" not in line:  # says something about this machine only
                self.errors.append(line)

    def freeze(self) -> None:
        """SIGSTOP; returns when it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.process.pid}/status")
        wait_until(lambda: "State:\tT" in status.read_text(), what="the process is stopped")

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, deadline: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        self._reader.join(5.0)  # a grandchild may hold the pipe open; closing it then would wait for ever
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None and not self._reader.is_alive():
                pipe.close()


def start_server(
    data: Path,
    *arguments: str,
    namesrv_port: int = 0,
    broker_port: int = 0,
    program: tuple[str, ...] = ("-m", "rocketq"),
) -> ServerProcess:
    """`rocketq server` with its data under `data`."""
    return ServerProcess(
        "server",
        "--data",
        data,
        "--namesrv-port",
        str(namesrv_port),
        "--broker-port",
        str(broker_port),
        *arguments,
        program=program,
    )
