"""A service to talk to, both event loops, and certificates made on the spot."""

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Server
from rocketq.remoting.tls import TlsConfig

ECHO, RAISES, LATER, SILENT, BIG, PIECES, CALLS_BACK, CLOSES = range(1000, 1008)


class EchoService:
    """Answers by code, and notes what happened."""

    def __init__(self) -> None:
        self.requests: list[Command] = []
        self.batches: list[int] = []
        self.lost: list[Connection] = []
        self.connections: list[Connection] = []
        self.answers: list[Command] = []
        self.big = 100_000
        self._since_batch = 0

    def handle(self, connection: Connection, request: Command) -> Any:
        self.requests.append(request)
        self._since_batch += 1
        if connection not in self.connections:
            self.connections.append(connection)
        match request.code:
            case 1001:
                raise KeyError("broken")
            case 1002:
                return self._later(request)
            case 1003:
                return None
            case 1004:
                return encode_response(request, 0, body=bytes(self.big))
            case 1005:
                whole = encode_response(request, 0, body=request.body)
                return [whole[:10], memoryview(whole)[10:]]
            case 1006:
                return self._call_back(connection, request)
            case 1007:
                connection.close()
        return encode_response(request, 0, None, request.ext, request.body)

    async def _later(self, request: Command) -> bytes:
        await asyncio.sleep(0.01)
        return encode_response(request, 0, "later")

    async def _call_back(self, connection: Connection, request: Command) -> bytes:
        answer = await connection.call(39, {"msgId": "m"}, b"question", timeout=20)
        self.answers.append(answer)
        return encode_response(request, 0, answer.remark, body=answer.body)

    def end_batch(self, connection: Connection) -> None:
        self.batches.append(self._since_batch)
        self._since_batch = 0

    def connection_lost(self, connection: Connection) -> None:
        self.lost.append(connection)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition; a test that waits in vain fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine to its end, on either loop."""

    def run_it(main: Any) -> Any:
        if request.param == "asyncio":
            return asyncio.run(main)
        uvloop = pytest.importorskip("uvloop")
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(asyncio.wait_for(main, 60))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run_it


@contextmanager
def serving(service: EchoService, **options: Any) -> Iterator[Server]:
    """A server on a loop in a thread of its own, for tests that block."""
    ready = threading.Event()
    stop: list[Callable[[], None]] = []
    server = Server(service, **options)

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
        await server.start()
        ready.set()
        await stopping.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield server
    finally:
        stop[0]()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem, and server and client certificates that it signed (for 127.0.0.1 and localhost)."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")
    where = tmp_path_factory.mktemp("certificates")
    (where / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True, timeout=60)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return where


@pytest.fixture
def server_tls(certificates: Path) -> TlsConfig:
    return TlsConfig(cert=str(certificates / "server.pem"), key=str(certificates / "server.key"))
