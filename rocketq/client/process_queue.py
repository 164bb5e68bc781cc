"""What one member holds of one queue: pure bookkeeping, no time and no I/O.

Offsets come in ascending order from pulls and leave in any order when their messages are done. The value to commit
is the smallest offset that is not done, or the offset of the next pull when nothing is left: everything before it
was consumed, sent back or filtered out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar


class Held(Protocol):
    """What the queue needs to know of a message."""

    @property
    def queue_offset(self) -> int: ...

    @property
    def size(self) -> int: ...


M = TypeVar("M", bound=Held)


class ProcessQueue(Generic[M]):
    """Messages of one queue between pull and commit.

    `pending` holds what no handler took yet, `next_offset` where the next pull starts, `dropped` says that the
    queue is no longer ours: nothing may be committed for it any more.
    """

    def __init__(self, next_offset: int) -> None:
        self.next_offset = next_offset
        self.pending: deque[M] = deque()
        self.dropped = False
        self.bytes = 0
        self._order: deque[int] = deque()
        self._done: set[int] = set()

    def __len__(self) -> int:
        """Messages that are not done."""
        return len(self._order) - len(self._done)

    def add(self, messages: Sequence[M], next_offset: int) -> None:
        """Takes in the answer of a pull; messages that are held already are ignored."""
        if messages:
            last = self._order[-1] if self._order else -1
            if messages[0].queue_offset <= last:
                messages = [message for message in messages if message.queue_offset > last]
            self._order.extend([message.queue_offset for message in messages])
            self.bytes += sum([message.size for message in messages])
            self.pending.extend(messages)
        self.next_offset = next_offset

    def take(self, limit: int) -> list[M]:
        """Up to `limit` messages for a handler, in order."""
        pending = self.pending
        if len(pending) <= limit:
            taken = list(pending)
            pending.clear()
            return taken
        return [pending.popleft() for _ in range(limit)]

    def put_back(self, messages: Sequence[M]) -> None:
        """Returns taken messages to the front, to be taken again (orderly retries)."""
        self.pending.extendleft(reversed(messages))

    def done(self, messages: Iterable[M]) -> None:
        """These need not be consumed any more; what is done already stays so."""
        order, finished = self._order, self._done
        for message in messages:
            offset = message.queue_offset
            if offset in finished or not order or offset < order[0]:
                continue
            finished.add(offset)
            self.bytes -= message.size
        while order and order[0] in finished:
            finished.discard(order.popleft())

    def holds(self, message: M) -> bool:
        """True while the message is neither done nor unknown."""
        return (
            bool(self._order)
            and message.queue_offset >= self._order[0]
            and (message.queue_offset not in self._done)
        )

    @property
    def commit_offset(self) -> int:
        """The offset that may be committed: everything before it is done."""
        return self._order[0] if self._order else self.next_offset

    @property
    def span(self) -> int:
        """Distance between the oldest and the newest offset that are held."""
        return self._order[-1] - self._order[0] if self._order else 0

    @property
    def first_offset(self) -> int:
        return self._order[0] if self._order else 0

    @property
    def last_offset(self) -> int:
        return self._order[-1] if self._order else 0


def over_threshold(
    held: ProcessQueue[M], *, max_messages: int, max_bytes: int, max_span: int | None
) -> str | None:
    """Why no more may be pulled just now, or None. `max_span` None: order matters, the span cannot grow."""
    if len(held) > max_messages:
        return f"{len(held)} messages are waiting (limit {max_messages})"
    if held.bytes > max_bytes:
        return f"{held.bytes} bytes are waiting (limit {max_bytes})"
    if max_span is not None and held.span > max_span:
        return f"offsets {held.first_offset} to {held.last_offset} are waiting (limit {max_span})"
    return None
