"""Messages as people and programs read them: tables, blocks of lines, JSON objects."""

from __future__ import annotations

import re
from typing import Any

from rocketq.cli.output import time_text
from rocketq.message import ReceivedMessage
from rocketq.record import CorruptRecord

#: What could move the cursor, ring or recolour the terminal. Tabs and line ends are text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def body_text(body: bytes) -> str:
    """A body for the terminal: UTF-8, with control characters and whatever is not UTF-8 as escapes."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", body.decode(errors="backslashreplace"))


def body_object(message: ReceivedMessage) -> dict[str, Any]:
    """`body`, or `body_base64` when it is not UTF-8, or `body_error` when it cannot be decompressed."""
    try:
        body = message.body
    except CorruptRecord as error:
        return {"body_error": str(error)}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": body}


def as_object(message: ReceivedMessage, *, body: bool = True) -> dict[str, Any]:
    """Everything about a message."""
    return {
        "topic": message.topic,
        "broker": message.broker_name,
        "queue_id": message.queue_id,
        "queue_offset": message.queue_offset,
        "message_id": message.message_id,
        "offset_message_id": message.offset_message_id,
        "tag": message.tag,
        "keys": message.keys,
        "born_timestamp": message.born_timestamp,
        "store_timestamp": message.store_timestamp,
        "reconsume_times": message.reconsume_times,
        "properties": message.properties,
        **(body_object(message) if body else {}),
    }


def as_line(message: ReceivedMessage) -> str:
    """Time, place, tag, keys and body."""
    words = [
        time_text(message.store_timestamp) or "-",
        f"{message.broker_name}/{message.queue_id}@{message.queue_offset}",
        f"tag={message.tag}" if message.tag else "",
        f"keys={','.join(message.keys)}" if message.keys else "",
        shown_body(message),
    ]
    return "  ".join(word for word in words if word)


def shown_body(message: ReceivedMessage) -> str:
    """The body for the terminal, or why it cannot be shown."""
    try:
        return body_text(message.body)
    except CorruptRecord as error:
        return f"({error})"


def as_block(message: ReceivedMessage, *, body: bool) -> str:
    """Lines of names and values; the body last, when it is wanted."""
    host, port = message.born_host
    lines = [
        ("topic", message.stored_topic),
        ("place", f"{message.broker_name}, queue {message.queue_id}, offset {message.queue_offset}"),
        ("message id", message.message_id),
        ("offset id", message.offset_message_id),
        ("stored", time_text(message.store_timestamp) or "-"),
        ("born", f"{time_text(message.born_timestamp)} at {host}:{port}"),
        ("failed before", f"{message.reconsume_times} times"),
        *sorted(message.properties.items()),
    ]
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:<{width}}  {_indented(body_text(value.encode()), width)}" for name, value in lines)
    size = len(message.stored_body)
    if body:
        return f"{text}\n{'body':<{width}}  {_indented(shown_body(message), width)}"
    return f"{text}\n{'body':<{width}}  {size} bytes (--body shows it)"


def _indented(value: str, width: int) -> str:
    return value.replace("\n", "\n" + " " * (width + 2))
