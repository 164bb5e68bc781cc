"""Brokers killed and back, networks cut: workers of every pool go on, nothing is lost, only what was in flight comes
again."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from celery_kit import LEASE, PREFETCH, Site, Wire, Worker
from servers import start_server, wait_until

_hosts = itertools.count(2)


def test_workers_go_on_when_the_broker_was_killed_and_is_back(pool: str, tmp_path: Path) -> None:
    with start_server(tmp_path / "server") as first:
        here = Site(f"rocketq://{first.namesrv}", tmp_path, lease=LEASE)
        ports = [int(address.rpartition(":")[2]) for address in (first.namesrv, first.broker)]
        with Worker(here, pool).wait_ready() as worker:
            here.publish(range(100))
            wait_until(lambda: len(here.done()) > 20, 30, "some are done")
            first.kill()
            with start_server(tmp_path / "server", namesrv_port=ports[0], broker_port=ports[1]):
                here.publish(range(100, 130))
                wait_until(lambda: len(here.done()) == 130, 60, "all are done")
                assert here.s("add", 1, 2).delay().get(timeout=30) == 3
                assert worker.process.poll() is None
                assert sum(here.done().values()) - 130 <= 2 * PREFETCH


@pytest.mark.parametrize("part", ["broker", "all"])
def test_workers_go_on_after_a_cut_of_the_network(pool: str, part: str, tmp_path: Path) -> None:
    """The worker knows the servers by another address, which a wire leads to them."""
    if part == "all" and pool not in ("prefork", "solo"):
        pytest.skip("one pool with an event loop and one without are enough")
    host = f"127.0.1.{next(_hosts)}"
    config = tmp_path / "broker.conf"
    config.write_text(f"brokerIP1={host}\n")
    with start_server(tmp_path / "server", "--config", str(config)) as server:
        namesrv, broker = (int(address.rpartition(":")[2]) for address in (server.namesrv, server.broker))
        wires = [Wire(host, broker), Wire(host, namesrv)]
        here = Site(f"rocketq://{host}:{namesrv}", tmp_path, lease=LEASE)
        try:
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
        finally:
            for wire in wires:
                wire.close()
