"""What strangers may send to a broker that asks nobody who they are: nothing leaves its directory, nothing ends it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from broker_wire import running

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
