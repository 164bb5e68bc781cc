"""The broker's side of registering, against a NameServer that is played by a table of answers."""

import asyncio
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from rocketq.broker import registration as module
from rocketq.broker.registration import Registration
from rocketq.config import BrokerConfig
from rocketq.errors import ConnectFailed
from rocketq.remoting.bodies import DataVersion, RegisterBrokerBody, TopicConfig
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command

GOLDEN = Path(__file__).parents[1] / "golden"


class Topics:
    def __init__(self, *names: str) -> None:
        self.table = {name: TopicConfig(topic_name=name) for name in names}
        self.data_version = DataVersion(timestamp=1)

    def add(self, *names: str) -> list[TopicConfig]:
        found = [TopicConfig(topic_name=name) for name in names]
        self.table.update({config.topic_name: config for config in found})
        self.raise_version()
        return found

    def raise_version(self) -> None:
        self.data_version = DataVersion(counter=self.data_version.counter + 1, timestamp=1)


class Client:
    """Stands for AsyncClient: remembers requests per address; `down` addresses refuse connections."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int, object, bytes]] = []
        self.down: set[str] = set()
        self.refuse_next = 0
        self.known: dict[str, DataVersion] = {}
        self.arrived = asyncio.Event()
        self.refused = asyncio.Event()

    async def call(self, address, code, header=None, body=b"", timeout=3.0) -> Command:
        if address in self.down:
            self.refused.set()
            raise ConnectFailed(f"no connection to {address}")
        await asyncio.sleep(0)
        self.requests.append((address, int(code), header, body))
        self.arrived.set()
        if self.refuse_next:
            self.refuse_next -= 1
            return Command(1, remark="register broker failed")
        if code == RequestCode.REGISTER_BROKER:
            content = RegisterBrokerBody.decode(body, compressed=header.compressed)
            self.known[address] = content.data_version
        if code == RequestCode.QUERY_DATA_VERSION:
            changed = self.known.get(address) != DataVersion.decode(body)
            return Command(0, ext={"changed": "true" if changed else "false"})
        return Command(0)

    async def until(self, count: int) -> None:
        async def wait() -> None:
            while len(self.requests) < count:
                self.arrived.clear()
                await self.arrived.wait()

        await asyncio.wait_for(wait(), 10)

    def registered(self, index: int) -> list[str]:
        return sorted(RegisterBrokerBody.decode(self.requests[index][3]).topic_config_table)

    def codes(self) -> list[int]:
        return [code for _, code, _, _ in self.requests]


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch):
    monkeypatch.setattr(module, "RETRY", 0.01)


def run(test, *, period: int = 60_000, namesrv: str = "ns:1", **settings) -> None:
    async def main() -> None:
        config = BrokerConfig(
            broker_name="a", namesrv_addr=namesrv, register_name_server_period=period, **settings
        )
        client, topics = Client(), Topics("T", "U")
        told = []
        registration = Registration(config, client, topics, "10.0.0.5:10911", "10.0.0.5:10912", told.append)
        await test(SimpleNamespace(client=client, topics=topics, registration=registration))
        await registration.stop()

    asyncio.run(main())


def test_it_registers_with_every_nameserver_before_it_is_ready():
    async def test(it):
        await it.registration.start()
        assert sorted(request[0] for request in it.client.requests) == ["ns:1", "ns:2"]
        assert it.client.codes() == [103, 103]
        assert it.client.registered(0) == it.client.registered(1) == ["T", "U"]
        await it.registration.stop()
        assert it.client.codes()[2:] == [104, 104]

    run(test, namesrv="ns:1;ns:2")


def test_a_registration_has_the_fields_of_apaches():
    lines = [json.loads(line) for line in (GOLDEN / "broker_to_namesrv.jsonl").read_text().splitlines()]
    apache = next(line for line in lines if line["name"] == "register_full_first")

    async def test(it):
        await it.registration.start()
        _, _, header, body = it.client.requests[0]
        ext = header.to_ext()
        assert set(ext) == set(json.loads(apache["request_header"])["extFields"])
        assert int(ext["bodyCrc32"]) == zlib.crc32(body) & 0x7FFFFFFF
        assert ext["haServerAddr"] == "10.0.0.5:10912"
        ours, theirs = json.loads(body), json.loads(apache["request_body"])
        assert set(ours) == set(theirs)
        ours, theirs = ours["topicConfigSerializeWrapper"], theirs["topicConfigSerializeWrapper"]
        assert {"dataVersion", "topicConfigTable"} <= set(ours) <= set(theirs)
        assert set(ours["topicConfigTable"]["T"]) == set(theirs["topicConfigTable"]["TBW102"])

    run(test)


def test_an_unchanged_heartbeat_is_a_data_version():
    async def test(it):
        await it.registration.start()
        await it.client.until(3)
        assert it.client.codes()[:3] == [103, 322, 322]
        it.client.known.clear()  # the NameServer has forgotten us
        await it.client.until(len(it.client.requests) + 3)
        assert 103 in it.client.codes()[3:]

    run(test, period=100)


def test_a_change_is_sent_at_once_with_the_changed_topics_only():
    async def test(it):
        await it.registration.start()
        it.registration.changed(it.topics.add("V"))
        it.registration.changed(it.topics.add("W"))
        await it.client.until(2)
        assert it.client.registered(1) == ["V", "W"]
        it.topics.table.pop("V")
        it.topics.raise_version()
        it.registration.changed([])
        await it.client.until(3)
        assert it.client.registered(2) == []
        assert it.client.known["ns:1"] == it.topics.data_version

    run(test)


def test_a_topic_that_was_deleted_meanwhile_is_not_sent():
    async def test(it):
        await it.registration.start()
        it.registration.changed(it.topics.add("V", "W"))
        it.topics.table.pop("V")
        await it.client.until(2)
        assert it.client.registered(1) == ["W"]

    run(test)


def test_a_refused_change_is_followed_by_everything():
    async def test(it):
        await it.registration.start()
        it.client.refuse_next = 1
        it.registration.changed(it.topics.add("V"))
        await it.client.until(3)
        assert it.client.registered(1) == ["V"]
        assert it.client.registered(2) == ["T", "U", "V"]

    run(test)


def test_after_a_failure_everything_is_sent_again():
    """A change that was lost must not hide behind a later one that arrived."""

    async def test(it):
        await it.registration.start()
        it.client.down.add("ns:1")
        it.registration.changed(it.topics.add("V"))
        await asyncio.wait_for(it.client.refused.wait(), 10)
        it.registration.changed(it.topics.add("W"))
        it.client.down.clear()
        await it.client.until(2)
        assert it.client.registered(1) == ["T", "U", "V", "W"]

    run(test)


def test_a_lost_connection_leads_to_a_full_registration_at_once():
    async def test(it):
        await it.registration.start()
        it.registration.connection_lost("unknown:1")
        it.registration.connection_lost("ns:1")
        await it.client.until(2)
        assert it.client.codes() == [103, 103]
        assert it.client.registered(1) == ["T", "U"]

    run(test)


def test_a_nameserver_that_is_down_at_start_stops_nobody_and_is_retried(caplog):
    async def test(it):
        it.client.down.add("ns:1")
        await it.registration.start()
        assert [request[0] for request in it.client.requests] == ["ns:2"]
        it.client.down.clear()
        await it.client.until(2)
        assert it.client.requests[1][:2] == ("ns:1", 103)

    run(test, namesrv="ns:1;ns:2")
    assert [record.levelname for record in caplog.records].count("WARNING") == 1, "one line, not one per attempt"


def test_stopping_does_not_depend_on_nameservers():
    async def test(it):
        await it.registration.start()
        it.client.down.add("ns:1")

    run(test)


def test_stopping_while_a_connection_is_lost_does_not_hang():
    async def test(it):
        await it.registration.start()
        it.registration.connection_lost("ns:1")
        await asyncio.wait_for(it.registration.stop(), 10)

    run(test)


def test_a_read_only_broker_says_so():
    async def test(it):
        await it.registration.start()
        body = RegisterBrokerBody.decode(it.client.requests[0][3])
        assert {config.perm for config in body.topic_config_table.values()} == {4}
        assert it.topics.table["T"].perm == 6

    run(test, broker_permission=4)


def test_a_table_loses_nothing_to_compression_that_fits_without(monkeypatch):
    monkeypatch.setattr(module, "COMPRESS_ABOVE", 1000)

    async def test(it):
        it.topics.add(*(f"topic-{number}" for number in range(100)))
        it.topics.table["topic-7"] = TopicConfig(topic_name="topic-7", order=True, topic_sys_flag=1)
        await it.registration.start()
        _, _, header, body = it.client.requests[0]
        assert not header.compressed
        assert RegisterBrokerBody.decode(body).topic_config_table == it.topics.table

    run(test)


def test_a_huge_table_is_sent_compressed(monkeypatch):
    monkeypatch.setattr(module, "COMPRESS_ABOVE", 1000)

    async def test(it):
        it.topics.add(*(f"Topic{number}" for number in range(100)))
        await it.registration.start()
        _, _, header, body = it.client.requests[0]
        assert header.compressed is True
        assert header.body_crc32 == zlib.crc32(body) & 0x7FFFFFFF
        assert RegisterBrokerBody.decode(body, compressed=True).topic_config_table == it.topics.table

    run(test)
