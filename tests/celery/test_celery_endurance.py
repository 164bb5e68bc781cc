"""What a worker costs: nothing while idle, and the same after many tasks as after few.

`ROCKETQ_CELERY_TASKS` says how many (5,000).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest
from celery_kit import Site, Worker
from servers import wait_until

TASKS = int(os.environ.get("ROCKETQ_CELERY_TASKS", "5000"))


def send_nothing(site: Site, number: int) -> None:
    nothing = site.s("nothing")
    with site.app.connection_for_write() as connection, site.app.amqp.Producer(connection) as producer:
        for _ in range(number):
            nothing.apply_async(producer=producer, add_to_parent=False)
    site.s("work", "end").apply_async()


@pytest.mark.timeout(1800)
def test_files_and_memory_do_not_grow_with_the_tasks(site: Callable[..., Site]) -> None:
    here = site()
    with Worker(here, "prefork", "-l", "warning", name="w") as worker:
        part = TASKS // 5
        measured = []
        for _ in range(5):
            before = here.done()["end"]
            send_nothing(here, part)
            wait_until(lambda before=before: here.done()["end"] > before, 600, "all are done")  # type: ignore[misc]
            measured.append((worker.files(), worker.memory()))
        files, memory = zip(*measured, strict=True)
        sys.stderr.write(f"\n{TASKS} tasks: files {files}, MiB {[round(one, 1) for one in memory]}\n")
        # the first part fills what is bounded: pools, the ids of tasks that were done lately
        assert files[-1] <= files[1] + 2
        assert memory[-1] <= memory[1] + 3


def test_an_idle_worker_costs_nothing(site: Callable[..., Site]) -> None:
    """Measured 2026-11: under 0.5 % of a core; Celery's own heartbeats and timers are most of it."""
    here = site()
    with Worker(here, "prefork", "--without-mingle").wait_ready() as worker:
        here.s("work", 1).apply_async()
        wait_until(lambda: here.done(), 20, "it works")
        time.sleep(2)  # what starting left to be done; on a busy machine that takes longer

        def idle() -> bool:
            before, began = worker.cpu(), time.monotonic()
            time.sleep(10)
            share = (worker.cpu() - before) / (time.monotonic() - began)
            sys.stderr.write(f"\nidle: {share:.2%} of a core\n")
            return share < 0.03  # CPU time, not wall time; loosely, other processes cost caches

        wait_until(idle, 60, "it costs nothing")
