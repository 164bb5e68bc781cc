"""The one place where a subscription's expression and its type become what the store filters by.

Pulls and pops come here. A type that the broker learns is added here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rocketq.broker.refusal import Refused
from rocketq.filters import parse_codes
from rocketq.remoting.codes import ResponseCode


class Filter(NamedTuple):
    """What :meth:`rocketq.store.reader.Reader.read` takes: tag codes, and a look at the record itself; None: all."""

    codes: frozenset[int] | None = None
    match: Callable[[memoryview], bool] | None = None


def filter_for(expression: str | None, kind: str | None) -> Filter:
    """The filter of an expression of type `kind` (TAG when none is named). Raises Refused for other types."""
    if kind and kind != "TAG":
        remark = f"The broker does not support consumer to filter message by {kind}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark)
    return Filter(parse_codes(expression))
