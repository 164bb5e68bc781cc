"""The asyncio client against real servers, and against peers that misbehave."""

import asyncio
import gc
import socket
import time

import pytest
from remoting_peers import CALLS_BACK, ECHO, LATER, RAISES, SILENT, EchoService, until
from servers import free_port

from rocketq.errors import ConnectFailed, ConnectionLost, RequestTimeout, TooManyInFlight
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import BINARY, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Server


class Pair:
    """A server and a client of it."""

    def __init__(self, **options) -> None:
        self.service = EchoService()
        self.server = Server(self.service)
        self.options = options

    async def __aenter__(self) -> "Pair":
        await self.server.start()
        self.address = f"127.0.0.1:{self.server.port}"
        self.client = AsyncClient(**self.options)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()
        await self.server.stop()


@pytest.mark.parametrize("serialize_type", [0, BINARY])
def test_a_call_returns_the_answer_whatever_its_code(run, serialize_type: int) -> None:
    async def main() -> None:
        async with Pair(serialize_type=serialize_type) as pair:
            assert not pair.client.is_connected(pair.address)
            answer = await pair.client.call(pair.address, ECHO, {"a": "b"}, b"body")
            assert (answer.code, answer.ext, answer.body) == (0, {"a": "b"}, b"body")
            assert answer.serialize_type == serialize_type
            assert (await pair.client.call(pair.address, RAISES)).code == ResponseCode.SYSTEM_ERROR
            assert pair.client.is_connected(pair.address)
            assert len(pair.server.connections) == 1

    run(main())


