"""A month of real departures through a durable broker: tags, order per key, competing consumers. Proves its result.

    python examples/flights/run.py                              # starts its own server
    python examples/flights/run.py --namesrv 10.0.0.1:9876      # uses yours: rocketq's or Apache RocketMQ

Exit code 0: every count and every aircraft's order was right; 1: something was not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import gzip
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocketq import EmbeddedServer
from rocketq.client.admin import Admin
from rocketq.errors import RouteNotFound
from rocketq.remoting.bodies import TopicConfig

HERE = Path(__file__).parent
DATA = HERE / "2013-01.csv.gz"
#: Sends under way at once. One aircraft is always in the same lane, and a lane waits for each answer before it sends
#: the next departure: a broker may work on several requests of one connection at a time.
LANES = 64
#: Seconds without anything consumed after which the run has failed.
PATIENCE = 60


def departures(limit: int | None, run: str) -> list[dict[str, object]]:
    """The data set in order of time; a cancelled flight without an aircraft goes by its flight number."""
    found: list[dict[str, object]] = []
    legs: Counter[str] = Counter()
    with gzip.open(DATA, "rt", encoding="ascii", newline="") as file:
        for row in csv.DictReader(file):
            if limit is not None and len(found) == limit:
                break
            aircraft = row["tailnum"] or row["carrier"] + row["flight"]
            legs[aircraft] += 1
            found.append(
                {
                    "run": run,
                    "leg": legs[aircraft],
                    "time": row["time"],
                    "kind": row["kind"],
                    "carrier": row["carrier"],
                    "flight": row["flight"],
                    "aircraft": aircraft,
                    "origin": row["origin"],
                    "dest": row["dest"],
                    "dep_delay": int(row["dep_delay"]) if row["dep_delay"] else None,
                    "arr_delay": int(row["arr_delay"]) if row["arr_delay"] else None,
                    "distance": int(row["distance"]),
                }
            )
    return found


class WorkerProcess:
    """One `rocketq worker` of app.py, with its output in a file."""

    def __init__(self, name: str, log: Path, *arguments: str) -> None:
        self.name, self.log = name, log
        command = [sys.executable, "-m", "rocketq", "worker", "-A", "app:app", *arguments]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=HERE, stdout=out, stderr=subprocess.STDOUT)

    async def ready(self) -> None:
        while "rocketq worker ready" not in self.log.read_text():
            self.check()
            await asyncio.sleep(0.05)

    def check(self) -> None:
        if self.process.poll() is not None:
            sys.exit(f"worker {self.name} ended with code {self.process.returncode}:\n{self.log.read_text()}")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait()


@dataclass
class Group:
    """What one consumer group has done so far, read from the workers' journals."""

    seen: dict[tuple[str, int], tuple[int, str, str]] = field(default_factory=dict)  # (aircraft, leg): first time
    duplicates: int = 0
    members: Counter[str] = field(default_factory=Counter)


