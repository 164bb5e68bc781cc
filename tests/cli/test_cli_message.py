"""`rocketq message` against a server process."""

import asyncio
import base64
import socket
import time

import pytest
from cli_kit import Cli
from click.testing import CliRunner
from servers import start_server, wait_until

from rocketq.cli.main import main
from rocketq.cli.message import read_handle
from rocketq.cli.message_text import body_text
from rocketq.cli.message_trace import steps
from rocketq.client import ConsumeResult, Producer, PushConsumer, RetryLater
from rocketq.message import Message, ReceivedMessage
from rocketq.record import Record, pack_host
from rocketq.trace import Trace


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_server(tmp_path_factory.mktemp("message")) as process:
        yield process


@pytest.fixture(scope="module")
def cli(server):
    cli = Cli(server.namesrv)
    yield cli
    cli.close()


@pytest.fixture(scope="module")
def sent(cli):
    """Five messages in queue 0 of M."""
    cli.topic("M")
    return [
        cli.send("M", f"m{number}", queue_id=0, tag=f"t{number % 2}", keys=["same", f"k{number}"])
        for number in range(5)
    ]


def test_a_message_by_its_ids(cli, sent):
    (found,) = cli("message", "get", sent[1].message_id, "--json")
    assert (found["topic"], found["queue_offset"], found["keys"]) == ("M", 1, ["same", "k1"])
    assert "body" not in found, "bodies are shown only when they are asked for"
    assert cli("message", "get", sent[1].message_id, "--topic", "M", "--body", "--json")[0]["body"] == "m1"
    assert cli("message", "get", sent[2].offset_message_id, "--body", "--json")[0]["body"] == "m2"
    lines = cli("message", "get", sent[1].message_id)
    assert ["message", "id", sent[1].message_id] in [line.split() for line in lines]
    assert lines[-1].split() == ["body", "2", "bytes", "(--body", "shows", "it)"]


def test_retries_and_dead_letters_have_the_id_as_well(cli):
    cli.topic("D")
    cli.group("D-G")
    unique_id = cli.dead_letter("D-G", "D", "x")
    wait_until(lambda: "%DLQ%D-G" in cli.admin.topics())
    assert [found["topic"] for found in cli("message", "get", unique_id, "--json")] == ["D", "%DLQ%D-G"]


def test_messages_by_key(cli, sent):
    assert [found["queue_offset"] for found in cli("message", "query", "-t", "M", "-k", "same", "--json")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert [found["body"] for found in cli("message", "query", "-t", "M", "-k", "k3", "--body", "--json")] == [
        "m3"
    ]
    assert len(cli("message", "query", "-t", "M", "-k", "same", "--limit", "2")) == 3
    assert cli("message", "query", "-t", "M", "-k", "same", "--until", "1h ago", "--json") == []
    assert cli("message", "query", "-t", "M", "-k", "nothing", "--json") == []
    assert cli("message", "query", "-t", "M", "-k", "k2", "--body")[-1].split() == ["body", "m2"]


def test_the_message_at_a_place(cli, sent):
    (found,) = cli("message", "at", "M", "--queue", "0", "--offset", "2", "--body", "--json")
    assert found["body"] == "m2"
    error = cli("message", "at", "M", "--queue", "0", "--offset", "99", code=1)
    assert "queue 0 of topic M on broker-0 has offsets from 0 to before 5" in error
    assert "has no queue 7" in cli("message", "at", "M", "--queue", "7", "--offset", "0", code=1)


def test_messages_of_a_time_are_printed(cli, sent):
    third = cli("message", "at", "M", "-q", "0", "-o", "2", "--json")[0]["store_timestamp"]
    all_of_them = cli("message", "print", "M", "--body")
    assert [line.split()[-1] for line in all_of_them] == ["m0", "m1", "m2", "m3", "m4"]
    assert cli("message", "print", "M")[0].split()[0] == "STORED"
    rows = cli("message", "print", "M", "--since", str(third), "--json")
    assert [row["store_timestamp"] >= third for row in rows] == [True] * len(rows)
    assert len(rows) + len(cli("message", "print", "M", "--until", str(third), "--json")) == 5
    assert [row["tag"] for row in cli("message", "print", "M", "--tag", "t1", "--json")] == ["t1", "t1"]
    assert cli("message", "print", "M", "--since", "now", "--json") == []
    limited = cli.invoke("message", "print", "M", "--limit", "2", "--json")
    assert "more than 2" in limited.stderr


def test_a_thousand_messages_are_printed_in_order(cli):
    cli.topic("Many", 4)
    for _ in range(1000):
        cli.producer.send_oneway(Message("Many", b"x" * 100))
    wait_until(lambda: sum(end.max_offset for end in cli.admin.topic_status("Many").values()) == 1000)
    rows = cli("message", "print", "Many", "--json")
    assert len(rows) == 1000
    times = [row["store_timestamp"] for row in rows]
    assert times == sorted(times)
    assert len({(row["queue_id"], row["queue_offset"]) for row in rows}) == 1000


def test_a_body_cannot_do_anything_to_the_terminal(cli):
    assert body_text(b"\x1b[31mred\x07\r\n\ttext\xff\xc2\x9b") == "\\x1b[31mred\\x07\\x0d\n\ttext\\xff\\x9b"
    cli.topic("Odd")
    cli.producer.send(Message("Odd", b"\x1b]0;title\x07\xff"))
    (line,) = cli("message", "print", "Odd", "--body")
    assert "\x1b" not in line
    assert "\\x1b]0;title\\x07\\xff" in line
    (found,) = cli("message", "print", "Odd", "--body", "--json")
    assert base64.b64decode(found["body_base64"]) == b"\x1b]0;title\x07\xff"


HANDLE = base64.urlsafe_b64encode(b"v1 Orders broker-a 1935403200000 0A0B").decode()


def test_a_recall_handle_says_where_to_ask():
    assert read_handle(HANDLE) == ("Orders", "broker-a", 1935403200000, "0A0B")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("get", "ABCDEF"), 1, "the cluster has no message with the id ABCDEF"),
        (("get", "ABCDEF", "-t", "TBW102"), 1, "topic TBW102 has no message"),
        (("get", "ABCDEF", "-t", "Nowhere"), 1, "topic Nowhere does not exist"),
        (("query", "-t", "M"), 2, "--key"),
        (("print", "M", "--sql", "a", "--tag", "b"), 2, "exclude"),
        (("print", "M", "--since", "lately"), 2, "no point in time"),
        (("recall", "nonsense"), 2, "not a recall handle"),
        (("recall", base64.urlsafe_b64encode(b"v2 a b 1 c").decode()), 2, "not a recall handle"),
        (("recall", HANDLE), 1, "no broker broker-a is registered"),
    ],
)
def test_what_cannot_be_says_why(cli, arguments, code, text):
    assert text in cli("message", *arguments, code=code)


