"""`rocketq top` against a server process."""

import signal
import subprocess
import sys
import threading

import pytest
from cli_kit import Cli
from servers import start_server, wait_until

from rocketq.cli.top import Look, rates
from rocketq.message import MessageQueue


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("top")) as process:
        yield process


@pytest.fixture
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


def test_rates_are_differences_and_the_busiest_come_first():
    before = Look(10.0, {"a": (100, 100), "b": (50, 10), "gone": (1, 1), "anew": (9, 9)}, {("g", "a"): (20, 80)})
    now = Look(
        12.0,
        {"a": (110, 105), "b": (90, 50), "new": (7, 7), "anew": (2, 2)},
        {("g", "a"): (25, 85), ("h", "b"): (90, 0), ("g", "%RETRY%g"): (4, 0), ("h", "%RETRY%h"): (4, 3)},
    )
    topics, groups = rates(before, now)
    assert topics == [["b", 20.0, 50], ["a", 5.0, 105], ["new", None, 7], ["anew", None, 2]]
    assert groups == [["g", "a", 2.5, 85], ["h", "%RETRY%h", None, 3], ["h", "b", None, 0]]


def test_a_look_shows_what_goes_in_and_out(cli):
    cli.topic("Busy")
    cli.topic("Idle")
    cli.group("Busy-G")
    queue = MessageQueue("Busy", "broker-0", 0)
    cli.send("Busy", "x", queue_id=0)
    cli.browser.commit("Busy-G", queue, 0)
    stop = threading.Event()

    def work():
        sent = 1
        while not stop.wait(0.01):
            cli.send("Busy", "x", queue_id=0)
            sent += 1
            cli.browser.commit("Busy-G", queue, sent // 2)

    seen, lines = {}, []

    def both_were_seen():
        """A busy machine may not have let `work` do enough while the command looked."""
        seen.update(cli("top", "--once", "--interval", "0.5", "--json"))
        lines[:] = cli("top", "--once", "--interval", "0.2", "--rows", "1")
        busy = next((row["in_tps"] for row in seen["topics"] if row["topic"] == "Busy"), None)
        done = next((row["out_tps"] for row in seen["groups"] if row["group"] == "Busy-G"), None)
        return busy and done and done < busy and lines[1].split()[0] == "Busy"

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(both_were_seen, 60, "what goes in and half of it out")
    finally:
        stop.set()
        thread.join()
    topics = {row["topic"]: row for row in seen["topics"]}
    assert topics["Busy"]["in_tps"] > topics["Idle"]["in_tps"] == 0.0
    assert "TBW102" not in topics
    (group,) = [row for row in seen["groups"] if row["group"] == "Busy-G"]
    assert 0 < group["out_tps"] < topics["Busy"]["in_tps"]
    assert group["lag"] > 0
    assert lines[1].split()[0] == "Busy"
    assert any(line.startswith("… and ") for line in lines)
    assert "TBW102" in {row["topic"] for row in cli("top", "--once", "-i", "0.1", "--all", "--json")["topics"]}


def test_it_refreshes_until_it_is_interrupted(cli):
    # a shell that started the tests in the background has told them to ignore it
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heard}; from rocketq.cli.main import main; main()"
    command = [sys.executable, "-c", program, "top", "--json", "-i", "0.1", "--namesrv", cli.namesrv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(line.startswith('{"topics":') for line in lines)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None)
        assert process.returncode == 0
        assert process.stderr.read() == ""
