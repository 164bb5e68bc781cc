"""The main job, as a reader runs it, with a part of the data."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from servers import start_server

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "examples" / "flights"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith(("NAMESRV", "NAMESRV_ADDR"))
    }
    command = [sys.executable, str(FLIGHTS / "run.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110, env=environment)


def test_the_main_job_proves_its_counts_and_orders(tmp_path: Path) -> None:
    done = run("--limit", "1500", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "embedded server: namesrv=127.0.0.1:" in done.stdout
    assert "1,500 departures" in done.stdout
    assert len(re.findall(r"^  ok ", done.stdout, re.MULTILINE)) == 6
    assert "all right" in done.stdout


def test_the_main_job_runs_twice_against_a_server_that_is_there(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        for _ in range(2):
            done = run("--limit", "300", "--namesrv", server.namesrv, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "300 of 300" in done.stdout


@pytest.fixture
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_run", FLIGHTS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flights_run"] = module
    spec.loader.exec_module(module)
    return module


def journal(folder: Path, flights: list[dict[str, object]], kind: str = "") -> list[str]:
    lines = [
        f"{moment},{group},{f['run']},{f['aircraft']},{f['leg']},{f['kind']},{f['time']}"
        for moment, f in enumerate(flights)
        for group in ("late", "order", "board")
        if group != "late" or f["kind"] == "late"
    ]
    (folder / "1.csv").write_text("\n".join(lines[::2]) + "\n")
    (folder / "2.csv").write_text("\n".join(lines[1::2]) + "\n")
    return lines


@pytest.mark.parametrize("fault", ["", "lost", "swapped", "stray", "another run"])
def test_the_proof_finds_what_is_wrong(job: ModuleType, tmp_path: Path, fault: str) -> None:
    flights = job.departures(800, "r")
    expected = {"late": sum(f["kind"] == "late" for f in flights), "order": 800, "board": 800}
    consumed = [dict(flight) for flight in flights]
    if fault == "lost":
        del consumed[400]
    if fault == "swapped":
        second = next(i for i, f in enumerate(consumed) if f["leg"] == 2)
        first = next(i for i, f in enumerate(consumed) if f["aircraft"] == consumed[second]["aircraft"])
        consumed[first], consumed[second] = consumed[second], consumed[first]
    if fault == "another run":
        consumed[0]["run"] = "q"
    journal(tmp_path, consumed)
    if fault == "stray":
        with (tmp_path / "1.csv").open("a") as file:
            file.write("9999,late,r,N1,1,ontime,2013-01-01T00:00\n")
    journals = job.Journals(tmp_path, "r")
    journals.read()
    assert job.summary(journals, expected, flights) is (fault == "")


def test_a_line_that_is_half_written_is_read_when_it_is_whole(job: ModuleType, tmp_path: Path) -> None:
    journals, path = job.Journals(tmp_path, "r"), tmp_path / "1.csv"
    path.write_text("1,late,r,N1,1,late,2013-01-01T00:00\n2,late,r,N1,")
    journals.read()
    assert len(journals.groups["late"].seen) == 1
    with path.open("a") as file:
        file.write("2,late,2013-01-01T01:00\n2,late,r,N1,2,late,2013-01-01T01:00\n")
    journals.read()
    assert (len(journals.groups["late"].seen), journals.groups["late"].duplicates) == (2, 1)


def test_the_data_is_what_its_readme_says(job: ModuleType) -> None:
    with gzip.open(FLIGHTS / "2013-01.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27_004
    assert (FLIGHTS / "2013-01.csv.gz").stat().st_size < 500_000
    for row in rows:
        delay = int(row["arr_delay"] or row["dep_delay"] or 0)
        kind = "cancelled" if not row["dep_delay"] else "late" if delay >= 15 else "ontime"
        assert row["kind"] == kind
    flights = job.departures(None, "r")
    assert [f["time"] for f in flights] == sorted(str(f["time"]) for f in flights)
    legs = Counter(f["aircraft"] for f in flights)
    assert all(f["leg"] <= legs[f["aircraft"]] for f in flights)
