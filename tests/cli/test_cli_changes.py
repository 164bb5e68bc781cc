"""Showing and changing topics, groups and brokers, against a server process."""

import pytest
from cli_kit import Cli
from servers import start_server

from rocketq.client.admin import Admin
from rocketq.message import MessageQueue


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("changes")) as process:
        yield process


@pytest.fixture(scope="module")
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


def test_what_is_not_named_in_an_update_of_a_topic_stays(cli):
    cli("topic", "create", "U", "--queues", "4", "--attribute", "message.type=FIFO", "--order")
    assert cli("topic", "update", "U", "--write-queues", "2") == [
        "topic U is changed on: broker-0 (write 2, read 4, rw)"
    ]
    (row,) = cli("topic", "show", "U", "--json")["brokers"]
    assert (row["write_queues"], row["read_queues"], row["perm"], row["order"]) == (2, 4, "rw", True)
    assert row["attributes"] == "message.type=FIFO"
    assert cli("topic", "perm", "U", "r", "--json") == {"topic": "U", "brokers": ["broker-0"]}
    cli("topic", "update", "U", "--queues", "3", "--no-order")
    (row,) = cli("topic", "show", "U", "--json")["brokers"]
    assert (row["write_queues"], row["read_queues"], row["perm"], row["order"]) == (3, 3, "r", False)
    assert "nothing to change" in cli("topic", "update", "U", code=2)
    assert "topic Nowhere does not exist" in cli("topic", "update", "Nowhere", "--queues", "2", code=1)
    assert "does not exist on broker-9" in cli("topic", "perm", "U", "rw", "--broker", "broker-9", code=1)


def test_a_topic_is_shown_with_its_groups(cli):
    cli.topic("Shown")
    cli.group("Readers")
    assert cli("topic", "show", "Shown")[-1] == "no group consumes it"
    for _ in range(3):
        cli.send("Shown", "x", queue_id=0)
    cli.browser.commit("Readers", MessageQueue("Shown", "broker-0", 0), 1)
    shown = cli("topic", "show", "Shown", "--json")
    assert shown["brokers"][0]["messages"] == 3
    assert shown["groups"] == [{"group": "Readers", "members": 0, "lag": 2}]
    assert cli("topic", "show", "Shown")[-1].split() == ["Readers", "0", "2"]
    assert "topic Nowhere does not exist" in cli("topic", "show", "Nowhere", code=1)


def test_what_is_not_named_in_a_change_of_a_group_stays(cli):
    cli("group", "create", "C", "--max-retries", "3", "--ordered")
    assert cli("group", "set", "C", "--disabled") == ["group C is changed on: broker-0"]
    shown = cli("group", "show", "C", "--json")
    assert (shown["max_retries"], shown["ordered"], shown["enabled"]) == (3, True, False)
    cli("group", "set", "C", "--enabled", "--unordered", "--max-retries", "5", "--no-broadcast")
    shown = cli("group", "show", "C", "--json")
    assert (shown["max_retries"], shown["ordered"], shown["enabled"], shown["broadcast"]) == (
        5,
        False,
        True,
        False,
    )
    assert "nothing to change" in cli("group", "set", "C", code=2)
    for command in (["set", "Nobody", "--enabled"], ["show", "Nobody"], ["clients", "Nobody"]):
        assert "group Nobody does not exist" in cli("group", *command, code=1)


def test_a_group_is_shown_with_its_lag_and_dead_letters(cli):
    cli.topic("Lagging")
    cli.group("Late")
    cli.dead_letter("Late", "Lagging", "x", tag="t")
    for queue_id in (0, 1):
        cli.browser.commit("Late", MessageQueue("Lagging", "broker-0", queue_id), 0)
    shown = cli("group", "show", "Late", "--json")
    assert (shown["lag"]["Lagging"], shown["open_dead_letters"], shown["members"]) == (1, 1, 0)
    lines = [line.split() for line in cli("group", "show", "Late")]
    assert ["open", "dead", "letters", "1"] in lines
    assert ["Lagging", "1"] in lines


