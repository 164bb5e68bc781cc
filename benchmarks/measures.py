"""What is measured. A scenario runs against one server and returns named figures; run.py repeats and compares."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from contenders import Server
from loadgen import load

from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import RequestCode

Figures = dict[str, float]
BACKLOG = "Backlog"
_numbers = itertools.count()


@dataclass
class Scale:
    """How long and how much: the full run, or `--quick`."""

    seconds: float = 4.0
    backlog: int = 400_000
    memory_messages: int = 1_000_000
    topics: tuple[int, ...] = (1, 256, 10_000)
    warm_up: float = 25.0


@dataclass
class Target:
    """What the project wants. `ratio` is to the rival in the same round, `value` is absolute."""

    metric: str
    ratio: float | None = None
    value: float | None = None
    rival: str = "apache"

    def __str__(self) -> str:
        if self.ratio is not None:
            to = "" if self.rival == "apache" else f" to {self.rival}"
            return f"{self.metric} ratio{to} {'≥' if higher_is_better(self.metric) else '≤'} {self.ratio:g}"
        return f"{self.metric} {'≥' if higher_is_better(self.metric) else '≤'} {self.value:,.0f}"


@dataclass
class Scenario:
    name: str
    title: str
    measure: Callable[[Server, Scale], Figures]
    group: str = "load"  # which servers it shares: they are started once a group
    servers: tuple[str, ...] = ("rocketq", "apache")
    targets: list[Target] = field(default_factory=list)
    restart: bool = False  # every round on freshly started servers, same store
    rounds: int | None = None  # when fewer than usual are enough
    turns: int = 1  # so many times the usual rounds, which are short
    close: Callable[[], None] = lambda: None  # ends what rounds have in common


def higher_is_better(metric: str) -> bool:
    return metric.endswith("/s")


# ---- the server alone, under the lean load generator ----


def send(server: Server, scale: Scale, **options: object) -> Figures:
    """One run of the generator in mode `send`; what the server's processes spent is measured around it."""
    spent = server.cpu_seconds()
    options = {"seconds": scale.seconds, "skip": 0.3, "topic": f"Send{next(_numbers)}", **options}
    result = load("send", server.port, **options)
    share = scale.seconds / (scale.seconds + 0.3)  # of the CPU time, as the first 0.3 s are not counted
    return {
        "msg/s": result["rate"],
        "p50 µs": result["p50_us"],
        "p99 µs": result["p99_us"],
        "server CPU µs/msg": (server.cpu_seconds() - spent) * share / max(result["messages"], 1) * 1e6,
        **({"refused": result["errors"]} if result["errors"] else {}),
        "generator CPU": result["cpu_seconds"],
    }


def pipelined(header: str) -> Callable[[Server, Scale], Figures]:
    return lambda server, scale: send(server, scale, connections=4, in_flight=64, header=header)


def one_in_flight(header: str) -> Callable[[Server, Scale], Figures]:
    return lambda server, scale: send(server, scale, header=header)


def batches(server: Server, scale: Scale) -> Figures:
    return send(server, scale, connections=4, in_flight=4, batch=32)


def over_topics(number: int) -> Callable[[Server, Scale], Figures]:
    def measure(server: Server, scale: Scale) -> Figures:
        return send(server, scale, connections=4, in_flight=64, topics=number, queues=1, topic=f"Topics{number}")

    return measure


def fill(server: Server, messages: int, *, topic: str = BACKLOG, size: int = 1024) -> None:
    while messages > 0:  # a broker may refuse some by its flow control
        result = load(
            "send", server.port, connections=2, in_flight=4, batch=32, topic=topic, size=size, count=messages
        )
        messages -= int(result["messages"])


def pull(server: Server, scale: Scale) -> Figures:
    """Reads the whole backlog, which the first run writes."""
    if BACKLOG not in server.prepared:
        fill(server, scale.backlog)
        server.prepared.add(BACKLOG)
    spent = server.cpu_seconds()
    result = load("pull", server.port, connections=4, topic=BACKLOG, count=scale.backlog)
    return {
        "msg/s": result["rate"],
        "messages a pull": result["messages"] / result["answers"],
        "server CPU µs/msg": (server.cpu_seconds() - spent) / result["messages"] * 1e6,
        "generator CPU": result["cpu_seconds"],
    }


def pop(server: Server, scale: Scale) -> Figures:
    """A new group pops the backlog, up to 32 messages at a time, and acknowledges each answer with one request."""
    if BACKLOG not in server.prepared:
        fill(server, scale.backlog)
        server.prepared.add(BACKLOG)
    spent = server.cpu_seconds()
    result = load(
        "pop",
        server.port,
        connections=4,
        in_flight=2,
        topic=BACKLOG,
        count=scale.backlog,
        group=f"pop{next(_numbers)}",
        broker="broker-a",
    )
    return {
        "msg/s": result["rate"],
        "server CPU µs/msg": (server.cpu_seconds() - spent) / result["messages"] * 1e6,
        "generator CPU": result["cpu_seconds"],
    }


