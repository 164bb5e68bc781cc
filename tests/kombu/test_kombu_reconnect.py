"""A consumer is never alive but deaf: brokers killed, networks cut, with and without an event loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.asynchronous.hub import Hub
from kombu_kit import Network, consuming, publish, turn_until
from servers import ServerProcess, lasting_ports, start_server

from rocketq.client.pop_calls import change_request, read_change
from rocketq.errors import RemotingError
from rocketq.remoting.codes import ResponseCode
from rocketq_kombu import leases, sources

#: Seconds; long enough for what was settled while a broker was away to count when it is back.
LEASE = 60.0


@pytest.fixture(params=["hub", "synloop"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub | None]:
    """The event loop; None where whoever drains events turns the wheel."""
    hub = Hub() if request.param == "hub" else None
    yield hub
    if hub is not None:
        hub.close()


def queue_named(name: str) -> kombu.Queue:
    return kombu.Queue(name, routing_key=name)


def through(network: Network, url: str) -> kombu.Connection:
    """A connection whose consumers find the broker behind the network."""
    connection = kombu.Connection(url, transport_options={"lease": LEASE})
    connection.transport.cluster.address_of = lambda broker, topic=None: network.address
    return connection


def is_settled(connection: kombu.Connection, message: Any) -> bool:
    """Whether the broker knows that a message, whose lease is not over, is done with."""
    lease = message.lease
    connection.transport.engine.settle(grace=10)  # an acknowledgement that is under way has the receipt of now
    request = change_request(lease.group, lease.receipt, int(LEASE * 1000))
    try:
        answer = connection.transport.cluster.ask(lease.address, *request)
    except RemotingError:  # its connection is one of those that the cut left without a word
        return False
    if answer.code == ResponseCode.NO_MESSAGE:
        return True
    lease.receipt = read_change(answer, lease.receipt, lease.address)  # the next attempt acknowledges with this
    return False


def test_a_broker_that_was_killed_is_used_again_when_it_is_back(hub: Hub | None, tmp_path: Path) -> None:
    queue = queue_named("killed")
    ports = lasting_ports()
    with (
        ThreadPoolExecutor() as pool,
        start_server(tmp_path, **ports) as first,
        kombu.Connection(f"rocketq://{first.namesrv}", transport_options={"lease": LEASE}) as connection,
    ):
        publish(connection, queue, "before", "in hand")
        with consuming(connection, queue, prefetch=10, ack=False) as got:
            if hub is not None:
                connection.register_with_event_loop(hub)
            assert turn_until(connection, lambda: len(got) == 2, hub=hub)
            first.kill()
            got[0][1].ack()  # while there is nobody to tell
            assert not turn_until(connection, lambda: len(got) > 2, timeout=0.5, hub=hub)
            starting = pool.submit(start_server, tmp_path, **ports)
            assert turn_until(connection, starting.done, timeout=30, hub=hub)
            with starting.result() as second:
                with kombu.Connection(f"rocketq://{second.namesrv}") as other:
                    publish(other, queue, "after")
                assert turn_until(connection, lambda: len(got) > 2, timeout=30, hub=hub)
                assert [body for body, _ in got[2:]] == ["after"]
                assert turn_until(connection, lambda: is_settled(connection, got[0][1]), timeout=30, hub=hub)
                got[1][1].ack()
                assert turn_until(connection, lambda: is_settled(connection, got[1][1]), timeout=30, hub=hub)


def test_a_cut_without_a_word_is_noticed_and_what_was_settled_meanwhile_counts(
    hub: Hub | None, url: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "POLL", 0.5)
    monkeypatch.setattr(sources, "_SLACK", 0.5)
    monkeypatch.setattr(leases, "_TIMEOUT", 0.5)
    network = Network(server.broker)
    connection = through(network, url)
    queue = queue_named("cut")
    try:
        publish(connection, queue, 1, 2)
        with consuming(connection, queue, prefetch=10, ack=False) as got:
            if hub is not None:
                connection.register_with_event_loop(hub)
            assert turn_until(connection, lambda: len(got) == 2, hub=hub)
            network.cut()
            got[0][1].ack()
            assert not turn_until(connection, lambda: len(got) > 2, timeout=1.5, hub=hub)
            with kombu.Connection(url) as other:
                publish(other, queue, 3)
            network.heal()
            # a broker that still held the request of before gave it to that: then it comes after a lease
            assert turn_until(connection, lambda: len(got) > 2, timeout=LEASE + 30, hub=hub)
            assert [body for body, _ in got] == [1, 2, 3]
            assert turn_until(connection, lambda: is_settled(connection, got[0][1]), timeout=30, hub=hub)
    finally:
        connection.close()
        network.close()


def test_what_is_held_stays_ours_when_the_end_of_a_given_up_connection_comes_through(
    hub: Hub | None, url: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that drops everything delivers it later: the broker must not take that for our end."""
    monkeypatch.setattr(sources, "POLL", 0.5)
    monkeypatch.setattr(sources, "_SLACK", 0.5)
    network = Network(server.broker)
    connection = through(network, url)
    queue = queue_named("dropped")
    try:
        publish(connection, queue, 1, 2)
        with consuming(connection, queue, prefetch=10, ack=False) as got:
            if hub is not None:
                connection.register_with_event_loop(hub)
            assert turn_until(connection, lambda: len(got) == 2, hub=hub)
            network.cut()
            engine = connection.transport.engine
            assert turn_until(connection, lambda: engine._aside, hub=hub), "nothing was given up"
            network.heal(resume=True)
            with kombu.Connection(url) as other, consuming(other, queue) as theirs:
                assert turn_until(connection, lambda: not engine._aside, timeout=20, hub=hub), "no new connection"
                assert not turn_until(other, lambda: theirs, timeout=0.5)
            for _, message in got:
                message.ack()
                assert turn_until(connection, lambda message=message: is_settled(connection, message), hub=hub)
            assert [body for body, _ in got] == [1, 2]
    finally:
        connection.close()
        network.close()


