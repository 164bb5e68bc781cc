"""What a store hands out: messages that were appended, results of reads, the report of a recovery."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rocketq.store.consumequeue import Queue


class Appended(msgspec.Struct, gc=False):
    """One message with its place. `tags_code` is that of its ConsumeQueue entry, times are ms."""

    topic: str
    queue_id: int
    queue_offset: int
    physical_offset: int
    size: int
    store_timestamp: int
    tags_code: int
    sys_flag: int
    queue: Queue
    unique_id: str | None
    keys: str | None
    tag: str | None


class GetStatus(enum.Enum):
    """How a read ended (`GetMessageStatus`)."""

    FOUND = 0
    NO_MATCHED_MESSAGE = 1
    MESSAGE_WAS_REMOVING = 2
    OFFSET_FOUND_NULL = 3
    OFFSET_OVERFLOW_BADLY = 4
    OFFSET_OVERFLOW_ONE = 5
    OFFSET_TOO_SMALL = 6
    NO_MATCHED_LOGIC_QUEUE = 7
    NO_MESSAGE_IN_QUEUE = 8
    #: never a store's: the group was moved and has to go on elsewhere
    OFFSET_RESET = 9


class ReadResult(msgspec.Struct):
    """The answer to a read. `buffers` are slices of the log: consecutive records are one slice.

    `next_offset` is where to read on, `min_offset` and `max_offset` are the queue's; `count` messages of
    together `size` bytes.
    """

    status: GetStatus
    next_offset: int
    min_offset: int
    max_offset: int
    buffers: list[memoryview]
    count: int = 0
    size: int = 0


@dataclass(frozen=True)
class QueryResult:
    """Records that the index holds under a key, newest first, and how far the index is.

    Keys are found by a 31-bit hash: the caller compares topic and key.
    """

    buffers: list[memoryview]
    last_update_timestamp: int
    last_update_physical_offset: int


@dataclass
class Recovery:
    """What :meth:`MessageStore.open` found and did. Offsets are physical."""

    #: the last owner closed the store in order
    clean: bool
    #: records from here on were checked, and dispatched again after an unclean stop
    checked_from: int = 0
    #: end of the log
    end: int = 0
    #: how many records were checked
    records: int = 0
    #: bytes of a torn tail that were cut off
    cut_bytes: int = 0
    #: ConsumeQueue and index were rebuilt from the whole log
    rebuilt: bool = False
    #: what the owner should know, in sentences that name file and offset
    problems: list[str] = field(default_factory=list)
