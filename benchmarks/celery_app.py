"""What the Celery benchmark's workers run and its publisher sends; the broker is `CELERY_BENCH_BROKER`.

    python benchmarks/celery_app.py publish QUEUE         as fast as it goes
    python benchmarks/celery_app.py pace QUEUE RATE       so many a second
    python benchmarks/celery_app.py eta QUEUE FROM OVER   due FROM seconds from now, spread over OVER seconds
    python benchmarks/celery_app.py hold QUEUE SECONDS    tasks that take so long

Publishes as many tasks as each line of its input says, and prints the seconds that took. Tasks append what they have to
say to the file `CELERY_BENCH_JOURNAL`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from celery import Celery
from celery.signals import worker_ready

sys.path.insert(0, str(Path(__file__).parent.parent))  # as rocketq may not be installed

app = Celery("celery_app")  # as the workers know the module that the publisher runs
app.config_from_object(
    {
        "broker_url": os.environ["CELERY_BENCH_BROKER"],
        "broker_transport_options": json.loads(os.environ.get("CELERY_BENCH_OPTIONS", "{}")),
        "task_ignore_result": True,
        "worker_enable_remote_control": False,
    }
)
_journal = os.open(os.environ["CELERY_BENCH_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(text: str) -> None:
    os.write(_journal, f"{text}\n".encode())


@worker_ready.connect
def ready(**_: object) -> None:
    Path(os.environ["CELERY_BENCH_READY"]).touch()


@app.task
def nothing(number: int, every: int) -> None:
    """Notes the time, once in so many tasks."""
    if number % every == 0:
        note(f"{number} {time.time():.6f}")


@app.task
def late(since: float) -> None:
    """Notes how many seconds ago that was."""
    note(f"{time.time() - since:.6f}")


@app.task(acks_late=True, reject_on_worker_lost=True)
def hold(number: int, seconds: float) -> None:
    note(f"{number} {time.time():.6f}")
    time.sleep(seconds)


def publish(kind: str, number: int, rest: list[float], options: dict[str, object]) -> float:
    """The seconds that it took."""
    began = time.time()
    for index in range(number):
        if kind == "publish":
            nothing.apply_async((index, 100), **options)
        elif kind == "pace":
            time.sleep(max(0.0, began + index / rest[0] - time.time()))
            late.apply_async((time.time(),), **options)
        elif kind == "eta":
            due = began + rest[0] + rest[1] * index / number
            eta = datetime.fromtimestamp(due, timezone.utc)
            late.apply_async((due,), eta=eta, **options)
        elif kind == "hold":
            hold.apply_async((index, rest[0]), **options)
    return time.time() - began


def main() -> None:
    kind, queue, *rest = sys.argv[1:]
    numbers = [float(text) for text in rest]
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        options = {"queue": queue, "producer": producer}
        nothing.apply_async((1, 2), **options)  # connects and declares; notes nothing
        for line in sys.stdin:
            print(publish(kind, int(line), numbers, options), flush=True)


if __name__ == "__main__":
    main()
