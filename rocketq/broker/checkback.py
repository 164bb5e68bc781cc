"""Questions to producers about half messages that stay open (codes 39, CHECK_TRANSACTION_STATE, and 323).

Every `transactionCheckInterval` one producer of the group is asked about each half message that is open for longer
than `transactionTimeOut`, or than its own CHECK_IMMUNITY_TIME_IN_SECONDS. The producer answers with END_TRANSACTION. A
half message is given up after `transactionCheckMax` questions, and when it gets too old to be kept.

Unlike Apache's broker: a question leaves the half message where it is, instead of storing it anew, and it counts only
when there was a producer to be asked.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable

from rocketq import names
from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.clients import Clients
from rocketq.broker.copies import append_copy
from rocketq.broker.halfrecords import append_op, immunity_of, read_half
from rocketq.broker.halves import Half, Halves, Outcome
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, StoreError, StoreFull, TooManyInFlight
from rocketq.message import offset_message_id, parse_offset_message_id
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import (
    CorruptRecord,
    Record,
    decode_record,
    encode_record,
)
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import CheckTransactionStateHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.remoting.waiting import cancel_all
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Half messages, and bytes of questions, before others get their turn on the loop.
_PER_TURN = 200
_BYTES_PER_TURN = 1 << 20
#: Seconds between two such turns; so producers are not asked faster than they can answer.
_PAUSE = 0.02


class CheckBack:
    """Asks about open half messages. `on_round` is called after each round."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        halves: Halves,
        topics: Topics,
        clients: Clients,
        batch: Batch,
        on_round: Callable[[], None],
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._halves = halves
        self._topics = topics
        self._clients = clients
        self._batch = batch
        self._on_round = on_round
        self._clock_ms = clock_ms
        self._turn = 0
        self._asked_bytes = 0
        #: producers that did not read the questions of this round
        self._slow: set[Connection] = set()
        #: the first half message that nobody was asked about for that reason: the next round begins there
        self._from = 0
        self._task: asyncio.Task[None] | None = None

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.RESUME_CHECK_HALF_MESSAGE: self._resume}

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            await cancel_all([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._config.transaction_check_interval / 1000)
            try:
                await self.round()
            except StoreError as error:
                log.warning("a round of questions about transactions ends early, the store refuses: %s", error)
            except Exception:  # whatever it is: nobody would notice that producers are asked no more
                log.exception("a round of questions about transactions ended early")
            self._on_round()

    async def round(self) -> None:
        """Ask about every half message that is open for too long."""
        now = self._clock_ms()
        self._slow.clear()
        looked = self._asked_bytes = 0
        offsets = sorted(self._halves.open)
        begin, self._from = bisect_left(offsets, self._from), 0
        for offset in offsets[begin:] + offsets[:begin]:
            half = self._halves.open.get(offset)
            if half is None or half.check_from > now:
                continue
            self._look(offset, half, now)
            looked += 1
            if looked >= _PER_TURN or self._asked_bytes >= _BYTES_PER_TURN:
                looked = self._asked_bytes = 0
                await asyncio.sleep(_PAUSE)

    def _look(self, offset: int, half: Half, now: int) -> None:
        """Ask about one half message, or give it up."""
        record = read_half(self._store, half.physical)
        if record is None:
            log.error("transaction %d is given up: its half message is gone from the CommitLog", offset)
            self._give_up(offset, None, {})
            return
        properties = decode_properties(record.properties)
        half.check_from = record.store_timestamp + immunity_of(properties, self._config.transaction_time_out)
        if half.check_from > now:
            return
        group = properties.get(props.PGROUP, "")
        kept = self._config.file_reserved_time * 3_600_000
        if half.checks >= self._config.transaction_check_max or now - record.store_timestamp > kept:
            log.warning(
                "transaction %s of producer group %s is given up after %d questions: its message goes to %s",
                *(properties.get(props.UNIQ_KEY), group, half.checks, names.CHECK_MAX_TIME_TOPIC),
            )
            self._give_up(offset, record, {**properties, props.TRANSACTION_CHECK_TIMES: str(half.checks)})
        elif self._ask(group, record, properties, half.checks + 1):
            half.checks += 1

    def _give_up(self, offset: int, record: Record | None, properties: dict[str, str]) -> None:
        if record is not None:
            self._topics.create_retry(names.CHECK_MAX_TIME_TOPIC, 1)
            append_copy(
                self._store,
                record,
                names.CHECK_MAX_TIME_TOPIC,
                0,
                encode_properties(properties),
                properties,
                prepared_transaction_offset=record.physical_offset,
            )
        op = append_op(self._store, offset, Outcome.GIVEN_UP, 0, self._batch.store_host, self._clock_ms())
        self._store.write()
        self._halves.end(offset, Outcome.GIVEN_UP, op.physical_offset)

    def _ask(self, group: str, record: Record, properties: dict[str, str], times: int) -> bool:
        """Ask one connection of the producer group; False when there is none that reads what it is sent."""
        members = [
            each for each in self._clients.producers.get(group, ()) if not each.closed and each not in self._slow
        ]
        if not members:
            return False
        unique_id = properties.get(props.UNIQ_KEY)
        header = CheckTransactionStateHeader(
            bname=self._config.broker_name,
            topic=names.HALF_TOPIC,
            tran_state_table_offset=record.queue_offset,
            commit_log_offset=record.physical_offset,
            msg_id=unique_id,
            transaction_id=unique_id,
            offset_msg_id=offset_message_id(record.store_host, record.physical_offset),
        )
        properties = {**properties, props.WAIT: "false", props.TRANSACTION_CHECK_TIMES: str(times)}
        queue = properties.get(props.REAL_QID, "")
        body = encode_record(
            int(queue) if queue.isdecimal() else 0,
            record.queue_offset,
            record.physical_offset,
            properties.get(props.REAL_TOPIC, "").encode(),
            record.body,
            encode_properties(properties).encode(),
            record.flag,
            record.sys_flag,
            record.born_timestamp,
            record.born_host,
            record.store_timestamp,
            record.store_host,
            record.reconsume_times,
        )
        self._turn += 1
        first = self._turn % len(members)
        for connection in members[first:] + members[:first]:
            try:
                connection.oneway(RequestCode.CHECK_TRANSACTION_STATE, header, body)
            except TooManyInFlight as error:
                log.warning("a producer of group %s is not asked about more transactions now: %s", group, error)
                self._slow.add(connection)
            else:
                self._asked_bytes += len(body)
                return True
        self._from = self._from or record.queue_offset
        return False

    # what was given up, once more

    def _resume(self, connection: Connection, request: Command) -> Reply:
        """Make a message of TRANS_CHECK_MAX_TIME_TOPIC a half message again."""
        try:
            _, _, place = parse_offset_message_id(request.ext.get("msgId", ""))
            data = self._store.record_at(place)
            record = decode_record(data) if data is not None else None
        except (InvalidMessage, CorruptRecord) as error:
            return encode_response(request, ResponseCode.INVALID_PARAMETER, str(error))
        if record is None or record.topic != names.CHECK_MAX_TIME_TOPIC:
            remark = f"there is no message of {names.CHECK_MAX_TIME_TOPIC} at {place} of the CommitLog"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        properties = decode_properties(record.properties)
        properties.pop(props.TRANSACTION_CHECK_TIMES, None)
        try:
            append_copy(self._store, record, names.HALF_TOPIC, 0, encode_properties(properties), properties)
        except StoreFull as error:
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error))
        self._batch.reply(connection, request, encode_response(request, ResponseCode.SUCCESS))
        return None