def test_concurrent_first_calls_share_one_connection(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            calls = [pair.client.call(pair.address, ECHO, {"n": str(n)}) for n in range(50)]
            answers = await asyncio.gather(*calls)
            assert [answer.ext["n"] for answer in answers] == [str(n) for n in range(50)]
            assert pair.server.counters.connections == 1

    run(main())


def test_submitted_requests_of_one_turn_leave_in_one_write(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            with pytest.raises(ConnectFailed, match="not connected"):
                pair.client.submit(pair.address, ECHO)
            connection = await pair.client.connect(pair.address)
            writes = []
            transport = connection._transport

            class Counting:
                def __getattr__(self, name: str):
                    return getattr(transport, name)

                def write(self, data) -> None:
                    writes.append(len(data))
                    transport.write(data)

            connection._transport = Counting()
            futures = [pair.client.submit(pair.address, ECHO, None, b"%d" % n) for n in range(100)]
            answers = await asyncio.gather(*futures)
            assert [answer.body for answer in answers] == [b"%d" % n for n in range(100)]
            assert len(writes) == 1

    run(main())


def test_answers_may_overtake_each_other(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.connect(pair.address)
            late = pair.client.submit(pair.address, LATER)
            assert (await pair.client.call(pair.address, ECHO)).remark is None
            assert not late.done()
            assert (await late).remark == "later"

    run(main())


def test_a_request_without_an_answer_times_out_and_its_late_answer_is_dropped(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            begun = time.monotonic()
            with pytest.raises(RequestTimeout, match=r"did not answer request 1003 within 0\.1\d* s"):
                await pair.client.call(pair.address, SILENT, timeout=0.15)
            assert 0.1 < time.monotonic() - begun < 10
            (request,) = [one for one in pair.service.requests if one.code == SILENT]
            (connection,) = pair.server.connections
            connection.write(encode_response(request, 0, "too late"))
            assert (await pair.client.call(pair.address, ECHO)).remark is None
            assert pair.client.counters.unexpected_answers == 1

    run(main())


def test_each_deadline_counts_from_its_own_request(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.connect(pair.address)
            ended: list[str] = []

            async def wait(name: str, timeout: float) -> None:
                with pytest.raises(RequestTimeout):
                    await pair.client.call(pair.address, SILENT, timeout=timeout)
                ended.append(name)

            await asyncio.gather(wait("third", 0.5), wait("first", 0.1), wait("second", 0.3))
            assert ended == ["first", "second", "third"]

    run(main())


def test_the_in_flight_limit_is_an_error_not_a_queue(run) -> None:
    async def main() -> None:
        async with Pair(max_in_flight=10) as pair:
            await pair.client.connect(pair.address)
            futures = [pair.client.submit(pair.address, LATER) for _ in range(10)]
            with pytest.raises(TooManyInFlight):
                pair.client.submit(pair.address, ECHO)
            await asyncio.gather(*futures)
            assert len(pair.service.requests) == 10
            assert (await pair.client.call(pair.address, ECHO)).code == 0

    run(main())


def test_a_lost_connection_fails_what_was_under_way_and_is_told(run) -> None:
    lost: list[str] = []

    async def main() -> None:
        async with Pair(on_connection_lost=lost.append) as pair:
            await pair.client.connect(pair.address)
            future = pair.client.submit(pair.address, SILENT)
            await until(lambda: pair.service.requests)
            next(iter(pair.server.connections)).abort()
            with pytest.raises(ConnectionLost, match="before request 1003 was answered"):
                await future
            assert lost == [pair.address]
            assert (await pair.client.call(pair.address, ECHO)).code == 0, "it connects anew"

    run(main())


def test_after_a_failed_connect_attempts_fail_at_once_until_the_back_off_has_passed(run) -> None:
    async def main() -> None:
        port = free_port()
        address = f"127.0.0.1:{port}"
        client = AsyncClient()
        with pytest.raises(ConnectFailed, match=f"no connection to {address}"):
            await client.call(address, ECHO)
        for _ in range(10):  # if that one was not at once; the back-off grows
            with pytest.raises(ConnectFailed) as failed:
                await client.call(address, ECHO)
            if "next attempt in" in str(failed.value):
                break
        assert "next attempt in" in str(failed.value)
        server = Server(EchoService(), port=port)
        await server.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                assert (await client.call(address, ECHO)).code == 0
                break
            except ConnectFailed:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        await client.close()
        await server.stop()

    run(main())


def test_a_server_that_does_not_accept_is_given_up_in_time(run) -> None:
    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            fillers = []
            for _ in range(3):  # the backlog is full after these
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", listener.getsockname()[1]))
                fillers.append(filler)
            client = AsyncClient(connect_timeout=0.2)
            with pytest.raises(ConnectFailed, match=r"within 0\.2 s"):
                await client.call(address, ECHO)
            await client.close()
            for filler in fillers:
                filler.close()

    run(main())


def test_a_host_that_is_no_name_is_a_failed_connection(run) -> None:
    async def main() -> None:
        client = AsyncClient()
        with pytest.raises(ConnectFailed, match=r"no connection to a\.\.b:1"):
            await client.call("a..b:1", ECHO)
        await client.close()

    run(main())
    with pytest.raises(ConnectFailed, match=r"no connection to a\.\.b:1"):
        BlockingClient().call("a..b:1", ECHO)


@pytest.mark.parametrize("address", ["nonsense", "host:", ":80", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_named(run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectFailed, match="is not an address"):
            await AsyncClient().call(address, ECHO)

    run(main())


def test_a_server_that_talks_garbage_costs_the_connection_only(run) -> None:
    async def main() -> None:
        async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(garbage, "127.0.0.1", 0)
        client = AsyncClient()
        with pytest.raises(ConnectionLost):
            await client.call(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", ECHO)
        assert client.counters.protocol_errors == 1
        await client.close()
        listener.close()

    run(main())


def test_oneway_requests_wait_for_nothing(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            for _ in range(3):
                await pair.client.oneway(pair.address, ECHO, {"a": "b"})
            await until(lambda: len(pair.service.requests) == 3)
            assert all(request.is_oneway for request in pair.service.requests)
            assert not (await pair.client.connect(pair.address)).session.pending

    run(main())


def test_who_sends_one_way_on_and_on_lets_others_go_on(run) -> None:
    async def main() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with Pair() as pair:
            task = asyncio.create_task(others())
            for _ in range(100):
                await pair.client.oneway(pair.address, ECHO, None, bytes(200_000), timeout=30)
            assert turns >= 10
            await until(lambda: len(pair.service.requests) == 100)
            task.cancel()

    run(main())


async def stop_reading(pair):
    """Let the server read no more, and fill what is between; both ends of the connection."""
    await pair.client.call(pair.address, ECHO)
    (accepted,) = pair.server.connections
    accepted._transport.pause_reading()
    connection = pair.client.connected(pair.address)
    while not connection._write_paused:
        await pair.client.oneway(pair.address, ECHO, None, bytes(1 << 20), timeout=30)
        await asyncio.sleep(0)
    return connection, accepted


@pytest.mark.parametrize("way", ["oneway", "call"])
def test_all_who_wait_for_a_slow_peer_have_their_requests_read(run, monkeypatch, way: str) -> None:
    """Together they have more than a peer may leave unread."""
    monkeypatch.setattr("rocketq.remoting.connection.MAX_UNSENT", 8 << 20)

    async def main() -> None:
        async with Pair() as pair:
            connection, accepted = await stop_reading(pair)
            sent = len(pair.service.requests)
            send = getattr(pair.client, way)
            herd = [asyncio.ensure_future(send(pair.address, ECHO, None, bytes(1 << 18), 60)) for _ in range(60)]
            await until(lambda: len(connection._waiting) == len(herd))
            accepted._transport.resume_reading()
            await asyncio.gather(*herd)
            await until(lambda: len(pair.service.requests) >= sent + len(herd), 30)
            assert not pair.client.counters.cut_off

    run(main())


@pytest.mark.parametrize("way", ["oneway", "call"])
def test_a_connection_that_ends_while_a_request_waits_for_it_is_told(run, way: str) -> None:
    async def main() -> None:
        async with Pair() as pair:
            connection, accepted = await stop_reading(pair)
            waits = asyncio.ensure_future(getattr(pair.client, way)(pair.address, ECHO, timeout=60))
            await until(lambda: connection._waiting)
            accepted.abort()
            with pytest.raises(ConnectionLost, match="not sent"):
                await waits

    run(main())


def test_servers_ask_and_clients_answer(run) -> None:
    async def on_request(connection, request: Command) -> bytes:
        await asyncio.sleep(0)
        return encode_response(request, 0, "from the client", None, request.body + b"!")

    async def main() -> None:
        async with Pair(on_request=on_request) as pair:
            answer = await pair.client.call(pair.address, CALLS_BACK)
            assert (answer.remark, answer.body) == ("from the client", b"question!")

    run(main())


def test_a_client_without_handler_says_that_it_does_not_serve(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.call(pair.address, CALLS_BACK)
            assert pair.service.answers[0].code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            assert pair.service.answers[0].remark == " request type 39 not supported"

    run(main())


def test_idle_connections_are_closed_unless_an_answer_is_awaited(run) -> None:
    async def main() -> None:
        async with Pair(idle_timeout=0.1) as pair:
            await pair.client.connect(pair.address)
            future = pair.client.submit(pair.address, SILENT, timeout=0.5)
            with pytest.raises(RequestTimeout):
                await future
            await until(lambda: not pair.client.is_connected(pair.address))
            await until(lambda: not pair.server.connections)

    run(main())


def test_a_server_that_never_reads_makes_calls_time_out_and_memory_stay_bounded(run, monkeypatch) -> None:
    monkeypatch.setattr("rocketq.remoting.connection.MAX_UNSENT", 8 << 20)

    async def main() -> None:
        release = asyncio.Event()

        async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()
            await release.wait()
            writer.transport.abort()

        listener = await asyncio.start_server(never_reads, "127.0.0.1", 0)
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        client = AsyncClient()
        connection = await client.connect(address)
        body = bytes(1 << 20)

        async def submit_without_end() -> None:
            for _ in range(100):
                client.submit(address, ECHO, None, body, timeout=30).add_done_callback(lambda f: f.exception())
                await asyncio.sleep(0)

        with pytest.raises(TooManyInFlight, match="does not read"):
            await submit_without_end()
        assert connection._transport.get_write_buffer_size() <= 8 << 20
        with pytest.raises(RequestTimeout, match="the request was not sent"):
            await client.oneway(address, ECHO, None, body, timeout=0.1)
        with pytest.raises(RequestTimeout, match="the request was not sent"):
            await client.call(address, ECHO, timeout=0.1)
        release.set()
        await client.close()
        listener.close()

    run(main())


def test_both_sides_may_send_much_at_once(run) -> None:
    # a client that stopped reading while the server does not read would wait for ever
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.connect(pair.address)
            body = bytes(200_000)
            futures = [pair.client.submit(pair.address, ECHO, None, body, timeout=50) for _ in range(150)]
            answers = await asyncio.gather(*futures)
            assert all(len(answer.body) == len(body) for answer in answers)

    run(main())


def test_closing_ends_what_is_under_way(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.connect(pair.address)
            future = pair.client.submit(pair.address, SILENT)
            await pair.client.close()
            with pytest.raises(ConnectionLost):
                await future
            with pytest.raises(ConnectFailed, match="closed"):
                await pair.client.call(pair.address, ECHO)

    run(main())


def test_a_connection_that_comes_when_the_client_is_closed_is_not_kept(run, monkeypatch) -> None:
    async def main() -> None:
        async with Pair() as pair:
            wait_for = asyncio.wait_for

            async def swallowing(attempt, timeout):
                result = await wait_for(attempt, timeout)
                pair.client._closed = True  # and the cancellation is lost, as before Python 3.12
                return result

            monkeypatch.setattr(asyncio, "wait_for", swallowing)
            with pytest.raises(ConnectFailed, match="closed"):
                await pair.client.connect(pair.address)
            monkeypatch.undo()
            assert not pair.client.is_connected(pair.address)
            await until(lambda: pair.service.lost and not pair.server.connections)

    run(main())


def test_a_call_given_up_by_its_caller_disturbs_nobody(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            await pair.client.connect(pair.address)
            task = asyncio.ensure_future(pair.client.call(pair.address, LATER))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await pair.client.call(pair.address, LATER)).remark == "later"

    run(main())


def test_nothing_is_left_behind_by_ended_connections(run) -> None:
    async def main() -> None:
        async with Pair() as pair:
            for _ in range(5):
                client = AsyncClient()
                await client.call(pair.address, ECHO)
                await client.close()
            await until(lambda: not pair.server.connections)
            pair.service.connections.clear()
            pair.service.lost.clear()
            del client
            gc.collect()
            left = [
                one
                for one in gc.get_objects()
                if type(one).__name__ == "_ServerConnection" and one._server is pair.server
            ]
            assert len(left) <= 1

    run(main())
