"""The daemons as real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from servers import ServerProcess, free_port, start_server, wait_until

from rocketq.client.admin import Admin
from rocketq.errors import RemotingError, RocketQError
from rocketq.remoting.bodies import TopicConfig

LIMIT_RSS = 60 * 1024  # kB


def run(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    """A command that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "rocketq", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        **more,
    )


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", free_port(2)))
        listener.listen()
        yield listener.getsockname()[1]


def broker_names(namesrv: str) -> list[str]:
    with Admin(namesrv) as admin:
        try:
            return sorted(broker.name for broker in admin.brokers())
        except RocketQError:  # none is registered, or no NameServer
            return []


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_the_server_is_ready_serves_and_stops(tmp_path):
    with start_server(tmp_path / "data") as server:
        assert server.namesrv.startswith("127.0.0.1:")
        assert server.broker.startswith("127.0.0.1:")
        with Admin(server.namesrv) as admin:
            (broker,) = admin.brokers()
            assert broker.address == server.broker
            assert "TBW102" in admin.topics(), "the broker was registered before the ready line"
        assert resident(server.process.pid) < LIMIT_RSS
        assert server.stop() == 0
        assert server.errors == []
    assert (tmp_path / "data").is_dir()


def test_the_ready_line_is_the_documented_one(tmp_path):
    ports = ["--namesrv-port", "0", "--broker-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rocketq", "server", "--data", str(tmp_path), *ports],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        pattern = r"rocketq server ready namesrv=127\.0\.0\.1:\d+ broker=127\.0\.0\.1:\d+ pid=(\d+)\n"
        match = re.fullmatch(pattern, line)
        assert match, line
        assert int(match[1]) == process.pid
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        process.stdout.close()


def test_the_ready_line_and_the_settings_are_json_on_request(tmp_path):
    arguments = ["server", "--json", "--data", str(tmp_path), "--namesrv-port", "0", "--broker-port", "0"]
    process = subprocess.Popen([sys.executable, "-m", "rocketq", *arguments], stdout=subprocess.PIPE)
    try:
        said = json.loads(process.stdout.readline())
        assert said["ready"] == "server"
        assert said["pid"] == process.pid
        with Admin(said["namesrv"]) as admin:
            assert [broker.address for broker in admin.brokers()] == [said["broker"]]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
    assert json.loads(run("broker", "--json", "-p", "--name", "b").stdout)["brokerName"] == "b"


def test_what_was_created_is_there_after_a_restart(tmp_path):
    with start_server(tmp_path) as server:
        with Admin(server.namesrv) as admin:
            admin.create_topic(TopicConfig(topic_name="Kept", read_queue_nums=3, write_queue_nums=3))
        server.stop()
    with start_server(tmp_path) as server, Admin(server.namesrv) as admin:
        assert admin.route("Kept").queue_datas[0].write_queue_nums == 3


def test_a_taken_nameserver_port_is_one_clear_line(tmp_path, taken_port):
    done = run("server", "--data", tmp_path, "--namesrv-port", taken_port, "--broker-port", 0)
    assert done.returncode == 1
    assert done.stderr == f"Error: cannot listen on 127.0.0.1:{taken_port}: Address already in use\n"
    assert done.stdout == ""


def test_a_taken_broker_port_is_one_clear_line_and_frees_the_directory(tmp_path, taken_port):
    done = run("server", "--data", tmp_path, "--namesrv-port", 0, "--broker-port", taken_port)
    assert done.returncode == 1
    assert done.stderr == f"Error: cannot listen on 127.0.0.1:{taken_port}: Address already in use\n"
    with start_server(tmp_path) as server:
        assert server.stop() == 0


def test_a_taken_second_port_is_logged_and_nothing_else(tmp_path, taken_port):
    with ServerProcess(
        "server", "--data", tmp_path, "--namesrv-port", "0", "--broker-port", str(taken_port + 2)
    ) as server:
        wait_until(lambda: server.errors, what="the log line")
        assert f"port {taken_port} for old clients is not served" in server.errors[0]
        assert server.stop() == 0


def test_a_directory_in_use_is_refused_with_the_owners_pid(tmp_path):
    with start_server(tmp_path) as server:
        done = run("server", "--data", tmp_path, "--namesrv-port", 0, "--broker-port", 0)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert str(server.process.pid) in done.stderr
        assert str(tmp_path) in done.stderr


@pytest.mark.parametrize("command", ["server", "broker", "namesrv"])
def test_a_bad_configuration_is_one_clear_line(command, tmp_path):
    file = tmp_path / "my.conf"
    file.write_text("bindAddress=127.0.0.1\nserverChannelMaxIdleTimeSeconds=soon\n")
    if command == "server":
        done = run(command, "-c", file, "--data", tmp_path)
    else:
        done = run(command, "-c", file)
    assert done.returncode == 2
    assert done.stderr == f"Error: {file} line 2: serverChannelMaxIdleTimeSeconds: 'soon' is not an integer\n"


