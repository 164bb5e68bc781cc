"""Helpers of the tests of POP: pops, acknowledgements and leases by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from broker_wire import Wire, config

from rocketq.broker.batch import Batch
from rocketq.broker.clients import Clients
from rocketq.broker.groups import Groups
from rocketq.broker.holders import Holders
from rocketq.broker.offsets import Offsets
from rocketq.broker.pop import Pop
from rocketq.broker.popwait import PopWait
from rocketq.broker.revive import Revive
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.saving import Saver
from rocketq.broker.settle import Settle
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.record import pack_host
from rocketq.remoting.command import Command, FrameDecoder
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse, PopMessageResponse
from rocketq.remoting.receipts import Receipt, batch_ack, receipts
from rocketq.store.files import OsFiles
from rocketq.store.store import MessageStore


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Held(NamedTuple):
    message: ReceivedMessage
    receipt: Receipt


def pop_ext(topic: str, group: str = "G", **more: Any) -> dict[str, Any]:
    ext = {"consumerGroup": group, "topic": topic, "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000}
    # without a bornTime, as a pop that was long on its way is not served
    return ext | {"pollTime": 0, "bornTime": 0, "initMode": 0} | more


def held(answer: Command, topic: str, group: str = "G") -> list[Held]:
    if answer.code in (209, 210):
        return []
    assert answer.code == 0, answer.remark
    messages = decode_messages(answer.body)
    got = receipts(answer.header(PopMessageResponse), messages, topic, group, "broker-a")
    return [Held(*pair) for pair in zip(messages, got, strict=True)]


async def pop(wire: Wire, topic: str, group: str = "G", timeout: float = 20.0, **more: Any) -> list[Held]:
    return held(await wire.call(200050, pop_ext(topic, group, **more), timeout=timeout), topic, group)


def receipt_ext(receipt: Receipt, group: str = "G", **more: Any) -> dict[str, Any]:
    ext = {"consumerGroup": group, "topic": receipt.topic, "queueId": receipt.queue_id, "offset": receipt.offset}
    return ext | {"extraInfo": str(receipt)} | more


async def ack(wire: Wire, receipt: Receipt, group: str = "G") -> Command:
    return await wire.call(200051, receipt_ext(receipt, group))


async def ack_all(wire: Wire, all_held: list[Held], group: str = "G") -> Command:
    return await wire.call(200151, {}, batch_ack("broker-a", group, [each.receipt for each in all_held]))


async def lease(wire: Wire, receipt: Receipt, ms: int, group: str = "G") -> Receipt | Command:
    """The new receipt, or the refusal."""
    answer = await wire.call(200053, receipt_ext(receipt, group, invisibleTime=ms))
    return receipt.renewed(answer.header(ChangeInvisibleTimeResponse)) if answer.code == 0 else answer


async def create(wire: Wire, topic: str, queues: int = 1, **attributes: str) -> None:
    ext: dict[str, Any] = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": queues}
    ext |= {
        "writeQueueNums": queues,
        "perm": 6,
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": 0,
        "order": "false",
    }
    if attributes:
        ext["attributes"] = ",".join(f"+{key.replace('_', '.')}={value}" for key, value in attributes.items())
    answer = await wire.call(17, ext)
    assert answer.code == 0, answer.remark


def bodies(got: list[Held]) -> list[bytes]:
    return [each.message.body for each in got]


class Line:
    """A connection that keeps what is written to it."""

    closed = False
    peer = "127.0.0.1:1"
    peer_packed = pack_host("127.0.0.1", 1)

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data if isinstance(data, bytes) else b"".join(data)


class PopKit:
    """What a broker needs for POP, with a clock of the test's and without network and event loop."""

    def __init__(self, directory: Path, now: int = 1_800_000_000_000, **settings: Any) -> None:
        self.now = now
        self.directory = directory
        self.settings = {
            "mapped_file_size_commit_log": 1 << 20,
            "message_index_enable": False,
            "flush_interval_commit_log": 1,
        } | settings
        self.open()

    def open(self) -> None:
        settings = config(self.directory, **self.settings)

        def clock() -> int:
            return self.now

        files, root = OsFiles(), self.directory / "config"
        store = self.store = MessageStore(settings.store(), clock_ms=clock)
        store.open()
        topics = self.topics = Topics(settings, root / "topics.json", files, lambda changed: None, clock)
        groups = self.groups = Groups(settings, root / "subscriptionGroup.json", files, clock)
        offsets = self.offsets = Offsets(root / "consumerOffset.json", files, groups, topics, store, clock)
        self.saver = Saver(files)
        for table in (topics, groups, offsets):
            table.load()
        statistics = Statistics(0.0)
        batch = self.batch = Batch(settings, store, statistics)
        batch.store_host = pack_host("127.0.0.1", 10911)
        self.log = ReviveLog(settings, store, offsets, clock)
        offsets.revive_topic = self.log.topic
        self.log.store_host = batch.store_host
        self.revive = Revive(store, topics, groups, self.log, clock)
        wait = PopWait(0, 0, batch.end_and_flush)
        wait.wake_line = lambda line, seconds: None  # type: ignore[method-assign]
        clients = Clients(settings, groups, topics, lambda: 0.0)
        holders = Holders(self.log, wait, lambda: None, clock)
        pop = Pop(
            settings,
            store,
            topics,
            groups,
            clients,
            offsets,
            batch,
            self.log,
            wait,
            holders,
            statistics,
            lambda: None,
            clock,
        )
        settle = Settle(store, topics, offsets, batch, self.log, wait, holders, lambda: None, clock)
        self.handlers = {**pop.handlers(), **settle.handlers()}
        topics.adopt(store.queues())
        self.log.recover()
        self.revive.adopt()

    def save(self) -> None:
        """What the broker does every few seconds."""
        self.revive.forget_deleted()
        self.log.maintain()
        for table in (self.topics, self.groups, self.offsets):
            self.saver.save(table)

    def close(self) -> None:
        self.save()
        self.store.close()

    def kill(self, lost: int = 0) -> None:
        """Leave the directory as a process that was killed leaves it, and open it again.

        So many bytes at the end of the log were not on disk when the power failed.
        """
        store = self.store
        end = store.written_offset
        store._flusher.on_durable = None
        store._end_threads()
        store._flusher.stop()
        store.log._prepared = None
        store.log.close()
        store.consume_queues.close()
        store.index.close()
        store._marks.unlock()
        if lost:
            with open(self.directory / "commitlog" / f"{0:020}", "r+b") as file:
                file.seek(end - lost)
                file.write(bytes(lost))
        self.open()

    def advance(self, ms: int) -> None:
        """Let time pass, reviving what is due on the way."""
        until = self.now + ms
        while (due := self.log.points.next_due()) is not None and due <= until:
            self.now = max(self.now, due)
            self.revive.turn()
        self.now = until

    def send(self, topic: str, queue_id: int, body: bytes) -> None:
        self.store.append(
            topic,
            queue_id,
            body,
            "",
            tag=None,
            unique_id=None,
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=self.now,
            born_host=Line.peer_packed,
            store_host=self.batch.store_host,
        )
        self.store.write()

    def call(self, code: int, ext: dict[str, Any], body: bytes = b"") -> Command:
        line = Line()
        request = Command(code, opaque=1, ext={key: str(value) for key, value in ext.items()}, body=body)
        answer = self.handlers[code](line, request)  # type: ignore[arg-type]
        self.batch.end()
        (command,) = FrameDecoder().feed(line.written if answer is None else bytes(answer))  # type: ignore[arg-type]
        return command

    def pop(self, topic: str, group: str = "G", **more: Any) -> list[Held]:
        return held(self.call(200050, pop_ext(topic, group, bornTime=0, **more)), topic, group)
