"""Consumers that name themselves with their pops: what they hold is back at once when they are gone."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker
from pop_kit import ack, ack_all, bodies, create, held, lease, pop, pop_ext, receipt_ext

from rocketq.broker.server import Broker
from rocketq.client import PopConsumer
from rocketq.config import NamesrvConfig
from rocketq.message import ReceivedMessage
from rocketq.namesrv.server import NameServer
from rocketq.remoting.command import Command
from rocketq.remoting.receipts import batch_ack
from rocketq.remoting.server import Connection

#: ms, and seconds far below it in which what is back at once has come.
LEASE, SOON = 120_000, 60.0


async def take(wire: Wire, topic: str, holder: str | None, **more: Any) -> list[Any]:
    return await pop(wire, topic, invisibleTime=LEASE, **({"holder": holder} if holder else {}), **more)


async def taken_by_others(wire: Wire, topic: str, count: int, **more: Any) -> list[Any]:
    """What comes to somebody who waits, one pop after the other."""
    got: list[Any] = []
    deadline = time.monotonic() + SOON
    while len(got) < count:
        assert time.monotonic() < deadline, f"{bodies(got)}: not {count}"
        got += await pop(wire, topic, invisibleTime=LEASE, pollTime=5000, **more)
    return got


async def nothing_comes(broker: Broker, wire: Wire, topic: str) -> None:
    """The broker knows that a connection is gone, and keeps the leases."""
    assert await pop(wire, topic, pollTime=300) == []
    assert broker.revive.revived == 0


def end(wire: Wire, how: str) -> None:
    """End a connection as the peer: with FIN, or with RST."""
    sock: socket.socket = wire.writer.get_extra_info("socket")
    if how == "RST":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.writer.transport.abort()
    else:
        wire.writer.close()


async def gone(broker: Broker, wire: Wire, count: int) -> None:
    """Wait until the broker has only so many connections."""
    server = broker._server
    assert server is not None
    await wire.until(lambda: len(server.connections) == count, 20, f"{count} connections are left")


def test_what_a_consumer_held_is_back_when_it_is_gone(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for how in ("FIN", "RST"):
            for number in range(5):
                await wire.store("T", b"%d" % number)
            other = await Wire.connect(broker.port)
            got = await take(other, "T", "consumer", maxMsgNums=4)
            got += await take(other, "T", "consumer")
            await ack(other, got[1].receipt)
            waiting = wire.send(200050, pop_ext("T", pollTime=120_000, invisibleTime=LEASE))
            end(other, how)
            again = held(await wire.answer(waiting, SOON), "T")
            again += await taken_by_others(wire, "T", 4 - len(again))
            assert bodies(again) == [b"0", b"2", b"3", b"4"]
            assert {each.message.reconsume_times for each in again} == {1}
            for each in again:
                await ack(wire, each.receipt)
            assert len(broker.revive_log.points) == 0
            await other.close()
        assert not broker.holders._connections
        assert not broker.holders._holders

    with_broker(tmp_path, test)


def test_without_a_name_a_lease_is_a_lease(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"1")
        other = await Wire.connect(broker.port)
        assert len(await take(other, "T", None)) == 1
        await other.close()
        await gone(broker, wire, 1)
        await nothing_comes(broker, wire, "T")

    with_broker(tmp_path, test)


def test_one_connection_of_a_consumer_is_enough(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"1")
        one, two = await Wire.connect(broker.port), await Wire.connect(broker.port)
        (got,) = await take(one, "T", "consumer")
        renewal = receipt_ext(got.receipt, invisibleTime=LEASE, holder="consumer")
        assert (await two.call(200053, renewal)).code == 0
        await one.close()
        await gone(broker, wire, 2)
        await nothing_comes(broker, wire, "T")
        await two.close()
        assert bodies(await taken_by_others(wire, "T", 1)) == [b"1"]

    with_broker(tmp_path, test)


def test_a_renewal_by_another_moves_the_lease(tmp_path: Path) -> None:
    """Renewed without a name it is nobody's, and renewed by another consumer it is his."""

    async def test(broker: Broker, wire: Wire) -> None:
        for name in ({}, {"holder": "two"}):
            await wire.store("T", b"1")
            one, two = await Wire.connect(broker.port), await Wire.connect(broker.port)
            (got,) = await take(one, "T", "one")
            assert (await two.call(200053, receipt_ext(got.receipt, invisibleTime=LEASE, **name))).code == 0
            await one.close()
            await gone(broker, wire, 2)
            await nothing_comes(broker, wire, "T")
            await two.close()
            await gone(broker, wire, 1)
            if name:
                assert bodies(await taken_by_others(wire, "T", 1)) == [b"1"]
            else:
                await nothing_comes(broker, wire, "T")

    with_broker(tmp_path, test)


