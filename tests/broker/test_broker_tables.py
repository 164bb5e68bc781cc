"""Topics, groups and what survives a restart; the operators' requests."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, running, with_broker
from crash_disk import Crash, RecordingFiles, left_by

from rocketq import javajson
from rocketq.broker.saving import Saver
from rocketq.broker.server import Broker
from rocketq.errors import StoreError, StoreLocked
from rocketq.store.configfile import save_json
from rocketq.store.files import OsFiles


def topic_header(topic: str, **more: Any) -> dict[str, Any]:
    header = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": 4, "writeQueueNums": 4, "perm": 6}
    return header | {"topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false"} | more


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            await wire.call(17, topic_header("Made", readQueueNums=3, writeQueueNums=2, order="true"))
            await wire.store("Sent", b"kept", queue=1)
            await wire.call(200, {}, b'{"groupName":"GMade","retryMaxTimes":3}')
            await wire.pull("Sent", queue=1, group="GPulled")
            header = {"consumerGroup": "GPulled", "topic": "Sent", "queueId": 1, "commitOffset": 1}
            assert (await wire.call(15, header)).code == 0
        async with running(tmp_path) as (broker, wire):
            made = broker.topics.table["Made"]
            assert (made.read_queue_nums, made.write_queue_nums, made.order) == (3, 2, True)
            assert broker.groups.table["GMade"].retry_max_times == 3
            assert broker.offsets.query("GPulled", "Sent", 1) == 1
            (message,) = await wire.messages("Sent", queue=1)
            assert message.body == b"kept"
            assert (await wire.store("Sent", queue=1)).ext["queueOffset"] == "1"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("topics.json", "[1]"),
        ("topics.json", '{"topicConfigTable":[]}'),
        ("subscriptionGroup.json", '{"forbiddenTable":{"G":1}}'),
        ("consumerOffset.json", '{"offsetTable":{"T@G":[1]}}'),
        ("delayOffset.json", '{"offsetTable":{1:1e999}}'),
        ("messageRequestMode.json", '{"messageRequestModeMap":{"T":3}}'),
        ("queueLocks.json", '{"lockTable":{"G":[{}]}}'),
        ("halfMessages.json", "{}"),
        ("timermetrics", '{"timingCount":{"T":1}}'),
    ],
)
def test_a_table_of_something_else_is_named(tmp_path: Path, name: str, content: str) -> None:
    async def main() -> None:
        async with running(tmp_path):
            pass
        (tmp_path / "config" / name).write_text(content)
        with pytest.raises(StoreError, match=f"{name}: it holds what cannot be used .* Repair or remove the file"):
            async with running(tmp_path):
                pass

    asyncio.run(main())


def test_the_files_have_the_form_of_apache(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            await wire.store("T")
            await wire.pull("T")

    asyncio.run(main())
    text = (tmp_path / "config" / "topics.json").read_text()
    assert text.startswith('{\n\t"dataVersion":{\n\t\t"counter":')
    saved = javajson.loads(text)
    assert list(saved) == ["dataVersion", "topicConfigTable"]
    assert saved["topicConfigTable"]["T"] == {
        "attributes": {},
        "order": False,
        "perm": 6,
        "readQueueNums": 4,
        "topicFilterType": "SINGLE_TAG",
        "topicName": "T",
        "topicSysFlag": 0,
        "writeQueueNums": 4,
    }
    groups = javajson.loads((tmp_path / "config" / "subscriptionGroup.json").read_text())
    assert list(groups) == ["dataVersion", "forbiddenTable", "subscriptionGroupTable"]
    assert groups["subscriptionGroupTable"]["G"]["groupRetryPolicy"] == {"type": "CUSTOMIZED"}


def test_a_group_does_not_skip_new_messages_when_consumed_ones_were_lost_in_a_power_failure(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            for queue in (0, 1):
                await wire.store("T", queue=queue)
                await wire.pull("T", queue=queue)
                broker.offsets.commit("G", "T", queue, 1)
            broker.offsets.commit("G", "T", 0, 5)
        (tmp_path / "abort").touch()
        async with running(tmp_path) as (broker, _):
            assert [broker.offsets.query("G", "T", queue) for queue in (0, 1)] == [1, 1]

    asyncio.run(main())


def test_a_topic_whose_settings_were_lost_keeps_its_messages(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (_, wire):
            await wire.store("T", b"kept", queue=2)
        for name in ("topics.json", "topics.json.bak"):
            (tmp_path / "config" / name).unlink(missing_ok=True)
        async with running(tmp_path) as (broker, wire):
            assert broker.topics.table["T"].read_queue_nums == 4
            assert [message.body for message in await wire.messages("T", queue=2)] == [b"kept"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "properties",
    [{"DELAY": "3"}, {"TIMER_DELAY_MS": "60000"}, {"TRAN_MSG": "true", "PGROUP": "PG"}],
    ids=["level", "timer", "half"],
)
def test_a_topic_that_nothing_but_a_waiting_message_needs_survives_a_crash(
    tmp_path: Path, properties: dict[str, str]
) -> None:
    """Its message is in a topic of the broker's: the log does not show that this one was created."""

    async def main() -> None:
        disk = RecordingFiles(tmp_path)
        async with running(tmp_path / "store", files=disk) as (_, wire):
            assert (await wire.store("T", properties=properties)).code == 0
            answered = len(disk.operations)
        with left_by(Crash(disk.operations, answered, None)) as directory:
            async with running(directory / "store") as (broker, _):
                assert broker.topics.table["T"].write_queue_nums == 4

    asyncio.run(main())


