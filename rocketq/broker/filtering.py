"""The one place where a subscription's expression and its type become what the store filters by.

Pulls and pops come here. A type that the broker learns is added here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from rocketq.broker.refusal import Refused
from rocketq.broker.sql import SqlError, compile_sql
from rocketq.filters import SQL92, TAG, parse_codes
from rocketq.remoting.codes import ResponseCode
from rocketq.store.reader import properties_of


class Filter(NamedTuple):
    """What :meth:`rocketq.store.reader.Reader.read` takes as `codes` and `match`; both None: every message passes.

    `codes`: tag codes, one of which the message's ConsumeQueue entry has to have. `match(record)`: whether the whole
    record passes; where it is None nobody has to look at records.
    """

    codes: frozenset[int] | None = None
    match: Callable[[memoryview], bool] | None = None


def filter_for(expression: str | None, kind: str | None, *, sql: bool = True) -> Filter:
    """The filter of an expression of type `kind`: TAG (also when none is named) or SQL92.

    `sql` is the broker's `enablePropertyFilter`. Raises Refused: SUBSCRIPTION_PARSE_FAILED for an expression that
    cannot be read, SYSTEM_ERROR for SQL92 without `sql` and for other types.
    """
    if not kind or kind == TAG:
        return Filter(parse_codes(expression))
    if kind != SQL92 or not sql:
        remark = f"The broker does not support consumer to filter message by {kind}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    try:
        return _sql_filter(expression or "")
    except SqlError as error:
        remark = f"the SQL92 expression {_short(expression or '')!r} cannot be read: {error}"
        raise Refused(ResponseCode.SUBSCRIPTION_PARSE_FAILED, remark) from None


@lru_cache(maxsize=256)  # a long expression takes some 100 KB
def _sql_filter(expression: str) -> Filter:
    match = compile_sql(expression)
    return Filter(None, lambda record: match(properties_of(record)))


def _short(expression: str) -> str:
    return expression if len(expression) <= 200 else f"{expression[:200]}…"
