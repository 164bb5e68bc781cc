"""The inputs that fuzzing has kept, and a few changed ones, through every target; see docs/security.md."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
run = importlib.import_module("run")

#: The same inputs in every run; `run.py` looks for new ones.
SEED = 1
#: Changed inputs besides the corpus.
ROUNDS = {"files": 15, "check": 15, "timer": 40, "slave": 100, "store": 50, "requests": 300, "pops": 500}


@pytest.mark.parametrize("target", run.TARGETS)
def test_kept_and_changed_inputs_do_no_harm(target: str) -> None:
    module = importlib.import_module(f"fuzz_{target}")
    kept = run.corpus(target)
    assert kept, f"tests/fuzz/corpus/{target} is empty"
    try:
        for data in kept:
            module.run_one(data)
        rounds = ROUNDS.get(target, 2000)
        assert run.loop(module.run_one, kept, SEED, lambda done: done < rounds) == rounds
    finally:
        getattr(module, "end", lambda: None)()


def test_a_target_runs_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(run.HERE / "run.py"), "expressions", "--seconds", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "executions in 1 s" in done.stdout or "Done " in done.stderr
