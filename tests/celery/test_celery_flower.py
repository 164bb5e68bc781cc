"""Flower, the monitor: it sees workers and tasks, and what it is told reaches the workers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery_kit import Site, Worker
from servers import free_port, wait_until


class Flower:
    """`celery flower` as a process."""

    def __init__(self, site: Site) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self.log = site.directory / "flower.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "celery_tasks",
                    "flower",
                    f"--port={port}",
                    "--address=127.0.0.1",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=site.directory,
                env={**os.environ, **site.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
            )

    def ask(self, path: str, body: object = None) -> Any:
        """What the API answers; None while it does not."""
        assert self.process.poll() is None, self.log.read_text()
        data = json.dumps(body).encode() if body is not None else None
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(urllib.request.Request(self._url + path, data), timeout=20) as answer:
                text = answer.read().decode()
            return json.loads(text) if path.startswith("/api/") else text
        return None


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    if importlib.util.find_spec("flower") is None:
        pytest.skip("flower is not installed (it is in the extra `dev`)")
    return site()


@pytest.fixture
def flower(here: Site) -> Iterator[Flower]:
    flower = Flower(here)
    try:
        yield flower
    finally:
        flower.process.send_signal(signal.SIGTERM)
        flower.process.wait(60)


def test_flower_shows_workers_and_tasks_and_controls_them(here: Site, flower: Flower) -> None:
    with Worker(here, "threads").wait_ready():

        def queues() -> set[str]:
            """Of the worker, who may be too slow for Flower."""
            told = (flower.ask("/api/workers?refresh=1") or {}).get("w@test", {})
            return {queue["name"] for queue in told.get("active_queues", ())}

        wait_until(lambda: queues() == {"celery", "other"}, 60, "the worker is listed with its queues")
        wait_until(lambda: "w@test" in (flower.ask("/") or ""), 20, "the dashboard shows it")

        done: dict[str, str] = {}

        def shown() -> bool:  # Flower hears of what happens after it began to listen
            done["id"] = here.s("add", 2, 3).delay().id
            told = [flower.ask(f"/api/task/info/{done['id']}") for _ in range(3)]
            return any(each and each["state"] == "SUCCESS" and each["result"] == "5" for each in told)

        wait_until(shown, 60, "a task is shown")
        assert done["id"] in flower.ask("/api/tasks")
        assert flower.ask("/api/task/async-apply/celery_tasks.work", {"args": ["flowers"]})["task-id"]
        wait_until(lambda: "flowers" in here.done(), 20, "the task that Flower sent")
        cancel = "/api/worker/queue/cancel-consumer/w@test?queue=other"
        wait_until(lambda: (flower.ask(cancel, {}) or {}).get("message"), 60, "the worker says that it obeys")
        wait_until(lambda: queues() == {"celery"}, 60, "the worker obeys")
