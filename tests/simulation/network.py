"""Connections between simulated processes: bytes arrive in order, late, in pieces, and at times not at all.

TCP neither loses nor doubles a message. What a bad network does to it is what happens here: bytes come late (also by a
retransmission), a connection ends with a reset that both hear of, one of them, or nobody until he writes, and what was
on its way then arrives up to some byte. Clients that ask again after that are what doubles messages.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from process import Process
    from world import World

#: Bytes on their way from which on a writer is told to pause.
_HIGH = 64 * 1024


class Listener:
    """What `create_server` returns."""

    def __init__(self, network: Network, process: Process, factory: Any, port: int) -> None:
        self.network, self.process, self.factory, self.port = network, process, factory, port
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return self.process.host, self.port

    async def start_serving(self) -> None:
        self.network.listeners[self.process.host, self.port] = self

    def close(self) -> None:
        if self.network.listeners.get((self.process.host, self.port)) is self:
            del self.network.listeners[self.process.host, self.port]


class Network:
    """All connections. `base` and `jitter`: seconds that bytes take."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.base = self.chance.choice((0.0001, 0.0005, 0.005))
        self.jitter = self.chance.choice((0.0001, 0.002, 0.02))
        self.loss = self.chance.choice((0.0, 0.0, 0.002, 0.02))
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.open: dict[Transport, None] = {}
        #: between which hosts nothing passes, and until when
        self.stalled: dict[frozenset[str], float] = {}
        self.dark: set[str] = set()  # hosts without power
        self.sum = 0
        self._ports = 40_000

    def latency(self, a: str, b: str) -> float:
        chance = self.chance
        seconds = self.base + chance.random() * self.jitter
        if self.loss and chance.random() < self.loss:
            seconds += chance.uniform(0.2, 0.6)  # sent again
        until = self.stalled.get(frozenset((a, b)), 0.0)
        if until > self.world.now:
            seconds += until - self.world.now + chance.random() * 0.5
        return seconds

    def bind(self, process: Process, factory: Any, port: int) -> Listener:
        if (process.host, port) in self.listeners:
            raise OSError(98, f"Address already in use: {process.host}:{port}")
        return Listener(self, process, factory, port)

    async def connect(self, process: Process, factory: Any, host: str, port: int) -> Any:
        there = self.latency(process.host, host)
        await asyncio.sleep(there)
        if host in self.dark:
            await asyncio.sleep(60)
            raise TimeoutError(110, "Connection timed out")
        listener = self.listeners.get((host, port))
        if listener is None:
            await asyncio.sleep(self.latency(process.host, host))
            raise ConnectionRefusedError(111, f"Connect call failed ('{host}', {port})")
        self._ports += 1
        ours = Transport(self, process, (process.host, self._ports), (host, port))
        theirs = Transport(self, listener.process, (host, port), (process.host, self._ports))
        ours.peer, theirs.peer = theirs, ours
        theirs.loop.call_at(self.world.now, theirs.accepted, listener.factory)
        back = self.latency(process.host, host)
        ours.arrives = self.world.now + back
        theirs.arrives = self.world.now + there
        await asyncio.sleep(back)
        if ours.ended:  # cut before it was made: a protocol that is given it now would never hear of that
            raise ConnectionResetError(104, "Connection reset by peer")
        protocol = factory()
        ours.begin(protocol)
        if ours.broken:  # the other side is gone already
            ours.loop.call_soon(ours.lost, ConnectionResetError(104, "Connection reset by peer"))
        return ours, protocol

    def close_host(self, process: Process, silent: bool) -> None:
        """The process is gone. `silent`: its host as well, so nobody tells the others."""
        for key in [key for key, listener in self.listeners.items() if listener.process is process]:
            del self.listeners[key]
        for transport in process.transports:
            transport.cut(silent=silent)

    def connections(self) -> list[Transport]:
        """One end of each."""
        return [each for each in self.open if each.local[1] > 40_000]


