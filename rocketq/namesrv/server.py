"""The NameServer as a daemon's part: listens, and looks for brokers that have gone silent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from rocketq.config import NamesrvConfig
from rocketq.namesrv.handlers import Requests
from rocketq.namesrv.kv import KVConfig
from rocketq.namesrv.table import RouteTable
from rocketq.remoting.server import Connection, Server
from rocketq.store.files import OsFiles

log = logging.getLogger("rocketq.namesrv")


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class NameServer:
    """One NameServer. `port` is the one it listens on after :meth:`start`."""

    def __init__(self, config: NamesrvConfig) -> None:
        self._config = config
        self.table = RouteTable(delete_unmentioned=config.delete_topic_with_broker_registration)
        self._kv = KVConfig(Path(config.kv_config_path), OsFiles())
        self._server = Server(
            Requests(config, self.table, self._kv, _monotonic_ms),
            host=config.bind_address,
            port=config.listen_port,
            tls=config.tls(),
            idle_timeout=config.server_channel_max_idle_time_seconds,
        )
        self._scan: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        """Load the key-value configuration and listen. Raises StoreError, or OSError when the port is taken."""
        self._kv.load()
        await self._server.start()
        self._scan = asyncio.create_task(self._scan_brokers())

    async def stop(self) -> None:
        """Close every connection; brokers and clients turn to the other NameServers."""
        if self._scan is not None:
            self._scan.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._scan
        await self._server.stop()

    async def _scan_brokers(self) -> None:
        while True:
            begun = _monotonic_ms()
            interval = self._config.scan_not_active_broker_interval
            await asyncio.sleep(interval / 1000)
            now = _monotonic_ms()
            # a NameServer that was busy or stopped did not listen: its brokers are not to pay for it
            self.table.excuse(now, now - begun - interval)
            for owner in self.table.expire(now):
                if isinstance(owner, Connection):
                    owner.close()
