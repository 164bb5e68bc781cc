"""A disk that takes seconds to flush: who needs it waits, or is told; nobody else notices; what was answered is there.

The server is a real process in which every fsync, fdatasync and sync takes as long as the file `slow` says.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import ServerProcess, start_server, wait_until

sys.path.insert(0, str(Path(__file__).parent))

from members import MemberProcess

from rocketq.client import Producer
from rocketq.client.admin import Admin
from rocketq.errors import RocketQError
from rocketq.message import Message
from rocketq.remoting import headers
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import HeartbeatData, ProducerData, TopicConfig
from rocketq.remoting.codes import PullFlag, RequestCode
from rocketq.remoting.command import Command

TOPIC = "Slow"
#: Seconds that a flush takes at first and later, and seconds that requests may take which need none: a loop that waits
#: for one flush only costs more.
SLOW, SLOWER, SOON = 1.0, 3.0, 2.5
BODY = 2000

_SLOW = """
import os, runpy, sys, time
path = sys.argv.pop(1)

def slow(call):
    def wrapped(*arguments):
        with open(path) as file:
            time.sleep(float(file.read()))
        return call(*arguments)
    return wrapped

for name in ("fsync", "fdatasync", "sync"):
    setattr(os, name, slow(getattr(os, name)))
sys.argv[0] = "rocketq"
runpy.run_module("rocketq", run_name="__main__")
"""


class Others:
    """Clients that need no disk: pulls, heartbeats, look-ups, each on and on. `longest`: seconds, by kind."""

    def __init__(self, server: ServerProcess) -> None:
        self.longest: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self.errors: list[RocketQError] = []
        self._stop = threading.Event()
        beat = HeartbeatData("others", producer_data_set=[ProducerData("others")]).encode()
        pull = headers.PullMessageHeader(
            consumer_group="others",
            topic=TOPIC,
            queue_id=0,
            queue_offset=0,
            max_msg_nums=1,
            sys_flag=int(PullFlag.SUBSCRIPTION),
            commit_offset=0,
            suspend_timeout_millis=0,
            subscription="*",
            sub_version=0,
            expression_type="TAG",
        )
        route = headers.GetRouteInfoHeader(topic=TOPIC)
        calls: dict[str, Callable[[BlockingClient], Command]] = {
            "pull": lambda client: client.call(server.broker, RequestCode.PULL_MESSAGE, pull, timeout=20),
            "heartbeat": lambda client: client.call(server.broker, RequestCode.HEART_BEAT, {}, beat, timeout=20),
            "route": lambda client: client.call(
                server.namesrv, RequestCode.GET_ROUTEINFO_BY_TOPIC, route, timeout=20
            ),
        }
        self._threads = [threading.Thread(target=self._run, args=call) for call in calls.items()]
        for thread in self._threads:
            thread.start()

    def _run(self, kind: str, call: Callable[[BlockingClient], Command]) -> None:
        while not self._stop.wait(0.01):
            client = BlockingClient()  # connecting is a part of it
            begun = time.monotonic()
            try:
                call(client)
            except RocketQError as error:
                self.errors.append(error)
            finally:
                client.close()
            self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - begun)
            self.done[kind] += 1

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Senders:
    """Producers that send on and on; `statuses` counts the answers, `sent` has the bodies of those with SEND_OK."""

    def __init__(self, namesrv: str, count: int) -> None:
        self.sent: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self._namesrv = namesrv
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        number = 0
        with Producer(f"sender-{index}", self._namesrv, retries=0) as producer:
            while not self._stop.wait(0.002):
                name = f"{index}:{number}"
                number += 1
                try:
                    status = producer.send(Message(TOPIC, name.ljust(BODY).encode()), timeout=20).status
                except RocketQError as error:
                    status = type(error).__name__
                else:
                    if status == "SEND_OK":
                        self.sent.add(name)
                self.statuses[status] += 1

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def memory(server: ServerProcess) -> int:
    """Resident MiB of its own."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) >> 10


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_nobody_waits_for_a_slow_disk_who_does_not_need_it(tmp_path: Path, flush: str) -> None:
    config, slow = tmp_path / "broker.conf", tmp_path / "slow"
    config.write_text(f"flushDiskType={flush}\nsyncFlushTimeout=2500\nmappedFileSizeCommitLog=268435456\n")
    slow.write_text("0")

    def start() -> ServerProcess:
        return start_server(tmp_path / "data", "--config", str(config), program=("-c", _SLOW, str(slow)))

    server = start()
    senders: Senders | None = None
    others: Others | None = None
    member: MemberProcess | None = None
    changes: list[threading.Thread] = []
    failed: list[BaseException] = []

    def change(what: Callable[[], object]) -> None:
        def run() -> None:
            try:
                what()
            except RocketQError as error:
                failed.append(error)

        changes.append(threading.Thread(target=run))
        changes[-1].start()

    try:
        with Admin(server.namesrv, timeout=60) as admin, Producer("delayed", server.namesrv) as producer:
            admin.create_topic(TopicConfig(TOPIC, 4, 4))
            senders, others = Senders(server.namesrv, 4), Others(server)
            wait_until(lambda: senders.statuses["SEND_OK"] > 100, 60, "sends")
            wait_until(lambda: any(tmp_path.glob("data/**/checkpoint")), 60, "a checkpoint, with its directories")
            before = memory(server)

            slow.write_text(str(SLOW))
            goal = senders.statuses["SEND_OK"] + (8 if flush == "SYNC_FLUSH" else 1000)
            wait_until(lambda: senders.statuses["SEND_OK"] > goal, 60, "sends go on")
            assert set(senders.statuses) == {"SEND_OK"}
            slow.write_text(str(SLOWER))
            begun = time.monotonic()
            change(lambda: admin.create_topic(TopicConfig("SlowOther", 4, 4)))
            change(lambda: producer.send(Message("SlowNew", b"x"), delay=1.0, timeout=60))
            if flush == "SYNC_FLUSH":
                wait_until(lambda: senders.statuses["FLUSH_DISK_TIMEOUT"] > 4, 60, "producers are told")
            wait_until(lambda: time.monotonic() - begun > 1.5 * SLOWER, 60, "a flush")
            grown = memory(server) - before
            seen = ", ".join(f"{kind} {seconds * 1000:.0f} ms" for kind, seconds in others.longest.items())
            sys.stdout.write(f"{flush}: {dict(senders.statuses)}, +{grown} MiB, longest {seen}\n")
            slow.write_text("0")
            for thread in changes:
                thread.join(60)
                assert not thread.is_alive()
            assert not failed, failed
        others.finish()
        assert not others.errors, others.errors[:3]
        assert min(others.done.values()) > 50
        assert max(others.longest.values()) < SOON, others.longest
        assert grown < 64

        slow.write_text(str(SLOW))
        goal = senders.statuses["SEND_OK"] + (4 if flush == "SYNC_FLUSH" else 500)
        wait_until(lambda: senders.statuses["SEND_OK"] > goal, 60, "more sends")
        server.kill()
        senders.finish()
        slow.write_text("0")
        server = start()
        member = MemberProcess(server.namesrv, TOPIC, "all", "push")
        sent = senders.sent
        wait_until(
            lambda: sent <= {name.rstrip() for name in list(member.seen)}, 60, "everything that was answered"
        )
    finally:
        slow.write_text("0")
        for one in (senders, others):
            if one is not None:
                one.finish()
        if member is not None:
            member.kill()
        server.kill()