class Transport(asyncio.Transport):
    """One end of a connection."""

    peer: Transport

    def __init__(
        self, network: Network, process: Process, local: tuple[str, int], remote: tuple[str, int]
    ) -> None:
        super().__init__()
        self.network, self.process, self.loop = network, process, process.loop
        self.local, self.remote = local, remote
        self.protocol: Any = None
        #: nothing arrives here after that
        self.deaf_from = float("inf")
        self.broken = False
        self.ended = False
        self.closing = False
        self.arrives = 0.0
        self._on_way = 0
        self._inbox: list[bytes] = []
        self._reading = True
        self._read_planned = False
        self._eof = False
        self._paused = False
        self._high = _HIGH
        self._timing_out = False
        process.transports.append(self)

    # life

    def accepted(self, factory: Any) -> None:
        if not self.broken:
            self.begin(factory())

    def begin(self, protocol: Any) -> None:
        self.protocol = protocol
        self.network.open[self] = None
        protocol.connection_made(self)
        if self._inbox or self._eof:
            self._plan_read()

    def cut(self, *, silent: bool = False) -> None:
        """End the connection somewhere on its way. `silent`: neither side is told."""
        network, now = self.network, self.network.world.now
        for end in (self, self.peer):
            if end.broken or end.ended:
                continue
            end.broken = True
            end.deaf_from = now + network.chance.random() * (network.base + network.jitter)
            if not silent:
                end.loop.call_at(
                    end.deaf_from + network.latency(end.local[0], end.remote[0]),
                    end.lost,
                    ConnectionResetError(104, "Connection reset by peer"),
                )

    def lost(self, error: Exception | None) -> None:
        if self.ended:
            return
        self.ended = self.closing = self.broken = True
        self.network.open.pop(self, None)
        if self.protocol is not None:
            self.protocol.connection_lost(error)

    # what the protocol calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self.local, "peername": self.remote}.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._on_way

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def write(self, data: Any) -> None:
        if self.closing or not self.process.alive or not data:
            return
        data = bytes(data)
        network = self.network
        network.sum = zlib.crc32(data, network.sum)
        if self.broken:
            self._nobody_there()
            return
        chance = network.chance
        if len(data) > 1 and chance.random() < 0.1:
            at = chance.randrange(1, len(data))
            self._send(data[:at])
            self._send(data[at:])
        else:
            self._send(data)
        if self._on_way > self._high and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        if not self.broken and self.process.alive:
            self._plan(self.peer.end_of_stream)
        self.loop.call_at(self.network.world.now, self.lost, None)

    def abort(self) -> None:
        if self.ended:
            return
        self.closing = True
        if not self.broken and self.process.alive:
            peer = self.peer
            peer.loop.call_at(
                self.network.world.now + self.network.latency(self.local[0], self.remote[0]),
                peer.lost,
                ConnectionResetError(104, "Connection reset by peer"),
            )
            peer.broken = True
        self.broken = True
        self.loop.call_at(self.network.world.now, self.lost, None)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._inbox or self._eof:
            self._plan_read()

    # the way

    def _nobody_there(self) -> None:
        """Who writes into a dead connection hears of it: from the host that is up again, or from nobody in time."""
        if self._timing_out:
            return
        self._timing_out = True
        chance = self.network.chance
        seconds = chance.uniform(0.001, 0.1) if chance.random() < 0.5 else chance.uniform(3.0, 15.0)
        self.loop.call_later(seconds, self.lost, TimeoutError(110, "Connection timed out"))

    def _plan(self, call: Any, *args: Any) -> None:
        peer, network = self.peer, self.network
        # timers of the same moment have no order
        self.arrives = max(self.arrives + 1e-9, network.world.now + network.latency(self.local[0], self.remote[0]))
        peer.loop.call_at(self.arrives, call, *args)

    def _send(self, data: bytes) -> None:
        self._on_way += len(data)
        self._plan(self.peer.received, data)

    def received(self, data: bytes) -> None:
        if self.ended:
            return
        if self.network.world.now > self.deaf_from:
            whole, self.deaf_from = self.deaf_from >= 0, -1.0
            data = (
                data[: self.network.chance.randrange(len(data))] if whole else b""
            )  # a part of the first, no more
            if not data:
                return
        self._inbox.append(data)
        self._plan_read()

    def end_of_stream(self) -> None:
        if not self.ended and self.network.world.now <= self.deaf_from:
            self._eof = True
            self._plan_read()

    def _plan_read(self) -> None:
        if not self._read_planned and self.protocol is not None:
            self._read_planned = True
            self.loop.call_soon(self._read)

    def _read(self) -> None:
        self._read_planned = False
        if self.ended or not self._reading:
            return
        if self._inbox:
            data = b"".join(self._inbox)
            self._inbox.clear()
            self.peer._taken(len(data))
            self.protocol.data_received(data)
        if self._eof and not self.ended and not self._inbox and self._reading:
            self.protocol.eof_received()
            self.close()

    def _taken(self, count: int) -> None:
        self._on_way -= count
        if self._paused and self._on_way <= self._high // 4 and not self.ended and self.process.alive:
            self._paused = False
            self.loop.call_at(self.network.world.now, self._resume)

    def _resume(self) -> None:
        if not self.ended:
            self.protocol.resume_writing()
