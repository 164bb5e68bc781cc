"""Timer log, wheel and checkpoint together: how the timer's state comes to disk and back.

Saving has an order: the CommitLog up to what is delivered and filed (the caller waits for that), the timer log, the
wheel that points into it, the checkpoint. What is found at a start is therefore complete up to the checkpoint; units
of the timer log behind it are taken in again. Files of the timer log go when a checkpoint is saved that begins behind
them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rocketq import properties as props
from rocketq.broker.timed import prepared_offset, properties_text
from rocketq.config import BrokerConfig
from rocketq.names import TIMER_TOPIC
from rocketq.properties import decode_properties
from rocketq.record import CorruptRecord, Record, decode_record
from rocketq.store.configfile import load_table, save_json
from rocketq.store.files import Files, make_durable_dirs, read_file
from rocketq.store.reader import store_time_of
from rocketq.store.store import MessageStore
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerlog import MAGIC_DELETE, UNIT_SIZE, TimerLog
from rocketq.store.timerwheel import SLOTS, Slot, TimerWheel


class TimerFiles:
    """The files. `check` is the last checkpoint. Methods raise OSError."""

    def __init__(self, config: BrokerConfig, directory: Path, files: Files) -> None:
        self._files = files
        self.check_path = directory / "timercheck"
        self.metrics_path = directory / "timermetrics"
        root = config.store_path_root_dir
        self.log = TimerLog(f"{root}/timerlog", config.mapped_file_size_timer_log, files)
        self.wheel = TimerWheel(f"{root}/timerwheel", files)
        self.check = TimerCheck(0, 0, 0, 0)
        #: what `save` saves …
        self.captured: TimerCheck | None = None
        #: … once the CommitLog is on disk up to here
        self.durable = 0
        self._syncing: list[int] = []
        #: paths of the files that the log has forgotten, and that no checkpoint may need when they go
        self._forgotten: list[str] = []
        self._sync_names = False
        self._counts: dict[str, Any] = {}

    def open(self, now: int) -> TimerCheck | None:
        """What was saved; None when nothing was, or it does not fit together: then all is empty. `now` is in ms."""
        saved = TimerCheck.decode(read_file(self._files, str(self.check_path)) or b"")
        intact = self.wheel.open() & self.log.open()
        if saved is not None:
            self.log.drop_before(saved.log_start or 0)
            fits = self.log.covers(saved.log_end) and saved.log_start in (None, self.log.start)
            if intact and fits and saved.read_time // 1000 - now // 1000 < SLOTS:
                self.check = saved
                return saved
            # it must not be believed when this is interrupted
            self._files.unlink(str(self.check_path))
            self._files.fsync_dir(str(self.check_path.parent))
        self.wheel.clear()
        self.log.clear()
        return None

    def close(self) -> None:
        self.log.close()
        self.wheel.close()

    def load_counts(self, take: Callable[[dict[str, Any]], object]) -> None:
        """Give the saved numbers to `take`. Raises StoreError."""
        load_table(self.metrics_path, self._files, take)

    def replay(self, saved: TimerCheck, read: int, store: MessageStore, count: Callable[[str, int], None]) -> int:
        """Take in the units behind the checkpoint; returns where in the topic to go on.

        Such a unit counts only when the CommitLog has its record: with the power the disk may have lost that. Apache
        does not write all slots when it stops, so after it the units of the file before are gone through too.
        """
        offset = saved.queue_offset
        start = saved.log_end
        if saved.log_offset is None:
            offset = min(offset, saved.master_offset)
            start = max(0, start - self.log.file_size)
            start -= start % self.log.file_size
        end = start
        for position, unit in self.log.scan(start):
            if position >= saved.log_end:
                record = _record(store, unit.physical)
                if record is None or record.topic != TIMER_TOPIC or record.size != unit.size:
                    break
                offset = max(offset, record.queue_offset + 1)
                if not unit.magic & MAGIC_DELETE:
                    count(decode_properties(record.properties).get(props.REAL_TOPIC, ""), 1)
            second = unit.at // 1000
            if second >= read:
                slot = self.wheel.get(second)
                if slot is None:
                    self.wheel.put(second, Slot(position, position, 1))
                elif slot.last < position:
                    self.wheel.put(second, Slot(slot.first, position, slot.total + 1))
            end = position + UNIT_SIZE
        self.log.cut(max(end, start))
        return offset

    def keep(self, second: int, left: set[int]) -> None:
        """Leave in a slot only the messages with these physical offsets, and what takes messages back."""
        slot = self.wheel.get(second)
        kept: list[int] = []
        position = slot.last if slot else -1
        while position >= 0 and (unit := self.log.unit(position)) is not None:
            if unit.physical in left or unit.magic & MAGIC_DELETE:
                kept.append(position)
            if unit.previous >= position:  # a damaged file
                break
            position = unit.previous
        for position, previous in zip(kept, [*kept[1:], -1], strict=True):
            self.log.relink(position, previous)
        if kept:
            self.wheel.put(second, Slot(kept[-1], kept[0], len(left)))

    def capture(
        self, read: int, queue_offset: int, begun: int, written: int, now: int, counts: dict[str, Any]
    ) -> None:
        """Note what `save` is to save. `begun`: end of the CommitLog when delivering the second `read` began."""
        self.log.write()
        self.captured = TimerCheck(
            read_time=read * 1000,
            log_end=self.log.end,
            queue_offset=queue_offset,
            master_offset=queue_offset,
            timestamp=now,
            counter=self.check.counter + 1,
            log_offset=begun,
            log_start=self.log.start,
        )
        self.durable = written
        self._counts = counts
        self._syncing += self.log.take_unsynced()
        self._sync_names |= self.log.take_renamed()
        self.wheel.begin_save()

    def save(self) -> None:
        """Save what was captured. May run on a thread of its own."""
        assert self.captured is not None
        files, path = self._files, str(self.check_path)
        for fd in self._syncing:
            files.fdatasync(fd)
        if self._sync_names:
            files.fsync_dir(self.log.directory)
        self.wheel.save()
        make_durable_dirs(files, str(self.check_path.parent))
        fd = files.open(path, create=True)
        try:
            files.pwrite(fd, self.captured.encode(), 0)
            files.fdatasync(fd)
        finally:
            files.close(fd)
        save_json(self.metrics_path, self._counts, files)

    def saved(self) -> None:
        """`save` has done its work."""
        assert self.captured is not None
        self.check, self.captured = self.captured, None
        self._syncing = []
        self._sync_names = False
        self.wheel.end_save()

    def forget_before(self, physical: int) -> None:
        """Forget the files of the timer log that are only of records before `physical`; `capture` is called next."""
        self._forgotten += self.log.forget_before(physical)

    def remove_forgotten(self) -> None:
        """Remove them, once that was saved. May run on a thread of its own."""
        while self._forgotten:
            with suppress(FileNotFoundError):
                self._files.unlink(self._forgotten[0])
            del self._forgotten[0]


def _record(store: MessageStore, physical: int) -> Record | None:
    data = store.record_at(physical)
    try:
        return None if data is None else decode_record(data)
    except CorruptRecord:
        return None


def find_delivered(store: MessageStore, offset: int) -> tuple[set[int], int]:
    """Physical offsets of the waiting records whose delivered copies are in the CommitLog from `offset` on.

    Also when the last of them was delivered, ms: none was due later.
    """
    found: set[int] = set()
    last = 0
    for record in store.records(offset):
        prepared = prepared_offset(record)
        try:
            is_copy = bool(prepared) and props.TIMER_DEQUEUE_MS in properties_text(record)
        except ValueError:  # a damaged record, whoever is to get it is told
            continue
        if is_copy:
            found.add(prepared - 1)
            last = max(last, store_time_of(record))
    return found, last
