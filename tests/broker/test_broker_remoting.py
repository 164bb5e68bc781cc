"""The oddities of real peers' frames and headers, as recorded against Apache 5.4.0, and the port of old clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from broker_replay import lines
from broker_wire import Wire, config, running, with_broker
from servers import free_port

from rocketq.broker.server import Broker
from rocketq.remoting.codes import FLAG_RESPONSE
from rocketq.remoting.command import Command, FrameDecoder, encode

SKIPPED = {
    "two_frames_in_one_write": "has a test of its own below",
    "proxy_protocol_v1_then_send": "the PROXY protocol is not read",
    "response_with_unknown_opaque": "has no answer, see oneway_gets_no_answer",
    "namesrv_broker_request": "asks a NameServer",
}
LINES = [
    line
    for line in lines("remoting")
    if line.get("to") == "broker" and line["name"] not in SKIPPED and "request_hex" in line
]


async def exchange(port: int, data: bytes) -> tuple[list[Command], bool]:
    """What comes back before the answer to a marker that is sent behind, and whether the server closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    marker = Command(30, opaque=424242, ext={"topic": "X", "queueId": "0"})
    writer.write(data + encode(marker))
    decoder, got, closed = FrameDecoder(), [], False
    try:
        while not any(command.opaque == 424242 for command in got):
            piece = await asyncio.wait_for(reader.read(65536), 20)
            if not piece:
                closed = True
                break
            got += decoder.feed(piece)
    except ConnectionResetError:
        closed = True
    writer.close()
    return [command for command in got if command.opaque != 424242], closed


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["name"])
def test_odd_frames_are_answered_as_apache_does(tmp_path: Path, line: dict[str, Any]) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("TopicRem")  # the first line of the recording did this
        got, closed = await exchange(broker.port, bytes.fromhex(line["request_hex"]))
        assert closed == bool(line.get("closed_by_server"))
        if "response_header" not in line:
            assert got == []
            return
        expected = json.loads(line["response_header"])
        (answer,) = got
        assert answer.flag & FLAG_RESPONSE
        assert answer.opaque == expected["opaque"]
        assert answer.code == expected["code"], answer.remark
        if "Exception" not in expected.get("remark", ""):
            assert answer.remark == expected.get("remark")
            assert set(answer.ext) == set(expected.get("extFields") or {})
        assert answer.serialize_type == int(line["request_hex"][8:10], 16), (
            "an answer mirrors its request's encoding"
        )

    with_broker(tmp_path, test)


def test_all_frames_of_one_write_are_answered(tmp_path: Path) -> None:
    line = next(line for line in lines("remoting") if line["name"] == "two_frames_in_one_write")

    async def test(broker: Broker, wire: Wire) -> None:
        got, _ = await exchange(broker.port, bytes.fromhex(line["request_hex"]))
        assert [(command.opaque, command.code) for command in got] == [(1, 0), (2, 0)]

    with_broker(tmp_path, test)


def test_the_second_port_takes_sends_and_no_pulls(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port(-2)
        async with running(tmp_path, listen_port=port) as (_, wire):
            vip = await Wire.connect(port - 2)
            assert (await vip.store("T")).code == 0
            for code in (11, 361, 200050):
                answer = await vip.call(code, {})
                assert (answer.code, answer.remark) == (3, f" request type {code} not supported")
            assert (await vip.call(30, {"topic": "T", "queueId": 0})).ext["offset"] == "1"
            assert len(await wire.messages("T")) == 1
            await vip.close()

    asyncio.run(main())


def test_a_second_port_that_is_taken_is_no_reason_to_stop(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port(-2)
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port - 2)
        async with taken, running(tmp_path, listen_port=port) as (_, wire):
            assert (await wire.store("T")).code == 0

    asyncio.run(main())


def test_a_taken_port_is_an_error_that_frees_the_store(tmp_path: Path) -> None:
    async def main() -> None:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        async with taken:
            with pytest.raises(OSError, match="address"):
                await Broker(config(tmp_path, listen_port=port)).start()
            assert not (tmp_path / "config" / "delayOffset.json").exists()  # nothing was loaded: nothing to save
        async with running(tmp_path) as (_, wire):
            assert (await wire.store("T")).code == 0

    asyncio.run(main())