def a_stop(broker: Broker, connection: Connection) -> None:
    connection.close()


def garbage(broker: Broker, connection: Connection) -> None:
    connection.data_received(b"\x7f" * 64)


def too_much(broker: Broker, connection: Connection) -> None:
    connection.cut_off("it costs too much")


def a_lost_network(broker: Broker, connection: Connection) -> None:
    """As the kernel tells it when nothing is acknowledged any more."""
    connection._transport._fatal_error(TimeoutError("timed out"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("ending", [a_stop, garbage, too_much, a_lost_network])
def test_what_the_consumer_did_not_end_says_nothing_of_it(
    ending: Callable[[Broker, Connection], None], tmp_path: Path
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"1")
        other = await Wire.connect(broker.port)
        assert len(await take(other, "T", "consumer")) == 1
        (connection,) = broker.holders._connections
        ending(broker, connection)
        await other.close()
        await gone(broker, wire, 1)
        await nothing_comes(broker, wire, "T")

    with_broker(tmp_path, test)


def test_who_waits_gets_it_at_once(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"1")
        other = await Wire.connect(broker.port)
        assert len(await take(other, "T", "consumer")) == 1
        waiting = asyncio.create_task(pop(wire, "T", pollTime=30_000))
        await wire.until(lambda: broker.pop_wait.count, what="a waiting pop")
        (connection,) = broker.holders._connections
        assert broker.revive._timer is not None
        _, look = broker.revive._timer
        connection.peer_left = True
        broker.connection_lost(connection)
        assert broker.pop_wait.count == 0  # with no turn of the loop between
        assert look.cancelled()  # there are not two from now on
        assert bodies(await waiting) == [b"1"]
        await other.close()

    with_broker(tmp_path, test)


def test_a_consumer_that_is_back_within_its_grace_keeps_what_it_has(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T", b"1")
        name = {"holder": "consumer", "holderGrace": 30_000}
        other = await Wire.connect(broker.port)
        (got,) = await pop(other, "T", invisibleTime=LEASE, **name)
        await other.close()
        await gone(broker, wire, 1)
        (holder,) = broker.holders._holders.values()
        assert holder.leaving is not None
        back = await Wire.connect(broker.port)
        assert await pop(back, "T", **name) == []
        assert holder.leaving is None
        assert (await ack(back, got.receipt)).code == 0
        assert len(broker.revive_log.points) == 0

        await wire.store("T", b"2")
        assert len(await pop(back, "T", invisibleTime=LEASE, holder="consumer", holderGrace=300)) == 1
        ended = time.monotonic()
        await back.close()
        assert bodies(await taken_by_others(wire, "T", 1)) == [b"2"]
        assert time.monotonic() - ended >= 0.29

    with_broker(tmp_path, test)


def test_a_restart_knows_nobody(tmp_path: Path) -> None:
    """Leases go on, and are the consumer's again when it has renewed them."""

    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            for number in (b"renewed", b"not"):
                await wire.store("T", number)
            other = await Wire.connect(broker.port)
            first, second = await take(other, "T", "consumer")
        async with running(tmp_path) as (broker, wire):
            other = await Wire.connect(broker.port)
            renewal = receipt_ext(first.receipt, invisibleTime=LEASE, holder="consumer")
            assert (await other.call(200053, renewal)).code == 0
            await other.close()
            assert bodies(await taken_by_others(wire, "T", 1)) == [b"renewed"]
            assert await pop(wire, "T", pollTime=300) == []
            assert (await ack(wire, second.receipt)).code == 0

    asyncio.run(main())


def test_order_and_priority_are_kept(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "O")
        await create(wire, "P", 4, message_type="PRIORITY")
        for number in range(4):
            await wire.store("O", b"%d" % number)
            await wire.store("P", b"%d" % number, properties={"_SYS_MSG_PRIORITY_": str(number)})
        other = await Wire.connect(broker.port)
        got = await take(other, "O", "consumer", order="true", maxMsgNums=3)
        assert len(await take(other, "P", "consumer")) == 4
        await ack(other, got[1].receipt)
        waiting = wire.send(200050, pop_ext("O", pollTime=120_000, invisibleTime=LEASE, order="true"))
        await other.close()
        again = held(await wire.answer(waiting, SOON), "O")
        assert bodies(again) == [b"0", b"2", b"3"]
        await wire.until(lambda: broker.revive.revived == 4, SOON, "they are there again")
        assert bodies(await take(wire, "P", None)) == [b"3", b"2", b"1", b"0"]

    with_broker(tmp_path, test)


def test_what_a_renewal_in_order_says_counts(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await create(wire, "O")
        await wire.store("O", b"1")
        one, two = await Wire.connect(broker.port), await Wire.connect(broker.port)
        (got,) = await take(one, "O", None, order="true")
        renewal = receipt_ext(got.receipt, invisibleTime=LEASE, holder="consumer")
        assert (await two.call(200053, renewal)).code == 0
        await two.close()
        assert bodies(await taken_by_others(wire, "O", 1, order="true")) == [b"1"]
        await one.close()

    with_broker(tmp_path, test)


def test_a_renewal_whose_answer_was_lost_does_not_cost_the_lease(tmp_path: Path) -> None:
    """The consumer knows the older receipt only, which counts as long as nobody else has the message."""

    async def test(broker: Broker, wire: Wire) -> None:
        for number in range(4):
            await wire.store("T", b"%d" % number)
        got = await take(wire, "T", "consumer")
        name = {"invisibleTime": LEASE, "holder": "consumer"}
        for each in got:
            for _ in range(2):
                assert (await wire.call(200053, receipt_ext(each.receipt, **name))).code == 0
        assert isinstance(await lease(wire, got[0].receipt, LEASE), Command)  # somebody without a name
        await ack_all(wire, got)
        assert len(broker.revive_log.points) == 4
        await wire.store("T", b"not renewed")
        await wire.store("T", b"renewed")
        both = await take(wire, "T", "consumer")
        assert (await wire.call(200053, receipt_ext(both[1].receipt, **name))).code == 0
        assert len(broker.revive_log.points) == 6
        acks = batch_ack("broker-a", "G", [each.receipt for each in both])
        assert (await wire.call(200151, {"holder": "consumer"}, acks)).code == 0
        assert len(broker.revive_log.points) == 4
        assert (await wire.call(200051, receipt_ext(got[0].receipt, holder="consumer"))).code == 0
        assert len(broker.revive_log.points) == 3
        acks = batch_ack("broker-a", "G", [each.receipt for each in got[:3]])
        assert (await wire.call(200151, {"holder": "consumer"}, acks)).code == 0
        assert [point.open_offsets for point in broker.revive_log.points] == [[3]]
        other = await Wire.connect(broker.port)
        back = await wire.call(200053, receipt_ext(got[3].receipt, **name) | {"invisibleTime": 1})
        assert back.code == 0
        (again,) = await taken_by_others(other, "T", 1)
        assert again.message.body == b"3"
        refused = await wire.call(200053, receipt_ext(got[3].receipt, **name))
        assert refused.code == 208
        await wire.call(200051, receipt_ext(got[3].receipt, holder="consumer"))
        assert len(broker.revive_log.points) == 1
        await other.close()

    with_broker(tmp_path, test)


@pytest.mark.parametrize("room", [True, False], ids=["pops", "full"])
def test_our_consumer_is_back_within_its_grace(tmp_path: Path, room: bool) -> None:
    """Also where it holds as much as it may, so that it asks for nothing."""
    done = asyncio.Event()
    seen: list[bytes] = []

    async def handle(messages: list[ReceivedMessage]) -> None:
        seen.extend(message.body for message in messages)
        await done.wait()

    async def test() -> None:
        names = NameServer(NamesrvConfig(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
        await names.start()
        address = f"127.0.0.1:{names.port}"
        async with running(tmp_path / "store", namesrv_addr=address) as (broker, wire):
            await create(wire, "T")
            for number in range(2):
                await wire.store("T", b"%d" % number)
            consumer = PopConsumer(
                *("G", address, handle), from_where="FIRST", lease=600, grace=SOON, concurrency=10 if room else 1
            )
            consumer.subscribe("T")
            async with consumer:
                await wire.until(lambda: len(consumer._leases) == 2 and seen, SOON, "it has both")
                ((old, holder),) = broker.holders._connections.items()
                before = {point.key for point in holder.points}
                connection = consumer.instance.remoting.connected(f"127.0.0.1:{broker.port}")
                assert connection is not None
                connection.abort()  # as when nothing is answered any more
                await wire.until(
                    lambda: old not in broker.holders._connections, SOON / 2, "the broker has noticed"
                )
                await wire.until(lambda: holder.connections == 1, SOON / 2, "it is back")
                assert not holder.leaving
                await wire.until(
                    lambda: {point.key for point in holder.points}.isdisjoint(before), SOON, "renewed"
                )
                assert await pop(wire, "T") == []
                done.set()
                await wire.until(lambda: not broker.revive_log.points, SOON, "both are acknowledged")
            assert sorted(seen) == [b"0", b"1"]
            assert broker.revive.revived == 0
        await names.stop()

    asyncio.run(test())
