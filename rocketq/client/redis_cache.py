"""Routes in Redis (extra `redis`): a client that starts while every NameServer is down finds brokers all the same.

Key `rocketq:route:TOPIC` (prefix from the URL's `prefix` option), value the route's JSON as a NameServer answers it.
Redis is only ever a help: when it fails, a warning is logged and the client goes on without it.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from rocketq.client.troubles import Troubles
from rocketq.errors import ConfigError

log = logging.getLogger("rocketq.client")

DEFAULT_PREFIX = "rocketq:route:"
#: Seconds that Redis may take to connect or to answer.
TIMEOUT = 1.0


def _split_url(url: str) -> tuple[str, str]:
    """The URL for redis-py, and the key prefix."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(f"route cache {url!r}: give a redis://, rediss:// or unix:// URL")
    options = parse_qs(parts.query)
    prefix = options.pop("prefix", [DEFAULT_PREFIX])[0]
    return urlunsplit(parts._replace(query=urlencode(options, doseq=True))), prefix


def _module(name: str) -> Any:
    try:
        if name == "redis":
            import redis

            return redis
        import redis.asyncio

        return redis.asyncio
    except ImportError:
        raise ConfigError("a Redis route cache needs the extra: pip install 'rocketq[redis]'") from None


class RedisRoutes:
    """The cache for the synchronous producer. `url`: `redis://host:6379/0[?prefix=my:]`."""

    def __init__(self, url: str) -> None:
        redis = _module("redis")
        address, self.prefix = _split_url(url)
        self._troubles = Troubles()
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._redis = redis.from_url(address, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)

    def get(self, topic: str) -> bytes | None:
        try:
            value: bytes | None = self._redis.get(self.prefix + topic)
        except self._errors as error:
            log.log(
                self._troubles.level("redis"), "route cache: cannot read the route of topic %s: %s", topic, error
            )
            return None
        self._troubles.over("redis")
        return value

    def put(self, topic: str, route: bytes) -> None:
        try:
            self._redis.set(self.prefix + topic, route)
        except self._errors as error:
            log.log(
                self._troubles.level("redis"),
                "route cache: cannot publish the route of topic %s: %s",
                topic,
                error,
            )

    def close(self) -> None:
        self._redis.close()


class AsyncRedisRoutes:
    """The cache for asyncio clients. `url`: `redis://host:6379/0[?prefix=my:]`."""

    def __init__(self, url: str) -> None:
        redis = _module("redis.asyncio")
        address, self.prefix = _split_url(url)
        self._troubles = Troubles()
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._redis = redis.from_url(address, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)

    async def get(self, topic: str) -> bytes | None:
        try:
            value: bytes | None = await self._redis.get(self.prefix + topic)
        except self._errors as error:
            log.log(
                self._troubles.level("redis"), "route cache: cannot read the route of topic %s: %s", topic, error
            )
            return None
        self._troubles.over("redis")
        return value

    async def put(self, topic: str, route: bytes) -> None:
        try:
            await self._redis.set(self.prefix + topic, route)
        except self._errors as error:
            log.log(
                self._troubles.level("redis"),
                "route cache: cannot publish the route of topic %s: %s",
                topic,
                error,
            )

    async def close(self) -> None:
        await self._redis.aclose()
