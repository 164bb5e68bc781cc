"""The blocking client against real servers."""

import os
import socket
import threading
import time

import pytest
from remoting_peers import CLOSES, ECHO, LATER, RAISES, SILENT, EchoService, serving, wait_until
from servers import free_port

from rocketq.errors import ConnectFailed, ConnectionLost, RequestTimeout, TooManyInFlight
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import BINARY
from rocketq.remoting.command import encode_response


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
def server(service: EchoService):
    with serving(service) as running:
        yield running


@pytest.fixture
def address(server) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def client():
    made = BlockingClient()
    yield made
    made.close()


@pytest.mark.parametrize("serialize_type", [0, BINARY])
def test_a_call_returns_the_answer_whatever_its_code(address: str, serialize_type: int) -> None:
    client = BlockingClient(serialize_type=serialize_type)
    answer = client.call(address, ECHO, {"a": "b"}, b"body")
    assert (answer.code, answer.ext, answer.body) == (0, {"a": "b"}, b"body")
    assert client.call(address, RAISES).code == 1
    assert client.is_connected(address)
    client.close()
    assert not client.is_connected(address)


def test_many_requests_are_under_way_at_once_and_answered_in_order(service, address: str, client) -> None:
    requests = [(LATER if n % 7 == 0 else ECHO, {"n": str(n)}, b"%d" % n) for n in range(200)]
    answers = client.call_many(address, requests)
    assert [answer.remark for answer in answers[::7]] == ["later"] * len(answers[::7])
    assert [answer.body for n, answer in enumerate(answers) if n % 7] == [b"%d" % n for n in range(200) if n % 7]
    assert len(service.batches) < 50, "they came in few reads"


def test_much_more_than_the_sockets_hold_can_be_under_way(address: str, client) -> None:
    # a client that only reads after it has sent all would wait for ever for a server that does the same
    body = bytes(200_000)
    answers = client.call_many(address, [(ECHO, None, body)] * 150, timeout=50)
    assert all(len(answer.body) == len(body) for answer in answers)


def test_threads_share_one_connection(server, address: str, client) -> None:
    failures: list[object] = []

    def work(name: int) -> None:
        for number in range(100):
            body = b"%d-%d" % (name, number)
            answer = client.call(address, LATER if number % 25 == 0 else ECHO, None, body, timeout=20)
            if number % 25 and answer.body != body:
                failures.append((body, answer.body))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    assert server.counters.connections == 1
    assert server.counters.frames == 800


def test_a_thread_whose_answer_is_there_leaves_the_reading_to_the_next(service, address: str, client) -> None:
    client.call(address, ECHO)
    ended: list[str] = []

    def wait_long() -> None:
        assert client.call(address, SILENT, timeout=60).remark == "at last"
        ended.append("long")

    def wait_short() -> None:
        assert client.call(address, LATER, timeout=60).remark == "later"
        ended.append("short")

    first = threading.Thread(target=wait_long)
    first.start()
    wait_until(lambda: len(service.requests) == 2)
    second = threading.Thread(target=wait_short)
    second.start()
    second.join(20)
    assert ended == ["short"]
    (connection,), (*_, silent, _) = service.connections, service.requests
    connection._loop.call_soon_threadsafe(connection.write, encode_response(silent, 0, "at last"))
    first.join(20)
    assert ended == ["short", "long"]


def test_a_request_without_an_answer_times_out_and_the_connection_lives_on(server, address: str, client) -> None:
    with pytest.raises(RequestTimeout, match=r"did not answer the request within 0\.1 s"):
        client.call(address, SILENT, timeout=0.1)
    for timeout in (0.1, 1, 5):  # longer where the machine is busy
        with pytest.raises(RequestTimeout, match=r"did not answer [12] of 2 requests") as late:
            client.call_many(address, [(ECHO, None, b""), (SILENT, None, b"")], timeout=timeout)
        if "1 of 2" in str(late.value):
            break
    assert "1 of 2" in str(late.value)
    assert client.call(address, ECHO).code == 0
    assert server.counters.connections == 1


def test_oneway_requests_wait_for_nothing(service: EchoService, address: str, client) -> None:
    client.oneway(address, ECHO, {"a": "b"}, b"body")
    wait_until(lambda: service.requests)
    assert service.requests[0].is_oneway
    assert client.call(address, ECHO).code == 0


