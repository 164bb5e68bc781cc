"""The asyncio server over real sockets."""

import asyncio
import logging
import struct
import time

import pytest
from remoting_peers import (
    BIG,
    CLOSES,
    ECHO,
    LATER,
    PIECES,
    RAISES,
    SILENT,
    EchoService,
    until,
)

from rocketq.record import pack_host
from rocketq.remoting.codes import BINARY
from rocketq.remoting.command import Command, FrameDecoder, encode_request
from rocketq.remoting.connection import MAX_UNSENT, _address
from rocketq.remoting.server import Server

GARBAGE = [
    pytest.param(struct.pack(">iI", 16_777_217, 0), id="too long"),
    pytest.param(struct.pack(">iI", -5, 0), id="negative length"),
    pytest.param(struct.pack(">iI", 0, 0), id="zero length"),
    pytest.param(struct.pack(">iI", 10, 100) + b"xxxxxx", id="lying header length"),
    pytest.param(struct.pack(">iI", 6, 7 << 24 | 2) + b"{}", id="unknown serialize type"),
    pytest.param(struct.pack(">iI", 6, 2) + b"xx", id="not JSON"),
    pytest.param(struct.pack(">iI", 6, 1 << 24 | 2) + b"xx", id="binary header cut short"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01", id="TLS without TLS"),
]


class Peer:
    """A raw connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.decoder = FrameDecoder()

    async def __aenter__(self) -> "Peer":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, count: int, seconds: float = 20.0) -> list[Command]:
        commands: list[Command] = []
        while len(commands) < count:
            data = await asyncio.wait_for(self.reader.read(1 << 20), seconds)
            assert data, "the server closed the connection"
            commands += self.decoder.feed(data)
        return commands

    async def closed(self, seconds: float = 20.0) -> bool:
        try:
            while await asyncio.wait_for(self.reader.read(1 << 20), seconds):
                pass
        except ConnectionError:
            pass
        return True


def test_all_frames_of_one_read_are_one_batch(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(b"".join(encode_request(ECHO, n, {"n": str(n)}, b"body") for n in range(50)))
            answers = await peer.receive(50)
        assert [answer.opaque for answer in answers] == list(range(50))
        assert [answer.ext["n"] for answer in answers] == [str(n) for n in range(50)]
        assert sum(service.batches) == 50
        assert len(service.batches) <= 3
        assert server.counters.frames == 50
        await server.stop()
        assert len(service.lost) == 1
        assert not server.connections

    run(main())


def test_a_frame_in_many_pieces_is_one_request(run) -> None:
    async def main() -> None:
        server = Server(EchoService())
        await server.start()
        frame = encode_request(ECHO, 9, {"a": "b"}, b"body", serialize_type=BINARY)
        async with Peer(server.port) as peer:
            for number in range(len(frame)):
                peer.send(frame[number : number + 1])
                await peer.writer.drain()
            (answer,) = await peer.receive(1)
        assert answer.opaque == 9
        assert answer.body == b"body"
        assert answer.serialize_type == BINARY
        await server.stop()

    run(main())


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_costs_one_connection_and_is_counted(run, garbage: bytes) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as good, Peer(server.port) as bad:
            bad.send(encode_request(ECHO, 1) + garbage + encode_request(ECHO, 2))
            (answer,) = await bad.receive(1)
            assert answer.opaque == 1, "what came before the garbage is answered"
            assert await bad.closed()
            assert server.counters.protocol_errors == 1
            good.send(encode_request(ECHO, 3))
            assert [answer.opaque for answer in await good.receive(1)] == [3]
        assert [request.opaque for request in service.requests] == [1, 3]
        await server.stop()

    run(main())


def test_a_frame_over_the_servers_own_limit_is_refused(run) -> None:
    async def main() -> None:
        server = Server(EchoService(), max_frame=1000)
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(ECHO, 1, None, bytes(2000)))
            assert await peer.closed()
        assert server.counters.protocol_errors == 1
        await server.stop()

    run(main())


def test_oneway_requests_are_never_answered(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            for opaque, code in enumerate((ECHO, RAISES, LATER, PIECES, SILENT)):
                peer.send(encode_request(code, opaque, oneway=True))
            await until(lambda: len(service.requests) == 5)
            await asyncio.sleep(0.05)  # LATER has come to its end
            peer.send(encode_request(ECHO, 99))
            assert [answer.opaque for answer in await peer.receive(1)] == [99]
        await server.stop()

    run(main())


def test_a_handler_that_raises_is_answered_with_code_1_and_its_text(run, caplog) -> None:
    async def main() -> None:
        server = Server(EchoService())
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(RAISES, 1) + encode_request(ECHO, 2))
            first, second = await peer.receive(2)
        assert (first.opaque, first.code, first.remark) == (1, 1, "KeyError: 'broken'")
        assert (second.opaque, second.code) == (2, 0)
        assert server.counters.handler_errors == 1
        await server.stop()

    with caplog.at_level(logging.ERROR, "rocketq.remoting"):
        run(main())
    assert "request 1001 from 127.0.0.1" in caplog.text


def test_a_batch_that_cannot_be_finished_closes_the_connection_unanswered(run, caplog) -> None:
    class Broken(EchoService):
        def end_batch(self, connection) -> None:
            raise OSError("disk gone")

    async def main() -> None:
        server = Server(Broken())
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(ECHO, 1))
            with pytest.raises(AssertionError, match="closed the connection"):
                await peer.receive(1)
        await server.stop()

    def quietly() -> None:
        try:
            run(main())
        except ConnectionResetError:
            pytest.fail("the reader saw a reset")

    quietly()
    assert "disk gone" in caplog.text


def test_late_answers_and_answers_in_pieces_arrive(run) -> None:
    async def main() -> None:
        server = Server(EchoService())
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(LATER, 1) + encode_request(PIECES, 2, None, b"body"))
            answers = {answer.opaque: answer for answer in await peer.receive(2)}
        assert answers[1].remark == "later"
        assert answers[2].body == b"body"
        await server.stop()

    run(main())


def test_an_answer_is_still_written_when_the_handler_closes_the_connection(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(CLOSES, 1))
            assert [answer.opaque for answer in await peer.receive(1)] == [1]
            assert await peer.closed()
        await until(lambda: service.lost)
        await server.stop()

    run(main())


def test_the_connection_knows_its_peer(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(ECHO, 1))
            await peer.receive(1)
            host, port = peer.writer.get_extra_info("sockname")
            (connection,) = server.connections
            assert connection.peer == f"{host}:{port}"
            assert connection.peer_packed == pack_host(host, port)
            assert connection.local == f"127.0.0.1:{server.port}"
            assert connection.context is None
        await server.stop()

    run(main())


def test_ipv4_peers_on_an_ipv6_socket_are_ipv4() -> None:
    assert _address(("::ffff:10.1.2.3", 80, 0, 0)) == ("10.1.2.3:80", pack_host("10.1.2.3", 80))
    assert _address(("fe80::1%eth0", 80, 0, 2)) == ("[fe80::1]:80", pack_host("fe80::1", 80))


def test_a_port_that_is_taken_is_an_error(run) -> None:
    async def main() -> None:
        first = Server(EchoService())
        await first.start()
        second = Server(EchoService(), port=first.port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        await first.stop()

    run(main())


class AheadOfTime:
    """The loop, and what time it is for a connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead = 0.0

    def time(self) -> float:
        return self.loop.time() + self.ahead

    def __getattr__(self, name: str):
        return getattr(self.loop, name)


def test_idle_connections_are_closed(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service, idle_timeout=60)
        await server.start()
        async with Peer(server.port) as peer:
            for number in range(8):  # in use for longer than the time-out
                peer.send(encode_request(ECHO, number))
                await peer.receive(1)
                (connection,) = server.connections
                if not number:
                    clock = connection._loop = AheadOfTime()
                clock.ahead += 20
                connection._on_timer()
            assert not service.lost
            clock.ahead += 20
            connection._on_timer()
            assert not connection.closed
            clock.ahead += 60
            connection._on_timer()
            assert await peer.closed()
        await until(lambda: service.lost)
        await server.stop()

    run(main())


def test_memory_stays_bounded_when_a_peer_never_reads(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.writer.transport.pause_reading()
            frames = b"".join(encode_request(BIG, n) for n in range(600))  # 60 MB of answers
            peer.send(frames)
            await until(lambda: service.requests)
            (connection,) = server.connections
            await until(lambda: connection._write_paused)
            handled = -1
            while handled != len(service.requests):
                handled = len(service.requests)
                await asyncio.sleep(0.05)
            assert handled < 300
            buffered = connection._transport.get_write_buffer_size() + connection._out_size
            assert buffered < 8 << 20
            # as soon as it reads, everything arrives, in order
            peer.writer.transport.resume_reading()
            answers = await peer.receive(600)
            assert [answer.opaque for answer in answers] == list(range(600))
        await server.stop()

    run(main())


def test_a_peer_that_does_not_read_what_it_is_sent_is_cut_off(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(encode_request(ECHO, 1))
            await peer.receive(1)
            peer.writer.transport.pause_reading()
            (connection,) = server.connections
            piece = bytes(8 << 20)
            for _ in range(MAX_UNSENT // len(piece) + 3):
                connection.write(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await until(lambda: service.lost)
            assert server.counters.cut_off == 1
        await server.stop()

    run(main())


def test_many_slow_requests_of_one_peer_leave_others_their_turn(run) -> None:
    class SlowService(EchoService):
        def handle(self, connection, request):
            if request.opaque >= 1000:
                time.sleep(0.005)
            return super().handle(connection, request)

    async def main() -> None:
        service = SlowService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as greedy, Peer(server.port) as other:
            await until(lambda: len(server.connections) == 2)
            greedy.send(b"".join(encode_request(ECHO, 1000 + number) for number in range(300)))
            await until(lambda: service.requests)
            other.send(encode_request(ECHO, 1))
            assert (await other.receive(1))[0].opaque == 1
            assert len(service.requests) < 300
            answers = await greedy.receive(300)
            assert [answer.opaque for answer in answers] == list(range(1000, 1300))
            greedy.send(encode_request(ECHO, 2))  # and it is read again
            assert (await greedy.receive(1))[0].opaque == 2
        await server.stop()

    run(main())


def test_a_frame_that_comes_byte_by_byte_has_a_deadline(run) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service, idle_timeout=0.6)
        await server.start()
        async with Peer(server.port) as slow:

            async def drip() -> None:
                for byte in encode_request(ECHO, 1, {"name": "x" * 10_000}):
                    slow.send(bytes([byte]))
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            assert await slow.closed()
            dripping.cancel()
            assert not service.requests
        await server.stop()

    run(main())


def test_unfinished_frames_of_all_peers_together_are_bounded(run, monkeypatch, caplog) -> None:
    monkeypatch.setattr("rocketq.remoting.server.MAX_UNFINISHED", 1 << 20)

    async def main() -> None:
        server = Server(EchoService())
        await server.start()
        async with Peer(server.port) as small, Peer(server.port) as large, Peer(server.port) as third:
            whole = encode_request(ECHO, 7, body=bytes(700_000))
            small.send(whole[:300_000])
            await until(lambda: server.unfinished == 300_000)
            large.send(whole[:500_000])
            await until(lambda: server.unfinished == 800_000)
            third.send(whole[:400_000])
            assert await large.closed()
            await until(lambda: len(server.connections) == 2)
            assert server.unfinished <= 700_000
            assert server.counters.cut_off == 1
            for peer, sent in ((third, 400_000), (small, 300_000)):
                peer.send(whole[sent:])
                assert (await peer.receive(1))[0].opaque == 7
            assert server.unfinished == 0
        await server.stop()

    run(main())
    assert "unfinished frames take 1 MiB" in caplog.text


def test_unread_answers_of_all_peers_together_are_bounded(run, monkeypatch, caplog) -> None:
    monkeypatch.setattr("rocketq.remoting.server.MAX_UNREAD", 16 << 20)

    async def main() -> None:
        service = EchoService()
        server = Server(service)
        await server.start()
        async with Peer(server.port) as one, Peer(server.port) as two, Peer(server.port) as reader:
            for peer in (one, two):
                peer.writer.transport.pause_reading()
            await until(lambda: len(server.connections) == 3)
            deaf = [each for each in server.connections if each.peer != _name(reader)]
            for connection, count in zip(deaf, (1, 4), strict=True):
                for _ in range(count):
                    connection.write(bytes(8 << 20))
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            await until(lambda: len(server.connections) == 2)
            assert not deaf[0].closed, "the one with less"
            assert deaf[1].closed
            reader.send(encode_request(ECHO, 9))
            assert (await reader.receive(1))[0].opaque == 9
        await server.stop()

    run(main())
    assert "16 MiB of answers are unread" in caplog.text


def _name(peer: Peer) -> str:
    host, port = peer.writer.get_extra_info("sockname")
    return f"{host}:{port}"


def test_connections_beyond_what_files_allow_are_closed_at_once_and_others_go_on(run, monkeypatch, caplog) -> None:
    async def main() -> None:
        server = Server(EchoService())
        most = Server.accepted + 2
        monkeypatch.setattr("rocketq.remoting.server.max_connections", lambda: most)
        await server.start()
        async with Peer(server.port) as first, Peer(server.port) as second:
            await until(lambda: len(server.connections) == 2)
            for _ in range(3):
                async with Peer(server.port) as refused:
                    assert await refused.closed()
            for number, peer in enumerate((first, second)):
                peer.send(encode_request(ECHO, number))
                assert (await peer.receive(1))[0].opaque == number
        await until(lambda: not server.connections)
        async with Peer(server.port) as again:
            again.send(encode_request(ECHO, 5))
            assert (await again.receive(1))[0].opaque == 5
        assert server.counters.refused == 3
        await server.stop()

    run(main())
    assert caplog.text.count("are closed at once") == 1
    assert "raise the limit of open files" in caplog.text


def test_too_many_waiting_requests_of_one_connection_are_refused(run, monkeypatch) -> None:
    monkeypatch.setattr("rocketq.remoting.connection.MAX_WAITING", 3)

    async def main() -> None:
        server = Server(EchoService())
        await server.start()
        async with Peer(server.port) as peer:
            peer.send(b"".join(encode_request(LATER, n) for n in range(5)))
            answers = {answer.opaque: answer for answer in await peer.receive(5)}
        assert [answers[n].code for n in range(5)] == [0, 0, 0, 2, 2]
        assert "system busy" in answers[4].remark
        await server.stop()

    run(main())


def test_stopping_does_not_wait_for_peers_that_do_not_read(run, monkeypatch) -> None:
    monkeypatch.setattr("rocketq.remoting.server.STOP_GRACE", 0.1)

    async def main() -> None:
        service = EchoService()
        service.big = 8 << 20
        server = Server(service)
        await server.start()
        async with Peer(server.port) as peer:
            peer.writer.transport.pause_reading()
            peer.send(encode_request(BIG, 1))
            await until(lambda: server.connections and next(iter(server.connections))._write_paused)
            await asyncio.wait_for(server.stop(), 30)
        assert not server.connections
        assert len(service.lost) == 1

    run(main())
