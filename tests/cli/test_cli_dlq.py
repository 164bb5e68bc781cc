"""`rocketq dlq` against a server process."""

import pytest
from cli_kit import Cli
from servers import start_server

from rocketq.client.redeliver import COPY_OF, DLQ_GROUP
from rocketq.errors import ConnectionLost
from rocketq.message import MessageQueue


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("dlq")) as process:
        yield process


@pytest.fixture
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


def prepare(cli, name, count=3):
    """A group with dead letters; their ids."""
    cli.topic(name)
    cli.group(f"{name}-G")
    given = {"tag": "paid", "keys": "k1 k2", "properties": {"color": "red"}, "sharding_key": "ada"}
    return [cli.dead_letter(f"{name}-G", name, f"body {number}", **given) for number in range(count)]


def test_dead_letters_are_listed_and_shown(cli):
    first, second = prepare(cli, "Shown", 2)
    rows = {row["group"]: row for row in cli("dlq", "list", "--json")}
    assert (rows["Shown-G"]["open"], rows["Shown-G"]["stored"]) == (2, 2)
    assert rows["Shown-G"]["oldest"] <= rows["Shown-G"]["newest"]
    assert cli("dlq", "list")[0].split() == ["GROUP", "OPEN", "STORED", "OLDEST", "NEWEST"]

    shown = cli("dlq", "show", "Shown-G", "--json")
    assert [letter["message_id"] for letter in shown] == [first, second]
    letter = shown[0]
    assert (letter["original_topic"], letter["attempts"], letter["keys"]) == ("Shown", 1, ["k1", "k2"])
    assert letter["exception"] is None
    assert "body" not in letter
    assert [one["body"] for one in cli("dlq", "show", "Shown-G", "--body", "--json")] == ["body 0", "body 1"]
    table = cli("dlq", "show", "Shown-G")
    assert table[0].split()[0] == "PLACE"
    assert first in table[1]
    assert cli("dlq", "show", "Shown-G", "--id", second, "--json")[0]["message_id"] == second
    assert cli("dlq", "show", "Shown-G", "--until", "1h ago", "--json") == []
    assert "body 1" not in "\n".join(cli("dlq", "show", "Shown-G", "--full"))
    assert any(line.split() == ["body", "body", "1"] for line in cli("dlq", "show", "Shown-G", "--body"))
    limited = cli.invoke("dlq", "show", "Shown-G", "--limit", "1")
    assert len(limited.stdout.splitlines()) == 2
    assert "more than 1" in limited.stderr


def test_the_reason_is_shown_when_the_consumer_told_it(cli):
    cli.topic("Reason")
    cli.group("Reason-G")
    why = {"ROCKETQ_EXCEPTION": "ValueError: no such seat", "ROCKETQ_TRACEBACK": "Traceback\n  line 1"}
    cli.dead_letter("Reason-G", "Reason", "x", properties=why)
    assert "ValueError: no such seat" in cli("dlq", "show", "Reason-G")[1]
    (letter,) = cli("dlq", "show", "Reason-G", "--json")
    assert letter["traceback"] == "Traceback\n  line 1"
    cli("dlq", "resend", "Reason-G", "--all", "--yes")
    _, copy = cli.browser.between("Reason")
    assert why.keys().isdisjoint(copy.properties), "the copy has not failed yet"


def test_resending_keeps_what_the_message_is_and_happens_once(cli):
    ids = prepare(cli, "Again", 3)
    planned = cli("dlq", "resend", "Again-G", "--all", "--dry-run", "--json")
    assert [(row["what"], row["to"]) for row in planned] == [("send", "Again")] * 3
    assert len(cli.bodies("Again")) == 3, "a dry run sends nothing"

    answer = cli("dlq", "resend", "Again-G", "--all", "--yes", "--json")
    assert answer == {"group": "Again-G", "sent": 3, "already": 0, "failed": {}}
    messages = list(cli.browser.between("Again"))
    assert [message.body for message in messages[3:]] == [b"body 0", b"body 1", b"body 2"]
    original, copy = messages[0], messages[3]
    assert copy.properties[COPY_OF].startswith("%DLQ%Again-G/broker-0/0@")
    assert (copy.message_id, copy.tag, copy.keys, copy.sharding_key) == (ids[0], "paid", ["k1", "k2"], "ada")
    assert copy.properties["color"] == "red"
    assert copy.properties.keys() - {COPY_OF} == original.properties.keys()
    assert copy.reconsume_times == 0

    assert "Again-G" not in [row["group"] for row in cli("dlq", "list", "--json")]
    assert {row["group"]: row["open"] for row in cli("dlq", "list", "--all", "--json")}["Again-G"] == 0
    assert cli("dlq", "resend", "Again-G", "--all", "--yes") == ["0 messages sent"]
    assert cli("dlq", "show", "Again-G", "--json") == []
    assert len(cli("dlq", "show", "Again-G", "--all", "--json")) == 3
    (said,) = cli("dlq", "resend", "Again-G", "--id", ids[1], "--yes")
    assert said == "0 messages sent, 1 left out that have a copy already (--again sends them once more)"
    assert cli("dlq", "resend", "Again-G", "--id", ids[1], "--again", "--yes") == ["1 messages sent"]
    assert cli.bodies("Again")[6:] == ["body 1"]


