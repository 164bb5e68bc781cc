"""What operators ask: progress, traffic, subscriptions, and cleaning up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, with_broker
from test_broker_forward import commit, join

from rocketq import javajson
from rocketq.broker.server import Broker
from rocketq.broker.statistics import Series


async def traffic(wire: Wire, name: str, key: str) -> Any:
    answer = await wire.call(315, {"statsName": name, "statsKey": key})
    return javajson.loads(answer.body)["statsDay"]["sum"] if answer.code == 0 else None


def test_traffic_is_counted_by_topic_and_by_group(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        assert await traffic(wire, "TOPIC_PUT_NUMS", "F") is None
        for _ in range(3):
            stored = await wire.store("F", b"x" * 100)
        assert await traffic(wire, "TOPIC_PUT_NUMS", "F") == 3
        assert await traffic(wire, "TOPIC_PUT_SIZE", "F") > 300
        await join(wire, "G", "F")
        assert len(await wire.messages("F")) == 3
        assert await traffic(wire, "GROUP_GET_NUMS", "F@G") == 3
        held = wire.pull_request("F", 3, suspend=60_000)
        await wire.store("F")
        await wire.answer(held)
        assert await traffic(wire, "GROUP_GET_NUMS", "F@G") == 4
        assert await traffic(wire, "BROKER_PUT_NUMS", "DefaultCluster") == 4
        assert await traffic(wire, "BROKER_GET_NUMS", "DefaultCluster") == 4
        place = int(stored.ext["msgId"][16:], 16)
        assert (await wire.call(36, {"offset": place, "group": "G", "delayLevel": 0})).code == 0
        assert await traffic(wire, "SNDBCK_PUT_NUMS", "F@G") == 1
        assert (await wire.call(215, {"topic": "F"})).code == 0
        assert await traffic(wire, "TOPIC_PUT_NUMS", "F") is None

    with_broker(tmp_path, test)


def test_a_window_forgets_what_is_older_than_itself() -> None:
    series = Series()
    for second in range(0, 200, 10):
        series.sample(float(second))
        series.count += 10
        series.times += 5
    total, rate, average = series.window("statsMinute", 200.0)
    assert (total, rate, average) == (70, 1.0, 2.0)
    assert series.window("statsHour", 200.0)[0] == 200
    assert Series().window("statsMinute", 5.0) == (0, 0.0, 0.0)


def test_lag_of_all_groups_and_times_of_what_waits(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(3):
            await wire.store("F")
        await join(wire, "G", "F")
        await commit(wire, "G", "F", 1)
        all_groups = javajson.loads((await wire.call(317, {"isOrder": "false"})).body)
        assert (all_groups["brokerAddr"], all_groups["totalDiff"]) == (broker.address, 2)
        (entries,) = [entry["G"] for entry in all_groups["consumeStatsList"] if "G" in entry]
        assert {q.queue_id: n["consumerOffset"] for q, n in entries[0]["offsetTable"].items()}[0] == 1

        answer = await wire.call(303, {"topic": "F", "group": "G"})
        spans = javajson.loads(answer.body)["consumeTimeSpanSet"]
        first = next(span for span in spans if span["messageQueue"]["queueId"] == 0)
        assert 0 < first["minTimeStamp"] == first["consumeTimeStamp"] <= first["maxTimeStamp"]
        assert 0 <= first["delayTime"] < 60_000
        assert {span["delayTime"] for span in spans if span is not first} == {0}
        assert (await wire.call(303, {"topic": "None", "group": "G"})).code == 17

        topics = javajson.loads((await wire.call(343, {"group": "G"})).body)
        assert topics == {"brokerAddr": broker.address, "topicList": ["F"]}

    with_broker(tmp_path, test)


def test_asking_for_corrections_costs_no_group_its_offsets(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(3):
            await wire.store("F")
        for group, offset in (("Slow", 1), ("Fast", 3)):
            await join(wire, group, "F")
            await commit(wire, group, "F", offset)

        async def corrections(compared: str, filtered: str) -> Any:
            ext = {"topic": "F", "compareGroup": compared, "filterGroups": filtered}
            return javajson.loads((await wire.call(308, ext)).body)["correctionOffsets"]

        assert await corrections("Fast", "") == {"0": 1}
        assert await corrections("Slow", "Slow") == {"0": 2**63 - 1}
        assert broker.offsets.query("Slow", "F", 0) == 1

    with_broker(tmp_path, test)


@pytest.mark.parametrize("restart", [False, True])
def test_a_group_that_is_forbidden_a_topic_cannot_read_it(tmp_path: Path, restart: bool) -> None:
    ext = {"group": "G", "topic": "F"}

    async def forbid(broker: Broker, wire: Wire) -> None:
        await wire.store("F")
        answer = await wire.call(353, ext | {"readable": "false"})
        assert javajson.loads(answer.body) == {"group": "G", "readable": False, "topic": "F"}
        if not restart:
            await refused(broker, wire)

    async def refused(broker: Broker, wire: Wire) -> None:
        await join(wire, "G", "F")
        answer = await wire.pull("F", sysFlag=0)
        assert (answer.code, answer.remark) == (16, "the consumer group[G] is forbidden for topic[F]")
        await wire.call(353, ext | {"readable": "true"})
        assert (await wire.pull("F", sysFlag=0)).code == 0
        assert broker.groups.forbidden == {}

    with_broker(tmp_path, forbid)
    if restart:
        with_broker(tmp_path, refused)


def test_queues_of_topics_that_do_not_exist_are_removed_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        begin, saved = broker.store.begin_checkpoint, []
        monkeypatch.setattr(broker.store, "begin_checkpoint", lambda: saved.append(1) or begin())
        for topic in ("F", "G", "H", "Kept"):
            await wire.store(topic)
        for topic in ("F", "G", "H"):
            broker.topics.delete(topic)
        for code in (306, 316, 329):
            assert (await wire.call(code)).code == 0
        assert not {"F", "G", "H"} & {topic for topic, _ in broker.store.queues()}
        assert len(saved) == 1  # the disk is waited for once
        assert broker.store.max_offset("Kept", 0) == 1

    with_broker(tmp_path, test)
