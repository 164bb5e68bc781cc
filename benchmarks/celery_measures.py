"""What the Celery benchmark measures: the same application, worker and publisher; only the broker's URL differs."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contenders import Server, wait_for
from measures import Figures, Scenario, Target

HERE = Path(__file__).parent
URLS = {
    "rocketq": "rocketq://{server.namesrv}",
    "redis": "redis://127.0.0.1:{server.port}/0",
    "rabbitmq": "amqp://guest:guest@127.0.0.1:{server.port}//",
}
#: For the recovery: what says that a worker is gone. The others need nothing, they see the connection's end.
PROMPT = {"redis": {"visibility_timeout": 2}}
#: RabbitMQ says by default nothing of what was published, and may lose it; rocketq does unless told otherwise.
CONFIRMED = {"rabbitmq": {"confirm_publish": True}}
UNCONFIRMED = {"rocketq": {"confirm_publish": False}}
#: Rounds of what takes minutes.
ONCE = 1
#: Seconds; a recovery that takes longer is not repeated.
LONG = 10.0
Options = dict[str, dict[str, object]]
_numbers = itertools.count(1)


@dataclass
class CeleryScale:
    """How much."""

    tasks: int = 3000
    turn: int = 300
    paced: int = 200
    etas: int = 10_000
    eta_from: float = 25.0
    eta_over: float = 30.0
    kills: int = 20


class Bench:
    """One measurement: a queue of its own on a server, a publisher and workers."""

    def __init__(self, server: Server, directory: Path, options: Options) -> None:
        self.queue = f"bench{os.getpid()}x{next(_numbers)}"
        self.journal = directory / f"journal-{self.queue}"
        self.journal.touch()
        self.anew = partial(Bench, server, directory, options)
        self.directory = directory
        self.environment = {
            **os.environ,
            "CELERY_BENCH_BROKER": URLS[server.name].format(server=server),
            "CELERY_BENCH_OPTIONS": json.dumps(options.get(server.name, {})),
            "CELERY_BENCH_JOURNAL": str(self.journal),
        }

    @contextmanager
    def publisher(self, kind: str, *rest: float) -> Iterator[Callable[[int], float]]:
        """Publishes so many tasks when it is called; returns the seconds that it took."""
        command = [sys.executable, str(HERE / "celery_app.py"), kind, self.queue, *map(str, rest)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env=self.environment, text=True, **pipes) as process:

            def publish(number: int) -> float:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                return float(process.stdout.readline())

            try:
                yield publish
            except BaseException:
                process.kill()
                raise

    def publish(self, kind: str, number: int, *rest: float) -> float:
        """The seconds that it took."""
        with self.publisher(kind, *rest) as publish:
            return publish(number)

    @contextmanager
    def worker(self, prefetch: int, concurrency: int = 2) -> Iterator[subprocess.Popen[bytes]]:
        """A worker, when it is ready. `prefetch`: unsettled tasks in all."""
        command = ["-m", "celery", "-A", "celery_app", "worker", "-Q", self.queue, "-c", str(concurrency)]
        quiet = ["--without-mingle", "--without-gossip", "-l", "warning", "-n", f"{next(_numbers)}@bench"]
        multiplier = f"--prefetch-multiplier={prefetch // concurrency}"
        log = self.directory / f"worker-{next(_numbers)}.log"
        ready = log.with_suffix(".ready")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, *quiet, multiplier],
                cwd=HERE,
                env={**self.environment, "CELERY_BENCH_READY": str(ready)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_for(lambda: ready.exists() or process.poll() is not None, "the worker")
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def lines(self, number: int, seconds: float = 300.0) -> list[list[float]]:
        """The journal's numbers, when it has so many lines."""
        wait_for(lambda: self.journal.read_bytes().count(b"\n") >= number, f"{number} lines", seconds)
        return [[float(word) for word in line.split()] for line in self.journal.read_text().splitlines()]


def bench(measure: Callable[[Bench, CeleryScale], Figures], scale: CeleryScale, options: Options):  # type: ignore[no-untyped-def]
    """A scenario's function."""

    def run(server: Server, _: object) -> Figures:
        with tempfile.TemporaryDirectory(prefix="celery-bench-") as directory:
            spent = server.cpu_seconds()
            figures = measure(Bench(server, Path(directory), options), scale)
            return {**figures, "server CPU s": server.cpu_seconds() - spent}

    return run


Turn = Callable[[], Figures]


class Turns:
    """A scenario's function for many short rounds, between which publishers and workers may stay.

    What the machine's host gives to others changes within seconds: so all servers get the same of it.
    """

    def __init__(
        self,
        begin: Callable[[Bench, CeleryScale], AbstractContextManager[Turn]],
        scale: CeleryScale,
        options: Options,
    ) -> None:
        self._begin = begin
        self._scale = scale
        self._options = options
        self._turns: dict[str, Turn] = {}
        self._stack = ExitStack()

    def __call__(self, server: Server, _: object) -> Figures:
        turn = self._turns.get(server.name)
        if turn is None:
            directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-bench-"))
            bench = Bench(server, Path(directory), self._options)
            turn = self._turns[server.name] = self._stack.enter_context(self._begin(bench, self._scale))
        spent = server.cpu_seconds()
        figures = turn()
        return {**figures, "server CPU s": server.cpu_seconds() - spent} if figures else {}

    def close(self) -> None:
        self._stack.close()
        self._turns.clear()


