"""Gives the CommitLog to slaves: the master's side of replication.

Each slave has a connection of its own, on which the log flows from where the slave ends, as soon as consumers may see
it: with SYNC_FLUSH that is when it is on disk, so that no power failure leaves a slave ahead of its master. A slave
that does not read holds up nobody: little more than `_BUFFERED` bytes are waiting for it in memory.

A slave whose log does not continue ours is told nothing but signs of life, and is not in sync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from rocketq.broker.hastream import HEAD, HaStreamError, Reports
from rocketq.config import BrokerConfig
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Bytes that may wait in memory for a slave to read them, and bytes that one slave gets before others have their turn.
_BUFFERED = 1 << 20
_PER_TURN = 2 << 20


class _Slave(asyncio.Protocol):
    """One connection of a slave. `acked`: end of what it has; -1 before its first report."""

    def __init__(self, master: HaMaster) -> None:
        self._master = master
        self._reports = Reports()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._soon = False
        self.address = "?"
        self.acked = -1
        self.next = 0
        #: why it cannot follow
        self.problem = ""
        self.read_at = self.written_at = time.monotonic()
        self.acked_ms = 0
        self._sent = 0
        self._measured_at = self.read_at
        #: bytes a second, over about one second
        self.rate = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._transport = transport
        transport.set_write_buffer_limits(high=_BUFFERED)
        host, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
        self.address = f"{host}:{port}"

    def data_received(self, data: bytes) -> None:
        self.read_at = time.monotonic()
        try:
            report = self._reports.feed(data)
        except HaStreamError as error:
            log.warning("the connection of slave %s is closed: %s", self.address, error)
            self.close()
            return
        if report is None:
            return
        if self.acked < 0:
            self._begin(report)
        self.acked = report
        self.acked_ms = int(time.time() * 1000)
        if not self.problem:
            self._master.on_progress()
            self.pump()

    def _begin(self, report: int) -> None:
        """The first report says where the slave wants to go on."""
        store = self._master.store
        self.next = report or store.last_file
        if report > store.readable:
            self.problem = (
                f"it has {report} bytes, and this master only {store.readable}: it followed another master, or this "
                "one lost its end. Remove the slave's store, it is copied again then"
            )
        elif report and report < store.min_physical_offset:
            self.problem = (
                f"it has {report} bytes, and this master has nothing before {store.min_physical_offset} any more. "
                "Remove the slave's store, it is copied again then"
            )
        if self.problem:
            log.error("slave %s cannot follow: %s", self.address, self.problem)
        else:
            log.info("slave %s follows from %d on", self.address, self.next)
        self._master.slaves.append(self)

    def pump(self) -> None:
        """Send what there is, as far as the slave reads it."""
        transport, store = self._transport, self._master.store
        if transport is None or self.acked < 0 or self.problem or self._paused:
            return
        limit, batch = self.next + _PER_TURN, self._master.batch_size
        while self.next < store.readable and not self._paused:
            if self.next >= limit:
                self.pump_soon()
                break
            data = store.raw(self.next, batch)
            if data is None:
                self.problem = (
                    f"the CommitLog has nothing at {self.next} any more: the slave's store has to be removed"
                )
                log.error("slave %s cannot follow: %s", self.address, self.problem)
                break
            transport.write(HEAD.pack(self.next, len(data)) + data)
            self.next += len(data)
            self._sent += len(data)
            self.written_at = time.monotonic()

    def pump_soon(self) -> None:
        """Send when the present turn of the loop is over."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._soon = False
        self.pump()

    def look(self, now: float, heartbeat: float, silence: float) -> None:
        """Regular work: signs of life, and an end to connections that are silent."""
        if now - self._measured_at >= 1:
            self.rate = int(self._sent / (now - self._measured_at))
            self._sent, self._measured_at = 0, now
        if now - self.read_at > silence:
            log.warning("slave %s said nothing for %d s, its connection is closed", self.address, silence)
            self.close()
        elif self._transport is not None and self.acked >= 0 and now - self.written_at >= heartbeat:
            self._transport.write(HEAD.pack(self.next, 0))
            self.written_at = now

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.pump_soon()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._master.lost(self)


class HaMaster:
    """Listens for slaves and serves them. `slaves`: those that have reported.

    `on_progress` is called when what slaves have, or which slaves there are, has changed.
    """

    def __init__(self, config: BrokerConfig, store: MessageStore, on_progress: Callable[[], None]) -> None:
        self._config = config
        self.store = store
        self.on_progress = on_progress
        self.batch_size = config.ha_transfer_batch_size
        self.slaves: list[_Slave] = []
        self._connections: set[_Slave] = set()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.port = 0

    async def start(self, port: int) -> None:
        """Listen. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, self._config.bind_address, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for slave in list(self._connections):
            slave.close()

    def _accept(self) -> asyncio.Protocol:
        slave = _Slave(self)
        self._connections.add(slave)
        if self._looking is None:
            self._look()
        return slave

    def _look(self) -> None:
        """Look after all connections, as long as there are any."""
        config = self._config
        heartbeat, silence = config.ha_send_heartbeat_interval / 1000, config.ha_housekeeping_interval / 1000
        now = time.monotonic()
        for slave in list(self._connections):
            slave.look(now, heartbeat, silence)
        self._looking = None
        if self._connections:
            self._looking = asyncio.get_running_loop().call_later(min(1.0, heartbeat / 2), self._look)

    def lost(self, slave: _Slave) -> None:
        self._connections.discard(slave)
        if slave in self.slaves:
            self.slaves.remove(slave)
            log.warning("slave %s is gone", slave.address)
            self.on_progress()

    # the log grows, slaves follow

    def arrived(self) -> None:
        """There is more to send."""
        for slave in self.slaves:
            slave.pump_soon()

    def in_sync(self, slave: _Slave) -> bool:
        """Whether a slave follows, and not too far behind."""
        gap = self.store.written_offset - slave.acked
        return not slave.problem and gap < self._config.ha_max_gap_not_in_sync

    @property
    def replicas(self) -> int:
        """Brokers that are in sync, the master counts."""
        return 1 + sum(1 for slave in self.slaves if self.in_sync(slave))

    def replicated(self, copies: int) -> int:
        """End of what so many brokers have, the master counts."""
        if copies <= 1:
            return self.store.written_offset
        acks = sorted((slave.acked for slave in self.slaves if not slave.problem), reverse=True)
        return acks[copies - 2] if len(acks) > copies - 2 else 0

    # what operators see

    def status(self) -> dict[str, Any]:
        """The body of GET_BROKER_HA_STATUS (`HARuntimeInfo`); the last two fields of a slave are ours."""
        end = self.store.written_offset
        slaves = [
            {
                "addr": slave.address,
                "diff": end - slave.acked,
                "inSync": self.in_sync(slave),
                "slaveAckOffset": slave.acked,
                "transferFromWhere": slave.next,
                "transferredByteInSecond": slave.rate,
                "lastAckTimestamp": slave.acked_ms,
                "problem": slave.problem,
            }
            for slave in self.slaves
        ]
        nothing = ("lastReadTimestamp", "lastWriteTimestamp", "masterFlushOffset", "maxOffset")
        return {
            "haClientRuntimeInfo": dict.fromkeys((*nothing, "transferredByteInSecond"), 0),
            "haConnectionInfo": slaves,
            "inSyncSlaveNums": self.replicas - 1,
            "master": True,
            "masterCommitLogMaxOffset": end,
        }
