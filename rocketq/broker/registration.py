"""Tells every NameServer which topics this broker has and that it is alive.

Each NameServer has a task of its own, so one that is down holds up nobody. Once it has been told everything, a
change is sent at once with the changed topics only, and the periodic heartbeat is a comparison of data versions
(322), which is small. Whenever it is not certain that a NameServer has everything (start, a failed request, a lost
connection, another data version) it gets the whole table.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from rocketq.config import BrokerConfig
from rocketq.errors import BrokerError, RemotingError, RocketQError
from rocketq.remoting import headers
from rocketq.remoting.bodies import RegisterBrokerBody, TopicConfig
from rocketq.remoting.codes import Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header

if TYPE_CHECKING:
    from rocketq.broker.topics import Topics
    from rocketq.remoting.aio import AsyncClient

log = logging.getLogger("rocketq.broker")

#: s that the answer to an operator may wait for NameServers
TOLD = 3.0
#: s that the first attempts together may take before the broker serves without them
FIRST_ATTEMPT = 5.0
#: s that taking leave of all NameServers may take
LEAVE = 3.0
#: a larger table is sent compressed, because a frame has at most 16 MiB; later where topics have what that form has no
#: room for: `order` and `topicSysFlag`
COMPRESS_ABOVE, LOSE_ABOVE = 4 << 20, 15 << 20
#: s before the first repetition of a failed registration; doubles up to the period
RETRY = 1.0
#: s between two registrations of a slave that knows no master
NO_MASTER = 3.0


class _NameServer:
    """What one NameServer has been told."""

    def __init__(self, address: str) -> None:
        self.address = address
        #: it answered a full registration, and everything later
        self.in_step = False
        #: topics that changed since; None when nothing did
        self.changed: set[str] | None = None
        self.wake = asyncio.Event()
        self.tried = asyncio.Event()
        #: it knows every change so far, or does not answer
        self.settled = asyncio.Event()
        self.failures = 0
        self.master_known = True


class Registration:
    """Keeps the broker at `address` (what clients are told, `host:port`) registered with every NameServer.

    `ha_address` is where slaves come to. `on_answer` gets what NameServers say of the master. A slave registers in full
    each time, and more often while it has none, to learn of a master that comes or moves.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client: AsyncClient,
        topics: Topics,
        address: str,
        ha_address: str,
        on_answer: Callable[[headers.RegisterBrokerResponse], None],
    ) -> None:
        self._config = config
        self._client = client
        self._topics = topics
        self._address = address
        self._ha_address = ha_address
        self._on_answer = on_answer
        self._period = config.register_name_server_period / 1000
        self._timeout = config.register_broker_timeout_mills / 1000
        self._servers = [_NameServer(server) for server in config.namesrv_addresses]
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ask_again = 0.0

    async def start(self) -> None:
        """Register with all NameServers; returns when each was tried once, or after 5 s."""
        self._tasks = [asyncio.create_task(self._keep_registered(server)) for server in self._servers]
        tried = [asyncio.create_task(server.tried.wait()) for server in self._servers]
        if tried:
            _, late = await asyncio.wait(tried, timeout=FIRST_ATTEMPT)
            for task in late:
                task.cancel()

    def changed(self, topic_configs: Iterable[TopicConfig]) -> None:
        """These topics are new or changed (none: only the data version did). Sent at once, several together."""
        names = [topic.topic_name for topic in topic_configs]
        for server in self._servers:
            server.changed = (server.changed or set()).union(names)
            server.settled.clear()
            server.wake.set()

    async def told(self) -> None:
        """Wait until the NameServers know every change so far; for one that does not answer, not longer than 3 s."""
        waiting = [asyncio.ensure_future(server.settled.wait()) for server in self._servers]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=TOLD)
            for task in late:
                task.cancel()

    def connection_lost(self, address: str) -> None:
        """The connection to this NameServer is gone, and so is our entry there: register again."""
        for server in self._servers:
            if server.address == address:
                server.in_step = False
                server.wake.set()

    def master_lost(self) -> None:
        """On a slave: there is no connection to the master, which may be elsewhere. Ask, but not all the time."""
        now = time.monotonic()
        if now >= self._ask_again:
            self._ask_again = now + NO_MASTER
            for server in self._servers:
                server.wake.set()

    async def stop(self) -> None:
        """Take leave of all NameServers, so that clients stop coming at once."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._leave(server) for server in self._servers))

    # -- one NameServer

    async def _keep_registered(self, server: _NameServer) -> None:
        while not self._stopping:
            server.wake.clear()
            try:
                await self._tell(server)
                if server.failures:
                    log.info("registered with NameServer %s again", server.address)
                server.failures = 0
                pause = self._period if server.master_known else min(self._period, NO_MASTER)
            except RocketQError as error:  # also an answer that cannot be read
                server.in_step = False
                level = logging.DEBUG if server.failures else logging.WARNING
                log.log(level, "not registered with NameServer %s, it is tried again: %s", server.address, error)
                pause = min(self._period, RETRY * 2 ** min(server.failures, 10))
                server.failures += 1
            server.tried.set()
            if server.failures or server.changed is None:
                server.settled.set()
            if server.failures:
                await asyncio.sleep(pause)
                continue
            # not wait_for: before Python 3.12 it loses a cancellation that comes together with the event
            timer = asyncio.get_running_loop().call_later(pause, server.wake.set)
            try:
                await server.wake.wait()
            finally:
                timer.cancel()

    async def _tell(self, server: _NameServer) -> None:
        """One registration or heartbeat. Raises RemotingError, BrokerError or HeaderError."""
        if server.in_step and server.changed is not None:
            names, server.changed = server.changed, None
            table = self._topics.table
            # what was deleted meanwhile must not come back
            answer = await self._register(server, [table[name] for name in names if name in table])
            if answer.code == ResponseCode.SUCCESS:
                return
            log.info("NameServer %s wants a full registration: %s", server.address, answer.remark)
        elif server.in_step and not self._config.is_slave and not await self._is_changed(server):
            return
        server.changed = None
        server.in_step = True  # a connection that is lost while we wait takes it back
        answer = await self._register(server, self._topics.table.values())
        _expect_success(answer, server)
        told = answer.header(headers.RegisterBrokerResponse)
        server.master_known = bool(told.master_addr) or not self._config.is_slave
        self._on_answer(told)

    async def _register(self, server: _NameServer, topics: Iterable[TopicConfig]) -> Command:
        config = self._config
        topics = list(topics)
        allowed = Perm(config.broker_permission)
        if not (allowed & Perm.READ and allowed & Perm.WRITE):
            topics = [msgspec.structs.replace(topic, perm=topic.perm & int(allowed)) for topic in topics]
        table = {topic.topic_name: topic for topic in topics}
        content = RegisterBrokerBody(self._topics.data_version, table)
        body = content.encode()
        loses = any(topic.order or topic.topic_sys_flag for topic in topics)
        compressed = len(body) > (LOSE_ABOVE if loses else COMPRESS_ABOVE)
        if compressed:
            body = content.encode_compressed()
        header = headers.RegisterBrokerHeader(
            broker_name=config.broker_name,
            broker_addr=self._address,
            cluster_name=config.broker_cluster_name,
            ha_server_addr=self._ha_address,
            broker_id=config.broker_id,
            enable_acting_master=False,
            compressed=compressed,
            body_crc32=zlib.crc32(body) & 0x7FFFFFFF,
        )
        return await self._call(server, RequestCode.REGISTER_BROKER, header, body)

    async def _is_changed(self, server: _NameServer) -> bool:
        config = self._config
        header = headers.QueryDataVersionHeader(
            broker_name=config.broker_name,
            broker_addr=self._address,
            cluster_name=config.broker_cluster_name,
            broker_id=config.broker_id,
        )
        version = self._topics.data_version.encode()
        answer = await self._call(server, RequestCode.QUERY_DATA_VERSION, header, version)
        _expect_success(answer, server)
        return answer.header(headers.QueryDataVersionResponse).changed

    async def _leave(self, server: _NameServer) -> None:
        config = self._config
        header = headers.UnRegisterBrokerHeader(
            broker_name=config.broker_name,
            broker_addr=self._address,
            cluster_name=config.broker_cluster_name,
            broker_id=config.broker_id,
        )
        try:
            await self._client.call(server.address, RequestCode.UNREGISTER_BROKER, header, timeout=LEAVE)
        except RemotingError as error:
            log.info("NameServer %s could not be told that the broker stops: %s", server.address, error)

    async def _call(self, server: _NameServer, code: int, header: Header, body: bytes) -> Command:
        return await self._client.call(server.address, code, header, body, timeout=self._timeout)


def _expect_success(answer: Command, server: _NameServer) -> None:
    if answer.code != ResponseCode.SUCCESS:
        raise BrokerError(answer.code, answer.remark, server.address)
