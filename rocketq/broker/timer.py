"""Timer messages: they wait in ``rmq_sys_wheel_timer`` until a time of their own (`TimerMessageStore`).

The topic's only queue keeps them in the order in which they were sent. From there each gets a unit in the timer log,
chained to the slot of its second in the timer wheel. Only what is due within the next seconds is in memory: a heap of
numbers, one per message, made of when it is due and where its record is.

- A slot that has more messages than the heap should hold is read several times, each time for the next part in order
  of time; `_horizon` is the last key up to which everything is in the heap or was delivered.
- What is due later than the wheel reaches goes back into the topic when half of that has passed, under a new record.
- The property TIMER_OUT_MS is the last ms in which a message must not be delivered yet. Apache's brokers round it
  down to full seconds, so one that is a multiple of 1000 stands for the second that begins there.
- A record with TIMER_DEL_UNIQKEY takes another message of the same second back. It is never delivered.

Timer log and wheel are made from the topic and saved every few seconds, together with how far the clock and the topic
were gone through (``config/timercheck``), and only when all that was delivered by then is on disk. After a crash the
seconds since are gone through again. A delivered record carries the offset of the one that waited in its field
`preparedTransactionOffset`; that tells what was delivered already, so nothing is delivered twice.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rocketq import javajson
from rocketq import properties as props
from rocketq.broker.copies import append_copy
from rocketq.config import BrokerConfig
from rocketq.errors import StoreError
from rocketq.hashing import tags_code as topic_hash
from rocketq.names import TIMER_TOPIC
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import BORN_HOST_V6, MAGIC_V1, STORE_HOST_V6, CorruptRecord, Record, decode_record
from rocketq.remoting.bodies import DataVersion
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.configfile import load_json, save_json
from rocketq.store.consumequeue import ENTRY
from rocketq.store.files import Files, read_file, store_error
from rocketq.store.store import MessageStore
from rocketq.store.timercheck import SIZE as CHECK_SIZE
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerlog import MAGIC_DEFAULT, MAGIC_DELETE, MAGIC_ROLL, UNIT_SIZE, TimerLog
from rocketq.store.timerwheel import SLOTS, Slot, TimerWheel

log = logging.getLogger("rocketq.broker")

#: Messages that are put into the wheel, and delivered, before others get their turn on the loop.
_FILE_PER_TURN = 500
_FIRE_PER_TURN = 256
#: Units of a chain that are read in one turn.
_READ_PER_TURN = 2000
#: Messages that one reading of a slot takes into the heap at most.
_KEEP = 100_000
#: How far ahead slots are read, ms.
_AHEAD = 3000
#: ms to the next look at the clock, which may be set.
_LOOK_AGAIN = 1000.0
#: ms to wait after the store refused a delivery or a file could not be written.
_RETRY_AFTER = 1000.0
#: Seconds between two checkpoints, and seconds between two looks for files that are not needed any more.
_SAVE_EVERY = 5.0
_CLEAN_EVERY = 30.0
#: So many changed slots are saved sooner.
_MANY_CHANGED = 50_000

#: A key is `due << _SHIFT | physical offset`: sorted by time, then by the order of sending.
_SHIFT = 63
_PHYSICAL = (1 << _SHIFT) - 1
_ENDLESS = 1 << 2 * _SHIFT

_PREFIX = struct.Struct(">iI28xi")
_PREPARED = struct.Struct(">q")


class Waiting(NamedTuple):
    """What the properties of a record in the timer's topic say. `recalls`: the unique id that it takes back."""

    due: int
    topic: str
    recalls: str | None


def second_of(due: int) -> int:
    """The second of the wheel that holds what is due then."""
    return (due - 1) // 1000


def out_of(due: int) -> int:
    """The property TIMER_OUT_MS of what is due then: the last ms before, but no multiple of 1000."""
    return due if due % 1000 == 1 else due - 1


def due_of(properties: dict[str, str]) -> int:
    """When a record of the timer's topic is due, ms. Raises KeyError, ValueError."""
    out = int(properties[props.TIMER_OUT_MS])
    if out % 1000:
        return out + 1
    deliver = properties.get(props.TIMER_DELIVER_MS, "")
    if deliver.isdecimal() and out < int(deliver) <= out + 1000:
        return int(deliver)
    return out + 1000


