"""Brokers killed and back, networks cut: workers of every pool go on, nothing is lost, only what was in flight comes
again."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery_kit import LEASE, LONG, PREFETCH, Site, Wire, Worker
from servers import lasting_ports, start_server, wait_until

_hosts = itertools.count(2)


def test_workers_go_on_when_the_broker_was_killed_and_is_back(pool: str, tmp_path: Path) -> None:
    ports = lasting_ports()
    with start_server(tmp_path / "server", **ports) as first:
        here = Site(f"rocketq://{first.namesrv}", tmp_path, lease=LEASE)
        with Worker(here, pool).wait_ready() as worker:
            here.publish(range(100))
            wait_until(lambda: len(here.done()) > 20, 30, "some are done")
            first.kill()
            with start_server(tmp_path / "server", **ports):
                here.publish(range(100, 130))
                wait_until(lambda: len(here.done()) == 130, 60, "all are done")
                assert here.s("add", 1, 2).delay().get(timeout=30) == 3
                assert worker.process.poll() is None
                assert sum(here.done().values()) - 130 <= 2 * PREFETCH


@contextlib.contextmanager
def wired(directory: Path) -> Iterator[tuple[str, list[Wire]]]:
    """A server that is known by another address, which wires lead to it: one to the broker, one to the NameServer."""
    host = f"127.0.1.{next(_hosts)}"
    config = directory / "broker.conf"
    config.write_text(f"brokerIP1={host}\n")
    with start_server(directory / "server", "--config", str(config)) as server:
        namesrv, broker = (int(address.rpartition(":")[2]) for address in (server.namesrv, server.broker))
        wires = [Wire(host, broker), Wire(host, namesrv)]
        try:
            yield f"rocketq://{host}:{namesrv}", wires
        finally:
            for wire in wires:
                wire.close()


@pytest.mark.parametrize("part", ["broker", "all"])
def test_workers_go_on_after_a_cut_of_the_network(pool: str, part: str, tmp_path: Path) -> None:
    if part == "all" and pool not in ("prefork", "solo"):
        pytest.skip("one pool with an event loop and one without are enough")
    with wired(tmp_path) as (url, wires):
        here = Site(url, tmp_path, lease=LEASE)
        with Worker(here, pool).wait_ready() as worker:
            here.publish(range(100))
            wait_until(lambda: len(here.done()) > 10, 30, "some are done")
            for wire in wires if part == "all" else wires[:1]:
                wire.cut()
            before = len(here.done())
            time.sleep(1.5 * LEASE)  # the wire stays cut for longer than a lease
            assert before < 100
            for wire in wires:
                wire.mend()
            here.publish(range(100, 120))
            wait_until(lambda: len(here.done()) == 120, 60, "all are done")
            assert here.s("add", 1, 2).delay().get(timeout=30) == 3
            assert worker.process.poll() is None
            assert sum(here.done().values()) - 120 <= 2 * PREFETCH


@pytest.mark.parametrize("pool", ["prefork", "gevent"], indirect=True)
def test_a_network_that_drops_everything_for_a_while_runs_nothing_twice(pool: str, tmp_path: Path) -> None:
    with wired(tmp_path) as (url, wires):
        here = Site(url, tmp_path, lease=LONG)
        with Worker(here, pool).wait_ready(), Worker(here, "threads", name="other").wait_ready():
            here.publish(range(100), 0.1)
            wait_until(lambda: len(here.done()) > 10, 30, "some are done")
            for wire in wires:
                wire.drop()
            time.sleep(6)  # longer than requests wait for answers
            for wire in wires:
                wire.mend()
            wait_until(lambda: len(here.done()) == 100, LONG / 2, "all are done")
            assert set(here.done().values()) == {1}


@pytest.mark.parametrize("pool", ["prefork", "gevent"], indirect=True)
def test_a_proxy_that_restarts_runs_nothing_twice_where_there_is_a_grace(pool: str, tmp_path: Path) -> None:
    with wired(tmp_path) as (url, wires):
        # what was under way to a worker comes when its lease is over
        here = Site(url, tmp_path, lease=20, grace=LONG)
        with Worker(here, pool).wait_ready(), Worker(here, "threads", name="other").wait_ready():
            here.publish(range(60), 0.1)
            for share in (10, 30):
                wait_until(lambda share=share: len(here.done()) > share, 30, "some are done")
                for wire in wires:
                    wire.cut()
                    wire.mend()
            wait_until(lambda: len(here.done()) == 60, LONG / 2, "all are done")
            assert set(here.done().values()) == {1}


def test_what_others_have_by_now_is_not_begun(tmp_path: Path) -> None:
    """Without a grace a cut gives everything to others; what runs is all that runs twice."""
    with wired(tmp_path) as (url, wires):
        here = Site(url, tmp_path, lease=LONG)
        with (
            Worker(here, "prefork", concurrency=1).wait_ready() as worker,
            Worker(here, "threads", "-Q", "other", name="other", concurrency=8).wait_ready(),
        ):
            here.publish(["long"], 8)
            wait_until(lambda: here.lines("work", "begin"), 20, "the long one has begun")
            here.publish(range(3))
            wait_until(lambda: worker.said().count("received") == 4, 20, "the worker has all four")
            wires[0].cut()
            # who is back before the broker has given anything out again keeps it
            wait_until(lambda: wires[0].refused >= 4, 20, "both workers have tried to come back")
            wires[0].mend()
            # it is there already: starting another one could take as long as the long one
            to_other = {"destination": ["other@test"], "reply": True, "limit": 1, "timeout": 20}
            assert here.app.control.add_consumer("celery", **to_other)
            wait_until(lambda: sum(here.done().values()) == 5, LONG / 2, "all are done, the long one twice")
            assert here.done() == {"long": 2, "0": 1, "1": 1, "2": 1}
