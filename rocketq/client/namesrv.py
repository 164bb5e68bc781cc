"""Asking NameServers for routes: one is used as long as it works, the next one when it fails.

How a route is found is written once, as a generator that yields what has to be asked of whom (a :data:`Step`) and is
sent the answer. :class:`AsyncLookup` and :class:`BlockingLookup` only carry the questions. A cache (see
`redis_cache`) learns every route, and is asked when no NameServer answers.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rocketq.client.routes import Known, RouteTable, limit_queues
from rocketq.client.troubles import Troubles
from rocketq.errors import BrokerError, ConfigError, ConnectFailed, RemotingError, RouteNotFound
from rocketq.names import AUTO_CREATE_TOPIC
from rocketq.remoting.bodies import TopicRoute
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers import GetRouteInfoHeader

if TYPE_CHECKING:
    from rocketq.remoting.aio import AsyncClient
    from rocketq.remoting.blocking import BlockingClient

log = logging.getLogger("rocketq.client")

#: Queues per broker of a topic that is created by sending to it.
DEFAULT_QUEUES = 4


def parse_addresses(text: str) -> list[str]:
    """The addresses of `host:port;host:port` (commas too). Raises ConfigError."""
    addresses = [part.strip() for part in text.replace(",", ";").split(";") if part.strip()]
    if not addresses:
        raise ConfigError("no NameServer address is given (host:port, several separated by ';')")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"NameServer address {address!r} is not host:port")
    return addresses


class ServerList:
    """Which NameServer is asked: a random one first, the next one after a failure."""

    def __init__(self, text: str, rng: random.Random) -> None:
        self.addresses = parse_addresses(text)
        self._at = rng.randrange(len(self.addresses))
        self.troubles = Troubles()

    @property
    def text(self) -> str:
        return ";".join(self.addresses)

    def answered(self) -> None:
        """One of them works."""
        if self.troubles.over("routes") | self.troubles.over("cache"):
            log.info("a NameServer of %s answers again", self.text)

    def attempts(self) -> Iterator[str]:
        """Each address once, beginning with the one in use; going on to the next makes it the one in use."""
        first, count = self._at, len(self.addresses)
        for step in range(count):
            at = (first + step) % count
            yield self.addresses[at]
            if self._at == at:  # else another look-up has gone on already
                self._at = (at + 1) % count


class Ask(NamedTuple):
    """Ask the NameServer at `address`; send the answer, or throw the RemotingError."""

    address: str
    topic: str


class CacheGet(NamedTuple):
    """Send what the cache has for the topic: JSON of a route, or None."""

    topic: str


class CachePut(NamedTuple):
    """Tell the cache; send anything."""

    topic: str
    route: bytes


Step = Ask | CacheGet | CachePut
Answer = Command | bytes | None


class Learned(NamedTuple):
    """What is known of a topic after a look-up; `changed`: it was not known like this before."""

    known: Known
    changed: bool


def _query(servers: ServerList, topic: str, cached: bool) -> Generator[Step, Answer, TopicRoute | None]:
    """The route of a topic; None when the NameServer says that it does not exist. Raises ConnectFailed."""
    failures: list[str] = []
    for address in servers.attempts():
        try:
            answer = yield Ask(address, topic)
            assert isinstance(answer, Command)
            if answer.code == ResponseCode.TOPIC_NOT_EXIST:
                servers.answered()
                return None
            if answer.code != ResponseCode.SUCCESS:
                raise BrokerError(answer.code, answer.remark, address)
            route = TopicRoute.decode(bytes(answer.body))
        except (RemotingError, BrokerError, ValueError) as error:
            failures.append(f"{address}: {error}")
            continue
        servers.answered()
        if cached:
            yield CachePut(topic, route.encode(True))
        return route
    remembered = (yield CacheGet(topic)) if cached else None
    if isinstance(remembered, bytes):
        try:
            route = TopicRoute.decode(remembered)
        except ValueError as error:
            failures.append(f"cached route: {error}")
        else:
            level = servers.troubles.level("cache")
            log.log(level, "no NameServer of %s answers, using cached routes (topic %s)", servers.text, topic)
            return route
    raise ConnectFailed(f"no NameServer answers for the route of topic {topic}: {'; '.join(failures)}")


def look_up(
    table: RouteTable, servers: ServerList, topic: str, *, publish: bool, cached: bool
) -> Generator[Step, Answer, Learned]:
    """Finds a topic's route and notes it in `table`.

    `publish`: the topic may be created by sending to it, so the default topic's route will do. When nothing can be
    learned, what is known already counts on. Raises RouteNotFound when nobody knows the topic, ConnectFailed when no
    NameServer answers.
    """
    known = table.topics.get(topic)
    try:
        route = yield from _query(servers, topic, cached)
    except ConnectFailed as error:
        if known is None:
            raise
        log.log(servers.troubles.level("routes"), "going on with the known routes: %s", error)
        return Learned(table.touch(topic, time.monotonic()), False)
    if route is None and publish:
        default = yield from _query(servers, AUTO_CREATE_TOPIC, cached)
        route = limit_queues(default, DEFAULT_QUEUES) if default is not None else None
    if route is None:
        if known is not None and not table.is_denied(topic):
            # a NameServer that just started does not know everything yet
            return Learned(table.touch(topic, time.monotonic()), False)
        table.forget(topic)
        raise RouteNotFound(
            f"topic {topic} does not exist on the NameServers {servers.text}: create it, or allow brokers to create "
            "topics (autoCreateTopicEnable)"
        )
    changed = table.learn(topic, route, time.monotonic())
    return Learned(table.topics[topic], changed)


def _header(topic: str) -> GetRouteInfoHeader:
    return GetRouteInfoHeader(topic=topic, accept_standard_json_only=True)


class AsyncRouteCache(Protocol):
    """Where routes are kept beside the NameServers. Must not raise; the payload is a TopicRoute's JSON."""

    async def get(self, topic: str) -> bytes | None: ...

    async def put(self, topic: str, route: bytes) -> None: ...

    async def close(self) -> None: ...


