"""The small examples, as their docstrings say to run them, and the README's code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ServerProcess, start_server, wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running
        running.stop()


def run_example(name: str, server: ServerProcess, *arguments: str) -> str:
    environment = {**os.environ, "ROCKETQ_NAMESRV": server.namesrv}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_producer_example_sends_every_way(server: ServerProcess) -> None:
    assert len(re.findall("SEND_OK", run_example("producer.py", server))) == 6


def test_the_transactions_example_tells_of_what_was_saved(server: ServerProcess, tmp_path: Path) -> None:
    said = run_example("transactions.py", server, str(tmp_path / "orders.sqlite"))
    assert said.count("saved, and everybody knows") == 2
    assert "order 1 of eve: UNIQUE constraint failed: orders.number, and nobody heard of it" in said
    command = [sys.executable, "-m", "rocketq", "topic", "status", "placed", "--namesrv", server.namesrv]
    status = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "\n2 messages in " in status


@pytest.mark.parametrize(
    ("name", "expected", "count"),
    [
        ("ordered.py", r"(ada|bob|eve) #5: \+50 = 150", 3),
        ("broadcast.py", r"forgot apple, still knows \['pear'\]", 1),
        ("asynchronous.py", r"done: (\d|late)\.png", 11),
        ("periodic.py", r"tick of [\d:]{8} in process \d+", 2),
    ],
)
def test_an_example_works_with_its_worker(
    server: ServerProcess, tmp_path: Path, name: str, expected: str, count: int
) -> None:
    run_example(name, server)  # makes the topic
    log = tmp_path / "log"
    command = [sys.executable, "-m", "rocketq", "worker", "-A", str(EXAMPLES / name), "--namesrv", server.namesrv]
    with log.open("wb") as out:
        worker = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        wait_until(lambda: "rocketq worker ready" in log.read_text(), 60, "ready")

        def done() -> bool:
            if name == "broadcast.py":  # a worker hears what comes after it has asked where the queues end
                run_example(name, server)
            return len(set(re.findall(f".*{expected}", log.read_text()))) >= count

        wait_until(done, 60, expected)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


def blocks(heading: str, language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_the_readme_gives_one_command_of_one_line(heading: str) -> None:
    command = blocks(heading, "")[0]
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_the_readme_application_sends_and_registers(server: ServerProcess) -> None:
    (source,) = blocks("Write an application", "python")
    source = source.replace("127.0.0.1:9876", server.namesrv)
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source, "shop.py", "exec", dont_inherit=True), namespace)
    app = namespace["app"]
    assert [consumer.group for consumer in app.consumers] == ["shop-ship"]  # type: ignore[attr-defined]
    app.close()  # type: ignore[attr-defined]
