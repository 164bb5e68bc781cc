"""What clients write down about messages: sent, taken up, consumed, recalled; as text in the messages of a topic.

A trace message holds several records. Between fields stands \\x01, behind a record \\x02 (`TraceDataEncoder`). Its KEYS
are the ids and keys of the messages that it tells of, so that it is found by them.
"""

from __future__ import annotations

from dataclasses import dataclass

FIELD_END = "\x01"
RECORD_END = "\x02"

#: Kinds of records (`TraceType`).
PUB = "Pub"
SUB_BEFORE = "SubBefore"
SUB_AFTER = "SubAfter"
END_TRANSACTION = "EndTransaction"
RECALL = "Recall"

#: What a message was (`MessageType`), by number.
MESSAGE_TYPES = ("normal", "half", "commit", "delay", "order")
NORMAL, HALF, COMMIT, DELAY, ORDER = range(5)
#: How a handler ended (`ConsumeReturnType`), by number.
OUTCOMES = ("success", "time out", "exception", "no result", "failed")
SUCCESS, TIME_OUT, EXCEPTION, NO_RESULT, FAILED = range(5)


@dataclass(frozen=True)
class Trace:
    """One record. Which fields count depends on `kind`; times are ms since 1970, `cost` is in ms.

    `message_id` is the unique id, `broker` the address that was sent to, `request_id` what SubBefore and SubAfter of
    one handler call have in common, `retries` the deliveries before this one. `keys` are separated by spaces.
    """

    kind: str
    message_id: str = ""
    time: int = 0
    region: str = ""
    group: str = ""
    topic: str = ""
    tags: str = ""
    keys: str = ""
    broker: str = ""
    body_length: int = 0
    cost: int = 0
    message_type: int = NORMAL
    offset_message_id: str = ""
    success: bool = True
    client_host: str = ""
    request_id: str = ""
    retries: int = 0
    outcome: int = SUCCESS
    transaction_id: str = ""
    state: str = ""
    from_check: bool = False


#: The fields of each kind in the order in which they stand behind it.
_FIELDS = {
    PUB: "time region group topic message_id tags keys broker body_length cost message_type offset_message_id success",
    SUB_BEFORE: "time region group request_id message_id retries keys",
    SUB_AFTER: "request_id message_id cost success keys outcome time group",
    END_TRANSACTION: (
        "time region group topic message_id tags keys broker message_type transaction_id state from_check"
    ),
    RECALL: "time region group topic message_id success",
}
_ORDER = {kind: tuple(names.split()) for kind, names in _FIELDS.items()}
#: Fewer fields that older clients write, and one more that the oldest wrote: (kind, how many) -> their order.
_OTHER_ORDERS = {
    (PUB, 12): tuple(name for name in _ORDER[PUB] if name != "offset_message_id"),
    (PUB, 14): (*_ORDER[PUB], "client_host"),
    (SUB_AFTER, 5): _ORDER[SUB_AFTER][:5],
    (SUB_AFTER, 6): _ORDER[SUB_AFTER][:6],
}
_INTEGERS = frozenset({"time", "body_length", "cost", "message_type", "retries", "outcome"})
_BOOLEANS = frozenset({"success", "from_check"})
#: Java's clients write what is not there so, and need something there.
_NONE = "null"


def fields(kind: str) -> tuple[str, ...]:
    """The names of the fields that count for a kind of record."""
    return _ORDER[kind]


def encode(trace: Trace) -> str:
    """The record as text. Texts must not contain \\x01 or \\x02."""
    values = [_text(getattr(trace, name)) for name in _ORDER[trace.kind]]
    return FIELD_END.join([trace.kind, *values]) + RECORD_END


def decode(text: str) -> list[Trace]:
    """The records of a trace message; what is none, or of a kind that is not known, is left out."""
    found = [_record(piece.split(FIELD_END)) for piece in text.split(RECORD_END)]
    return [trace for trace in found if trace is not None]


def _record(pieces: list[str]) -> Trace | None:
    kind, *values = pieces
    known = _ORDER.get(kind)
    if known is None:
        return None
    if kind == SUB_AFTER and len(values) == 7 and not values[6]:
        values.pop()  # behind the outcome stands a separator even where nothing follows
    order = _OTHER_ORDERS.get((kind, len(values)), known)
    if len(values) < len(order):
        return None
    fields: dict[str, str | int | bool] = {}
    try:
        for name, value in zip(order, values, strict=False):
            if name in _INTEGERS:
                fields[name] = int(value)
            elif name in _BOOLEANS:
                fields[name] = value == "true"
            else:
                fields[name] = "" if value == _NONE else value
    except ValueError:
        return None
    return Trace(kind, **fields)  # type: ignore[arg-type]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) or _NONE
