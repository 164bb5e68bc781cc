"""Whole requests of somebody who is asked for no account, to a broker and a NameServer that run in this process.

Each gets an answer, or its connection is closed. No handler stumbles (refusals are RocketQErrors and ValueErrors), no
file appears outside the store's directory, nothing is kept that is out of proportion to what was sent.

Input: requests, separated by two 0xff bytes; each one is a JSON header, two line ends, and a body.
"""

import asyncio
import atexit
import itertools
import logging
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from broker_wire import config, frame

from rocketq.broker.server import Broker
from rocketq.config import NamesrvConfig
from rocketq.errors import RocketQError
from rocketq.namesrv.server import NameServer
from rocketq.remoting.connection import Connection, Counters
from rocketq.remoting.session import Session

BETWEEN = b"\xff\xff"
#: Requests after which both are started anew, in an empty directory.
LIFE = 3000


class _Transport:
    """Takes what is written, and counts it."""

    def __init__(self) -> None:
        self.written = 0
        self.closing = False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", 5000 if name == "peername" else 10911)

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += sum(len(piece) for piece in pieces)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Stumbles(logging.Handler):
    """Keeps what a handler raised that is no refusal."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, (RocketQError, ValueError)):
            self.found.append(error)


class Servers:
    """A broker and a NameServer in one new directory."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.outside = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-"))
        self.root = self.outside / "one" / "two" / "store"
        self.root.mkdir(parents=True)
        self.requests = 0
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.broker = Broker(config(self.root, mapped_file_size_commit_log=1 << 20, timer_wheel_enable=False))
        self.namesrv = NameServer(
            NamesrvConfig(bind_address="127.0.0.1", listen_port=0, kv_config_path=str(self.root / "kv.json"))
        )
        await self.broker.start()
        await self.namesrv.start()

    def run(self, requests: list[bytes]) -> None:
        self.requests += len(requests)
        self.loop.run_until_complete(self._run(requests))

    async def _run(self, requests: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        for service in (self.broker, self.namesrv._server._service):
            transport = _Transport()
            connection = Connection(service, loop, Session(loop.time), Counters(), idle_timeout=120, throttle=True)
            connection.connection_made(transport)  # type: ignore[arg-type]
            for request in requests:
                header, _, body = request.partition(b"\n\n")
                connection.data_received(frame(header, body))
                for _ in range(4):
                    await asyncio.sleep(0)
            for task in list(connection._tasks):
                task.cancel()
            connection.connection_lost(None)
            await asyncio.sleep(0)
            assert transport.written < 32 << 20

    def check(self) -> None:
        for directory, name in ((self.outside, "one"), (self.outside / "one", "two"), (self.root.parent, "store")):
            assert [path.name for path in directory.iterdir()] == [name], f"files outside of {self.root}"

    def end(self) -> None:
        async def stop() -> None:
            await self.broker.stop()
            await self.namesrv.stop()

        self.loop.run_until_complete(stop())
        self.loop.close()
        shutil.rmtree(self.outside)


_servers: list[Servers] = []
_stumbles = _Stumbles()  # and nobody prints what strangers cause


def end() -> None:
    """Stop what runs."""
    while _servers:
        _servers.pop().end()


@atexit.register
def _remove() -> None:  # the threads that a stop needs are gone by now
    for servers in _servers:
        shutil.rmtree(servers.outside, ignore_errors=True)


def run_one(data: bytes) -> None:
    if not _servers or _servers[0].requests > LIFE:
        end()
        remoting = logging.getLogger("rocketq.remoting")
        remoting.addHandler(_stumbles)
        for logger in (remoting, logging.getLogger("rocketq.broker"), logging.getLogger("rocketq.namesrv")):
            logger.propagate = False
        _servers.append(Servers())
    _stumbles.found.clear()
    servers = _servers[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    servers.run(data.split(BETWEEN)[:8])
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 128 << 10, f"{taken} KiB of memory for {len(data)} bytes"
    servers.check()
    if _stumbles.found:
        raise _stumbles.found[0]


def seeds() -> Iterator[bytes]:
    from golden_frames import recorded

    def requests() -> Iterator[bytes]:
        for one in recorded():
            if one.side == "request" and one.kind == 0 and len(one.body) < 4096:
                yield one.header + b"\n\n" + one.body

    alone = list(dict.fromkeys(requests()))
    yield from alone
    yield from (BETWEEN.join(pair) for pair in itertools.pairwise(alone))
