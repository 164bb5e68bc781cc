"""TLS: three modes of a server, both clients, certificates on both sides."""

import asyncio
import socket
import ssl
import struct
from pathlib import Path

import pytest
from remoting_peers import BIG, CLOSES, ECHO, EchoService, serving, until

from rocketq.errors import ConfigError, ConnectFailed, ConnectionLost, RemotingError
from rocketq.remoting.aio import AsyncClient
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.command import FrameDecoder, encode_request
from rocketq.remoting.server import Server
from rocketq.remoting.tls import TlsConfig

PLAIN_OR_TLS = [pytest.param(None, id="plain"), pytest.param(TlsConfig(), id="tls")]
#: mode of the server -> which clients it serves
SERVED = {"disabled": {"plain"}, "permissive": {"plain", "tls"}, "enforcing": {"tls"}}


@pytest.mark.parametrize("mode", SERVED)
@pytest.mark.parametrize("client_tls", PLAIN_OR_TLS)
def test_each_mode_serves_whom_it_should(run, server_tls: TlsConfig, mode: str, client_tls) -> None:
    async def main() -> None:
        service = EchoService()
        tls = TlsConfig(mode=mode, cert=server_tls.cert, key=server_tls.key)
        server = Server(service, tls=tls)
        await server.start()
        client = AsyncClient(tls=client_tls, connect_timeout=5)
        address = f"127.0.0.1:{server.port}"
        if ("plain" if client_tls is None else "tls") in SERVED[mode]:
            answers = await asyncio.gather(*[client.call(address, ECHO, None, b"%d" % n) for n in range(20)])
            assert [answer.body for answer in answers] == [b"%d" % n for n in range(20)]
            assert server.counters.protocol_errors == 0
        else:
            with pytest.raises((ConnectFailed, ConnectionLost)):
                await client.call(address, ECHO)
            await until(lambda: server.counters.protocol_errors == 1)
            assert not service.requests
        await client.close()
        await until(lambda: not server.connections)
        await server.stop()

    run(main())


@pytest.mark.parametrize("client_tls", PLAIN_OR_TLS)
def test_who_ended_a_connection_is_known(run, server_tls: TlsConfig, client_tls) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service, tls=server_tls)
        await server.start()
        for end in ("close", "abort", "server"):
            client = AsyncClient(tls=client_tls)
            await client.call(f"127.0.0.1:{server.port}", ECHO)
            connection = await client.connect(f"127.0.0.1:{server.port}")
            for each in list(server.connections) if end == "server" else [connection]:
                each.close() if end == "server" else getattr(each, end)()
            await until(lambda: not server.connections)
            assert service.lost.pop().peer_left == (end != "server")
            await client.close()
        await server.stop()

    run(main())


@pytest.mark.parametrize("client_tls", PLAIN_OR_TLS)
def test_big_bodies_pass_both_ways(run, server_tls: TlsConfig, client_tls) -> None:
    async def main() -> None:
        service = EchoService()
        service.big = 3_000_000
        server = Server(service, tls=server_tls)
        await server.start()
        client = AsyncClient(tls=client_tls)
        address = f"127.0.0.1:{server.port}"
        body = bytes(range(256)) * 8000
        assert (await client.call(address, ECHO, None, body, timeout=20)).body == body
        futures = [client.submit(address, BIG, timeout=30) for _ in range(10)]
        assert [len(answer.body) for answer in await asyncio.gather(*futures)] == [3_000_000] * 10
        await client.close()
        await server.stop()

    run(main())


@pytest.mark.parametrize("client_tls", PLAIN_OR_TLS)
def test_the_blocking_client_speaks_tls_too(server_tls: TlsConfig, client_tls) -> None:
    with serving(EchoService(), tls=server_tls) as server:
        client = BlockingClient(tls=client_tls)
        address = f"127.0.0.1:{server.port}"
        body = bytes(100_000)
        answers = client.call_many(address, [(ECHO, None, body)] * 100, timeout=30)
        assert all(answer.body == body for answer in answers)
        assert client.call(address, ECHO, {"a": "b"}).ext == {"a": "b"}
        client.close()


def test_a_handshake_in_single_bytes_succeeds(run, server_tls: TlsConfig) -> None:
    async def main() -> None:
        server = Server(EchoService(), tls=server_tls)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = TlsConfig().client_context().wrap_bio(incoming, outgoing)
        decoder = FrameDecoder()
        sent = False
        while True:
            try:
                if not sent:
                    tls.do_handshake()
                    tls.write(encode_request(ECHO, 5))
                    sent = True
                commands = decoder.feed(tls.read(10000))
                if commands:
                    break
            except ssl.SSLWantReadError:
                pass
            for byte in outgoing.read():
                writer.write(bytes([byte]))
                await writer.drain()
            incoming.write(await asyncio.wait_for(reader.read(10000), 10))
        assert [command.opaque for command in commands] == [5]
        writer.close()
        await server.stop()

    run(main())


