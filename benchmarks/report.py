"""Medians, spreads, ratios, and the markdown table."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path

from measures import Figures, Scenario, Target

Rounds = dict[str, list[Figures]]  # figures of each round by server; rounds of one index ran side by side
HIDDEN = {"generator CPU"}


def show(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(values: Iterable[float]) -> str:
    """The median, and the smallest and largest value behind it."""
    numbers = sorted(values)
    middle = show(statistics.median(numbers))
    return middle if len(numbers) == 1 else f"{middle} ({show(numbers[0])}–{show(numbers[-1])})"


def ratios(rounds: Rounds, metric: str, rival: str = "apache") -> list[float]:
    """Ours to the rival's, pair by pair: both of one pair ran within seconds of each other."""
    pairs = zip(rounds.get("rocketq", []), rounds.get(rival, []), strict=False)
    return [ours[metric] / theirs[metric] for ours, theirs in pairs if metric in ours and theirs.get(metric)]


def verdict(target: Target, rounds: Rounds) -> str:
    if target.ratio is not None:
        measured = ratios(rounds, target.metric, target.rival)
        wanted = target.ratio
    else:
        measured = [figures[target.metric] for figures in rounds.get("rocketq", [])]
        wanted = target.value or 0.0
    if not measured:
        return f"{target}: not measured"
    middle = statistics.median(measured)
    met = middle >= wanted if target.metric.endswith("/s") else middle <= wanted
    return f"{target}: {'met' if met else '**missed**'}"


def table(results: list[tuple[Scenario, Rounds]]) -> str:
    """One row per scenario and figure; columns are the servers that took part in any of them."""
    servers = [name for name in ("rocketq", "apache", "redis", "rabbitmq") if any(name in r for _, r in results)]
    versus = "apache" in servers and "rocketq" in servers
    head = ["scenario", "figure", *servers, *(["rocketq / apache"] if versus else []), "target"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for scenario, rounds in results:
        metrics = dict.fromkeys(m for figures in rounds.values() for f in figures for m in f if m not in HIDDEN)
        for row, metric in enumerate(metrics):
            cells = [scenario.title if row == 0 else "", metric]
            for name in servers:
                values = [figures[metric] for figures in rounds.get(name, []) if metric in figures]
                cells.append(spread(values) if values else "–")
            if versus:
                pairs = ratios(rounds, metric)
                cells.append(spread(pairs) if pairs else "–")
            cells.append("; ".join(verdict(t, rounds) for t in scenario.targets if t.metric == metric))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """The machine in one line."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} × {cpu}, {memory:.0f} GiB, {system}"
