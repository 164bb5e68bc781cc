"""Which half messages are open when a broker starts.

The file ``config/halfMessages.json`` names those that were open when it was saved, once a round of checks, and says
how far both topics were read by then; the rest is read. Without the file reading begins where the offsets of
``CID_RMQ_SYS_TRANS`` are, which an Apache broker moves too. An offset below which that group needs nothing settles
what the file still calls open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rocketq import names
from rocketq import properties as props
from rocketq.broker.halfrecords import ends_of
from rocketq.broker.halves import REMEMBERED, Half, Halves, Outcome, Positions
from rocketq.properties import decode_properties
from rocketq.record import TRANSACTION_COMMIT, TRANSACTION_MASK, CorruptRecord, Record, decode_record
from rocketq.store.store import MessageStore


class Saved(NamedTuple):
    """The file: up to where both topics were read, and the end of the op topic and the checks of what was open."""

    half: int
    op: int
    open: dict[int, tuple[int, int]]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Saved:
        """Raises KeyError, ValueError, TypeError, AttributeError for what is none."""
        table = {int(offset): (int(op_end), int(checks)) for offset, (op_end, checks) in value["open"].items()}
        return cls(int(value["halfOffset"]), int(value["opOffset"]), table)


class Unsaid(NamedTuple):
    """A half message whose copy is in the log without an op behind it: the write was torn there."""

    offset: int
    outcome: Outcome
    copy: int


def recover(store: MessageStore, halves: Halves, saved: Saved | None, committed: Positions) -> None:
    """Bring `halves` to the end of both topics. `saved` is the file, `committed` are the group's offsets or -1."""
    low, high = store.min_offset(names.HALF_TOPIC, 0), store.max_offset(names.HALF_TOPIC, 0)
    begin = committed
    if saved is not None:
        begin = Positions(max(committed.half, saved.half), max(committed.op, saved.op))
        for offset, (op_end, checks) in saved.open.items():
            if max(low, committed.half) <= offset < min(high, begin.half):
                _begin(store, halves, offset, op_end, checks)
    op_low, op_high = store.min_offset(names.OP_HALF_TOPIC, 0), store.max_offset(names.OP_HALF_TOPIC, 0)
    first_op = min(max(begin.op, op_low), op_high)
    for offset in range(min(max(begin.half, low), high), high):
        _begin(store, halves, offset, first_op)
    halves.next = high
    for op in _records(store, names.OP_HALF_TOPIC, min(first_op, max(op_low, op_high - REMEMBERED)), op_high):
        offsets, outcome = ends_of(op)
        for offset in offsets:
            if outcome is None:
                halves.open.pop(offset, None)
            else:
                halves.end(offset, outcome, op.physical_offset)


def _begin(store: MessageStore, halves: Halves, offset: int, op_end: int, checks: int = 0) -> None:
    entry = store.consume_entry(names.HALF_TOPIC, 0, offset)
    if entry is not None:
        halves.begin(offset, Half(entry[0], op_end, checks))


def find_unsaid(store: MessageStore, halves: Halves, checked_from: int) -> list[Unsaid]:
    """Half messages whose copy is in the log although they are open.

    Copy and op are written with one call, so this can only be behind the last op, and in the part that recovery had
    to check.
    """
    op_end = store.max_offset(names.OP_HALF_TOPIC, 0)
    last_op = store.consume_entry(names.OP_HALF_TOPIC, 0, op_end - 1) if op_end else None
    start = max(checked_from, store.min_physical_offset, last_op[0] if last_op else 0)
    by_place = {half.physical: offset for offset, half in halves.open.items()}
    found = []
    for data in store.records(start) if by_place else ():
        record = _decode(data)
        offset = None if record is None else by_place.get(record.prepared_transaction_offset)
        if record is None or offset is None:
            continue
        given_up = record.topic == names.CHECK_MAX_TIME_TOPIC
        if not given_up and record.sys_flag & TRANSACTION_MASK != TRANSACTION_COMMIT:
            continue
        half = _decode(store.record_at(record.prepared_transaction_offset))
        if half is not None and _unique_id(half) == _unique_id(record):
            outcome = Outcome.GIVEN_UP if given_up else Outcome.COMMITTED
            found.append(Unsaid(offset, outcome, record.physical_offset))
    return found


def _records(store: MessageStore, topic: str, begin: int, end: int) -> Iterator[Record]:
    """What can be read of a topic's only queue."""
    for offset in range(begin, end):
        entry = store.consume_entry(topic, 0, offset)
        record = _decode(store.record_at(entry[0])) if entry is not None else None
        if record is not None:
            yield record


def _decode(data: memoryview | None) -> Record | None:
    """None as well for what cannot be read; whoever needs it says so."""
    if data is None:
        return None
    try:
        return decode_record(data)
    except CorruptRecord:
        return None


def _unique_id(record: Record) -> str | None:
    return decode_properties(record.properties).get(props.UNIQ_KEY)