def test_an_interrupted_resend_goes_on_where_it_was(cli, monkeypatch):
    prepare(cli, "Cut", 40)
    from rocketq.client.sync_producer import Producer

    sent = []
    real = Producer.send

    def send(self, message, **options):
        if len(sent) == 37:
            raise ConnectionLost("the cable")
        sent.append(message)
        return real(self, message, **options)

    monkeypatch.setattr(Producer, "send", send)
    assert "the cable" in cli("dlq", "resend", "Cut-G", "--all", "--yes", code=1)
    monkeypatch.undo()
    queue = MessageQueue("%DLQ%Cut-G", "broker-0", 0)
    assert cli.browser.committed(DLQ_GROUP, queue) == 32, "five more were sent without being counted"
    answer = cli("dlq", "resend", "Cut-G", "--all", "--yes", "--json")
    assert (answer["sent"], answer["already"]) == (3, 5)
    assert sorted(cli.bodies("Cut")[40:]) == sorted(f"body {number}" for number in range(40))

    cli.browser.commit(DLQ_GROUP, queue, 0)  # as after a broker that lost the last positions
    answer = cli("dlq", "resend", "Cut-G", "--all", "--yes", "--json")
    assert (answer["sent"], answer["already"]) == (0, 40)
    assert cli.browser.committed(DLQ_GROUP, queue) == 40


def test_resending_one_by_id_by_time_and_to_the_group_only(cli):
    ids = prepare(cli, "Some", 3)
    assert cli("dlq", "resend", "Some-G", "--id", ids[0], "--id", ids[2], "--yes") == ["2 messages sent"]
    assert cli.bodies("Some")[3:] == ["body 0", "body 2"]
    assert {row["group"]: row["open"] for row in cli("dlq", "list", "--json")}["Some-G"] == 2, "no gap is skipped"
    assert cli("dlq", "resend", "Some-G", "--until", "1h ago", "--yes") == ["0 messages sent"]
    answer = cli("dlq", "resend", "Some-G", "--since", "1h ago", "--only-group", "--yes", "--json")
    assert answer["sent"] == 2
    copies = list(cli.browser.between("%RETRY%Some-G"))
    assert [message.body for message in copies] == [b"body 1", b"body 2"]
    assert [message.topic for message in copies] == ["Some", "Some"], (
        "consumers see the topic it was sent to first"
    )
    cli.topic("Elsewhere")
    answer = cli("dlq", "resend", "Some-G", "--id", ids[0], "--to", "Elsewhere", "--yes", "--json")
    assert answer["sent"] == 1, "what was sent to one topic is not yet sent to another"
    assert cli.bodies("Elsewhere") == ["body 0"]


def test_what_cannot_be_resent_is_told_and_stays_open(cli):
    prepare(cli, "Gone", 2)
    cli("topic", "delete", "Gone", "--yes")
    error = cli("dlq", "resend", "Gone-G", "--all", "--yes", code=1)
    assert "%DLQ%Gone-G/broker-0/0@0 was not sent: topic Gone does not exist any more" in error
    assert {row["group"]: row["open"] for row in cli("dlq", "list", "--json")}["Gone-G"] == 2
    assert cli("dlq", "resend", "Gone-G", "--all", "--dry-run", "--json")[1]["what"] == "leave out"


def test_purged_letters_are_not_open_but_there(cli):
    ids = prepare(cli, "Purged", 2)
    assert cli("dlq", "purge", "Purged-G", "--until", "1h ago", "--yes", "--json")["purged"] == 0
    refused = cli.invoke("dlq", "purge", "Purged-G", "--all", input="n\n")
    assert refused.exit_code == 1
    assert len(cli("dlq", "show", "Purged-G", "--json")) == 2
    answer = cli("dlq", "purge", "Purged-G", "--all", "--yes", "--json")
    assert answer == {"group": "Purged-G", "purged": 2, "open": 0}
    assert cli("dlq", "show", "Purged-G", "--json") == []
    assert cli("dlq", "resend", "Purged-G", "--all", "--yes") == ["0 messages sent"]
    assert cli("dlq", "resend", "Purged-G", "--id", ids[1], "--yes") == ["1 messages sent"]
    cli.dead_letter("Purged-G", "Purged", "new")
    assert [letter["message_id"] for letter in cli("dlq", "show", "Purged-G", "--json")]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("show", "Nobody"), 1, "group Nobody does not exist"),
        (("show", "TOOLS_CONSUMER"), 1, "has no dead letters"),
        (("resend", "Nobody"), 2, "which? --all, --id"),
        (("resend", "Nobody", "--all", "--to", "a", "--only-group"), 2, "exclude each other"),
        (("purge", "Nobody"), 2, "which? --all or --until"),
        (("purge", "Nobody", "--all", "--until", "1h"), 2, "which?"),
        (("show", "Nobody", "--since", "lately"), 2, "no point in time"),
    ],
)
def test_what_cannot_be_says_why(cli, arguments, code, text):
    assert text in cli("dlq", *arguments, code=code)


def test_an_id_that_is_not_there_is_an_error(cli):
    prepare(cli, "Known", 1)
    assert "no dead letter with id ABC" in cli("dlq", "resend", "Known-G", "--id", "ABC", "--yes", code=1)
