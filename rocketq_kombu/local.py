"""`rocketq:///directory`: a server of this machine, started by the first process that names the directory, shared with
all others that do, and stopped when the last is gone, however it went.

In the directory's ``.shared``:

===========  ==========================================================================================================
``lock``     locked while somebody joins or the server decides to leave
``users``    a FIFO: every user has it open for writing, the server reads from it, and reads the end when there are no
             users any more; it cannot be opened for writing when there is no server
``serving``  locked by the server as long as it lives, so that the next one waits for its end
``address``  of its NameServer and Broker: after a crash it comes back on the same ports
===========  ==========================================================================================================
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rocketq.embedded import READY
from rocketq.errors import ConfigError, RocketQError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Seconds that an earlier server may take to stop.
_ENDS = 60.0


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LocalServer:
    """One process's use of the server of a data directory. Raises ConfigError where there are no FIFOs (Windows)."""

    def __init__(self, data: str) -> None:
        if fcntl is None:
            raise ConfigError(
                f"rocketq://{data}: this system has no FIFOs; start rocketq server and name its address"
            )
        self.data = Path(data)
        self._shared = self.data / ".shared"
        self._user: int | None = None  # our end of the FIFO

    def namesrv(self) -> str:
        """The NameServer's address; starts the server unless it runs. Raises RocketQError when that fails."""
        try:
            self._shared.mkdir(parents=True, exist_ok=True)
            with _locked(self._shared):
                user = self._open()
                if user is None:
                    user = self._start()
                self.leave()
                self._user = user
                return (self._shared / "address").read_text().split()[0]
        except OSError as error:
            raise RocketQError(f"the server of {self.data} cannot be used: {error}") from None

    def leave(self) -> None:
        """The server is not needed here any more."""
        if self._user is not None:
            os.close(self._user)
            self._user = None

    def _open(self) -> int | None:
        """Our end of the FIFO; None when no server reads it."""
        fifo = self._shared / "users"
        if not fifo.exists():
            os.mkfifo(fifo, 0o600)
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO
            return None

    def _start(self) -> int:
        serving = open(self._shared / "serving", "w")  # noqa: SIM115 the server inherits its lock
        users = os.open(self._shared / "users", os.O_RDONLY | os.O_NONBLOCK)
        try:
            deadline = time.monotonic() + _ENDS
            while not self._take(serving.fileno()):
                if time.monotonic() > deadline:
                    raise RocketQError(f"an earlier server of {self.data} has not ended within {_ENDS:g} s")
                time.sleep(0.02)
            user = os.open(self._shared / "users", os.O_WRONLY | os.O_NONBLOCK)
            try:
                self._launch(users, serving.fileno())
            except BaseException:
                os.close(user)
                raise
            return user
        finally:
            os.close(users)
            serving.close()

    @staticmethod
    def _take(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _launch(self, users: int, serving: int) -> None:
        """Start the server and write down where it is. It takes the ports of the last one, if they are free."""
        address = self._shared / "address"
        known = address.read_text().split() if address.exists() else []
        ports = [text.rpartition(":")[2] for text in known] if len(known) == 2 else ["0", "0"]
        said = self._run(users, serving, ports)
        if not said.startswith(READY) and ports != ["0", "0"]:
            said = self._run(users, serving, ["0", "0"])
        if not said.startswith(READY):
            raise RocketQError(f"the server of {self.data} did not start; {self._shared / 'log'} says why")
        found = dict(word.split("=", 1) for word in said[len(READY) :].split())
        address.write_text(f"{found['namesrv']} {found['broker']}\n")

    def _run(self, users: int, serving: int, ports: list[str]) -> str:
        """What the new process says first; empty when it ended."""
        options = ["--data", str(self.data), "--namesrv-port", ports[0], "--broker-port", ports[1]]
        with open(self._shared / "log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rocketq_kombu.local", str(self._shared), "server", *options],
                stdin=users,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(serving,),
                start_new_session=True,  # it outlives us and our Ctrl-C
            )
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        process.stdout.close()
        if not line:
            process.wait()
        return line


def _end_without_users(shared: Path) -> None:
    """In the server: stop when nobody has the FIFO, which is our stdin, open for writing."""
    os.set_blocking(0, True)
    while True:
        while os.read(0, 4096):
            pass
        with _locked(shared):  # nobody joins now
            os.set_blocking(0, False)
            with contextlib.suppress(BlockingIOError):  # somebody did before
                if not os.read(0, 4096):
                    os.close(0)
                    break
            os.set_blocking(0, True)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from rocketq.cli.main import main

    threading.Thread(target=_end_without_users, args=(Path(sys.argv.pop(1)),), daemon=True).start()
    main(prog_name="rocketq")
