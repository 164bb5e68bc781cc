"""The Celery benchmark against our server: its application, publisher and worker do what is measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers import start_server

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import celery_measures


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start_server(tmp_path_factory.mktemp("data")) as process:
        yield SimpleNamespace(name="rocketq", namesrv=process.namesrv, cpu_seconds=lambda: 0.0)


@pytest.mark.parametrize("name", ["publish", "drain-64", "latency", "eta"])
def test_a_scenario_measures(server: Any, name: str) -> None:
    scale = celery_measures.CeleryScale(tasks=500, turn=50, paced=50, etas=50, eta_from=3.0, eta_over=1.0)
    (scenario,) = [one for one in celery_measures.scenarios(scale) if one.name == name]
    try:
        figures = scenario.measure(server, None)  # type: ignore[arg-type]
    finally:
        scenario.close()
    assert all(target.metric in figures for target in scenario.targets)
    if name == "eta":
        assert figures["earliest ms"] >= 0
    else:
        assert min(value for metric, value in figures.items() if "CPU" not in metric) > 0
