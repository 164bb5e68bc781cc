"""Java's `String.hashCode`, which tags, index keys and selectors are defined by."""

from __future__ import annotations

from functools import lru_cache


def java_hash(text: str) -> int:
    """Java's `String.hashCode` of `text`: a signed 32-bit number over its UTF-16 units."""
    value = 0
    if text.isascii():
        for unit in text.encode():
            value = value * 31 + unit & 0xFFFFFFFF
    else:
        raw = text.encode("utf-16-be", "surrogatepass")
        for index in range(0, len(raw), 2):
            value = value * 31 + (raw[index] << 8 | raw[index + 1]) & 0xFFFFFFFF
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


@lru_cache(maxsize=4096)
def tags_code(tag: str) -> int:
    """The code of a tag in ConsumeQueue entries and filters; 0 for no tag."""
    return java_hash(tag)
