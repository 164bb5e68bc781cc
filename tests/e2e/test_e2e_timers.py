"""Many timers in a real server that is killed in the middle: none lost, none early, none twice, and how late they are.

`ROCKETQ_TIMERS=1000000` makes it as many (takes minutes).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from servers import ServerProcess, start_server

from rocketq.client import AsyncProducer, Producer
from rocketq.message import Message
from rocketq.properties import decode_properties
from rocketq.record import decode_record
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import RequestCode
from rocketq.store import MessageStore, StoreConfig

TOPIC = "Timers"
COUNT = int(os.environ.get("ROCKETQ_TIMERS", "20000"))
#: Timers that come due in a second.
DUE = 5000
#: Timers that show how fast they are sent here.
TRIED = min(4000, COUNT)


def resident(server: ServerProcess) -> int:
    """MiB of memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024


def delivered(server: ServerProcess) -> int:
    client = BlockingClient()
    try:
        return sum(
            int(
                client.call(
                    server.broker, RequestCode.GET_MAX_OFFSET, {"topic": TOPIC, "queueId": str(queue)}
                ).ext["offset"]
            )
            for queue in range(4)
        )
    finally:
        client.close()


async def send(namesrv: str, topic: str, count: int, first_due: int) -> None:
    async with AsyncProducer("timers", namesrv) as producer:
        for start in range(0, count, 500):
            futures = []
            for number in range(start, min(count, start + 500)):
                message = Message(topic, b"%d" % number)
                # scattered: neighbours in the topic are not neighbours in time
                due = first_due + number * 7919 % COUNT * 1000 // DUE
                message.properties["TIMER_DELIVER_MS"] = str(due)
                futures.append(producer.send_nowait(message, timeout=30.0))
            await asyncio.gather(*futures)


def read_all(data: Path) -> list[tuple[int, int, int]]:
    """Number, time asked for and store time of all delivered messages."""
    store = MessageStore(StoreConfig(store_path_root_dir=str(data / "broker-0")))
    store.open()
    found = []
    try:
        for queue in range(4):
            for offset in range(store.max_offset(TOPIC, queue)):
                entry = store.consume_entry(TOPIC, queue, offset)
                assert entry is not None
                data_ = store.record_at(entry[0])
                assert data_ is not None
                record = decode_record(data_)
                if record.body != b"created":
                    due = int(decode_properties(record.properties)["TIMER_DELIVER_MS"])
                    found.append((int(record.body), due, record.store_timestamp))
    finally:
        store.close()
    return found


@pytest.mark.slow
@pytest.mark.timeout(120 + COUNT // 500)
def test_timers_survive_a_kill_and_come_once_and_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    server = start_server(data)
    try:
        with Producer("create", server.namesrv) as producer:
            producer.send(Message(TOPIC, b"created"))
        began = time.time()
        asyncio.run(send(server.namesrv, "Tried", TRIED, int(began + 3600) * 1000))
        tried = time.time() - began
        before = resident(server)
        began = time.time()
        first_due = int((began + 2 * tried * COUNT / TRIED + 4) * 1000)
        asyncio.run(send(server.namesrv, TOPIC, COUNT, first_due))
        took = time.time() - began
        assert time.time() * 1000 < first_due, "sending took so long that some are due already"
        with_all = resident(server)

        while delivered(server) < COUNT // 2:
            time.sleep(0.05)
            assert time.time() * 1000 < first_due + COUNT * 1000 / DUE + 60_000
        most = resident(server)
        server.kill()
        killed = int(time.time() * 1000)
        server = start_server(data)
        deadline = time.time() + 60 + COUNT / DUE
        while delivered(server) < COUNT + 1:
            time.sleep(0.05)
            assert time.time() < deadline, f"{delivered(server) - 1} of {COUNT} timers came"
        done = time.time()
        assert server.stop() == 0
    finally:
        server.kill()

    found = read_all(data)
    assert sorted(number for number, _, _ in found) == list(range(COUNT))
    late = sorted(at - due for _, due, at in found if due < killed - 1000)
    assert late[0] >= 0
    assert min(at - due for _, due, at in found) >= 0
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    caught_up = max(at for _, due, at in found if due < killed + 500) - killed
    with capsys.disabled():
        sys.stdout.write(
            f"\n{COUNT:,} timers: sent in {took:.1f} s ({COUNT / took:,.0f}/s), due {DUE:,}/s; late p50 {p50} ms, "
            f"p99 {p99} ms, max {late[-1]} ms; memory {before} MiB, {with_all} MiB with all waiting, {most} MiB while "
            f"they come; {caught_up} ms after the kill the overdue had come; all within {done - began:.1f} s\n"
        )
    assert p99 < 30_000  # about 5 ms on a machine with nothing else to do
    assert with_all - before < 100
