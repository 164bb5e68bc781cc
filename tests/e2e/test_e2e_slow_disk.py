"""A slow disk: who needs it waits, or is told; nobody else notices; what was answered is there.

The server is a real process in which everything that waits for a disk (forcing data to it, reserving room, removing
files) takes as long as the file `slow` says. Writes do not: they go into the system's memory
(see tests/broker/test_broker_slow_disk.py).
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
from rocketq.errors import BrokerError, RocketQError
from rocketq.message import Message
from rocketq.remoting import headers
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import HeartbeatData, ProducerData, TopicConfig
from rocketq.remoting.codes import PullFlag, RequestCode, ResponseCode
from rocketq.remoting.command import Command

TOPIC = "Slow"
#: Seconds that a flush takes at first and later, and seconds that requests may take which need none: a loop that waits
#: for one flush only costs more.
SLOW, SLOWER, SOON = 1.0, 3.0, 2.5
#: Bytes of a body: with ASYNC_FLUSH the log goes over the end of a file every second or two.
BODY = {"ASYNC_FLUSH": 16_000, "SYNC_FLUSH": 2000}
#: Of a file of the CommitLog: the smallest for which sends are refused before they would wait for the next one.
FILE = 16 << 20
#: What producers are told while the next file is being made.
BUSY = "BrokerError 2"

_SLOW = """
import os, runpy, sys, time
path = sys.argv.pop(1)

def slow(call):
    def wrapped(*arguments):
        with open(path) as file:
            time.sleep(float(file.read()))
        return call(*arguments)
    return wrapped

for name in ("fsync", "fdatasync", "sync", "posix_fallocate", "unlink", "rmdir"):
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

    def __init__(self, namesrv: str, count: int, body: int) -> None:
        self.sent: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self._namesrv = namesrv
        self._body = body
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        number = 0
        with Producer(f"sender-{index}", self._namesrv, retries=0, compress_from=1 << 30) as producer:
            while not self._stop.wait(0.002):
                name = f"{index}:{number}"
                number += 1
                try:
                    status = producer.send(Message(TOPIC, name.ljust(self._body).encode()), timeout=20).status
                except BrokerError as error:
                    status = f"BrokerError {error.code}"
                    self._stop.wait(0.1)
                except RocketQError as error:
                    status = f"{type(error).__name__}: {error}"
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
    config.write_text(f"flushDiskType={flush}\nsyncFlushTimeout=2500\nmappedFileSizeCommitLog={FILE}\n")

    def start() -> ServerProcess:
        return start_server(tmp_path / "data", "--config", str(config), program=("-c", _SLOW, str(slow)))

    def take(seconds: float) -> None:
        """From now on the disk takes so long."""
        fresh = tmp_path / "slow.new"
        fresh.write_text(str(seconds))
        fresh.replace(slow)  # at once: the server reads it all the time

    def there(what: str) -> int:
        return len(list(tmp_path.glob(f"data/**/{what}")))

    take(0.0)
    server = start()
    senders: Senders | None = None
    others: Others | None = None
    member: MemberProcess | None = None
    changes: list[threading.Thread] = []
    failed: list[BaseException] = []

    def change(what: Callable[[], object]) -> None:
        def run() -> object:
            try:
                while True:
                    try:
                        return what()
                    except BrokerError as error:
                        if error.code != ResponseCode.SYSTEM_BUSY:
                            raise
                        time.sleep(0.1)
            except RocketQError as error:
                return failed.append(error)

        changes.append(threading.Thread(target=run))
        changes[-1].start()

    try:
        with Admin(server.namesrv, timeout=60) as admin, Producer("delayed", server.namesrv) as producer:
            admin.create_topic(TopicConfig(TOPIC, 4, 4))
            admin.create_topic(TopicConfig("SlowOld", 1, 1))
            producer.send(Message("SlowOld", b"x"), delay=1.0)  # its files are made by the first one that waits
            wait_until(lambda: there("timerlog/0*"), 60, "files of the timer")
            # a new store, whose first entries have never been written
            take(SLOWER)
            others = Others(server)
            change(lambda: producer.send(Message("SlowOld", b"x"), timeout=60))
            senders = Senders(server.namesrv, 4, BODY[flush])
            wait_until(
                lambda: senders.statuses and there("consumequeue/SlowOld/0/*"), 60, "the first entries of queues"
            )
            before = memory(server)
            begun = time.monotonic()
            change(lambda: admin.create_topic(TopicConfig("SlowOther", 4, 4)))
            change(lambda: producer.send(Message("SlowNew", b"x"), delay=1.0, timeout=60))
            change(lambda: admin.delete_topic("SlowOld"))
            change(lambda: admin.kv_put("Slow", "key", "value"))
            if flush == "SYNC_FLUSH":
                wait_until(lambda: senders.statuses["FLUSH_DISK_TIMEOUT"] > 4, 60, "producers are told")
            wait_until(lambda: time.monotonic() - begun > 1.5 * SLOWER, 60, "a flush")

            take(SLOW)
            if flush == "SYNC_FLUSH":
                goal = senders.statuses["SEND_OK"] + 8
                wait_until(lambda: senders.statuses["SEND_OK"] > goal, 60, "sends go on")
                assert set(senders.statuses) == {"SEND_OK", "FLUSH_DISK_TIMEOUT"}
            else:
                files = there("commitlog/0*")
                wait_until(lambda: there("commitlog/0*") > files + 1, 60, "the next files of the log")
                assert set(senders.statuses) <= {"SEND_OK", BUSY}
            grown = memory(server) - before
            seen = ", ".join(f"{kind} {seconds * 1000:.0f} ms" for kind, seconds in others.longest.items())
            sys.stdout.write(f"{flush}: {dict(senders.statuses)}, +{grown} MiB, longest {seen}\n")
            take(0.0)
            for thread in changes:
                thread.join(60)
                assert not thread.is_alive()
            assert not failed, failed
            assert not there("consumequeue/SlowOld")
        others.finish()
        assert not others.errors, others.errors[:3]
        assert min(others.done.values()) > 50
        assert max(others.longest.values()) < SOON, others.longest
        assert grown < 64

        take(SLOW)
        goal = senders.statuses["SEND_OK"] + (4 if flush == "SYNC_FLUSH" else 100)
        wait_until(lambda: senders.statuses["SEND_OK"] > goal, 60, "more sends")
        server.kill()
        senders.finish()
        take(0.0)
        server = start()
        member = MemberProcess(server.namesrv, TOPIC, "all", "push")
        sent = senders.sent
        wait_until(
            lambda: sent <= {name.rstrip() for name in list(member.seen)}, 60, "everything that was answered"
        )
    finally:
        take(0.0)
        for one in (senders, others):
            if one is not None:
                one.finish()
        if member is not None:
            member.kill()
        server.kill()
