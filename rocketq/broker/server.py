"""The broker: one store, one object per capability, one table from request codes to handlers.

A request's way: :mod:`rocketq.remoting.server` hands over each command of a read; the table finds the capability; what
it returns is the answer. Sends are answered at the end of the read, when everything was written with one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rocketq.broker.access import Access
from rocketq.broker.admin import Admin
from rocketq.broker.assignment import Assignment
from rocketq.broker.batch import Batch
from rocketq.broker.checkback import CheckBack
from rocketq.broker.cleaning import Cleaning
from rocketq.broker.clients import Clients
from rocketq.broker.delay import Delay
from rocketq.broker.forward import Forward
from rocketq.broker.groups import Groups
from rocketq.broker.hold import Hold
from rocketq.broker.holders import Holders
from rocketq.broker.locks import QueueLocks
from rocketq.broker.offsets import Offsets
from rocketq.broker.peek import Peek
from rocketq.broker.pop import Pop
from rocketq.broker.popwait import PopWait
from rocketq.broker.progress import Progress
from rocketq.broker.pull import Pull
from rocketq.broker.query import Query
from rocketq.broker.recall import Recall
from rocketq.broker.refusal import Refused
from rocketq.broker.registration import Registration
from rocketq.broker.replication import Replication
from rocketq.broker.reply import Replies
from rocketq.broker.reset import Reset
from rocketq.broker.retry import Retry
from rocketq.broker.revive import Revive
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.runtime import Runtime
from rocketq.broker.saving import Saver
from rocketq.broker.send import Sender
from rocketq.broker.settle import Settle
from rocketq.broker.slavesync import SlaveSync
from rocketq.broker.statistics import Statistics
from rocketq.broker.timer import Timer
from rocketq.broker.topics import Topics
from rocketq.broker.transaction import Transactions
from rocketq.config import BrokerConfig
from rocketq.errors import ConfigError, RocketQError, StoreError
from rocketq.record import pack_host
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.bodies import TopicConfig, TopicRoute
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import GetRouteInfoHeader
from rocketq.remoting.server import Connection, Handler, Reply, Server
from rocketq.store.files import Files, OsFiles
from rocketq.store.store import Appended, MessageStore

log = logging.getLogger("rocketq.broker")

#: Requests that add to the batch of their read; every other one is handled after the batch so far is written. A pop
#: does not get what was sent in its own read, unless it waits.
BATCHED = frozenset(
    {
        int(RequestCode.SEND_MESSAGE),
        int(RequestCode.SEND_MESSAGE_V2),
        int(RequestCode.SEND_BATCH_MESSAGE),
        int(RequestCode.CONSUMER_SEND_MSG_BACK),
        int(RequestCode.RECALL_MESSAGE),
        int(RequestCode.ACK_MESSAGE),
        int(RequestCode.BATCH_ACK_MESSAGE),
        int(RequestCode.CHANGE_MESSAGE_INVISIBLETIME),
        int(RequestCode.END_TRANSACTION),
        int(RequestCode.POP_MESSAGE),
    }
)
#: Not served on the second port, which is for producers and operators (`BrokerController`).
NOT_ON_VIP = frozenset(
    {
        int(RequestCode.PULL_MESSAGE),
        int(RequestCode.LITE_PULL_MESSAGE),
        int(RequestCode.PEEK_MESSAGE),
        int(RequestCode.POP_MESSAGE),
        int(RequestCode.NOTIFICATION),
        int(RequestCode.POLLING_INFO),
    }
)
#: Seconds between two rounds of periodic work.
TICK = 0.5
#: Seconds between two looks for clients and locks that expired; more often where clients expire soon.
EXPIRE_EVERY = 10.0


class Broker:
    """A broker. `config.listen_port` 0 takes a free port; then there is no second one for old clients."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        files: Files | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.config = config
        files = files or OsFiles()
        root = Path(config.store_path_root_dir) / "config"
        booted = clock_ms()
        self.access: Access | None = None
        if config.acl_enable:
            self.access = Access(Path(config.acl_file) if config.acl_file else root / "plain_acl.yml")
        self.statistics = Statistics(time.monotonic())
        self.saver = Saver(files)
        self.store = MessageStore(config.store(), files=files, clock_ms=clock_ms, follows=config.is_slave)
        self.topics = Topics(config, root / "topics.json", files, self._topics_changed, clock_ms)
        self.groups = Groups(config, root / "subscriptionGroup.json", files, clock_ms)
        self.clients = Clients(config, self.groups, self.topics, time.monotonic)
        self.locks = QueueLocks(
            root / "queueLocks.json", files, time.monotonic, config.rebalance_lock_max_live_time / 1000
        )
        self.offsets = Offsets(root / "consumerOffset.json", files, self.groups, self.topics, self.store, clock_ms)
        self.delay = Delay(config, root / "delayOffset.json", files, self.store, clock_ms)
        self.timer = Timer(config, root, files, self.store, clock_ms)
        self.batch = Batch(config, self.store, self.statistics)
        self.replication = Replication(config, self.store, self.batch, self.topics, self._master_lost)
        self.sender = Sender(
            config,
            self.store,
            self.batch,
            self.topics,
            self.groups,
            self.locks,
            self.statistics,
            self.saver,
            self.delay.deliver_time,
            self.delay.max_level,
            clock_ms,
        )
        self.hold = Hold()
        self.pull = Pull(
            config,
            self.store,
            self.topics,
            self.groups,
            self.clients,
            self.offsets,
            self.hold,
            self.statistics,
            self.replication,
        )
        self.revive_log = ReviveLog(config, self.store, self.offsets, clock_ms)
        self.offsets.revive_topic = self.revive_log.topic
        self.pop_wait = PopWait(config.max_pop_polling_size, config.pop_polling_size, self.batch.end_and_flush)
        self.revive = Revive(self.store, self.topics, self.groups, self.revive_log, clock_ms)
        self.holders = Holders(self.revive_log, self.pop_wait, self.revive.leases_ended, clock_ms)
        self.pop = Pop(
            config,
            self.store,
            self.topics,
            self.groups,
            self.clients,
            self.offsets,
            self.batch,
            self.revive_log,
            self.pop_wait,
            self.holders,
            self.statistics,
            self.revive.schedule,
            clock_ms,
        )
        self.settle = Settle(
            self.store,
            self.topics,
            self.offsets,
            self.batch,
            self.revive_log,
            self.pop_wait,
            self.holders,
            self.revive.schedule,
            clock_ms,
        )
        self.peek = Peek(
            config, self.store, self.topics, self.groups, self.pop, self.revive_log, self.pop_wait, clock_ms
        )
        self.assignment = Assignment(
            config,
            root / "messageRequestMode.json",
            files,
            self.topics,
            self.groups,
            self.clients,
            self.saver,
            self._route,
        )
        self.retry = Retry(self.groups, self.topics, self.sender, self.store, self.statistics)
        self.recall = Recall(config, self.store, self.topics, self.sender, self.batch, self.timer, clock_ms)
        self.replies = Replies(
            config, self.store, self.sender, self.batch, self.clients, lambda: self.address, clock_ms
        )
        self.transactions = Transactions(
            config,
            root / "halfMessages.json",
            files,
            self.store,
            self.topics,
            self.offsets,
            self.sender,
            self.batch,
            clock_ms,
        )
        self.check_back = CheckBack(
            config,
            self.store,
            self.transactions.halves,
            self.topics,
            self.clients,
            self.batch,
            self.transactions.note,
            clock_ms,
        )
        self.query = Query(config, self.store)
        self.reset = Reset(
            config,
            self.store,
            self.topics,
            self.groups,
            self.clients,
            self.offsets,
            self.hold,
            self.revive_log,
            self.pop_wait,
        )
        self.forward = Forward(self.store, self.clients)
        self.cleaning = Cleaning(self.store, self.topics)
        self.admin = Admin(
            config,
            self.store,
            self.topics,
            self.groups,
            self.clients,
            self.offsets,
            self.saver,
            self.statistics,
            self.cleaning.delete_queues,
            self._announced,
            booted,
        )
        self.progress = Progress(
            config,
            self.store,
            self.topics,
            self.groups,
            self.clients,
            self.offsets,
            self.pull,
            self.statistics,
            lambda: self.address,
            clock_ms,
        )
        self.runtime = Runtime(
            config, self.store, self.delay, self.timer, self.statistics, self._config_changed, clock_ms, booted
        )
        self.store.on_arrive = self._arrived
        #: request code -> who serves it
        self.handlers: dict[int, Handler] = {}
        for capability in (
            self.sender,
            self.pull,
            self.delay,
            self.replication,
            self.pop,
            self.settle,
            self.peek,
            self.assignment,
            self.clients,
            self.offsets,
            self.locks,
            self.retry,
            self.timer,
            self.recall,
            self.replies,
            self.transactions,
            self.check_back,
            self.query,
            self.reset,
            self.forward,
            self.admin,
            self.progress,
            self.cleaning,
            self.runtime,
        ):
            for code, handler in capability.handlers().items():
                assert code not in self.handlers, f"two capabilities serve code {code}"
                self.handlers[int(code)] = handler
        self.handlers.update(self.replication.refusals())
        self._server: Server | None = None
        self._vip: Server | None = None
        self._client: AsyncClient | None = None
        self._registration: Registration | None = None
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port that the broker listens on. Raises RuntimeError before it was started."""
        if self._server is None:
            raise RuntimeError("the broker is not started")
        return self._server.port

    @property
    def address(self) -> str:
        """What clients connect to, `host:port`."""
        return f"{self.config.host}:{self.port}"

    async def start(self) -> None:
        """Open the store, recover, then listen, and register with the NameServers.

        Raises StoreLocked when another process has the directory, StoreError when it cannot be used, OSError when
        the port is taken, ConfigError for accounts that cannot be read.
        """
        config = self.config
        if self.access is not None:
            self.access.load()
        recovery = self.store.open()
        try:
            self.topics.load()
            self.groups.load()
            self.offsets.load()
            self.locks.load()
            self.assignment.load()
            if not recovery.clean:
                self.offsets.forget_lost()
            if not config.is_slave:
                self.transactions.load(None if recovery.clean else recovery.checked_from)
            for topic in self.topics.adopt(self.store.queues()):
                log.warning("topic %s has messages and no settings: it is readable and writable again", topic)
            self._server = Server(
                self,
                host=config.bind_address,
                port=config.listen_port,
                tls=config.tls(),
                idle_timeout=config.server_channel_max_idle_time_seconds,
            )
            await self._server.bind()
            store_host = await _packed_address(config.host, self.port)
            if not config.is_slave:
                self.batch.start(store_host)
            self.revive_log.store_host = store_host
            if not config.is_slave:
                await self._start_writing()
            await self._server.start()  # not before it is known who holds what
            await self._listen_for_old_clients()
            self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._keep_tables())]
            if config.namesrv_addresses or config.is_slave:
                self._client = AsyncClient(
                    tls=config.client_tls(),
                    credentials=config.credentials(),
                    on_connection_lost=self._namesrv_lost,
                )
            await self.replication.start(self._tables())
            if self._client is not None and config.namesrv_addresses:
                ha_address = f"{config.host}:{self.replication.port or self.port + 1}"
                self._registration = Registration(
                    config, self._client, self.topics, self.address, ha_address, self.replication.registered
                )
                await self._registration.start()
        except BaseException:
            await self.stop()
            raise
        log.info("broker %s serves %s from %s", config.broker_name, self.address, config.store_path_root_dir)

    async def _start_writing(self) -> None:
        """Begin with what puts messages into the log by itself; a slave's master does that."""
        self.revive_log.recover()
        self.revive.start()
        await self.delay.start()
        self.timer.start()
        self.transactions.start()
        self.check_back.start()

    def _tables(self) -> SlaveSync | None:
        """What copies the master's tables."""
        if not self.config.is_slave or self._client is None:
            return None
        return SlaveSync(
            self._client, self.topics, self.groups, self.offsets, self.delay, self.timer, self.assignment
        )

    async def stop(self) -> None:
        """Take leave of the NameServers, stop serving, write everything to disk, leave the directory."""
        if self._registration is not None:
            await self._registration.stop()
            self._registration = None
        await self.replication.stop()
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._stopping.set()
        await asyncio.gather(*self._tasks)  # not cancelled, one may be saving
        self._tasks = []
        for server in (self._vip, self._server):
            if server is not None:
                await server.stop()
        self._vip = None
        self.hold.stop()
        self.pop_wait.stop()
        self.holders.stop()
        self.revive.stop()
        try:
            await self.delay.stop()
            await self.check_back.stop()
            self.store.flush()  # before it is saved what was delivered and how transactions ended
            self.timer.stop()
            self.transactions.stop()
            await self.locks.save()
            if self.config.is_slave:  # it may be started as the master next
                self.offsets.forget_lost()
        except StoreError as error:
            log.error("not everything could be noted while the broker stops: %s", error)
        for table in (self.topics, self.groups, self.transactions, self.offsets, self.delay):
            try:
                self.saver.save(table)
            except StoreError as error:
                log.error("%s could not be written while the broker stops: %s", table.path, error)
        self.store.on_durable = None
        self.store.close()

    async def _listen_for_old_clients(self) -> None:
        """Clients up to early 4.x use the port two below the broker's without asking."""
        port = self.config.listen_port - 2
        if port <= 0:
            return
        vip = Server(
            _Vip(self),
            host=self.config.bind_address,
            port=port,
            tls=self.config.tls(),
            idle_timeout=self.config.server_channel_max_idle_time_seconds,
        )
        try:
            await vip.start()
        except OSError as error:
            log.warning("port %d for old clients is not served: %s", port, error)
            return
        self._vip = vip

    # what the remoting server calls

    def handle(self, connection: Connection, request: Command) -> Reply | Awaitable[Reply]:
        if self.access is not None:
            try:
                self.access.check(request, connection.peer)
            except Refused as refused:
                return encode_response(request, refused.code, refused.remark)
        code = request.code
        handler = self.handlers.get(code)
        if handler is None:
            return unsupported(request)
        if code not in BATCHED:
            self.batch.end()
        return handler(connection, request)

    def end_batch(self, connection: Connection) -> None:
        if self.pop_wait.count:  # served first: a consumer need not share a CPU with the producer then
            self.batch.end()
            self.pop_wait.serve_arrived(connection.flush)
            connection.flush()  # where that served nobody
        else:
            self.batch.end_and_flush(connection)

    def connection_lost(self, connection: Connection) -> None:
        self.hold.connection_lost(connection)
        self.pop_wait.connection_lost(connection)
        self.clients.connection_lost(connection)
        self.holders.connection_lost(connection)

    def _arrived(self, messages: list[Appended]) -> None:
        """Messages became readable."""
        self.replication.arrived(messages)
        self.statistics.arrived(messages)
        self.hold.arrived(messages)
        self.pop_wait.arrived(messages)
        if self.config.is_slave:
            return
        self.timer.arrived()
        if self.revive_log.arrived(messages):
            self.revive.took_in()
        self.transactions.arrived()

    # changes and periodic work

    def _topics_changed(self, topics: list[TopicConfig]) -> None:
        self.sender.forget_topics()
        if self._registration is not None:
            self._registration.changed(topics)

    async def _announced(self) -> None:
        if self._registration is not None:
            await self._registration.told()

    async def _route(self, topic: str) -> TopicRoute | None:
        """The topic's queues on all brokers, as a NameServer knows them; None when none does."""
        header = GetRouteInfoHeader(topic=topic, accept_standard_json_only=True)
        client = self._client
        if client is None:
            return None
        for address in self.config.namesrv_addresses:
            try:
                answer = await client.call(address, RequestCode.GET_ROUTEINFO_BY_TOPIC, header, timeout=1.0)
                if answer.code == ResponseCode.SUCCESS:
                    return TopicRoute.decode(answer.body)
            except (RocketQError, ValueError) as error:
                log.warning("NameServer %s did not tell the route of topic %s: %s", address, topic, error)
        return None

    def _master_lost(self) -> None:
        if self._registration is not None:
            self._registration.master_lost()

    def _namesrv_lost(self, address: str) -> None:
        if self._registration is not None:
            self._registration.connection_lost(address)

    def _config_changed(self, names: set[str]) -> None:
        self.batch.config_changed()
        self.sender.forget_topics()
        self.store.configure(self.config.store())
        if "broker_permission" in names:
            self.topics.changed()

    async def _tick(self) -> None:
        """Periodic work until the broker stops. It is short, and nothing of it waits for a disk."""
        next_expiry = 0.0
        while not self._stopping.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK)
            now = time.monotonic()
            try:
                if self.access is not None:
                    self.access.refresh()
                self.store.maintain()
                if not self.config.is_slave:
                    self.revive.forget_deleted()
                    self.revive_log.maintain()
                self.batch.relax()
                self.statistics.sample(now)
                if now >= next_expiry:
                    next_expiry = now + min(EXPIRE_EVERY, self.config.channel_expired_timeout / 4000)
                    self.clients.expire()
                    self.locks.expire()
            except RocketQError as error:  # a full disk, for one, passes; the next round tries again
                log.error("periodic work failed, the next round tries again: %s", error)
            except Exception:  # whatever it is: without this task no checkpoint is saved any more
                log.exception("periodic work failed, the next round tries again")

    async def _keep_tables(self) -> None:
        """Save what changed until the broker stops, in threads and one after the other: that takes as long as it takes
        the disk.
        """
        offsets_every = self.config.flush_consumer_offset_interval / 1000
        while not self._stopping.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK)
            try:
                await self.saver.save_later(self.topics, 0.0)
                await self.saver.save_later(self.groups, 0.0)
                await self.saver.save_later(self.assignment, 0.0)
                await self.saver.save_later(self.transactions, 0.0)
                await self.saver.save_later(self.offsets, offsets_every)
                await self.saver.save_later(self.delay, offsets_every)
                await self.timer.checkpoint()
            except Exception:  # whatever it is: without this task no offset is saved any more
                log.exception("saving tables failed, the next round tries again")


class _Vip:
    """The broker as its second port shows it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def handle(self, connection: Connection, request: Command) -> Reply | Awaitable[Reply]:
        if request.code in NOT_ON_VIP:
            return unsupported(request)
        return self._broker.handle(connection, request)

    def end_batch(self, connection: Connection) -> None:
        self._broker.end_batch(connection)

    def connection_lost(self, connection: Connection) -> None:
        self._broker.connection_lost(connection)


def unsupported(request: Command) -> bytes:
    """The answer to a code that nobody serves."""
    remark = f" request type {request.code} not supported"
    return encode_response(request, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark)


async def _packed_address(host: str, port: int) -> bytes:
    """The address as records and message ids carry it. Raises ConfigError when `host` has none."""
    try:
        return pack_host(host, port)
    except ValueError:
        pass  # a name
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"brokerIP1={host} cannot be resolved: {error}") from None
    return pack_host(str(found[0][4][0]), port)
