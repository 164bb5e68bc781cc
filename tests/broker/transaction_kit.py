"""A broker's transactions on a real store, without network: requests go straight to the handlers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from broker_wire import config

from rocketq.broker.server import Broker
from rocketq.names import OP_HALF_TOPIC
from rocketq.properties import encode_properties
from rocketq.record import Record, decode_record, pack_host
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command, FrameDecoder

HOST = pack_host("127.0.0.1", 10911)
GROUP = "PG"


class Line:
    """Stands for a connection: keeps what is written, and the questions."""

    closed = False
    peer = "127.0.0.1:1"
    peer_packed = HOST

    def __init__(self) -> None:
        self.answers: dict[int, Command] = {}
        self.asked: list[dict[str, str]] = []

    def write(self, data: Any) -> None:
        for answer in FrameDecoder().feed(b"".join(data) if isinstance(data, list) else bytes(data)):
            self.answers[answer.opaque] = answer

    def oneway(self, code: int, header: Any, body: bytes) -> None:
        assert code == RequestCode.CHECK_TRANSACTION_STATE
        self.asked.append(header.to_ext())


class Kit:
    """One producer and its transactions, by name."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.now = 1_800_000_000_000
        self.directory = directory
        self.settings = {"message_index_enable": False, "mapped_file_size_commit_log": 1 << 16} | settings
        self.line = Line()
        self._opaque = 0
        self.open()

    def open(self) -> None:
        self.broker = Broker(config(self.directory, **self.settings), clock_ms=lambda: self.now)
        recovery = self.broker.store.open()
        for table in (self.broker.topics, self.broker.groups, self.broker.offsets):
            table.load()
        self.broker.batch.start(HOST)
        self.broker.transactions.load(None if recovery.clean else recovery.checked_from)
        self.broker.transactions.start()
        self.broker.topics.create_on_send("T", "TBW102", 1)
        self.broker.clients.producers[GROUP] = {self.line: None}  # type: ignore[dict-item]

    def close(self) -> None:
        self.broker.store.flush()
        self.broker.transactions.stop()
        self.save()
        self.broker.store.close()

    def save(self) -> None:
        """What the broker does now and then."""
        for table in (self.broker.transactions, self.broker.offsets):
            self.broker.saver.save(table)

    def checkpoint(self) -> None:
        store = self.broker.store
        store._flusher.flush()
        store.advance()
        self.broker.transactions.note()
        self.save()
        store._save_now()

    def kill(self, *, torn: bool = False) -> None:
        """Leave the directory as a process that was killed leaves it, and open it again.

        `torn`: in the middle of writing the last record, an op.
        """
        store = self.broker.store
        if store._saving is not None:
            store._saving.result()
        store._end_threads()
        store._flusher.on_durable = None
        store._flusher.stop()
        store.log._prepared = None
        store.log.close()
        store.consume_queues.close()
        store.index.close()
        store._marks.unlock()
        if torn:
            self._cut(*self._last_op)
        self.open()

    def _cut(self, place: int, size: int) -> None:
        for path in (self.directory / "commitlog").iterdir():
            start = int(path.name)
            if start <= place < start + path.stat().st_size:
                with path.open("r+b") as file:
                    file.seek(place - start + size // 2)
                    file.write(bytes(size - size // 2))

    # what a producer does

    def call(self, code: int, ext: dict[str, Any], body: bytes = b"", *, together: bool = False) -> int:
        """`together`: with the next request in one read."""
        if self.broker.topics.dirty:
            self.broker.saver.save(self.broker.topics)  # else a handler would wait for that
        self._opaque += 1
        request = Command(code, opaque=self._opaque, ext={k: str(v) for k, v in ext.items()}, body=body)
        answer = self.broker.handlers[code](self.line, request)  # type: ignore[arg-type]
        if answer is not None:
            self.line.write(answer)
        if not together:
            self.broker.batch.end()
            end = self.broker.store.max_offset(OP_HALF_TOPIC, 0)
            entry = self.broker.store.consume_entry(OP_HALF_TOPIC, 0, end - 1) if end else None
            self._last_op = entry[:2] if entry else (0, 0)
        return self._opaque

    def send(self, name: str) -> dict[str, str]:
        """A half message; the fields that end it."""
        properties = {"TRAN_MSG": "true", "PGROUP": GROUP, "UNIQ_KEY": name}
        ext = {"b": "T", "e": 0, "c": "TBW102", "d": 1, "f": 4, "g": self.now, "i": encode_properties(properties)}
        answer = self.line.answers.pop(self.call(310, ext, name.encode()))
        assert answer.code == 0, answer.remark
        place = int(answer.ext["msgId"][16:], 16)
        return {"tranStateTableOffset": answer.ext["queueOffset"], "commitLogOffset": str(place)}

    def end(self, sent: dict[str, str], how: int, *, together: bool = False) -> int:
        ext = sent | {"producerGroup": GROUP, "commitOrRollback": str(how), "msgId": "x"}
        return self.call(37, ext, together=together)

    def code(self, opaque: int) -> int | None:
        """The code of an answer; None when there is none."""
        answer = self.line.answers.pop(opaque, None)
        return answer.code if answer else None

    def round(self) -> list[str]:
        """The names that a round of questions is about."""
        self.line.asked = []
        asyncio.run(self.broker.check_back.round())
        return [asked["msgId"] for asked in self.line.asked]

    def read(self, topic: str) -> list[Record]:
        store = self.broker.store
        found = []
        for offset in range(store.max_offset(topic, 0)):
            entry = store.consume_entry(topic, 0, offset)
            found.append(decode_record(store.record_at(entry[0])))
        return found
