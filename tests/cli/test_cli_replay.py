"""`rocketq replay` and `rocketq group reset-offset` against a server process."""

import time
from datetime import datetime

import pytest
from cli_kit import Cli
from servers import start_server, wait_until

from rocketq.client.redeliver import COPY_OF
from rocketq.message import MessageQueue


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("replay")) as process:
        yield process


@pytest.fixture
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


def prepare(cli, name):
    """Six messages in two queues, each of another ms, all consumed; gives the store time of the fourth."""
    cli.topic(name)
    cli.group(f"{name}-G")
    for number in range(6):
        later = time.time() + 0.002
        wait_until(lambda end=later: time.time() > end)
        cli.send(name, f"b{number}", queue_id=number % 2, tag=f"t{number % 3}", keys=f"k{number}")
    for queue_id in (0, 1):
        cli.browser.commit(f"{name}-G", MessageQueue(name, "broker-0", queue_id), 3)
    return list(cli.browser.between(name))[3].store_timestamp


def offsets(cli, name):
    return [cli.browser.committed(f"{name}-G", MessageQueue(name, "broker-0", queue_id)) for queue_id in (0, 1)]


def test_a_group_goes_back_to_a_time(cli):
    fourth = prepare(cli, "Back")
    planned = cli("replay", "-t", "Back", "-g", "Back-G", "--since", str(fourth), "--dry-run", "--json")
    assert [(row["queue"], row["from"], row["to"], row["messages"]) for row in planned] == [
        (0, 3, 2, 1),
        (1, 3, 1, 2),
    ]
    assert offsets(cli, "Back") == [3, 3], "a dry run moves nothing"
    since = datetime.fromtimestamp(fourth / 1000).isoformat()
    said = cli("replay", "-t", "Back", "-g", "Back-G", "--since", since, "--yes")
    assert said[-1] == "group Back-G is moved in 2 queues of topic Back"
    assert offsets(cli, "Back") == [2, 1]
    said = cli("replay", "-t", "Back", "-g", "Back-G", "--since", "1ms", "--yes")
    assert "nothing to do" in said[-1], "a replay never skips messages"
    assert offsets(cli, "Back") == [2, 1]


def test_matching_messages_are_copied_for_the_group_alone(cli):
    fourth = prepare(cli, "Part")
    command = ["replay", "-t", "Part", "-g", "Part-G"]
    planned = cli(*command, "--since", "1h ago", "--until", str(fourth), "--dry-run", "--json")
    assert [row["to"] for row in planned] == ["%RETRY%Part-G"] * 3
    assert "%RETRY%Part-G" not in cli.admin.topics(), "a dry run makes no topic"
    answer = cli(*command, "--since", "1h ago", "--until", str(fourth), "--tag", "t1 || t2", "--yes", "--json")
    assert answer == {"topic": "Part", "group": "Part-G", "sent": 2, "already": 0, "failed": {}}
    copies = list(cli.browser.between("%RETRY%Part-G"))
    assert [(copy.body, copy.topic, copy.tag, copy.keys) for copy in copies] == [
        (b"b1", "Part", "t1", ["k1"]),
        (b"b2", "Part", "t2", ["k2"]),
    ]
    assert copies[0].properties[COPY_OF] == "Part/broker-0/1@0"
    assert offsets(cli, "Part") == [3, 3]
    assert len(cli.bodies("Part")) == 6
    answer = cli(*command, "--since", "1h ago", "--until", str(fourth), "--yes", "--json")
    assert (answer["sent"], answer["already"]) == (1, 2), "what is missing is added"
    assert cli(*command, "--since", "1h ago", "--key", "k4", "--yes") == ["1 messages sent"]
    assert cli(*command, "--since", "1h ago", "--key", "k4", "--tag", "t0", "--yes") == ["0 messages sent"]
    assert cli(*command, "--since", "1h ago", "--key", "k4", "--again", "--yes") == ["1 messages sent"]
    assert cli.bodies("%RETRY%Part-G") == ["b1", "b2", "b0", "b4", "b4"]


def test_an_offset_is_reset_to_every_kind_of_place(cli):
    fourth = prepare(cli, "Reset")
    reset = ["group", "reset-offset", "Reset-G", "-t", "Reset", "--yes"]
    cli(*reset, "--to-min")
    assert offsets(cli, "Reset") == [0, 0]
    cli(*reset, "--to-time", str(fourth))
    assert offsets(cli, "Reset") == [2, 1]
    rows = cli(*reset, "--to-max", "--json")
    assert [(row["from"], row["to"], row["messages"]) for row in rows] == [(2, 3, 0), (1, 3, 0)]
    assert offsets(cli, "Reset") == [3, 3]
    cli(*reset, "--to-offset", "1", "--queue", "1")
    assert offsets(cli, "Reset") == [3, 1]
    cli(*reset, "--to-offset", "77", "--queue", "1")
    assert offsets(cli, "Reset") == [3, 3], "no further than the end"
    cli(*reset, "--to-time", "now")
    assert offsets(cli, "Reset") == [3, 3]
    assert cli.invoke(*reset[:-1], "--to-min", input="n\n").exit_code == 1
    assert offsets(cli, "Reset") == [3, 3]
    assert cli(*reset, "--to-min", "--broker", "broker-0", "--dry-run")[-1] == "nothing was changed (--dry-run)"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("group", "reset-offset", "G", "-t", "T"), 2, "where to?"),
        (("group", "reset-offset", "G", "-t", "T", "--to-min", "--to-max"), 2, "where to?"),
        (("group", "reset-offset", "G", "-t", "T", "--to-offset", "1"), 2, "give --queue"),
        (("group", "reset-offset", "Nobody", "-t", "TBW102", "--to-min"), 1, "group Nobody does not exist"),
        (("group", "reset-offset", "TOOLS_CONSUMER", "-t", "Nowhere", "--to-min"), 1, "Nowhere does not exist"),
        (
            ("group", "reset-offset", "TOOLS_CONSUMER", "-t", "TBW102", "--to-min", "-q", "99"),
            1,
            "has no such queue",
        ),
        (("replay", "-t", "T", "-g", "G", "--since", "1h", "--sql", "a = 1", "--tag", "t"), 2, "exclude"),
        (("replay", "-t", "T", "-g", "G", "--since", "1h", "--sql", "a = 1", "--key", "t"), 2, "exclude"),
        (("replay", "-t", "T", "-g", "G"), 2, "--since"),
        (
            ("replay", "-t", "TBW102", "-g", "Nobody", "--since", "1h", "--tag", "a"),
            1,
            "group Nobody does not exist",
        ),
    ],
)
def test_what_cannot_be_says_why(cli, arguments, code, text):
    assert text in cli(*arguments, code=code)
