"""A Kombu message as the JSON text that Kombu's other transports use as well, and what it says of itself."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple

import msgspec
from kombu.transport.base import Message as BaseMessage
from kombu.utils.json import dumps as kombu_dumps

from rocketq.message import ReceivedMessage
from rocketq_kombu.leases import Lease

_encode = msgspec.json.encode


class QueueMessage(BaseMessage):
    """A message as Kombu hands it out. `lease`: None in short-lived queues."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, lease: Lease | None = None) -> None:
        properties = payload["properties"]
        body = payload.get("body")
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body or b"")
        self.lease = lease
        self.payload_of_queue = payload
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=payload.get("headers"),
            properties=properties,
            delivery_info=properties.get("delivery_info"),
            postencode="utf-8",
        )


class Arrived(NamedTuple):
    """A message that came and waits to be delivered."""

    queue: str
    payload: dict[str, Any]
    lease: Lease | None
    offset: int


def decode(text: bytes) -> dict[str, Any]:
    """The message of a text. Raises ValueError for one that no consumer could be handed."""
    message = msgspec.json.decode(text)
    if not isinstance(message, dict) or not isinstance(properties := message.get("properties"), dict):
        raise ValueError("it has no properties")
    if not isinstance(message.get("headers") or {}, dict):
        raise ValueError("its headers are no table")
    if not isinstance(properties.setdefault("delivery_info", {}), dict):
        raise ValueError("its delivery_info is no table")
    try:
        float(properties.get("expiration") or 0)
        if properties.get("body_encoding") == "base64":
            base64.b64decode(message.get("body") or b"")
    except TypeError as error:
        raise ValueError(str(error)) from None
    return message


def pack(message: dict[str, Any]) -> None:
    """Make the body a text in place."""
    body = message["body"]
    if isinstance(body, bytes) and message.get("content-encoding") == "utf-8":
        with suppress(UnicodeDecodeError):
            body = body.decode()
    if isinstance(body, bytes):
        body = base64.b64encode(body).decode()
        message["properties"]["body_encoding"] = "base64"
    message["body"] = body


def dump(message: dict[str, Any]) -> bytes:
    """The text."""
    try:
        return _encode(message)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return str(kombu_dumps(message)).encode()  # has types that only Kombu's own encoder knows


def tag_of(headers: dict[str, Any]) -> str | None:
    """The task's name."""
    task = headers.get("task")
    return task if isinstance(task, str) and "|" not in task and task.isprintable() else None


def keys_of(headers: dict[str, Any], properties: dict[str, Any]) -> str:
    """The task's id."""
    found = headers.get("id") or properties.get("correlation_id") or ""
    return found if isinstance(found, str) and found.isprintable() and " " not in found else ""


def expired(properties: dict[str, Any], message: ReceivedMessage) -> bool:
    """Whether a message waited longer than its `expiration` (ms, counted by when it was stored)."""
    expiration = properties.get("expiration")
    return expiration not in (None, "") and message.store_timestamp + float(expiration) < time.time() * 1000


def due(headers: Mapping[str, Any]) -> int | None:
    """When a task is due (its `eta`, ms since 1970); None when that is not later than now, or not said."""
    eta = headers.get("eta")
    if not eta:
        return None
    try:
        when = datetime.fromisoformat(eta.replace("Z", "+00:00")) if isinstance(eta, str) else eta
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        at = int(when.timestamp() * 1000)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None  # not Celery's: the consumer will see what it means
    return at if at > time.time() * 1000 else None
