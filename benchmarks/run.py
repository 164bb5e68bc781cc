"""The benchmark: starts its own servers, measures them in interleaved rounds, prints a table.

    python benchmarks/run.py                      everything, against every rival that is installed
    python benchmarks/run.py --quick              a few minutes, coarse
    python benchmarks/run.py --only send-json,one-json --rivals apache --rounds 7
    python benchmarks/run.py --full --write       10 million messages for the memory; into docs/performance.md

Needs a C compiler; Apache RocketMQ needs java and mvn (once, to fetch its jars); Redis and RabbitMQ count when
Debian's packages redis-server and rabbitmq-server are installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import loadgen
import report
from contenders import SERVERS, PeerMissing, Server
from measures import Figures, Scale, Scenario, all_scenarios, warm_up

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table: written by benchmarks/run.py -->", "<!-- end of table -->"
SETTINGS = {"sync": {"flushDiskType": "SYNC_FLUSH"}}


def say(text: str) -> None:
    print(text, flush=True)


class Run:
    """One invocation: which servers, how often, and what came out.

    `busy`: share of the machine that others may use in a measurement; with `guests_only` others are those with whom
    this virtual machine shares its host, as a workload's own processes cannot be told from those of anybody else.
    """

    def __init__(
        self,
        rivals: list[str],
        rounds: int,
        scale: Scale,
        root: Path,
        busy: float,
        drop_caches: bool = False,
        guests_only: bool = False,
    ) -> None:
        self.names = ["rocketq", *rivals]
        self.rounds = rounds
        self.scale = scale
        self.root = root
        self.busy = busy
        self.drop_caches = drop_caches
        self.guests_only = guests_only
        self.disturbed: list[float] = []
        self.results: list[tuple[Scenario, report.Rounds]] = []

    def group(self, name: str, scenarios: list[Scenario]) -> None:
        """Scenarios that share their servers; those of the group "" get fresh ones every round."""
        if not name:
            for scenario in scenarios:
                self.results.append((scenario, self.repeat(scenario, self.on_fresh_server)))
            return
        wanted = [n for n in self.names if any(n in scenario.servers for scenario in scenarios)]
        servers: dict[str, Server] = {}
        try:
            for server_name in wanted:
                servers[server_name] = SERVERS[server_name](self.root, **SETTINGS.get(name, {}))
                if not self.start(servers[server_name]):
                    servers.pop(server_name).remove()
            for scenario in scenarios:
                self.results.append(
                    (scenario, self.repeat(scenario, lambda s, n: self.on_running(s, servers.get(n))))
                )
        finally:
            for server in servers.values():
                server.remove()

    def start(self, server: Server) -> bool:
        """False when it is not installed here."""
        try:
            server.start()
        except PeerMissing as missing:
            say(f"{server.name}: left out, {missing}")
            self.names.remove(server.name)
            return False
        say(f"{server.name}: started in {server.start_seconds:.2f} s")
        if server.client == "rocketq" and self.scale.warm_up:
            warm_up(server, self.scale.warm_up)
        return True

    def repeat(self, scenario: Scenario, once: Callable[[Scenario, str], Figures | None]) -> report.Rounds:
        rounds: report.Rounds = {}
        with closing(scenario):
            for number in range(min(scenario.rounds or self.rounds, self.rounds) * scenario.turns):
                names = [n for n in self.names if n in scenario.servers]
                for name in names if number % 2 == 0 else reversed(names):
                    figures = once(scenario, name)
                    if not figures:
                        continue
                    rounds.setdefault(name, []).append(figures)
                    shown = ", ".join(
                        f"{k} {report.show(v)}" for k, v in figures.items() if k not in report.HIDDEN
                    )
                    say(f"  {scenario.name:17} round {number + 1} {name:9} {shown}")
        return rounds

    def on_running(self, scenario: Scenario, server: Server | None) -> Figures | None:
        if server is None:
            return None
        if scenario.restart:
            server.stop()
            self.forget_caches()
            server.start()
        return self.undisturbed(scenario, server)

    def on_fresh_server(self, scenario: Scenario, name: str) -> Figures | None:
        if SERVERS[name].client != "rocketq":
            return None
        server = SERVERS[name](self.root)
        try:
            server.start()
            return scenario.measure(server, self.scale)
        except PeerMissing:
            self.names.remove(name)
            return None
        finally:
            server.remove()

    def forget_caches(self) -> None:
        if self.drop_caches:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1\n")

    def undisturbed(self, scenario: Scenario, server: Server) -> Figures:
        """Measures up to three times when others use more of the machine than `busy`; keeps the quietest time."""
        quietest: tuple[float, Figures] | None = None
        for _ in range(3):
            began, before = time.monotonic(), self.others_seconds(server)
            figures = scenario.measure(server, self.scale)
            if not figures:  # enough of this server
                break
            others = self.others_seconds(server) - before - figures.get("generator CPU", 0.0)
            share = others / (time.monotonic() - began) / (os.cpu_count() or 1)
            if quietest is None or share < quietest[0]:
                quietest = share, figures
            if share <= self.busy:
                return figures
            say(f"  {scenario.name} {server.name}: others used {share:.0%} of the machine")
        if quietest is None:
            return {}
        self.disturbed.append(quietest[0])
        return quietest[1]

    def others_seconds(self, server: Server) -> float:
        """CPU time that was spent on others than the server."""
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        if self.guests_only:
            return steal / tick
        return (user + nice + system + irq + soft + steal) / tick - server.cpu_seconds()

    @property
    def disturbance(self) -> str:
        """What is to be said of measurements that others disturbed, if any."""
        if not self.disturbed:
            return ""
        share = statistics.median(self.disturbed)
        return f"; {len(self.disturbed)} measurements were kept although others used {share:.0%} of the machine"


def write_page(text: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements, two rounds")
    parser.add_argument(
        "--full", action="store_true", help="10 million messages for the memory figures (6 GB of disk)"
    )
    parser.add_argument("--only", default="", help="comma-separated names of scenarios (prefixes are enough)")
    parser.add_argument("--rivals", default="apache,redis,rabbitmq", help="comma-separated; empty for none")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 2")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="where the stores are put")
    parser.add_argument(
        "--busy", type=float, default=0.08, help="share of the machine that others may use in a round"
    )
    parser.add_argument(
        "--drop-caches", action="store_true", help="empty the page cache before cold pulls (root only)"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    scale = Scale()
    if options.quick:
        scale = Scale(seconds=1.5, backlog=100_000, memory_messages=200_000, topics=(1, 256), warm_up=10)
    if options.full:
        scale.memory_messages = 10_000_000
    rivals = [name for name in options.rivals.split(",") if name]
    if unknown := set(rivals) - set(SERVERS):
        parser.error(f"unknown rivals: {', '.join(sorted(unknown))}")
    only = tuple(name for name in options.only.split(",") if name)
    chosen = [s for s in all_scenarios(scale) if not only or s.name.startswith(only)]
    if not chosen:
        parser.error("--only matches no scenario: " + ", ".join(s.name for s in all_scenarios(scale)))
    loadgen.build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are ended, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rounds = options.rounds or (2 if options.quick else 5)
    run = Run(rivals, rounds, scale, options.data, options.busy, options.drop_caches)
    began = datetime.datetime.now()
    say(f"{report.machine()}\nload {os.getloadavg()[0]:.2f}, {rounds} rounds")
    try:
        for name, members in groupby(chosen, key=lambda scenario: scenario.group):
            run.group(name, list(members))
    except KeyboardInterrupt:
        say("stopped; what was measured so far:")
    shown = [argument for argument in sys.argv[1:] if argument not in ("--json", str(options.json))]
    command = "python benchmarks/run.py " + shlex.join(shown)
    took = (datetime.datetime.now() - began).total_seconds() / 60
    text = (
        f"{began:%Y-%m-%d %H:%M}, {report.machine()}  \n`{command.strip()}`, {took:.0f} minutes, "
        f"{rounds} interleaved rounds{run.disturbance}\n\n"
        f"{report.table(run.results)}"
    )
    say("\n" + text)
    if options.json:
        figures = {scenario.name: rounds for scenario, rounds in run.results}
        options.json.write_text(
            json.dumps({"machine": report.machine(), "command": command, "figures": figures}, indent=1)
        )
    if options.write:
        write_page(text)


if __name__ == "__main__":
    main()
