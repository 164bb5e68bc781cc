"""What the tests of the client share: conditions with a deadline, names nobody used before, a collecting handler."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable

from rocketq.client import ConsumeResult
from rocketq.client.results import HandlerResult
from rocketq.message import ReceivedMessage
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import DataVersion, RegisterBrokerBody, TopicConfig
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.headers import RegisterBrokerHeader

_numbers = itertools.count(1)


def fresh(what: str) -> str:
    """A topic's or group's name that no other test uses."""
    return f"{what}_{os.getpid()}_{next(_numbers)}"


async def until(condition: Callable[[], object], what: str = "the condition", deadline: float = 30.0) -> None:
    """Returns when `condition()` is true; fails after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"{what} did not come true within {deadline} s")
        await asyncio.sleep(0.005)


class Collector:
    """A handler that notes what it gets; `decide` says what it answers."""

    def __init__(self, decide: Callable[[list[ReceivedMessage]], HandlerResult] | None = None) -> None:
        self.messages: list[ReceivedMessage] = []
        self.calls: list[list[ReceivedMessage]] = []
        self.decide = decide or (lambda _: ConsumeResult.SUCCESS)

    async def __call__(self, messages: list[ReceivedMessage]) -> HandlerResult:
        self.calls.append(messages)
        self.messages += messages
        return self.decide(messages)

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.messages]


class Silent:
    """A broker that takes everything and answers nothing, registered for a topic. `heard` counts what came.

    With `reads` False it does not even take what is sent, and with `accepts` False no connection to it comes about.
    """

    def __init__(self, namesrv: str, topic: str, *, reads: bool = True, accepts: bool = True) -> None:
        self._namesrv = namesrv
        self._topic = topic
        self.heard = 0
        self._reads = reads
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        if accepts:
            threading.Thread(target=self._accept, daemon=True).start()
        while not accepts:  # fill the queue of those that wait to be accepted
            waiting = socket.socket()
            self._connections.append(waiting)
            waiting.settimeout(0.2)
            try:
                waiting.connect(self._socket.getsockname())
            except TimeoutError:
                break

    def __enter__(self) -> Silent:
        # a broker that is not known cannot register a single topic
        table = {name: TopicConfig(name, 4, 4) for name in (self._topic, fresh("Other"))}
        header = RegisterBrokerHeader(
            broker_name="silent",
            broker_addr=self.address,
            cluster_name="DefaultCluster",
            ha_server_addr="",
            broker_id=0,
            compressed=True,
        )
        self._client = BlockingClient()  # the NameServer forgets the broker when this ends
        body = RegisterBrokerBody(DataVersion(), table).encode_compressed()
        answer = self._client.call(self._namesrv, RequestCode.REGISTER_BROKER, header, body, timeout=10)
        assert answer.code == 0, answer.remark
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        for one in (self._socket, *self._connections):
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connections.append(self._socket.accept()[0])
                if not self._reads:
                    continue
                threading.Thread(target=self._read, args=(self._connections[-1],), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                self.heard += 1
