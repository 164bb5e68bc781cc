"""Copies the master's CommitLog: the slave's side of replication.

One connection at a time to the master. The slave says where its log ends and writes down what comes; when the
connection ends it tries again. With SYNC_FLUSH it reports only what is on its disk. What does not continue the log is
never written: that is an error for people, see `docs/replication.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from rocketq.broker.hastream import REPORT, HaStreamError, Pieces
from rocketq.config import BrokerConfig
from rocketq.errors import StoreError
from rocketq.remoting.session import split_address
from rocketq.remoting.waiting import cancel_all, wait_result
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Seconds that connecting may take, and seconds to the next attempt: after a lost connection, after an error.
_CONNECT = 3.0
_AGAIN, _AFTER_ERROR = 1.0, 5.0
_READ = 256 << 10
#: Seconds between two looks whether the disk has made the next file.
_BREATH = 0.05


class HaSlave:
    """Follows a master. `connected`: it does just now. `on_lost` is called when there is no connection (any more)."""

    def __init__(self, config: BrokerConfig, store: MessageStore, on_lost: Callable[[], None]) -> None:
        self._config = config
        self._store = store
        self._on_lost = on_lost
        self._sync = config.flush_disk_type == "SYNC_FLUSH"
        self.master = config.ha_master_address or ""
        self.connected = False
        self._writer: asyncio.StreamWriter | None = None
        self._reported = 0
        self._task: asyncio.Task[None] | None = None
        self._found = asyncio.Event()
        #: the last thing that was told about the connection, so that it is not told every second
        self._said = ""
        # numbers
        self._read_ms = self._written_ms = 0
        self._received = 0
        self._rate = 0
        self._measured_at = time.monotonic()

    def start(self) -> None:
        if self.master:
            self._found.set()
        if self._sync:
            loop = asyncio.get_running_loop()

            def durable(offset: int) -> None:  # on the flusher's thread
                loop.call_soon_threadsafe(self._durable)

            self._store.on_durable = durable
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._task is not None:
            await cancel_all([self._task])
            self._task = None

    def found(self, address: str) -> None:
        """A NameServer says where the master gives its CommitLog; haMasterAddress counts more."""
        if self._config.ha_master_address or not address or address == self.master:
            return
        log.info("the master's CommitLog is at %s", address)
        self.master = address
        self._found.set()
        if self._writer is not None:  # the master has moved
            self._writer.close()

    async def _run(self) -> None:
        await self._found.wait()
        while True:
            pause = _AGAIN
            try:
                await self._follow(*split_address(self.master))
            except (HaStreamError, StoreError) as error:
                pause = _AFTER_ERROR
                self._say(logging.ERROR, f"the log of master {self.master} cannot be copied: {error}")
            except (OSError, asyncio.TimeoutError) as error:
                self._say(logging.WARNING, f"no connection to master {self.master}, it is tried again: {error}")
            except Exception:  # whatever it is: nobody would notice that nothing is copied any more
                pause = _AFTER_ERROR
                log.exception("the log of master %s cannot be copied, it is tried again", self.master)
            self._on_lost()
            await asyncio.sleep(pause)

    def _say(self, level: int, text: str) -> None:
        if text != self._said:
            log.log(level, "%s", text)
        self._said = text

    async def _follow(self, host: str, port: int) -> None:
        """One connection. Raises OSError when it ends, HaStreamError or StoreError for what cannot be taken."""
        store = self._store
        reader, writer = await wait_result(asyncio.open_connection(host, port, limit=_READ), _CONNECT)
        self._writer = writer
        try:
            if self._sync:
                await asyncio.to_thread(store.flush)
                store.advance()
            self._report(writer, store.written_offset)
            pieces = Pieces()
            heartbeat = self._config.ha_send_heartbeat_interval / 1000
            silence = self._config.ha_housekeeping_interval / 1000
            heard = time.monotonic()
            while True:
                data = b""
                if store.starved:  # others would wait for the disk with us
                    await asyncio.sleep(_BREATH)
                    heard = time.monotonic()
                    continue
                with contextlib.suppress(asyncio.TimeoutError):
                    data = await wait_result(reader.read(_READ), heartbeat)
                    if not data:
                        raise OSError("it closed the connection")
                now = time.monotonic()
                if data:
                    heard = now
                    self._take(pieces, data)
                elif now - heard > silence:
                    raise OSError(f"it said nothing for {silence:g} s")
                if time.time() * 1000 - self._written_ms >= heartbeat * 1000:
                    self._report(writer, self._end())
                await writer.drain()
        finally:
            self.connected, self._writer = False, None
            writer.close()

    def _take(self, pieces: Pieces, data: bytes) -> None:
        store = self._store
        self._read_ms = int(time.time() * 1000)
        self._received += len(data)
        for piece in pieces.feed(data):
            if piece.data:
                store.append_raw(piece.offset, piece.data)
            elif store.written_offset not in (0, piece.offset):
                raise HaStreamError(f"it is at {piece.offset}, and this log ends at {store.written_offset}")
            if not self.connected:  # only now: what refuses every attempt is told once
                self.connected, self._said = True, ""
                log.info("following master %s from %d on", self.master, piece.offset)
        if not self._sync:
            self._progress()

    def _end(self) -> int:
        """End of what the master is told that is here."""
        return self._store.durable_offset if self._sync else self._store.written_offset

    def _progress(self) -> None:
        end = self._end()
        if self._writer is not None and end > self._reported:
            self._report(self._writer, end)

    def _durable(self) -> None:
        """The disk has got further."""
        try:
            self._store.advance()
        except StoreError as error:
            self._say(logging.ERROR, f"the log of master {self.master} cannot be copied: {error}")
            if self._writer is not None:
                self._writer.close()
            return
        self._progress()

    def _report(self, writer: asyncio.StreamWriter, offset: int) -> None:
        writer.write(REPORT.pack(offset))
        self._reported = offset
        self._written_ms = int(time.time() * 1000)

    def status(self) -> dict[str, Any]:
        """The body of GET_BROKER_HA_STATUS (`HARuntimeInfo`)."""
        now = time.monotonic()
        if now - self._measured_at >= 1:
            self._rate = int(self._received / (now - self._measured_at))
            self._received, self._measured_at = 0, now
        return {
            "haClientRuntimeInfo": {
                "lastReadTimestamp": self._read_ms,
                "lastWriteTimestamp": self._written_ms,
                "masterAddr": self.master,
                "masterFlushOffset": 0,
                "maxOffset": self._store.written_offset,
                "transferredByteInSecond": self._rate,
            },
            "haConnectionInfo": [],
            "inSyncSlaveNums": 0,
            "master": False,
            "masterCommitLogMaxOffset": 0,
        }
