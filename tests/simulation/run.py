"""Run seeds of the simulated cluster: ``python tests/simulation/run.py --seeds 10000``; see docs/simulation.md."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import warnings
from pathlib import Path

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of what a seed decides
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import doors

doors.install()

from simulation import live
from world import SeedFailed


def main() -> int:
    parser = argparse.ArgumentParser(description="Run seeds of the simulated cluster.")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, with its whole history")
    parser.add_argument("--sums", action="store_true", help="print the checksum of each seed's history")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    gc.disable()  # nobody cleans up in the middle of a seed; what runs when coroutines are thrown away is no news
    sys.unraisablehook = lambda unraisable: None
    logging.getLogger("rocketq").propagate = False
    logging.getLogger("rocketq").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    begun, failures, steps = doors.real_time(), 0, 0
    for number, seed in enumerate(seeds, 1):
        try:
            total, simulation = live(seed, show=arguments.seed is not None)
            steps += simulation.world.steps
            if arguments.sums:
                print(f"seed {seed}: {total:08x}")
        except SeedFailed as error:
            failures += 1
            print(f"{error}\n", flush=True)
        simulation = None
        gc.collect()
        if number % 100 == 0:
            print(
                f"{number} seeds, {failures} failed, {doors.real_time() - begun:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    seconds = doors.real_time() - begun
    print(f"{len(seeds)} seeds, {failures} failed, {steps} steps, {seconds:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
