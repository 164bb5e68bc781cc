"""The route cache with a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
from client_helpers import fresh
from servers import free_port, wait_until

from rocketq.client import AsyncProducer, Producer
from rocketq.errors import ConfigError, ConnectFailed
from rocketq.message import Message
from rocketq.remoting.bodies import TopicRoute


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stored(url: str, key: str) -> bytes | None:
    import redis

    with redis.from_url(url) as client:
        value: bytes | None = client.get(key)
        return value


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    pytest.importorskip("redis")
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--dir", str(directory)], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: reachable(port), what="redis")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def test_a_new_client_starts_from_the_cache_while_every_name_server_is_down(namesrv: str, redis_url: str) -> None:
    """The broker lives on; the NameServers' address leads nowhere."""
    topic = fresh("Cached")
    nowhere = "127.0.0.1:1"

    async def main() -> None:
        async with AsyncProducer("PG", namesrv, route_cache=redis_url) as producer:
            await producer.send(Message(topic, b"learned"))
            while stored(redis_url, f"rocketq:route:{topic}") is None:  # the broker registers it in a moment
                await producer.instance.refresh_routes()
        async with AsyncProducer("PG", nowhere, route_cache=redis_url) as newcomer:
            assert (await newcomer.send(Message(topic, b"from the cache"))).status == "SEND_OK"
            with pytest.raises(ConnectFailed):
                await newcomer.send(Message(fresh("Unknown"), b"nobody knows"), timeout=1.0)

    asyncio.run(main())
    with Producer("PG", nowhere, route_cache=redis_url) as newcomer:
        assert newcomer.send(Message(topic, b"sync, too")).status == "SEND_OK"


def test_routes_are_kept_under_a_prefix_of_ones_choice(namesrv: str, redis_url: str) -> None:
    topic = fresh("Prefixed")
    with Producer("PG", namesrv, route_cache=f"{redis_url}?prefix=mine:") as producer:
        producer.send(Message(topic, b"x"))
        while (route := stored(redis_url, f"mine:{topic}")) is None:
            producer.routes.mark_stale(topic)
            producer.send(Message(topic, b"x"))
    assert TopicRoute.decode(route).queue_datas[0].broker_name == "broker-0"


def test_without_redis_everything_goes_on(namesrv: str) -> None:
    pytest.importorskip("redis")
    with Producer("PG", namesrv, route_cache="redis://127.0.0.1:1/0") as producer:
        assert producer.send(Message(fresh("NoRedis"), b"x")).status == "SEND_OK"


def test_an_address_that_is_no_redis_url_is_refused(namesrv: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ConfigError, match="redis://"):
        Producer("PG", namesrv, route_cache="http://cache")
