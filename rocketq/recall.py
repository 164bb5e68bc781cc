"""Recall handles: by them a timer message can be taken back before it is due (`RecallMessageHandle`)."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple


class RecallHandle(NamedTuple):
    """Who keeps the message, until when (ms since 1970), and its unique id."""

    topic: str
    broker_name: str
    due: int
    unique_id: str

    def encode(self) -> str:
        text = f"v1 {self.topic} {self.broker_name} {self.due} {self.unique_id}"
        return base64.urlsafe_b64encode(text.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> RecallHandle:
        """Raises ValueError when `text` is no handle. A time that is no number is -1."""
        try:
            raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
            version, topic, broker_name, due, unique_id, *_ = raw.decode().split(" ")
        except (binascii.Error, ValueError):
            raise ValueError("recall handle is invalid") from None
        if version != "v1":
            raise ValueError("recall handle is invalid")
        return cls(topic, broker_name, int(due) if due.isdecimal() else -1, unique_id)
