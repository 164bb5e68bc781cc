"""Master and slave: the log's way, the tables' way, and who refuses what."""

import asyncio
import contextlib
import json
import time

import pytest
from replication_kit import RawSlave, caught_up, cluster, log_bytes, until
from test_broker_faults import FullDisk

from rocketq.client import PushConsumer
from rocketq.config import BrokerConfig
from rocketq.errors import ConfigError
from rocketq.store.files import OsFiles


def run(test, tmp_path):
    async def main():
        async with cluster(tmp_path) as made:
            await test(made)

    asyncio.run(main())


def test_a_slave_has_the_masters_bytes_and_serves_them(tmp_path):
    async def test(made):
        master, wire = await made.master()
        for number in range(50):
            await wire.store("T", b"%d" % number, queue=number % 4, properties={"KEYS": f"k{number}"})
        slave, reader = await made.slave()
        await caught_up(master, slave)
        for number in range(50, 100):
            await wire.store("T", b"%d" % number, queue=number % 4)
        await caught_up(master, slave)
        assert log_bytes(slave) == log_bytes(master)
        await until(lambda: "T" in slave.topics.table, "the topic")
        for queue in range(4):
            assert (await reader.pull("T", queue=queue)).body == (await wire.pull("T", queue=queue)).body
        assert slave.store.query("T", "k7", begin=0, end=2**62, max_count=9).buffers

    run(test, tmp_path)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_a_slave_that_was_away_goes_on_where_it_was(tmp_path, flush):
    async def test(made):
        master, wire = await made.master(flush_disk_type=flush)
        slave, _ = await made.slave(flush_disk_type=flush)
        for number in range(3):
            for body in (b"a", b"b" * 3000, b"c" * 200_000):
                await wire.store(f"T{number}", body)
            await caught_up(master, slave)
            await made.stop(slave)
            await wire.store("while", b"away")
            slave, reader = await made.slave(flush_disk_type=flush)
            await caught_up(master, slave)
        assert log_bytes(slave) == log_bytes(master)
        await until(lambda: "while" in slave.topics.table, "the topic")
        assert [m.body for m in await reader.messages("while")] == [b"away"] * 3

    run(test, tmp_path)


def test_a_slave_waits_for_its_master_and_follows_it_to_another_port(tmp_path):
    async def test(made):
        slave, reader = await made.slave()
        master, wire = await made.master()
        await wire.store("T", b"1")
        await caught_up(master, slave)
        await until(lambda: "T" in slave.topics.table, "the topic")
        await made.stop(master)
        assert [m.body for m in await reader.messages("T")] == [b"1"]
        master, wire = await made.master()
        await wire.store("T", b"2")
        await caught_up(master, slave)
        assert [m.body for m in await reader.messages("T")] == [b"1", b"2"]

    run(test, tmp_path)


def test_an_empty_slave_begins_with_the_masters_last_file(tmp_path):
    async def test(made):
        master, wire = await made.master()
        while len(master.store.log.files) < 3:
            await wire.store("T", b"x" * 100_000)
        slave, reader = await made.slave()
        await caught_up(master, slave)
        assert slave.store.min_physical_offset == master.store.last_file > 0
        assert log_bytes(master).endswith(log_bytes(slave))
        low = slave.store.min_offset("T", 0)
        assert low > 0
        await until(lambda: "T" in slave.topics.table, "the topic")
        assert (await reader.pull("T", low)).body == (await wire.pull("T", low)).body

    run(test, tmp_path)


