"""Workers as processes of their own against a real server."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_processes import WorkerProcess, alive
from servers import ServerProcess, free_port, start_server, wait_until

from rocketq import RocketQ
from rocketq.client.admin import Admin
from rocketq.client.browse import Browser
from rocketq.trace import decode

MakeWorker = Callable[..., WorkerProcess]


@pytest.fixture
def app(server: ServerProcess) -> Iterator[RocketQ]:
    app = RocketQ("tests", server.namesrv)
    yield app
    app.close()


def test_sync_and_async_functions_consume_and_the_banner_says_what(app: RocketQ, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
@app.consumer("both", "a")
def threads(body: str): write(f"threads {body} {threading.current_thread() is threading.main_thread()}")

@app.consumer("both", "a || b", concurrency=3)
async def loop(data: dict, message: ReceivedMessage): write(f"loop {data['n']} {message.tag}")
"""
    ).ready()
    app.send("both", {"n": 1}, tag="a")
    app.send("both", {"n": 2}, tag="b")
    app.send("both", {"n": 3}, tag="c")
    assert sorted(worker.wait_lines(3)) == ["loop 1 a", "loop 2 b", 'threads {"n":1} False']
    for text in ("-> threads", "-> loop", "tag a || b", "(20 threads)", "(3 coroutines)", app.namesrv):
        assert text in worker.output
    assert worker.stop() == 0
    assert len(worker.lines()) == 3


def test_a_function_takes_what_its_sql_matches(app: RocketQ, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
@app.consumer("priced", sql="amount >= 10 AND TAGS <> 'draft'")
def work(body: str): write(body)

@consumer("priced", sql="amount < 10")
def small(body: str): write("small " + body)
"""
    ).ready()
    for amount, tag in ((5, "a"), (10, "draft"), (10, "a"), (9, "b")):
        app.send("priced", f"{amount}{tag}", tag=tag, properties={"amount": str(amount)})
    assert sorted(worker.wait_lines(3)) == ["10a", "small 5a", "small 9b"]
    assert "sql amount >= 10 AND TAGS <> 'draft'" in worker.output
    assert worker.stop() == 0
    assert len(worker.lines()) == 3


def test_an_application_that_traces(server: ServerProcess, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
app.trace = True

@app.consumer("traced")
def work(body: str): write(body)
"""
    ).ready()
    app = RocketQ("tracing", server.namesrv, trace=True)
    sent = app.send("traced", "x")
    app.close()
    worker.wait_lines(1)
    assert worker.stop() == 0
    with Admin(server.namesrv, timeout=10) as admin:
        found = Browser(admin).by_key("RMQ_SYS_TRACE_TOPIC", sent.message_id)
    kinds = [trace.kind for message in found for trace in decode(message.body.decode())]
    assert sorted(kinds) == ["Pub", "SubAfter", "SubBefore"]


def test_with_json_one_line_says_what_is_consumed_from_where(app: RocketQ, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
@app.consumer("both", "a", ordered=True)
def work(body: str): write(body)
""",
        "--json",
    )
    wait_until(lambda: '"ready":"worker"' in worker.output, what="the worker's ready line")
    (said,) = [json.loads(line) for line in worker.output.splitlines() if line.startswith("{")]
    (consumer,) = said["consumers"]
    assert (said["namesrv"], said["pid"]) == (app.namesrv, worker.process.pid)
    assert (consumer["topic"], consumer["tag"], consumer["ordered"], consumer["async"]) == (
        "both",
        "a",
        True,
        False,
    )
    assert worker.stop() == 0


def test_a_function_that_raises_is_retried_and_then_dead_lettered(app: RocketQ, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
@app.consumer("failing", max_retries=2, retry_delays=[0.3, 0.1])
def fail(message: ReceivedMessage):
    write(f"attempt {message.reconsume_times} of {message.topic} {message.message_id}")
    raise ValueError("broken")

for name in ("failed", "retried", "dead_lettered"):
    def note(app, name=name, **values): write(name, "signals")
    getattr(signals, name).connect(note, weak=False)

@consumer("%DLQ%" + app.name + "-fail", from_where="FIRST", group=app.name + "-dead")
def dead(body: str, message: ReceivedMessage):
    why = message.properties
    assert "raise ValueError" in why["ROCKETQ_TRACEBACK"], why
    write(f"dead {body} {message.message_id} of {why['ROCKETQ_EXCEPTION']}", "dead")
"""
    ).ready()
    sent = app.send("failing", "x").message_id
    attempts = worker.wait_lines(3)
    assert attempts == [f"attempt {n} of failing {sent}" for n in range(3)]
    wait_until(lambda: len(worker.lines("signals")) == 6)
    assert worker.lines("signals") == ["failed", "retried", "failed", "retried", "failed", "dead_lettered"]
    assert worker.wait_lines(1, "dead") == [f"dead x {sent} of ValueError: broken"]
    assert worker.stop() == 0
    assert len(worker.lines()) == 3


