"""A NameServer, masters and slaves in one event loop, for the tests of replication."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from broker_wire import Wire, config

from rocketq.broker.server import Broker
from rocketq.config import NamesrvConfig
from rocketq.namesrv.server import NameServer
from rocketq.store.files import Files


async def until(condition: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
    """Wait for something that is not told."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        await asyncio.sleep(0.01)
    return value


class Cluster:
    """Brokers `broker-a` under one NameServer. `start` takes what differs: role, id, directory, disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.namesrv: NameServer | None = None
        self.brokers: list[Broker] = []
        self.wires: list[Wire] = []

    async def start(
        self,
        name: str,
        clock_ms: Callable[[], int] | None = None,
        files: Files | None = None,
        **settings: Any,
    ) -> tuple[Broker, Wire]:
        assert self.namesrv is not None
        defaults = {
            "namesrv_addr": f"127.0.0.1:{self.namesrv.port}",
            "ha_send_heartbeat_interval": 200,
            "register_name_server_period": 500,
            "mapped_file_size_commit_log": 1 << 20,
        }
        clock = {"clock_ms": clock_ms} if clock_ms else {}
        broker = Broker(config(self.root / name, **(defaults | settings)), files=files, **clock)
        await broker.start()
        self.brokers.append(broker)
        wire = await Wire.connect(broker.port)
        self.wires.append(wire)
        return broker, wire

    async def master(self, name: str = "master", **settings: Any) -> tuple[Broker, Wire]:
        return await self.start(name, **settings)

    async def slave(self, name: str = "slave", number: int = 1, **settings: Any) -> tuple[Broker, Wire]:
        return await self.start(
            name, **({"broker_role": "SLAVE", "broker_id": number, "slave_read_enable": True} | settings)
        )

    async def stop(self, broker: Broker) -> None:
        self.brokers.remove(broker)
        await broker.stop()


@contextlib.asynccontextmanager
async def cluster(root: Path) -> AsyncIterator[Cluster]:
    made = Cluster(root)
    made.namesrv = NameServer(
        NamesrvConfig(listen_port=0, bind_address="127.0.0.1", kv_config_path=str(root / "kv.json"))
    )
    await made.namesrv.start()
    try:
        yield made
    finally:
        for wire in made.wires:
            await wire.close()
        for broker in made.brokers:
            await broker.stop()
        await made.namesrv.stop()


async def caught_up(master: Broker, slave: Broker) -> None:
    """Return when the slave has all that the master has, and the master knows."""

    def equal() -> bool:
        return slave.store.readable == master.store.written_offset and any(
            one.acked == master.store.written_offset for one in master.replication.master.slaves
        )

    await until(equal, "the slave has everything")


def log_bytes(broker: Broker) -> bytes:
    """The whole log from where it begins."""
    store, data = broker.store, b""
    while piece := store.raw(store.min_physical_offset + len(data), 1 << 20):
        data += piece
    return data


class RawSlave:
    """A slave made of a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, broker: Broker) -> RawSlave:
        return cls(*await asyncio.open_connection("127.0.0.1", broker.replication.port))

    def report(self, offset: int) -> None:
        self.writer.write(struct.pack(">q", offset))

    async def piece(self, timeout: float = 20.0) -> tuple[int, bytes]:
        async def read() -> tuple[int, bytes]:
            offset, size = struct.unpack(">qi", await self.reader.readexactly(12))
            return offset, await self.reader.readexactly(size)

        return await asyncio.wait_for(read(), timeout)

    async def data(self) -> tuple[int, bytes]:
        """The next piece that is no mere sign of life; how many of these are between depends on the machine."""
        while not (piece := await self.piece())[1]:
            pass
        return piece
