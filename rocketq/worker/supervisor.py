"""Keeps worker processes running: N of them, restarted when they die or when the source changes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from rocketq.worker.exits import CRASHED, HANDED_BACK, STOPPED, USAGE

logger = logging.getLogger("rocketq.worker")

TICK = 0.2
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: A child that ran this long was healthy: its next death is not counted as part of a crash loop.
HEALTHY_AFTER = 10.0


class SourceWatcher:
    """Tells when a Python file below `root` was added, changed or removed. Hidden directories and virtual
    environments are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen = dict(self._scan())

    def changed(self) -> list[str]:
        """The files that changed since the last call."""
        now = dict(self._scan())
        before, self._seen = self._seen, now
        return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))

    def _scan(self) -> Iterator[tuple[str, int]]:
        for folder, folders, files in os.walk(self.root):
            folders[:] = [
                name
                for name in folders
                if not name.startswith((".", "__pycache__"))
                and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
            ]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    try:
                        yield path, os.stat(path).st_mtime_ns
                    except FileNotFoundError:  # an editor that saves by renaming
                        continue


class Child:
    """One place for a worker process, and how often it died there."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self._pause = FIRST_PAUSE
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.start_at = 0.0

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = self._start()

    def died(self) -> float:
        """Plan the next start; returns the pause before it in seconds."""
        now = time.monotonic()
        if now - self.started > HEALTHY_AFTER:
            self._pause = FIRST_PAUSE
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        self.process, self.start_at = None, now + pause
        return pause

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """Runs `command` (given its index as last argument) in `processes` processes until it is told to stop.

    A child gets a pipe as stdin that closes with the supervisor, so that none is left behind. SIGTERM and SIGINT are
    handed on; children that are not gone `shutdown_timeout` (plus a little) seconds later are killed, as they are at
    once on a second signal. A child that ends with the usage code ends all, unless a change of the source can mend it.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        shutdown_timeout: float,
        watcher: SourceWatcher | None = None,
    ) -> None:
        self.command = list(command)
        self.shutdown_timeout = shutdown_timeout
        self.watcher = watcher
        self.children = [Child(lambda index=index: self._spawn(index)) for index in range(processes)]  # type: ignore[misc]
        self._stop_signals: list[int] = []

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the children once, through the supervisor.
        return subprocess.Popen([*self.command, str(index)], stdin=subprocess.PIPE, start_new_session=True)

    def run(self) -> int:
        """Returns the exit code for the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for child in self.children:
            child.start()
        while not self._stop_signals:
            time.sleep(TICK)
            for child in self.children:
                code = self._tend(child)
                if code == USAGE and self.watcher is None:
                    self._end_all()
                    return USAGE
            files = self.watcher.changed() if self.watcher else []
            if files:
                logger.info("%s changed: restarting", ", ".join(os.path.relpath(path) for path in files[:3]))
                self._end_all()
                for child in self.children:
                    child.start()
        return self._end_all()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signals.append(number)

    def _tend(self, child: Child) -> int | None:
        """Look after one child; returns the exit code when it has just died."""
        if child.process is None:
            if time.monotonic() >= child.start_at:
                child.start()
            return None
        code = child.process.poll()
        if code is None:
            return None
        pid, pause = child.process.pid, child.died()
        if code == USAGE:
            child.start_at = float("inf")
            if self.watcher is not None:
                logger.error("worker process %d ended with code %d: waiting for a change of the source", pid, code)
        else:
            logger.error("worker process %d ended with code %d: starting it again in %.0f s", pid, code, pause)
        return code

    def _end_all(self) -> int:
        """Stop all children; returns what their exit codes come to."""
        signals_before = len(self._stop_signals)
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.shutdown_timeout + 5
        running = [child.process for child in self.children if child.process is not None]
        while any(process.poll() is None for process in running):
            again = len(self._stop_signals) > max(signals_before, 1)
            if again or time.monotonic() > deadline:
                for child in self.children:
                    child.signal(signal.SIGKILL)
                for process in running:
                    process.wait()
                if again:
                    return 128 + self._stop_signals[-1]
            time.sleep(0.05)
        # One that SIGTERM ended had not begun to consume: it was still starting.
        codes = {STOPPED if process.returncode == -signal.SIGTERM else process.returncode for process in running}
        for child in self.children:
            child.process = None
        for process in running:
            if process.stdin is not None:
                process.stdin.close()
        if codes <= {STOPPED}:
            return STOPPED
        return HANDED_BACK if codes <= {STOPPED, HANDED_BACK} else CRASHED
