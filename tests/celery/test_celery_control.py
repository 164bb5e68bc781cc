"""Remote control, events and revocation between processes: queues that live shortly, and one that all workers hear."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from celery_kit import Site, Worker
from servers import wait_until

#: Seconds for answers of two workers, which are waited for when both come at once; Celery's own default is 1.
PATIENCE = 5.0


@pytest.fixture
def pair(site: Callable[..., Site]) -> Iterator[Site]:
    """A site with two workers."""
    here = site()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(here, "prefork", name=name, concurrency=1)) for name in "ab"]
        for worker in workers:
            worker.wait_ready()
        yield here


def test_every_worker_answers_inspection_and_obeys_control(pair: Site) -> None:
    inspect = pair.app.control.inspect(timeout=PATIENCE, limit=2)
    assert set(inspect.ping()) == {"a@test", "b@test"}
    assert "celery_tasks.add" in inspect.registered()["a@test"]
    only_a: dict[str, Any] = {"destination": ["a@test"], "reply": True, "limit": 1, "timeout": 30.0}
    pair.app.control.rate_limit("celery_tasks.work", "10/s", **only_a)
    pair.app.control.cancel_consumer("celery", **only_a)
    assert {queue["name"] for queue in inspect.active_queues()["a@test"]} == {"other"}
    pair.publish(range(10), 0.0)
    wait_until(lambda: len(pair.done()) == 10, 20, "all are done")
    assert len({line.pid for line in pair.lines()}) == 1
    assert pair.app.control.add_consumer("celery", **only_a)
    assert len(inspect.active_queues()["a@test"]) == 2


def test_the_command_line_inspects_and_purges(pair: Site) -> None:
    def celery(*arguments: str) -> str:
        command = [sys.executable, "-m", "celery", "-b", pair.url, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    both = ("-d", "a@test,b@test", "-t", str(PATIENCE))
    assert "2 nodes online" in celery("inspect", "ping", *both)
    assert "2 nodes online" in celery("status", *both)
    for queue in ("celery", "other"):
        pair.app.control.cancel_consumer(queue, reply=True, limit=2, timeout=PATIENCE)
    pair.publish(range(7))
    assert "Purged 7 messages" in celery("purge", "-f")


def test_a_revoked_task_is_not_run_and_a_running_one_is_ended(pair: Site) -> None:
    later = pair.s("work", 1).apply_async(countdown=6)
    running = pair.s("work", 2, 30).apply_async()
    wait_until(lambda: pair.lines("work", "begin"), 20, "the long one runs")
    pair.app.control.revoke(later.id, reply=True, limit=2, timeout=PATIENCE)
    running.revoke(terminate=True, wait=True, timeout=5)
    with pytest.raises(Exception, match=r"revoked|terminated"):
        running.get(timeout=30)
    with pytest.raises(Exception, match="revoked"):
        later.get(timeout=30)
    assert not pair.done()
    assert {line.number for line in pair.lines("work", "begin")} == {"2"}


def test_events_of_all_workers_come_to_whoever_listens(pair: Site) -> None:
    heard: list[dict[str, object]] = []
    listening = threading.Event()
    enough = threading.Event()

    def hear(event: dict[str, object]) -> None:
        heard.append(event)
        if sum(one["type"] == "task-succeeded" for one in heard) == 10:
            enough.set()
            receiver.should_stop = True

    with pair.app.connection_for_read() as connection:
        receiver = pair.app.events.Receiver(connection, handlers={"*": hear})

        def listen() -> None:
            with receiver.consumer_context():
                listening.set()
                for _ in receiver.consume(limit=None, timeout=20):
                    pass

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        assert listening.wait(20)
        # publishers know of a new binding within a second
        wait_until(lambda: {one["hostname"] for one in heard} == {"a@test", "b@test"}, 20, "both are heard")
        pair.publish(range(10), 0.0)
        assert enough.wait(30), [event["type"] for event in heard]
        listener.join(10)
    ids = {event["uuid"] for event in heard if event["type"] == "task-succeeded"}
    assert len(ids) == 10
    assert ids == {event["uuid"] for event in heard if event["type"] == "task-received"} & ids