def test_retry_and_reject_decide_about_their_message(app: RocketQ, make_worker: MakeWorker) -> None:
    worker = make_worker(
        """
@app.consumer("deciding")
async def decide(body: str, message: ReceivedMessage):
    write(f"{body} {message.reconsume_times}")
    if body == "reject": raise Reject("no")
    if body == "retry" and message.reconsume_times == 0: raise Retry("later", delay_level=1)

@signals.dead_lettered.connect
def dead(app, consumer, message): write(message.body, "dead")
"""
    ).ready()
    for body in ("reject", "retry", "fine"):
        app.send("deciding", body)
    assert sorted(worker.wait_lines(4)) == ["fine 0", "reject 0", "retry 0", "retry 1"]
    wait_until(lambda: worker.lines("dead") == ["b'reject'"])
    assert "Traceback" not in worker.output


def test_an_ordered_consumer_keeps_the_order_of_a_key_across_failures(
    app: RocketQ, make_worker: MakeWorker
) -> None:
    worker = make_worker(
        """
seen = set()

@app.consumer("ordering", ordered=True)
def order(data: dict):
    if data["n"] == 3 and data["key"] not in seen:
        seen.add(data["key"])
        raise Retry("once")
    write(f"{data['key']} {data['n']}")
"""
    ).ready()
    for n in range(6):
        for key in ("ada", "bob", "eve"):
            app.send("ordering", {"key": key, "n": n}, key=key)
    lines = worker.wait_lines(18)
    for key in ("ada", "bob", "eve"):
        assert [line for line in lines if line.startswith(key)] == [f"{key} {n}" for n in range(6)]


def test_every_process_gets_a_broadcast_and_groups_share_the_rest(app: RocketQ, make_worker: MakeWorker) -> None:
    app.send("news", "old")
    app.send("work", "old")
    worker = make_worker(
        """
@app.consumer("news", broadcast=True, from_where="LAST")
def news(body: str): write(f"{body} {os.getpid()}", "news")

@app.consumer("work", from_where="FIRST")
def work(body: str): write(f"{body} {os.getpid()}", "work")
""",
        "--processes",
        "2",
    ).ready(2)
    pids = worker.pids()
    assert len(set(pids)) == 2
    assert worker.process.pid not in pids

    # A process gets broadcasts once it has asked where the queues end, which is after its ready line.
    def both_hear() -> bool:
        app.send("news", "hello")
        return {line.split()[1] for line in worker.lines("news")} == {str(pid) for pid in pids}

    wait_until(both_hear, what="both processes hear the news")
    for n in range(100):
        app.send("work", f"{n}")
    wait_until(lambda: {line.split()[0] for line in worker.lines("work")} >= {str(n) for n in range(100)})
    heard = Counter(line for line in worker.lines("news") if line.startswith("hello"))
    assert worker.stop() == 0
    assert not any(alive(pid) for pid in pids)
    assert set(heard) == {f"hello {pid}" for pid in pids}


