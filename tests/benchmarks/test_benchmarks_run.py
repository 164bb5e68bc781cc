"""The command begins, and which measurements count."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
# by its path, as other directories have a module of the name as well
run = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "run.py")))


def test_the_command_begins_outside_of_tests() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=BENCHMARKS.parent, stdout=subprocess.PIPE, check=True
    )
    assert b"--rounds" in told.stdout


@pytest.mark.parametrize(
    ("others", "kept", "times", "said"),
    [
        ([0.0], 1, 1, False),
        ([900.0, 0.0], 2, 2, False),
        ([900.0, 300.0, 600.0], 2, 3, True),
    ],
)
def test_a_measurement_that_others_disturb_is_repeated_and_the_quietest_is_kept(
    others: list[float], kept: int, times: int, said: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int] = []

    def measure(server: Any, scale: Any) -> dict[str, float]:
        made.append(len(made) + 1)
        return {"figure": float(made[-1])}

    # each measurement takes a second of this clock
    monkeypatch.setitem(
        run.Run.undisturbed.__globals__, "time", SimpleNamespace(monotonic=lambda: float(len(made)))
    )
    used = [seconds for each in others for seconds in (0.0, each)]
    monkeypatch.setattr(run.Run, "others_seconds", lambda self, server: used.pop(0))
    benchmark = run.Run([], 1, run.Scale(), tmp_path, busy=0.04, guests_only=True)
    scenario: Any = SimpleNamespace(name="scenario", measure=measure)
    server: Any = SimpleNamespace(name="rocketq")
    assert benchmark.undisturbed(scenario, server) == {"figure": kept}
    assert len(made) == times
    assert ("1 measurements were kept" in benchmark.disturbance) is said


def test_what_the_server_itself_uses_is_not_others(tmp_path: Path) -> None:
    server: Any = SimpleNamespace(cpu_seconds=lambda: 1000.0)
    benchmark = run.Run([], 1, run.Scale(), tmp_path, busy=0.04)
    with_server = benchmark.others_seconds(SimpleNamespace(cpu_seconds=lambda: 0.0))  # type: ignore[arg-type]
    assert with_server - benchmark.others_seconds(server) == pytest.approx(1000, abs=60)
