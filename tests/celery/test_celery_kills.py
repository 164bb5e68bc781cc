"""Workers killed: in every pool nothing is lost, only what was in flight repeats, and what runs long does not."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery_kit import LEASE, PREFETCH, Site, Worker
from servers import wait_until


def test_the_tasks_of_a_killed_worker_are_back_within_a_lease(site: Callable[..., Site], pool: str) -> None:
    here = site(lease=LEASE)
    here.publish(range(150))
    with Worker(here, pool, name="a").wait_ready() as worker:
        wait_until(lambda: len(here.done()) > 30, 30, "some are done")
        worker.kill()
    killed = time.time()
    with Worker(here, pool, name="b").wait_ready():
        wait_until(lambda: len(here.done()) == 150, 40, "all are done")
        done = here.done()
        again = [line.time for line in here.lines() if done[line.number] > 1 and line.time > killed]
        # what was acknowledged and not yet sent when it was killed counts as in flight
        assert sum(done.values()) - 150 <= PREFETCH
        assert all(when - killed < LEASE + 15 for when in again)  # far below the 30 s of a default lease
        here.s("work", "last").apply_async()
        wait_until(lambda: "last" in here.done(), 20, "the worker goes on")


def test_a_long_task_keeps_its_lease(site: Callable[..., Site], pool: str) -> None:
    here = site(lease=LEASE)
    with Worker(here, pool, concurrency=1).wait_ready(), Worker(here, pool, name="other").wait_ready():
        here.s("work", 1, 2.5 * LEASE).apply_async()
        here.s("work", 2, 2.5 * LEASE).apply_async()
        wait_until(lambda: len(here.done()) == 2, 40, "both are done")
        here.s("work", "after").apply_async()
        wait_until(lambda: "after" in here.done(), 20, "the next one")
        assert set(here.done().values()) == {1}
        assert len(here.lines("work", "begin")) == 3
