"""Periodic functions in real workers: one chain, whoever is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from app_processes import WorkerProcess
from servers import ServerProcess, lasting_ports, start_server, wait_until

from rocketq import Message, Producer, ReceivedMessage
from rocketq.client.admin import Admin
from rocketq.client.browse import Browser
from rocketq.schedule import Schedule, every

MakeWorker = Callable[..., WorkerProcess]

EVERY_SECOND = """
from datetime import datetime, timedelta

@app.periodic(every=timedelta(seconds=1))
def beat(at: datetime): write(f"{at.timestamp():.0f} {os.getpid()}")
"""
EVERY_SIX_HOURS = """
from datetime import datetime, timedelta

@app.periodic(every=timedelta(hours=6), misfire="MISFIRE", group="GROUP")
async def work(at: datetime): write(f"{at:%m-%d %H}")
"""


def stored(namesrv: str, topic: str) -> list[ReceivedMessage]:
    with Admin(namesrv, timeout=10) as admin:
        browser = Browser(admin)
        (queue,) = browser.queues(topic)
        return list(browser.scan(queue, 0, browser.max_offset(queue)))


def copies(namesrv: str, topic: str) -> Counter[bytes]:
    return Counter(message.body for message in stored(namesrv, topic))


def test_two_workers_that_start_at_once_fire_each_tick_once(
    make_worker: MakeWorker, server: ServerProcess, request: pytest.FixtureRequest
) -> None:
    worker = make_worker(EVERY_SECOND, "--processes", "2").ready(2)
    assert "every 1 s" in worker.output
    worker.wait_lines(4)
    assert worker.stop() == 0
    # ticks that are late come at once, and the two processes may call the function in any order then
    ticks = sorted(int(line.split()[0]) for line in worker.lines())
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    found = copies(server.namesrv, f"{request.node.name}-beat-ticks")
    assert sum(found.values()) <= len(found) + 1, found  # both may have begun a chain, and then it is one


@pytest.fixture
def ports() -> dict[str, int]:
    return lasting_ports()


@pytest.fixture
def mortal(tmp_path: Path, ports: dict[str, int]) -> Iterator[list[ServerProcess]]:
    """A server at `ports` that may be killed: the last one of the list runs."""
    servers = [start_server(tmp_path / "server", **ports)]
    yield servers
    for each in servers:
        each.__exit__(None, None, None)


def test_the_chain_survives_killed_workers_and_brokers(
    make_worker: MakeWorker,
    mortal: list[ServerProcess],
    ports: dict[str, int],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    worker = make_worker(EVERY_SECOND, "--processes", "2", namesrv=mortal[0].namesrv).ready(2)
    holder = int(worker.wait_lines(2)[-1].split()[1])
    os.kill(holder, signal.SIGKILL)
    wait_until(lambda: worker.lines()[-1].split()[1] != str(holder), 30, "ticks in the other process")
    mortal[0].kill()
    mortal.append(start_server(tmp_path / "server", **ports))
    worker.wait_lines(len(worker.lines()) + 5, deadline=60)
    assert worker.stop() == 0
    # a crash may repeat a tick and its message, but a second chain would show in every tick after it
    found = copies(mortal[-1].namesrv, f"{request.node.name}-beat-ticks")
    assert 1 in list(found.values())[-3:], found


def test_a_tick_whose_worker_dies_in_the_call_comes_again_and_holds_up_no_other(make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
from datetime import datetime, timedelta

@app.periodic(every=timedelta(seconds=1))
def beat(at: datetime):
    first = not os.path.exists("begun")
    write(f"{at.timestamp():.0f} {os.getpid()}", "begun")
    if first: time.sleep(600)
    write(f"{at.timestamp():.0f}")
""",
        "--processes",
        "2",
    ).ready(2)
    hanging, pid = worker.wait_lines(1, "begun")[0].split()
    assert hanging not in worker.wait_lines(2)
    os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: hanging in worker.lines(), 60, "the tick of the worker that died")
    assert worker.stop() == 0


def send(namesrv: str, group: str, at: datetime, schedule: Schedule | None, tag: str = "tick") -> None:
    properties = {"schedule": schedule.text} if schedule is not None else {}
    producer = Producer("ticking", namesrv)
    try:
        producer.send(Message(f"{group}-ticks", msgspec.json.encode(at), tag=tag, properties=properties))
    finally:
        producer.close()


SIX = every(timedelta(hours=6))


@pytest.mark.parametrize(("misfire", "called"), [("once", [0]), ("skip", []), ("all", [0, 1, 2, 3])])
def test_missed_ticks_are_called_once_or_not_or_all(
    make_worker: MakeWorker, server: ServerProcess, misfire: str, called: list[int]
) -> None:
    group = f"missed-{misfire}"
    worker = make_worker(EVERY_SIX_HOURS.replace("MISFIRE", misfire).replace("GROUP", group)).ready()
    last = SIX.next_tick(datetime.now(timezone.utc) - timedelta(hours=6))
    missed = [last - timedelta(hours=6 * back) for back in (3, 2, 1, 0)]
    send(server.namesrv, group, missed[0], SIX)
    send(server.namesrv, group, missed[0], SIX)  # another chain
    if misfire == "skip":
        wait_until(lambda: "was missed and is skipped" in worker.output, what="a tick that is skipped")
    worker.wait_lines(len(called))
    send(server.namesrv, group, missed[0], None)
    wait_until(lambda: "is dropped" in worker.output, what="a message that is no tick")
    assert worker.stop() == 0
    texts = [f"{each:%m-%d %H}" for each in missed]
    # should another tick be due while the test runs, it is called as well
    assert [line for line in worker.lines() if line in texts] == [texts[index] for index in called]


def test_a_halt_calls_nobody_and_ticks_of_another_schedule_are_dropped(
    make_worker: MakeWorker, server: ServerProcess
) -> None:
    source = "import rocketq.worker.ticks\nrocketq.worker.ticks.HANDED_ON = 1\n" + EVERY_SIX_HOURS
    worker = make_worker(source.replace("MISFIRE", "once").replace("GROUP", "halts")).ready()
    old = every(timedelta(hours=7))
    begun = datetime.now(timezone.utc)
    send(server.namesrv, "halts", old.next_tick(begun - timedelta(hours=7)), old)
    send(server.namesrv, "halts", begun - timedelta(minutes=1), SIX, tag="halt")
    wait_until(
        lambda: "its schedule is 'every 25200 s'" in worker.output, what="the other schedule's tick dropped"
    )
    assert worker.stop() == 0
    # should a tick be due while the test runs, it is called
    assert set(worker.lines()) <= {f"{SIX.next_tick(begun):%m-%d %H}"}


def test_a_tick_that_fails_is_logged_and_the_next_one_comes(make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
from datetime import timedelta

@app.periodic(every=timedelta(seconds=1))
def fail():
    write("called")
    raise ValueError("broken")
"""
    ).ready()
    worker.wait_lines(2)
    assert worker.stop() == 0
    assert "which is dropped: ValueError: broken" in worker.output
