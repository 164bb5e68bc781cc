"""What a real server costs and how others fare while peers misbehave: `python tests/e2e/limits.py [NAME …]`.

Every measure starts a `rocketq server`, keeps a producer sending one message after the other, and prints memory and the
producer's latency before and meanwhile. docs/limits.md has the figures.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from servers import ServerProcess, start_server, wait_until

from rocketq.client import Producer
from rocketq.errors import RocketQError
from rocketq.message import Message
from rocketq.remoting import headers
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import DataVersion, RegisterBrokerBody, TopicConfig
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import FrameDecoder, encode_request

TOPIC = "Limits"


class Seen(NamedTuple):
    """Of a producer's sends: how many arrived, how many failed, ms that they took."""

    sent: int
    failed: int
    p50: float
    p99: float
    longest: float


class Probe:
    """A client that is not at fault: sends one message after the other, on one connection."""

    def __init__(self, namesrv: str) -> None:
        self._producer = Producer("limits", namesrv, retries=0)
        self._producer.send(Message(TOPIC, b"first"), timeout=30.0)
        self._took: list[float] = []
        self._failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            begun = time.monotonic()
            try:
                self._producer.send(Message(TOPIC, b"x" * 100), timeout=15.0)
            except RocketQError:
                self._failed += 1
            else:
                self._took.append((time.monotonic() - begun) * 1000)

    def sent(self) -> int:
        return len(self._took)

    def lap(self) -> Seen:
        """What was seen since the last lap."""
        took, self._took = self._took, []
        failed, self._failed = self._failed, 0
        if len(took) < 2:
            return Seen(len(took), failed, *(3 * (took or [0.0])))
        return Seen(
            len(took),
            failed,
            statistics.median(took),
            statistics.quantiles(took, n=100, method="inclusive")[98],
            max(took),
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.close()


class Server:
    """A server with a probe, in a directory of its own."""

    def __init__(self, directory: Path, *, files: int = 0, flush: float = 0.0, settings: str = "") -> None:
        """`files`: it may open so many; `flush`: seconds that forcing data to disk takes."""
        config = directory / "broker.conf"
        config.write_text(f"mappedFileSizeCommitLog=67108864\n{settings}")
        program = ("-m", "rocketq") if not files else ("-c", _LIMITED.format(files=files))
        self._kill = flush > 0  # everything that is forced to disk when it stops takes so long
        if flush:
            program = ("-c", _SLOW.format(seconds=flush))
        self.process: ServerProcess = start_server(directory / "data", "--config", str(config), program=program)
        host, port = self.process.broker.rsplit(":", 1)
        self.address = host, int(port)
        self.probe = Probe(self.process.namesrv)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 30)

    def memory(self) -> int:
        """Resident KiB of its own (files that are mapped do not count)."""
        return _status(self.process.process.pid, "RssAnon")

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.probe.close()
        if not self._kill:
            self.process.stop()
        self.process.__exit__(None, None, None)


_LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
sys.argv[0] = "rocketq"
runpy.run_module("rocketq", run_name="__main__")
"""


_SLOW = """
import os, runpy, sys, time
for name in ("fsync", "fdatasync", "sync"):
    def slow(*arguments, call=getattr(os, name)):
        time.sleep({seconds})
        return call(*arguments)
    setattr(os, name, slow)
