"""Runs daemons: NameServer and broker in one process, one of them, or a NameServer over several broker processes.

A part has `start`, `stop` and its words of the ready line; :func:`run` starts the parts in order, prints one line
when all serve, and stops them in reverse order at SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from rocketq.config import BrokerConfig, NamesrvConfig
from rocketq.errors import RocketQError

log = logging.getLogger("rocketq.server")

#: s before a broker process that died is started again; doubles up to the last value
RESTART = (1.0, 30.0)
#: a broker process that ran for this long starts again with the shortest pause
HEALTHY = 60.0
#: file descriptors that a daemon asks for at most
MOST_FILES = 1 << 20
_CANNOT_LISTEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
#: s that a broker process has for its graceful stop
STOP = 30.0


class Part(Protocol):
    """Something that serves until it is stopped."""

    async def start(self) -> None:
        """Serve. When it raises, nothing is left running."""
        ...

    async def stop(self) -> None: ...

    def describe(self) -> str:
        """Its words of the ready line, as `broker=127.0.0.1:10911`; valid after `start`."""
        ...


class NameServerPart:
    def __init__(self, config: NamesrvConfig) -> None:
        from rocketq.namesrv.server import NameServer

        self._config = config
        self._server = NameServer(config)

    @property
    def address(self) -> str:
        return f"{_reachable(self._config.bind_address)}:{self._server.port}"

    async def start(self) -> None:
        config = self._config
        with _listening(config.bind_address, config.listen_port):
            await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    def describe(self) -> str:
        return f"namesrv={self.address}"


class BrokerPart:
    """A broker in this process. `namesrv` is asked for the NameServer's address when it starts, if given."""

    def __init__(self, config: BrokerConfig, namesrv: Callable[[], str] | None = None) -> None:
        from rocketq.broker.server import Broker

        self._kind = Broker
        self._config = config
        self._namesrv = namesrv
        self._broker: Broker | None = None

    async def start(self) -> None:
        config = self._config
        if self._namesrv is not None:
            config = self._config = replace(config, namesrv_addr=self._namesrv())
        self._broker = self._kind(config)
        with _listening(config.bind_address, config.listen_port):
            await self._broker.start()

    async def stop(self) -> None:
        if self._broker is not None:
            await self._broker.stop()

    def describe(self) -> str:
        port = 0 if self._broker is None else self._broker.port
        return f"broker={self._config.host}:{port}"


class BrokerProcesses:
    """Broker processes under this one: started together, restarted when one dies, stopped together.

    `command` gives the command line of broker number i on a port (0: a free one; a restart gets the port that it
    had). Their stdin is a pipe that nobody writes to: it ends when this process does, and then so do they.
    """

    def __init__(
        self, names: Sequence[str], command: Callable[[int, int], list[str]], ports: Sequence[int]
    ) -> None:
        self._names = names
        self._command = command
        self._ports = list(ports)
        self._addresses = [""] * len(names)
        self._processes: list[asyncio.subprocess.Process | None] = [None] * len(names)
        self._tasks: list[asyncio.Task[None]] = []
        self._lifeline: tuple[int, int] | None = None

    async def start(self) -> None:
        self._lifeline = os.pipe()
        try:
            await asyncio.gather(*(self._spawn(i) for i in range(len(self._names))))
        except BaseException:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._supervise(i)) for i in range(len(self._names))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(i) for i in range(len(self._names))))
        if self._lifeline is not None:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None

    def describe(self) -> str:
        return "broker=" + ",".join(self._addresses)

    async def _spawn(self, index: int) -> None:
        """Start one process and wait until it serves. Raises RocketQError when it ends before."""
        assert self._lifeline is not None
        process = await asyncio.create_subprocess_exec(
            *self._command(index, self._ports[index]),
            stdin=self._lifeline[0],
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us only; we stop them in order
        )
        self._processes[index] = process
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "broker" not in words:
            raise RocketQError(f"{self._names[index]} did not start (exit code {await process.wait()})")
        self._addresses[index] = words["broker"]
        self._ports[index] = int(words["broker"].rpartition(":")[2])

    async def _supervise(self, index: int) -> None:
        name = self._names[index]
        pause, longest = RESTART
        while True:
            process = self._processes[index]
            assert process is not None
            started = time.monotonic()
            code = await process.wait()
            if time.monotonic() - started > HEALTHY:
                pause = RESTART[0]
            log.error(
                "%s (pid %d) ended with exit code %d, it is started again in %g s", name, process.pid, code, pause
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
            try:
                await self._spawn(index)
                log.warning("%s runs again at %s", name, self._addresses[index])
            except (RocketQError, OSError) as error:  # OSError: no process could be made
                log.error("%s", error)

    async def _end(self, index: int) -> None:
        process = self._processes[index]
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP)
        except asyncio.TimeoutError:
            log.error("%s (pid %d) does not stop, it is killed", self._names[index], process.pid)
            process.kill()
            await process.wait()


