"""The recorded transactions of Apache 5.4.0, request by request against our broker, and its questions beside ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from broker_replay import Replay, lines
from broker_wire import running

from rocketq.remoting.command import Command

RECORDED_AT = 1_795_420_238_450
TWICE = "on purpose: Apache stores the message a second time"
AFTER = "on purpose: Apache commits what was rolled back"
NOT_STORED_ANEW = "on purpose: a question leaves the half message where it is; the message is compared below"
OPS = "Apache waits up to 3 s and writes one op for several ends"
SKIPPED = {
    "end_unknown_type": "is not answered",
    "end_commit_after_rollback": AFTER,
    "stored_op_topic": OPS,
    "stored_op_topic_after_checks": OPS,
    "stored_real_topic": TWICE,
    "stored_real_topic_after_checks": TWICE,
    "stored_half_topic_after_checks": NOT_STORED_ANEW,
}
#: What is told in other words: too late to end it without a question.
ONLY_CODE = frozenset({"end_immunity_expired", "end_immunity_expired_rollback"})


def test_transactions_are_those_of_apache(tmp_path: Path) -> None:
    clock = [RECORDED_AT]
    recorded = {line["name"]: line for line in lines("transaction")}

    async def main() -> Replay:
        settings: dict[str, Any] = {"transaction_check_interval": 3_600_000, "clock_ms": lambda: clock[0]}
        async with running(tmp_path, **settings) as (broker, _):
            replay = Replay(broker)
            main = await replay.wire("main")
            asked: dict[tuple[str, str], Command] = {}

            def question(unique_id: str, times: str) -> Command | None:
                for request in main.requests:
                    asked[request.ext["msgId"], times_of(request)] = request
                return asked.get((unique_id, times))

            async def asks(unique_id: str, times: str) -> Command:
                """Rounds of questions until this one is among them; none runs by itself."""
                for _ in range(20):
                    if (found := question(unique_id, times)) is not None:
                        return found
                    await broker.check_back.round()
                    await main.call(106, {})  # what was asked has arrived before this answer
                raise AssertionError(f"{unique_id} was not asked about for the {times}. time")

            async def later(to: int) -> None:
                clock[0] = RECORDED_AT + to

            async def asked_about_wrong() -> None:
                clock[0] = RECORDED_AT + 24_000
                found = await asks("7F00000100000000TXwrong", "1")
                theirs = json.loads(recorded["end_commit_from_check"]["request_header"])["extFields"]
                replay.places[int(theirs["commitLogOffset"])] = int(found.ext["commitLogOffset"])
                replay.halves[theirs["tranStateTableOffset"]] = found.ext["tranStateTableOffset"]

            await replay.run(
                "transaction",
                SKIPPED,
                before={
                    "end_immunity_expired_rollback": lambda: later(5_900 + 110),
                    "half_immun2": lambda: later(7_046),
                    "end_immunity_expired": lambda: later(14_000),
                    "end_commit_from_check": asked_about_wrong,
                },
                only_code=ONLY_CODE,
            )
            unknown = main.send(37, json.loads(recorded["end_unknown_type"]["request_header"])["extFields"])
            for name, line in recorded.items():
                if "from" in line:
                    theirs = json.loads(line["request_header"])
                    times = line["records"][0]["properties"]["TRANSACTION_CHECK_TIMES"]
                    key = (theirs["extFields"]["msgId"], times)
                    ours = await asks(*key)
                    assert ours.ext.keys() == theirs["extFields"].keys()
                    for field in ("bname", "topic", "msgId", "transactionId"):
                        assert ours.ext[field] == theirs["extFields"][field]
                    assert (ours.code, ours.flag) == (theirs["code"], theirs["flag"])
                    replay.compare_records(f"transaction:{name}", line["records"], ours, False)
            assert unknown not in main.answers
            stored = await main.pull("TopicTx", queue=1)
            theirs = recorded["stored_real_topic_after_checks"]["records"]
            once = {record["body"]: record for record in theirs if record["body"] != "body-rollback"}
            replay.compare_records("transaction:stored", list(once.values()), stored, False)
            replay.compared += len(once)
            await replay.close()
            return replay

    replay = asyncio.run(main())
    assert replay.problems == []
    assert replay.compared > 20


def times_of(request: Command) -> str:
    """TRANSACTION_CHECK_TIMES of the message that a question is about."""
    _, _, rest = bytes(request.body).partition(b"TRANSACTION_CHECK_TIMES\x01")
    return rest.partition(b"\x02")[0].decode()
