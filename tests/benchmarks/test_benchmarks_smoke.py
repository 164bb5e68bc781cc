"""The load generator against our server: what it counts is right. How fast it was is not a test's business."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ServerProcess, start_server

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import loadgen

pytestmark = pytest.mark.skipif(loadgen.compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(tmp_path_factory.mktemp("data")) as process:
        yield process


def port_of(server: ServerProcess) -> int:
    return int(server.broker.rpartition(":")[2])


@pytest.mark.parametrize("header", ["json", "binary"])
def test_every_single_send_is_answered_and_can_be_pulled(server: ServerProcess, header: str) -> None:
    topic = f"Single-{header}"
    sent = loadgen.load(
        "send", port_of(server), topic=topic, header=header, count=999, connections=3, in_flight=16, size=300
    )
    assert (sent["messages"], sent["errors"]) == (999, 0)
    pulled = loadgen.load("pull", port_of(server), topic=topic, header=header, size=300, connections=2)
    assert pulled["messages"] == 999
    assert pulled["bytes"] == 999 * 300


def test_every_message_of_a_batch_can_be_pulled(server: ServerProcess) -> None:
    sent = loadgen.load("send", port_of(server), topic="Batches", count=640, batch=32, in_flight=4, connections=2)
    assert (sent["messages"], sent["errors"]) == (640, 0)
    assert loadgen.load("pull", port_of(server), topic="Batches")["messages"] == 640


def test_sends_over_many_topics_are_all_stored(server: ServerProcess) -> None:
    sent = loadgen.load("send", port_of(server), topic="Many", topics=50, queues=2, count=500, in_flight=20)
    assert (sent["messages"], sent["errors"]) == (500, 0)
    for topic in ("Many_000000", "Many_000049"):
        assert loadgen.load("pull", port_of(server), topic=topic, queues=2)["messages"] == 10


def test_a_long_polling_consumer_receives_all_that_a_paced_sender_sends(server: ServerProcess) -> None:
    result = loadgen.load("e2e", port_of(server), topic="Paced", rate=500, seconds=1, queues=3)
    assert (result["messages"], result["errors"]) == (500, 0)
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["max_us"]


def test_the_table_shows_medians_ratios_and_what_was_missed() -> None:
    import report
    from measures import Scenario, Target

    scenario = Scenario("s", "sends", lambda server, scale: {}, targets=[Target("msg/s", ratio=1.5)])
    rounds = {
        "rocketq": [{"msg/s": 3000.0}, {"msg/s": 1000.0}, {"msg/s": 2000.0, "refused": 1.0}],
        "apache": [{"msg/s": 1000.0}, {"msg/s": 1000.0}, {"msg/s": 1000.0}],
    }
    rows = report.table([(scenario, rounds)]).splitlines()
    assert rows[0] == "| scenario | figure | rocketq | apache | rocketq / apache | target |"
    assert rows[2].startswith("| sends | msg/s | 2,000 (1,000–3,000) | 1,000 (1,000–1,000) | 2 (1–3) |")
    assert rows[2].endswith("| msg/s ratio ≥ 1.5: met |")
    assert rows[3] == "|  | refused | 1 | – | – |  |"
    rounds["rocketq"][0]["msg/s"] = 1000.0
    assert "**missed**" in report.table([(scenario, rounds)])
