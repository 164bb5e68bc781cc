"""Forks, greenlets, plain installs, TLS and accounts."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
from kombu_kit import Script, consuming, publish, turn_until
from servers import ServerProcess, start_server

from rocketq.errors import BrokerError, RemotingError

FORK = """
import os, sys, kombu, rocketq_kombu
sys.path[:0] = sys.argv[2:]
from kombu_kit import consuming, publish, turn_until
queue = kombu.Queue("forks", routing_key="forks")
with kombu.Connection(sys.argv[1]) as connection:
    publish(connection, queue, "parent")
    with consuming(connection, queue) as got:
        assert turn_until(connection, lambda: got)  # all its sockets are in use
        children = []
        for number in range(3):
            pid = os.fork()
            if not pid:
                publish(connection, queue, f"child {number}")
                os._exit(0)
            children.append(pid)
        assert {os.waitpid(pid, 0)[1] for pid in children} == {0}
        assert turn_until(connection, lambda: len(got) == 4)
        print(sorted(body for body, _ in got), flush=True)
"""

LOOP = """
import os, sys, kombu, rocketq_kombu
from kombu.asynchronous.hub import Hub
sys.path[:0] = sys.argv[2:]
from kombu_kit import consuming, publish, turn_until
def sockets():
    return sum("socket:" in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
queue = kombu.Queue("loops", routing_key="loops")
hub = Hub()
hub.call_soon(lambda: None)
hub.run_once()  # it may have sockets of its own now
before = sockets()
with kombu.Connection(sys.argv[1]) as connection:
    publish(connection, queue, "task")
    with consuming(connection, queue) as got:
        connection.register_with_event_loop(hub)
        assert turn_until(connection, lambda: got, hub=hub)
        here = sockets()
        pid = os.fork()
        if not pid:
            os._exit(sockets() - before)
        inherited = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        publish(connection, queue, "another")
        assert turn_until(connection, lambda: len(got) == 2, hub=hub)
        print(here > before, inherited, flush=True)
"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys, time, gevent, kombu, rocketq_kombu
sys.path[:0] = sys.argv[2:]
from kombu_kit import consuming, publish, turn_until
queue = kombu.Queue("greenlets", routing_key="greenlets")
seen = []
def collect(number):
    with kombu.Connection(sys.argv[1]) as connection, consuming(connection, queue, prefetch=2) as got:
        def done():
            seen.extend(body for body, _ in got)
            got.clear()
            return len(seen) >= 40
        assert turn_until(connection, done, timeout=30)
ticks = []
def tick():
    while len(seen) < 40:
        ticks.append(1)
        gevent.sleep(0.01)
with kombu.Connection(sys.argv[1]) as shared:
    publish(shared, queue)
    jobs = [gevent.spawn(collect, number) for number in range(3)] + [gevent.spawn(tick)]
    jobs += [gevent.spawn(publish, shared.clone(), queue, *range(n * 10, n * 10 + 10)) for n in range(4)]
    gevent.joinall(jobs, raise_error=True)
print(sorted(seen) == list(range(40)), len(ticks) > 3, flush=True)
"""

INSTALLED = """
import sys
from kombu import Connection, Queue
with Connection(sys.argv[1]) as connection:
    connection.connect()
    print(type(connection.transport).__module__, flush=True)
"""

HERE = str(Path(__file__).parent)


def test_children_that_are_forked_publish_without_harm_to_their_parent(url: str) -> None:
    with Script(FORK, url, HERE) as parent:
        assert parent.line() == "['child 0', 'child 1', 'child 2', 'parent']"


def test_children_that_are_forked_keep_no_socket_of_an_event_loop(url: str) -> None:
    with Script(LOOP, url, HERE) as parent:
        assert parent.line() == "True 0"


def test_greenlets_share_a_process(url: str) -> None:
    pytest.importorskip("gevent")
    with Script(GEVENT, url, HERE) as process:
        assert process.line() == "True True"


def test_a_plain_install_makes_the_url_known(url: str) -> None:
    """With the first queue, exchange or serializer that a program imports, Kombu loads its entry points."""
    with Script(INSTALLED, url) as process:
        assert process.line() == "rocketq_kombu.transport"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ServerProcess]:
    """Serves only by TLS, and only accounts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    accounts = tmp_path / "plain_acl.yml"
    accounts.write_text("accounts:\n  - accessKey: celery-app\n    secretKey: 's:cret/@9'\n    admin: true\n")
    config = tmp_path / "broker.conf"
    config.write_text(
        f"tls.server.mode=enforcing\ntls.server.certPath={tmp_path}/cert.pem\n"
        f"tls.server.keyPath={tmp_path}/key.pem\naclEnable=true\naclFile={accounts}\n"
    )
    with start_server(tmp_path / "data", "--config", str(config)) as server:
        yield server


def test_tls_and_accounts_are_in_the_url(guarded: ServerProcess, tmp_path: Path) -> None:
    queue = kombu.Queue("guarded", routing_key="guarded")
    trusted = {"ca_certs": str(tmp_path / "cert.pem"), "cert_reqs": ssl.CERT_REQUIRED}
    url = f"rocketqs://celery-app:s%3Acret%2F%409@{guarded.namesrv}"
    for wanted in (None, trusted):
        with kombu.Connection(url, ssl=wanted) as connection:
            publish(connection, queue, "secret")
            with consuming(connection, queue) as got:
                assert turn_until(connection, lambda: got)
    other = kombu.Queue("other", routing_key="other")
    stranger = kombu.Connection(f"rocketqs://celery-app:wrong-one@{guarded.namesrv}")
    with stranger, pytest.raises(BrokerError, match="ignature"):
        publish(stranger, other, 1)
    with pytest.raises(RemotingError):
        kombu.Connection(url.replace("rocketqs", "rocketq")).connect()
