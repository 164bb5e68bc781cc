"""Fuzzes one target: `python tests/fuzz/run.py TARGET [--seconds N]`. Without a target it lists them.

With atheris (`pip install atheris`) the coverage of `rocketq` guides it; else inputs of the corpus are changed at
random. New inputs are kept in a directory of their own (`--work`); `--minimize` merges them into tests/fuzz/corpus. A
finding is written to `--work` and ends the run with its traceback.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = tuple(sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))
for kit in (HERE, HERE.parent, HERE.parent / "broker", HERE.parent / "remoting"):
    sys.path.insert(0, str(kit))


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def mutated(rng: random.Random, inputs: list[bytes]) -> bytes:
    """An input with some bytes changed, put in, taken out, or from another input."""
    data = bytearray(rng.choice(inputs))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 40)]
            case 3:
                value = rng.choice((0, 1, 4, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)))
                data[at : at + 4] = value.to_bytes(4, "big")
            case 4:
                other = rng.choice(inputs)
                start = rng.randrange(len(other) + 1)
                data[at:at] = other[start : start + rng.randint(1, 60)]
            case 5:
                end = at + rng.choice((1, 8, 100, 512))
                data[at:end] = bytes(len(data[at:end]))
    return bytes(data)


def loop(run_one: Callable[[bytes], object], inputs: list[bytes], seed: int, more: Callable[[int], bool]) -> int:
    """Run changed inputs while `more(number of the round)`; returns the rounds. A finding names seed and bytes."""
    rng = random.Random(seed)
    number = 0
    while more(number):
        data = mutated(rng, inputs)
        number += 1
        try:
            run_one(data)
        except Exception as error:
            raise AssertionError(f"round {number} of seed {seed}: {data.hex()}") from error
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("fuzzing"), help="keeps new inputs and findings")
    parser.add_argument("--minimize", action="store_true", help="merge what --work has into the corpus, and end")
    parser.add_argument("--largest", type=int, default=4096, help="bytes of the largest input")
    parser.add_argument(
        "--inner", action="store_true", help=argparse.SUPPRESS
    )  # libFuzzer merges in such a process
    options, of_libfuzzer = parser.parse_known_args()
    target = options.target
    logging.lastResort = logging.NullHandler()  # type: ignore[assignment]
    if target is None:
        sys.stdout.write(" ".join(TARGETS) + "\n")
        return
    try:
        import atheris
    except ImportError:
        module = importlib.import_module(f"fuzz_{target}")
        end = time.monotonic() + options.seconds
        inputs = corpus(target) or list(module.seeds())
        rounds = loop(module.run_one, inputs, random.getrandbits(32), lambda number: time.monotonic() < end)
        sys.stdout.write(f"{target}: {rounds} executions in {options.seconds} s without atheris, nothing found\n")
        return
    with atheris.instrument_imports(include=["rocketq", "rocketq_kombu"]):
        module = importlib.import_module(f"fuzz_{target}")
    work = options.work / target
    for directory in () if options.inner else (work, CORPUS / target):
        directory.mkdir(parents=True, exist_ok=True)
    for seed in () if options.inner else module.seeds():
        (work / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    arguments = [f"-max_len={options.largest}", "-rss_limit_mb=4096", f"-artifact_prefix={work}-"]
    if options.minimize:
        arguments += ["-merge=1", str(CORPUS / target), str(work)]
    else:
        arguments += [
            f"-max_total_time={options.seconds}",
            f"-dict={HERE / 'tokens.dict'}",
            "-timeout=20",
            "-print_final_stats=1",
            str(work),
            str(CORPUS / target),
        ]
    again = f"{sys.executable} {__file__} {target} --inner"
    atheris.Setup([again, *(of_libfuzzer if options.inner else arguments)], module.run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
