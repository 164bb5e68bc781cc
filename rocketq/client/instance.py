"""One client process towards the cluster: connections, routes, heartbeats, and what brokers ask of clients.

Producers and consumers of one process may share an instance (and so its connections), except members of the same
consumer group: brokers know a member by its client id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

from rocketq.client.checks import Checks
from rocketq.client.namesrv import AsyncLookup, ServerList, look_up
from rocketq.client.redis_cache import AsyncRedisRoutes
from rocketq.client.requests import Requests
from rocketq.client.routes import Known, RouteTable
from rocketq.client.troubles import Troubles
from rocketq.errors import ConfigError, RemotingError, RequestTimeout, RocketQError
from rocketq.message import MessageQueue, ReceivedMessage, decode_messages, new_client_id
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.bodies import (
    ConsumeMessageDirectlyResult,
    ConsumerData,
    HeartbeatData,
    OffsetTable,
    ProducerData,
)
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.connection import Connection
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.headers import (
    ConsumeMessageDirectlyHeader,
    GetConsumerRunningInfoHeader,
    GetConsumerStatusHeader,
    NotifyConsumerIdsChangedHeader,
    ResetOffsetHeader,
    UnregisterClientHeader,
)
from rocketq.remoting.tls import TlsConfig
from rocketq.remoting.waiting import wait_event

log = logging.getLogger("rocketq.client")

#: After a failure the next try waits so long, doubling up to the regular interval (seconds).
FIRST_RETRY = 0.5
FIRST_ROUTE_RETRY = 1.0


class Member(Protocol):
    """A consumer as its instance sees it."""

    group: str

    def topics(self) -> Iterable[str]:
        """Every topic that it needs the route of."""
        ...

    def consumer_data(self) -> ConsumerData:
        """Its part of the heartbeat."""
        ...

    def wake(self) -> None:
        """Members or routes changed: share out the queues again, now."""
        ...

    async def reset_offsets(self, topic: str, offsets: dict[MessageQueue, int]) -> None:
        """Goes on at these offsets, for the queues that are its own."""
        ...

    def consumer_status(self, topic: str) -> bytes:
        """The body that answers GET_CONSUMER_STATUS_FROM_CLIENT."""
        ...

    def running_info(self) -> bytes:
        """The body that answers GET_CONSUMER_RUNNING_INFO."""
        ...

    async def consume_directly(self, message: ReceivedMessage) -> ConsumeMessageDirectlyResult:
        """Has this one message consumed now, whatever the offsets are."""
        ...


class ClientInstance:
    """What producers and consumers of a process share.

    `namesrv`: `host:port;host:port`. `tls`: how to connect, plain when None. `access_key` and
    `secret_key`: the account that requests are signed for, where brokers ask for one. `route_cache`: URL of a Redis
    that keeps routes (see `redis_cache`). `route_refresh` and `heartbeat_interval` in seconds. `client_id`: who we
    are for brokers; must be unique in the cluster. Raises ConfigError.
    """

    def __init__(
        self,
        namesrv: str,
        *,
        tls: TlsConfig | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        route_cache: str | None = None,
        route_refresh: float = 30.0,
        heartbeat_interval: float = 30.0,
        timeout: float = 3.0,
        client_id: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if route_refresh <= 0 or heartbeat_interval <= 0:
            raise ConfigError("route_refresh and heartbeat_interval have to be more than 0 seconds")
        self.client_id = client_id or new_client_id()
        #: Who holds what its POP consumers have; a later process may have the same client id.
        self.holder = uuid.uuid4().hex
        self.rng = rng or random.Random()
        self.timeout = timeout
        self.routes = RouteTable()
        self.route_refresh = route_refresh
        self.heartbeat_interval = heartbeat_interval
        self.started_at = time.time()
        self._servers = ServerList(namesrv, self.rng)
        self._tls = tls
        self._credentials = Credentials.of(access_key, secret_key)
        self._cache_url = route_cache
        self._cache: AsyncRedisRoutes | None = None
        self._producers: dict[str, int] = {}
        self._members: dict[str, Member] = {}
        #: Topics that somebody sends to and that may be created by sending.
        self._publishing: set[str] = set()
        self._lookups: dict[str, asyncio.Task[Known]] = {}
        #: Requests that wait for their replies.
        self.requests = Requests()
        self.checks = Checks()
        #: Brokers that were told over their present connection who we are, and who is telling them.
        self._introduced: set[str] = set()
        #: How often the connection to a broker's address was lost: it forgets then who its members are.
        self.losses: Counter[str] = Counter()
        self._introducing = asyncio.Lock()
        self._users = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._heartbeat_wish = asyncio.Event()
        self._troubles = Troubles()
        self.remoting: AsyncClient
        self._names: AsyncLookup

    @property
    def namesrv(self) -> str:
        return self._servers.text

    # life

    async def acquire(self) -> None:
        """One more user; the first one starts it."""
        self._users += 1
        if self._users > 1:
            return
        self.remoting = AsyncClient(
            on_request=self._on_request,
            tls=self._tls,
            credentials=self._credentials,
            on_connection_lost=self._connection_lost,
        )
        if self._cache_url is not None:
            self._cache = AsyncRedisRoutes(self._cache_url)
        self._names = AsyncLookup(self.remoting, self._cache, self.timeout)
        self._tasks = [
            asyncio.create_task(self._keep_routes(), name="rocketq-routes"),
            asyncio.create_task(self._keep_heartbeats(), name="rocketq-heartbeats"),
        ]

    async def release(self) -> None:
        """One user less; with the last one the connections are closed."""
        self._users -= 1
        if self._users:
            return
        pending = [*self._tasks, *self._lookups.values()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.checks.close()
        await self.remoting.close()
        if self._cache is not None:
            await self._cache.close()

    def add_producer(self, group: str) -> None:
        self._producers[group] = self._producers.get(group, 0) + 1

    async def remove_producer(self, group: str) -> None:
        """Tells the brokers when the last producer of the group goes."""
        self._producers[group] -= 1
        if not self._producers[group]:
            del self._producers[group]
            await self._unregister(UnregisterClientHeader(client_id=self.client_id, producer_group=group))

    def add_member(self, member: Member) -> None:
        """Raises ConfigError when this client already is a member of the group."""
        if member.group in self._members:
            raise ConfigError(
                f"this client already is a member of group {member.group}; a second one needs a client id of its own"
            )
        self._members[member.group] = member

    async def remove_member(self, member: Member) -> None:
        if self._members.get(member.group) is member:
            del self._members[member.group]
            await self._unregister(UnregisterClientHeader(client_id=self.client_id, consumer_group=member.group))

    async def _unregister(self, header: UnregisterClientHeader) -> None:
        async def tell(address: str) -> None:
            if not self.remoting.is_connected(address):
                return  # it knows already
            try:
                await self.remoting.call(address, RequestCode.UNREGISTER_CLIENT, header, timeout=self.timeout)
            except RemotingError as error:
                log.info("broker %s was not told that this client leaves: %s", address, error)

        await asyncio.gather(*[tell(address) for address in self._addresses(slaves=True)])

    # routes

    async def topic(
        self, topic: str, *, publish: bool = False, max_age: float = float("inf"), timeout: float | None = None
    ) -> Known:
        """What is known of a topic; asks when nothing is, when it is older than `max_age` seconds, or has failed.

        `publish`: the topic may be created by sending to it, so the default topic's route will do. Raises
        RouteNotFound when nobody knows the topic, ConnectFailed when no NameServer answers, RequestTimeout when none
        has within `timeout` seconds.
        """
        if publish:
            self._publishing.add(topic)
        known = self.routes.fresh(topic, time.monotonic(), max_age)
        if known is not None:
            return known
        return await self._lookup(topic, timeout)

    async def _lookup(self, topic: str, timeout: float | None = None) -> Known:
        task = self._lookups.get(topic)
        if task is None:
            task = self._lookups[topic] = asyncio.create_task(self._ask(topic))
            task.add_done_callback(partial(self._looked_up, topic))
        await asyncio.wait({task}, timeout=timeout)  # it goes on for others who wait
        if not task.done():
            raise RequestTimeout(f"no NameServer said in time where topic {topic} is")
        return task.result()

    def _looked_up(self, topic: str, task: asyncio.Task[Known]) -> None:
        del self._lookups[topic]
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more

    async def _ask(self, topic: str) -> Known:
        steps = look_up(
            self.routes,
            self._servers,
            topic,
            publish=topic in self._publishing,
            cached=self._cache is not None,
        )
        known, changed = await self._names.run(steps)
        if changed:
            for member in self._members.values():
                if topic in member.topics():
                    member.wake()
        return known

    async def refresh_routes(self) -> bool:
        """Asks for every topic in use; False when one could not be answered."""
        topics = set(self.routes.topics)
        for member in self._members.values():
            topics.update(member.topics())
        answers = await asyncio.gather(*[self._lookup(topic) for topic in topics], return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RocketQError):
                raise answer
        return not any(isinstance(answer, BaseException) for answer in answers)

    async def _keep_routes(self) -> None:
        pause, again = self.route_refresh, FIRST_ROUTE_RETRY
        while True:
            if await wait_event(self._hurry, pause):
                self._hurry.clear()
            if await self.refresh_routes():
                pause, again = self.route_refresh, FIRST_ROUTE_RETRY
            else:
                pause, again = min(again, self.route_refresh), min(again * 2, self.route_refresh)

    def _connection_lost(self, address: str) -> None:
        if self._users and address not in self._servers.addresses:
            log.info("connection to broker %s is lost, looking for routes again", address)
            self._introduced.discard(address)
            self.losses[address] += 1
            self._hurry.set()
            self.heartbeat_soon()

    # heartbeats

    def _addresses(self, *, slaves: bool) -> list[str]:
        return sorted(
            {
                address
                for addresses in self.routes.brokers.values()
                for broker_id, address in addresses.items()
                if slaves or broker_id == 0
            }
        )

    async def heartbeat(self) -> bool:
        """Tells every broker who is here; False when one could not be told."""
        if not self._producers and not self._members:
            return True
        return await self._beat_all(self._addresses(slaves=bool(self._members)))

    async def _beat_all(self, addresses: Iterable[str]) -> bool:
        body = HeartbeatData(
            client_id=self.client_id,
            producer_data_set=[ProducerData(group_name=group) for group in self._producers],
            consumer_data_set=[member.consumer_data() for member in self._members.values()],
        ).encode()
        return all(await asyncio.gather(*[self._beat(address, body) for address in addresses]))

    async def _beat(self, address: str, body: bytes) -> bool:
        try:
            answer = await self.remoting.call(address, RequestCode.HEART_BEAT, {}, body, timeout=self.timeout)
        except RemotingError as error:
            log.log(
                self._troubles.level(address, logging.INFO), "heartbeat to broker %s failed: %s", address, error
            )
            return False
        if answer.code != ResponseCode.SUCCESS:
            level = self._troubles.level(address)
            log.log(level, "broker %s refused a heartbeat: code %d %s", address, answer.code, answer.remark)
            return False
        self._troubles.over(address)
        self._introduced.add(address)
        return True

    async def introduce(self) -> None:
        """Sees to it that every master knows us before something depends on that.

        One that cannot be told now is not waited for a second time: the regular heartbeats tell it.
        """
        async with self._introducing:
            strangers = set(self._addresses(slaves=False)) - self._introduced
            if strangers:
                self._introduced |= strangers
                if not await self._beat_all(strangers):
                    self.heartbeat_soon()

    def heartbeat_soon(self) -> None:
        """Some broker does not know us (any more)."""
        self._heartbeat_wish.set()

    async def _keep_heartbeats(self) -> None:
        pause, again = self.heartbeat_interval, FIRST_RETRY
        while True:
            if await wait_event(self._heartbeat_wish, pause):
                self._heartbeat_wish.clear()
            if await self.heartbeat():
                pause, again = self.heartbeat_interval, FIRST_RETRY
            else:
                pause, again = min(again, self.heartbeat_interval), min(again * 2, self.heartbeat_interval)

    # what brokers ask

    def _on_request(self, connection: Connection, request: Command) -> bytes | Awaitable[bytes] | None:
        code = request.code
        if code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            member = self._members.get(request.header(NotifyConsumerIdsChangedHeader).consumer_group)
            if member is not None:
                member.wake()
            return None
        if code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET:
            return self._reset(request)
        if code == RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT:
            status = request.header(GetConsumerStatusHeader)
            return self._tell(request, status.group, lambda member: member.consumer_status(status.topic))
        if code == RequestCode.GET_CONSUMER_RUNNING_INFO:
            info = request.header(GetConsumerRunningInfoHeader)
            return self._tell(request, info.consumer_group, lambda member: member.running_info())
        if code == RequestCode.CHECK_TRANSACTION_STATE:
            self.checks.asked(connection, request)
            return None
        if code == RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT:
            return self.requests.replied(request)
        if code == RequestCode.CONSUME_MESSAGE_DIRECTLY:
            return self._consume_directly(request)
        return encode_response(
            request, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, f" request type {code} not supported"
        )

    def _stranger(self, request: Command, group: str) -> bytes:
        return encode_response(
            request,
            ResponseCode.SYSTEM_ERROR,
            f"client {self.client_id} is not a member of consumer group {group}",
        )

    def _tell(self, request: Command, group: str, what: Callable[[Member], bytes]) -> bytes:
        member = self._members.get(group)
        if member is None:
            return self._stranger(request, group)
        return encode_response(request, ResponseCode.SUCCESS, body=what(member))

    async def _reset(self, request: Command) -> bytes:
        header = request.header(ResetOffsetHeader)
        member = self._members.get(header.group)
        if member is None:
            return self._stranger(request, header.group)
        await member.reset_offsets(header.topic, OffsetTable.decode(bytes(request.body)).offset_table)
        return encode_response(request, ResponseCode.SUCCESS)

    async def _consume_directly(self, request: Command) -> bytes:
        header = request.header(ConsumeMessageDirectlyHeader)
        member = self._members.get(header.consumer_group)
        if member is None:
            return self._stranger(request, header.consumer_group)
        messages = decode_messages(bytes(request.body), header.broker_name or "")
        result = await member.consume_directly(messages[0])
        return encode_response(request, ResponseCode.SUCCESS, body=result.encode())