def test_wrong_usage_is_exit_code_2(tmp_path):
    assert run("server", "--no-such-option").returncode == 2
    assert run("server", "--set", "noSuchKey=1").returncode == 2
    assert run("nonsense").returncode == 2
    assert run("broker", "-n", "not-an-address", "--data", tmp_path, "--port", 0).returncode == 2


def test_unsupported_keys_are_reported_and_do_not_stop_it(tmp_path):
    file = tmp_path / "broker.conf"
    file.write_text("brokerName=named-by-file\nenableControllerMode=false\n")
    with start_server(tmp_path / "data", "-c", str(file)) as server:
        assert broker_names(server.namesrv) == ["named-by-file"]
        (line,) = server.errors
        assert f"{file} line 2: enableControllerMode is not supported" in line


def test_settings_are_printed(tmp_path):
    done = run("broker", "--set", "regionId=here", "--data", tmp_path, "-p")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "regionId=here" in lines
    assert f"storePathRootDir={tmp_path}" in lines


def test_a_nameserver_and_a_broker_apart(tmp_path):
    with ServerProcess("namesrv", "--host", "127.0.0.1", "--port", "0", "--data", tmp_path / "ns") as namesrv:
        assert namesrv.namesrv
        arguments = ["--host", "127.0.0.1", "--port", "0", "--data", str(tmp_path / "store"), "--name", "solo"]
        with ServerProcess("broker", "-n", namesrv.namesrv, *arguments) as broker:
            assert broker_names(namesrv.namesrv) == ["solo"]
            assert broker.stop() == 0
            assert broker_names(namesrv.namesrv) == [], "it took its leave"
        with ServerProcess("broker", *arguments, env={"NAMESRV_ADDR": namesrv.namesrv}) as broker:
            assert broker_names(namesrv.namesrv) == ["solo"]
            broker.kill()
            wait_until(lambda: broker_names(namesrv.namesrv) == [], what="the killed broker is out")
        assert namesrv.stop() == 0


def test_a_broker_starts_without_its_nameserver_and_finds_it_later(tmp_path):
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", "0", "--data", str(tmp_path / "store"), "--name", "early"]
    with ServerProcess("broker", "-n", f"127.0.0.1:{port}", *arguments) as broker:
        wait_until(lambda: broker.errors, what="the log line")
        assert f"not registered with NameServer 127.0.0.1:{port}" in broker.errors[0]
        with ServerProcess("namesrv", "--host", "127.0.0.1", "--port", str(port), "--data", tmp_path) as namesrv:
            wait_until(lambda: broker_names(namesrv.namesrv) == ["early"], what="the broker is registered")
        assert broker.stop() == 0


def children(pid: int) -> dict[str, int]:
    """Broker name -> pid of the processes under `pid`."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{entry}/cmdline", encoding="utf-8") as line:
                words = line.read().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid and "--name" in words:
            found[words[words.index("--name") + 1]] = int(entry)
    return found


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_broker_processes_under_one_nameserver(tmp_path):
    with start_server(tmp_path, "--brokers", "2") as server:
        addresses = server.broker.split(",")
        assert len(set(addresses)) == 2
        assert broker_names(server.namesrv) == ["broker-0", "broker-1"]
        with Admin(server.namesrv) as admin:
            assert sorted(broker.address for broker in admin.brokers()) == sorted(addresses)
        pids = children(server.process.pid)
        assert sorted(pids) == ["broker-0", "broker-1"]
        assert (tmp_path / "broker-0").is_dir()
        assert (tmp_path / "broker-1").is_dir()

        os.kill(pids["broker-1"], signal.SIGKILL)
        wait_until(lambda: any("broker-1" in line for line in server.errors), what="the death is reported")
        wait_until(
            lambda: (
                children(server.process.pid).get("broker-1", pids["broker-1"]) != pids["broker-1"]
                and broker_names(server.namesrv) == ["broker-0", "broker-1"]
            ),
            what="the broker is back",
        )
        with Admin(server.namesrv) as admin:
            assert sorted(broker.address for broker in admin.brokers()) == sorted(addresses), "at the port it had"
        pids = children(server.process.pid)
        assert server.stop() == 0
        assert not any(alive(pid) for pid in pids.values())


def test_broker_processes_end_when_their_parent_is_killed(tmp_path):
    with start_server(tmp_path, "--brokers", "2") as server:
        pids = children(server.process.pid)
        assert len(pids) == 2
        server.kill()
        wait_until(lambda: not any(alive(pid) for pid in pids.values()), what="the brokers end")


def test_when_one_of_several_brokers_cannot_start_nothing_stays(tmp_path):
    with start_server(tmp_path) as owner:  # holds the directory of broker-0
        done = run("server", "--data", tmp_path, "--namesrv-port", 0, "--broker-port", 0, "--brokers", 2)
        assert done.returncode == 1
        assert str(owner.process.pid) in done.stderr, "the reason of the process that could not start"
        assert "broker-0 did not start (exit code 1)" in done.stderr
        assert owner.process.poll() is None


def test_the_client_side_says_when_nobody_answers():
    with Admin("127.0.0.1:1") as admin, pytest.raises(RemotingError):
        admin.brokers()
