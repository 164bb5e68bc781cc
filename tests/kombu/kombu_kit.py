"""What the transport's tests share: other processes, a network that can be cut, and consuming step by step."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
from kombu.asynchronous.hub import Hub


class Script:
    """A Python program of our own in another process. It says one line at a time."""

    def __init__(self, text: str, *arguments: str) -> None:
        command = [sys.executable, "-c", text, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdout, self.process.stdin):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def publish(connection: kombu.Connection, queue: kombu.Queue, *bodies: Any, **options: Any) -> None:
    """To a queue, which is declared."""
    with connection.Producer() as producer:
        for body in bodies:
            producer.publish(
                body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], **options
            )


def turn_until(
    connection: kombu.Connection, done: Callable[[], object], timeout: float = 30.0, hub: Hub | None = None
) -> bool:
    """Drain events, or run the hub, until `done`; False when it did not come true in time."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        if hub is not None:
            hub.run_once()
        else:
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=0.1)
    return True


@contextlib.contextmanager
def consuming(
    connection: kombu.Connection, *queues: kombu.Queue, prefetch: int = 0, ack: bool = True
) -> Iterator[list[tuple[Any, Any]]]:
    """What comes, (body, message) each."""
    got: list[tuple[Any, Any]] = []

    def callback(body: Any, message: Any) -> None:
        got.append((body, message))
        if ack:
            message.ack()

    channel = connection.channel()
    consumer = kombu.Consumer(channel, queues, callbacks=[callback], prefetch_count=prefetch)
    with consumer:
        yield got
    channel.close()


class Network:
    """Stands between clients and a server on loopback. Either passes everything on, or (after `cut`) nothing, without
    a word; `heal` lets new connections through. Those of before stay dead, unless they `resume`: then what was under
    way comes, ends of connections as well."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._cut_pairs: dict[socket.socket, socket.socket] = {}
        self._dead: list[socket.socket] = []
        self._is_cut = False
        self._lock = threading.Lock()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            self._dead += self._pairs
            self._cut_pairs, self._pairs = self._pairs, {}

    def heal(self, resume: bool = False) -> None:
        with self._lock:
            self._is_cut = False
            if resume:
                self._pairs |= self._cut_pairs
                self._dead = [sock for sock in self._dead if sock not in self._cut_pairs]
            self._cut_pairs = {}

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        for sock in (self._listener, *self._pairs, *self._dead):
            sock.close()

    def _run(self) -> None:
        while not self._stop:
            with self._lock:
                watched = [self._listener, *self._pairs]
            for sock in select.select(watched, [], [], 0.02)[0]:
                with self._lock:
                    self._handle(sock)

    def _handle(self, sock: socket.socket) -> None:
        if sock is self._listener:
            client = sock.accept()[0]
            if self._is_cut:
                self._dead.append(client)
                return
            try:
                server = socket.create_connection(self._to)
            except OSError:
                client.close()
                return
            self._pairs[client], self._pairs[server] = server, client
        elif sock in self._pairs:
            other = self._pairs[sock]
            try:
                data = sock.recv(1 << 16)
                if data:
                    other.sendall(data)
            except OSError:
                data = b""
            if not data:
                for end in (sock, other):
                    del self._pairs[end]
                    end.close()
