"""Celery workers as processes, what they did, and a wire that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from celery import Celery, Signature
from celery_tasks import settings
from servers import wait_until

HERE = Path(__file__).parent
POOLS = ["prefork", "threads", "solo", "gevent"]
#: Seconds, for tests of what happens when one ends, and of what happens long before.
LEASE, LONG = 4.0, 120.0
#: Unsettled tasks that a worker may have: `worker_prefetch_multiplier` times its concurrency.
PREFETCH = 8


class Line(NamedTuple):
    """One line of the journal. `time`: seconds since 1970."""

    task: str
    number: str
    what: str
    time: float
    pid: int


class Site:
    """One test's broker URL, journal and application. `lease` and `grace` in seconds."""

    def __init__(
        self, url: str, directory: Path, lease: float = 30.0, grace: float = 0.0, backend: str = "rpc://"
    ) -> None:
        self.url = url
        self.directory = directory
        self.journal = directory / "journal"
        self.journal.touch()
        self.environment = {
            "CELERY_TEST_BROKER": url,
            "CELERY_TEST_BACKEND": backend,
            "CELERY_TEST_JOURNAL": str(self.journal),
            "CELERY_TEST_LEASE": str(lease),
            "CELERY_TEST_GRACE": str(grace),
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self.app = Celery("tests", set_as_current=False)
        self.app.config_from_object(settings(self.environment))

    def s(self, task: str, *args: object, **kwargs: object) -> Signature:
        """A signature of one of the tasks in `celery_tasks`."""
        return self.app.signature(f"celery_tasks.{task}", args, kwargs)

    def publish(self, numbers: Iterable[int], seconds: float = 0.02) -> None:
        """A task `work` for each number."""
        for number in numbers:
            self.s("work", number, seconds).apply_async(ignore_result=True)

    def lines(self, task: str = "work", what: str = "end") -> list[Line]:
        """What the journal says so far; a line that is half written is left for later."""
        whole, _, _ = self.journal.read_text().rpartition("\n")
        fields = [line.split() for line in whole.splitlines()]
        found = [Line(name, number, did, float(when), int(pid)) for name, number, did, when, pid in fields]
        return [line for line in found if (line.task, line.what) == (task, what)]

    def done(self) -> Counter[str]:
        """How often each number of `work` was done."""
        return Counter(line.number for line in self.lines())


class Worker:
    """`celery worker` as a process group of its own. The last `with` line of a failed test shows its log."""

    def __init__(self, site: Site, pool: str, *options: str, name: str = "w", concurrency: int = 2) -> None:
        self.log = site.directory / f"{name}.log"
        self.name = f"{name}@test"
        command = ["-m", "celery", "-A", "celery_tasks", "worker", "-P", pool, "-n", self.name, "-l", "info"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "-c", str(concurrency), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=site.directory,
                env={**os.environ, **site.environment},
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Worker:
        def ready() -> bool:
            assert self.process.poll() is None, f"the worker ended\n{self.said()}"
            return f"{self.name} ready" in self.said()

        wait_until(ready, 100, f"{self.name} is ready")
        return self

    def kill(self) -> None:
        """kill -9 of the worker and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """A warm shutdown; the exit code."""
        self.process.terminate()
        return self.process.wait(40)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            sys.stderr.write(f"--- {self.name}\n{self.said()[-4000:]}\n")
        self.kill()

    # what it costs

    def files(self) -> int:
        """Open file descriptors of the main process."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self) -> float:
        """Anonymous MiB of the main process."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no RssAnon")

    def cpu(self) -> float:
        """CPU seconds that the main process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Wire:
    """Passes `host:port` on to the same port of 127.0.0.1, until it is cut, or while it drops nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._port = port
        self._cut = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        #: attempts to connect while it was cut
        self.refused = 0
        self._listener = socket.create_server((host, port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                here.close()
                self.refused += 1
                continue
            there = socket.create_connection(("127.0.0.1", self._port))
            with self._lock:
                self._pairs.append((here, there))
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        self._flows.wait()  # ends do not come through either
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._cut.set()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def drop(self) -> None:
        """Let nothing through, without a word; what is under way comes when it is mended."""
        self._flows.clear()

    def mend(self) -> None:
        self._cut.clear()
        self._flows.set()

    def close(self) -> None:
        self._listener.close()
        self._flows.set()
        self.cut()
