"""Filter expressions, SQL92 and tags: they are refused with a reason, or filter any message without an exception.

Input: an expression; what stands behind a zero byte are the properties of a message.
"""

import contextlib

from rocketq.broker.filtering import filter_for
from rocketq.broker.refusal import Refused
from rocketq.broker.sql import SqlError, compile_sql
from rocketq.filters import TAG, parse_tags
from rocketq.properties import decode_properties

MESSAGES = (
    {},
    {"a": "1", "b": "text", "c": "1.5", "d": "true", "TAGS": "x"},
    {"a": "9" * 400, "b": "", "c": "1e400", "d": "-9223372036854775809"},
)


def run_one(data: bytes) -> None:
    before, _, behind = data.partition(b"\0")
    expression = before.decode(errors="replace")
    filter_for(expression, TAG)
    for tag in parse_tags(expression) or ():
        assert tag.strip() == tag
    try:
        match = compile_sql(expression)
    except SqlError:
        pass
    else:
        for properties in (*MESSAGES, decode_properties(behind.decode(errors="replace"))):
            assert match(properties) in (True, False)
    with contextlib.suppress(Refused):
        filter_for(expression, behind.decode(errors="replace"))


def seeds() -> list[bytes]:
    expressions = """a > 3 AND b = 'text'|a BETWEEN 1 AND 2.5 OR c NOT BETWEEN 3 AND 4|a IN ('x', 'y') AND d IS NOT NULL
        |NOT (a = 1) OR TRUE|b CONTAINS 'e' AND b NOT STARTSWITH 't' AND b ENDSWITH 't'|a <> -1e3 AND c <= .5|d = TRUE
        |TagA || TagB|*|'it''s' = b|((((a = 1))))|a IS NULL AND FALSE""".split("|")
    return [text.strip().encode() + end for text in expressions for end in (b"", b"\0a\x012\x02b\x01text\x02")]