def test_a_timeout_is_an_error_of_one_line():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        command = ["message", "print", "M", "--namesrv", address, "--timeout", "0.2"]
        begin = time.monotonic()
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert address in result.stderr
        assert time.monotonic() - begin < 5


def test_what_became_of_a_message(cli):
    topic = cli.topic("Traced")
    with Producer("PG", cli.namesrv, trace=True) as producer:
        sent = producer.send(Message(topic, b"x", tag="t", keys="k"))
        late = producer.send(Message(topic, b"late"), delay=60.0)
        producer.recall(topic, late.recall_handle)

    async def consume(answers):
        seen = asyncio.Event()

        async def handle(messages):
            result = answers.pop(0)
            if not answers:
                seen.set()
            return result

        consumer = PushConsumer("TG", cli.namesrv, handle, from_where="FIRST", trace=True)
        consumer.subscribe(topic)
        async with consumer:
            await asyncio.wait_for(seen.wait(), 30)

    asyncio.run(consume([RetryLater(1), ConsumeResult.SUCCESS]))
    records = cli("message", "trace", sent.message_id, "--json")
    assert sorted(record["kind"] for record in records) == [
        "Pub",
        "SubAfter",
        "SubAfter",
        "SubBefore",
        "SubBefore",
    ]
    (pub,) = [record for record in records if record["kind"] == "Pub"]
    assert (pub["topic"], pub["tags"], pub["keys"], pub["success"]) == (topic, "t", "k", True)
    assert "retries" not in pub
    heading, *lines = cli("message", "trace", sent.message_id)
    assert heading.split() == ["TIME", "WHAT", "GROUP", "CLIENT", "COST", "MS", "STATUS", "DELIVERY"]
    told = [line.split()[2:] for line in lines]
    assert [[what, group, status, delivery] for what, group, _, _, status, delivery in told] == [
        ["sent", "PG", "success", "-"],
        ["consumed", "TG", "failed", "1"],
        ["consumed", "TG", "success", "2"],
    ]
    told = cli("message", "trace", late.message_id)[1:]
    assert ["sent (delay)" in told[0], "recalled" in told[1]] == [True, True]
    assert "nothing about message NONE" in cli("message", "trace", "NONE", code=1)


def test_the_steps_of_a_trace_that_is_not_whole():
    host = pack_host("10.0.0.7", 1)
    message = ReceivedMessage(Record(0, 0, 0, 0, 0, 0, 0, 0, 1, host, 2, host, 0, 0, b"x", "T", ""))
    begun = Trace("SubBefore", "ID", 5, group="G", request_id="r1", retries=2)
    ended = Trace("SubAfter", "ID", 6, group="G", request_id="r2", cost=9, success=False, outcome=1)
    odd = Trace("SubAfter", "ID", 7, group="G", request_id="r3", success=False, outcome=77)
    transaction = Trace("EndTransaction", "ID", 8, group="PG", state="COMMIT_MESSAGE")
    pub = Trace("Pub", "ID", 4, group="PG", message_type=99, success=False, client_host="10.0.0.8")
    assert steps([(message, trace) for trace in (transaction, odd, ended, begun, pub)]) == [
        (4, "sent", "PG", "10.0.0.8", 0, "failed", None),
        (5, "consumed", "G", "10.0.0.7", None, "not finished", 3),
        (6, "consumed", "G", "10.0.0.7", 9, "time out", None),
        (7, "consumed", "G", "10.0.0.7", 0, "failed", None),
        (8, "transaction", "PG", "10.0.0.7", None, "commit_message", None),
    ]


def test_what_follows_a_send_within_a_millisecond_is_told_behind_it():
    host = pack_host("10.0.0.7", 1)
    message = ReceivedMessage(Record(0, 0, 0, 0, 0, 0, 0, 0, 1, host, 2, host, 0, 0, b"x", "T", ""))
    kinds = [Trace(kind, "ID", 4, group="G", success=True) for kind in ("Recall", "SubBefore", "SubAfter", "Pub")]
    assert [step.what for step in steps([(message, kind) for kind in kinds])] == ["sent", "recalled", "consumed"]