def test_garbage_after_the_first_tls_byte_costs_one_connection(run, server_tls: TlsConfig) -> None:
    async def main() -> None:
        service = EchoService()
        server = Server(service, tls=server_tls)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16garbage that is no handshake")
        try:
            while await asyncio.wait_for(reader.read(1000), 10):
                pass
        except ConnectionResetError:
            pass
        await until(lambda: not server.connections)
        assert server.counters.protocol_errors == 1
        assert len(service.lost) == 1
        writer.close()
        await server.stop()

    run(main())


def test_a_connection_that_never_says_anything_is_idle(run, server_tls: TlsConfig) -> None:
    async def main() -> None:
        server = Server(EchoService(), tls=server_tls, idle_timeout=0.1)
        await server.start()
        for first in (b"", b"\x16\x03"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        await server.stop()

    run(main())


def test_a_client_that_verifies_wants_a_certificate_it_can_trust(run, certificates: Path, server_tls) -> None:
    async def main() -> None:
        server = Server(EchoService(), tls=server_tls)
        await server.start()
        address = f"127.0.0.1:{server.port}"
        trusting = AsyncClient(
            tls=TlsConfig(ca=str(certificates / "ca.pem"), verify_server=True, check_hostname=True)
        )
        assert (await trusting.call(address, ECHO)).code == 0
        doubting = AsyncClient(tls=TlsConfig(verify_server=True))
        with pytest.raises(ConnectFailed, match=r"(?i)certificate"):
            await doubting.call(address, ECHO)
        await trusting.close()
        await doubting.close()
        await server.stop()

    run(main())


def test_a_server_can_ask_for_client_certificates(run, certificates: Path, server_tls: TlsConfig) -> None:
    async def main() -> None:
        ca = str(certificates / "ca.pem")
        tls = TlsConfig(cert=server_tls.cert, key=server_tls.key, ca=ca, need_client_auth="require")
        server = Server(EchoService(), tls=tls)
        await server.start()
        address = f"127.0.0.1:{server.port}"
        known = AsyncClient(
            tls=TlsConfig(cert=str(certificates / "client.pem"), key=str(certificates / "client.key"))
        )
        assert (await known.call(address, ECHO)).code == 0
        stranger = AsyncClient(tls=TlsConfig())
        with pytest.raises(RemotingError):
            await stranger.call(address, ECHO)
        await until(lambda: server.counters.protocol_errors == 1)
        await known.close()
        await stranger.close()
        await server.stop()

    run(main())


def test_the_server_says_goodbye_properly(server_tls: TlsConfig) -> None:
    with serving(EchoService(), tls=server_tls) as server:
        context = TlsConfig().client_context()
        raw = socket.create_connection(("127.0.0.1", server.port))
        with context.wrap_socket(raw, suppress_ragged_eofs=False) as tls:
            tls.settimeout(20)
            tls.sendall(encode_request(CLOSES, 1))
            answer = b""
            while data := tls.recv(1000):  # without a proper goodbye this would be an SSLEOFError
                answer += data
            assert [command.opaque for command in FrameDecoder().feed(answer)] == [1]


def test_protocol_errors_inside_tls_are_protocol_errors(server_tls: TlsConfig) -> None:
    with serving(EchoService(), tls=server_tls) as server:
        context = TlsConfig().client_context()
        with socket.create_connection(("127.0.0.1", server.port)) as raw, context.wrap_socket(raw) as tls:
            tls.settimeout(10)
            tls.sendall(encode_request(ECHO, 1) + struct.pack(">iI", -1, 0))
            received = b""
            while data := tls.recv(1000):
                received += data
            assert [command.opaque for command in FrameDecoder().feed(received)] == [1]
        assert server.counters.protocol_errors == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "sometimes"}, "mode 'sometimes'"),
        ({"need_client_auth": "maybe"}, "'maybe'"),
        ({"cert": "/nowhere/cert.pem"}, "/nowhere/cert.pem"),
        ({"ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({}, "needs a certificate"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(options: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TlsConfig(**{"cert": __file__, **options} if "ca" in options else options).server_context()


def test_a_goodbye_is_answered_so_that_closing_takes_no_time(run, server_tls: TlsConfig, monkeypatch) -> None:
    monkeypatch.setattr("rocketq.remoting.aio.CLOSE_GRACE", 30)

    async def main() -> None:
        server = Server(EchoService(), tls=server_tls)
        await server.start()
        client = AsyncClient(tls=TlsConfig())
        await client.call(f"127.0.0.1:{server.port}", ECHO)
        await asyncio.wait_for(client.close(), 20)
        await until(lambda: not server.connections)
        await server.stop()

    run(main())