def test_the_in_flight_limit_is_an_error(service: EchoService, address: str) -> None:
    client = BlockingClient(max_in_flight=3)
    with pytest.raises(TooManyInFlight):
        client.call_many(address, [(ECHO, None, b"")] * 4)
    assert len(client.call_many(address, [(ECHO, None, b"")] * 3)) == 3
    assert len(service.requests) == 3, "nothing of the refused ones was sent"
    client.close()


def test_a_connection_that_the_server_closes_under_way_is_an_error_and_the_next_call_connects(
    server, address
) -> None:
    client = BlockingClient()
    client.call(address, ECHO)
    with pytest.raises(ConnectionLost, match="closed"):
        client.call_many(address, [(CLOSES, None, b""), (SILENT, None, b"")])
    assert client.call(address, ECHO).code == 0
    assert server.counters.connections == 2
    client.close()


def test_a_connection_closed_while_unused_is_replaced_unnoticed(monkeypatch) -> None:
    monkeypatch.setattr("rocketq.remoting.blocking._LOOK_AFTER", 0.0)
    service = EchoService()
    with serving(service, idle_timeout=0.1) as server:
        client = BlockingClient()
        client.call(f"127.0.0.1:{server.port}", ECHO)
        wait_until(lambda: service.lost)
        assert client.call(f"127.0.0.1:{server.port}", ECHO).code == 0
        client.close()


def test_our_own_idle_time_out_closes(monkeypatch, server, address: str) -> None:
    monkeypatch.setattr("rocketq.remoting.blocking._LOOK_AFTER", 0.0)
    client = BlockingClient(idle_timeout=0.0)
    client.call(address, ECHO)
    client.call(address, ECHO)
    assert server.counters.connections == 2
    client.close()


def test_after_a_failed_connect_attempts_fail_at_once_until_the_back_off_has_passed() -> None:
    port = free_port()
    client = BlockingClient()
    address = f"127.0.0.1:{port}"
    with pytest.raises(ConnectFailed, match="refused"):
        client.call(address, ECHO)
    for _ in range(10):  # if that one was not at once; the back-off grows
        with pytest.raises(ConnectFailed) as failed:
            client.call(address, ECHO)
        if "next attempt in" in str(failed.value):
            break
    assert "next attempt in" in str(failed.value)
    with serving(EchoService(), port=port):
        deadline = time.monotonic() + 20
        while True:
            try:
                assert client.call(address, ECHO).code == 0
                break
            except ConnectFailed:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    client.close()


def test_a_server_that_never_reads_ends_in_a_time_out_and_a_new_connection() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = BlockingClient()
        with pytest.raises(RequestTimeout, match="did not take the request in time"):
            client.call(address, ECHO, None, bytes(12 << 20), timeout=0.3)
        assert not client.is_connected(address), "half a frame is on its way: nothing can follow it"
        client.close()


def test_garbage_from_the_server_is_an_error() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=talk)
        thread.start()
        client = BlockingClient()
        with pytest.raises(ConnectionLost, match="frame length"):
            client.call(f"127.0.0.1:{listener.getsockname()[1]}", ECHO)
        client.close()
        thread.join(10)


def test_closing_ends_calls_of_other_threads(service: EchoService, address: str) -> None:
    client = BlockingClient()
    errors: list[Exception] = []

    def work() -> None:
        try:
            client.call(address, SILENT, timeout=30)
        except ConnectionLost as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: service.requests)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(ConnectFailed, match="closed"):
        client.call(address, ECHO)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_its_own_connection_and_leaves_the_parents_alone(
    server, service, address: str
) -> None:
    client = BlockingClient()
    assert client.call(address, ECHO).code == 0
    assert server.counters.connections == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = client.call(address, ECHO, None, b"child", timeout=30)
            client.close()
            code = 0 if mine.body == b"child" else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert client.call(address, ECHO, None, b"parent").body == b"parent", "the child's close is not ours"
    wait_until(lambda: len(service.lost) == 1)
    assert server.counters.connections == 2
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_locks_does_not_block_the_child(address: str, service) -> None:
    client = BlockingClient()
    thread = threading.Thread(target=lambda: client.call(address, LATER, timeout=10))
    thread.start()
    wait_until(lambda: service.requests)
    link = client._peers[address].link
    link._sending.acquire()
    client._lock.acquire()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if client.call(address, ECHO, None, b"child", timeout=30).body == b"child" else 2
        finally:
            os._exit(code)
    client._lock.release()
    link._sending.release()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    thread.join(10)
    assert client.call(address, ECHO).code == 0
    client.close()
