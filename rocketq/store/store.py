"""The message store: what a broker appends to and reads from.

Appended messages get their offsets at once and are held; :meth:`MessageStore.write` puts all of them into the
CommitLog with one write, dispatches them to ConsumeQueues and index and tells `on_arrive`. With SYNC_FLUSH the
second half waits until a flush covers the batch: the flusher's thread calls `on_durable`, the owner calls
:meth:`MessageStore.advance`.

A store has one owner: all methods are called on one thread, unless they say otherwise. Three more threads exist inside:
one that flushes, one that saves checkpoints and removes files (the helper), and one that makes the next file of the log
ahead of need (the maker), which must not wait for the others on a slow disk. They touch files, and no table.

Saving a checkpoint: note the end of what is dispatched, write all ConsumeQueue entries and index entries up to
there (a part at each :meth:`MessageStore.maintain`), then, on the second thread, force the log and these files to
disk, then the checkpoint itself. Recovery begins at the last checkpoint that was saved.
"""

from __future__ import annotations

import logging
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from rocketq.errors import InvalidMessage, StoreError, StoreFull
from rocketq.hashing import tags_code
from rocketq.properties import MAX_LENGTH
from rocketq.record import BORN_HOST_V6, MAGIC_V1, STORE_HOST_V6, encode_record
from rocketq.store.commitlog import blank
from rocketq.store.config import StoreConfig
from rocketq.store.files import Buffer, Files, OsFiles, make_durable_dirs, store_error
from rocketq.store.flush import Flusher
from rocketq.store.following import Following
from rocketq.store.marks import Checkpoint, Marks
from rocketq.store.reader import Reader, store_time_of
from rocketq.store.recovery import recover
from rocketq.store.retention import Retention
from rocketq.store.values import Appended, GetStatus, QueryResult, ReadResult, Recovery

__all__ = ["Appended", "GetStatus", "MessageStore", "QueryResult", "ReadResult", "Recovery"]

log = logging.getLogger("rocketq.store")

_HEAD = struct.Struct(">IIIiiqqiq8sq8siqi")
_WIDTH = struct.Struct(">H")
_V6 = BORN_HOST_V6 | STORE_HOST_V6
_PREPARED = 4  # sysFlag bit of prepared and rolled back transactional messages: no queue offset

#: Seconds between checkpoints.
_CHECKPOINT_EVERY = 5.0
#: ConsumeQueues that one `maintain` writes for a checkpoint …
_QUEUES_PER_TURN = 200
#: … and that every batch writes meanwhile, so that thousands of queues are done in seconds without a pause.
_QUEUES_PER_BATCH = 2
#: The same for a turn of the loop when somebody waits for the checkpoint.
_QUEUES_PER_STEP = 20


#: From so many files and directories on, forcing the whole system's data to disk takes less time than forcing each.
_SYNC_ALL = 256
#: The next file of the log is made when less than this part of the last one is left …
_PREPARE_AT = 2
#: … and messages of clients have to wait for it when there is less than this part. Of files that are smaller than
#: _TINY a turn of the loop may fill as much, so these are waited for when they are needed.
_KEEP_BACK = 8
_TINY = 16 << 20
#: Bytes that have to be free before a full store is written to again, where no new CommitLog file is needed.
_ENOUGH = 16 << 20


#: Why a store that follows another one takes no messages.
FOLLOWS = "this broker is a slave: only its master takes messages"


def _now_ms() -> int:
    return int(time.time() * 1000)