def test_tables_follow(tmp_path):
    async def test(made):
        master, wire = await made.master()
        await wire.store("T", b"1")
        await wire.call(15, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 1})
        await wire.pull("T")  # makes the group
        await wire.call(15, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 1})
        await wire.call(401, body=json.dumps({"topic": "T", "consumerGroup": "G", "mode": "POP"}).encode())
        await wire.store("D", b"later", properties={"DELAY": "1"})
        await until(lambda: master.delay.positions().get(1) == (1, 1), "the delayed message")
        await wire.store("D", b"much later", properties={"TIMER_DELAY_SEC": "3600"})
        slave, reader = await made.slave()
        await until(lambda: slave.offsets.query("G", "T", 0) == 1, "the offset")
        assert {"T", "D"} <= slave.topics.table.keys()
        assert slave.topics.data_version == master.topics.data_version
        assert slave.groups.table["G"] == master.groups.table["G"]
        assert slave.assignment.mode("T", "G").mode == "POP"
        await caught_up(master, slave)
        slave.replication.tables.soon()
        await until(lambda: slave.delay.positions().get(1) == (1, 1), "the delay's position")
        await until(lambda: slave.timer.counts.pending == 1, "the timer's counts")
        deadline = time.monotonic() + 20  # the master saves it anew meanwhile
        while (await reader.call(60)).body != (await wire.call(60)).body:
            assert time.monotonic() < deadline, "how far the timer is"
            await asyncio.sleep(0.01)
        topic = {"topic": "New", "readQueueNums": 3, "writeQueueNums": 3, "perm": 6, "defaultTopic": "TBW102"}
        topic |= {"topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false"}
        assert (await wire.call(17, topic)).code == 0
        slave.replication.tables.soon()
        await until(lambda: "New" in slave.topics.table, "the new topic")
        await wire.call(215, {"topic": "New"})
        slave.replication.tables.soon()
        await until(lambda: "New" not in slave.topics.table, "the deletion")

    run(test, tmp_path)


ACCOUNTS = """
accounts:
  - accessKey: replication
    secretKey: "87654321"
    admin: true
"""


def test_a_slave_signs_what_it_asks_its_master(tmp_path, caplog):
    async def test(made):
        accounts = tmp_path / "plain_acl.yml"
        accounts.write_text(ACCOUNTS)
        master, _ = await made.master(acl_enable=True, acl_file=str(accounts), ha_listen_port=0)
        master.topics.create_on_send("T", "TBW102", 1)
        right = '{"accessKey":"replication","secretKey":"87654321"}'
        slave, reader = await made.slave(inner_client_authentication_credentials=right)
        await until(lambda: "T" in slave.topics.table, "the master's topic")
        assert b"87654321" not in (await reader.call(26)).body  # nobody is shown the secret
        wrong = right.replace("87654321", "12345678")
        await made.slave("other", 2, inner_client_authentication_credentials=wrong)
        await until(lambda: "Check signature failed" in caplog.text, "the refusal")
        with pytest.raises(ConfigError, match="innerClientAuthenticationCredentials") as error:
            await made.slave("third", 3, inner_client_authentication_credentials='{"secretKey":"87654321"}')
        assert "87654321" not in str(error.value)

    run(test, tmp_path)


def test_offsets_committed_on_the_slave_stay_until_the_master_is_back(tmp_path):
    async def test(made):
        master, wire = await made.master()
        for _ in range(5):
            await wire.store("T")
        await wire.pull("T")
        await wire.call(15, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 2})
        slave, reader = await made.slave()
        await caught_up(master, slave)
        await until(lambda: slave.offsets.query("G", "T", 0) == 2, "the offset")
        await made.stop(master)
        assert (
            await reader.call(15, {"consumerGroup": "G", "topic": "T", "queueId": 0, "commitOffset": 4})
        ).code == 0
        answer = await reader.call(14, {"consumerGroup": "G", "topic": "T", "queueId": 0})
        assert answer.ext["offset"] == "4"
        master, wire = await made.master()
        await until(lambda: slave.offsets.query("G", "T", 0) == 2, "the master's offset")

    run(test, tmp_path)


def test_a_slave_refuses_what_only_its_master_may_do(tmp_path):
    async def test(made):
        master, wire = await made.master()
        await wire.store("T")
        slave, reader = await made.slave()
        await caught_up(master, slave)
        refused = await reader.store("T")
        assert refused.code == 14
        assert "slave" in refused.remark
        assert (await reader.call(37, {"producerGroup": "P"})).code == 11
        assert (await reader.call(36, {"offset": 0, "group": "G", "delayLevel": 0})).code == 1
        assert (await reader.call(200050, {"topic": "T"})).code == 1
        assert (await reader.call(17, {"topic": "X"})).code == 16
        assert log_bytes(slave) == log_bytes(master)

    run(test, tmp_path)


def test_reading_from_a_slave_has_to_be_allowed(tmp_path):
    async def test(made):
        master, wire = await made.master()
        await wire.store("T")
        slave, reader = await made.slave(slave_read_enable=False)
        await caught_up(master, slave)
        answer = await reader.pull("T")
        assert answer.code == 2
        assert "slaveReadEnable" in answer.remark

    run(test, tmp_path)


