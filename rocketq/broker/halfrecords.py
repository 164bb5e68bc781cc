"""Records about half messages: how they are written, read, and what they say."""

from __future__ import annotations

import logging

from rocketq import names
from rocketq import properties as props
from rocketq.broker.halves import Outcome
from rocketq.properties import encode_properties
from rocketq.record import CorruptRecord, Record, decode_record
from rocketq.store.store import Appended, MessageStore

log = logging.getLogger("rocketq.broker")

#: What the field preparedTransactionOffset of an op says where no message was stored for consumers; else it is the
#: place of that message. Apache's brokers leave it 0, and do not look at it.
_ROLLED_BACK, _GIVEN_UP = -1, -2
_OP_PROPERTIES = encode_properties({props.WAIT: "true", props.TAGS: "d"})


def append_op(
    store: MessageStore, offset: int, outcome: Outcome, copy: int, store_host: bytes, born_timestamp: int
) -> Appended:
    """Append the op that says that the half message at `offset` ended; `copy` is where its message went."""
    if outcome is not Outcome.COMMITTED:
        copy = _ROLLED_BACK if outcome is Outcome.ROLLED_BACK else _GIVEN_UP
    return store.append(
        names.OP_HALF_TOPIC,
        0,
        b"%d," % offset,
        _OP_PROPERTIES,
        tag="d",
        unique_id=None,
        keys=None,
        flag=0,
        sys_flag=0,
        born_timestamp=born_timestamp,
        born_host=store_host,
        store_host=store_host,
        prepared_transaction_offset=copy,
    )


def ends_of(op: Record) -> tuple[list[int], Outcome | None]:
    """The half messages that an op is about, and how they ended; None for an op of Apache's, which does not say."""
    offsets = [
        int(text) for text in op.body.decode(errors="replace").split(",") if text.isdecimal() and len(text) < 20
    ]
    said = op.prepared_transaction_offset
    if said > 0:
        return offsets, Outcome.COMMITTED
    return offsets, {_ROLLED_BACK: Outcome.ROLLED_BACK, _GIVEN_UP: Outcome.GIVEN_UP}.get(said)


def read_half(store: MessageStore, place: int) -> Record | None:
    """The half message at a place of the log; None when there is none."""
    data = store.record_at(place)
    if data is None:
        return None
    try:
        record = decode_record(data)
    except CorruptRecord as error:
        log.error("the half message at %d of the CommitLog cannot be read: %s", place, error)
        return None
    return record if record.topic == names.HALF_TOPIC else None


def immunity_of(properties: dict[str, str], default: int) -> int:
    """How long a half message may stay open before its producers are asked, ms."""
    text = properties.get(props.CHECK_IMMUNITY_TIME, "")
    return int(text) * 1000 if text.isdecimal() and len(text) < 12 else default
