"""Periodic functions whose timer messages Apache's broker keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache import Apache
from app_processes import WorkerProcess

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

SOURCE = """
from datetime import datetime, timedelta
from rocketq import RocketQ

app = RocketQ("{name}")

@app.periodic(every=timedelta(seconds=2))
def beat(at: datetime):
    with open("out", "a") as file:
        file.write(f"{{at.timestamp():.0f}}\\n")

@app.periodic(cron="0 0 1 1 *", tz="UTC")
def yearly(): ...
"""


def test_apache_keeps_the_ticks(apache: Apache, tmp_path: Path, name: str) -> None:
    (tmp_path / "jobs.py").write_text(SOURCE.format(name=name))
    with WorkerProcess(tmp_path, "-A", "jobs:app", "--processes", "2", namesrv=apache.namesrv) as worker:
        worker.ready(2)
        worker.wait_lines(4, deadline=60)
        assert worker.stop() == 0
        ticks = sorted(int(line) for line in worker.lines())  # late ones come at once, to both processes
        assert ticks == list(range(ticks[0], ticks[-1] + 1, 2))
        assert "answered code 13" not in worker.output  # MESSAGE_ILLEGAL: due too late