def test_a_slave_that_is_behind_moves_no_consumer(tmp_path):
    async def test(made):
        master, wire = await made.master()
        await wire.store("T")
        slave, reader = await made.slave()
        await caught_up(master, slave)
        await until(lambda: "T" in slave.topics.table, "the topic")
        answer = await reader.pull("T", 9)
        assert (answer.code, answer.ext["nextBeginOffset"], answer.ext["suggestWhichBrokerId"]) == (20, "9", "0")
        await made.stop(master)
        await until(lambda: not slave.replication.master_is_here, "the slave notices")
        answer = await reader.pull("T", 9)
        assert (answer.code, answer.ext["nextBeginOffset"]) == (19, "9")

    run(test, tmp_path)


def test_consumers_that_are_far_behind_are_sent_to_the_slave(tmp_path):
    async def test(made):
        master, wire = await made.master(slave_read_enable=True, access_message_in_memory_max_ratio=0)
        for _ in range(3):
            await wire.store("T")
        first = await wire.pull("T", maxMsgNums=1)
        assert first.ext["suggestWhichBrokerId"] == "1"
        last = await wire.pull("T", 1)
        assert last.ext["suggestWhichBrokerId"] == "0"
        master.config.slave_read_enable = False
        assert (await wire.pull("T", maxMsgNums=1)).ext["suggestWhichBrokerId"] == "0"

    run(test, tmp_path)


def test_our_consumer_goes_to_the_slave_when_it_is_sent_there(tmp_path):
    async def test(made):
        memory = {"slave_read_enable": True, "access_message_in_memory_max_ratio": 0}
        master, wire = await made.master(**memory)
        for number in range(200):
            await wire.store("T", b"%d" % number)
        slave, _ = await made.slave(**memory)
        await caught_up(master, slave)
        await until(lambda: "T" in slave.topics.table, "the topic")
        seen = []

        async def handle(messages):
            seen.extend(int(message.body) for message in messages)

        consumer = PushConsumer("G", f"127.0.0.1:{made.namesrv.port}", handle, from_where="FIRST", ordered=True)
        consumer.subscribe("T")
        await consumer.start()
        await until(lambda: len(seen) >= 200, "all messages", 40)
        await consumer.close()
        assert seen == list(range(200))
        assert slave.statistics.get_messages > 100
        assert master.offsets.query("G", "T", 0) == 200  # commits go to the master

    run(test, tmp_path)


# the stream


def test_pieces_are_small_and_end_with_their_file(tmp_path):
    async def test(made):
        master, wire = await made.master(ha_transfer_batch_size=5000)
        for _ in range(30):
            await wire.store("T", b"x" * 50_000)
        slave = await RawSlave.connect(master)
        slave.report(1)  # a master does not look where records begin
        at = 1
        while at < master.store.written_offset:
            offset, data = await slave.data()
            assert offset == at
            assert len(data) <= 5000
            assert offset >> 20 == (offset + len(data) - 1) >> 20
            at += len(data)
        assert await slave.piece() == (at, b"")  # a sign of life
        await wire.store("T", b"new")
        offset, data = await slave.data()
        assert offset == at
        assert b"new" in data
        slave.writer.close()

    run(test, tmp_path)


def test_a_slave_that_does_not_read_costs_little_memory(tmp_path):
    async def test(made):
        master, wire = await made.master(mapped_file_size_commit_log=64 << 20)
        slave = await RawSlave.connect(master)
        slave.report(0)
        for _ in range(40):
            await wire.store("T", b"x" * 1_000_000)
        (one,) = master.replication.master.slaves
        assert one._transport.get_write_buffer_size() < 4 << 20
        at = 0
        while at < master.store.written_offset:  # nothing is missing when it reads after all
            offset, data = await slave.piece()
            assert offset == at
            at += len(data)
        slave.writer.close()

    run(test, tmp_path)


@pytest.mark.parametrize("report", [10**9, 1 << 20])
def test_a_slave_that_does_not_fit_is_told_nothing_and_is_not_in_sync(tmp_path, report, caplog):
    async def test(made):
        master, wire = await made.master(broker_role="SYNC_MASTER", in_sync_replicas=2)
        await wire.store("T")
        slave = await RawSlave.connect(master)
        slave.report(report)
        assert await slave.piece() == (report, b"")
        assert (await wire.store("T")).code == 11
        status = json.loads((await wire.call(907)).body)
        (seen,) = status["haConnectionInfo"]
        assert not seen["inSync"]
        assert status["inSyncSlaveNums"] == 0
        assert "Remove the slave's store" in seen["problem"]
        assert "cannot follow" in caplog.text
        slave.writer.close()

    run(test, tmp_path)