SLOW = """
@app.consumer("{topic}", concurrency=4)
{kind} slow(body: str):
    write("start " + body)
    {sleep}
    write("end " + body, "ends")
"""
SYNC = {"kind": "def", "sleep": "time.sleep({seconds})"}
ASYNC = {"kind": "async def", "sleep": "await asyncio.sleep({seconds})"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_signal_lets_what_is_in_flight_finish(
    app: RocketQ, make_worker: MakeWorker, kind: str, number: int
) -> None:
    topic = f"finish-{kind}-{number:d}"
    parts = SYNC if kind == "sync" else ASYNC
    source = SLOW.format(topic=topic, kind=parts["kind"], sleep=parts["sleep"].format(seconds=1))
    worker = make_worker(source).ready()
    app.send(topic, "x")
    worker.wait_lines(1)
    worker.signal(number)
    assert worker.exit_code() == 0
    assert worker.lines("ends") == ["end x"]
    again = make_worker(source).ready()  # the offset was stored: nothing comes again
    app.send(topic, "y")
    again.wait_lines(1, "out")
    wait_until(lambda: "start y" in again.lines())
    assert again.lines().count("start x") == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_work_that_outlasts_the_shutdown_timeout_is_delivered_again(
    app: RocketQ, make_worker: MakeWorker, kind: str
) -> None:
    topic = f"outlast-{kind}"
    parts = SYNC if kind == "sync" else ASYNC
    source = SLOW.format(
        topic=topic,
        kind=parts["kind"],
        sleep=parts["sleep"].format(seconds="600 * (len(open('out').readlines()) == 1)"),
    )
    worker = make_worker(source, "--shutdown-timeout", "0.5").ready()
    app.send(topic, "x")
    worker.wait_lines(1)
    assert worker.stop() == 3
    assert worker.lines("ends") == []
    again = make_worker(source).ready()
    assert again.wait_lines(1, "ends") == ["end x"]
    assert again.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_ends_at_once(app: RocketQ, make_worker: MakeWorker, processes: int) -> None:
    topic = f"twice-{processes}"
    source = SLOW.format(topic=topic, kind="def", sleep="time.sleep(600)")
    worker = make_worker(source, "--processes", str(processes)).ready(processes)
    app.send(topic, "x")
    worker.wait_lines(1)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.output)
    worker.signal(signal.SIGINT)
    assert worker.exit_code() == 130
    assert not any(alive(pid) for pid in worker.pids())


def test_unfinished_work_of_one_process_is_the_exit_code_of_all(app: RocketQ, make_worker: MakeWorker) -> None:
    source = SLOW.format(topic="outlast-one", kind="async def", sleep="await asyncio.sleep(600)")
    worker = make_worker(source, "--processes", "2", "--shutdown-timeout", "0.5").ready(2)
    app.send("outlast-one", "x")
    worker.wait_lines(1)
    assert worker.stop() == 3


def test_what_a_killed_worker_had_in_flight_is_delivered_again_long_before_its_lease_ends(
    app: RocketQ, make_worker: MakeWorker
) -> None:
    source = """
def take(name):
    write(name)
    if not os.path.exists("killed"): time.sleep(600)

@app.consumer("killed", lease=3600)
def work(body: str): take("default")

@app.consumer("killed", lease=3600, grace=0)
def hasty(body: str): take("at once")

@app.consumer("killed", lease=3600, grace=3600)
def patient(body: str): take("later")
"""
    worker = make_worker(source).ready()
    app.send("killed", "x")
    worker.wait_lines(3)
    (worker.folder / "killed").touch()
    worker.process.kill()
    again = make_worker(source).ready()
    assert sorted(again.wait_lines(5)) == ["at once", "at once", "default", "default", "later"]


def test_a_worker_process_that_dies_is_started_again_and_none_is_left_behind(
    app: RocketQ, make_worker: MakeWorker
) -> None:
    worker = make_worker(
        """
@app.consumer("dying")
def work(body: str): write(f"{body} {os.getpid()}")
""",
        "--processes",
        "2",
    ).ready(2)
    first = worker.pids()
    os.kill(first[0], signal.SIGKILL)
    worker.ready(3)
    app.send("dying", "x")
    worker.wait_lines(1)
    worker.process.kill()
    wait_until(lambda: not any(alive(pid) for pid in worker.pids()), what="the children end with their supervisor")


def test_reload_restarts_on_a_change_and_survives_a_broken_one(app: RocketQ, make_worker: MakeWorker) -> None:
    source = """
@app.consumer("reloading")
def work(body: str): write(f"VERSION {body}")
"""
    worker = make_worker(source.replace("VERSION", "one"), "--reload").ready()
    jobs = worker.folder / "jobs.py"
    app.send("reloading", "x")
    assert worker.wait_lines(1) == ["one x"]
    text = jobs.read_text()
    jobs.write_text(text + "\nsyntax error")
    wait_until(lambda: "waiting for a change" in worker.output, what="the complaint about the broken source")
    assert "SyntaxError" in worker.output
    jobs.write_text(text.replace("one {body}", "two {body}"))
    worker.ready(2)
    app.send("reloading", "y")
    assert worker.wait_lines(2) == ["one x", "two y"]
    assert worker.stop() == 0


