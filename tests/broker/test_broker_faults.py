"""Full disks, broken connections, a disk that falls behind, NameServers."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, config, running
from pop_kit import ack_all, create, pop

from rocketq.broker.server import Broker
from rocketq.config import NamesrvConfig
from rocketq.errors import StoreError, TooManyInFlight
from rocketq.namesrv.server import NameServer
from rocketq.properties import encode_properties
from rocketq.remoting.bodies import TopicRoute
from rocketq.remoting.codes import FLAG_ONEWAY
from rocketq.remoting.command import Command, encode, encode_response
from rocketq.remoting.server import Connection, Server
from rocketq.store.files import Buffer, OsFiles


async def eventually(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        await asyncio.sleep(0.01)


class FullDisk(OsFiles):
    """A disk that is full while `full` is set."""

    full = False

    def _check(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def pwrite(self, fd: int, data: Buffer, offset: int) -> None:
        self._check()
        super().pwrite(fd, data, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        self._check()
        super().pwritev(fd, buffers, offset)

    def disk(self, path: str) -> tuple[float, int]:
        used, free = super().disk(path)
        return (100.0, 0) if self.full else (used, free)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_full_disk_refuses_sends_serves_pulls_and_heals(tmp_path: Path, flush: str) -> None:
    async def main() -> None:
        disk = FullDisk()
        async with running(tmp_path, files=disk, flush_disk_type=flush) as (broker, wire):
            await wire.store("T", b"before")
            disk.full = True
            opaques = [wire.message("T", b"lost") for _ in range(20)]
            answers = [await wire.answer(opaque) for opaque in opaques]
            assert {answer.code for answer in answers} == {14}
            assert all("disk" in (answer.remark or "") for answer in answers)
            assert all(set(answer.ext) == {"MSG_REGION", "TRACE_ON"} for answer in answers)
            assert [message.body for message in await wire.messages("T")] == [b"before"]
            # a new topic and a new group do not need the disk at once
            assert (await wire.pull("T", group="GNew")).code == 0
            disk.full = False
            await eventually(lambda: broker.store.writable, "the end of the full disk")
            answer = await wire.store("T", b"after")
            assert (answer.code, answer.ext["queueOffset"]) == (0, "1")
            assert [message.body for message in await wire.messages("T")] == [b"before", b"after"]
        async with running(tmp_path) as (broker, wire):
            assert [message.body for message in await wire.messages("T")] == [b"before", b"after"]
            assert "GNew" in broker.groups.table

    asyncio.run(main())


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_what_is_due_while_the_disk_is_full_comes_once_when_there_is_room(
    tmp_path: Path, flush: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1_800_000_000_000

    async def main() -> None:
        nonlocal now
        disk = FullDisk()
        settings: dict[str, Any] = {"flush_disk_type": flush, "message_delay_level": "1s 1h"}
        settings |= {"clock_ms": lambda: now}
        async with running(tmp_path, files=disk, **settings) as (broker, wire):
            for kind in ({"TIMER_DELAY_MS": "1000"}, {"DELAY": "1"}):
                assert (await wire.store("T", str(kind).encode(), properties=kind)).code == 0
            disk.full = True
            assert (await wire.store("T", b"no room")).code == 14
            now += 1500
            for kind in ("timer", "delayed"):
                await eventually(
                    lambda kind=kind: f"{kind} messages wait, the store refuses them" in caplog.text,
                    f"a refusal of {kind} messages",
                )
            assert broker.store.max_offset("T", 0) == 0
            disk.full = False
            await eventually(lambda: broker.store.max_offset("T", 0) >= 2, "both", 30)
            assert (await wire.store("T", b"after")).code == 0
            bodies = [message.body for message in await wire.messages("T")]
            assert sorted(bodies[:2]) == [b"{'DELAY': '1'}", b"{'TIMER_DELAY_MS': '1000'}"]
            assert bodies[2:] == [b"after"]

    asyncio.run(main())


def test_producers_are_slowed_down_when_too_many_answers_wait_for_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        settings: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH", "send_thread_pool_queue_capacity": 5}
        async with running(tmp_path, **settings) as (broker, wire):
            await wire.store("T")
            advance = broker.store.advance
            broker.store.advance = lambda: 0  # type: ignore[method-assign]
            waiting = [wire.message("T") for _ in range(6)]
            await eventually(lambda: broker.batch.busy, "flow control")
            answer = await wire.store("T", b"too much")
            assert (answer.code, answer.remark) == (
                2,
                "[OVERLOAD]system busy, start flow control for a while",
            )
            assert broker.statistics.flow_controlled == 1
            broker.store.advance = advance  # type: ignore[method-assign]
            broker.batch._durable()
            for opaque in waiting:
                assert (await wire.answer(opaque)).code == 0
            assert (await wire.store("T", b"goes on")).code == 0
            assert len(await wire.messages("T")) == 8

    asyncio.run(main())


def test_what_came_before_garbage_or_the_end_of_a_connection_is_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            await wire.store("T", b"first")
            ext = {"b": "T", "c": "TBW102", "d": "4", "e": "0", "i": encode_properties({"UNIQ_KEY": "U"})}
            oneway = encode(Command(310, flag=FLAG_ONEWAY, ext=ext, body=b"oneway"))
            for ending in (b"", b"\xff\xff\xff\xffgarbage!"):
                _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
                writer.write(oneway + ending)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            await eventually(lambda: broker.store.max_offset("T", 0) == 3, "the last messages")
            assert [m.body for m in await wire.messages("T")] == [b"first", b"oneway", b"oneway"]

    asyncio.run(main())


def test_a_producer_that_leaves_before_its_answers_does_no_harm(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            await wire.store("T")
            other = await Wire.connect(broker.port)
            for _ in range(100):
                other.message("T")
            await other.writer.drain()
            await other.close()
            await eventually(lambda: not broker.batch._waiting, "the end of waiting")
            assert (await wire.store("T")).code == 0

    asyncio.run(main())


def test_a_stopping_broker_lets_go_of_held_pulls(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            await wire.store("T")
            wire.pull_request("T", 1, suspend=60_000)
            await eventually(lambda: broker.hold.count == 1, "the held pull")
            await asyncio.wait_for(broker.stop(), 30)
            await wire.until(lambda: wire.closed, what="the end of the connection")

    asyncio.run(main())


async def route(namesrv: Wire, topic: str) -> TopicRoute | None:
    answer = await namesrv.call(105, {"topic": topic})
    return TopicRoute.decode(answer.body) if answer.code == 0 else None


async def routed(namesrv: Wire, topic: str, condition: Callable[[TopicRoute], bool]) -> TopicRoute:
    """The route when it is as wanted: sooner than the broker registers anew by itself, which is every 30 s."""
    deadline = time.monotonic() + 20
    while (found := await route(namesrv, topic)) is None or not condition(found):
        assert time.monotonic() < deadline, f"the route of {topic} is {found}"
        await asyncio.sleep(0.01)
    return found


def test_a_topic_is_in_the_route_as_soon_as_it_is_created(tmp_path: Path) -> None:
    async def main() -> None:
        names = NameServer(NamesrvConfig(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
        await names.start()
        address = f"127.0.0.1:{names.port}"
        async with running(tmp_path / "store", namesrv_addr=address) as (broker, wire):
            namesrv = await Wire.connect(names.port)
            assert await route(namesrv, "New") is None
            assert (await wire.store("New", d=3)).code == 0
            found = await routed(namesrv, "New", lambda found: True)
            assert found.broker_datas[0].broker_addrs == {0: f"127.0.0.1:{broker.port}"}
            assert found.queue_datas[0].write_queue_nums == 3
            await wire.call(25, {}, b"brokerPermission=4")
            await routed(namesrv, "New", lambda found: found.queue_datas[0].perm == 4)
        assert await route(namesrv, "New") is None, "a broker that stops takes leave"
        await namesrv.close()
        await names.stop()

    asyncio.run(main())


def test_a_broker_starts_without_its_nameserver(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, namesrv_addr="127.0.0.1:1") as (_, wire):
            assert (await wire.store("T")).code == 0

    asyncio.run(main())


def test_periodic_work_that_fails_unexpectedly_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            relax = broker.batch.relax

            def fail() -> None:
                monkeypatch.setattr(broker.batch, "relax", relax)
                raise OSError(errno.EIO, "Input/output error")

            monkeypatch.setattr(broker.batch, "relax", fail)
            await eventually(lambda: "Input/output error" in caplog.text, "the failure")
            await wire.store("T")
            await eventually((tmp_path / "config" / "topics.json").exists, "the next round")

    asyncio.run(main())


def test_a_member_that_does_not_read_does_not_keep_the_others_from_joining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, slow):
            quick = await Wire.connect(broker.port)

            def heartbeat(client: str) -> bytes:
                consumer = {"groupName": "G", "messageModel": "CLUSTERING", "subscriptionDataSet": []}
                return json.dumps({"clientID": client, "consumerDataSet": [consumer]}).encode()

            await slow.call(34, body=heartbeat("slow"))
            deaf = slow.writer.get_extra_info("sockname")[1]
            oneway = Connection.oneway

            def refuse(connection: Connection, *arguments: Any) -> None:
                if connection.peer.endswith(f":{deaf}"):
                    raise TooManyInFlight("it does not read what it is sent")
                oneway(connection, *arguments)

            monkeypatch.setattr(Connection, "oneway", refuse)
            assert (await quick.call(34, body=heartbeat("quick"))).code == 0
            await quick.until(lambda: [request.code for request in quick.requests] == [40])
            await quick.close()
            await eventually(lambda: len(broker.clients.consumers["G"].members) == 1, "the end of its membership")

    asyncio.run(main())


def test_a_nameserver_whose_answer_cannot_be_read_is_told_everything_again(tmp_path: Path) -> None:
    codes: list[int] = []

    class Odd:
        def handle(self, connection: Connection, request: Command) -> bytes:
            codes.append(request.code)
            ext = {"changed": "perhaps"} if request.code == 322 else {}
            return encode_response(request, 0, header=ext)

        def end_batch(self, connection: Connection) -> None: ...

        def connection_lost(self, connection: Connection) -> None: ...

    async def main() -> None:
        server = Server(Odd())
        await server.start()
        address = f"127.0.0.1:{server.port}"
        async with running(tmp_path, namesrv_addr=address, register_name_server_period=100):
            await eventually(lambda: codes.count(103) >= 2, "the second registration")
            assert codes[:2] == [103, 322]
        await server.stop()

    asyncio.run(main())


def test_a_broken_table_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "topics.json").write_text("{nonsense")

    async def main() -> None:
        with pytest.raises(StoreError, match=r"topics\.json"):
            async with running(tmp_path):
                pass
        (tmp_path / "config" / "topics.json").unlink()
        async with running(tmp_path) as (_, wire):
            assert (await wire.store("T")).code == 0

    asyncio.run(main())


def test_no_two_capabilities_serve_one_code(tmp_path: Path) -> None:
    broker = Broker(config(tmp_path))
    assert {
        10,
        310,
        320,
        11,
        361,
        34,
        35,
        38,
        14,
        15,
        41,
        42,
        36,
        12,
        33,
        29,
        30,
        31,
        32,
    } <= broker.handlers.keys()


def test_a_delivered_message_is_not_delivered_again_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, message_delay_level="1s 2h") as (broker, wire):
            await wire.store("T", b"soon", properties={"DELAY": "1"})
            await wire.store("T", b"late", properties={"DELAY": "2"})
            await eventually(lambda: broker.store.max_offset("T", 0) == 1, "the delivery")
        async with running(tmp_path, message_delay_level="1s 2h") as (broker, wire):
            assert broker.delay.positions() == {1: (1, 1), 2: (0, 1)}
            await wire.store("T", b"again", properties={"DELAY": "1"})
            await eventually(lambda: broker.store.max_offset("T", 0) == 2, "the delivery")
            assert [message.body for message in await wire.messages("T")] == [b"soon", b"again"]

    asyncio.run(main())


def test_a_table_that_cannot_be_saved_at_the_end_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise StoreError("the disk is broken")

    async def main() -> None:
        async with running(tmp_path, message_delay_level="1s 2h") as (broker, wire):
            await wire.store("T", b"soon", properties={"DELAY": "1"})
            await eventually(lambda: broker.store.max_offset("T", 0) == 1, "the delivery")
            monkeypatch.setattr(broker.offsets, "snapshot", lambda: refuse)
        assert "consumerOffset.json could not be written" in caplog.text
        async with running(tmp_path, message_delay_level="1s 2h") as (broker, _):
            assert broker.delay.positions()[1] == (1, 1)

    asyncio.run(main())


def test_the_position_of_delayed_messages_waits_until_what_was_delivered_is_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        settings = {"message_delay_level": "1s", "flush_interval_commit_log": 600_000}
        async with running(tmp_path, **settings) as (broker, wire):
            await wire.store("T", properties={"DELAY": "1"})
            await eventually(lambda: broker.store.max_offset("T", 0) == 1, "the delivery")
            assert broker.store.durable_offset < broker.store.written_offset
            assert [broker.delay.snapshot() for _ in range(3)] == [None, None, None]

    asyncio.run(main())


def test_a_topic_that_cannot_be_deleted_says_so_to_producers_and_keeps_no_other(tmp_path: Path) -> None:
    class BadDisk(OsFiles):
        bad = True

        def unlink(self, path: str) -> None:
            if self.bad and "/consumequeue/Bad/" in path:
                raise OSError(errno.EIO, "Input/output error", path)
            super().unlink(path)

    async def main() -> None:
        disk = BadDisk()
        async with running(tmp_path, files=disk) as (broker, wire):
            for topic in ("Bad", "Good"):
                await wire.store(topic, b"old")
                broker.topics.delete(topic)
            broker.store.consume_queues.flush(100)
            refused = await wire.call(316)
            assert refused.code == 1
            assert f"/consumequeue/Bad/0/{0:020}" in (refused.remark or "")
            assert (await wire.store("Good", b"new")).ext["queueOffset"] == "0"
            answer = await wire.store("Bad")
            assert answer.code == 14
            assert "topic Bad is being deleted" in (answer.remark or "")
            assert "disk" not in (answer.remark or "")
            disk.bad = False
            assert (await wire.call(215, {"topic": "Bad"})).code == 0
            assert (await wire.store("Bad", b"new")).ext["queueOffset"] == "0"
            assert [message.body for message in await wire.messages("Bad")] == [b"new"]

    asyncio.run(main())


def test_a_message_that_the_disk_changed_is_handed_to_nobody_and_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers(found: list[Any]) -> list[bytes]:
        return [message.body[:1] for message in found]

    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            await create(wire, "T")
            for number in range(5):
                await wire.store("T", b"%d" % number * 20)
            place = broker.store.consume_entry("T", 0, 2)
            assert place is not None
        with (tmp_path / "commitlog" / f"{0:020d}").open("r+b") as file:
            file.seek(place[0] + 100)
            file.write(b"?")
        async with running(tmp_path) as (_, wire):
            assert numbers(await wire.messages("T")) == [b"0", b"1", b"3", b"4"]
            answer = await wire.pull("T", 2, maxMsgNums=1)
            assert (answer.code, answer.ext["nextBeginOffset"]) == (20, "3")
            got = await pop(wire, "T", "pops")
            assert numbers([each.message for each in got]) == [b"0", b"1", b"3", b"4"]
            assert (await ack_all(wire, got, "pops")).code == 0
            assert await pop(wire, "T", "pops") == []
        assert "topic T queue 0 message 2 is not handed out" in caplog.text

    asyncio.run(main())
