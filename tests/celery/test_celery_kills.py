"""Workers killed: in every pool nothing is lost, only what was in flight repeats, and what runs long does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from celery_kit import LEASE, LONG, PREFETCH, Site, Worker
from servers import wait_until


def test_the_tasks_of_a_killed_worker_are_back_at_once(site: Callable[..., Site], pool: str) -> None:
    here = site(lease=LONG)
    here.publish(range(150))
    with Worker(here, pool, name="a").wait_ready() as worker:
        wait_until(lambda: len(here.done()) > 30, 30, "some are done")
        worker.kill()
    with Worker(here, pool, name="b").wait_ready():
        wait_until(lambda: len(here.done()) == 150, LONG / 2, "all are done, long before the lease ends")
        # what was acknowledged and not yet sent when it was killed counts as in flight
        assert sum(here.done().values()) - 150 <= PREFETCH
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


def test_children_that_outlive_their_worker_keep_nobody_waiting(site: Callable[..., Site]) -> None:
    """Children that are forked while it consumes would have its connections as well, if they kept them."""
    here = site(lease=LONG)
    with Worker(here, "prefork", "--max-tasks-per-child", "1").wait_ready() as worker:
        here.publish(range(6))
        wait_until(lambda: len(here.done()) == 6, 40, "all children are new ones")
        here.publish(["long", "longer"], LONG)
        wait_until(lambda: len(here.lines("work", "begin")) == 8, 20, "the long ones have begun")
        here.publish(["waiting"])
        with Worker(here, "threads", name="b", concurrency=4).wait_ready():
            os.kill(worker.process.pid, signal.SIGKILL)
            wait_until(lambda: len(here.lines("work", "begin")) == 11, LONG / 2, "the other worker has all three")
