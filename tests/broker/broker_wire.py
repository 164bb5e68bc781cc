"""Helpers of the broker's tests: a broker on a free port, and clients that write frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from store_kit import ANY_DISK

from rocketq.broker.server import Broker
from rocketq.config import BrokerConfig
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.properties import encode_properties
from rocketq.remoting.codes import FLAG_ONEWAY, FLAG_RESPONSE, JSON
from rocketq.remoting.command import Command, FrameDecoder, Header, encode


def frame(header: bytes, body: bytes = b"", kind: int = 0) -> bytes:
    """A frame around a header's bytes."""
    return struct.pack(">iI", 4 + len(header) + len(body), kind << 24 | len(header)) + header + body


class Wire:
    """One connection that shows everything that comes back. Requests from the broker are kept in `requests`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests: list[Command] = []
        self.answers: dict[int, Command] = {}
        self.frames: dict[int, bytes] = {}
        self.closed = False
        self._arrived = asyncio.Event()
        self._opaque = 1000
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 26))

    async def _read(self) -> None:
        decoder = FrameDecoder()
        while data := await self.reader.read(1 << 16):
            for command in decoder.feed(data):
                if command.flag & FLAG_RESPONSE:
                    self.answers[command.opaque] = command
                else:
                    self.requests.append(command)
            self._arrived.set()
        self.closed = True
        self._arrived.set()

    async def until(self, condition: Callable[[], Any], timeout: float = 20.0, what: str = "the answer") -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{what} did not come within {timeout} s")
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._arrived.wait(), min(left, 0.02)
                )  # not all that is waited for comes by wire
        return value

    def send(
        self,
        code: int,
        ext: Header | dict[str, Any] | None = None,
        body: bytes = b"",
        *,
        oneway: bool = False,
        serialize_type: int = JSON,
        version: int = 493,
    ) -> int:
        """Write a request and return its opaque."""
        self._opaque += 1
        fields = ext.to_ext() if isinstance(ext, Header) else {k: str(v) for k, v in (ext or {}).items()}
        request = Command(
            code,
            opaque=self._opaque,
            flag=FLAG_ONEWAY if oneway else 0,
            ext=fields,
            body=body,
            version=version,
            serialize_type=serialize_type,
        )
        self.writer.write(encode(request))
        return self._opaque

    async def answer(self, opaque: int, timeout: float = 20.0) -> Command:
        await self.until(lambda: opaque in self.answers or self.closed, timeout, f"the answer to {opaque}")
        return self.answers.pop(opaque)

    async def call(
        self, code: int, ext: Any = None, body: bytes = b"", timeout: float = 20.0, **more: Any
    ) -> Command:
        return await self.answer(self.send(code, ext, body, **more), timeout)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        await asyncio.gather(self._task, return_exceptions=True)

    # the requests that most tests need

    def message(
        self,
        topic: str,
        body: bytes = b"hello",
        *,
        queue: int = 0,
        properties: dict[str, str] | None = None,
        oneway: bool = False,
        serialize_type: int = JSON,
        version: int = 493,
        **fields: Any,
    ) -> int:
        """Write a SEND_MESSAGE_V2."""
        ext = {"a": "PG", "b": topic, "c": "TBW102", "d": 4, "e": queue, "f": 0, "g": 1_700_000_000_000, "h": 0}
        ext |= {"i": encode_properties(properties or {}), "j": 0, "k": "false", **fields}
        return self.send(310, ext, body, oneway=oneway, serialize_type=serialize_type, version=version)

    async def store(self, topic: str, body: bytes = b"hello", **more: Any) -> Command:
        return await self.answer(self.message(topic, body, **more))

    def pull_request(
        self,
        topic: str,
        offset: int = 0,
        *,
        queue: int = 0,
        group: str = "G",
        suspend: int | None = None,
        **fields: Any,
    ) -> int:
        ext: dict[str, Any] = {
            "consumerGroup": group,
            "topic": topic,
            "queueId": queue,
            "queueOffset": offset,
            "maxMsgNums": 32,
            "sysFlag": 4 | (2 if suspend is not None else 0),
            "commitOffset": 0,
            "suspendTimeoutMillis": suspend or 0,
            "subscription": "*",
            "subVersion": 0,
            "expressionType": "TAG",
        }
        serialize_type = fields.pop("serialize_type", JSON)
        return self.send(11, ext | fields, serialize_type=serialize_type)

    async def pull(self, topic: str, offset: int = 0, **more: Any) -> Command:
        return await self.answer(self.pull_request(topic, offset, **more))

    async def messages(self, topic: str, offset: int = 0, **more: Any) -> list[ReceivedMessage]:
        answer = await self.pull(topic, offset, **more)
        return decode_messages(answer.body) if answer.code == 0 else []


def config(directory: Path, **settings: Any) -> BrokerConfig:
    defaults: dict[str, Any] = {
        "store_path_root_dir": str(directory),
        "broker_name": "broker-a",
        "broker_cluster_name": "DefaultCluster",
        "broker_ip1": "127.0.0.1",
        "bind_address": "127.0.0.1",
        "listen_port": 0,
        "mapped_file_size_commit_log": 64 << 20,
        "max_hash_slot_num": 1000,
        "max_index_num": 4000,
        # how fast and how full the disk is matters to those tests only that say so
        **ANY_DISK,
        "os_page_cache_busy_time_out_mills": 60_000,
        "sync_flush_timeout": 60_000,
        "slave_timeout": 60_000,
    }
    return BrokerConfig(**(defaults | settings))


@contextlib.asynccontextmanager
async def running(
    directory: Path, *, files: Any = None, clock_ms: Callable[[], int] | None = None, **settings: Any
) -> AsyncIterator[tuple[Broker, Wire]]:
    """A broker and one connection to it."""
    clock = {"clock_ms": clock_ms} if clock_ms else {}
    broker = Broker(config(directory, **settings), files=files, **clock)
    await broker.start()
    wire = await Wire.connect(broker.port)
    try:
        yield broker, wire
    finally:
        await wire.close()
        await broker.stop()


def with_broker(directory: Path, test: Callable[[Broker, Wire], Awaitable[None]], **settings: Any) -> None:
    """Run `test` against a fresh broker."""

    async def main() -> None:
        async with running(directory, **settings) as (broker, wire):
            await test(broker, wire)

    asyncio.run(main())
