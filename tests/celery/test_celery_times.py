"""When tasks run: etas that the broker holds, and priorities."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from celery_kit import LEASE, Site, Worker
from servers import wait_until


def test_tasks_with_an_eta_wait_in_the_broker_and_come_on_time(site: Callable[..., Site]) -> None:
    here = site()
    with Worker(here, "prefork").wait_ready():
        began = time.time()
        here.s("work", "soon").apply_async(countdown=2)
        here.s("work", "eta").apply_async(eta=datetime.now(timezone.utc) + timedelta(seconds=3))
        here.s("work", "year").apply_async(countdown=365 * 86400)
        here.s("work", "now").apply_async()
        wait_until(lambda: "now" in here.done(), 20, "the one without an eta")
        inspect = here.app.control.inspect(timeout=30, limit=1)
        scheduled = inspect.scheduled()["w@test"]  # the worker asks the broker
        assert scheduled[-1]["request"]["args"] == ["year"]
        etas = [one["eta"] for one in scheduled]
        assert etas == sorted(etas)
        command = [sys.executable, "-m", "celery", "-b", here.url, "inspect", "scheduled", "-j", "-d", "w@test"]
        command += ["-t", "30"]  # unless it answers sooner
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "'year'" in told.stdout or '"year"' in told.stdout, told
        wait_until(lambda: len(here.done()) == 3, 20, "those that are due")
        begun = {line.number: line.time - began for line in here.lines("work", "begin")}
        assert begun["soon"] >= 2
        assert begun["eta"] >= 3
        assert "year" not in begun


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_no_task_begins_before_its_eta(site: Callable[..., Site], pool: str) -> None:
    here = site()
    with Worker(here, pool).wait_ready():
        first = datetime.now(timezone.utc) + timedelta(seconds=2)
        etas = {f"{number}": first + timedelta(milliseconds=7.3 * number) for number in range(60)}
        for number, eta in etas.items():
            here.s("work", number).apply_async(eta=eta)
        wait_until(lambda: len(here.done()) == len(etas), 60, "all are done")
        begun = {line.number: line.time for line in here.lines("work", "begin")}
    late = {number: begun[number] - eta.timestamp() for number, eta in etas.items()}
    assert min(late.values()) >= 0, late


def test_an_eta_outlives_the_worker_that_asked_for_it(site: Callable[..., Site]) -> None:
    here = site(lease=LEASE)  # as it may be due, and delivered, before the worker is killed
    here.s("work", 1).apply_async(countdown=4)
    with Worker(here, "threads", name="a").wait_ready() as worker:
        worker.kill()
    with Worker(here, "threads", name="b").wait_ready():
        wait_until(lambda: here.done(), 40, "it is done")


def test_a_task_whose_time_is_over_is_not_run(site: Callable[..., Site]) -> None:
    here = site()
    late = here.s("work", "late").apply_async(expires=0.2)
    time.sleep(0.3)  # its time goes by
    here.s("work", "after").apply_async()
    with Worker(here, "solo").wait_ready():
        wait_until(lambda: "after" in here.done(), 20, "the next one")
        assert "late" not in here.done()
    assert late.id


def test_the_highest_priority_comes_first(site: Callable[..., Site]) -> None:
    here = site()
    for number in range(40):
        here.s("work", f"{number % 10}").apply_async(priority=number % 10)
    with Worker(here, "solo", "--prefetch-multiplier", "1", concurrency=1).wait_ready():
        wait_until(lambda: sum(here.done().values()) == 40, 20, "all are done")
    order = [int(line.number) for line in here.lines()]
    assert order == sorted(order, reverse=True)


def test_tasks_of_one_key_run_one_after_the_other(site: Callable[..., Site]) -> None:
    here = site()
    with Worker(here, "threads", name="a").wait_ready(), Worker(here, "threads", name="b").wait_ready():
        for number in range(12):
            here.s("work", f"{number % 2}-{number:02}", 0.05).apply_async(sharding_key=f"key {number % 2}")
        wait_until(lambda: len(here.done()) == 12, 30, "all are done")
        lines = sorted(here.lines("work", "begin") + here.lines("work", "end"), key=lambda line: line.time)
    for key in "01":  # what was done last may begin again now, one worker was killed before the other
        mine = [line for line in lines if line.number.startswith(key)]
        assert [line.number for line in mine if line.what == "end"] == [
            f"{key}-{n:02}" for n in range(int(key), 12, 2)
        ]
        assert [line.what for line in mine] == ["begin", "end"] * 6
