"""Routes: what follows from them, and how they are found."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest

from rocketq.client.namesrv import Ask, CacheGet, CachePut, Learned, ServerList, look_up, parse_addresses
from rocketq.client.routes import RouteTable, read_queues, write_queues
from rocketq.errors import ConfigError, ConnectFailed, RouteNotFound
from rocketq.message import MessageQueue
from rocketq.names import AUTO_CREATE_TOPIC
from rocketq.remoting.bodies import BrokerData, QueueData, TopicRoute
from rocketq.remoting.command import Command


def route(*brokers: tuple[str, dict[int, str], int, int, int], order: str | None = None) -> TopicRoute:
    return TopicRoute(
        broker_datas=[BrokerData("C", name, addresses) for name, addresses, *_ in brokers],
        queue_datas=[QueueData(name, read, write, perm) for name, _, read, write, perm in brokers],
        order_topic_conf=order,
    )


def names(queues: tuple[MessageQueue, ...]) -> list[str]:
    return [f"{queue.broker_name}{queue.queue_id}" for queue in queues]


def test_messages_go_to_writable_queues_of_brokers_with_a_master() -> None:
    known = route(
        ("b", {0: "b:1"}, 3, 2, 6),
        ("a", {0: "a:1", 1: "a:2"}, 1, 1, 6),
        ("slave-only", {1: "s:1"}, 2, 2, 6),
        ("read-only", {0: "r:1"}, 2, 2, 4),
    )
    assert names(write_queues("T", known)) == ["a0", "b0", "b1"]
    assert names(read_queues("T", known)) == [
        "a0", "b0", "b1", "b2", "read-only0", "read-only1", "slave-only0", "slave-only1",
    ]  # fmt: skip


def test_an_order_configuration_decides_the_queues() -> None:
    known = route(("a", {0: "a:1"}, 8, 8, 6), ("b", {0: "b:1"}, 8, 8, 6), order="a:2;gone:4;b:1")
    assert names(write_queues("T", known)) == ["a0", "a1", "b0"]


def test_the_same_route_in_another_order_is_no_change() -> None:
    table = RouteTable()
    one, two = ("a", {0: "a:1"}, 1, 1, 6), ("b", {0: "b:1"}, 1, 1, 6)
    assert table.learn("T", route(one, two), 1.0)
    assert not table.learn("T", route(two, one), 2.0)
    assert table.learn("T", route(one), 3.0)


def test_a_broker_that_no_topic_names_any_more_is_forgotten() -> None:
    table = RouteTable()
    table.learn("T", route(("a", {0: "a:1"}, 1, 1, 6), ("b", {0: "b:1"}, 1, 1, 6)), 1.0)
    table.learn("T", route(("a", {0: "a:9"}, 1, 1, 6)), 2.0)
    assert table.brokers == {"a": {0: "a:9"}}
    table.forget("T")
    assert table.brokers == {}


def test_known_routes_get_old_and_stale() -> None:
    table = RouteTable()
    table.learn("T", route(("a", {0: "a:1"}, 1, 1, 6)), 10.0)
    assert table.fresh("T", 39.0, 30.0) is not None
    assert table.fresh("T", 41.0, 30.0) is None
    table.mark_stale("T")
    assert table.fresh("T", 10.0, 30.0) is None
    table.learn("T", route(("a", {0: "a:1"}, 1, 1, 6)), 41.0)
    assert table.fresh("T", 41.0, 30.0) is not None


def test_a_slave_is_read_when_the_master_is_gone() -> None:
    table = RouteTable()
    table.learn("T", route(("a", {1: "a:1", 2: "a:2"}, 1, 1, 6), ("b", {0: "b:0", 1: "b:1"}, 1, 1, 6)), 1.0)
    assert table.reader("a") == ("a:1", 1)
    assert table.reader("b", 1) == ("b:1", 1)
    assert table.reader("b", 5) == ("b:0", 0)
    assert table.reader("unknown") is None
    assert table.master("a") is None


def answer(found: TopicRoute | None, code: int | None = None) -> Command:
    if found is None:
        return Command(17 if code is None else code, remark="no route")
    return Command(0, body=found.encode(True))


class World:
    """NameServers and a cache, as functions; carries out look-ups and notes what was asked."""

    def __init__(self, serve: Callable[[str, str], Command], cache: dict[str, bytes] | None = None) -> None:
        self.serve = serve
        self.cache = cache
        self.asked: list[str] = []
        self.table = RouteTable()
        self.servers = ServerList("n1:1;n2:2;n3:3", random.Random(1))
        self.servers.addresses.sort()
        self.servers._at = 0

    def look_up(self, topic: str = "T", publish: bool = False) -> Learned:
        steps = look_up(self.table, self.servers, topic, publish=publish, cached=self.cache is not None)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Ask):
                    self.asked.append(f"{step.address} {step.topic}")
                    try:
                        reply = self.serve(step.address, step.topic)
                    except ConnectFailed as error:
                        step = steps.throw(error)
                        continue
                    step = steps.send(reply)
                elif isinstance(step, CacheGet):
                    assert self.cache is not None
                    step = steps.send(self.cache.get(step.topic))
                else:
                    assert isinstance(step, CachePut)
                    assert self.cache is not None
                    self.cache[step.topic] = step.route
                    step = steps.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


ROUTE = ("a", {0: "a:1"}, 8, 8, 6)


def down(address: str, topic: str) -> Command:
    raise ConnectFailed(f"{address} is down")


def test_one_name_server_is_used_until_it_fails() -> None:
    failing = {"n1:1"}

    def serve(address: str, topic: str) -> Command:
        return down(address, topic) if address in failing else answer(route(ROUTE))

    world = World(serve)
    for _ in range(2):
        world.look_up()
    assert world.asked == ["n1:1 T", "n2:2 T", "n2:2 T"]
    failing |= {"n2:2"}
    world.look_up()
    assert world.asked[3:] == ["n2:2 T", "n3:3 T"]


def test_a_refusal_or_garbage_counts_as_failure_too() -> None:
    def serve(address: str, topic: str) -> Command:
        if address == "n1:1":
            return Command(1, remark="name server not ready")
        return Command(0, body=b"{") if address == "n2:2" else answer(route(ROUTE))

    world = World(serve)
    assert world.look_up().changed
    assert len(world.asked) == 3


def test_an_unknown_topic_gets_the_default_topics_route_only_for_sending() -> None:
    world = World(lambda _, topic: answer(route(ROUTE) if topic == AUTO_CREATE_TOPIC else None))
    with pytest.raises(RouteNotFound, match="topic T does not exist"):
        world.look_up()
    known = world.look_up(publish=True).known
    assert names(known.write_queues) == ["a0", "a1", "a2", "a3"]


def test_what_is_known_counts_on_when_no_name_server_answers() -> None:
    world = World(lambda *_: answer(route(ROUTE)))
    first = world.look_up().known
    world.serve = down
    assert world.look_up() == (world.table.topics["T"], False)
    assert world.table.topics["T"].route == first.route
    with pytest.raises(ConnectFailed, match=r"n1:1 is down.*n2:2 is down"):
        world.look_up("Other")


def test_a_name_server_that_just_started_does_not_make_a_topic_vanish() -> None:
    world = World(lambda *_: answer(route(ROUTE)))
    world.look_up()
    world.serve = lambda *_: answer(None)
    assert not world.look_up().changed
    world.table.mark_stale("T")
    assert not world.look_up().changed
    world.table.mark_stale("T", denied=True)  # but now its broker said so as well
    with pytest.raises(RouteNotFound):
        world.look_up()
    assert "T" not in world.table.topics


def test_the_cache_learns_routes_and_answers_when_nobody_else_does() -> None:
    cache: dict[str, bytes] = {}
    World(lambda *_: answer(route(ROUTE)), cache).look_up()
    newcomer = World(down, cache)
    assert names(newcomer.look_up().known.write_queues) == [f"a{n}" for n in range(8)]
    with pytest.raises(ConnectFailed):
        newcomer.look_up("Other")


def test_look_ups_at_the_same_time_ask_each_name_server() -> None:
    table, servers = RouteTable(), ServerList("n1:1;n2:2", random.Random(1))
    two = [look_up(table, servers, topic, publish=False, cached=False) for topic in ("T", "U")]
    firsts = [next(steps) for steps in two]
    seconds = [steps.throw(ConnectFailed("it is down")) for steps in two]
    for first, second in zip(firsts, seconds, strict=True):
        assert isinstance(first, Ask)
        assert isinstance(second, Ask)
        assert {first.address, second.address} == {"n1:1", "n2:2"}


def test_a_damaged_route_in_the_cache_is_none() -> None:
    world = World(down, {"T": b"{"})
    with pytest.raises(ConnectFailed, match="cached route"):
        world.look_up()


def test_name_servers_that_are_away_are_said_once_and_so_is_their_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(lambda *_: answer(route(ROUTE)), {})
    world.look_up()
    with caplog.at_level(logging.INFO, "rocketq.client"):
        for cache in ({}, world.cache):  # without a route in the cache, and with one
            world.serve, world.cache = down, cache
            for _ in range(3):
                world.look_up()
            world.serve = lambda *_: answer(None)  # it is back, though it does not know the topic yet
            for _ in range(3):
                world.look_up()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2


def test_a_failed_route_is_asked_for_once_while_no_name_server_answers() -> None:
    world = World(lambda *_: answer(route(ROUTE)))
    world.look_up()
    world.serve = down
    world.table.mark_stale("T")
    world.look_up()
    assert world.table.fresh("T", 0.0, float("inf")) is not None


@pytest.mark.parametrize("text", ["", ";", "host", "host:", ":9876", "host:port"])
def test_bad_name_server_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_addresses(text)


def test_addresses_are_separated_by_semicolons_or_commas() -> None:
    assert parse_addresses(" a:1; b:2,[::1]:3 ;") == ["a:1", "b:2", "[::1]:3"]


def test_a_route_that_claims_more_queues_than_a_topic_can_have_takes_no_memory() -> None:
    claimed = route(("a", {0: "a:1"}, 1 << 31, 1 << 31, 6))
    assert len(write_queues("T", claimed)) == len(read_queues("T", claimed)) == 16_384
    assert len(write_queues("T", route(("a", {0: "a:1"}, 1, 1, 6), order="a:" + "9" * 5000))) == 16_384
