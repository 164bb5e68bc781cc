from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_processes import WorkerProcess
from servers import ServerProcess, start_server

PRELUDE = """
import asyncio, os, threading, time
from rocketq import Reject, ReceivedMessage, Retry, RocketQ, consumer, signals

app = RocketQ("{name}")

def write(text, name="out"):
    with open(name, "a") as file:
        file.write(str(text) + "\\n")
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of this room, whose delays are short."""
    data = tmp_path_factory.mktemp("server")
    with start_server(data, "--set", "messageDelayLevel=" + " ".join(["1s"] * 18)) as running:
        yield running
        running.stop()


@pytest.fixture
def make_worker(
    tmp_path: Path, server: ServerProcess, request: pytest.FixtureRequest
) -> Iterator[Callable[..., WorkerProcess]]:
    """Writes `jobs.py` and starts `rocketq worker -A jobs:app`; the application is named after the test."""
    started: list[WorkerProcess] = []

    def make(source: str, *arguments: str, namesrv: str | None = server.namesrv) -> WorkerProcess:
        name = re.sub(r"[^\w-]", "", request.node.name)[:80]
        (tmp_path / "jobs.py").write_text(PRELUDE.format(name=name) + source)
        started.append(WorkerProcess(tmp_path, "-A", "jobs:app", *arguments, namesrv=namesrv))
        return started[-1]

    yield make
    for worker in started:
        worker.__exit__(None, None, None)