def test_settings_of_a_running_broker(cli, server):
    assert cli("broker", "config", "get", "broker-0", "brokerName", "--json") == {"brokerName": "broker-0"}
    everything = cli("broker", "config", "get", server.broker, "--json")
    assert len(everything) > 20
    changed = cli("broker", "config", "set", "broker-0", "autoCreateTopicEnable=false", "--json")
    assert changed == {
        "broker": "broker-0",
        "before": {"autoCreateTopicEnable": "true"},
        "after": {"autoCreateTopicEnable": "false"},
    }
    back = cli("broker", "config", "set", "broker-0", "autoCreateTopicEnable=true")
    assert back[-1].split() == ["autoCreateTopicEnable", "false", "true"]
    assert "no setting nonsense" in cli("broker", "config", "get", "broker-0", "nonsense", code=2)
    assert "no setting nonsense" in cli("broker", "config", "set", "broker-0", "nonsense=1", code=2)
    assert "expected KEY=VALUE" in cli("broker", "config", "set", "broker-0", "nonsense", code=2)
    error = cli("broker", "config", "get", "nobody", code=1)
    assert f"there are broker-0 ({server.broker})" in error


def test_brokers_are_listed_drained_and_asked_how_they_are(cli):
    (row,) = cli("broker", "list", "--json")
    assert (row["broker"], row["version"]) == ("broker-0", "V5_4_0")
    assert cli("cluster", "list", "--json")[0]["broker"] == "broker-0"
    assert int(cli("broker", "status", "broker-0", "--json")["bootTimestamp"]) > 0
    assert ["brokerVersionDesc", "V5_4_0"] in [line.split() for line in cli("broker", "status", "broker-0")]
    assert cli("broker", "wipe-write", "broker-0", "--json")["topics"] > 5
    assert cli("broker", "add-write", "broker-0", "--json")["topics"] > 5
    result = cli.invoke("broker", "--port", "0", "list")
    assert result.exit_code == 2
    assert "behind the command" in result.stderr


def test_a_broker_is_told_to_clean_up(cli, monkeypatch):
    asked = []
    ask = Admin.ask

    def recording(self, address, code, *arguments, **options):
        asked.append(code)
        return ask(self, address, code, *arguments, **options)

    monkeypatch.setattr(Admin, "ask", recording)
    assert cli.invoke("broker", "clean", "broker-0").exit_code == 1  # nobody says yes
    assert 329 not in asked
    assert cli("broker", "clean", "broker-0", "--yes", "--json") == {"broker": "broker-0"}
    assert asked[-3:] == [329, 306, 316]
    assert "no broker nobody" in cli("broker", "clean", "nobody", "--yes", code=1)


def test_a_group_is_let_pop_a_topic(cli):
    cli.topic("Popped")
    cli.group("Poppers")
    assert cli("group", "mode", "Poppers", "Popped", "--json") == [
        {"broker": "broker-0", "mode": None, "share": None}
    ]
    assert "defaultMessageRequestMode" in cli("group", "mode", "Poppers", "Popped")[-1]
    assert cli("group", "mode", "Poppers", "Popped", "pop", "--share", "2")[-1].split() == ["broker-0", "pop", "2"]
    (row,) = cli("group", "mode", "Poppers", "Popped", "--json")
    assert (row["mode"], row["share"]) == ("pop", 2)
    assert cli("group", "mode", "Poppers", "Popped", "pull", "--json")[0]["mode"] == "pull"
    assert "goes with pop" in cli("group", "mode", "Poppers", "Popped", "pull", "--share", "2", code=2)
    assert "group Nobody does not exist" in cli("group", "mode", "Nobody", "Popped", "pop", code=1)
    assert "topic Nowhere does not exist" in cli("group", "mode", "Poppers", "Nowhere", "pop", code=1)
