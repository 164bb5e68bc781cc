"""`rocketq send --delay/--at/--priority` and `rocketq message recall` against a server process."""

import pytest
from cli_kit import Cli
from servers import start_server, wait_until

from rocketq.recall import RecallHandle


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("timers")) as process:
        yield process


@pytest.fixture
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


def test_a_message_waits_for_its_time_and_can_be_recalled_until_then(cli):
    cli.topic("Timed")
    far = cli("send", "Timed", "far", "--at", "2099-01-01T00:00:00Z", "--json")
    assert RecallHandle.decode(far["recall_handle"]).due == 4_070_908_800_000
    gone = cli("send", "Timed", "gone", "--delay", "4000ms", "--json")
    cli("send", "Timed", "kept", "--delay", "4000ms")
    assert gone["message_id"] in cli("message", "recall", gone["recall_handle"])[0]
    assert cli.bodies("Timed") == []
    wait_until(lambda: cli.bodies("Timed") == ["kept"], 20, "the message that was not recalled")
    assert "timestamp invalid" in cli("message", "recall", gone["recall_handle"], code=1)


def test_the_priority_chooses_the_queue(cli):
    cli.topic("Prior", 4)
    assert [cli("send", "Prior", "x", "--priority", str(n), "--json")["queue_id"] for n in (3, 1)] == [3, 1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--delay", "5"], "is no length of time"),
        (["--at", "2h"], "is over"),
        (["--at", "soon"], "is no point in time"),
        (["--delay", "1s", "--delay-level", "2"], "only one of"),
        (["--delay", "1s", "--at", "2099-01-01"], "only one of"),
        (["--priority", "-1"], "priority"),
    ],
)
def test_what_cannot_be_used_is_wrong_usage(cli, options, text):
    assert text in cli("send", "T", "x", *options, code=2)
