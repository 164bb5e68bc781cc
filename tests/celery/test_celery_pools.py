"""Every pool runs every kind of task on our server, with results over rpc://."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from celery import chain, chord, group
from celery_kit import LEASE, Site, Worker
from servers import wait_until


def test_results_chains_and_groups_come_back_over_rpc(site: Callable[..., Site], pool: str) -> None:
    here = site()
    with Worker(here, pool).wait_ready() as worker:
        assert here.s("add", 2, 3).delay().get(timeout=20) == 5
        assert chain(here.s("add", 1, 1), here.s("add", 10), here.s("add", 100))().get(timeout=20) == 112
        assert group(here.s("add", n, n) for n in range(20))().get(timeout=20) == [2 * n for n in range(20)]
        results = [here.s("work", number).delay() for number in range(40)]
        assert [result.get(timeout=20) for result in results] == list(range(40))
        failed = here.s("broken").delay()
        assert str(failed.get(timeout=20, propagate=False)) == "this one is broken"
        assert worker.stop() == 0
    assert set(here.done().values()) == {1}


def test_chords_wait_for_their_headers(site: Callable[..., Site], pool: str, tmp_path: Path) -> None:
    """`chord_unlock` looks with retries: tasks that the broker holds."""
    (tmp_path / "results").mkdir()
    here = site(backend=f"file://{tmp_path / 'results'}")
    with Worker(here, pool).wait_ready():
        result = chord((here.s("add", n, 1) for n in range(10)), here.s("total"))()
        assert result.get(timeout=30) == 55


def test_retries_wait_in_the_broker_and_keep_their_count(site: Callable[..., Site], pool: str) -> None:
    here = site()
    with Worker(here, pool).wait_ready():
        assert here.s("stubborn", 1, 0.5).delay().get(timeout=20) == 2
        begun = [line.time for line in here.lines("stubborn", "begin")]
        assert len(begun) == 3
        assert all(later - earlier >= 0.45 for earlier, later in pairwise(begun))


def test_a_warm_shutdown_ends_what_runs_and_gives_the_rest_back(site: Callable[..., Site], pool: str) -> None:
    here = site()

    def runs() -> bool:
        """Whether the worker, and not only its child, knows that the long one has begun: what it does not know to
        have begun Celery forgets, on any broker, and it runs again."""
        begun = len(here.lines("work", "begin")) == 2
        active = here.app.control.inspect(timeout=5, limit=1).active if pool == "prefork" and begun else None
        return begun and (active is None or any((active() or {}).values()))

    with Worker(here, pool, concurrency=1).wait_ready() as worker:
        for number in range(20):
            here.s("work", number, 6.0 if number == 1 else 0.0).delay()
        wait_until(runs, 20, "the long one runs")
        assert worker.stop() == 0
        assert "1" in here.done()
        assert len(here.done()) < 20
        assert len(here.lines("work", "begin")) == len(here.lines("work", "end"))
    with Worker(here, pool, name="next").wait_ready():
        wait_until(lambda: len(here.done()) == 20, 20, "all are done, far within the lease of 30 s")
    assert set(here.done().values()) == {1}


def test_a_warm_shutdown_that_takes_longer_than_a_lease_runs_nothing_twice(site: Callable[..., Site]) -> None:
    """Celery's event loop, which renews leases and sends acknowledgements, has stopped by then."""
    here = site(lease=LEASE)
    with Worker(here, "prefork", concurrency=1).wait_ready() as worker:
        for number in range(3):
            here.s("work", number, 2.5 * LEASE if number == 0 else 0.0).delay()
        wait_until(lambda: here.lines("work", "begin"), 20, "the long one has begun")
        with Worker(here, "threads", name="other").wait_ready():
            assert worker.stop() == 0
            here.s("work", "late").apply_async(countdown=LEASE + 1)  # what was not acknowledged comes before
            wait_until(lambda: "late" in here.done(), 30, "the late one is done")
    assert here.done() == {"0": 1, "1": 1, "2": 1, "late": 1}


def test_what_amqp_does_not_send_is_not_sent(site: Callable[..., Site]) -> None:
    here = site()
    here.s("add", 1, 2).apply_async(handle=object())
    with Worker(here, "solo").wait_ready():
        assert here.s("add", 1, 2).apply_async(priority=3, handle=object()).get(timeout=20) == 3
