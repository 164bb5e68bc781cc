"""Celery on rocketq, Redis and RabbitMQ: the same tasks, interleaved, each broker started by the benchmark.

python -m benchmarks celery                                    everything, about 15 minutes
python -m benchmarks celery --quick --only drain --rounds 3    a part of it
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import report
from celery_measures import CeleryScale, scenarios
from measures import Scale
from run import Run, say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--only", default="", help="comma-separated names of scenarios (prefixes are enough)")
    parser.add_argument("--rivals", default="redis,rabbitmq", help="comma-separated; empty for none")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="default 3, each with 20 short turns of publishing, 2 of a backlog, 6 of the latency; etas once, 20 kills",
    )
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="where the stores are put")
    parser.add_argument(
        "--busy", type=float, default=0.04, help="share of the machine that its host may give to others in a round"
    )
    options = parser.parse_args()
    scale = CeleryScale(2000, 100, 100, 1000, 6.0, 3.0, 3) if options.quick else CeleryScale()
    only = tuple(name for name in options.only.split(",") if name)
    chosen = [scenario for scenario in scenarios(scale) if not only or scenario.name.startswith(only)]
    if not chosen:
        parser.error("--only matches none of " + ", ".join(scenario.name for scenario in scenarios(scale)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are ended, too
    rounds = options.rounds
    rivals = [name for name in options.rivals.split(",") if name]
    run = Run(rivals, rounds, Scale(warm_up=0), options.data, options.busy, guests_only=True)
    began = datetime.now()
    try:
        run.group("celery", chosen)
    except KeyboardInterrupt:
        say("stopped; what was measured so far:")
    took = (datetime.now() - began).total_seconds() / 60
    say(
        f"\n{began:%Y-%m-%d %H:%M}, {report.machine()}, load {os.getloadavg()[0]:.1f}, {took:.0f} minutes, "
        f"{rounds} interleaved rounds{run.disturbance}\n\n{report.table(run.results)}"
    )
