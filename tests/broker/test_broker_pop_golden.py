"""The recorded POP session of Apache 5.4.0 against our broker; its clock is set forward where Apache's had to wait."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_replay import Replay, lines
from broker_wire import Wire, running
from pop_kit import create
from test_broker_golden import RECORDED_SETTINGS

from rocketq.broker.server import Broker

OWN_LOG = "Apache keeps these records in its timer, and we do not"
SKIPPED = {
    "stored_timer_topic": OWN_LOG,
    "stored_revive_topic_3": OWN_LOG,
    "stored_revive_topic_4": OWN_LOG,
    "stored_revive_topic_6": OWN_LOG,
    "all_consumer_offsets": "of other files of the recording too",
    "polling_info_one_waiting": "on another connection while the next request waits",
    "consumer_offset_right_after_pop": "Apache notes the offset of the last pop with the next one",
    "pop_missing_fields": "on purpose: Apache answers with a NullPointerException",
}
#: Ours say why.
ONLY_CODE = frozenset({"pop_bad_sql", "change_invisible_time_out_of_range"})


class PopReplay(Replay):
    """Receipts name times and revive queues of their own in every run."""

    def __init__(self, broker: Broker, clock_ms: Callable[[], int]) -> None:
        super().__init__(broker)
        self.clock_ms = clock_ms

    def request(self, line: dict[str, Any]) -> bytes:
        header = json.loads(line["request_header"])
        ext = header.get("extFields") or {}
        if "bornTime" in ext:
            # a pop that was long on its way is not served: of the others the broker is not told
            ext["bornTime"] = str(self.clock_ms() - 3000) if line["name"] == "pop_born_too_old" else "0"
        if len(receipt := ext.get("extraInfo", "").split(" ")) == 8:
            receipt[1] = str(self.times.get(int(receipt[1]), 1))
            receipt[3] = receipt[3] if receipt[3] == "999" else "0"
            ext["extraInfo"] = " ".join(receipt)
        line = line | {"request_header": json.dumps(header)}
        if line["name"] == "batch_ack":
            body = json.loads(line["request_body"])
            for ack in body["acks"]:
                ack["pt"], ack["rq"] = self.times[ack["pt"]], 0
            line["request_body"] = json.dumps(body)
        return super().request(line)

    def note_places(self, expected: dict[str, Any], answer: Any) -> None:
        super().note_places(expected, answer)
        theirs = (expected.get("extFields") or {}).get("popTime")
        if theirs and "popTime" in answer.ext:
            self.times[int(theirs)] = int(answer.ext["popTime"])


def test_answers_are_those_of_apache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "randrange", lambda stop: stop - 1)  # as Apache's chance had it
    monkeypatch.setattr(random, "random", lambda: 0.5)
    ahead = 0

    def clock_ms() -> int:
        return time.time_ns() // 1_000_000 + ahead

    async def script(replay: PopReplay, broker: Broker, wire: Wire) -> None:
        await create(wire, "TopicPop", 2)
        background: list[asyncio.Task[None]] = []

        async def wake() -> None:
            async def later() -> None:
                await wire.until(lambda: broker.pop_wait.count == 1, what="the pop waits")
                await wire.store("TopicPop", b"wake", queue=1)

            background.append(asyncio.create_task(later()))

        async def leases_end() -> None:
            nonlocal ahead
            ahead = 16_000
            await wire.until(lambda: broker.store.max_offset("%RETRY%GP_TopicPop", 0) == 2, what="the revival")

        async def send_in_order() -> None:
            nonlocal ahead
            ahead = 0
            await create(wire, "TopicPopFifo", 1)
            for number in range(5):
                properties = {"__SHARDINGKEY": "s", "TAGS": f"t{number}"}
                await wire.store("TopicPopFifo", b"o%d" % number, properties=properties)

        async def send_priorities() -> None:
            await create(wire, "TopicPopPrio", 4, message_type="PRIORITY")
            for number in (0, 1, 3, 2, 0, 3):
                properties = {"_SYS_MSG_PRIORITY_": str(number)}
                await wire.store("TopicPopPrio", b"p%d" % number, properties=properties)

        before: dict[str, Callable[[], Any]] = {
            "pop_long_poll_woken": wake,
            "stored_pop_retry_topic": leases_end,
            "order_pop": send_in_order,
            "pop_priority_topic": send_priorities,
        }
        await replay.run("pop", SKIPPED, before=before, only_code=ONLY_CODE)
        await asyncio.gather(*background)

    async def main() -> list[str]:
        settings = RECORDED_SETTINGS | {"enable_property_filter": True}
        async with running(tmp_path, clock_ms=clock_ms, **settings) as (broker, wire):
            replay = PopReplay(broker, clock_ms)
            await script(replay, broker, wire)
            await replay.close()
            assert replay.compared > len(lines("pop")) - len(SKIPPED) - 10
            return replay.problems

    problems = asyncio.run(main())
    assert not problems, "\n".join(problems)