class BlockingRouteCache(Protocol):
    """The same for synchronous clients."""

    def get(self, topic: str) -> bytes | None: ...

    def put(self, topic: str, route: bytes) -> None: ...

    def close(self) -> None: ...


class AsyncLookup:
    """Route queries over an :class:`AsyncClient`. `timeout` in seconds, for each NameServer."""

    def __init__(self, remoting: AsyncClient, cache: AsyncRouteCache | None, timeout: float) -> None:
        self._remoting = remoting
        self.cache = cache
        self._timeout = timeout

    async def run(self, steps: Generator[Step, Answer, Learned]) -> Learned:
        """Carries out a look-up. Raises as it does."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._carry(step)
                except RemotingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _carry(self, step: Step) -> Answer:
        if isinstance(step, Ask):
            code = RequestCode.GET_ROUTEINFO_BY_TOPIC
            return await self._remoting.call(step.address, code, _header(step.topic), timeout=self._timeout)
        assert self.cache is not None
        if isinstance(step, CacheGet):
            return await self.cache.get(step.topic)
        await self.cache.put(step.topic, step.route)
        return None


class BlockingLookup:
    """Route queries over a :class:`BlockingClient`. `timeout` in seconds, for each NameServer."""

    def __init__(self, remoting: BlockingClient, cache: BlockingRouteCache | None, timeout: float) -> None:
        self._remoting = remoting
        self.cache = cache
        self._timeout = timeout

    def run(self, steps: Generator[Step, Answer, Learned], deadline: float = math.inf) -> Learned:
        """Carries out a look-up, until `deadline` (of the monotonic clock). Raises as it does."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._carry(step, deadline)
                except RemotingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _carry(self, step: Step, deadline: float) -> Answer:
        if isinstance(step, Ask):
            code = RequestCode.GET_ROUTEINFO_BY_TOPIC
            timeout = max(0.001, min(self._timeout, deadline - time.monotonic()))
            return self._remoting.call(step.address, code, _header(step.topic), timeout=timeout)
        assert self.cache is not None
        if isinstance(step, CacheGet):
            return self.cache.get(step.topic)
        self.cache.put(step.topic, step.route)
        return None