def test_a_silent_slave_is_let_go(tmp_path):
    async def test(made):
        master, _ = await made.master(ha_housekeeping_interval=300)
        slave = await RawSlave.connect(master)
        slave.report(0)
        await until(lambda: master.replication.master.slaves, "the slave")
        await until(lambda: not master.replication.master.slaves, "its end")
        slave.writer.close()

    run(test, tmp_path)


def test_a_slave_of_another_log_says_so_and_writes_nothing(tmp_path, caplog):
    async def test(made):
        master, wire = await made.master()
        await wire.store("T", b"x" * 1000)
        slave, _ = await made.slave()
        await caught_up(master, slave)
        await made.stop(master)
        before = log_bytes(slave)
        _, wire = await made.master("other")
        await wire.store("T", b"y")
        await until(lambda: "cannot follow" in caplog.text, "the master's error", 30)
        assert log_bytes(slave) == before

    run(test, tmp_path)


class ReservedDisk(FullDisk):
    """The log's blocks are reserved, so that only what is made from it cannot be written while the disk is full."""

    def pwritev(self, fd, buffers, offset):
        OsFiles.pwrite(self, fd, b"".join(buffers), offset)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
@pytest.mark.parametrize("disk", [FullDisk, ReservedDisk])
def test_a_slave_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    tmp_path, disk, flush, caplog, monkeypatch
):
    monkeypatch.setattr("rocketq.broker.haslave._AFTER_ERROR", 0.1)
    caplog.set_level("INFO", "rocketq.broker")
    slaves_disk = disk()

    async def test(made):
        master, wire = await made.master()
        slave, _ = await made.slave(flush_disk_type=flush, files=slaves_disk)
        await caught_up(master, slave)
        slaves_disk.full = True
        attempts = caplog.text.count("follows from")
        sent, deadline = 0, time.monotonic() + 20
        while caplog.text.count("follows from") < attempts + 5:
            assert time.monotonic() < deadline, "the slave takes everything"
            assert (await wire.store("T", properties={"KEYS": f"k{sent}"})).code == 0
            sent += 1
        assert slave.store.readable < master.store.readable
        slaves_disk.full = False
        await caught_up(master, slave)
        assert log_bytes(slave) == log_bytes(master)
        for number in range(sent):
            assert len(slave.store.query("T", f"k{number}", begin=0, end=2**62, max_count=9).buffers) == 1
        said = [record.message for record in caplog.records if "cannot be copied" in record.message]
        assert all("No space left on device" in text for text in said)
        assert "writing goes on by itself" in said[-1]
        assert len(said) < 5  # not at every attempt

    run(test, tmp_path)


# SYNC_MASTER


def test_sends_wait_for_slaves(tmp_path):
    async def test(made):
        master, wire = await made.master(broker_role="SYNC_MASTER", in_sync_replicas=2, slave_timeout=500)
        assert (await wire.store("T")).code == 11  # nobody is there
        slave = await RawSlave.connect(master)
        slave.report(master.store.written_offset)
        await until(lambda: master.replication.master.replicas == 2, "the slave")
        assert (await wire.store("T")).code == 12  # it does not acknowledge
        master.config.slave_timeout = 60_000
        opaque = wire.message("T")
        unwaited = await wire.store("T", properties={"WAIT": "false"})
        assert unwaited.code == 0
        assert opaque not in wire.answers
        slave.report(master.store.written_offset)
        assert (await wire.answer(opaque)).code == 0
        slave.writer.close()
        await until(lambda: master.replication.master.replicas == 1, "its end")
        assert (await wire.store("T")).code == 11

    run(test, tmp_path)


