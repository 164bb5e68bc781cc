"""What a consumer wants of a topic: a tag expression (``*``, ``TagA``, ``TagA || TagB``) or a SQL92 expression.

The broker filters by the tags' codes, which are in the ConsumeQueue, and never looks at a message; two tags may share
a code, so consumers compare the tags themselves again (`FilterAPI`). SQL92 is evaluated by the broker alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from rocketq.hashing import tags_code

ALL = "*"

#: Types of expressions, as the protocol names them (`ExpressionType`).
TAG = "TAG"
SQL92 = "SQL92"


class Sql(NamedTuple):
    """A SQL92 expression over properties: ``Sql("amount > 3 AND TAGS IN ('paid', 'open')")``.

    Brokers evaluate it (Apache's only with `enablePropertyFilter=true`). Properties are strings and compared as numbers
    where the other side is one; a message without a property that is compared does not match. Strings stand in
    single quotes. Also: BETWEEN, IN, IS NULL, CONTAINS, STARTSWITH, ENDSWITH, AND, OR, NOT, parentheses.
    """

    expression: str


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
