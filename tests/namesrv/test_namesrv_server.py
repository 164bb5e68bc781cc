"""A NameServer on a real socket."""

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import free_port

from rocketq.broker.registration import Registration
from rocketq.config import BrokerConfig, NamesrvConfig
from rocketq.namesrv.server import NameServer
from rocketq.remoting import headers
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.bodies import ClusterInfo, DataVersion, TopicConfig, TopicRoute
from rocketq.remoting.codes import RequestCode


def topics(*names: str) -> SimpleNamespace:
    return SimpleNamespace(
        table={name: TopicConfig(topic_name=name) for name in names}, data_version=DataVersion(timestamp=1)
    )


@contextlib.asynccontextmanager
async def nameserver(path: Path, port: int = 0, **settings):
    server = NameServer(
        NamesrvConfig(bind_address="127.0.0.1", listen_port=port, kv_config_path=str(path / "kv.json"), **settings)
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Asker:
    def __init__(self, server: NameServer) -> None:
        self.address = f"127.0.0.1:{server.port}"
        self.client = AsyncClient()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error) -> None:
        await self.client.close()

    async def route(self, topic: str) -> TopicRoute | None:
        header = headers.GetRouteInfoHeader(topic=topic)
        answer = await self.client.call(self.address, RequestCode.GET_ROUTEINFO_BY_TOPIC, header, timeout=20)
        return TopicRoute.decode(answer.body) if answer.code == 0 else None

    async def brokers(self) -> list[str]:
        answer = await self.client.call(self.address, RequestCode.GET_BROKER_CLUSTER_INFO, timeout=20)
        return sorted(ClusterInfo.decode(answer.body).broker_addr_table)


async def until(condition, what: str) -> None:
    async def wait() -> None:
        while not await condition():
            await asyncio.sleep(0.01)

    try:
        await asyncio.wait_for(wait(), 20)
    except asyncio.TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


class BrokerSide:
    """A broker as far as NameServers see it."""

    def __init__(
        self, namesrv: str, table: SimpleNamespace, name: str = "a", port: int = 10911, **settings
    ) -> None:
        config = BrokerConfig(broker_name=name, namesrv_addr=namesrv, **settings)
        self.client = AsyncClient(on_connection_lost=self._lost)
        ha_address = f"127.0.0.1:{port + 1}"
        self.registration = Registration(
            config, self.client, table, f"127.0.0.1:{port}", ha_address, lambda answer: None
        )

    def _lost(self, address: str) -> None:
        self.registration.connection_lost(address)

    async def stop(self) -> None:
        await self.registration.stop()
        await self.client.close()


def test_a_broker_registers_changes_and_leaves(tmp_path):
    async def main() -> None:
        async with nameserver(tmp_path) as server, Asker(server) as asker:
            table = topics("T", "U")
            broker = BrokerSide(asker.address, table)
            await broker.registration.start()
            route = await asker.route("T")
            assert route.broker_datas[0].broker_addrs == {0: "127.0.0.1:10911"}
            new = TopicConfig(topic_name="New", write_queue_nums=3)
            table.table["New"] = new
            table.data_version = DataVersion(counter=1)
            broker.registration.changed([new])
            await until(lambda: asker.route("New"), "the new topic is in the routes")
            assert await asker.route("T") is not None
            await broker.stop()
            assert await asker.brokers() == []

    asyncio.run(main())


def test_a_broker_that_drops_its_connection_is_out_at_once(tmp_path):
    async def main() -> None:
        async with nameserver(tmp_path) as server, Asker(server) as asker:
            dying = BrokerSide(asker.address, topics("T", "U"), "dying", 1)
            staying = BrokerSide(asker.address, topics("T", "U"), "staying", 2)
            await dying.registration.start()
            await staying.registration.start()
            assert await asker.brokers() == ["dying", "staying"]
            for task in dying.registration._tasks:  # as when its process is killed: no farewell
                task.cancel()
            await dying.client.close()

            async def gone() -> bool:
                return await asker.brokers() == ["staying"]

            await until(gone, "the broker is out")
            assert [data.broker_name for data in (await asker.route("T")).queue_datas] == ["staying"]
            await staying.stop()

    asyncio.run(main())


