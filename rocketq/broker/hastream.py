"""The stream between a master and its slaves, pure (`DefaultHAConnection`, `DefaultHAClient`).

A slave writes reports: int64, the end of its CommitLog. The first one says where the stream begins, later ones what
it has by now. The master writes pieces: int64 offset of the first byte, int32 size, the bytes; a size of 0 is a sign
of life, with the offset of the byte that comes next. Pieces are bytes of the log as it is: they cut records anywhere,
and never cross the end of a CommitLog file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

REPORT = struct.Struct(">q")
HEAD = struct.Struct(">qi")
#: A slave of Apache's has to have a piece and its head in a buffer of 4 MiB.
MAX_PIECE = (4 << 20) - HEAD.size


class HaStreamError(Exception):
    """The other side sends what cannot be; the connection is of no use any more."""


class Piece(NamedTuple):
    """A part of the CommitLog; without data it is a sign of life."""

    offset: int
    data: bytes


class Reports:
    """What a slave writes, as a master reads it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int | None:
        """The last whole report in what came so far and was not given out; None when there is none.

        Raises HaStreamError for an offset that cannot be.
        """
        data = self._rest + data
        whole = len(data) - len(data) % REPORT.size
        self._rest = data[whole:]
        if not whole:
            return None
        (offset,) = REPORT.unpack_from(data, whole - REPORT.size)
        if offset < 0:
            raise HaStreamError(f"a slave cannot have {offset} bytes")
        return int(offset)


class Pieces:
    """What a master writes, as a slave reads it. Holds no more than one piece."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that are complete now. Raises HaStreamError for a head that cannot be."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= HEAD.size:
                offset, size = HEAD.unpack_from(rest, at)
                if offset < 0 or not 0 <= size <= MAX_PIECE:
                    raise HaStreamError(f"a piece of {size} bytes at {offset} cannot be")
                end = at + HEAD.size + size
                if len(rest) < end:
                    break
                piece = Piece(offset, bytes(memoryview(rest)[at + HEAD.size : end]))
                at = end
                yield piece
        finally:
            del rest[:at]
