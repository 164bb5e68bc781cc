"""The end of a read: everything that was appended is written with one call, and everybody gets an answer.

Answers are built from byte templates. With SYNC_FLUSH they wait, batch by batch, until the flusher has forced the log
to the disk; one `fdatasync` then answers all batches that it covers. With SYNC_MASTER they wait in the same way until
enough slaves have the log up to there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rocketq import properties as props
from rocketq.broker.statistics import Statistics
from rocketq.config import BrokerConfig
from rocketq.errors import StoreError, StoreFull, TopicBeingDeleted
from rocketq.properties import encode_properties
from rocketq.remoting.codes import FLAG_RESPONSE, JSON, VERSION, Language, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Buffer, Connection
from rocketq.store.store import Appended, MessageStore

if TYPE_CHECKING:
    from rocketq.broker.hamaster import HaMaster

log = logging.getLogger("rocketq.broker")

#: Sends are refused when more bytes than this are written and not yet forced to disk …
MAX_UNFLUSHED = 512 * 1024 * 1024
#: … or, with SYNC_FLUSH, more messages: also those that nobody waits for, or waits for any more.
MAX_UNSEEN = 100_000

#: What producers are told then, and when more than `sendThreadPoolQueueCapacity` of them wait.
DISK_BUSY = "[PC_SYNCHRONIZED]broker busy, start flow control for a while"
QUEUE_FULL = "[OVERLOAD]system busy, start flow control for a while"

#: (opaque, serialize type, transaction id, queue id, appended, all appended of a request with several messages,
#: recall handle):
#: the answer to a send. With buffers in the place of what was appended these are the answer, ready made.
Pending = tuple[int, int, str | None, int, "Appended | list[Buffer]", list[Appended] | None, str]

_FRAME = struct.Struct(">iI")
_INT = struct.Struct(">i")
#: A header up to the length of the value of queueId, the first of its ext fields.
_BINARY_HEAD = struct.Struct(">hBhiiiih7si")
_TRANSACTION_KEY = b"\x00\x0dtransactionId"
_PYTHON = int(Language.PYTHON)


class _Waiting(NamedTuple):
    """Answers that wait until the log is durable up to `end`; they say `code` then."""

    end: int
    deadline: float
    connection: Connection
    pending: list[Pending]
    code: int


def _json_text(text: str) -> str:
    """`text` as it stands between the quotes of a JSON string."""
    return text if text.isalnum() else json.dumps(text, ensure_ascii=False)[1:-1]


def _binary_entry(key: str, value: str) -> bytes:
    raw = value.encode()
    return len(key).to_bytes(2, "big") + key.encode() + _INT.pack(len(raw)) + raw


def full_remark(error: StoreFull) -> str:
    """What a producer is told when nothing can be stored."""
    if isinstance(error, TopicBeingDeleted):
        return f"service not available now. {error}"
    return f"service not available now. The broker's disk is full, or writing was stopped: {error}"


class Batch:
    """What was appended since the last write, and who waits for it.

    `busy` asks for flow control: what producers are told while the disk does not keep up, else nothing.
    """

    def __init__(self, config: BrokerConfig, store: MessageStore, statistics: Statistics) -> None:
        self._config = config
        self._store = store
        self._statistics = statistics
        self._sync = config.flush_disk_type == "SYNC_FLUSH"
        #: brokers that have to have a message before it is answered; 1: this one
        self._copies = config.in_sync_replicas if config.broker_role == "SYNC_MASTER" else 1
        self._waits = self._sync or self._copies > 1
        #: who knows what slaves have
        self.replicas: HaMaster | None = None
        self._owner: Connection | None = None
        self._appended = 0
        self._pending: list[Pending] = []
        self._for_disk: list[Pending] = []  # without slaves under SYNC_MASTER
        self._unwaited: list[Pending] = []  # with WAIT=false
        self._undo: list[Callable[[], None]] = []
        self._waiting: deque[_Waiting] = deque()
        #: those that wait for slaves as well
        self._waiting_for_slaves: deque[_Waiting] = deque()
        self._waiting_answers = 0
        self.busy = ""
        #: what has to be on disk before anything is taken again, because the system was slow to take it
        self._catch_up = 0
        self.store_host = b""
        self._host_hex = ""
        self.config_changed()

    def start(self, store_host: bytes) -> None:
        """Begin to serve. `store_host` is the packed address of this broker, part of every record and id."""
        self.store_host = store_host
        self._host_hex = store_host.hex().upper()
        if self._sync:
            loop = asyncio.get_running_loop()

            def durable(offset: int) -> None:  # on the flusher's thread
                loop.call_soon_threadsafe(self._durable)

            self._store.on_durable = durable

    def config_changed(self) -> None:
        """Read the settings anew that may change while the broker runs."""
        config = self._config
        trace = "true" if config.trace_on else "false"
        #: part of every answer to a send, also of refusals
        self.ext = {props.MSG_REGION: config.region_id, props.TRACE_ON: trace}
        #: what the broker adds to the properties of a message
        self.own_properties = encode_properties({**self.ext, props.CLUSTER: config.broker_cluster_name})
        self._json_ext = f'"MSG_REGION":"{_json_text(config.region_id)}","TRACE_ON":"{trace}"'
        self._binary_ext = b"".join([_binary_entry(key, value) for key, value in self.ext.items()])

    def add(
        self,
        connection: Connection,
        request: Command,
        transaction_id: str,
        queue_id: int,
        appended: Appended,
        several: list[Appended] | None = None,
        wait: bool = True,
        undo: Callable[[], None] | None = None,
        recall_handle: str = "",
    ) -> None:
        """Note that `request` sent a message (or `several`) and is answered when they are written.

        Without `wait` the answer waits neither for the disk nor for slaves.
        """
        entry = (
            request.opaque,
            request.serialize_type,
            transaction_id,
            queue_id,
            appended,
            several,
            recall_handle,
        )
        self._add(connection, request, entry, 1 if several is None else len(several), wait)

    def reply(
        self,
        connection: Connection,
        request: Command,
        answer: bytes | list[Buffer],
        count: int = 1,
        wait: bool = True,
        slaves: bool = True,
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Note that `request` appended `count` records and gets the frame `answer` when they are written.

        When they cannot be written it gets an error instead, and `undo` takes back what is in memory by then.
        `wait` as for `add`; without `slaves` it waits for the disk only. With a `count` of 0 the answer waits for
        what was appended before.
        """
        buffers: list[Buffer] = [answer] if isinstance(answer, bytes) else answer
        entry = (request.opaque, request.serialize_type, None, 0, buffers, None, "")
        self._add(connection, request, entry, count, wait, slaves)
        if undo is not None:
            self._undo.append(undo)

    def _add(
        self,
        connection: Connection,
        request: Command,
        entry: Pending,
        count: int,
        wait: bool,
        slaves: bool = True,
    ) -> None:
        if self._owner is not connection:
            if self._owner is not None:  # left behind by another connection
                self._finish()
            self._owner = connection
        self._appended += count
        if request.flag & 2:
            return
        if not self._waits or (wait and (slaves or self._copies == 1)):
            self._pending.append(entry)
        elif wait and self._sync:
            self._for_disk.append(entry)
        else:
            self._unwaited.append(entry)

    def end(self) -> None:
        """Write what was appended, and answer it or let it wait for the disk."""
        if self._owner is not None:
            self._finish()

    def end_and_flush(self, connection: Connection) -> None:
        """The same when nothing more comes of `connection` now: its answers leave before what came becomes readable."""
        if self._owner is None:
            connection.flush()
            return
        try:
            self._finish(dispatch=False)
            connection.flush()
        finally:
            self._store.advance()

    def _finish(self, dispatch: bool = True) -> None:
        connection, pending, count = self._owner, self._pending, self._appended
        assert connection is not None
        for_disk, unwaited = self._for_disk, self._unwaited
        undo = self._undo
        self._owner, self._appended, self._pending, self._undo = None, 0, [], []
        if for_disk:
            self._for_disk = []
        store, statistics = self._store, self._statistics
        before = store.written_offset
        begun = time.perf_counter()
        try:
            store.write(dispatch)
        except StoreError as error:
            self._unwaited = []
            statistics.put_failed += count
            for take_back in reversed(undo):
                take_back()
            self._fail(connection, pending + for_disk + unwaited, error)
            return
        elapsed = time.perf_counter() - begun
        if elapsed > statistics.put_slowest:
            statistics.put_slowest = elapsed
        written = store.written_offset
        statistics.put_count += count
        statistics.put_bytes += written - before
        if elapsed * 1000 > self._config.os_page_cache_busy_time_out_mills:
            self._catch_up = written
            log.warning(
                "the disk is slow: a write to the CommitLog took %.1f s, sends are refused meanwhile", elapsed
            )
        if not self._waits:
            if pending:
                self._answer(connection, pending)
            self._judge()
            return
        if unwaited:
            self._unwaited = []
            self._answer(connection, unwaited)
        if pending:
            self._wait(written, connection, pending, self._copies)
        if for_disk:
            self._wait(written, connection, for_disk, 1)
        self._judge()
        if not count:  # what they wait for may be there already
            self.replicated()

    def _wait(self, end: int, connection: Connection, pending: list[Pending], copies: int) -> None:
        """Let answers wait for the disk, for slaves (with `copies` > 1), or both."""
        replicas, config, code = self.replicas, self._config, 0
        if copies > 1 and replicas is not None and replicas.replicas < copies:
            copies, code = 1, int(ResponseCode.SLAVE_NOT_AVAILABLE)
            if not self._sync:
                self._answer(connection, pending, code)
                return
        timeout = max(config.sync_flush_timeout if self._sync else 0, config.slave_timeout if copies > 1 else 0)
        waiting = self._waiting_for_slaves if copies > 1 else self._waiting
        waiting.append(_Waiting(end, time.monotonic() + timeout / 1000, connection, pending, code))
        self._waiting_answers += len(pending)

    def _durable(self) -> None:
        """The disk has got further: let everything become visible that is on it, and answer who waited."""
        self._release(self._store.advance())

    def replicated(self) -> None:
        """Slaves have got further, or one came or went."""
        if self._waiting_answers:
            self._release(self._store.advance() if self._sync else self._store.written_offset)

    def _replicated_end(self) -> int:
        """End of what enough brokers have."""
        return self._store.written_offset if self.replicas is None else self.replicas.replicated(self._copies)

    def _release(self, durable: int) -> None:
        """Answer what is on disk up to `durable` and has enough copies."""
        on_slaves = min(durable, self._replicated_end()) if self._waiting_for_slaves else durable
        for waiting, end in ((self._waiting, durable), (self._waiting_for_slaves, on_slaves)):
            while waiting and waiting[0].end <= end:
                done = waiting.popleft()
                self._waiting_answers -= len(done.pending)
                if not done.connection.closed:
                    self._answer(done.connection, done.pending, done.code)
        if self.busy:
            self.relax()

    def relax(self) -> None:
        """Give up on answers that waited too long, and end flow control when its cause is gone. Called regularly."""
        now = time.monotonic()
        for waiting in (self._waiting, self._waiting_for_slaves):
            while waiting and waiting[0].deadline <= now:
                late = waiting.popleft()
                self._waiting_answers -= len(late.pending)
                code = ResponseCode.FLUSH_DISK_TIMEOUT
                if waiting is self._waiting_for_slaves and late.end > self._replicated_end():
                    code = ResponseCode.FLUSH_SLAVE_TIMEOUT
                if not late.connection.closed:
                    self._answer(late.connection, late.pending, code)
        self._judge()

    def _judge(self) -> None:
        """Decide whether sends are refused: what is written and not on disk takes memory, here and in the system."""
        store = self._store
        durable = store.durable_offset
        if self._waiting_answers > self._config.send_thread_pool_queue_capacity:
            self.busy = QUEUE_FULL
        elif (
            store.written_offset - durable > MAX_UNFLUSHED
            or durable < self._catch_up
            or (self._sync and store.undispatched > MAX_UNSEEN)
            or store.starved
        ):
            self.busy = DISK_BUSY
        else:
            self.busy = ""

    def _fail(self, connection: Connection, pending: list[Pending], error: StoreError) -> None:
        log.error("a batch of %d messages was not stored: %s", len(pending), error)
        code, remark = ResponseCode.SYSTEM_ERROR, f"the message was not stored: {error}"
        if isinstance(error, StoreFull):
            code, remark = ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error)
        for opaque, serialize_type, transaction_id, *_ in pending:
            request = Command(0, opaque=opaque, serialize_type=serialize_type)
            connection.write(encode_response(request, code, remark, None if transaction_id is None else self.ext))

    def _answer(self, connection: Connection, pending: list[Pending], code: int = 0) -> None:
        out: list[Buffer] = []
        pack = _FRAME.pack
        host = self._host_hex
        prefix = f'{{"code":{code:d},"extFields":{{"queueId":"'
        suffix = f'{self._json_ext}}},"flag":1,"language":"PYTHON","opaque":'
        ending = f',"serializeTypeCurrentRPC":"JSON","version":{VERSION}}}'
        for opaque, serialize_type, transaction_id, queue_id, appended, several, handle in pending:
            if isinstance(appended, list):
                # that there was no slave is no failure, and only an answer to a send has words for it
                if code and code != ResponseCode.SLAVE_NOT_AVAILABLE:
                    appended = [encode_response(Command(0, opaque=opaque, serialize_type=serialize_type), code)]
                out += appended
                continue
            assert transaction_id is not None
            if several is None:
                message_id = f"{host}{appended.physical_offset:016X}"
            else:
                message_id = ",".join([f"{host}{each.physical_offset:016X}" for each in several])
            if serialize_type == JSON:
                if not transaction_id:
                    transaction = ""
                elif transaction_id.isalnum():
                    transaction = f'"transactionId":"{transaction_id}",'
                else:
                    transaction = f'"transactionId":"{_json_text(transaction_id)}",'
                if handle:
                    transaction += f'"recallHandle":"{handle}",'
                header = (
                    f'{prefix}{queue_id}",{transaction}"msgId":"{message_id}","queueOffset":"{appended.queue_offset}",'
                    f"{suffix}{opaque}{ending}"
                ).encode()
                size = len(header)
                out.append(pack(4 + size, size))
            else:
                header = self._binary_answer(
                    opaque, code, transaction_id, queue_id, message_id, appended.queue_offset, handle
                )
                size = len(header)
                out.append(pack(4 + size, 1 << 24 | size))
            out.append(header)
        connection.write(out)

    def _binary_answer(
        self,
        opaque: int,
        code: int,
        transaction_id: str,
        queue_id: int,
        message_id: str,
        queue_offset: int,
        recall_handle: str,
    ) -> bytes:
        queue, offset, message = b"%d" % queue_id, b"%d" % queue_offset, message_id.encode()
        transaction = transaction_id.encode()
        own = self._binary_ext
        size = 41 + len(queue) + len(offset) + len(message) + len(own)
        entry = b""
        if transaction:
            entry = b"%b%b%b" % (_TRANSACTION_KEY, _INT.pack(len(transaction)), transaction)
        if recall_handle:
            entry += _binary_entry("recallHandle", recall_handle)
        size += len(entry)
        head = _BINARY_HEAD.pack(code, _PYTHON, VERSION, opaque, FLAG_RESPONSE, 0, size, 7, b"queueId", len(queue))
        return b"%b%b%b\x00\x05msgId%b%b\x00\x0bqueueOffset%b%b%b" % (
            head,
            queue,
            entry,
            _INT.pack(len(message)),
            message,
            _INT.pack(len(offset)),
            offset,
            own,
        )
