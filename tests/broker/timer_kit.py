"""A timer with its store and a clock of the test's, without network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from broker_wire import config

from rocketq.broker.timed import out_of
from rocketq.broker.timer import Timer
from rocketq.names import TIMER_TOPIC
from rocketq.properties import encode_properties
from rocketq.record import decode_record, pack_host
from rocketq.store.files import OsFiles
from rocketq.store.store import MessageStore

HOST = pack_host("127.0.0.1", 10911)
START = 1_800_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR


class Kit:
    """A store with a timer and no network. Messages are what would come out of `Sender.place`."""

    def __init__(self, directory: Path, now: int = START + 250, **settings: Any) -> None:
        self.now = now
        self.directory = directory
        self.settings = {"mapped_file_size_timer_log": 1024, "mapped_file_size_commit_log": 1 << 20} | settings
        self.open()

    def open(self) -> None:
        settings = config(self.directory, **self.settings)
        self.store = MessageStore(settings.store(), clock_ms=lambda: self.now)
        self.store.open()
        self.timer = Timer(settings, self.directory / "config", OsFiles(), self.store, lambda: self.now)
        self.timer.wake = lambda: None  # type: ignore[method-assign]
        self.timer.start()

    def close(self) -> None:
        self.store.flush()
        self.timer.stop()
        self.store.close()

    def checkpoint(self) -> None:
        """What the broker does every few seconds."""
        self.store._flusher.flush()
        self.store.advance()
        self.timer._next_save = 0.0
        asyncio.run(self.timer.checkpoint())

    def kill(self) -> None:
        """Leave the directory as a process that was killed leaves it, and open it again."""
        self.timer._log._next = None
        self.timer._log.close()
        self.timer._wheel.close()
        store = self.store
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
        self.open()

    def reopen(self) -> None:
        self.close()
        self.open()

    def append(self, body: str, properties: dict[str, str], topic: str = TIMER_TOPIC) -> None:
        self.store.append(
            topic,
            0,
            body.encode(),
            encode_properties(properties),
            tag=None,
            unique_id=properties.get("UNIQ_KEY"),
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=self.now,
            born_host=HOST,
            store_host=HOST,
        )
        self.store.write()

    def send(self, body: str, due: int, **more: str) -> None:
        out = {"UNIQ_KEY": body, "TIMER_OUT_MS": str(out_of(due)), "REAL_TOPIC": "T", "REAL_QID": "0"}
        self.append(body, out | more)

    def recall(self, body: str, due: int) -> None:
        """As `rocketq.broker.recall` does it."""
        self.send(body, due, TIMER_DEL_UNIQKEY=body)
        if due - self.now < 60_000:
            self.timer.recall(due, "T", body)

    def work(self) -> None:
        """Turns until there is nothing to do now."""
        for _ in range(10_000):
            if self.timer.turn() > 0:
                return
        raise AssertionError("the timer does not come to rest")

    def advance(self, ms: int) -> list[str]:
        """Let time pass, working at least every second; the bodies that came, in order."""
        before = self.store.max_offset("T", 0)
        until = self.now + ms
        while self.now < until:
            self.work()
            wait = max(1, int(self.timer.turn()))
            self.now = min(until, self.now + wait)
        self.work()
        return [body for body, _ in self.delivered()[before:]]

    def delivered(self) -> list[tuple[str, int]]:
        """Bodies in the real topic and when each was stored."""
        found = []
        offset = 0
        while (entry := self.store.consume_entry("T", 0, offset)) is not None:
            record = decode_record(self.store.record_at(entry[0]))
            found.append((record.body.decode(), record.store_timestamp))
            offset += 1
        return found
