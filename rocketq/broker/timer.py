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
were gone through (:mod:`rocketq.broker.timerfiles`), and only when all that was delivered by then is on disk. After a
crash the seconds since are gone through again. A delivered record carries the offset of the one that waited in its
field `preparedTransactionOffset`; that tells what was delivered already, so nothing is delivered twice.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rocketq import javajson
from rocketq import properties as props
from rocketq.broker.copies import append_copy
from rocketq.broker.timed import Waiting, properties_text, second_of, waiting_of
from rocketq.broker.timercounts import TimerCounts
from rocketq.broker.timerfiles import TimerFiles, find_delivered
from rocketq.broker.timerlist import waiting_for
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, StoreError, TopicBeingDeleted
from rocketq.hashing import tags_code as topic_hash
from rocketq.names import TIMER_TOPIC
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import CorruptRecord, decode_record
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import ListTimerHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.consumequeue import ENTRY
from rocketq.store.files import Files, store_error
from rocketq.store.store import MessageStore
from rocketq.store.timercheck import SIZE as CHECK_SIZE
from rocketq.store.timerlog import MAGIC_DEFAULT, MAGIC_DELETE, MAGIC_ROLL
from rocketq.store.timerwheel import SLOTS, Slot

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


class Timer:
    """Keeps and delivers timer messages. Everything runs on the loop's thread, checkpoints are written by another."""

    def __init__(
        self, config: BrokerConfig, directory: Path, files: Files, store: MessageStore, clock_ms: Callable[[], int]
    ) -> None:
        self._config = config
        self._store = store
        self._clock_ms = clock_ms
        self._files = TimerFiles(config, directory, files)
        self._log = self._files.log
        self._wheel = self._files.wheel
        self.counts = TimerCounts(clock_ms)
        self._running = False
        #: on a slave: how far its master is
        self._copied: bytes | None = None
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
        #: physical offsets of what an earlier run delivered and may find again, none of it due after …
        self._delivered: set[int] = set()
        self._delivered_until = 0
        self._caught_up = False
        # checkpoints
        self._saved_work = (0, 0)
        self._next_save = 0.0
        self._next_clean = 0.0
        #: it was said that the next file of the log cannot be made
        self._unprepared = False

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.GET_TIMER_CHECK_POINT: self._get_check,
            RequestCode.GET_TIMER_METRICS: self._get_metrics,
            RequestCode.LIST_TIMER_MESSAGES: self._list,
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
            self._files.close()
            raise store_error(
                f"cannot open the timer's files in {self._config.store_path_root_dir}", error
            ) from error
        self._running = True
        self.wake()

    def stop(self) -> None:
        """Stop delivering and save everything; the log was forced to disk before."""
        if not self._running:
            return
        self._running = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        try:
            self._settle()
            self._capture()
            if self._store.durable_offset >= self._files.durable:  # else the disk has failed, which was said
                self._files.save()
        except OSError as error:
            log.error("the timer's files could not be written while the broker stops: %s", error)
        finally:
            self._files.close()

    def _settle(self) -> None:
        """Take what was delivered out of the second that has begun: Apache's broker begins it anew."""
        read = self._position(self._clock_ms())
        if self._at <= read:
            return
        left = {key & _PHYSICAL for key in self._heap if second_of(key >> _SHIFT) <= read}
        if left:
            self._files.keep(read, left)
        else:
            self._read = read + 1

    def _recover(self) -> None:
        """Find out how far the last run got."""
        store, files = self._store, self._files
        low, high = store.min_offset(TIMER_TOPIC, 0), store.max_offset(TIMER_TOPIC, 0)
        now = self._clock_ms()
        saved = files.open(now)
        if saved is None:
            if low < high:
                log.warning(
                    "the timer's files are missing or damaged: all %d timer messages are gone through", high
                )
            first = store.consume_entry(TIMER_TOPIC, 0, low)
            self._next, self._read = low, second_of(now)
            delivered_from = first[0] if first else store.readable
        else:
            files.load_counts(self.counts.load)
            self._read = saved.read_time // 1000
            if self._read == second_of(now) + 1 > saved.timestamp // 1000:
                self._read -= 1  # see _settle; this second, in which the last run stopped, still takes messages
            self._next = files.replay(saved, self._read, store, self.counts.count)
            delivered_from = store.readable if saved.log_offset is None else saved.log_offset
        self._next = min(max(self._next, low), high)
        self._at = self._read
        self._horizon = self._read * 1000 << _SHIFT | _PHYSICAL
        delivered_from = max(delivered_from, store.min_physical_offset)
        self._delivered, last = find_delivered(store, delivered_from)
        # the clock may have been set back, and what was due before `_read` then stands in the wheel behind that
        behind = self._log.scan(saved.log_end if saved is not None else 0)
        late = [unit.at + 1 for _, unit in behind if unit.physical in self._delivered]
        self._delivered_until = max(now, last, self._read * 1000 + 2, *late)
        # also a crash of this run has to find them
        self._begun.append((second_of(self._delivered_until if self._delivered else now), delivered_from))

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
        self._handle, self._soon = None, False
        if not self._running:
            return
        wait = _RETRY_AFTER
        try:
            wait = self.turn()
        except (StoreError, OSError) as error:
            log.warning("timer messages wait, the store refuses them: %s", error)
        except Exception:  # whatever it is: nobody would notice that timer messages come no more
            log.exception("timer messages wait, they cannot be delivered")
        if not self._soon:  # nothing came meanwhile
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
        until = self._delivered_until
        if self._delivered and self._at > second_of(until):
            left = self._heap and self._heap[0] <= until << _SHIFT | _PHYSICAL
            if not left:  # all that was due by then is gone
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
            waiting = waiting_of(decode_properties(properties_text(data)))
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
        return self._place(physical, size, waiting, now)

    def _place(self, physical: int, size: int, waiting: Waiting, now: int) -> bool:
        """Put a message that is filed at `now` into the wheel; False when its place there is not free yet."""
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
        written = min(written, at)  # after weeks without power the difference has no room in a unit
        slot = self._wheel.get(second)
        position = self._log.append(
            slot.last if slot else -1, magic, written, at - written, physical, size, topic_hash(topic)
        )
        change = 1 if recalls is None else -1
        first, total = (slot.first, slot.total) if slot else (position, 0)
        self._wheel.put(second, Slot(first, position, total + change))
        self.counts.filed += 1
        if recalls is None:
            self.counts.count(topic, 1)
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
            due, topic, recalls = waiting_of(decode_properties(properties_text(data)))
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
        gone: Counter[str] = Counter()
        try:
            while heap and heap[0] < limit and len(taken) < _FIRE_PER_TURN:
                key = heapq.heappop(heap)
                taken.append(key)
                second = max(second_of(key >> _SHIFT), self._read)
                if not self._begun or self._begun[-1][0] < second:
                    self._begun.append((second, self._store.written_offset))
                # a message that was put into the wheel twice comes twice in a row
                again = key == self._last_key
                try:
                    topics.append(None if again else self._deliver(key >> _SHIFT, key & _PHYSICAL, now))
                except TopicBeingDeleted as error:  # that may take long, or fail, and others wait behind it
                    topics.append(error.topic)
                    gone[error.topic] += 1
                self._last_key = key
        finally:
            try:
                self._log.write()
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
                        self.counts.count(topic, -1)
                self.counts.fired += len(topics)
        for topic, count in gone.items():
            log.warning("timer: %d messages go with topic %s, it is being deleted", count, topic)
        return bool(heap) and heap[0] < limit

    def _deliver(self, at: int, physical: int, now: int) -> str | None:
        """Put one message under its real topic, or back into the timer's when it is due much later than it was filed
        for, which is `at`.

        Returns the real topic of a message that does not wait any more.
        """
        data = self._store.record_at(physical)
        try:
            if data is None:
                raise KeyError("it is gone")
            record = decode_record(data)
            properties = decode_properties(record.properties)
            due, real_topic, recalls = waiting = waiting_of(properties)
        except (CorruptRecord, KeyError, ValueError) as error:
            log.error("timer: the record at %d of the CommitLog cannot be used, it is lost: %s", physical, error)
            return None
        topic, queue_id = real_topic, int(properties[props.REAL_QID])
        counted = real_topic if recalls is None else None
        stored = record.store_timestamp
        more = {props.TIMER_ENQUEUE_MS: str(stored - stored % 1000), props.TIMER_DEQUEUE_MS: str(now)}
        if physical in self._delivered:
            return counted
        if at < due <= now and second_of(due) >= self._at:
            # after a long stop: recalls of it may be filed between then and now, and were not read yet
            self._place(physical, record.size, waiting, at)
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
        try:
            append_copy(
                self._store, record, topic, queue_id, text, properties, prepared_transaction_offset=physical + 1
            )
        except InvalidMessage as error:
            log.error("timer: the message of the record at %d is lost: %s", physical, error)
        return counted

    # checkpoints

    async def checkpoint(self) -> None:
        """Save how far the timer is when it is time for that. Called regularly; never raises OSError."""
        if not self._running:
            return
        now = time.monotonic()
        self.counts.sample(now)
        files, store = self._files, self._store
        if files.captured is None:
            if now < self._next_save and files.wheel.changed < _MANY_CHANGED:
                return
            work = self.counts.filed, self.counts.fired
            if work == self._saved_work:
                return
        try:
            if files.captured is None:
                if now >= self._next_clean:
                    self._next_clean = now + _CLEAN_EVERY
                    files.forget_before(store.min_physical_offset)
                self._capture()
                self._saved_work = work
            if store.durable_offset < files.durable:
                return
            await asyncio.to_thread(files.save)
        except OSError as error:
            log.error("%s is behind what the broker has in memory: %s", files.check_path, error)
            return
        files.saved()
        await self._prepare_next()
        self._next_save = max(now + _SAVE_EVERY, time.monotonic() + (time.monotonic() - now) * 10)
        try:
            await asyncio.to_thread(files.remove_forgotten)
        except OSError as error:
            log.error("old files of %s cannot be removed: %s", files.log.directory, error)

    async def _prepare_next(self) -> None:
        try:
            await asyncio.to_thread(self._log.prepare_next)
            self._unprepared = False
        except OSError as error:
            if not self._unprepared:
                log.warning("the next file of %s cannot be made yet: %s", self._log.directory, error)
            self._unprepared = True

    def _capture(self) -> None:
        """Note what is to be saved once the CommitLog is on disk up to what is written now."""
        now = self._clock_ms()
        read = self._position(now)
        written = self._store.written_offset
        begun = self._begun[0][1] if self._begun else written
        self._files.capture(read, self._next, begun, written, now, self.counts.to_json())

    # numbers

    @property
    def in_memory(self) -> int:
        """Messages that are due so soon that they are in memory."""
        return len(self._heap)

    def runtime(self) -> dict[str, Any]:
        """The timer's part of a broker's runtime information: what waits, how far it is behind, messages a second."""
        running = self._running
        now = self._clock_ms()
        filed, fired = self.counts.rates
        return {
            "timerCongestNum": self.counts.pending,
            "timerDequeueTps": fired,
            "timerEnqueueTps": filed,
            "timerOffsetBehind": max(0, self._store.max_offset(TIMER_TOPIC, 0) - self._next) if running else 0,
            "timerReadBehind": max(0, second_of(now) - self._position(now)) if running else 0,
        }

    def copy(self, check: bytes, counts: dict[str, Any] | None) -> None:
        """Remember what a master says of its timer, for those who ask. A slave that is started as a master finds in its
        log what was delivered."""
        if len(check) != CHECK_SIZE:
            raise ValueError(f"a timer's checkpoint has {CHECK_SIZE} bytes, not {len(check)}")
        self._copied = check
        if counts is not None:
            self.counts.load(counts)

    def _get_check(self, connection: Connection, request: Command) -> Reply:
        """GET_TIMER_CHECK_POINT: what a slave needs, 56 bytes."""
        if self._copied is not None:
            return encode_response(request, ResponseCode.SUCCESS, body=self._copied)
        if not self._running:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "The checkpoint is null")
        return encode_response(request, ResponseCode.SUCCESS, body=self._files.check.encode()[:CHECK_SIZE])

    def _get_metrics(self, connection: Connection, request: Command) -> Reply:
        """GET_TIMER_METRICS: messages that wait, by topic."""
        if not self._running and self._copied is None:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "The timerMessageStore is null")
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(self.counts.to_json()))

    def _list(self, connection: Connection, request: Command) -> Reply:
        """LIST_TIMER_MESSAGES: those of a topic that are due next, as they are stored."""
        header = request.header(ListTimerHeader)
        if not self._running:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "the broker keeps no timer messages")
        now = self._clock_ms()
        most = min(
            header.max_num, self.counts.of(header.topic)
        )  # behind the last one nothing has to be looked for
        seconds = range(self._position(now), second_of(now + self.window) + 2)
        recalled = {each for pairs in self._recalled.values() for each in pairs}
        found = waiting_for(self._store, self._wheel, self._log, header.topic, most, now, seconds, recalled)
        return encode_response(request, ResponseCode.SUCCESS, body=b"".join(found))
