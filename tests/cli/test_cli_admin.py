"""The administration commands against a server process."""

import json
import time

import click
import pytest
from click.testing import CliRunner
from servers import ServerProcess, start_server, wait_until

from rocketq.cli.main import COMMANDS, main
from rocketq.client.admin import Admin
from rocketq.remoting import headers
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import ConsumerData, HeartbeatData, SubscriptionData
from rocketq.remoting.codes import RequestCode


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("admin")) as process:
        yield process


@pytest.fixture
def cli(server):
    """Runs a command; returns its lines, or with --json the value."""

    def run(*arguments: str, code: int = 0, namesrv: str = server.namesrv):
        result = CliRunner().invoke(main, [*arguments, "--namesrv", namesrv], prog_name="rocketq")
        assert result.exit_code == code, result.output
        if code:
            return result.stderr
        return json.loads(result.stdout) if "--json" in arguments else result.stdout.splitlines()

    return run


def send(server, topic: str, queue_id: int, count: int) -> None:
    client = BlockingClient()
    for _ in range(count):
        header = headers.SendMessageHeaderV2(
            producer_group="P",
            topic=topic,
            default_topic="TBW102",
            default_topic_queue_nums=4,
            queue_id=queue_id,
            sys_flag=0,
            born_timestamp=int(time.time() * 1000),
            flag=0,
        )
        assert client.call(server.broker, RequestCode.SEND_MESSAGE_V2, header, b"body").code == 0
    client.close()


def commit(server, group: str, topic: str, queue_id: int, offset: int) -> None:
    client = BlockingClient()
    header = headers.UpdateConsumerOffsetHeader(
        consumer_group=group, topic=topic, queue_id=queue_id, commit_offset=offset
    )
    assert client.call(server.broker, RequestCode.UPDATE_CONSUMER_OFFSET, header).code == 0
    client.close()


def test_how_far_slaves_are(server, cli, tmp_path):
    def shown():
        return cli("broker", "ha-status", "--json")

    (alone,) = shown()
    assert (alone["broker"], alone["peer"], alone["in_sync"]) == ("broker-0", "no slave", None)
    settings = ("brokerRole=SLAVE", "brokerId=1", "maxHashSlotNum=1000", "maxIndexNum=4000")
    chosen = [word for setting in settings for word in ("--set", setting)]
    where = ("--namesrv", server.namesrv, "--name", "broker-0", "--data", tmp_path, "--port", "0")
    with ServerProcess("broker", *where, "--host", "127.0.0.1", *chosen) as slave:
        wait_until(lambda: [row["in_sync"] for row in shown()] == [True, None], 60, "the slave is in sync")
        master, copy = shown()
        assert (master["offset"], master["behind_bytes"], master["problem"]) == (copy["offset"], 0, "")
        assert master["last_heard"].startswith("20")
        assert (copy["id"], copy["address"]) == (1, slave.broker)
        assert copy["peer"].startswith("slave of 127.0.0.1:")
        assert "BEHIND BYTES" in cli("broker", "ha-status", "broker-0")[0]
        slave.stop()
    wait_until(lambda: len(shown()) == 1, 60, "the slave is gone")


def test_a_topic_from_creation_to_deletion(server, cli):
    assert cli("topic", "create", "Orders", "--queues", "2", "--attribute", "message.type=FIFO") == [
        "topic Orders has 2 queues on each of: broker-0"
    ]
    assert cli("topic", "list") == ["TOPIC", "Orders"], "the system's topics are left out"
    assert {"topic": "TBW102"} in cli("topic", "list", "--all", "--json")

    route = cli("topic", "route", "Orders", "--json")
    assert route["brokerDatas"][0]["brokerAddrs"] == {"0": server.broker}
    assert route["queueDatas"][0]["writeQueueNums"] == 2
    assert cli("topic", "route", "Orders") == [
        "BROKER    CLUSTER         MASTER           READ QUEUES  WRITE QUEUES  PERM",
        f"broker-0  DefaultCluster  {server.broker:15}            2             2  rw",
    ]

    send(server, "Orders", 1, 3)
    status = cli("topic", "status", "Orders", "--json")
    assert [(row["queue"], row["min_offset"], row["max_offset"], row["messages"]) for row in status] == [
        (0, 0, 0, 0),
        (1, 0, 3, 3),
    ]
    assert status[0]["last_update"] is None
    assert status[1]["last_update"].startswith("20")
    assert cli("topic", "status", "Orders")[-1] == "3 messages in 2 queues"

    cli("topic", "create", "Orders", "--queues", "4", "--perm", "r")
    assert cli("topic", "route", "Orders")[1].split()[-3:] == ["4", "4", "r"]

    assert cli("topic", "delete", "Orders", "--yes", "--json") == {"topic": "Orders", "brokers": ["broker-0"]}
    assert "topic Orders does not exist" in cli("topic", "route", "Orders", code=1)
    assert cli("topic", "list") == ["TOPIC"]


def test_a_topic_is_not_deleted_without_a_yes(cli, server):
    cli("topic", "create", "Precious")
    result = CliRunner().invoke(main, ["topic", "delete", "Precious", "--namesrv", server.namesrv], input="n\n")
    assert result.exit_code == 1
    assert {"topic": "Precious"} in cli("topic", "list", "--json")