sys.argv[0] = "rocketq"
runpy.run_module("rocketq", run_name="__main__")
"""


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1])


@contextlib.contextmanager
def running(**options: object) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="rocketq-limits-") as directory:
        server = Server(Path(directory), **options)  # type: ignore[arg-type]
        try:
            yield server
        finally:
            server.stop()


def _say(what: str, seen: Seen, more: str = "") -> None:
    sys.stdout.write(
        f"{what:46} {seen.sent:6} sent {seen.failed:3} failed, p50 {seen.p50:7.2f} ms, p99 {seen.p99:7.2f} ms, "
        f"longest {seen.longest:8.1f} ms {more}\n"
    )
    sys.stdout.flush()


def _quiet(server: Server, seconds: float = 3.0) -> None:
    time.sleep(seconds)
    _say("  before", server.probe.lap(), f"{server.memory() >> 10} MiB")


def is_closed(peer: socket.socket) -> bool:
    """Whether the server has closed it."""
    peer.setblocking(False)
    try:
        return peer.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# -- the measures


def idle(count: int = 10_000) -> None:
    """Connections that say nothing."""
    with running() as server:
        _quiet(server)
        before = server.memory()
        peers = [server.connect() for _ in range(count)]
        _say(f"{count} connections opened", server.probe.lap())
        time.sleep(5)
        taken = server.memory() - before
        _say(f"{count} idle connections", server.probe.lap(), f"{taken / count:.1f} KiB each")
        for peer in peers:
            peer.close()


def connects(rate: int = 1000, seconds: float = 5.0) -> None:
    """Connections that are opened and closed."""
    with running() as server:
        _quiet(server)
        before, begun, made = server.memory(), time.monotonic(), 0
        while (past := time.monotonic() - begun) < seconds:
            if made < past * rate:
                server.connect().close()
                made += 1
            else:
                time.sleep(0.0005)
        _say(f"{made / seconds:.0f} connects a second", server.probe.lap(), f"{server.memory() - before:+} KiB")


def never_reads(count: int = 20_000) -> None:
    """A client that sends requests and never reads an answer."""
    with running() as server:
        _quiet(server)
        before = server.memory()
        peer = server.connect()
        peer.setblocking(False)
        frames = b"".join(encode_request(RequestCode.GET_BROKER_CONFIG, number) for number in range(count))
        sent = 0
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                sent += peer.send(frames[sent % len(frames) :])
            except BlockingIOError:
                time.sleep(0.01)
            except OSError as error:
                sys.stdout.write(f"  cut off: {error} {server.process.errors[-2:]}\n")
                break
        _say("a client that never reads", server.probe.lap(), f"{(server.memory() - before) >> 10:+} MiB")
        peer.close()


def unfinished(count: int = 100, size: int = 12 << 20) -> None:
    """Frames of 16 MiB of which the end does not come."""
    with running() as server:
        _quiet(server)
        peers, most = [], 0
        begin = struct.pack(">ii", 16 << 20, 20) + bytes(size)
        for _ in range(count):
            peer = server.connect()
            with contextlib.suppress(OSError):
                peer.sendall(begin)
            peers.append(peer)
            most = max(most, server.memory())
        closed = sum(is_closed(peer) for peer in peers)
        note = f"at most {most >> 10} MiB, {closed} of {count} closed"
        _say(f"{count} unfinished frames of {size >> 20} MiB", server.probe.lap(), note)
        for peer in peers:
            peer.close()


def drips(count: int = 500, idle_seconds: int = 5) -> None:
    """Frames that come byte by byte, with an idle limit of 5 s instead of 120 s."""
    with running(settings=f"serverChannelMaxIdleTimeSeconds={idle_seconds}\n") as server:
        _quiet(server)
        frame = encode_request(RequestCode.GET_BROKER_CONFIG, 1, {"name": "x" * 5000})
        peers = {server.connect(): 0 for _ in range(count)}
        begun = time.monotonic()
        while peers and time.monotonic() - begun < 10 * idle_seconds:
            for peer, sent in list(peers.items()):
                if is_closed(peer):
                    del peers[peer]
                    continue
                with contextlib.suppress(OSError):
                    peer.send(frame[sent : sent + 1])
                peers[peer] = sent + 1
            time.sleep(0.2)
        took = time.monotonic() - begun
        _say(f"{count} frames byte by byte", server.probe.lap(), f"{len(peers)} left after {took:.1f} s")


def files(limit: int = 256, count: int = 400) -> None:
    """More connections than the process may have files."""
    with running(files=limit) as server:
        _quiet(server)
        peers = [server.connect() for _ in range(count)]
        wait_until(lambda: sum(is_closed(peer) for peer in peers) >= count - limit, 30, "the last ones are closed")
        server.probe.lap()
        cpu, begun = server.cpu(), time.monotonic()
        time.sleep(3)
        busy = (server.cpu() - cpu) / (time.monotonic() - begun)
        closed = sum(is_closed(peer) for peer in peers)
        note = f"{closed} closed at once, {busy:.0%} CPU"
        _say(f"{count} connections, {limit} files", server.probe.lap(), note)
        for peer in peers:
            peer.close()
        wait_until(lambda: _stays(server), 30, "a new connection is served when there is room")
        sys.stdout.write("  a new connection is served when others have gone\n")


def _stays(server: Server) -> bool:
    with server.connect() as peer, contextlib.suppress(OSError):
        peer.sendall(encode_request(RequestCode.GET_BROKER_CONFIG, 1))
        peer.settimeout(5)
        return peer.recv(100) != b""
    return False


def stopped(seconds: float = 10.0) -> None:
    """The server is stopped (SIGSTOP) and goes on."""
    with running() as server:
        _quiet(server)
        server.process.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.process.process.send_signal(signal.SIGCONT)
        before = server.probe.sent()
        wait_until(lambda: server.probe.sent() > before + 20, 30, "sends go on")
        _say(f"stopped for {seconds:g} s", server.probe.lap())


def flood(sends: int = 100_000, flush: float = 3.0) -> None:
    """Producers that wait for nothing send to a broker whose disk takes seconds for a flush, with SYNC_FLUSH."""
    for connections in (1, 20):
        with running(flush=flush, settings="flushDiskType=SYNC_FLUSH\n") as server:
            before = server.memory()
            peers = [server.connect() for _ in range(connections)]
            codes: Counter[int] = Counter()
            readers = [threading.Thread(target=_count_answers, args=(peer, codes)) for peer in peers]
            for reader in readers:
                reader.start()
            fields = {"a": "PG", "b": TOPIC, "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "0", "h": "0"}
            fields |= {"i": "", "j": "0", "k": "false"}
            longest, most = 0.0, 0
            with contextlib.closing(BlockingClient()) as client:
                for number in range(0, sends, 1000):
                    piece = b"".join(
                        encode_request(RequestCode.SEND_MESSAGE_V2, number + n, fields, b"x" * 1000)
                        for n in range(1000)
                    )
                    peers[number // 1000 % connections].sendall(piece)
                    longest = max(longest, _look_up(client, server.process.namesrv, 0))
                    most = max(most, server.memory())
            wait_until(lambda codes=codes: sum(codes.values()) == sends, 120, "all answers")
            for peer in peers:
                peer.shutdown(socket.SHUT_RDWR)
                peer.close()
            for reader in readers:
                reader.join()
            sys.stdout.write(
                f"{sends} sends on {connections} connections, flushes of {flush:g} s: answers {dict(codes)}, "
                f"{(most - before) >> 10:+} MiB, longest look-up {longest:.0f} ms\n"
            )
            sys.stdout.flush()


def _count_answers(peer: socket.socket, codes: Counter[int]) -> None:
    decoder = FrameDecoder()
    with contextlib.suppress(OSError):
        while data := peer.recv(1 << 16):
            codes.update(command.code for command in decoder.feed(data))


def topics(count: int = 50_000) -> None:
    """A NameServer in which a broker registers 50,000 topics again and again."""
    with running() as server:
        table = {f"Topic{number}": TopicConfig(topic_name=f"Topic{number}") for number in range(count)}
        header = headers.RegisterBrokerHeader(
            broker_name="many",
            broker_addr="127.0.0.1:1",
            cluster_name="c",
            ha_server_addr="127.0.0.1:2",
            broker_id=0,
            compressed=True,
        )
        before = server.memory()
        with contextlib.closing(BlockingClient()) as broker, contextlib.closing(BlockingClient()) as client:
            for version in range(5):
                body = RegisterBrokerBody(DataVersion(counter=version), table).encode_compressed()
                done = threading.Event()

                def register(body: bytes = body, done: threading.Event = done) -> None:
                    broker.call(server.process.namesrv, RequestCode.REGISTER_BROKER, header, body, timeout=60)
                    done.set()

                threading.Thread(target=register).start()
                took = [_look_up(client, server.process.namesrv, 0)]
                number = 0
                while not done.is_set() or number < 2000:
                    number += 1
                    took.append(_look_up(client, server.process.namesrv, number * 7919 % count))
                took.sort()
                sys.stdout.write(
                    f"registration {version} of {count} topics, {len(body) >> 10} KiB: look-ups p50 "
                    f"{took[len(took) // 2]:.2f} ms, p99 {took[len(took) * 99 // 100]:.2f} ms, longest "
                    f"{took[-1]:.0f} ms; {(server.memory() - before) >> 10:+} MiB\n"
                )
                sys.stdout.flush()


def _look_up(client: BlockingClient, namesrv: str, number: int) -> float:
    begun = time.monotonic()
    client.call(namesrv, RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoHeader(topic=f"Topic{number}"))
    return (time.monotonic() - begun) * 1000


MEASURES: dict[str, Callable[[], None]] = {
    measure.__name__.replace("_", "-"): measure
    for measure in (idle, connects, never_reads, unfinished, drips, files, stopped, flood, topics)
}


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    for name in sys.argv[1:] or MEASURES:
        sys.stdout.write(f"-- {name}: {MEASURES[name].__doc__}\n")
        MEASURES[name]()


if __name__ == "__main__":
    main()
