"""`rocketq:///directory`: one server for all processes that name it, as long as there is one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
from kombu_kit import Script, consuming, publish, turn_until
from servers import wait_until

USER = """
import sys, kombu, rocketq_kombu
with kombu.Connection(sys.argv[1]) as connection:
    connection.connect()
    print(connection.transport.cluster.namesrv, flush=True)
    for line in sys.stdin:
        connection.SimpleQueue("local").put(line.strip())
        print("sent", flush=True)
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "mq"
    for pid in servers(tmp_path / "mq"):  # of a test that failed
        os.kill(pid, signal.SIGKILL)


def servers(data: Path) -> list[int]:
    """The processes that serve a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rocketq_kombu.local" in command and str(data / ".shared").encode() in command:
            found.append(int(process.name))
    return found


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_all_processes_share_a_server_that_goes_with_the_last_of_them(data: Path) -> None:
    url = f"rocketq://{data}"
    with Script(USER, url) as first, Script(USER, url) as second:
        address = first.line()
        assert second.line() == address
        (server,) = servers(data)
        first.say("hello")
        assert first.line() == "sent"
        first.kill()
        second.say("world")
        assert second.line() == "sent", "the server is there for the other one"
        assert servers(data) == [server]
        second.kill()
        wait_until(lambda: not servers(data), what="the server's end, although nobody said good-bye")
        assert not answers(address)
    queue = kombu.Queue("local", kombu.Exchange("local"), routing_key="local")
    with kombu.Connection(url) as connection, consuming(connection, queue) as got:
        assert turn_until(connection, lambda: len(got) == 2), "a new one has what the old one had"
        assert sorted(body for body, _ in got) == ["hello", "world"]
    wait_until(lambda: not servers(data), what="the server's end")


def test_a_server_that_was_killed_is_started_again_by_its_users(data: Path) -> None:
    queue = kombu.Queue("killed", routing_key="killed")
    with kombu.Connection(f"rocketq://{data}") as connection:
        publish(connection, queue, 1)
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: got)
            (server,) = servers(data)
            os.kill(server, signal.SIGKILL)
            assert turn_until(connection, lambda: servers(data) not in ([], [server]), timeout=20)
            publish(connection, queue, 2)
            assert turn_until(connection, lambda: len(got) == 2)
    wait_until(lambda: not servers(data), what="the server's end")


def test_only_who_connects_starts_the_server(data: Path) -> None:
    connection = kombu.Connection(f"rocketq://{data}")
    copy = connection.clone()
    assert str(data) in copy.as_uri()
    assert copy.transport.driver_type == "rocketq"
    assert copy.connection_errors
    assert not data.exists()
    connection.release()
    with copy:
        copy.connect()
        assert servers(data)
    wait_until(lambda: not servers(data), what="the server's end")


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="file"):
        kombu.Connection(f"rocketq://{tmp_path / 'file'}").connect()
