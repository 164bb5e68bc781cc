"""The recorded session of Apache 5.4.0, request by request against our broker (see tests/golden)."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from broker_replay import Replay, lines
from broker_wire import Wire, running

from rocketq import javajson
from rocketq.broker.server import Broker
from rocketq.config import NamesrvConfig
from rocketq.namesrv.handlers import Requests
from rocketq.namesrv.kv import KVConfig
from rocketq.namesrv.table import RouteTable
from rocketq.remoting.command import encode_response
from rocketq.store.files import OsFiles

OVER = "the request names a time, and that is over by now"
SQL_TOLD = "on purpose: what is wrong with an expression is told, and in our words"
HA = "replication is a later capability"
BETTER = "on purpose: Apache answers with a NullPointerException"
VALIDATED = "on purpose: Apache makes a half message of any message"
STATE = "the answer shows messages that were sent outside of the recording"
OURS = "about Apache's own machinery, which this broker does not have"

SEND_SKIPPED = {
    "stored_TopicSend_0": STATE,
    "empty_body": BETTER,
}
CLIENT_SKIPPED = {
    "check_client_config_sql_bad": SQL_TOLD,
    "pop_unknown_group_no_auto_create": OVER,
}
PULL_SKIPPED = {
    "with_subscription_bad_sql": SQL_TOLD,
    "with_subscription_unknown_type": SQL_TOLD,
    "long_poll_suspend_5500": "takes its time, and the shorter ones show the same",
}
LIGHT = "light queues (LMQ) are no capability of this broker"
BATCH_CQ = "topics of type BatchCQ are no capability of this broker: a batch is as many messages as it has"
LMQ_SKIPPED = {
    "pull_lmq_a": LIGHT,
    "pull_lmq_b": LIGHT,
    "max_offset_lmq_b": LIGHT,
    "pull_lmq_unknown": LIGHT,
    "pull_batch_cq_topic_mid": BATCH_CQ,
    "pull_long_pop_retry_topic": STATE,
}
#: Requests of the recorded commands of mqadmin that no capability here serves.
MQADMIN_UNSERVED = {
    "getColdDataFlowCtrInfo": ({2003}, OURS),
    "switchTimerEngine": ({5001}, OURS),
    "checkRocksdbCqWriteProgress": ({354}, OURS),
    "listUser": ({3005}, "accounts stand in plain_acl.yml"),
    "listAcl": ({3010}, "accounts stand in plain_acl.yml"),
    "resetMasterFlushOffset": ({908}, HA),
}
ADMIN_SKIPPED = {
    "all_delay_offset": HA,
    "exchange_ha_info": HA,
    "epoch_cache_not_controller": HA,
    "cold_data_flow": OURS,
    "switch_timer_engine_no_param": OURS,
    "switch_timer_engine_rocksdb": OURS,
    "switch_timer_engine_file": OURS,
    "list_user": "on purpose: accounts stand in plain_acl.yml",
    "rocksdb_cq_progress": OURS,
    "resume_check_half_of_ordinary_message": VALIDATED,
}


async def setup_topic_pull(replay: Replay, wire: Wire) -> None:
    """The messages of TopicPull were sent outside of the recording; the first pull shows them."""
    found = next(line for line in lines("pull") if line["name"] == "unregistered_with_subscription")
    times = []
    for record in found["records"]:
        properties = {k: v for k, v in record["properties"].items() if k in ("TAGS", "KEYS", "WAIT")}
        answer = await wire.store("TopicPull", record["body"].encode(), properties=properties)
        replay.ids[record["properties"]["UNIQ_KEY"]] = answer.ext["transactionId"]
        await asyncio.sleep(0.003)  # the recording asks for times between two messages
    await wire.store("TopicPull", b"q1", queue=1, properties={"TAGS": "TagC", "u": "v"})
    for offset, record in enumerate(found["records"]):
        here = replay.broker.store.consume_entry("TopicPull", 0, offset)
        assert here is not None
        replay.places[record["physicalOffset"]] = here[0]
        times.append(replay.broker.store.store_time("TopicPull", 0, offset))
        replay.times[record["storeTimestamp"]] = times[-1]
    assert times == sorted(set(times)), "the messages need times of their own"
    replay.times[found["records"][-1]["storeTimestamp"] + 1000] = times[-1] + 1000


async def delayed_as_in_send(wire: Wire) -> None:
    """The schedule topic holds three messages of send.jsonl when the later files are recorded."""
    for topic in ("TopicSend", "TopicSend", "TopicPrio"):
        await wire.store(topic, properties={"DELAY": "1"})


async def reaches(wire: Wire, broker: Broker, topic: str, offset: int) -> None:
    """Wait until queue 0 of the topic has so many messages."""
    await wire.until(lambda: broker.store.max_offset(topic, 0) >= offset, what=f"{topic}'s delayed messages")


async def heartbeat(wire: Wire, client: str, group: str, topic: str, expression: str, version: int) -> None:
    subscription = {"topic": topic, "subString": expression, "subVersion": version, "expressionType": "TAG"}
    consumer = {
        "groupName": group,
        "consumeType": "CONSUME_PASSIVELY",
        "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
        "subscriptionDataSet": [{"classFilterMode": False, "tagsSet": [], "codeSet": [], **subscription}],
    }
    body = {"clientID": client, "producerDataSet": [], "consumerDataSet": [consumer]}
    answer = await wire.call(34, {}, json.dumps(body).encode())
    assert answer.code == 0, answer.remark


#: Of the recording: timer messages name times that are over by now.
RECORDED_AT = 1_795_420_094_300
#: What the recorded broker was set to, where our defaults differ.
RECORDED_SETTINGS = {
    "recall_message_enable": False,
    "timer_max_delay_sec": 259_200,
    "enable_property_filter": False,
}


def problems_of(directory: Path, script: Any) -> list[str]:
    begun = time.monotonic()
    more: dict[str, Any] = {}
    if script is replay_send:
        more["clock_ms"] = lambda: RECORDED_AT + int((time.monotonic() - begun) * 1000)

    async def main() -> list[str]:
        async with running(directory, **RECORDED_SETTINGS, **more) as (broker, wire):
            replay = Replay(broker)
            await script(replay, broker, wire)
            await replay.close()
            assert replay.compared > 3
            return replay.problems

    return asyncio.run(main())


async def replay_send(replay: Replay, broker: Broker, wire: Wire) -> None:
    seen = False

    def loose(name: str) -> bool:
        # one message was sent outside of the recording
        nonlocal seen
        seen = seen or name == "inner_num_property_without_batch_flag"
        return seen and name.startswith(("delay", "timer", "stored_TopicSend"))

    await replay.run(
        "send",
        SEND_SKIPPED,
        loose=loose,
        before={"stored_TopicPrio_0": lambda: reaches(wire, broker, "TopicPrio", 1)},
    )


async def replay_client(replay: Replay, broker: Broker, wire: Wire) -> None:
    await wire.store("TopicSend")
    await setup_topic_pull(replay, wire)

    async def no_topics() -> None:
        assert (await wire.call(25, {}, b"autoCreateTopicEnable=false")).code == 0

    async def reset_here(where: bool) -> None:
        setting = f"useServerSideResetOffset={str(where).lower()}"
        assert (await wire.call(25, {}, setting.encode())).code == 0

    asked: list[int] = []

    async def answers_as_recorded() -> None:
        """Member e says what it said in the recording."""
        member = await replay.wire("e")
        said = {line["name"]: line.get("response_body", "") for line in lines("client")}
        ours = {307: said["consumer_running_info"], 309: said["consume_message_directly"]}
        table = javajson.loads(said["get_consumer_status"])["consumerTable"]["127.0.0.1@e"]
        ours[221] = javajson.dumps({"consumerTable": {}, "messageQueueTable": table}).decode()

        async def answer() -> None:
            while True:
                await member.until(lambda: len(member.requests) > len(asked), timeout=60)
                request = member.requests[len(asked)]
                asked.append(request.code)
                if request.code in ours:
                    member.writer.write(encode_response(request, 0, body=ours[request.code].encode()))

        background.append(asyncio.create_task(answer()))

    background: list[asyncio.Task[None]] = []
    await replay.run(
        "client",
        CLIENT_SKIPPED,
        before={
            "send_unknown_topic_no_auto_create": no_topics,
            "heartbeat_member_e": answers_as_recorded,
            "reset_offset_by_time_client_side": lambda: reset_here(False),
            "reset_offset_queue_offset": lambda: reset_here(True),
        },
    )
    assert [code for code in asked if code != 40] == [307, 309, 221, 220, 220]
    for task in background:
        task.cancel()


async def replay_pull(replay: Replay, broker: Broker, wire: Wire) -> None:
    await setup_topic_pull(replay, wire)
    await delayed_as_in_send(wire)
    main = await replay.wire("main")
    await heartbeat(main, "127.0.0.1@b", "GB", "TopicPull", "TagA || TagB", 1795420149805)
    assert (await wire.call(200, {}, b'{"groupName":"GDis","consumeEnable":false}')).code == 0

    last = next(line for line in lines("pull") if line["name"] == "long_poll_woken")
    woken_by = last["records"][0]["body"].encode()

    async def tag_c_then_tag_a() -> None:
        async def later() -> None:
            await wire.until(lambda: broker.hold.count == 1)
            await wire.store("TopicPull", b"c", queue=3, properties={"TAGS": "TagC"})
            assert broker.hold.count == 1
            await wire.store("TopicPull", woken_by, queue=3, properties={"TAGS": "TagA"})

        background.append(asyncio.create_task(later()))

    async def sql(enabled: str) -> None:
        assert (await wire.call(25, {}, f"enablePropertyFilter={enabled}".encode())).code == 0

    background: list[asyncio.Task[None]] = []
    await replay.run(
        "pull",
        PULL_SKIPPED,
        before={
            "long_poll_woken": tag_c_then_tag_a,
            "with_subscription_sql": lambda: sql("true"),
            "sql_while_disabled": lambda: sql("false"),
        },
        # what stands in the schedule topic depends on other files of the recording
        loose=lambda name: name == "pull_schedule_topic",
    )
    await asyncio.gather(*background)


async def replay_retry(replay: Replay, broker: Broker, wire: Wire) -> None:
    await delayed_as_in_send(wire)
    await wire.call(200, {}, b'{"groupName":"GR"}')
    await replay.run(
        "retry_dlq",
        {},
        # one was sent there, two come after a second
        before={"stored_%RETRY%GR": lambda: reaches(wire, broker, "%RETRY%GR", 3)},
        loose=lambda name: name.startswith("stored_schedule"),
    )


async def replay_admin(replay: Replay, broker: Broker, wire: Wire) -> None:
    await setup_topic_pull(replay, wire)
    main = await replay.wire("main")
    await heartbeat(main, "127.0.0.1@b", "GB", "TopicPull", "*", 1795420149805)
    await wire.call(15, {"consumerGroup": "GB", "topic": "TopicPull", "queueId": 0, "commitOffset": 1})
    await wire.store("TopicRetry")
    await heartbeat(await replay.wire("retry"), "127.0.0.1@r", "GR", "TopicRetry", "*", 1)
    # the totals of lists depend on what ran before
    await replay.run("admin", ADMIN_SKIPPED)


async def replay_lmq(replay: Replay, broker: Broker, wire: Wire) -> None:
    await replay.run(
        "lmq", LMQ_SKIPPED, only_code=frozenset({"send_batch_to_batch_cq_topic", "pull_batch_cq_topic"})
    )


@pytest.mark.parametrize(
    "script",
    [replay_send, replay_client, replay_pull, replay_retry, replay_admin, replay_lmq],
    ids=lambda f: f.__name__,
)
def test_answers_are_those_of_apache(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rocketq.broker.send.random.randrange", lambda stop: 0)  # as Apache's chance had it
    assert problems_of(tmp_path, script) == []


def test_what_the_recorded_mqadmin_asks_for_is_served(tmp_path: Path) -> None:
    async def codes() -> set[int]:
        async with running(tmp_path) as (broker, _):
            return set(broker.handlers)

    served = asyncio.run(codes())
    namesrv = set(
        Requests(NamesrvConfig(), RouteTable(), KVConfig(tmp_path / "kv.json", OsFiles()), lambda: 0).handlers
    )
    unserved = {}
    for line in lines("mqadmin"):
        missing = (set(line["brokerCodes"]) - served) | (set(line["namesrvCodes"]) - namesrv)
        if missing:
            unserved[line["command"].split()[0]] = missing
    assert unserved == {command: codes for command, (codes, _) in MQADMIN_UNSERVED.items()}


def test_the_recorded_first_requests_of_mqadmin_are_understood(tmp_path: Path) -> None:
    """Their answers depend on what there is; here that is nothing. What is broken answers with an exception's name."""
    mine = {code for codes, _ in MQADMIN_UNSERVED.values() for code in codes}

    async def main() -> list[str]:
        problems = []
        async with running(tmp_path) as (broker, wire):
            for line in lines("mqadmin"):
                header = json.loads(line["firstRequest"] or "{}")
                code = header.get("code")
                if code is None or code in mine or code not in broker.handlers:
                    continue
                answer = await wire.call(code, header.get("extFields"), (line["firstRequestBody"] or "").encode())
                if answer.code == 3 or "Error" in (answer.remark or "") or "Exception" in (answer.remark or ""):
                    problems.append(f"{line['command']}: {answer.code} {answer.remark}")
        return problems

    assert asyncio.run(main()) == []