def test_thousands_of_new_topics_do_not_rewrite_the_file_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (broker, wire):
            saves = 0
            write = broker.saver._write

            def counted(*args: Any) -> None:
                nonlocal saves
                saves += 1
                write(*args)

            broker.saver._write = counted  # type: ignore[method-assign]
            opaques = [wire.message(f"T{number}") for number in range(2000)]
            for opaque in opaques:
                assert (await wire.answer(opaque, 30)).code == 0
            assert saves < 100
        async with running(tmp_path) as (broker, _):
            assert len([name for name in broker.topics.table if name.startswith("T")]) >= 2000

    asyncio.run(main())


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path):
            with pytest.raises(StoreLocked):
                async with running(tmp_path):
                    pass

    asyncio.run(main())


def test_a_deleted_topic_takes_its_messages_and_offsets_along(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        await wire.pull("T", sysFlag=5, commitOffset=1)
        assert (await wire.call(215, {"topic": "T"})).code == 0
        assert "T" not in broker.topics.table
        assert broker.offsets.query("G", "T", 0) == -1
        assert (await wire.pull("T")).code == 17
        assert (await wire.store("T")).ext["queueOffset"] == "0"

    with_broker(tmp_path, test)


def test_a_changed_topic_counts_for_the_next_send(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.call(17, topic_header("T"))
        assert (await wire.store("T", queue=3)).code == 0
        version = broker.topics.data_version.counter
        await wire.call(17, topic_header("T", readQueueNums=2, writeQueueNums=2))
        assert broker.topics.data_version.counter == version + 1
        assert (await wire.store("T", queue=3)).code == 29
        await wire.call(17, topic_header("T", readQueueNums=8, writeQueueNums=8))
        assert (await wire.store("T", queue=7)).code == 0

    with_broker(tmp_path, test)


@pytest.mark.parametrize(
    ("attributes", "code", "text"),
    [
        ("+queue.type=BatchCQ", 29, "not supported by this broker"),
        ("+cleanup.policy=COMPACTION", 29, "not supported by this broker"),
        ("+reserve.time=x", 1, "not an integer"),
        ("message.type=FIFO", 1, "format"),
        ("+message.type=FIFO,+reserve.time=5", 0, ""),
    ],
)
def test_attributes_of_topics_are_checked(tmp_path: Path, attributes: str, code: int, text: str) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        answer = await wire.call(17, topic_header("T", attributes=attributes))
        assert answer.code == code
        assert text in (answer.remark or "")
        assert ("T" in broker.topics.table) == (code == 0)

    with_broker(tmp_path, test)


def test_consume_stats_tell_how_far_a_group_is(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        for _ in range(5):
            await wire.store("T", queue=1, d=2)
        await wire.pull("T", queue=1, sysFlag=5, commitOffset=2)
        answer = await wire.call(208, {"consumerGroup": "G"})
        table = javajson.loads(answer.body)["offsetTable"]
        by_queue = {queue.queue_id: value for queue, value in table.items()}
        assert by_queue[1]["brokerOffset"] == 5
        assert by_queue[1]["consumerOffset"] == 2
        assert by_queue[1]["pullOffset"] == 5
        assert by_queue[1]["lastTimestamp"] == broker.store.store_time("T", 1, 1)
        assert by_queue[0]["brokerOffset"] == 0

    with_broker(tmp_path, test)


def test_runtime_info_has_the_keys_that_exporters_need(tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "golden" / "admin.jsonl"
    line = next(
        line for line in map(json.loads, golden.read_text().splitlines()) if line["name"] == "broker_runtime_info"
    )
    wanted = {key for key in json.loads(line["response_body"])["table"] if "/" not in key and "Message" not in key}

    async def test(broker: Broker, wire: Wire) -> None:
        await wire.store("T")
        table = json.loads((await wire.call(28)).body)["table"]
        assert not wanted - set(table) - {key for key in wanted if key.startswith("schedule")}
        assert table["putMessageTimesTotal"] == "1"
        assert int(table["brokerVersion"]) == 493
        assert len(table["commitLogDirCapacity"].split(" ")) >= 8
        assert float(table["remainHowManyDataToFlush"].split(" ")[0]) >= 0
        assert abs(int(table["earliestMessageTimeStamp"]) - int(table["bootTimestamp"])) < 60_000

    with_broker(tmp_path, test)


def test_settings_change_while_the_broker_runs_and_bad_ones_are_refused(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        assert (await wire.call(25, {}, b"regionId=Moon\nautoCreateTopicEnable=false")).code == 0
        assert (await wire.store("T")).code == 17
        assert (await wire.store("BenchmarkTest")).ext["MSG_REGION"] == "Moon"
        for body, code in ((b"maxMessageSize=big", 1), (b"listenPort=1", 16), (b"brokerPermission=9", 1)):
            answer = await wire.call(25, {}, body)
            assert answer.code == code
            assert body.decode().split("=")[0] in (answer.remark or "")
        text = (await wire.call(26)).body.decode()
        assert "regionId=Moon\n" in text

    with_broker(tmp_path, test)


def test_what_an_operator_changed_is_on_disk_when_it_is_answered(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        await wire.call(17, topic_header("Made"))
        await wire.call(200, {}, b'{"groupName":"GMade"}')
        assert "Made" in javajson.loads((tmp_path / "config" / "topics.json").read_text())["topicConfigTable"]
        groups = javajson.loads((tmp_path / "config" / "subscriptionGroup.json").read_text())
        assert "GMade" in groups["subscriptionGroupTable"]
        await wire.call(215, {"topic": "Made"})
        assert "Made" not in javajson.loads((tmp_path / "config" / "topics.json").read_text())["topicConfigTable"]

    with_broker(tmp_path, test)


class OneTable:
    """A table whose state is a number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = 0
        self.dirty = True

    def snapshot(self) -> Any:
        if not self.dirty:
            return None
        self.dirty = False
        state = self.state
        return lambda: {"state": state}

    def unsaved(self) -> None:
        self.dirty = True


def test_a_save_that_was_overtaken_does_not_bring_old_state_back(tmp_path: Path) -> None:
    async def main() -> None:
        table, saver = OneTable(tmp_path / "t.json"), Saver(OsFiles())
        saver._lock.acquire()
        saving = asyncio.create_task(saver.save_later(table, 0.0))
        await asyncio.sleep(0)
        while table.dirty:
            await asyncio.sleep(0.001)
        table.state, table.dirty = 1, True
        saver._number += 1
        build = table.snapshot()
        saver._written[table.path] = saver._number  # as if written before the thread got its turn
        save_json(table.path, build(), OsFiles())
        saver._lock.release()
        await saving
        assert javajson.loads(table.path.read_text()) == {"state": 1}

    asyncio.run(main())


def test_what_a_thread_is_about_to_save_is_on_disk_when_an_answer_needs_it(tmp_path: Path) -> None:
    async def main() -> None:
        table, saver = OneTable(tmp_path / "t.json"), Saver(OsFiles())
        busy = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        before = asyncio.create_task(asyncio.to_thread(busy.wait))
        saving = asyncio.create_task(saver.save_later(table, 0.0))
        while table.dirty:
            await asyncio.sleep(0.001)
        saver.save(table)
        assert javajson.loads(table.path.read_text()) == {"state": 0}
        busy.set()
        await asyncio.gather(before, saving)

    asyncio.run(main())


def test_a_save_that_fails_is_due_again(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "file").write_text("")
        table, saver = OneTable(tmp_path / "file" / "t.json"), Saver(OsFiles())
        await saver.save_later(table, 0.0)
        assert table.dirty
        with pytest.raises(StoreError):
            saver.save(table)
        assert table.dirty

    asyncio.run(main())


def test_the_topic_for_traces_is_there_where_it_is_wanted(tmp_path: Path) -> None:
    async def test(broker: Broker, wire: Wire) -> None:
        config = broker.topics.table["MyTraces"]
        assert (config.read_queue_nums, config.write_queue_nums, config.perm) == (1, 1, 6)
        assert broker.topics.is_system("MyTraces")
        assert "RMQ_SYS_TRACE_TOPIC" not in broker.topics.table

    with_broker(tmp_path, test, trace_topic_enable=True, msg_trace_topic_name="MyTraces")
