"""Traces: Java's are read by our command, ours by Apache's mqadmin, on both brokers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from peer import Peer
from wire import Server, create_topic, wait_until

from rocketq import Message, Producer
from rocketq.cli.main import main

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

GetClient = Callable[[str], Peer]


def read_by_us(server: Server, message_id: str) -> list[dict[str, Any]]:
    command = ["message", "trace", message_id, "--json", "--namesrv", server.namesrv]
    result = CliRunner().invoke(main, command, prog_name="rocketq")
    return json.loads(result.stdout) if result.exit_code == 0 else []


def read_by_mqadmin(server: Server, mqadmin: Peer, message_id: str) -> str:
    arguments = ["queryMsgTraceById", "-n", server.namesrv, "-i", message_id]
    printed: str = mqadmin.ask("mqadmin", namesrv=server.namesrv, arguments=arguments)
    return printed


@pytest.mark.parametrize("make", ["java-4.9.8", "java-5.4.0"])
def test_we_read_what_javas_clients_wrote(server: Server, client: GetClient, name: str, make: str) -> None:
    create_topic(server, name)
    java = client(make)
    sent = java.ask("Traces.send", namesrv=server.namesrv, topic=name, text="hello")
    consumer = java.consume(server, name, f"G_{name}", verb="Traces.consume")
    consumer.wait(1)
    consumer.stop()
    found = wait_until(
        lambda: len(read := read_by_us(server, sent["message_id"])) >= 3 and read, "three records", 60, 0.5
    )
    by_kind = {record["kind"]: record for record in found}
    pub, before, after = (by_kind[kind] for kind in ("Pub", "SubBefore", "SubAfter"))
    assert (pub["topic"], pub["tags"], pub["keys"]) == (name, "tagged", "k1 k2")
    assert (pub["group"], pub["body_length"], pub["success"]) == ("tracing_producers", 5, True)
    assert (pub["broker"], pub["offset_message_id"]) == (server.broker, sent["offset_message_id"])
    assert (before["group"], before["retries"]) == (f"G_{name}", 0)
    assert (after["group"], after["success"], after["outcome"]) == (f"G_{name}", True, 0)
    assert before["request_id"] == after["request_id"]


def test_mqadmin_reads_what_our_clients_wrote(server: Server, client: GetClient, name: str) -> None:
    create_topic(server, name)
    mqadmin = client("mqadmin")
    with Producer(f"PG_{name}", server.namesrv, trace=True) as producer:
        sent = producer.send(Message(name, b"hello", tag="t"))
        keyed = producer.send(Message(name, b"hello", keys="k"))
    consumer = client("rocketq").consume(server, name, f"G_{name}", trace=True)
    consumer.wait(2)
    consumer.stop()
    pattern = rf"Pub +PG_{name} .* success\s[\s\S]*Sub +G_{name} .* success\s"
    for message_id in (sent.message_id, keyed.message_id):
        wait_until(
            lambda one=message_id: re.search(pattern, read_by_mqadmin(server, mqadmin, one)), "both lines", 60, 1
        )