class MessageStore(Reader):
    """A store in one directory; see the module's text.

    `on_arrive(messages)`: called on the owner's thread when messages have become readable, in order.
    `on_durable(offset)`: called on another thread when the log is on disk up to `offset`.
    `writable`, `why_not_writable`: False with a sentence while the disk is full, past its mark or broken.
    `follows`: it takes the bytes of another store's log with :meth:`append_raw`, and no messages.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        files: Files | None = None,
        clock_ms: Callable[[], int] = _now_ms,
        follows: bool = False,
    ) -> None:
        super().__init__(config, files or OsFiles())
        self._following = (
            Following(self.log, self.consume_queues, self.index, config.delay_levels()) if follows else None
        )
        self._clock_ms = clock_ms
        self._sync = config.sync_flush
        self._marks = Marks(config.store_path_root_dir, self.files)
        self._flusher = Flusher(self.log, 0 if self._sync else config.flush_interval_commit_log / 1000)
        self._flusher.on_durable = self._durable
        self.on_arrive: Callable[[list[Appended]], None] | None = None
        self.on_durable: Callable[[int], None] | None = None
        self.writable = False
        self.why_not_writable = "the store is not open"
        self._broken = ""  # a reason that stays
        self._full = ""  # a reason that goes away when so many bytes are free:
        self._needed = 0
        self._disk_warned = False
        # the batch that is being collected
        self._batch: list[Appended] = []
        self._parts: list[Buffer] = []
        self._parts_at = 0
        self._chunks: list[tuple[int, list[Buffer]]] = []
        self._tail = 0
        self._room = 0
        self._table = self.consume_queues.table
        # batches that wait for `advance`, with SYNC_FLUSH for the disk
        self._undispatched: deque[tuple[int, list[Appended]]] = deque()
        #: how many messages these are
        self.undispatched = 0
        self._last: tuple[int, int] = (-1, 0)  # offset and store time of the last dispatched record
        # checkpoints
        self._helper: ThreadPoolExecutor | None = None
        self._maker: ThreadPoolExecutor | None = None
        self._preparing: Future[None] | None = None
        self._prepared_at = -1  # where the file begins that was last asked for
        self._saving: Future[None] | None = None
        self._goal: tuple[Checkpoint, int] | None = None
        self._saved_offset = 0
        self._saved_at = 0.0
        self._saved_last = -1  # the last record before the checkpoint that was begun …
        self._safe = -1  # … and before the one that is on disk
        self.retention = Retention(
            config, self.log, self.consume_queues, self.index, self.files, self._stored_at, clock_ms
        )

    # opening and closing

    def open(self) -> Recovery:
        """Take the directory, recover what is in it, and begin to serve. Once per object: make a new one to try again.

        Raises StoreLocked (naming the owner's pid), StoreFull, or StoreError when the disk fails or the log is
        damaged (see :mod:`rocketq.store.recovery`); the store is closed then.
        """
        try:
            self._marks.lock()
            clean = self._marks.is_clean()
            try:
                return self._open(clean)
            except BaseException:
                self.log.close()
                self.consume_queues.close()
                self.index.close()
                if clean:
                    self._marks.clear_abort()
                self._marks.unlock()
                raise
        except OSError as error:
            raise store_error(f"cannot open the store in {self.config.store_path_root_dir}", error) from error

    def _open(self, clean: bool) -> Recovery:
        config, queues = self.config, self.consume_queues
        checkpoint = self._marks.load()
        self._marks.set_abort()
        self.log.open()
        self.log.complete()
        make_durable_dirs(self.files, queues.directory)  # here, where nobody waits for it
        queues.scan()
        if not clean:
            queues.distrust()
            self.files.fsync_dir(self.log.directory)
        self.index.enabled = config.message_index_enable
        self.index.open()
        report, last = recover(
            self.log,
            queues,
            self.index,
            checkpoint,
            self.files,
            clean=clean,
            check_crc=config.check_crc_on_recover,
            delays=config.delay_levels(),
            forget=lambda: self._marks.save(checkpoint.without_queues()),
        )
        end = report.end
        if last is not None:
            self._last = (last.offset, last.store_timestamp)
        self.readable = self._tail = self._parts_at = end
        self._unchecked = report.checked_from if config.check_crc_on_recover else end
        self._room = self.log.room(end)
        # what was recovered was written by another process, and perhaps never forced to disk
        for file in self.log.files:
            if file.start < end and file.end > report.checked_from:
                self.log.writable(file.start)
        self.log.sync(report.checked_from, end)
        self._flusher.start(end)
        if self._following is None and not self.log.files:
            self._prepare()  # here, where nobody waits for it
        self._helper = ThreadPoolExecutor(1, "rocketq-store")
        self._maker = ThreadPoolExecutor(1, "rocketq-allocate")
        # what was dispatched again is saved by the first calls of `maintain`: there may be thousands of files
        done = clean and not report.records
        self._saved_offset = end if done else -1
        self._saved_at = time.monotonic() if done else float("-inf")
        self._safe = checkpoint.last if done else -1
        self._judge()
        log.info("store %s is open: %s", config.store_path_root_dir, report)
        return report

    def close(self) -> None:
        """Force everything to disk and give the directory back. Raises StoreError when that was not possible.

        Messages that were appended and not written are forgotten.
        """
        if self._helper is None:
            return
        self._take_back()
        self._end_threads()
        self._flusher.on_durable = None
        self._flusher.stop()
        self.advance()
        self.retention.finish()
        self._drop_partial()
        self.writable, self.why_not_writable = False, "the store is closed"
        try:
            if not self._broken and not self._flusher.failure:
                self._save_now()
                if self._broken:
                    raise StoreError(self._broken)
                self.log.drop_prepared()
                self._marks.clear_abort()
        except OSError as error:
            raise store_error(f"cannot close the store in {self.config.store_path_root_dir}", error) from error
        finally:
            self.log.close()
            self.consume_queues.close()
            self.index.close()
            self._marks.unlock()

    def _end_threads(self) -> None:
        """Let all but the flusher finish what they were given."""
        for executor in (self._helper, self._maker):
            if executor is not None:
                executor.shutdown()
        self._helper = self._maker = None

    def _drop_partial(self) -> None:
        """Cut off a record of which only a part has come; it comes again."""
        flusher = self._flusher
        if self._following is None or flusher.written == self.readable or self._broken or flusher.failure:
            return
        try:
            self.log.cut(self.readable)
        except OSError as error:
            log.warning("the next start has to cut the log at %d: %s", self.readable, error)
        else:
            flusher.written = flusher.durable = self.readable

    # appending

    def append(
        self,
        topic: str,
        queue_id: int,
        body: Buffer,
        properties: str,
        *,
        tag: str | None,
        unique_id: str | None,
        keys: str | None,
        flag: int,
        sys_flag: int,
        born_timestamp: int,
        born_host: bytes,
        store_host: bytes,
        reconsume_times: int = 0,
        prepared_transaction_offset: int = 0,
        deliver_time: int | None = None,
    ) -> Appended:
        """Give a message its place; nothing is written before :meth:`write`.

        `properties` is the whole property string; `tag`, `unique_id` and `keys` are what it says under TAGS,
        UNIQ_KEY and KEYS. `deliver_time` (ms) takes the place of the tag's code for delayed messages. Hosts are
        packed (:func:`rocketq.record.pack_host`). Raises StoreFull while the store is not writable, InvalidMessage
        when properties or record are too long for their place.
        """
        if not self.writable:
            raise StoreFull(self.why_not_writable)
        queue = self._table.get((topic, queue_id)) or self.consume_queues.obtain(topic, queue_id)
        raw = properties.encode()
        width = len(raw)
        if width > MAX_LENGTH:
            raise InvalidMessage(
                f"the properties of a message to {topic} have {width} bytes, {MAX_LENGTH} is the most"
            )
        length = len(body)
        size = queue.overhead + length + width + len(born_host) + len(store_host) - 16
        offset = self._tail
        if offset + size > self._room:
            offset = self._roll(topic, size)
        queue_offset = 0 if sys_flag & _PREPARED else queue.next_offset
        now = self._clock_ms()
        if len(born_host) == 8 and len(store_host) == 8 and len(queue.topic_raw) <= 127:
            head = _HEAD.pack(
                size,
                MAGIC_V1,
                zlib.crc32(body) & 0x7FFFFFFF,
                queue_id,
                flag,
                queue_offset,
                offset,
                sys_flag & ~_V6,
                born_timestamp,
                born_host,
                now,
                store_host,
                reconsume_times,
                prepared_transaction_offset,
                length,
            )
            self._parts += (head, body, queue.topic_head + _WIDTH.pack(width) + raw)
        else:
            record = encode_record(
                queue_id,
                queue_offset,
                offset,
                queue.topic_raw,
                bytes(body),
                raw,
                flag,
                sys_flag,
                born_timestamp,
                born_host,
                now,
                store_host,
                reconsume_times,
                prepared_transaction_offset,
            )
            self._parts.append(record)
        self._tail = offset + size
        if not sys_flag & _PREPARED:
            queue.next_offset = queue_offset + 1
        if deliver_time is None:
            deliver_time = tags_code(tag) if tag else 0
        appended = Appended(
            topic,
            queue_id,
            queue_offset,
            offset,
            size,
            now,
            deliver_time,
            sys_flag,
            queue,
            unique_id,
            keys,
            tag,
        )
        self._batch.append(appended)
        return appended

    def _roll(self, topic: str, size: int) -> int:
        """Fill the file up and go to the next one; returns its first offset."""
        if size + 8 > self.config.mapped_file_size_commit_log:
            raise InvalidMessage(
                f"a message to {topic} takes {size} bytes and does not fit into a CommitLog file of "
                f"mappedFileSizeCommitLog={self.config.mapped_file_size_commit_log}"
            )
        end = self._room + 8
        if self._tail < end:
            self._parts.append(blank(end - self._tail))
        self._next_chunk(end)
        self._tail = end
        self._room = self.log.room(end)
        if end + size > self._room:  # a file that was made before, when they were smaller
            return self._roll(topic, size)
        return end

    def _next_chunk(self, offset: int) -> None:
        if self._parts:
            self._chunks.append((self._parts_at, self._parts))
            self._parts = []
        self._parts_at = offset

    def write(self, dispatch: bool = True) -> list[Appended]:
        """Write everything that was appended since the last call; returns it.

        Without SYNC_FLUSH it is readable then, or, without `dispatch`, when `advance` is called. Raises StoreFull or
        StoreError when that fails: nothing of the batch is stored then, and its offsets are free again.
        """
        batch = self._batch
        if not batch:
            return batch
        flusher = self._flusher
        if self._chunks:
            self._next_chunk(self._tail)
            chunks, self._chunks = self._chunks, []
        else:
            chunks = [(self._parts_at, self._parts)]
            self._parts = []
        try:
            for offset, parts in chunks:
                self.log.write(offset, parts)
        except OSError as error:
            raise self._write_failed(error, flusher.written) from error
        self._batch = []
        end = self._parts_at = self._tail
        self._written(end)
        self._undispatched.append((end, batch))
        self.undispatched += len(batch)
        if dispatch and not self._sync:
            self.advance()
        return batch

    def raw(self, offset: int, size: int) -> memoryview | None:
        """Up to `size` bytes of the log from `offset` on that may be read, all of one file; None: there are none."""
        file = self.log.find(offset)
        end = min(offset + size, self.readable, file.end) if file is not None else offset
        return self.log.view(offset, end - offset) if end > offset else None

    @property
    def last_file(self) -> int:
        """Where the file begins that is written to: an empty store that follows this one begins there too."""
        file = self.log.find(self.readable)
        return self.readable if file is None else file.start

    def append_raw(self, offset: int, data: bytes) -> None:
        """Write bytes of the log that this store follows. Whole records become readable, as in :meth:`write`.

        They have to begin where this log ends; an empty one begins with them. Raises StoreError when they do not, or
        cannot be part of a log whose files have this store's size, or cannot be written, and StoreFull until
        :meth:`maintain` finds room again; nothing is written then.
        """
        assert self._following is not None
        flusher = self._flusher
        if self._broken or flusher.failure:
            raise StoreError(self._broken or flusher.failure)
        if self._full:  # entries that cannot be written are kept in memory
            raise StoreFull(self._full)
        end = offset + len(data)
        size = self.config.mapped_file_size_commit_log
        begins = not flusher.written and (offset > 0 or not self.log.files)
        if offset != flusher.written and not begins:
            raise StoreError(f"bytes from {offset} on do not continue a log that ends at {flusher.written}")
        if offset // size != (end - 1) // size or (begins and offset % size):
            raise StoreError(
                f"the files of the log that is followed are not of {size} bytes: set mappedFileSizeCommitLog to the "
                "master's, and remove this store, which is copied again then"
            )
        try:
            if begins:  # perhaps elsewhere than when an earlier run was killed before it had a message
                self.log.clear()
                flusher.written = flusher.durable = self.readable = offset
            self.log.write(offset, [data])
        except OSError as error:
            raise self._write_failed(error, flusher.written) from error
        self._tail = self._parts_at = end
        self._written(end)
        if not self._sync:
            self._take_in(end)

    def _take_in(self, end: int) -> None:
        """Make what is whole up to `end` readable. Raises StoreError when it is no log."""
        following = self._following
        assert following is not None
        while self.readable < end:
            stop, batch = following.take(self.readable, end)
            self._unchecked = max(self._unchecked, following.damaged)
            if batch:
                self._dispatch(stop, batch)
            if stop == self.readable and not batch:
                return
            self.readable = stop

    def flush(self) -> None:
        """Force what is written to disk, on this thread."""
        self._flusher.flush()

    def _written(self, end: int) -> None:
        """The log has got as far as this: the flusher may go on, and the next file may have to be made."""
        self._flusher.advance(end)
        if self.log.end != self._prepared_at:
            self._prepare_next()

    def force(self, offset: int) -> None:
        """Return when the log is on disk up to `offset`. May run on any thread. Raises StoreError."""
        if self._flusher.durable < offset:
            self._flusher.flush()
            if self._flusher.durable < offset:
                raise StoreError(self._flusher.failure or f"the log is not on disk up to {offset}")

    def _write_failed(self, error: OSError, written: int) -> StoreError:
        """Make as if the batch had never been."""
        failure = store_error(f"cannot write to the CommitLog in {self.log.directory}", error)
        try:
            # what was written of the batch must not be found by a recovery
            self.log.cut(written)
        except OSError as second:
            self._broken = f"{failure}; nor can what was written of the batch be taken back ({second}): restart"
        self._take_back()
        if isinstance(failure, StoreFull):
            self._run_full(failure)
        elif not self._broken:
            self._broken = f"{failure}: check the disk and restart"
        self._judge()
        return failure

    def _take_back(self) -> None:
        """Forget the batch that is being collected."""
        for appended in reversed(self._batch):
            if not appended.sys_flag & _PREPARED:
                appended.queue.next_offset = appended.queue_offset
        self._batch, self._parts, self._chunks = [], [], []
        self._tail = self._parts_at = self._flusher.written
        self._room = self.log.room(self._tail)

    def _dispatch(self, end: int, batch: list[Appended]) -> None:
        """Make messages readable."""
        queues, index = self.consume_queues, self.index
        self.readable = end
        last = batch[-1]
        self._last = (last.physical_offset, last.store_timestamp)
        index.add(batch)
        try:
            queues.dispatch(batch)
            if self._goal is None:
                queues.relieve()
            else:
                queues.flush(_QUEUES_PER_BATCH)
            index.relieve()
        except OSError as error:
            self._derived_failed(error)
        if self.on_arrive is not None:
            self.on_arrive(batch)

    def _derived_failed(self, error: OSError) -> None:
        """Entries could not be written; they are kept in memory, so no more may come."""
        failure = store_error("cannot write ConsumeQueue or index files", error)
        self._run_full(failure)
        self._judge()

    def _run_full(self, failure: StoreError) -> None:
        new_file = self.log.find(self._tail) is None
        self._needed = self.config.mapped_file_size_commit_log if new_file else _ENOUGH
        self._full = f"{failure}; free {self._needed >> 20} MiB, writing goes on by itself"

    def _durable(self, offset: int) -> None:
        """On the flusher's thread."""
        on_durable = self.on_durable
        if on_durable is not None:
            on_durable(offset)

    def advance(self) -> int:
        """Dispatch what was written, with SYNC_FLUSH what a flush has covered; returns `durable_offset`."""
        durable = self._flusher.durable
        if self._following is not None and self._sync:
            self._take_in(durable)
        waiting, may_be_read = self._undispatched, durable if self._sync else self._flusher.written
        while waiting and waiting[0][0] <= may_be_read:
            end, batch = waiting.popleft()
            self.undispatched -= len(batch)
            self._dispatch(end, batch)
        if self._flusher.failure and not self._broken:
            self._broken = self._flusher.failure
            self._judge()
        return durable

    @property
    def written_offset(self) -> int:
        """End of what was written."""
        return self._flusher.written

    @property
    def durable_offset(self) -> int:
        """End of what is known to be on disk."""
        return self._flusher.durable

    # upkeep

    def configure(self, config: StoreConfig) -> None:
        """Take over marks of the disk and the settings of retention; others count only when a store is opened."""
        self.config = self.retention.config = config

    def _stored_at(self, offset: int) -> int | None:
        record = self.record_at(offset)
        return store_time_of(record) if record is not None else None

    def forget_topic(self, topic: str) -> Future[None] | None:
        """Forget the queues of a topic, first step: done when their files are gone and what was appended before is on
        disk. Its records stay in the log until their files go. None when it has no queues. Raises StoreError.

        Nothing can be appended to the topic from now on, until :meth:`topic_gone`.
        """
        helper = self._helping()
        self.write()
        if not self.consume_queues.forget(topic):
            return None
        return helper.submit(self._remove_queues, topic)

    def _remove_queues(self, topic: str) -> None:
        """On the helper's thread."""
        self._flusher.flush()
        try:
            self.consume_queues.remove(topic)
        except OSError as error:
            what = f"cannot delete the queues of topic {topic}, which takes nothing until it is deleted again"
            where = error.filename or self.consume_queues.directory
            raise store_error(f"{what}: {where}", error) from error

    def begin_checkpoint(self) -> None:
        """Second step: let a checkpoint be saved, so that an unclean stop does not bring the queues back.

        Raises StoreError.
        """
        self._helping()
        self.advance()
        try:
            self.index.flush()
        except OSError as error:
            raise store_error("cannot write index files", error) from error
        self._set_goal()

    def continue_checkpoint(self) -> Future[None] | None:
        """Third step, of some ms as there may be thousands of queues: call it until it returns a future, which is done
        when the checkpoint is saved.

        Raises StoreError.
        """
        self._helping()
        try:
            if self._goal is not None:
                self._approach_goal(_QUEUES_PER_STEP)
        except OSError as error:
            raise store_error("cannot write ConsumeQueue files", error) from error
        return self._saving if self._goal is None else None

    def topic_gone(self, topic: str) -> None:
        """Last step: the topic may begin anew. Raises StoreError when the checkpoint could not be saved."""
        if self._broken or self._flusher.failure:
            raise StoreError(self._broken or self._flusher.failure)
        self.consume_queues.forgotten(topic)

    def _helping(self) -> ThreadPoolExecutor:
        if self._helper is None:
            raise StoreError("the store is closed")
        return self._helper

    def maintain(self) -> None:
        """Regular work of a few ms, to be called on the owner's thread once or twice a second."""
        self.advance()
        self._prepare_next()
        try:
            self.index.flush()
            self._checkpoint()
        except OSError as error:
            self._derived_failed(error)
        else:
            if self._full and self.files.disk(self.log.directory)[1] > self._needed:
                self._full = ""
        if self._helper is not None:
            try:
                self.retention.step(min(self._safe, self.durable_offset), self._helper)
            except OSError as error:
                log.error("old files of %s cannot be removed: %s", self.config.store_path_root_dir, error)
        self._judge()
        self.log.close_before(self.durable_offset)
        self.log.release()
        self.index.release()

    def _judge(self) -> None:
        """Decide whether the store is writable."""
        why = self._broken or self._flusher.failure or self._full
        if not why:
            used, free = self.files.disk(self.log.directory)
            limit = self.config.disk_space_warning_level_ratio
            self._warn(used * 100, free)
            if used * 100 >= limit:
                why = (
                    f"the disk of {self.log.directory} is {used:.1%} full, diskSpaceWarningLevelRatio={limit} is "
                    f"reached ({free >> 20} MiB are free): free space, writing goes on by itself"
                )
        if why != self.why_not_writable and (why or self.why_not_writable != FOLLOWS):
            if why:
                log.error("writes are refused: %s", why)
            elif not self.writable:
                log.info("the store is writable")
        self.writable, self.why_not_writable = not why, why
        if self._following is not None and not why:
            self.writable, self.why_not_writable = False, FOLLOWS

    def _warn(self, used: float, free: int) -> None:
        """Say once when the disk is past its first mark."""
        full = used >= self.config.disk_max_used_space_ratio
        if full and not self._disk_warned:
            log.warning("the disk of %s is %.1f%% full, %d MiB are free", self.log.directory, used, free >> 20)
        self._disk_warned = full

    def _prepare_next(self) -> None:
        """Have the next file made before it is needed."""
        size = self.config.mapped_file_size_commit_log
        if self._maker is None or self.log.has_next or self.log.end - self._tail > size // _PREPARE_AT:
            return
        if self._following is not None and not self.log.files:
            return  # where it begins is not known yet
        if self._preparing is None or self._preparing.done():
            self._prepared_at = self.log.end
            self._preparing = self._maker.submit(self._prepare)

    @property
    def starved(self) -> bool:
        """Whether the last file is nearly full while the disk is making the next one: writing on may wait for it."""
        size = self.config.mapped_file_size_commit_log
        if self.log.end - self._tail > size // _KEEP_BACK or size < _TINY or self.log.has_next:
            return False
        return self._preparing is not None and not self._preparing.done()

    def _prepare(self) -> None:
        """On the maker's thread, or at the start."""
        try:
            self.log.prepare_next()
        except OSError as error:
            log.warning("the next CommitLog file cannot be made yet: %s", error)

    def _note(self) -> Checkpoint:
        """The checkpoint that may be saved once everything that is dispatched now is on disk."""
        last, timestamp = self._last
        return Checkpoint(
            timestamp, timestamp, self.index.full_timestamp, self.readable, last, self.consume_queues.count()
        )

    def _checkpoint(self) -> None:
        """One step towards the next checkpoint, when it is time for one."""
        if self._saving is not None:
            if not self._saving.done():
                return
            self._saving.result()
            if not self._broken:
                self._safe = self._saved_last
        if self._goal is None:
            if time.monotonic() - self._saved_at < _CHECKPOINT_EVERY or self._saved_offset == self.readable:
                return
            self._set_goal()
        self._approach_goal(_QUEUES_PER_TURN)

    def _set_goal(self) -> None:
        """Begin a checkpoint of what is dispatched now; its index entries are written."""
        queues = self.consume_queues
        self._goal = self._note(), queues.flushes + queues.dirty_count

    def _approach_goal(self, most: int) -> None:
        """Write the entries of up to so many queues. When all are written that were when it was set, it is saved."""
        assert self._goal is not None
        checkpoint, flushes = self._goal
        queues = self.consume_queues
        queues.flush(min(most, flushes - queues.flushes))
        if queues.flushes < flushes or self._helper is None:
            return
        self._goal = None
        self._saved_at = time.monotonic()
        self._saved_offset, self._saved_last = checkpoint.offset or 0, checkpoint.last
        self._saving = self._helper.submit(self._save, checkpoint, *self._changed())

    def _changed(self) -> tuple[set[str], set[str]]:
        files, directories = self.consume_queues.take_changed()
        more_files, more_directories = self.index.take_changed()
        return files | more_files, directories | more_directories

    def _save(self, checkpoint: Checkpoint, paths: Collection[str], directories: Collection[str]) -> None:
        """Force log and derived files to disk, then save the checkpoint. On the helper's thread, or at the end."""
        files = self.files
        self._flusher.flush()
        if self._flusher.failure or self._broken:
            return
        try:
            if len(paths) + len(directories) > _SYNC_ALL:
                files.sync_all()
                paths, directories = [], []
            for path in sorted(paths):
                with suppress(FileNotFoundError):  # its topic was deleted meanwhile
                    fd = files.open(path)
                    try:
                        files.fdatasync(fd)
                    finally:
                        files.close(fd)
            for directory in sorted(directories):
                with suppress(FileNotFoundError):
                    files.fsync_dir(directory)
            self._marks.save(checkpoint)
        except OSError as error:
            # what was not saved now may never be: no later checkpoint of this run may claim that it was
            self._broken = (
                f"ConsumeQueue or index files could not be forced to disk ({error}): check it and restart"
            )
            log.error("%s", self._broken)

    def _save_now(self) -> None:
        """Save a checkpoint of everything, on this thread."""
        if self._saving is not None:
            self._saving.result()
        self._goal = None
        self.index.flush()
        self.consume_queues.flush(self.consume_queues.dirty_count)
        checkpoint = self._note()
        self._save(checkpoint, *self._changed())
        self._saved_offset = checkpoint.offset or 0