def timers_in(server: Server, scale: Scale) -> Figures:
    """Messages for in an hour."""
    return send(server, scale, connections=4, in_flight=64, delay_ms=3_600_000)


def timers_out(server: Server, scale: Scale) -> Figures:
    """A tenth of the backlog comes due in the same second; how long until all of it can be read."""
    topic, count = f"Timers{next(_numbers)}", scale.backlog // 10
    due = time.time() + 8
    load("send", server.port, connections=4, in_flight=64, topic=topic, count=count, deliver_at=int(due * 1000))
    if time.time() > due - 1:
        raise RuntimeError(f"{server.name} took so long to store {count} timers that they are due already")
    time.sleep(due - time.time())
    spent = server.cpu_seconds()
    with closing(BlockingClient()) as client:
        address = f"127.0.0.1:{server.port}"
        while True:
            ends = [
                int(
                    client.call(address, RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": str(queue)}).ext[
                        "offset"
                    ]
                )
                for queue in range(4)
            ]
            if sum(ends) >= count:
                break
            if time.time() > due + 120:
                raise RuntimeError(f"{server.name} delivered {sum(ends)} of {count} timers in two minutes")
            time.sleep(0.01)
    return {
        "msg/s": count / (time.time() - due),
        "server CPU µs/msg": (server.cpu_seconds() - spent) / count * 1e6,
        "generator CPU": 0.0,
    }


def timers_late(server: Server, scale: Scale) -> Figures:
    """Each message is for two seconds later; latency counts from the moment that it asked for."""
    result = load(
        "e2e",
        server.port,
        connections=2,
        rate=2000,
        seconds=scale.seconds,
        skip=1,
        delay_ms=2000,
        topic=f"Late{next(_numbers)}",
    )
    return {
        "late p50 ms": result["p50_us"] / 1000,
        "late p99 ms": result["p99_us"] / 1000,
        "late max ms": result["max_us"] / 1000,
        "generator CPU": result["cpu_seconds"],
    }


def pull_cold(server: Server, scale: Scale) -> Figures:
    """The server was just restarted; pulls of another topic warm its code (a JVM's JIT), not the pages."""
    load("send", server.port, connections=2, in_flight=4, batch=32, topic="Other", count=50_000)
    for _ in range(4):
        load("pull", server.port, connections=4, topic="Other")
    return pull(server, scale)


def end_to_end(server: Server, scale: Scale) -> Figures:
    spent = server.cpu_seconds()
    result = load(
        "e2e",
        server.port,
        connections=2,
        rate=2000,
        seconds=scale.seconds,
        skip=1,
        topic=f"EndToEnd{next(_numbers)}",
    )
    return {
        "p50 µs": result["p50_us"],
        "p99 µs": result["p99_us"],
        "p99.9 µs": result["p999_us"],
        "server CPU µs/msg": (server.cpu_seconds() - spent) / result["messages"] * 1e6,
        "generator CPU": result["cpu_seconds"],
    }


def warm_up(server: Server, seconds: float) -> None:
    """Every path once and long enough for a JIT: Apache's broker is several times faster after half a minute."""
    one = seconds / 10
    for _ in range(2):
        for header in ("json", "binary"):
            load(
                "send", server.port, connections=4, in_flight=64, header=header, topic="WarmUp", seconds=1.5 * one
            )
        load("send", server.port, topic="WarmUp", seconds=one)
        load("send", server.port, connections=4, in_flight=4, batch=32, topic="WarmUp", seconds=one / 2)
    for _ in range(3):
        load("pull", server.port, connections=4, topic="WarmUp")


# ---- the process ----


def start_up(server: Server, scale: Scale) -> Figures:
    return {"start s": server.start_seconds}


def first_seconds(server: Server, scale: Scale) -> Figures:
    return send(server, Scale(seconds=5), connections=4, in_flight=64, skip=0)


def memory(server: Server, scale: Scale) -> Figures:
    empty = server.memory()
    fill(server, scale.memory_messages, size=100)
    load("pull", server.port, connections=4, topic=BACKLOG, size=100)
    full = server.memory()
    return {
        "RSS MiB idle": empty["VmRSS"],
        "RssAnon MiB idle": empty["RssAnon"],
        "RSS MiB after": full["VmRSS"],
        "RssAnon MiB after": full["RssAnon"],
        "RssFile MiB after": full["RssFile"],
    }


# ---- client and server together ----


def client(workload: str) -> Callable[[Server, Scale], Figures]:
    """clients.py in a process of its own."""

    def measure(server: Server, scale: Scale) -> Figures:
        return run_client(server, workload, topic=f"Client{next(_numbers)}", seconds=scale.seconds)

    return measure


