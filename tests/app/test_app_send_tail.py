"""`rocketq send` and `rocketq tail` as commands against a real server."""

from __future__ import annotations

import base64
import json
import select
import subprocess
import sys
import time
from datetime import datetime
from typing import Any

import pytest
from servers import ServerProcess, wait_until

from rocketq import RocketQ


def rocketq(server: ServerProcess, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
    command = [sys.executable, "-m", "rocketq", *arguments, "--namesrv", server.namesrv]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=30)
    assert done.returncode == code, done.stderr.decode()
    return (done.stdout if code == 0 else done.stderr).decode()


def tail_all(server: ServerProcess, topic: str, *arguments: str) -> list[Any]:
    output = rocketq(server, "tail", topic, "--from", "first", "--no-follow", "--json", *arguments)
    return [json.loads(line) for line in output.splitlines()]


def test_what_was_sent_is_what_tail_shows(server: ServerProcess) -> None:
    sent = json.loads(
        rocketq(server, "send", "cli-all", "grüß dich", "--tag", "T", "--key", "k", "--keys", "other",
                "--property", "a=b=c", "--json")
    )  # fmt: skip
    (seen,) = tail_all(server, "cli-all")
    for name in ("topic", "broker", "queue_id", "queue_offset", "message_id", "offset_message_id"):
        assert seen[name] == sent[name]
    assert (sent["status"], seen["body"], seen["tag"], seen["keys"]) == (
        "SEND_OK",
        "grüß dich",
        "T",
        ["k", "other"],
    )
    assert seen["properties"]["a"] == "b=c"
    line = rocketq(server, "tail", "cli-all", "--from", "first", "--count", "1")
    assert "tag=T  keys=k,other  grüß dich" in line


def test_a_body_from_standard_input_may_be_any_bytes(server: ServerProcess) -> None:
    body = bytes(range(256))
    assert rocketq(server, "send", "cli-raw", "-", stdin=body).startswith("SEND_OK")
    (seen,) = tail_all(server, "cli-raw")
    assert base64.b64decode(seen["body_base64"]) == body
    assert "\\xff" in rocketq(server, "tail", "cli-raw", "--from", "first", "--no-follow")


def test_tail_filters_by_tag_and_by_time_and_stops_at_the_end(server: ServerProcess) -> None:
    app = RocketQ("tests", server.namesrv)
    for n in range(40):
        app.send("cli-many", str(n), tag="even" if n % 2 == 0 else "odd")
    bodies = [int(seen["body"]) for seen in tail_all(server, "cli-many", "--tag", "even || none")]
    assert sorted(bodies) == list(range(0, 40, 2))
    assert tail_all(server, "cli-many", "--tag", "none") == []
    assert len(tail_all(server, "cli-many", "--sql", "TAGS = 'odd'")) == 20
    assert len(tail_all(server, "cli-many", "--count", "7")) == 7
    time.sleep(0.01)
    border = datetime.now()
    app.send("cli-many", "late")
    app.close()
    for start in (border.isoformat(), str(int(border.timestamp() * 1000))):
        output = rocketq(server, "tail", "cli-many", "--from", start, "--no-follow", "--json")
        assert [json.loads(line)["body"] for line in output.splitlines()] == ["late"]


def test_tail_waits_for_a_topic_and_shows_what_arrives(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "rocketq", "tail", "cli-new", "--namesrv", server.namesrv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "does not exist yet" in process.stderr.readline()
        app = RocketQ("tests", server.namesrv)
        lines: list[str] = []

        def shown() -> bool:
            # It shows what arrives after it found the queues, which nobody outside can see: send until it does.
            app.send("cli-new", "hello")
            assert process.stdout is not None
            if select.select([process.stdout], [], [], 0.2)[0]:
                lines.append(process.stdout.readline())
            return bool(lines)

        wait_until(shown, what="a message is shown")
        app.close()
        assert lines[0].rstrip().endswith("hello")
        process.terminate()


def test_a_delayed_message_comes_later(server: ServerProcess) -> None:
    rocketq(server, "send", "cli-delay", "now")
    before = time.time()
    rocketq(server, "send", "cli-delay", "later", "--delay-level", "1")  # 1 s on this server
    wait_until(lambda: len(tail_all(server, "cli-delay")) == 2)
    later = next(seen for seen in tail_all(server, "cli-delay") if seen["body"] == "later")
    assert later["store_timestamp"] >= before * 1000 + 990


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["send", "t", ""], 1, "empty"),
        (["send", "bad topic", "x"], 1, "illegal characters"),
        (["send", "t", "x", "--property", "nothing"], 2, "name=value"),
        (["send", "t", "x", "--property", "KEYS=1"], 1, "reserved"),
        (["send", "t", "x", "--delay-level", "19"], 2, "19"),
        (["tail", "t", "--from", "someday"], 2, "someday"),
        (["tail", "not-there", "--no-follow"], 1, "not-there"),
        (["tail", "t", "--tag", "||"], 1, "tag expression"),
        (["tail", "t", "--sql", "a >"], 1, "position 4"),
        (["tail", "t", "--sql", "a > 3", "--tag", "x"], 2, "exclude each other"),
    ],
)
def test_what_cannot_work_says_why(server: ServerProcess, arguments: list[str], code: int, text: str) -> None:
    RocketQ("tests", server.namesrv).send("t", "so that it exists")
    error = rocketq(server, *arguments, code=code)
    assert text in error
    assert "Traceback" not in error


def test_a_nameserver_that_does_not_answer_is_an_error_not_a_traceback() -> None:
    for arguments in (["send", "t", "x"], ["tail", "t"]):
        command = [sys.executable, "-m", "rocketq", *arguments, "--namesrv", "127.0.0.1:1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "127.0.0.1:1" in done.stderr
        assert "Traceback" not in done.stderr
