"""Time-outs of sends hold, whoever is slow: a NameServer, a connection, or a broker that does not read."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections import defaultdict

import pytest
from client_helpers import Silent, fresh, until

from rocketq.client import AsyncProducer, Producer
from rocketq.client.routes import Known
from rocketq.errors import ConnectFailed, RemotingError, RequestTimeout
from rocketq.message import Message, MessageQueue
from rocketq.remoting import blocking

#: Seconds: what a send may take, and after which nobody can think any more that it kept to that.
SHORT, LONG = 0.2, 60.0
#: Seconds for an attempt: less than connections have otherwise, and enough for a server on a busy machine.
ATTEMPT = 1.5


def test_one_way_sends_wait_for_a_broker_that_does_not_read_and_say_so(namesrv: str) -> None:
    topic = fresh("Unread")
    body = os.urandom(1 << 20)

    async def main(queue: MessageQueue) -> None:
        async with AsyncProducer("PG", namesrv) as producer:

            async def send_on_and_on() -> None:
                for number in range(200):
                    seconds = SHORT if number else LONG  # the first one has to find the way
                    await producer.send_oneway(Message(topic, body), queue=queue, timeout=seconds)

            with pytest.raises(RequestTimeout, match="read too little"):
                await send_on_and_on()
            connection = producer.instance.remoting.connected(silent.address)
            assert connection is not None
            assert connection._out_size + connection.unread() < 10 << 20

    with Silent(namesrv, topic, reads=False) as silent:
        asyncio.run(main(MessageQueue(topic, "silent", 0)))


def test_a_connection_that_does_not_come_about_costs_a_send_its_own_time(
    namesrv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = fresh("Lost")
    queue = MessageQueue(topic, "silent", 0)
    allowed: dict[str, list[float]] = defaultdict(list)
    connect = blocking.connect

    def spy(address: str, tls: None, timeout: float) -> socket.socket:
        allowed[address].append(timeout)
        return connect(address, tls, timeout)

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            await producer.queues(topic)
            with pytest.raises(ConnectFailed, match=r"within .* s$") as failed:
                await producer.send_oneway(Message(topic, b"x"), queue=queue, timeout=SHORT)
            assert float(str(failed.value).split()[-2]) <= SHORT

    monkeypatch.setattr(blocking, "connect", spy)
    with Producer("PG", namesrv) as producer:
        producer.send(Message(topic, b"makes the topic"))
    with Silent(namesrv, topic, accepts=False) as silent:
        asyncio.run(main())
        with Producer("PG", namesrv, retries=5, attempt_timeout=ATTEMPT) as producer:
            for _ in range(10):  # one of them is for the silent broker first
                assert producer.send(Message(topic, b"x"), timeout=LONG).status == "SEND_OK"
            results = producer.send_many([Message(topic, b"x") for _ in range(10)], timeout=LONG)
            assert {result.status for result in results} == {"SEND_OK"}
        assert 0 < max(allowed[silent.address]) <= ATTEMPT


def test_a_name_server_that_hangs_costs_a_send_its_own_time() -> None:
    """And that of a thread is not that of all that wait before it."""

    async def main() -> None:
        async with AsyncProducer("PG", address, timeout=LONG) as producer:
            for send in (producer.send, producer.send_oneway):
                with pytest.raises(RequestTimeout, match="where topic T is"):
                    await asyncio.wait_for(send(Message("T", b"x"), timeout=SHORT), LONG / 2)
            complaints: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            (await asyncio.to_thread(hangs.accept))[0].close()
            await until(lambda: not producer.instance._lookups)
            gc.collect()
            assert not complaints, "what the look-up came to is nobody's any more"

    with socket.create_server(("127.0.0.1", 0)) as hangs:
        hangs.settimeout(LONG)
        address = f"127.0.0.1:{hangs.getsockname()[1]}"
        asyncio.run(main())
        producer = Producer("PG", address, timeout=LONG)
        failures: list[RemotingError] = []

        def work() -> None:
            with pytest.raises(RemotingError) as caught:
                producer.send(Message("T", b"x"), timeout=SHORT)
            failures.append(caught.value)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG / 2)
        assert len(failures) == 3
        producer.close()


def test_a_name_server_that_hangs_costs_a_request_its_own_time(
    namesrv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the topic of the replies is still to be found."""
    topic = fresh("Asked")

    async def main() -> None:
        async with AsyncProducer("PG", namesrv) as producer:
            await producer.send(Message(topic, b"makes the topic"))
            ask = producer.instance._ask

            async def hang(wanted: str) -> Known:
                if wanted != topic:
                    await asyncio.Event().wait()
                return await ask(wanted)

            monkeypatch.setattr(producer.instance, "_ask", hang)
            with pytest.raises(RequestTimeout, match="where topic DefaultCluster_REPLY_TOPIC is"):
                await asyncio.wait_for(producer.request(Message(topic, b"x"), timeout=SHORT), LONG / 2)

    asyncio.run(main())