def test_embedded_serves_its_worker_and_keeps_its_data_where_told(make_worker: MakeWorker, tmp_path: Path) -> None:
    source = """
@app.consumer("own", from_where="FIRST")
async def work(body: str): write(body)

@signals.worker_ready.connect
def send(app, worker):
    same = os.environ["ROCKETQ_NAMESRV"] == app.namesrv
    threading.Thread(target=app.send, args=("own", str(same))).start()
"""
    data = tmp_path / "data"
    worker = make_worker(source, "--embedded", "--data", str(data), namesrv=None).ready()
    assert worker.wait_lines(1) == ["True"]
    assert "created topic own" in worker.output
    assert worker.stop() == 0
    assert any(data.rglob("commitlog/*"))


def test_an_embedded_server_ends_with_a_worker_that_is_killed(make_worker: MakeWorker) -> None:
    worker = make_worker("@app.consumer('t')\ndef work(body: str): ...", "--embedded", namesrv=None).ready()
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    assert len(children) == 1
    worker.process.kill()
    wait_until(lambda: not alive(int(children[0])), what="the server ends")


def test_a_worker_waits_for_a_nameserver_that_is_not_there_yet(make_worker: MakeWorker, tmp_path: Path) -> None:
    port = free_port()
    worker = make_worker(
        "@app.consumer('early', from_where='FIRST')\ndef work(body: str): write(body)",
        namesrv=f"127.0.0.1:{port}",
    )
    wait_until(lambda: "waiting for" in worker.output, what="the complaint")
    with start_server(tmp_path, namesrv_port=port) as server:
        app = RocketQ("tests", server.namesrv)
        app.send("early", "x")
        app.close()
        assert worker.wait_lines(1, deadline=60) == ["x"]
        assert worker.stop() == 0


def test_a_worker_that_creates_its_topics_waits_for_a_broker(make_worker: MakeWorker, tmp_path: Path) -> None:
    with ServerProcess("namesrv", "--port", "0") as namesrv:
        worker = make_worker(
            '@app.consumer("early", from_where="FIRST")\ndef take(text: str): write(text)',
            "--create-topics",
            namesrv=namesrv.namesrv,
        )
        wait_until(lambda: "no broker is registered" in worker.output, what="the worker's complaint")
        broker = ("broker", "--data", tmp_path / "data", "--namesrv", namesrv.namesrv, "--port", "0")
        with ServerProcess(*broker):
            worker.ready()
            app = RocketQ("early-sender", namesrv.namesrv)
            app.send("early", "bird")
            assert worker.wait_lines(1) == ["bird"]
            app.close()
            worker.stop()


def test_a_worker_that_waits_for_its_nameserver_can_be_stopped(make_worker: MakeWorker) -> None:
    worker = make_worker("@app.consumer('t')\ndef work(body: str): ...", namesrv="127.0.0.1:1")
    wait_until(lambda: "waiting for" in worker.output, what="the complaint")
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        ("1 / 0", [], "ZeroDivisionError"),
        ("", [], "has no consumers"),
        ("@app.consumer('t')\ndef f(a: int, b: int): ...", [], "f(a, b)"),
        ("@app.consumer('t')\ndef f(m): ...", ["-g", "nobody"], "no consumer group nobody"),
        ("", ["-A", "jobs:nothing"], "no RocketQ application called 'nothing'"),
        ("", ["-A", "elsewhere"], "no module 'elsewhere'"),
        ("", ["--data", "x"], "--embedded"),
        ("1 / 0", ["--processes", "2"], "ZeroDivisionError"),
    ],
)
def test_what_cannot_work_ends_with_code_2_and_says_why(
    make_worker: MakeWorker, source: str, arguments: list[str], text: str
) -> None:
    worker = make_worker(source, *arguments)
    assert worker.exit_code() == 2
    assert text in worker.output


def test_signals_of_a_worker_come_in_order(app: RocketQ, make_worker: MakeWorker) -> None:
    app.send("living", "x")
    worker = make_worker(
        """
for name in ("rebalanced", "worker_ready", "received", "consumed", "worker_stopping"):
    def note(app, name=name, **values): write(name)
    getattr(signals, name).connect(note, weak=False)

@app.consumer("living", from_where="FIRST", mode="pull")
def work(body: str): write(body, "bodies")
"""
    ).ready()
    worker.wait_lines(1, "bodies")
    wait_until(lambda: "consumed" in worker.lines())
    assert worker.stop() == 0
    lines = worker.lines()
    assert lines.index("received") < lines.index("consumed") < lines.index("worker_stopping")
    assert {"rebalanced", "worker_ready"} <= set(lines)
    assert lines[-1] == "worker_stopping"