def test_a_silent_broker_is_out_after_the_time_that_it_asked_for(tmp_path):
    async def main() -> None:
        async with (
            nameserver(tmp_path, scan_not_active_broker_interval=20) as server,
            Asker(server) as asker,
            Asker(server) as broker,
        ):
            header = headers.RegisterBrokerHeader(
                broker_name="a",
                broker_addr="127.0.0.1:1",
                cluster_name="C",
                ha_server_addr="127.0.0.1:2",
                broker_id=0,
                heartbeat_timeout_millis=200,
            )
            answer = await broker.client.call(broker.address, RequestCode.REGISTER_BROKER, header)
            assert answer.code == 0
            assert await asker.brokers() == ["a"]

            async def gone() -> bool:
                return await asker.brokers() == []

            await until(gone, "the broker is out")

            async def closed() -> bool:
                return not broker.client.is_connected(broker.address)

            await until(closed, "its connection is closed")

    asyncio.run(main())


def test_a_nameserver_that_comes_back_is_told_everything(tmp_path):
    async def main() -> None:
        port = free_port()  # it comes back to its port
        async with nameserver(tmp_path / "one") as first, nameserver(tmp_path / "two", port) as second:
            table = topics("T", "U")
            broker = BrokerSide(f"127.0.0.1:{first.port};127.0.0.1:{port}", table)
            await broker.registration.start()
            await second.stop()
            new = TopicConfig(topic_name="New")
            table.table["New"] = new
            table.data_version = DataVersion(counter=1)
            broker.registration.changed([new])
            async with Asker(first) as asker:
                await until(lambda: asker.route("New"), "the other NameServer goes on")
            async with nameserver(tmp_path / "two", port) as again, Asker(again) as asker:
                await until(lambda: asker.route("New"), "the returned NameServer knows the topic")
                assert await asker.route("T") is not None
            await broker.stop()

    asyncio.run(main())


class Counted:
    """Passes bytes on to a server, and notes how many a broker sends at a time."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.sent: list[int] = []

    async def start(self) -> str:
        self._listener = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        return f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1 << 18):
                    if counted:
                        self.sent.append(len(data))
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, to_writer, True), copy(to_reader, writer, False))

    def stop(self) -> None:
        self._listener.close()


def test_fifty_thousand_topics_are_told_once_and_changes_by_themselves(tmp_path):
    async def main() -> None:
        async with nameserver(tmp_path, scan_not_active_broker_interval=50) as server, Asker(server) as asker:
            line = Counted(server.port)
            table = topics(*(f"Topic{number}" for number in range(50_000)))
            broker = BrokerSide(await line.start(), table, register_name_server_period=200)
            await broker.registration.start()
            assert await asker.route("Topic49999") is not None
            told = len(line.sent)

            async def more(count: int) -> bool:
                return len(line.sent) >= told + count

            await until(lambda: more(3), "three heartbeats")
            assert max(line.sent[told:]) < 500

            new = TopicConfig(topic_name="New")
            table.table["New"] = new
            table.data_version = DataVersion(counter=1)
            broker.registration.changed([new])
            await until(lambda: asker.route("New"), "the change has arrived")
            told += 3
            await until(lambda: more(3), "more heartbeats")
            assert max(line.sent[told:]) < 1000
            assert await asker.route("Topic0") is not None
            await broker.stop()
            line.stop()

    asyncio.run(main())


def test_a_request_that_makes_no_sense_gets_an_answer(tmp_path):
    async def main() -> None:
        async with nameserver(tmp_path) as server, Asker(server) as asker:
            for code in (103, 104, 105, 322, 904, 901, 100, 101, 102, 219, 205, 327, 224, 216, 217):
                answer = await asker.client.call(asker.address, code)
                assert answer.code == 1, code
                assert answer.remark
            answer = await asker.client.call(asker.address, 318, body=b"\xff\xfe")
            assert answer.code == 1
            assert await asker.brokers() == []

    asyncio.run(main())


def test_the_port_can_be_taken(tmp_path):
    async def main() -> None:
        async with nameserver(tmp_path) as server:
            with pytest.raises(OSError):
                async with nameserver(tmp_path, server.port):
                    raise AssertionError("two servers on one port")

    asyncio.run(main())
