"""Delay levels: messages that wait in ``SCHEDULE_TOPIC_XXXX`` until their time (`ScheduleMessageService`).

Each level has a queue of its own (level - 1), so the head of a queue is always the first one due, and one position
per level (``config/delayOffset.json``) is all the state there is. A new message cannot be due sooner than the
shortest level, therefore looking for new ones twice within that time is enough; the heads themselves are met to the
millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketq import javajson
from rocketq import properties as names
from rocketq.broker.copies import append_copy
from rocketq.broker.saving import Build
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, StoreError, TopicBeingDeleted
from rocketq.names import SCHEDULE_TOPIC, can_be_stored
from rocketq.properties import decode_properties
from rocketq.record import CorruptRecord, decode_record
from rocketq.remoting.bodies import DataVersion
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.remoting.waiting import cancel_all
from rocketq.store.configfile import load_table
from rocketq.store.files import Files
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Messages delivered before others get their turn on the loop.
_PER_TURN = 256
#: Seconds to wait after the store refused a delivery.
_RETRY_AFTER = 1.0


class Delay:
    """Delivers delayed messages when they are due."""

    def __init__(
        self, config: BrokerConfig, path: Path, files: Files, store: MessageStore, clock_ms: Callable[[], int]
    ) -> None:
        self._levels = config.store().delay_levels()
        self.path = path
        self._files = files
        self._store = store
        self._clock_ms = clock_ms
        self._offsets = [0] * len(self._levels)
        self._saved = self._offsets.copy()
        #: positions that are saved as soon as the log is on disk up to the offset before them
        self._delivered: tuple[int, list[int]] | None = None
        self._task: asyncio.Task[None] | None = None

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.GET_ALL_DELAY_OFFSET: self._all}

    @property
    def max_level(self) -> int:
        return len(self._levels)

    def deliver_time(self, level: int) -> int:
        """When a message that is stored now at `level` (1-based) is due, ms since the epoch."""
        return self._clock_ms() + self._levels[level - 1]

    def positions(self) -> dict[int, tuple[int, int]]:
        """Level -> (next offset to deliver, end of its queue), for levels that were ever used."""
        ends = [self._store.max_offset(SCHEDULE_TOPIC, index) for index in range(len(self._levels))]
        return {
            level: (offset, end)
            for level, (offset, end) in enumerate(zip(self._offsets, ends, strict=True), 1)
            if end
        }

    async def start(self) -> None:
        self._load()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_all([self._task])
            self._task = None
        if self._offsets != self._saved:
            self._delivered = (self._store.written_offset, self._offsets.copy())

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`.

        A position is given out only when everything delivered before it is on disk: a power failure must not leave
        a position behind messages that it lost.
        """
        store = self._store
        if self._delivered is not None and self._delivered[0] <= store.durable_offset:
            offsets, self._delivered = self._delivered[1], None
            self._saved = offsets
            return lambda: self._as_json(offsets)
        if self._delivered is None and self._offsets != self._saved:
            self._delivered = (store.written_offset, self._offsets.copy())
        return None

    def _as_json(self, offsets: list[int]) -> dict[str, Any]:
        table = {level: offset for level, offset in enumerate(offsets, 1) if offset}
        return {"dataVersion": DataVersion(timestamp=self._clock_ms()).to_json(), "offsetTable": table}

    def _all(self, connection: Connection, request: Command) -> Reply:
        """GET_ALL_DELAY_OFFSET: what a slave needs to go on from here."""
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(self._as_json(self._offsets)))

    def unsaved(self) -> None:
        self._saved = []

    def copy(self, theirs: dict[str, Any]) -> None:
        """Take over the positions of a master, which delivers."""
        self._take(theirs)

    def _load(self) -> None:
        load_table(self.path, self._files, self._take)
        self._saved = self._offsets.copy()

    def _take(self, saved: dict[str, Any]) -> None:
        table = saved.get("offsetTable", {})
        offsets = []
        for index in range(len(self._levels)):
            known = int(table.get(index + 1, table.get(str(index + 1), 0)))
            low = self._store.min_offset(SCHEDULE_TOPIC, index)
            high = self._store.max_offset(SCHEDULE_TOPIC, index)
            offsets.append(min(max(known, low), high))
        self._offsets = offsets

    async def _run(self) -> None:
        look_again = min(self._levels) / 2000
        while True:
            try:
                wait = float("inf")
                for index in range(len(self._levels)):
                    wait = min(wait, more := self._deliver_level(index))
                    if not more:  # others have their turn before the next level
                        await asyncio.sleep(0)
                await asyncio.sleep(min(wait / 1000, look_again))
            except StoreError as error:
                log.warning("delayed messages wait, the store refuses them: %s", error)
                await asyncio.sleep(_RETRY_AFTER)
            except Exception:  # whatever it is: nobody would notice that delayed messages come no more
                log.exception("delayed messages wait, they cannot be delivered")
                await asyncio.sleep(_RETRY_AFTER)

    def _deliver_level(self, index: int) -> float:
        """Deliver what is due of one level; returns ms until the next one is (0: more is due now)."""
        store = self._store
        offset = self._offsets[index]
        end = min(store.max_offset(SCHEDULE_TOPIC, index), offset + _PER_TURN)
        wait = 0.0 if end > offset else float("inf")
        start = offset
        gone: Counter[str] = Counter()
        now = self._clock_ms()
        try:
            while offset < end:
                entry = store.consume_entry(SCHEDULE_TOPIC, index, offset)
                if entry is None:
                    offset = max(offset + 1, store.min_offset(SCHEDULE_TOPIC, index))
                    log.error("delay level %d: no entry before offset %d, going on there", index + 1, offset)
                    continue
                due = min(entry[2], now + self._levels[index])
                if due > now:
                    wait = due - now
                    break
                try:
                    self._redeliver(index, offset, entry[0])
                except InvalidMessage as error:
                    log.error("delay level %d, offset %d: the message is lost: %s", index + 1, offset, error)
                except TopicBeingDeleted as error:  # that may take long, or fail, and others wait behind it
                    gone[error.topic] += 1
                offset += 1
        finally:
            if offset != start:
                store.write()  # raises before the position moves: the same messages are tried again
                self._offsets[index] = offset
                for topic, count in gone.items():
                    log.warning(
                        "delay level %d: %d messages go with topic %s, it is being deleted",
                        index + 1,
                        count,
                        topic,
                    )
        return wait

    def _redeliver(self, index: int, offset: int, physical_offset: int) -> None:
        """Put one message back under its real topic. The text of its properties stays as it is, as in Apache's."""
        where = f"delay level {index + 1}, offset {offset}, CommitLog {physical_offset}"
        data = self._store.record_at(physical_offset)
        if data is None:
            log.error("%s: the record is gone, its message is lost", where)
            return
        try:
            record = decode_record(data)
        except CorruptRecord as error:
            log.error("%s: stepping over a record that cannot be read: %s", where, error)
            return
        properties = decode_properties(record.properties)
        topic, queue = properties.get(names.REAL_TOPIC), properties.get(names.REAL_QID, "")
        if not topic or not can_be_stored(topic) or not queue.isdecimal() or len(queue) > 9:
            log.error(
                "%s: the message names no %s and %s, stepping over it", where, names.REAL_TOPIC, names.REAL_QID
            )
            return
        append_copy(self._store, record, topic, int(queue), record.properties, properties)
