"""Tag expressions: ``*``, ``TagA``, ``TagA || TagB``.

The broker filters by the tags' codes, which are in the ConsumeQueue, and never looks at a message; two tags may share
a code, so consumers compare the tags themselves again (`FilterAPI`).
"""

from __future__ import annotations

from functools import lru_cache

from rocketq.hashing import tags_code

ALL = "*"


def parse_tags(expression: str | None) -> frozenset[str] | None:
    """The tags that `expression` names; None when every message passes."""
    if not expression or expression == ALL:
        return None
    return frozenset([tag for part in expression.split("||") if (tag := part.strip())]) or None


@lru_cache(maxsize=4096)
def parse_codes(expression: str | None) -> frozenset[int] | None:
    """The codes of the tags that `expression` names; None when every message passes."""
    tags = parse_tags(expression)
    return None if tags is None else frozenset([tags_code(tag) for tag in tags])
