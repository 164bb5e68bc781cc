"""Real `rocketq worker` processes for tests, and the files that their functions write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from servers import wait_until


class WorkerProcess:
    """`rocketq worker` in `folder`, where the application is; what it prints goes to `folder/worker.log`."""

    def __init__(self, folder: Path, *arguments: str, namesrv: str | None = None) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        if namesrv:
            environment["ROCKETQ_NAMESRV"] = namesrv
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rocketq", "worker", *arguments],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ready(self, count: int = 1) -> WorkerProcess:
        """Wait for `count` ready lines."""

        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.output}")
            return self.output.count("rocketq worker ready") >= count

        wait_until(is_ready, 60.0, "the worker's ready line")
        return self

    def pids(self) -> list[int]:
        """The worker processes that said they are ready, oldest first."""
        lines = [line for line in self.output.splitlines() if line.startswith("rocketq worker ready")]
        return [int(line.rpartition("pid=")[2]) for line in lines]

    def lines(self, name: str = "out") -> list[str]:
        """What the functions wrote so far."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_lines(self, count: int, name: str = "out", deadline: float = 30.0) -> list[str]:
        try:
            wait_until(lambda: len(self.lines(name)) >= count, deadline, what=f"{count} lines in {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}; got {self.lines(name)}\n{self.output}") from None
        return self.lines(name)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self, deadline: float = 30.0) -> int:
        return self.process.wait(deadline)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.exit_code()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