def test_the_event_loop_is_not_held_up_by_a_broker_that_does_not_answer(url: str, server: ServerProcess) -> None:
    """Connections are made without waiting: the rest of the loop goes on."""
    network = Network(server.broker)
    hub = Hub()
    queue = queue_named("silent")
    with kombu.Connection(url, connect_timeout=30) as connection:
        publish(connection, queue, 1)
        network.cut()
        connection.transport.cluster.address_of = lambda broker, topic=None: network.address
        with consuming(connection, queue) as got:
            connection.register_with_event_loop(hub)
            ticks: list[float] = []
            hub.call_repeatedly(0.05, lambda: ticks.append(time.monotonic()))
            turn_until(connection, lambda: len(ticks) >= 20, hub=hub)
            assert not got
            # a busy machine may hold it up as well, but not for as long as that broker does
            assert max(after - before for before, after in itertools.pairwise(ticks)) < 5.0
    hub.close()
    network.close()


def test_publishing_goes_on_without_nameservers(url: str, server: ServerProcess) -> None:
    """To what was published to before: nothing else is known then."""
    network = Network(server.namesrv)
    exchange = kombu.Exchange("headless")
    queue = kombu.Queue("headless", exchange, routing_key="headless")
    with kombu.Connection(url.replace(server.namesrv, network.address)) as connection:
        with connection.Producer() as producer:
            producer.publish(0, exchange=exchange, routing_key="headless", declare=[queue])
            network.close()
            transport = connection.transport
            for number in (1, 2):
                late = time.time() + 60 * number
                transport.registry._clock = lambda: late  # noqa: B023  what was read is too old to be believed
                transport.cluster._topics = {
                    name: (0.0, there) for name, (_, there) in transport.cluster._topics.items()
                }
                producer.publish(number, exchange=exchange, routing_key="headless")
        with pytest.raises(RemotingError):
            publish(connection, queue_named("never-seen"), 1)
    with kombu.Connection(url) as connection, consuming(connection, queue) as got:
        assert turn_until(connection, lambda: len(got) == 3)
        assert [body for body, _ in got] == [0, 1, 2]


def test_a_cluster_of_several_nameservers_works_as_long_as_one_does(server: ServerProcess) -> None:
    for url in (f"rocketq://127.0.0.1:1,{server.namesrv}/n", f"rocketq://127.0.0.1:1;{server.namesrv}/n"):
        queue = queue_named("several")
        with kombu.Connection(url) as connection:
            assert connection.connect()
            publish(connection, queue, url)
            with consuming(connection, queue) as got:
                assert turn_until(connection, lambda: got)
            assert got[0][0] == url
            assert connection.transport.virtual_host == "/n"
