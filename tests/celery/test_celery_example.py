"""examples/celery_app: an ordinary Celery project, of which only the broker's URL is ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ServerProcess, wait_until

APP = Path(__file__).parents[2] / "examples" / "celery_app"


def run(url: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=APP,
        env={**os.environ, "SHOP_BROKER": url},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_project_s_own_tests_pass(server: ServerProcess) -> None:
    assert "5 passed" in run(f"rocketq://{server.namesrv}/tests", "-m", "pytest", "-p", "no:cacheprovider")


@pytest.mark.parametrize("local", [False, True])
def test_the_project_runs_with_a_worker(server: ServerProcess, tmp_path: Path, local: bool) -> None:
    """On a server, and on none: the processes start one, which they share."""
    url = f"rocketq://{tmp_path / 'data'}" if local else f"rocketq://{server.namesrv}"
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-Q", "celery,mail", "-l", "info"],
            cwd=APP,
            env={**os.environ, "SHOP_BROKER": url},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: " ready." in log.read_text(), 100, "the worker is ready")
        said = run(url, "shop.py").splitlines()
    finally:
        worker.terminate()
        worker.wait(40)
    assert said == ["9 paid", "8 paid", "[0, 3, 6, 9, 12]", "dear ada"]
