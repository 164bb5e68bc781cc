"""What strangers may send to a broker that asks nobody who they are: nothing leaves its directory, nothing ends it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from broker_wire import Wire, running

NAMES = [
    "../../escaped",
    "..",
    ".",
    "/tmp/rocketq-escaped",
    "a/b",
    "a\x00b",
    "a\nb",
    "%RETRY%../../escaped",
    "x" * 5000,
]
#: Every field that gives a name to a topic, a group, a file or a client.
FIELDS = """topic b a group groupName consumerGroup producerGroup clientID clientId subscription originTopic filterStr
    defaultTopic srcGroup destGroup configPath brokerName topics""".split()
#: And what else the requests cannot do without.
REST = dict(
    field.split("=")
    for field in """queueId=0 e=0 d=4 f=0 g=1 h=0 j=0 c=TBW102 i= k=false readQueueNums=1 writeQueueNums=1 perm=6
    topicFilterType=SINGLE_TAG topicSysFlag=0 order=false offset=0 delayLevel=1 commitOffset=5 queueOffset=0
    maxMsgNums=1 sysFlag=4 suspendTimeoutMillis=0 subVersion=0 bornTimestamp=1 flag=0 defaultTopicQueueNums=4
    properties= invisibleTime=1000 pollTime=0 bornTime=0 initMode=0 timestamp=0 isForce=true""".split()
)


def body(name: str) -> bytes:
    subscription = {"topic": name, "subString": "*"}
    queue = {"topic": name, "brokerName": "broker-a", "queueId": 0}
    config = {"topicName": name, "readQueueNums": 1, "writeQueueNums": 1, "perm": 6}
    return json.dumps(
        {
            "clientID": name,
            "clientId": name,
            "consumerGroup": name,
            "groupName": name,
            "topic": name,
            "mqSet": [queue],
            "consumerDataSet": [{"groupName": name, "subscriptionDataSet": [subscription]}],
            "producerDataSet": [{"groupName": name}],
            "topicConfigList": [config],
            "groupConfigList": [{"groupName": name}],
            "acks": [{"c": name, "t": name}],
        }
    ).encode()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:24])
def test_names_of_strangers_make_no_files_elsewhere(tmp_path: Path, name: str) -> None:
    """One request of every code, with the name wherever one fits."""
    root = tmp_path / "one" / "two" / "store"
    root.mkdir(parents=True)

    async def main() -> None:
        async with running(root) as (broker, wire):
            for code in sorted(broker.handlers):
                ext = REST | dict.fromkeys(FIELDS, name)
                for text in (b"x", body(name)):
                    wire.send(code, ext, text)
            assert (await wire.store("still_there", timeout=60)).code == 0
            assert not wire.closed

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["two"]
    assert [path.name for path in (tmp_path / "one" / "two").iterdir()] == ["store"]
    assert not Path("/tmp/rocketq-escaped").exists()
    for queue in (root / "consumequeue").iterdir():
        assert all(part not in queue.name for part in ("/", "..", "\n", "xxxxxxxxxx")), queue


@pytest.mark.parametrize("number", ["2147483647", "16385", "-1"])
def test_topics_cannot_have_more_queues_than_can_be_looked_at(tmp_path: Path, number: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            topics = json.dumps({"topicConfigList": [{"topicName": "T", "readQueueNums": int(number)}]}).encode()
            group = json.dumps({"groupName": "G", "retryQueueNums": int(number)}).encode()
            answers = [
                await wire.call(17, REST | {"topic": "T", "readQueueNums": number, "defaultTopic": "TBW102"}),
                await wire.call(17, REST | {"topic": "T", "writeQueueNums": number, "defaultTopic": "TBW102"}),
                await wire.call(18, {}, topics),
                await wire.call(200, {}, group),
            ]
            for answer in answers:
                assert answer.code == 29, answer.remark
                assert f"{number} queues: it can have 0 to 16384" in answer.remark
            assert "T" not in broker.topics.table

    asyncio.run(main())


def test_pulls_beyond_what_is_held_are_refused_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rocketq.broker.hold.MOST_OF_ONE", 3)

    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            await wire.store("T")
            held = [wire.pull_request("T", 1, suspend=60_000) for _ in range(3)]
            refused = await wire.pull("T", 1, suspend=60_000)
            assert refused.code == 2
            assert "too many pulls" in refused.remark
            other = await Wire.connect(broker.port)
            waiting = other.pull_request("T", 1, suspend=60_000)
            await wire.until(lambda: broker.hold.count == 4, what="the other connection's pull is held")
            await wire.store("T")
            assert (await other.answer(waiting)).code == 0
            assert [(await wire.answer(opaque)).code for opaque in held] == [0, 0, 0]
            await other.close()

    asyncio.run(main())


def test_nobody_else_writes_down_what_pop_consumers_hold(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            answer = await wire.store("rmq_sys_REVIVE_LOG_DefaultCluster", b"{}", properties={"TAGS": "ck"})
            assert answer.code == 16
            assert "is forbidden" in answer.remark

    asyncio.run(main())


def test_no_pull_waits_for_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocketq.broker.pull.LONGEST_HOLD", 200)

    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            await wire.store("T")
            answer = await wire.answer(wire.pull_request("T", 1, suspend=1 << 62), timeout=60)
            assert answer.code == 19

    asyncio.run(main())
