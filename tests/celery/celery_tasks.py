"""The tasks that the tests' workers run. What a task did is a line in the journal: `name number begin|end time pid`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task
from kombu import Exchange, Queue


def settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Celery's, for workers and for the tests, which tell the workers by their environment."""
    return {
        "broker_url": environment.get("CELERY_TEST_BROKER", "rocketq://"),
        "result_backend": environment.get("CELERY_TEST_BACKEND", "rpc://"),
        "broker_transport_options": {
            "lease": float(environment.get("CELERY_TEST_LEASE", "30")),
            "grace": float(environment.get("CELERY_TEST_GRACE", "0")),
        },
        "broker_connection_retry_on_startup": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_send_task_events": True,
        "task_queues": [
            Queue("celery", Exchange("celery"), "celery", queue_arguments={"x-max-priority": 10}),
            Queue("other", Exchange("celery"), "other"),
        ],
    }


app = Celery("tests", set_as_current=False)
app.config_from_object(settings(os.environ))


def note(name: str, number: object, what: str) -> None:
    with open(os.environ["CELERY_TEST_JOURNAL"], "a") as journal:
        journal.write(f"{name} {number} {what} {time.time():.6f} {os.getpid()}\n")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def work(number: int, seconds: float = 0.0) -> int:
    note("work", number, "begin")
    time.sleep(seconds)
    note("work", number, "end")
    return number


@app.task(bind=True, max_retries=3)
def stubborn(self: Task[Any, Any], number: int, countdown: float) -> int:
    note("stubborn", number, "begin")
    if self.request.retries < 2:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


@app.task
def broken() -> None:
    raise ValueError("this one is broken")


@app.task(ignore_result=True)
def nothing() -> None:
    """Costs nothing but its way."""