class _Listening:
    """Says which port it was that could not be listened on."""

    def __init__(self, host: str, port: int) -> None:
        self._where = f"{host}:{port}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in _CANNOT_LISTEN:
                raise RocketQError(f"cannot listen on {self._where}: {os.strerror(error.errno)}") from error
            raise RocketQError(f"cannot serve on {self._where}: {error}") from error


_listening = _Listening


def _reachable(host: str) -> str:
    """An address of this host that reaches a server listening on `host`."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host


async def _serve(name: str, parts: Sequence[Part], supervised: bool, as_json: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # a second one ends the process at once
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if supervised:
        loop.add_reader(sys.stdin.fileno(), _watch_parent, loop, stop)
    async with contextlib.AsyncExitStack() as running:  # stops in reverse order, also after a stop that failed
        for part in parts:
            if not await _started(part, stopped):
                return
            running.push_async_callback(part.stop)
        words = " ".join([*(part.describe() for part in parts), f"pid={os.getpid()}"])
        if as_json:
            said = dict(word.split("=", 1) for word in words.split())
            line = msgspec.json.encode({"ready": name, **said, "pid": os.getpid()}).decode()
        else:
            line = f"rocketq {name} ready {words}"
        gc.collect()
        gc.freeze()  # what is there by now stays: looking through it again would stop everybody for 10 ms and more
        print(line, flush=True)  # noqa: T201
        await stopped.wait()


async def _started(part: Part, stopped: asyncio.Event) -> bool:
    """Start a part; False when it was told to stop meanwhile."""
    start = asyncio.ensure_future(part.start())
    stop = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
    if start.done():
        start.result()
        return True
    start.cancel()
    await asyncio.wait((start,))
    return False


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        stop()


def run(
    name: str, parts: Callable[[], Sequence[Part]], *, supervised: bool = False, as_json: bool = False
) -> None:
    """Run the parts until SIGTERM or SIGINT; `supervised`: also until stdin closes. `as_json`: so is the ready line.

    Raises RocketQError when a part does not start; those that did are stopped then.
    """

    async def main() -> None:
        await _serve(name, parts(), supervised, as_json)

    _run_loop(main())


def _raise_file_limit() -> None:
    """Take all file descriptors that this process may have, as Java does: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError) as error:  # not every system has what it promises
        log.info("%d files can be open, not %d: %s", soft, most, error)


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    _raise_file_limit()
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def run_namesrv(config: NamesrvConfig, *, as_json: bool = False) -> None:
    """`rocketq namesrv`."""
    run("namesrv", lambda: [NameServerPart(config)], as_json=as_json)


def run_broker(config: BrokerConfig, *, supervised: bool = False, as_json: bool = False) -> None:
    """`rocketq broker`."""
    run("broker", lambda: [BrokerPart(config)], supervised=supervised, as_json=as_json)


def run_server(namesrv: NamesrvConfig, broker: BrokerConfig, *, as_json: bool = False) -> None:
    """`rocketq server`: both in this process."""

    def parts() -> list[Part]:
        first = NameServerPart(namesrv)
        return [first, BrokerPart(broker, lambda: first.address)]

    run("server", parts, as_json=as_json)


def run_server_processes(
    namesrv: NamesrvConfig,
    names: Sequence[str],
    command: Callable[[int, int, str], list[str]],
    ports: Sequence[int],
    *,
    as_json: bool = False,
) -> None:
    """`rocketq server --brokers N`: the NameServer here, every broker in a process.

    `command` gives the command line of broker i on a port with a NameServer's address.
    """

    def parts() -> list[Part]:
        first = NameServerPart(namesrv)
        return [first, BrokerProcesses(names, lambda index, port: command(index, port, first.address), ports)]

    run("server", parts, as_json=as_json)