@contextmanager
def publishing(bench: Bench, scale: CeleryScale) -> Iterator[Turn]:
    with bench.publisher("publish") as publish:
        publish(scale.turn)  # warms up
        yield lambda: {"tasks/s": scale.turn / publish(scale.turn)}


def draining(prefetch: int) -> Callable[[Bench, CeleryScale], Figures]:
    def measure(bench: Bench, scale: CeleryScale) -> Figures:
        bench.publish("publish", scale.tasks)
        with bench.worker(prefetch):
            times = [when for _, when in bench.lines(scale.tasks // 100)]
        # the first hundred tasks are started before all of the worker is there
        return {"tasks/s": (scale.tasks - 200) / (max(times) - sorted(times)[1])}

    return measure


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@contextmanager
def latency(bench: Bench, scale: CeleryScale) -> Iterator[Turn]:
    with bench.worker(8), bench.publisher("pace", 100) as publish:
        lines = itertools.count(scale.paced, scale.paced)

        def turn() -> Figures:
            publish(scale.paced)
            waited = [seconds * 1000 for (seconds,) in bench.lines(next(lines))[-scale.paced :]]
            return {"p50 ms": percentile(waited, 0.5), "p99 ms": percentile(waited, 0.99)}

        turn()  # warms up
        yield turn


def anonymous(pid: int) -> float:
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def etas(bench: Bench, scale: CeleryScale) -> Figures:
    with bench.worker(8) as worker:
        before = anonymous(worker.pid)
        bench.publish("eta", scale.etas, scale.eta_from, scale.eta_over)
        time.sleep(2)  # the worker takes in what it keeps itself
        held = anonymous(worker.pid)
        after = [seconds * 1000 for (seconds,) in bench.lines(scale.etas)]
    return {
        "late p50 ms": percentile(after, 0.5),
        "late p99 ms": percentile(after, 0.99),
        "earliest ms": min(after),
        "worker MiB more": held - before,
    }


@contextmanager
def recovery(bench: Bench, _: CeleryScale) -> Iterator[Turn]:
    """A kill each turn; where one took long, no more."""
    taken = 0.0

    def turn() -> Figures:
        nonlocal taken
        if taken > LONG:
            return {}
        taken = back_after(bench.anew())
        return {"back after ms": taken * 1000}

    yield turn


def back_after(bench: Bench) -> float:
    """Two tasks run in a worker that is killed; another one is ready. The seconds until both run there.

    The worker's main process, which has its connections, is killed first and its pool at once after it: in which order
    the kernel takes three processes of a group, and frees their memory, is chance, and half of the time.
    """
    with bench.worker(2) as first:
        bench.publish("hold", 2, 8)
        bench.lines(2)
        with bench.worker(2):
            killed = time.time()
            first.kill()
            os.killpg(first.pid, signal.SIGKILL)
            again = [when for _, when in bench.lines(4)][2:]
    return max(again) - killed


def scenarios(scale: CeleryScale) -> list[Scenario]:
    servers = ("rocketq", "redis", "rabbitmq")

    def against(metric: str, redis: float = 1.0, rabbitmq: float = 1.0) -> list[Target]:
        return [Target(metric, ratio=redis, rival="redis"), Target(metric, ratio=rabbitmq, rival="rabbitmq")]

    def scenario(name: str, title: str, measure, targets, options=CONFIRMED, rounds=None, turns=1) -> Scenario:  # type: ignore[no-untyped-def]
        measured = bench(measure, scale, options)
        return Scenario(name, title, measured, "celery", servers, targets, rounds=rounds, turns=turns)

    def in_turns(name: str, title: str, begin, targets, turns, options=CONFIRMED, rounds=None) -> Scenario:  # type: ignore[no-untyped-def]
        measured = Turns(begin, scale, options)
        return Scenario(
            name, title, measured, "celery", servers, targets, rounds=rounds, turns=turns, close=measured.close
        )

    return [
        in_turns("publish", "one process publishes, confirmed", publishing, against("tasks/s"), 20),
        in_turns("blind", "the same, unconfirmed", publishing, against("tasks/s"), 20, UNCONFIRMED),
        scenario(
            "drain-4",
            "two processes work a backlog off, prefetch 4",
            draining(4),
            against("tasks/s", 1.3),
            turns=2,
        ),
        scenario("drain-64", "the same, prefetch 64", draining(64), against("tasks/s", 1.3), turns=2),
        in_turns(
            "latency",
            "100 tasks a second, publish to start",
            latency,
            [*against("p50 ms"), *against("p99 ms")],
            6,
        ),
        scenario(
            "eta",
            f"{scale.etas:,} tasks with an eta",
            etas,
            [*against("late p50 ms"), *against("late p99 ms"), *against("worker MiB more")],
            rounds=ONCE,
        ),
        in_turns("recovery", "kill -9 of a worker", recovery, against("back after ms"), scale.kills, PROMPT, ONCE),
    ]