def test_an_async_master_does_not_wait_for_slaves(tmp_path):
    async def test(made):
        master, wire = await made.master(broker_role="ASYNC_MASTER", in_sync_replicas=2, slave_timeout=600_000)
        slave = await RawSlave.connect(master)
        slave.report(0)
        await until(lambda: master.replication.master.replicas == 2, "the slave, which acknowledges nothing")
        assert (await wire.store("T")).code == 0
        slave.writer.close()
        await until(lambda: master.replication.master.replicas == 1, "its end")
        assert (await wire.store("T")).code == 0

    run(test, tmp_path)


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_what_was_answered_is_on_the_slave(tmp_path, flush):
    async def test(made):
        master, wire = await made.master(broker_role="SYNC_MASTER", in_sync_replicas=2, flush_disk_type=flush)
        slave, _ = await made.slave(flush_disk_type=flush)
        await until(lambda: master.replication.master.replicas == 2, "the slave")
        sent = [wire.message("T", b"%d" % number) for number in range(500)]
        for opaque in sent:
            assert (await wire.answer(opaque)).code == 0
        end = slave.store.durable_offset if flush == "SYNC_FLUSH" else slave.store.written_offset
        assert end == master.store.written_offset
        assert (await wire.call(907)).code == 0

    run(test, tmp_path)


# failover


def test_a_slave_started_as_a_master_goes_on(tmp_path):
    """Delays, timers, transactions and leases are in the log: nothing is lost, and nothing comes twice."""

    now = time.time_ns() // 1_000_000  # the master's: how far its delays are is copied every 3 s only

    async def test(made):
        nonlocal now
        master, wire = await made.master(clock_ms=lambda: now)
        await wire.store("T", b"plain")
        await wire.store("T", b"timed", properties={"TIMER_DELAY_SEC": "2"})
        await wire.store("T", b"gone", properties={"TIMER_DELAY_MS": "1"})
        now += 10
        await until(lambda: master.store.max_offset("T", 0) >= 2, "the first timer message")
        await wire.store("T", b"level", properties={"DELAY": "1"})
        slave, _ = await made.slave()
        await caught_up(master, slave)
        await until(lambda: "T" in slave.topics.table, "the topic")
        slave.replication.tables.soon()
        await made.stop(master)
        await made.stop(slave)
        promoted, wire = await made.master("slave")
        await until(lambda: promoted.store.max_offset("T", 0) == 4, "what was due")
        found = [message.body for message in await wire.messages("T")]
        assert sorted(found) == [b"gone", b"level", b"plain", b"timed"]
        assert (await wire.store("T", b"new")).code == 0

    run(test, tmp_path)


@pytest.mark.parametrize("settings", [{}, {"broker_role": "SYNC_MASTER", "in_sync_replicas": 2}])
def test_a_slave_started_as_a_master_skips_no_message_that_it_does_not_have(tmp_path, settings):
    """Its group was further on the lost master than the slave's log."""

    async def test(made):
        master, wire = await made.master()
        await wire.store("T", b"1")
        slave, _ = await made.slave()
        await caught_up(master, slave)
        await until(lambda: "T" in slave.topics.table, "the topic")
        await made.stop(master)
        slave.offsets.copy({"offsetTable": {"T@G": {"0": 5}}})
        await made.stop(slave)
        _, wire = await made.master("slave", **settings)
        answer = await wire.call(14, {"consumerGroup": "G", "topic": "T", "queueId": 0})
        assert answer.ext["offset"] == "1"
        assert (await wire.store("T", b"2")).code == (11 if settings else 0)
        assert [message.body for message in await wire.messages("T", 1)] == [b"2"]

    run(test, tmp_path)


def test_roles_that_do_not_fit_are_refused(tmp_path):
    for settings in (
        {"broker_role": "SLAVE", "namesrv_addr": "127.0.0.1:1"},
        {"broker_id": 1},
        {"broker_role": "SLAVE", "broker_id": 1},
        {"broker_role": "SLAVE", "broker_id": 1, "ha_master_address": "nowhere"},
    ):
        with pytest.raises(ConfigError):
            BrokerConfig(**settings).check_role()
    BrokerConfig(broker_role="SLAVE", broker_id=1, ha_master_address="127.0.0.1:10912").check_role()


def test_a_slave_follows_a_master_that_is_started_anew_elsewhere(tmp_path):
    async def main():
        async with cluster(tmp_path) as made:
            master, wire = await made.master()
            slave, _ = await made.slave(register_name_server_period=600_000)
            await wire.store("T", b"before")
            await caught_up(master, slave)
            port = master.replication.port
            await made.stop(master)
            with contextlib.ExitStack() as taken:
                with contextlib.suppress(OSError):  # somebody has it already
                    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
                    taken.callback(server.close)  # nobody gets it again
                master, wire = await made.master()
                assert master.replication.port != port
                await wire.store("T", b"after")
                await caught_up(master, slave)

    asyncio.run(main())
