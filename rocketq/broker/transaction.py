"""Transactional messages and how they end (code 37, END_TRANSACTION).

`broker.send` stores a half message in ``RMQ_SYS_TRANS_HALF_TOPIC``, where no consumer sees it. It ends once:

- committed: a copy goes to its real topic, or to where delayed messages wait if it has a delay;
- rolled back: nothing;
- given up, because nobody said what is to become of it (:mod:`rocketq.broker.checkback`): a copy goes to
  ``TRANS_CHECK_MAX_TIME_TOPIC``.

Copy and op, a record in ``RMQ_SYS_TRANS_OP_HALF_TOPIC`` that names the half message's offset, are written with one
call. What is open is in memory (:mod:`rocketq.broker.halves`) and found again by a start
(:mod:`rocketq.broker.halfrecovery`).

Unlike Apache's broker, an end that comes twice is answered and not carried out twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketq import names
from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.copies import append_copy
from rocketq.broker.halfrecords import append_op, immunity_of, read_half
from rocketq.broker.halfrecovery import Saved, Unsaid, find_unsaid, recover
from rocketq.broker.halves import Half, Halves, Outcome, Positions
from rocketq.broker.offsets import Offsets
from rocketq.broker.refusal import Refused
from rocketq.broker.saving import Build
from rocketq.broker.send import Sender
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, StoreFull
from rocketq.properties import decode_properties
from rocketq.record import TRANSACTION_COMMIT, TRANSACTION_ROLLBACK, Record
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import EndTransactionHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.configfile import load_table
from rocketq.store.files import Files
from rocketq.store.store import Appended, MessageStore

log = logging.getLogger("rocketq.broker")

_UNDECIDED = 0
_OUTCOMES = {TRANSACTION_COMMIT: Outcome.COMMITTED, TRANSACTION_ROLLBACK: Outcome.ROLLED_BACK}


class Transactions:
    """Keeps track of half messages and ends them."""

    def __init__(
        self,
        config: BrokerConfig,
        path: Path,
        files: Files,
        store: MessageStore,
        topics: Topics,
        offsets: Offsets,
        sender: Sender,
        batch: Batch,
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self.path = path
        self._files = files
        self._store = store
        self._topics = topics
        self._offsets = offsets
        self._sender = sender
        self._batch = batch
        self._clock_ms = clock_ms
        self.halves = Halves()
        #: ends that the log does not say yet
        self._unsaid: list[Unsaid] = []
        #: what is saved as soon as the log is on disk up to the offset before it
        self._noted: tuple[int, Positions, dict[str, Any]] | None = None
        self._saved: tuple[int, int] | None = None
        self._running = False

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.END_TRANSACTION: self._end}

    # starting, stopping, saving

    def load(self, checked_from: int | None) -> None:
        """Find out what is open. `checked_from`: where the check of the log began after an unclean stop.

        Raises StoreError when the table's file cannot be read.
        """
        group, query = names.TRANSACTION_GROUP, self._offsets.query
        committed = Positions(query(group, names.HALF_TOPIC, 0), query(group, names.OP_HALF_TOPIC, 0))
        recover(self._store, self.halves, load_table(self.path, self._files, Saved.from_json), committed)
        if checked_from is not None:
            self._unsaid = find_unsaid(self._store, self.halves, checked_from)
        for unsaid in self._unsaid:
            self.halves.end(unsaid.offset, unsaid.outcome, unsaid.copy)
        if self.halves.open:
            log.info("%d transactions are open", len(self.halves.open))

    def start(self) -> None:
        """Write what the log does not say. Raises StoreError when the store does not take it."""
        for unsaid in self._unsaid:
            self._append_op(*unsaid)
        self._unsaid = []
        self._store.write()
        self._running = True

    def stop(self) -> None:
        """Note everything; the log was forced to disk before."""
        self._noted = self._saved = None
        self.note()
        self._running = False

    def arrived(self) -> None:
        """Messages became readable, perhaps half messages."""
        store, halves = self._store, self.halves
        end = store.max_offset(names.HALF_TOPIC, 0)
        if end <= halves.next:
            return
        op_end = store.max_offset(names.OP_HALF_TOPIC, 0)
        for offset in range(halves.next, end):
            entry = store.consume_entry(names.HALF_TOPIC, 0, offset)
            assert entry is not None
            halves.begin(offset, Half(entry[0], op_end))

    def note(self) -> None:
        """Note the state to be saved, unless it is the one that is saved."""
        if not self._running or self._noted is not None:
            return
        work = (self.halves.next, self._store.max_offset(names.OP_HALF_TOPIC, 0))
        if self._saved == work and not self.halves.open:
            return
        self._saved = work
        positions = self.halves.positions(work[1])
        self._noted = (self._store.written_offset, positions, self.halves.as_json(work[1]))

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`.

        What is noted is given out only when the ops up to then are on disk, so that a power failure does not leave a
        file that knows of ends which the log has lost.
        """
        if self._noted is None or self._noted[0] > self._store.durable_offset:
            return None
        _, positions, table = self._noted
        self._noted = None
        self._offsets.commit(names.TRANSACTION_GROUP, names.HALF_TOPIC, 0, positions.half)
        self._offsets.commit(names.TRANSACTION_GROUP, names.OP_HALF_TOPIC, 0, positions.op)
        return lambda: table

    def unsaved(self) -> None:
        self._saved = None  # the next round notes it again

    # ends

    def _end(self, connection: Connection, request: Command) -> Reply:
        header = request.header(EndTransactionHeader)
        kind = header.commit_or_rollback
        if kind == _UNDECIDED:
            return None  # nothing is answered, as on Apache's broker
        outcome = _OUTCOMES.get(kind)
        if outcome is None:
            remark = f"commitOrRollback field wrong: {kind} is not 8 (commit), 12 (rollback) or 0 (undecided)"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        said = None if outcome is Outcome.COMMITTED else "not set any response code"
        done = encode_response(request, ResponseCode.SUCCESS, said)
        try:
            return self._decide(connection, request, self._half(header), outcome, done)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        except StoreFull as error:
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        except InvalidMessage as error:
            return encode_response(request, ResponseCode.MESSAGE_ILLEGAL, str(error))

    def _half(self, header: EndTransactionHeader) -> Record:
        """The half message that a request is about. Raises Refused when what it says of it does not fit."""
        place = header.commit_log_offset
        record = read_half(self._store, place)
        if record is None:
            self._batch.end()  # perhaps it came with the same read
            record = read_half(self._store, place)
        if record is None:
            raise Refused(ResponseCode.SYSTEM_ERROR, "Find prepared transaction message failed")
        properties = decode_properties(record.properties)
        limit = max(immunity_of(properties, 0), self._config.transaction_time_out)
        limited = props.CHECK_IMMUNITY_TIME in properties and not header.from_transaction_check
        limited = limited and record.queue_offset in self.halves.open
        if limited and self._clock_ms() - record.born_timestamp > limit:
            remark = (
                f"too late, {props.CHECK_IMMUNITY_TIME} is over: the producers of the message are asked about it"
            )
            raise Refused(ResponseCode.ILLEGAL_OPERATION, remark)
        if properties.get(props.PGROUP) != header.producer_group:
            raise Refused(ResponseCode.SYSTEM_ERROR, "The producer group wrong")
        if record.queue_offset != header.tran_state_table_offset:
            raise Refused(ResponseCode.SYSTEM_ERROR, "The transaction state table offset wrong")
        if record.physical_offset != place:
            raise Refused(ResponseCode.SYSTEM_ERROR, "The commit log offset wrong")
        return record

    def _decide(
        self, connection: Connection, request: Command, record: Record, outcome: Outcome, done: bytes
    ) -> Reply:
        """End the half message, or say how it ended before."""
        offset = record.queue_offset
        half = self.halves.open.get(offset)
        ended = self.halves.ended.get(offset)
        if half is not None:
            copy = self._commit(record, half.checks).physical_offset if outcome is Outcome.COMMITTED else 0
            op = self._append_op(offset, outcome, copy)
            self.halves.end(offset, outcome, op.physical_offset)
            self._batch.reply(
                connection, request, done, 1 + bool(copy), undo=lambda: self.halves.reopen(offset, half)
            )
            return None
        if ended is None:
            remark = "the transaction ended long ago, how is not known any more; nothing is done now"
            raise Refused(ResponseCode.TRANSACTION_FAILED, remark)
        if ended.outcome is not outcome:
            where = (
                f", its message is in {names.CHECK_MAX_TIME_TOPIC}" if ended.outcome is Outcome.GIVEN_UP else ""
            )
            remark = f"the transaction was {ended.outcome.value} before{where}; it cannot be {outcome.value} now"
            raise Refused(ResponseCode.TRANSACTION_FAILED, remark)
        if ended.op < self._store.readable:
            return done
        # it may yet fail: an op that says the same again waits with the first one for the disk
        self._append_op(offset, outcome, ended.op)
        self._batch.reply(connection, request, done)
        return None

    def _commit(self, record: Record, checks: int) -> Appended:
        """Append the copy that consumers get."""
        properties = decode_properties(record.properties)
        if checks:
            properties[props.TRANSACTION_CHECK_TIMES] = str(checks)
        topic, queue = properties.pop(props.REAL_TOPIC, ""), properties.pop(props.REAL_QID, "")
        if self._topics.get(topic) is None:
            remark = f"topic[{topic}] of the transaction does not exist any more: create it, or roll back"
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, remark)
        place = self._sender.place(topic, int(queue) if queue.isdecimal() else 0, properties)
        return append_copy(
            self._store,
            record,
            place.topic,
            place.queue_id,
            place.properties,
            properties,
            sys_flag=record.sys_flag | TRANSACTION_COMMIT,
            prepared_transaction_offset=record.physical_offset,
            deliver_time=place.deliver_time,
        )

    def _append_op(self, offset: int, outcome: Outcome, copy: int) -> Appended:
        return append_op(self._store, offset, outcome, copy, self._batch.store_host, self._clock_ms())
