"""Celery's own integration suite (`t/integration` of its source distribution) on several brokers at the same time.

    python tests/celery/suite.py                        on rocketq, Redis and RabbitMQ
    python tests/celery/suite.py rocketq redis          on some of them
    python tests/celery/suite.py rocketq -- -k chord    what follows -- goes to pytest

Starts each broker anew, with a Redis of its own for the results. Takes half an hour, most of which is waiting.
Celery's sources and what its tests import are fetched from PyPI, once, into ``$ROCKETQ_CELERY_CACHE`` (default
``~/.cache/rocketq-celery``).
Prints passes and failures by broker and every test that did not end in the same way on all; the whole reports are left
in the cache. Exit code 1 when rocketq passes fewer than another broker of the tests that run on both: some ask for a
broker by name, and are skipped on all others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from contenders import SERVERS, PeerMissing, Redis, Server

#: Those whose figures are compared have to have run the same tests.
VERSION = "5.7.0"
NEEDS = [
    f"celery[auth,azureblockblob,gevent,redis,sqlalchemy]=={VERSION}",
    "django",
    "pytest",
    "pytest-order",
    "pytest-rerunfailures",
    "pytest-subtests",
    "pytest-timeout",
    "pydantic",
    "python-dateutil",
]
URLS = {
    "rocketq": "rocketq://{server.namesrv}",
    "redis": "redis://127.0.0.1:{server.port}/0",
    "rabbitmq": "amqp://guest:guest@127.0.0.1:{server.port}//",
}


def prepare() -> tuple[Path, Path, Path]:
    """The cache, Celery's sources in it, and a Python that has what its tests import, and this rocketq."""
    default = Path.home() / ".cache" / "rocketq-celery"
    cache = Path(os.environ.get("ROCKETQ_CELERY_CACHE") or default)
    sources, home = cache / f"celery-{VERSION}", cache / f"venv-{VERSION}"
    python = home / "bin" / "python"
    cache.mkdir(parents=True, exist_ok=True)
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
        (home / "complete").touch()
    if not sources.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as fetched:
            command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "celery", "-d", fetched]
            subprocess.run([*command, f"celery=={VERSION}"], check=True)
            with tarfile.open(next(Path(fetched).glob("*.tar.gz"))) as archive:
                archive.extractall(fetched, filter="data")
            (Path(fetched) / sources.name).rename(sources)
    subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT)], check=True)
    return cache, sources, python


def run(name: str, python: Path, sources: Path, report: Path, options: list[str]) -> dict[str, str] | None:
    """How every test ended on a fresh broker; None when it is not installed."""
    with tempfile.TemporaryDirectory(prefix="celery-suite-") as directory:
        server, results = SERVERS[name](Path(directory)), Redis(Path(directory))
        try:
            server.start()
            results.start()
            copy = shutil.copytree(sources, Path(directory) / "celery")  # the tests leave files
            run_pytest(server, python, copy, results, report, options)
            return outcomes(report)
        except PeerMissing as missing:
            print(f"{name}: left out, {missing}", flush=True)
            return None
        finally:
            server.remove()
            results.remove()


def run_pytest(
    server: Server, python: Path, sources: Path, results: Server, report: Path, options: list[str]
) -> None:
    backend = f"redis://127.0.0.1:{results.port}/0"
    environment = {
        **os.environ,
        "TEST_BROKER": URLS[server.name].format(server=server),
        "TEST_BACKEND": backend,
        "REDIS_PORT": str(results.port),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider"]
    where = [] if any(option.startswith("t/") for option in options) else ["t/integration"]
    with report.with_suffix(".log").open("w") as log:
        subprocess.run(
            [*command, "--timeout=300", "--tb=native", f"--junitxml={report}", "-rfEx", *where, *options],
            cwd=sources,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def outcomes(report: Path) -> dict[str, str]:
    """Of every test: passed, failed, error, skipped."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        name = f"{case.get('classname', '').removeprefix('t.integration.')}::{case.get('name')}"
        found[name] = "failed" if kind == "failure" else kind
    return found


def show(results: dict[str, dict[str, str]]) -> None:
    print("| broker | passed | failed | errors | skipped |\n|---|---|---|---|---|")
    for broker, found in results.items():
        count = Counter(found.values())
        print(f"| {broker} | {count['passed']} | {count['failed']} | {count['error']} | {count['skipped']} |")
    print()
    for test in sorted({test for found in results.values() for test in found}):
        ends = [found.get(test, "-") for found in results.values()]
        if len(set(ends)) > 1 or ends[0] in ("failed", "error"):
            print(f"{test}: " + ", ".join(f"{broker} {end}" for broker, end in zip(results, ends, strict=True)))


def is_behind(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Whether fewer of ours passed, of those that are skipped on neither."""
    both = [test for test, end in theirs.items() if "skipped" not in (end, ours.get(test))]
    return sum(ours.get(test) == "passed" for test in both) < sum(theirs[test] == "passed" for test in both)


def main() -> int:
    wanted = sys.argv[1:]
    options: list[str] = []
    if "--" in wanted:
        cut = wanted.index("--")
        wanted, options = wanted[:cut], wanted[cut + 1 :]
    cache, sources, python = prepare()
    names = wanted or list(URLS)
    with ThreadPoolExecutor(len(names)) as executor:
        found = list(executor.map(lambda name: run(name, python, sources, cache / f"{name}.xml", options), names))
    results = {name: ends for name, ends in zip(names, found, strict=True) if ends is not None}
    show(results)
    ours = results.get("rocketq")
    return int(ours is not None and any(is_behind(ours, rival) for rival in results.values()))


if __name__ == "__main__":
    sys.exit(main())
