"""`config/timercheck`: how far the timer got (`TimerCheckpoint`).

4096 bytes that begin with seven int64: the time up to which everything due was delivered, the position up to which the
timer log is on disk, the offset in the queue of the timer's topic up to which everything is in timer log and wheel,
the same of a master, and a version (state, time, counter). At byte 64, where Apache has zeros, follow a mark of ours:
8 bytes magic, int64 `log_offset`, int64 `log_start`, int64 CRC of all that. Apache's broker leaves the mark in place
and changes what is before it, so the CRC tells who wrote last.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_TIMES = struct.Struct(">7q")
_MARK = struct.Struct(">8sqq")
_MARK_AT = 64
_MAGIC = b"rocketq\x02"
_PAGE = 4096
#: What a slave is sent of it.
SIZE = _TIMES.size


@dataclass(frozen=True)
class TimerCheck:
    """The content of the file.

    `read_time`: ms; all messages due in the seconds before were delivered. `log_end`: position in the timer log.
    `queue_offset`: in the timer's topic. `log_offset`: in the CommitLog; all deliveries of later seconds are behind
    it. `log_start`: first position of the timer log. Both are None when Apache's broker wrote the file.
    """

    read_time: int
    log_end: int
    queue_offset: int
    master_offset: int
    timestamp: int = 0
    counter: int = 0
    log_offset: int | None = None
    log_start: int | None = None

    def encode(self) -> bytes:
        page = bytearray(_PAGE)
        head = _TIMES.pack(
            self.read_time,
            self.log_end,
            self.queue_offset,
            self.master_offset,
            0,
            self.timestamp,
            self.counter,
        )
        page[: len(head)] = head
        if self.log_offset is not None:
            mark = _MARK.pack(_MAGIC, self.log_offset, self.log_start or 0)
            page[_MARK_AT : _MARK_AT + 32] = mark + zlib.crc32(head + mark).to_bytes(8, "big")
        return bytes(page)

    @classmethod
    def decode(cls, page: bytes) -> TimerCheck | None:
        """None when the page is cut short, or its beginning is empty.

        That is how a power failure may leave a new file, and Apache's broker one that it did not come to write to.
        """
        head = page[: _TIMES.size]
        if len(head) < _TIMES.size or not any(head):
            return None
        read_time, log_end, queue_offset, master_offset, _, timestamp, counter = _TIMES.unpack(head)
        log_offset = log_start = None
        mark = page[_MARK_AT : _MARK_AT + _MARK.size]
        crc = page[_MARK_AT + _MARK.size : _MARK_AT + _MARK.size + 8]
        if mark[:8] == _MAGIC and crc == zlib.crc32(head + mark).to_bytes(8, "big"):
            _, log_offset, log_start = _MARK.unpack(mark)
        return cls(read_time, log_end, queue_offset, master_offset, timestamp, counter, log_offset, log_start)