def test_a_group_from_creation_to_deletion(server, cli):
    assert cli("group", "create", "Billing", "--max-retries", "3") == ["group Billing is on: broker-0"]
    (group,) = [row for row in cli("group", "list", "--json") if row["group"] == "Billing"]
    assert group["max_retries"] == 3
    assert group["enabled"] is True
    assert cli("group", "list")[-1].split() == ["Billing", "yes", "yes", "no", "3", "1"]
    assert "TOOLS_CONSUMER" in [row["group"] for row in cli("group", "list", "--all", "--json")]
    cli("group", "create", "Billing", "--disabled", "--ordered")
    (group,) = [row for row in cli("group", "list", "--json") if row["group"] == "Billing"]
    assert (group["enabled"], group["ordered"]) == (False, True)
    cli("group", "delete", "Billing", "--yes")
    assert "Billing" not in [row["group"] for row in cli("group", "list", "--json")]


def test_progress_shows_the_lag_of_each_queue(server, cli):
    cli("topic", "create", "Work", "--queues", "2")
    send(server, "Work", 0, 5)
    send(server, "Work", 1, 1)
    cli("group", "create", "Workers")
    assert cli("group", "progress", "Workers") == ["group Workers has not consumed anything yet"]
    assert cli("group", "progress", "Workers", "--json") == []
    commit(server, "Workers", "Work", 0, 2)
    rows = cli("group", "progress", "Workers", "--json")
    assert [(row["topic"], row["queue"], row["max_offset"], row["offset"], row["lag"]) for row in rows] == [
        ("Work", 0, 5, 2, 3),
        ("Work", 1, 1, 0, 1),
    ]
    assert cli("group", "progress", "Workers")[-1] == "lag 4 in 2 queues"
    assert cli("group", "progress", "Workers", "--topic", "Work", "--json") == rows


def test_members_of_a_group(server, cli):
    assert cli("group", "members", "Watchers") == ["nobody of group Watchers is connected"]
    assert cli("group", "members", "Watchers", "--json") == {"connectionSet": [], "subscriptionTable": {}}
    client = BlockingClient()
    body = HeartbeatData(
        client_id="me@1",
        consumer_data_set=[
            ConsumerData(group_name="Watchers", subscription_data_set=[SubscriptionData("Work", "a || b")])
        ],
    )
    assert client.call(server.broker, RequestCode.HEART_BEAT, body=body.encode()).code == 0
    lines = cli("group", "members", "Watchers")
    assert lines[1].split()[0] == "me@1"
    assert lines[2] == ""
    assert ["Work", "a || b"] in [line.split(None, 1) for line in lines]
    found = cli("group", "members", "Watchers", "--json")
    assert found["connectionSet"][0]["clientId"] == "me@1"
    client.close()


def test_a_broker_is_drained_and_brought_back(server, cli):
    (row,) = cli("cluster", "list", "--json")
    assert (row["cluster"], row["broker"], row["id"]) == ("DefaultCluster", "broker-0", 0)
    assert row["address"] == server.broker
    assert row["version"] == "V5_4_0"

    def perms() -> set[int]:
        with Admin(server.namesrv) as admin:
            return {data.perm & 2 for data in admin.route("TBW102").queue_datas}

    assert cli("cluster", "wipe-write", "broker-0", "--json")["topics"] > 5
    assert perms() == {0}
    assert cli("cluster", "add-write", "broker-0")[0].startswith("broker broker-0 takes messages for")
    assert perms() == {2}
    assert "no NameServer" in cli("cluster", "wipe-write", "nobody", code=1)
    assert "no broker of cluster nope" in cli("cluster", "list", "--cluster", "nope", code=1)


@pytest.mark.parametrize("command", [("topic", "create"), ("group", "create")])
def test_an_illegal_name_is_wrong_usage(cli, command):
    assert "illegal characters" in cli(*command, "a b", code=2)


def test_an_unreachable_nameserver_is_one_line(cli):
    text = cli("topic", "list", namesrv="127.0.0.1:1", code=1)
    assert text.startswith("Error: ")
    assert len(text.splitlines()) == 1
    assert "127.0.0.1:1" in text
    assert "not an address" in cli("topic", "list", namesrv="nonsense", code=2)


def test_another_nameserver_answers_when_the_first_does_not(cli, server):
    assert cli("cluster", "list", "--json", namesrv=f"127.0.0.1:1;{server.namesrv}")[0]["broker"] == "broker-0"


def commands(group=main, path=()):
    """Every command with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_command_and_option_has_help():
    for path, command in commands():
        result = CliRunner().invoke(main, [*path, "--help"], prog_name="rocketq")
        assert result.exit_code == 0, path
        assert command.help, path
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert option.help, f"{path}: {option.name}"


def test_the_overview_names_every_command():
    result = CliRunner().invoke(main, ["--help"], prog_name="rocketq")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert CliRunner().invoke(main, ["--version"], prog_name="rocketq").stdout.startswith("rocketq, version ")
