"""The network between clients and a server fails: requests fail in time, clients go on, brokers forget who is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import ServerProcess, wait_until

sys.path.insert(0, str(Path(__file__).parent))

from brokers import TOPIC, Load, create_topic
from members import MemberProcess
from network import Network

from rocketq.client import AsyncProducer, Producer
from rocketq.client.admin import Admin
from rocketq.errors import RocketQError
from rocketq.message import Message
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import encode_request

#: Where clients find the servers, which listen at 127.0.0.1.
HOST = "127.0.0.2"
KINDS = ("push", "orderly", "pop")


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


class Apart:
    """A NameServer and a broker, and clients that reach them through `networks` only."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.namesrv = ServerProcess("namesrv", "--host", "127.0.0.1", "--port", "0")
        arguments = ["broker", "--data", str(directory), "--namesrv", self.namesrv.namesrv]
        arguments += ["--host", "127.0.0.1", "--port", "0"]
        for setting in (f"brokerIP1={HOST}", "mappedFileSizeCommitLog=67108864", *settings):
            arguments += ["--set", setting]
        self.broker = ServerProcess(*arguments)
        self.networks = [Network(HOST, port(self.namesrv.namesrv)), Network(HOST, port(self.broker.broker))]
        self.address = self.networks[0].address

    def hold(self) -> None:
        for network in self.networks:
            network.hold()

    def cut(self) -> None:
        for network in self.networks:
            network.cut()

    def forget(self) -> None:
        for network in self.networks:
            network.forget()

    def heal(self) -> None:
        for network in self.networks:
            network.heal()

    def sockets(self) -> int:
        """Open files of the broker that are sockets."""
        directory = Path(f"/proc/{self.broker.process.pid}/fd")
        return sum(os.readlink(path).startswith("socket:") for path in directory.iterdir() if path.is_symlink())

    def close(self) -> None:
        for network in self.networks:
            network.close()
        self.broker.kill()
        self.namesrv.kill()


@contextmanager
def apart(directory: Path, *settings: str) -> Iterator[Apart]:
    made = Apart(directory, *settings)
    try:
        yield made
    finally:
        made.close()


async def fails_in_time(send: Awaitable[Any], timeout: float) -> None:
    """A request that gets no answer says so when its time is up."""
    begun = time.monotonic()
    with pytest.raises(RocketQError):
        await send
    took = time.monotonic() - begun
    assert took < timeout + 10, f"{took:.1f} s"  # it would wait for minutes without a limit


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_clients_go_on_when_the_network_is_back(tmp_path: Path) -> None:
    members: dict[str, MemberProcess] = {}
    load: Load | None = None
    refused = 0.0  # seconds

    async def faults(servers: Apart, load: Load) -> None:
        nonlocal refused
        message = Message(TOPIC, b"x")
        with Producer("blocking", servers.address) as blocking:
            async with AsyncProducer("async", servers.address) as producer:

                async def probe() -> None:
                    await asyncio.gather(producer.send(message), asyncio.to_thread(blocking.send, message))

                async def fail() -> None:
                    await asyncio.gather(
                        fails_in_time(producer.send(message, timeout=1.0), 1.0),
                        fails_in_time(asyncio.to_thread(blocking.send, message, timeout=1.0), 1.0),
                    )

                async def consumed(phase: str) -> None:
                    """What is sent from now on gets through, and to everybody."""
                    load.phase = phase
                    await asyncio.to_thread(load.wait_sent, 100)
                    names = set(load.of(phase))
                    for kind, member in members.items():
                        await asyncio.to_thread(
                            wait_until, lambda m=member: names <= set(m.seen), 60, f"{kind} consumes phase {phase}"
                        )

                await probe()
                await consumed("b")
                servers.hold()
                await fail()
                servers.heal()
                await probe()
                await consumed("c")
                servers.cut()
                begun = time.monotonic()
                await fail()
                servers.heal()
                refused = time.monotonic() - begun
                await consumed("d")
                servers.forget()  # nobody tells the clients that their connections are no more
                begun = time.monotonic()
                await consumed("e")
                sys.stdout.write(f"new connections after {time.monotonic() - begun:.1f} s\n")
                # they have been quiet, so one request each may have shown that its connection is dead
                for _ in range(3):
                    with contextlib.suppress(RocketQError):
                        await probe()
                        break
                else:
                    await probe()

    with apart(tmp_path) as servers:
        try:
            create_topic(servers.address)
            load = Load(servers.address, timeout=2.0)
            for kind in KINDS:
                members[kind] = MemberProcess(servers.address, TOPIC, kind, kind)
            for member in members.values():
                wait_until(lambda m=member: m.seen, 60, "members consume")
            asyncio.run(faults(servers, load))
            load.finish()
            # each fault costs the sends that are under way, and those until it is healed: ten a second while refused
            assert len(load.errors) <= 30 + 10 * refused, load.errors
            for kind, member in members.items():
                wait_until(lambda m=member: set(load.sent) <= set(m.seen), 60, f"{kind} gets everything")
                twice = sum(count - 1 for count in Counter(member.seen).values())
                sys.stdout.write(f"{kind}: {twice} of {len(member.seen)} came twice\n")
            sys.stdout.write(f"{len(load.errors)} of {len(load.sent)} sends failed\n")
        finally:
            if load is not None:
                load.finish()
            for member in members.values():
                member.kill()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_broker_forgets_clients_that_vanish_without_a_word(tmp_path: Path) -> None:
    settings = ("channelExpiredTimeout=3000", "serverChannelMaxIdleTimeSeconds=4")
    locks = "rocketmq.broker.rebalance.lockMaxLiveTime=3000"
    members: list[MemberProcess] = []
    load: Load | None = None
    with apart(tmp_path, *settings, locks) as servers:
        try:
            create_topic(servers.address)
            load = Load(servers.address)
            load.wait_sent(50)
            before = servers.sockets()

            members += [MemberProcess(servers.address, TOPIC, kind, kind) for kind in KINDS]
            for member in members:
                wait_until(lambda m=member: m.seen, 60, "members consume")
            idle = [socket.create_connection((HOST, port(servers.broker.broker)), 5.0) for _ in range(200)]
            wait_until(lambda: servers.sockets() >= before + 200, 60, "the connections are there")
            unread = idle[0]
            with contextlib.suppress(BlockingIOError):
                unread.setblocking(False)
                for number in range(50_000):  # of which it never reads an answer
                    unread.send(encode_request(RequestCode.GET_BROKER_CONFIG, number))
            servers.forget()
            for member in members:
                member.process.kill()
            for peer in idle:
                peer.close()
            begun = time.monotonic()

            heirs = [MemberProcess(servers.address, TOPIC, kind, kind) for kind in KINDS]
            members += heirs
            load.phase = "z"
            load.wait_sent(100)
            for kind, heir in zip(KINDS, heirs, strict=True):
                wait_until(lambda h=heir: set(load.of("z")) <= set(h.seen), 60, f"{kind}: another one takes over")
            sys.stdout.write(f"others took over within {time.monotonic() - begun:.1f} s\n")
            wait_until(lambda: servers.sockets() <= before + 20, 60, "the broker has closed them")
            sys.stdout.write(f"closed within {time.monotonic() - begun:.1f} s\n")
            with Admin(servers.address) as admin:
                for kind in KINDS:

                    def members_of(kind: str = kind) -> int:
                        group = admin.group_members(kind)
                        return len(group.connection_set) if group is not None else 0

                    wait_until(lambda: members_of() == 1, 20, "the one that vanished is no member")
        finally:
            if load is not None:
                load.finish()
            for member in members:
                member.kill()