def waiting_of(properties: dict[str, str]) -> Waiting:
    """Raises KeyError, ValueError when they are not those of a timer message."""
    topic, due = properties[props.REAL_TOPIC], due_of(properties)
    int(properties[props.REAL_QID])
    recalls = properties.get(props.TIMER_DEL_UNIQKEY)
    if recalls is not None:
        recalls = recalls.removeprefix(f"{topic}+")  # 5.3 names the topic too
    return Waiting(due, topic, recalls)


def _prepared_offset(record: memoryview) -> int:
    """The field preparedTransactionOffset of a record."""
    sys_flag: int = _PREFIX.unpack_from(record)[2]
    at = 76 + 12 * (bool(sys_flag & BORN_HOST_V6) + bool(sys_flag & STORE_HOST_V6))
    return int(_PREPARED.unpack_from(record, at)[0])


def _properties_text(record: memoryview) -> str:
    """The property string of a record, without looking at its body."""
    _, magic, sys_flag = _PREFIX.unpack_from(record)
    at = 84 + 12 * (bool(sys_flag & BORN_HOST_V6) + bool(sys_flag & STORE_HOST_V6))
    at += 4 + int.from_bytes(record[at : at + 4], "big")
    width = 1 if magic == MAGIC_V1 else 2
    at += width + int.from_bytes(record[at : at + width], "big")
    return str(record[at + 2 :], "utf-8")


