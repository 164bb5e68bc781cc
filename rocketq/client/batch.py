"""Several messages in one request: the body of code 320, and when a batch is ready to go. Pure.

Body: for each message ``4 size | 4 zero | 4 zero | 4 flag | 4+n body | 2+n properties`` (`MessageDecoder`). All
messages of a batch go to one queue; each keeps its own properties and unique id.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_HEAD = struct.Struct(">iiiii")
_SHORT = struct.Struct(">H")
#: Bytes of an item besides its body and its properties.
OVERHEAD = 22


def encode_batch(items: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """The body for (flag, body, encoded properties) of each message."""
    parts: list[bytes] = []
    for flag, body, properties in items:
        size = OVERHEAD + len(body) + len(properties)
        parts += (
            _HEAD.pack(size, 0, 0, flag, len(body)),
            body,
            _SHORT.pack(len(properties)),
            properties,
        )
    return b"".join(parts)


T = TypeVar("T")


@dataclass
class Batch(Generic[T]):
    """Items that wait to leave together."""

    key: Hashable
    deadline: float
    items: list[T] = field(default_factory=list)
    size: int = 0


class Accumulator(Generic[T]):
    """Collects items by key until they fill a batch or have waited for `linger` seconds."""

    def __init__(self, *, linger: float, max_bytes: int, max_items: int = 1024) -> None:
        self.linger = linger
        self.max_bytes = max_bytes
        self.max_items = max_items
        self._open: dict[Hashable, Batch[T]] = {}

    def add(self, key: Hashable, item: T, size: int, now: float) -> list[Batch[T]]:
        """Puts the item in; returns the batches that are full now (the item may be in one of them)."""
        full: list[Batch[T]] = []
        batch = self._open.get(key)
        if batch is not None and batch.size + size > self.max_bytes:
            full.append(self._open.pop(key))
            batch = None
        if batch is None:
            batch = self._open[key] = Batch(key, now + self.linger)
        batch.items.append(item)
        batch.size += size
        if batch.size >= self.max_bytes or len(batch.items) >= self.max_items:
            full.append(self._open.pop(key))
        return full

    def due(self, now: float) -> list[Batch[T]]:
        """The batches that have waited long enough."""
        ready = [batch for batch in self._open.values() if batch.deadline <= now]
        for batch in ready:
            del self._open[batch.key]
        return ready

    def flush(self) -> list[Batch[T]]:
        """All that is left."""
        ready = list(self._open.values())
        self._open.clear()
        return ready

    @property
    def next_deadline(self) -> float | None:
        """When `due` will have something to return."""
        return min((batch.deadline for batch in self._open.values()), default=None)
