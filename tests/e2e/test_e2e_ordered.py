"""Ordered consumption by real workers: each key's messages in order, one at a time, through rebalance and kill -9."""

from __future__ import annotations

import os
import signal
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from app_processes import WorkerProcess
from servers import start_server, wait_until

from rocketq import RocketQ
from rocketq.client.admin import Admin
from rocketq.remoting.bodies import TopicConfig

KEYS, QUEUES = 30, 6
APP = """
import os, time
from rocketq import RocketQ

app = RocketQ("orders")

def write(text):
    with open("out", "a") as out:
        out.write(f"{text} {os.getpid()}\\n")

@app.consumer("Orders", group="order-group", ordered=True, from_where="FIRST")
def work(body: str):
    write(f"begin {body}")
    time.sleep(0.003)
    write(f"end {body}")
"""


class Sender:
    """Sends step 0 of every key, then step 1 of every key, and so on, until it is told to stop."""

    def __init__(self, namesrv: str) -> None:
        self.steps = 0
        self.queues: set[int] = set()
        self._namesrv = namesrv
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        app = RocketQ("sender", self._namesrv)
        while not self._stop.wait(0.02):
            for key in range(KEYS):
                result = app.send("Orders", f"key{key} {self.steps}", key=f"key{key}")
                self.queues.add(result.queue.queue_id)
            self.steps += 1
        app.close()

    def finish(self) -> int:
        """How many steps each key has had."""
        self._stop.set()
        self._thread.join()
        return self.steps


@dataclass
class Line:
    what: str
    key: str
    step: int
    pid: int


def lines(folder: Path) -> list[Line]:
    """What the workers wrote so far, in the order in which it happened."""
    if not (folder / "out").exists():
        return []
    found = (line.split() for line in (folder / "out").read_text().splitlines())
    return [Line(what, key, int(step), int(pid)) for what, key, step, pid in found]


def check_order(found: list[Line], killed: int, steps: int) -> None:
    """Nobody skips a step or works on a key beside another; only what the killed worker did is done again."""
    for key, own in by_key(found).items():
        done = -1
        open_by: Line | None = None
        last: Line | None = None
        for line in own:
            if line.what == "begin":
                assert open_by is None or open_by.pid == killed, f"{key}: {line} while {open_by} was not done"
                again = last is not None and last.pid == killed and line.pid != killed
                assert line.step == done + 1 or (again and line.step <= done), f"{key}: {line} came after {last}"
                open_by = line
            else:
                assert open_by is not None
                assert (open_by.step, open_by.pid) == (line.step, line.pid)
                open_by, done = None, line.step
            last = line
        assert done == steps - 1, f"{key} ended with step {done}"


def by_key(found: list[Line]) -> dict[str, list[Line]]:
    keys: dict[str, list[Line]] = defaultdict(list)
    for line in found:
        keys[line.key].append(line)
    return keys


@pytest.mark.slow
def test_each_key_keeps_its_order_when_workers_come_and_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a dead worker's queues are free after 8 s instead of 60, and locks are renewed every 0.5 s
    monkeypatch.setenv("ROCKETMQ_CLIENT_REBALANCE_LOCKINTERVAL", "500")
    lapse = ("--set", "rocketmq.broker.rebalance.lockMaxLiveTime=8000")
    folder = tmp_path / "workers"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    with start_server(tmp_path / "data", *lapse) as server, Admin(server.namesrv) as admin:
        admin.create_topic(TopicConfig("Orders", QUEUES, QUEUES))
        sender = Sender(server.namesrv)

        def done() -> int:
            return len({(line.key, line.step) for line in lines(folder) if line.what == "end"})

        def workers() -> set[int]:
            return {line.pid for line in lines(folder)[-100:]}

        def worker() -> WorkerProcess:
            return WorkerProcess(folder, "-A", "app:app", namesrv=server.namesrv)

        try:
            with worker() as first, worker() as second, worker() as third:
                first.ready(3)
                wait_until(lambda: len(workers()) == 3, 60.0, what="three workers work")
                victim = lines(folder)[-1].pid
                os.kill(victim, signal.SIGKILL)
                wait_until(
                    lambda: workers() == {first.process.pid, second.process.pid, third.process.pid} - {victim},
                    60.0,
                    "two workers work",
                )
                with worker() as fourth:
                    wait_until(lambda: fourth.process.pid in workers(), 60.0, what="a fourth worker works")
                    steps = sender.finish()
                    wait_until(lambda: done() == KEYS * steps, 60.0, what="everything is done")
                    for process in (first, second, third, fourth):
                        if process.process.pid != victim:
                            assert process.stop() == 0
        finally:
            sender.finish()
        assert len(sender.queues) > 1
        assert len(sender.queues) < KEYS
        check_order(lines(folder), victim, steps)
