"""The example application, unchanged, on Apache's server and on ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from wire import Server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

RUN = Path(__file__).parents[2] / "examples" / "flights" / "run.py"


def test_the_flights_example_passes(server: Server) -> None:
    command = [sys.executable, str(RUN), "--namesrv", server.namesrv, "--limit", "4000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all right" in done.stdout
    assert "WRONG" not in done.stdout
