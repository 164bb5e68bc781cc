"""What a handler can say about the messages it was given."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from rocketq.message import ReceivedMessage


class ConsumeResult(Enum):
    """The fate of a message (or of all messages of one handler call)."""

    SUCCESS = "success"
    """Consumed. Its offset may be committed."""

    RETRY_LATER = "retry_later"
    """Deliver it again later, to any member of the group. The broker waits longer from time to time (10 s, 30 s, 1 m
    … 2 h); after `max_reconsume_times` the message goes to the dead letter queue. Broadcast: logged and dropped.
    Ordered: the same as SUSPEND."""

    DEAD_LETTER = "dead_letter"
    """Do not try again: to the group's dead letter queue, at once. Broadcast: logged and dropped."""

    SUSPEND = "suspend"
    """Ordered consumers: try this message again after a moment, nothing behind it in its queue before that.
    Elsewhere the same as RETRY_LATER."""


class RetryLater(NamedTuple):
    """As RETRY_LATER, with the delay chosen: `delay` in seconds, or a level from 1 to 18 (1 s 5 s 10 s 30 s 1 m … 2 h).

    Without either the usual one. A `PushConsumer` can only have delays that are levels and takes the next longer one.
    `error` is told in the dead letter queue when there are no attempts left.
    """

    delay_level: int | None = None
    delay: float | None = None
    error: BaseException | None = None


class DeadLetter(NamedTuple):
    """As DEAD_LETTER; the dead letter says the `error` and its traceback."""

    error: BaseException | None = None


OneResult = ConsumeResult | RetryLater | DeadLetter
#: One for all messages of the call, or one each in their order. None counts as SUCCESS.
HandlerResult = ConsumeResult | RetryLater | DeadLetter | Sequence[OneResult] | None


def spread(result: HandlerResult, messages: Sequence[ReceivedMessage]) -> list[OneResult] | None:
    """One result for each message, None when all succeeded. Raises TypeError for anything that is not a result."""
    if result is None or result is ConsumeResult.SUCCESS:
        return None
    if isinstance(result, (ConsumeResult, RetryLater, DeadLetter)):
        return [result] * len(messages)
    if not isinstance(result, (list, tuple)) or not all(
        isinstance(r, (ConsumeResult, RetryLater, DeadLetter)) for r in result
    ):
        raise TypeError(f"a handler returned {result!r}, which is not a ConsumeResult, nor one for each message")
    if len(result) != len(messages):
        raise TypeError(f"a handler returned {len(result)} results for {len(messages)} messages")
    return list(result)