class Timer:
    """Keeps and delivers timer messages. Everything runs on the loop's thread, checkpoints are written by another."""

    def __init__(
        self, config: BrokerConfig, directory: Path, files: Files, store: MessageStore, clock_ms: Callable[[], int]
    ) -> None:
        self._config = config
        self._files = files
        self._store = store
        self._clock_ms = clock_ms
        self.check_path = directory / "timercheck"
        self.metrics_path = directory / "timermetrics"
        root = config.store_path_root_dir
        self._log = TimerLog(f"{root}/timerlog", config.mapped_file_size_timer_log, files)
        self._wheel = TimerWheel(f"{root}/timerwheel", files)
        self._running = False
        self._handle: asyncio.TimerHandle | asyncio.Handle | None = None
        self._soon = False
        #: the next message of the topic to be put into the wheel
        self._next = 0
        #: everything due in the seconds before was delivered
        self._read = 0
        #: the second that is being read, everything due before is in the heap or was delivered
        self._at = 0
        self._horizon = 0
        self._heap: list[int] = []
        self._reading: Iterator[None] | None = None
        self._last_key = 0
        #: second -> topics and unique ids of messages that were taken back
        self._recalled: dict[int, set[tuple[str, str]]] = {}
        #: (second, end of the log when its first message was delivered)
        self._begun: deque[tuple[int, int]] = deque()
        #: physical offsets of what an earlier run delivered and may find again
        self._delivered: set[int] = set()
        self._started = 0
        self._caught_up = False
        # checkpoints
        self._check = TimerCheck(0, 0, 0, 0)
        self._captured: tuple[TimerCheck, int] | None = None
        self._syncing: list[int] = []
        self._metrics: dict[str, Any] = {}
        self._saved_work = (0, 0)
        self._next_save = 0.0
        self._next_clean = 0.0
        #: real topic -> messages that wait, and when that last changed
        self._counts: dict[str, list[int]] = {}
        self._counts_version = 0
        self.filed = self.fired = 0
        self._sampled = (time.monotonic(), 0, 0)
        self._rates = (0.0, 0.0)

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.GET_TIMER_CHECK_POINT: self._get_check,
            RequestCode.GET_TIMER_METRICS: self._get_metrics,
        }

    @property
    def window(self) -> int:
        """How far ahead the wheel is used, ms; what is due later is stored anew within that time.

        Less than `timerRollWindowSlot` when messages are not kept for so long.
        """
        kept = max(1, self._config.file_reserved_time) * 3600 * 2 // 3
        return min(self._config.timer_roll_window_slot, kept) * 1000

    # starting and stopping

    def start(self) -> None:
        """Open the files and begin. Raises StoreError when they cannot be used."""
        if not self._config.timer_wheel_enable:
            return
        try:
            self._recover()
        except OSError as error:
            raise store_error(
                f"cannot open the timer's files in {self._config.store_path_root_dir}", error
            ) from error
        self._running = True
        self.wake()

    def stop(self) -> None:
        """Stop delivering and save everything. The store is to be closed next, which forces its log to disk."""
        if not self._running:
            return
        self._running = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        try:
            self._settle()
            self._capture()
            assert self._captured is not None
            self._save(self._captured[0])
        except OSError as error:
            log.error("the timer's files could not be written while the broker stops: %s", error)
        finally:
            self._log.close()
            self._wheel.close()

    def _settle(self) -> None:
        """Take what was delivered out of the second that has begun: Apache's broker begins it anew."""
        read = self._position(self._clock_ms())
        slot = self._wheel.get(read)
        if self._at <= read or slot is None:
            return
        left = {key & _PHYSICAL for key in self._heap if second_of(key >> _SHIFT) <= read}
        if not left:
            self._read = read + 1
            return
        kept: list[int] = []
        position = slot.last
        while position >= 0 and (unit := self._log.unit(position)) is not None:
            if unit.physical in left or unit.magic & MAGIC_DELETE:
                kept.append(position)
            position = unit.previous
        for position, previous in zip(kept, [*kept[1:], -1], strict=True):
            self._log.relink(position, previous)
        self._wheel.put(read, Slot(kept[-1], kept[0], len(left)))

    def _recover(self) -> None:
        """Find out how far the last run got."""
        store, wheel = self._store, self._wheel
        low, high = store.min_offset(TIMER_TOPIC, 0), store.max_offset(TIMER_TOPIC, 0)
        self._load_counts()
        saved = TimerCheck.decode(read_file(self._files, str(self.check_path)) or b"")
        intact = wheel.open() & self._log.open()
        if saved is not None:
            intact &= self._log.covers(saved.log_end) and saved.log_start in (None, self._log.start)
        now = self._clock_ms()
        self._started = now
        first = store.consume_entry(TIMER_TOPIC, 0, low) if low < high else None
        delivered_from = first[0] if first else store.readable
        if saved is None or not intact:
            if first:
                log.warning(
                    "the timer's files are missing or damaged: all %d timer messages are gone through", high
                )
            if saved is not None:  # it must not be believed when this is interrupted
                self._files.unlink(str(self.check_path))
                self._files.fsync_dir(str(self.check_path.parent))
            wheel.clear()
            self._log.clear()
            self._counts.clear()
            self._next = low
            self._read = second_of(now)
        else:
            self._read = saved.read_time // 1000
            if self._read == second_of(now) + 1:  # see _settle; this second still takes messages
                self._read -= 1
            self._next = self._replay(saved)
            delivered_from = store.readable if saved.log_offset is None else saved.log_offset
            self._check = saved
        self._next = min(max(self._next, low), high)
        self._at = self._read
        self._horizon = self._read * 1000 << _SHIFT | _PHYSICAL
        delivered_from = max(delivered_from, store.min_physical_offset)
        self._delivered = self._find_delivered(delivered_from)
        self._begun.append((second_of(now), delivered_from))

    def _replay(self, saved: TimerCheck) -> int:
        """Take in the units behind the checkpoint; returns where in the topic to go on.

        Such a unit counts only when the CommitLog has its record: with the power the disk may have lost that. Apache
        does not write all slots when it stops, so after it the units of the file before are gone through too.
        """
        offset = saved.queue_offset
        start = saved.log_end
        if saved.log_offset is None:
            offset = min(offset, saved.master_offset)
            start = max(0, start - self._log.file_size)
            start -= start % self._log.file_size
        end = start
        for position, unit in self._log.scan(start):
            if position >= saved.log_end:
                record = self._record(unit.physical)
                if record is None or record.topic != TIMER_TOPIC or record.size != unit.size:
                    break
                offset = max(offset, record.queue_offset + 1)
                if not unit.magic & MAGIC_DELETE:
                    self._count(decode_properties(record.properties).get(props.REAL_TOPIC, ""), 1)
            second = unit.at // 1000
            if second >= self._read:
                slot = self._wheel.get(second)
                if slot is None:
                    self._wheel.put(second, Slot(position, position, 1))
                elif slot.last < position:
                    self._wheel.put(second, Slot(slot.first, position, slot.total + 1))
            end = position + UNIT_SIZE
        self._log.cut(max(end, start))
        return offset

    def _record(self, physical: int) -> Record | None:
        data = self._store.record_at(physical)
        try:
            return None if data is None else decode_record(data)
        except CorruptRecord:
            return None

    def _find_delivered(self, offset: int) -> set[int]:
        """Offsets of the waiting records whose copies are in the CommitLog from `offset` on."""
        store = self._store
        found: set[int] = set()
        while offset < store.readable:
            record = store.record_at(offset)
            if record is None:
                file = store.log.find(offset)
                if file is None:
                    break
                offset = file.end  # the filler of a file
                continue
            prepared = _prepared_offset(record)
            if prepared and props.TIMER_DEQUEUE_MS in _properties_text(record):
                found.add(prepared - 1)
            offset += len(record)
        return found

    # the loop

    def arrived(self) -> None:
        """Messages became readable, perhaps one of ours."""
        if self._running and not self._soon and self._store.max_offset(TIMER_TOPIC, 0) > self._next:
            self.wake()

    def wake(self) -> None:
        """Have a turn soon."""
        self._schedule(0.0)

    def _schedule(self, wait: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        loop = asyncio.get_running_loop()
        self._soon = wait <= 0
        self._handle = loop.call_soon(self._on_turn) if self._soon else loop.call_later(wait / 1000, self._on_turn)

    def _on_turn(self) -> None:
        self._handle = None
        if not self._running:
            return
        wait = _RETRY_AFTER
        try:
            wait = self.turn()
        except (StoreError, OSError) as error:
            log.warning("timer messages wait, the store refuses them: %s", error)
        except Exception:  # whatever it is: nobody would notice that timer messages come no more
            log.exception("timer messages wait, they cannot be delivered")
        self._schedule(wait)

    def turn(self) -> float:
        """File what is new, read what is due soon, deliver what is due; returns ms until the next turn.

        Raises StoreError or OSError when something could not be written; the next turn tries it again.
        """
        now = self._clock_ms()
        more = False
        try:
            more = self._file_new(now)
            self._caught_up = self._caught_up or not more
            more |= self._read_ahead(now)
        finally:
            if self._caught_up:
                more |= self._fire(now)
        if more:
            return 0.0
        if self._delivered and self._at > second_of(
            self._started
        ):  # all that was due then is in the heap, or gone
            started = self._started << _SHIFT
            if not (self._heap and self._heap[0] <= started | _PHYSICAL):
                self._delivered.clear()
        wait = (self._heap[0] >> _SHIFT) - self._clock_ms() if self._heap else _LOOK_AGAIN
        return max(0.0, min(wait, _LOOK_AGAIN))

    def _position(self, now: int) -> int:
        """The second before which everything was delivered."""
        second = min(self._at, second_of(now))
        if self._heap:
            second = min(second, second_of(self._heap[0] >> _SHIFT))
        if second > self._read:
            self._read = second
            while self._begun and self._begun[0][0] < second:
                self._begun.popleft()
            for old in [each for each in self._recalled if each < second]:
                del self._recalled[old]
        return self._read

    # into the wheel

    def _file_new(self, now: int) -> bool:
        """Put new messages of the topic into the wheel; True when there are more."""
        store = self._store
        self._log.write()
        queue = store.consume_queues.get(TIMER_TOPIC, 0)
        if queue is None or self._next >= queue.max_offset:
            return False
        low = store.min_offset(TIMER_TOPIC, 0)
        if self._next < low:
            log.error("timer: messages %d to %d of the topic are gone, going on behind them", self._next, low - 1)
            self._next = low
        entries = store.consume_queues.entries(queue, self._next, _FILE_PER_TURN)
        try:
            for physical, size, _ in ENTRY.iter_unpack(entries):
                if not self._file(physical, size, now):
                    self._caught_up = True  # its place in the wheel is free only when old ones were delivered
                    return False
                self._next += 1
        finally:
            self._log.write()
        return self._next < queue.max_offset

    def _file(self, physical: int, size: int, now: int) -> bool:
        """Put one message into the wheel; False when it has to wait for its place there."""
        data = self._store.record_at(physical)
        if data is None:
            log.error("timer: the record at %d is gone, message %d of the topic is lost", physical, self._next)
            return True
        try:
            waiting = waiting_of(decode_properties(_properties_text(data)))
        except (KeyError, ValueError, IndexError) as error:
            log.warning(
                "timer: stepping over message %d of %s (CommitLog offset %d), which is no timer message: %s %s",
                self._next,
                TIMER_TOPIC,
                physical,
                type(error).__name__,
                error,
            )
            return True
        if physical in self._delivered:
            return True
        due, topic, recalls = waiting
        written = now - now % 1000
        magic, at = MAGIC_DEFAULT, due - 1
        ahead = due - written - self.window
        if ahead >= 0:
            magic |= MAGIC_ROLL
            # not so late that what is left is a short time for the next one
            at = written + (self.window // 2 if ahead < self.window // 3 else self.window)
            at -= at % 1000
            due = at + 1
        read = self._position(now)
        if at // 1000 < read:
            at = read * 1000 + 1
        second = at // 1000
        if second - read >= SLOTS:
            return False
        if recalls is not None:
            magic |= MAGIC_DELETE
        slot = self._wheel.get(second)
        position = self._log.append(
            slot.last if slot else -1, magic, written, at - written, physical, size, topic_hash(topic)
        )
        change = 1 if recalls is None else -1
        first, total = (slot.first, slot.total) if slot else (position, 0)
        self._wheel.put(second, Slot(first, position, total + change))
        self.filed += 1
        if recalls is None:
            self._count(topic, 1)
        elif not magic & MAGIC_ROLL:
            if second_of(due) <= self._at:
                self.recall(due, topic, recalls)
            return True
        if at + 1 << _SHIFT | physical <= self._horizon:
            heapq.heappush(self._heap, due << _SHIFT | physical)
        return True

    def recall(self, due: int, topic: str, unique_id: str) -> None:
        """Let a message that is due then not be delivered."""
        self._recalled.setdefault(second_of(due), set()).add((topic, unique_id))

    def forget_recall(self, due: int, topic: str, unique_id: str) -> None:
        """The recall could not be stored."""
        self._recalled.get(second_of(due), set()).discard((topic, unique_id))

    # out of the wheel

    def _read_ahead(self, now: int) -> bool:
        """One step of reading what is due soon into the heap; True when there is more to read."""
        if self._reading is None:
            until = (now + _AHEAD) // 1000 + 1
            if self._at >= until or len(self._heap) > _KEEP // 2:
                return False
            used = self._wheel.next_used(self._at, until)
            if used > self._at:
                self._at = used
                self._horizon = max(self._horizon, used * 1000 << _SHIFT | _PHYSICAL)
            if used == until:
                return False
            self._reading = self._read_slot(used)
        try:
            next(self._reading)
        except StopIteration:
            self._reading = None
        except BaseException:
            self._reading = None
            raise
        return True

    def _read_slot(self, second: int) -> Iterator[None]:
        """Take the next part of a slot into the heap, in steps."""
        horizon, found, complete, count = self._horizon, [], True, 0
        first_time = horizon >> _SHIFT <= second * 1000
        limit = _ENDLESS
        stop = -1
        while True:
            slot = self._wheel.get(second)
            if slot is None or slot.last == stop:
                break
            position, until, stop = slot.last, stop, slot.last
            while position > until:
                unit = self._log.unit(position)
                if unit is None or unit.previous >= position:
                    log.error(
                        "timer: the chain of second %d breaks at position %d of the timer log", second, position
                    )
                    break
                key = self._key(unit.at, unit.magic, unit.physical, first_time)
                if horizon < key < limit:
                    found.append(key)
                    if len(found) >= 2 * _KEEP:
                        found.sort()
                        del found[_KEEP:]
                        complete, limit = False, found[-1]
                position = unit.previous
                count += 1
                if count % _READ_PER_TURN == 0:
                    yield
        found.sort()
        if len(found) > _KEEP:
            del found[_KEEP:]
            complete = False
        if complete:
            self._at = second + 1
            self._horizon = self._at * 1000 << _SHIFT | _PHYSICAL
        else:
            self._horizon = found[-1]
        if self._heap:
            for key in found:
                heapq.heappush(self._heap, key)
        else:
            self._heap = found  # what is sorted is a heap

    def _key(self, at: int, magic: int, physical: int, first_time: bool) -> int:
        """The key of a unit; 0 when nothing is to be delivered for it."""
        if magic & MAGIC_ROLL:
            return at + 1 << _SHIFT | physical
        if not magic & MAGIC_DELETE:
            if at % 1000:
                return at + 1 << _SHIFT | physical
        elif not first_time:
            return 0
        data = self._store.record_at(physical)
        try:
            if data is None:
                raise KeyError("the record is gone")
            due, topic, recalls = waiting_of(decode_properties(_properties_text(data)))
        except (KeyError, ValueError, IndexError) as error:
            log.error("timer: the record at %d of the CommitLog cannot be used, it is lost: %s", physical, error)
            return 0
        if recalls is not None:
            self.recall(due, topic, recalls)
            return 0
        return due << _SHIFT | physical

    def _fire(self, now: int) -> bool:
        """Deliver what is due; True when more is due now."""
        heap = self._heap
        limit = now + 1 << _SHIFT
        if not heap or heap[0] >= limit:
            return False
        taken: list[int] = []
        topics: list[str | None] = []
        try:
            while heap and heap[0] < limit and len(taken) < _FIRE_PER_TURN:
                key = heapq.heappop(heap)
                taken.append(key)
                second = max(second_of(key >> _SHIFT), self._read)
                if not self._begun or self._begun[-1][0] < second:
                    self._begun.append((second, self._store.written_offset))
                # a message that was put into the wheel twice comes twice in a row
                again = key == self._last_key
                topics.append(None if again else self._deliver(key & _PHYSICAL, now))
                self._last_key = key
        finally:
            try:
                self._store.write()
            except BaseException:
                topics.clear()
                self._last_key = 0
                raise
            finally:
                for key in taken[len(topics) :]:
                    heapq.heappush(heap, key)
                for topic in topics:
                    if topic is not None:
                        self._count(topic, -1)
                self.fired += len(topics)
        return bool(heap) and heap[0] < limit

    def _deliver(self, physical: int, now: int) -> str | None:
        """Put one message under its real topic, or back into the timer's when it is due much later.

        Returns the real topic of a message that does not wait any more.
        """
        data = self._store.record_at(physical)
        try:
            if data is None:
                raise KeyError("it is gone")
            record = decode_record(data)
            properties = decode_properties(record.properties)
            due, real_topic, recalls = waiting_of(properties)
        except (CorruptRecord, KeyError, ValueError) as error:
            log.error("timer: the record at %d of the CommitLog cannot be used, it is lost: %s", physical, error)
            return None
        topic, queue_id = real_topic, int(properties[props.REAL_QID])
        counted = real_topic if recalls is None else None
        stored = record.store_timestamp
        more = {props.TIMER_ENQUEUE_MS: str(stored - stored % 1000), props.TIMER_DEQUEUE_MS: str(now)}
        if physical in self._delivered:
            return counted
        if due > now:
            topic, queue_id = TIMER_TOPIC, 0
            more[props.TIMER_ROLL_TIMES] = str(int(properties.get(props.TIMER_ROLL_TIMES, "0")) + 1)
        elif recalls is not None:
            return None
        else:
            recalled = self._recalled.get(second_of(due))
            if recalled and (topic, properties.get(props.UNIQ_KEY, "")) in recalled:
                return counted
        properties |= more
        text = encode_properties(properties)
        if len(text) > 8000 and len(text.encode()) > props.MAX_LENGTH:
            text = record.properties  # rather without the broker's own than not at all
        append_copy(
            self._store, record, topic, queue_id, text, properties, prepared_transaction_offset=physical + 1
        )
        return counted

    # checkpoints

    async def checkpoint(self) -> None:
        """Save how far the timer is when it is time for that. Called regularly; never raises OSError."""
        if not self._running:
            return
        now = time.monotonic()
        self._sample(now)
        if self._captured is None:
            if now < self._next_save and self._wheel.changed < _MANY_CHANGED:
                return
            if (self.filed, self.fired) == self._saved_work:
                return
        try:
            if self._captured is None:
                self._capture()
            assert self._captured is not None
            check, durable = self._captured
            if self._store.durable_offset < durable:
                return
            await asyncio.to_thread(self._save, check)
        except OSError as error:
            log.error("%s is behind what the broker has in memory: %s", self.check_path, error)
            return
        self._captured = None
        self._syncing = []
        self._wheel.end_save()
        self._next_save = max(now + _SAVE_EVERY, time.monotonic() + (time.monotonic() - now) * 10)
        if now >= self._next_clean:
            self._next_clean = now + _CLEAN_EVERY
            try:
                self._log.remove_before(self._store.min_physical_offset)
            except OSError as error:
                log.error("old files of %s cannot be removed: %s", self._log.directory, error)

    def _capture(self) -> None:
        """Note what is to be saved once the CommitLog is on disk up to what is written now."""
        self._log.write()
        now = self._clock_ms()
        read = self._position(now)
        written = self._store.written_offset
        begun = self._begun[0][1] if self._begun else written
        check = TimerCheck(
            read_time=read * 1000,
            log_end=self._log.end,
            queue_offset=self._next,
            master_offset=self._next,
            timestamp=now,
            counter=self._check.counter + 1,
            log_offset=begun,
            log_start=self._log.start,
        )
        self._wheel.begin_save()
        self._metrics = self._numbers()
        self._syncing += self._log.take_unsynced()
        self._saved_work = self.filed, self.fired
        self._captured = check, written

    def _save(self, check: TimerCheck) -> None:
        """Timer log, then wheel, then checkpoint. On a thread, or at the end."""
        files = self._files
        for fd in self._syncing:
            files.fdatasync(fd)
        self._wheel.save()
        path = str(self.check_path)
        files.make_dirs(str(self.check_path.parent))
        fd = files.open(path, create=True)
        try:
            files.pwrite(fd, check.encode(), 0)
            files.fdatasync(fd)
        finally:
            files.close(fd)
        self._check = check
        save_json(self.metrics_path, self._metrics, files)

    # numbers

    def _count(self, topic: str, change: int) -> None:
        self._counts_version += 1
        entry = self._counts.setdefault(topic, [0, 0])
        entry[0] += change
        entry[1] = self._clock_ms()

    def _load_counts(self) -> None:
        table = (load_json(self.metrics_path, self._files) or {}).get("timingCount", {})
        self._counts = {topic: [int(each["count"]), int(each["timeStamp"])] for topic, each in table.items()}

    def _version(self) -> dict[str, Any]:
        return dict(DataVersion(timestamp=self._clock_ms(), counter=self._counts_version).to_json())

    @property
    def pending(self) -> int:
        """Messages that wait for their time."""
        return sum([max(0, count) for count, _ in self._counts.values()])

    @property
    def in_memory(self) -> int:
        """Messages that are due so soon that they are in memory."""
        return len(self._heap)

    def _sample(self, now: float) -> None:
        at, filed, fired = self._sampled
        if now - at >= 1:
            self._rates = (self.filed - filed) / (now - at), (self.fired - fired) / (now - at)
            self._sampled = now, self.filed, self.fired

    def runtime(self) -> dict[str, Any]:
        """The timer's part of a broker's runtime information: what waits, how far it is behind, messages a second."""
        running = self._running
        now = self._clock_ms()
        return {
            "timerCongestNum": self.pending,
            "timerDequeueTps": self._rates[1],
            "timerEnqueueTps": self._rates[0],
            "timerOffsetBehind": max(0, self._store.max_offset(TIMER_TOPIC, 0) - self._next) if running else 0,
            "timerReadBehind": max(0, second_of(now) - self._position(now)) if running else 0,
        }

    def _get_check(self, connection: Connection, request: Command) -> Reply:
        """GET_TIMER_CHECK_POINT: what a slave needs, 56 bytes."""
        if not self._running:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "The checkpoint is null")
        return encode_response(request, ResponseCode.SUCCESS, body=self._check.encode()[:CHECK_SIZE])

    def _get_metrics(self, connection: Connection, request: Command) -> Reply:
        """GET_TIMER_METRICS: messages that wait, by topic."""
        if not self._running:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "The timerMessageStore is null")
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(self._numbers()))

    def _numbers(self) -> dict[str, Any]:
        counts = {
            topic: {"count": count, "timeStamp": changed} for topic, (count, changed) in self._counts.items()
        }
        return {"dataVersion": self._version(), "timingCount": counts}
