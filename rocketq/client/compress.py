"""Compression of bodies on their way out."""

from __future__ import annotations

import zlib

from rocketq.message import MAX_UNPACKED_BODY
from rocketq.record import COMPRESSED, ZLIB

#: Bodies of this many bytes and more are compressed, up to MAX_UNPACKED_BODY: consumers unpack no more.
THRESHOLD = 4096
LEVEL = 5


def compress(body: bytes, threshold: int = THRESHOLD) -> tuple[bytes, int]:
    """The body to send and the sysFlag bits that say what was done to it."""
    if not threshold <= len(body) <= MAX_UNPACKED_BODY:
        return body, 0
    return zlib.compress(body, LEVEL), COMPRESSED | ZLIB
