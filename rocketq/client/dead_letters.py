"""Dead letters that say what went wrong: the copy of a message that its consumer publishes to `%DLQ%group` itself.

A broker that is told to bury a message (CONSUMER_SEND_MSG_BACK) copies it as it is. This copy carries the exception
and the end of its traceback as properties too, as much of them as fits.
"""

from __future__ import annotations

import traceback

from rocketq import properties as names
from rocketq.message import Message, ReceivedMessage
from rocketq.names import dlq_topic

#: Most bytes of what is told of the error, and of it all together with the message's own properties.
MOST_EXCEPTION, MOST_TRACEBACK, MOST_TOGETHER = 1024, 8192, names.MAX_LENGTH - 1024

#: What the copy must not say: it is delivered now, as a message like others.
_DROPPED = frozenset(
    {
        names.TRAN_MSG,
        names.DELAY,
        names.POP_CK,
        names.TIMER_DELAY_SEC,
        names.TIMER_DELAY_MS,
        names.TIMER_DELIVER_MS,
        names.TIMER_OUT_MS,
        names.REAL_TOPIC,
        names.REAL_QID,
    }
)


def dead_letter(message: ReceivedMessage, group: str, error: BaseException) -> Message:
    """The copy of `message` for the dead letter queue of `group`. Raises CorruptRecord for one that cannot be read."""
    copy = Message(dlq_topic(group), message.body, flag=message.flag)
    properties = copy.properties
    properties.update({name: value for name, value in message.properties.items() if name not in _DROPPED})
    properties[names.RETRY_TOPIC] = properties["DLQ_ORIGIN_TOPIC"] = message.topic
    properties["DLQ_ORIGIN_MESSAGE_ID"] = message.message_id
    properties.setdefault(names.ORIGIN_MESSAGE_ID, message.offset_message_id)
    properties[names.RECONSUME_TIME] = str(message.reconsume_times + 1)
    for name in (names.EXCEPTION, names.TRACEBACK):  # of an earlier death of the message
        properties.pop(name, None)
    room = MOST_TOGETHER - len(names.encode_properties(properties).encode())
    for name, value in told(error).items():
        size = len(name) + len(value.encode()) + 2
        if value and size <= room:
            properties[name] = value
            room -= size
    return copy


def told(error: BaseException) -> dict[str, str]:
    """What is said of an error, in properties."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 the text of an exception is its author's code
        text = type(error).__name__
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        names.EXCEPTION: _bounded(text, MOST_EXCEPTION, keep_end=False),
        names.TRACEBACK: _bounded(trace, MOST_TRACEBACK, keep_end=True),
    }


def _bounded(text: str, most: int, *, keep_end: bool) -> str:
    """`text` in at most `most` bytes, without the characters that separate properties."""
    raw = text.replace("\x01", " ").replace("\x02", " ").strip().encode(errors="replace")
    if len(raw) <= most:
        return raw.decode()
    cut = raw[-(most - 3) :] if keep_end else raw[: most - 3]
    kept = cut.decode(errors="ignore")
    return f"…{kept}" if keep_end else f"{kept}…"