class Journals:
    """Follows the files that `note` in app.py writes."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self.groups: dict[str, Group] = defaultdict(Group)
        self._positions: Counter[Path] = Counter()

    def read(self) -> None:
        for path in sorted(self.folder.glob("*.csv")):
            with path.open("rb") as file:
                file.seek(self._positions[path])
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._positions[path] += len(whole)
            for line in whole.decode().splitlines():
                moment, name, run, aircraft, leg, kind, departed = line.split(",")
                if run != self.run:
                    continue
                group, key, entry = self.groups[name], (aircraft, int(leg)), (int(moment), kind, departed)
                if key in group.seen:
                    group.duplicates += 1
                    entry = min(entry, group.seen[key])
                else:
                    group.members[path.stem] += 1
                group.seen[key] = entry


def make_topic(namesrv: str, topic: str) -> None:
    """Make sure the topic is on every broker: one that appears while we send would take keys from the others."""
    with Admin(namesrv) as admin:
        try:
            admin.route(topic)
        except RouteNotFound:
            admin.create_topic(TopicConfig(topic, read_queue_nums=8, write_queue_nums=8))
            print(f"topic {topic} made, 8 queues")


async def feed(flights: list[dict[str, object]], sent: Counter[str]) -> None:
    from app import TOPIC, app

    lanes: list[list[dict[str, object]]] = [[] for _ in range(LANES)]
    for flight in flights:
        lanes[hash(flight["aircraft"]) % LANES].append(flight)

    async def lane(part: list[dict[str, object]]) -> None:
        for flight in part:
            await app.asend(TOPIC, flight, tag=str(flight["kind"]), key=str(flight["aircraft"]))
            sent["sent"] += 1

    await asyncio.gather(*[lane(part) for part in lanes])


async def follow(
    journals: Journals, expected: dict[str, int], sent: Counter[str], workers: list[WorkerProcess]
) -> bool:
    """Show progress until everything was consumed. False when nothing moved for a while."""
    last, moved = -1, time.monotonic()
    while True:
        journals.read()
        counts = {name: len(journals.groups[name].seen) for name in expected}
        text = f"sent {sent['sent']:>6,}   " + "   ".join(f"{name} {count:>6,}" for name, count in counts.items())
        if sys.stdout.isatty():
            print(f"\r  {text}", end="", flush=True)
        total = sum(counts.values()) + sent["sent"]
        if total != last:
            last, moved = total, time.monotonic()
            if not sys.stdout.isatty():
                print(f"  {text}", flush=True)
        if counts == expected:
            print()
            return True
        for worker in workers:
            worker.check()
        if time.monotonic() - moved > PATIENCE:
            print(f"\nnothing was consumed for {PATIENCE} s")
            return False
        await asyncio.sleep(0.1 if sys.stdout.isatty() else 0.5)


def out_of_order(group: Group) -> list[str]:
    """The aircraft whose departures did not come in order: legs 1, 2, 3, … and never back in time."""
    legs: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for (aircraft, leg), (moment, _, departed) in group.seen.items():
        legs[aircraft].append((moment, leg, departed))
    wrong = []
    for aircraft, consumed in legs.items():
        consumed.sort()
        times = [departed for _, _, departed in consumed]
        if [leg for _, leg, _ in consumed] != list(range(1, len(consumed) + 1)) or times != sorted(times):
            wrong.append(aircraft)
    return wrong


def summary(journals: Journals, expected: dict[str, int], flights: list[dict[str, object]]) -> bool:
    """Print what was consumed against what the data set holds; returns whether all of it is right."""
    kinds = Counter(str(flight["kind"]) for flight in flights)
    aircraft = {str(flight["aircraft"]) for flight in flights}
    wrong_order = out_of_order(journals.groups["order"])
    stray = [kind for _, kind, _ in journals.groups["late"].seen.values() if kind != "late"]
    members = journals.groups["board"].members
    print(
        f"\n{len(flights):,} departures: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    )
    checks = []
    for name, count in expected.items():
        group = journals.groups[name]
        checks.append(
            (
                len(group.seen) == count,
                f"{name:<6} consumed {len(group.seen):,} of {count:,}"
                + (f", {group.duplicates:,} of them more than once" if group.duplicates else ", each once"),
            )
        )
    checks += [
        (not stray, f"late   got only late departures ({len(stray)} others)"),
        (not wrong_order, f"order  {len(aircraft) - len(wrong_order):,} of {len(aircraft):,} aircraft in order"),
        (len(members) == 2, "board  two members shared it: " + " and ".join(f"{n:,}" for n in members.values())),
    ]
    for good, text in checks:
        print(f"  {'ok   ' if good else 'WRONG'}  {text}")
    if wrong_order:
        print(f"         out of order: {', '.join(wrong_order[:5])}")
    return all(good for good, _ in checks)


NEXT = """
Try next (a server that stays, then each in a terminal of its own):
  {rocketq} server
  {rocketq} tail flights --tag cancelled
  {rocketq} worker -A {here}/app.py
  {python} {here}/run.py --namesrv 127.0.0.1:9876 --limit 1000
  {rocketq} worker --help
"""


def what_next() -> str:
    """Commands that can be pasted where this one was."""
    binaries = Path(sys.executable).parent
    rocketq = binaries / "rocketq"
    return NEXT.format(
        python=os.path.relpath(sys.executable),
        rocketq=os.path.relpath(rocketq) if rocketq.exists() else f"{os.path.relpath(sys.executable)} -m rocketq",
        here=os.path.relpath(HERE),
    )


async def main(namesrv: str, limit: int | None, folder: Path) -> bool:
    run = uuid.uuid4().hex[:8]
    flights = departures(limit, run)
    late = sum(flight["kind"] == "late" for flight in flights)
    expected = {"late": late, "order": len(flights), "board": len(flights)}
    os.environ["ROCKETQ_NAMESRV"], os.environ["FLIGHTS_JOURNAL"] = namesrv, str(folder)
    from app import TOPIC, app

    make_topic(namesrv, TOPIC)
    workers: list[WorkerProcess] = []
    tasks: list[asyncio.Task[Any]] = []
    try:
        workers.append(WorkerProcess("1", folder / "worker-1.log"))
        workers.append(WorkerProcess("2", folder / "worker-2.log", "--group", "flights-board"))
        await asyncio.gather(*[worker.ready() for worker in workers])
        print(f"two workers are ready (pid {workers[0].process.pid} and {workers[1].process.pid}); feeding")
        journals, sent = Journals(folder, run), Counter[str]()
        start = time.monotonic()
        feeding = asyncio.create_task(feed(flights, sent))
        following = asyncio.create_task(follow(journals, expected, sent, workers))
        tasks += [feeding, following]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        complete = following.done() and following.result()
        if feeding.done():
            feeding.result()
        print(f"{sum(expected.values()):,} consumptions in {time.monotonic() - start:.1f} s")
    finally:
        for task in tasks:
            task.cancel()
        codes = [worker.stop() for worker in workers]
        await app.aclose()
    if codes != [0, 0]:
        print(f"the workers ended with {codes}: see their logs\n" + "".join(w.log.read_text() for w in workers))
    journals.read()
    return summary(journals, expected, flights) and complete and codes == [0, 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namesrv", help="an existing cluster instead of an own server")
    parser.add_argument("--limit", type=int, help="only the first so many departures")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flights-")))
        address = options.namesrv
        if address is None:
            server = stack.enter_context(EmbeddedServer())
            address = server.namesrv
            print(f"embedded server: namesrv={address} broker={server.broker} pid={server.pid}")
        good = asyncio.run(main(address, options.limit, folder))
    print("all right" + what_next() if good else "NOT all right")
    sys.exit(0 if good else 1)