def consume(server: Server, scale: Scale) -> Figures:
    """A new group (for RabbitMQ: a new queue) reads what a producer has just written."""
    return read_backlog(server, scale, "consume")


def work_queue(server: Server, scale: Scale) -> Figures:
    """The same by POP; what Redis Streams and RabbitMQ do is this already."""
    return read_backlog(server, scale, "pop" if server.client == "rocketq" else "consume")


def read_backlog(server: Server, scale: Scale, workload: str) -> Figures:
    topic, count = f"Consume{next(_numbers)}", scale.backlog
    if server.client == "rocketq":
        fill(server, count, topic=topic)
    else:  # fewer, as their producers take their time
        count //= 4 if server.client == "redis" else 20
        run_client(server, "send-pipelined", topic=topic, count=count)
    return run_client(server, workload, topic=topic, count=count, group=f"group{next(_numbers)}")


def run_client(server: Server, workload: str, **options: object) -> Figures:
    spent = server.cpu_seconds()
    command = [sys.executable, str(Path(__file__).with_name("clients.py")), server.client, workload]
    command += ["--namesrv", server.namesrv, "--port", str(server.port)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"clients.py {server.client} {workload}: {done.stderr.strip()[-2000:]}")
    result = json.loads(done.stdout)
    return {
        "msg/s": result["rate"],
        "server CPU µs/msg": (server.cpu_seconds() - spent) / result["messages"] * 1e6,
        "client CPU µs/msg": result["cpu_seconds_measured"] / result["messages"] * 1e6,
        "generator CPU": result["cpu_seconds"],
    }


EVERYONE = ("rocketq", "apache", "redis", "rabbitmq")


def all_scenarios(scale: Scale) -> list[Scenario]:
    """In the order they run."""
    faster, latency = Target("msg/s", ratio=1.5), [Target("p50 µs", ratio=1.0), Target("p99 µs", ratio=1.0)]
    return [
        Scenario("send-json", "single sends, 4×64 in flight, JSON", pipelined("json"), targets=[faster]),
        Scenario("send-binary", "single sends, 4×64 in flight, binary", pipelined("binary"), targets=[faster]),
        Scenario("one-json", "one send in flight, JSON", one_in_flight("json"), targets=[faster]),
        Scenario("one-binary", "one send in flight, binary", one_in_flight("binary"), targets=[faster]),
        Scenario("batch-32", "batches of 32, 4×4 in flight", batches, targets=[Target("msg/s", ratio=1.0)]),
        Scenario("pull-hot", "pulls of 32, hot backlog", pull, targets=[Target("msg/s", ratio=0.5)]),
        Scenario("end-to-end", "end to end at 2,000 a second, long polling", end_to_end, targets=latency),
        Scenario("pop", "pops of 32, each answer acknowledged as a batch", pop),
        Scenario("timers-in", "timer messages in, 4×64 in flight, JSON", timers_in),
        Scenario("timers-out", f"{scale.backlog // 10:,} timers due in the same second", timers_out, rounds=3),
        Scenario(
            "timers-late",
            "2,000 timers a second, each for 2 s later",
            timers_late,
            targets=[Target("late p99 ms", value=100)],
        ),
        Scenario("pull-cold", "pulls of 32 after a restart", pull_cold, restart=True, rounds=3),
        *(
            Scenario(f"topics-{n}", f"single sends over {n:,} topics, 4×64, JSON", over_topics(n), group="topics")
            for n in scale.topics
        ),
        Scenario("send-sync-flush", "single sends, SYNC_FLUSH, 4×64, JSON", pipelined("json"), group="sync"),
        Scenario("start-up", "start until it serves", start_up, group="", restart=True),
        Scenario("first-seconds", "the first 5 s after start, 4×64, JSON", first_seconds, group="", rounds=3),
        Scenario("memory", f"memory at 0 and {scale.memory_messages:,} messages", memory, group="", rounds=1),
        Scenario(
            "client-pipelined",
            "client: pipelined sends",
            client("send-pipelined"),
            group="clients",
            servers=EVERYONE,
            targets=[Target("msg/s", value=40_000)],
        ),
        Scenario(
            "client-batched",
            "client: pipelined sends, automatic batching",
            client("send-batched"),
            group="clients",
        ),
        Scenario(
            "client-one", "client: one send in flight", client("send-one"), group="clients", servers=EVERYONE
        ),
        Scenario(
            "client-consume",
            "client: consume a backlog, acknowledged",
            consume,
            group="clients",
            servers=EVERYONE,
            targets=[Target("msg/s", value=100_000)],
        ),
        Scenario(
            "client-pop",
            "client: a work queue, each message leased and acknowledged",
            work_queue,
            group="clients",
            servers=EVERYONE,
            targets=[Target("msg/s", ratio=1.0, rival="redis")],
        ),
    ]
