"""The consumer functions of an application, and what they can raise to decide about their message."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rocketq import payload
from rocketq.errors import ConfigError, RocketQError
from rocketq.filters import ALL, Sql, parse_tags
from rocketq.message import ReceivedMessage
from rocketq.schedule import Schedule

__all__ = ["Consumer", "Reject", "Retry"]

#: RocketMQ's own numbers: deliveries at once per consumer and process, redeliveries before the dead letter queue.
DEFAULT_CONCURRENCY = 20
DEFAULT_MAX_RETRIES = 16
#: Seconds until a message that a process popped comes again when nothing is heard of it any more.
DEFAULT_LEASE = 30.0
#: Seconds until it does when the broker sees that the process's connections have ended.
DEFAULT_GRACE = 5.0


class Retry(RocketQError):
    """Raise it in a consumer function: deliver this message again, without an error in the log.

    `delay_level` 1 to 18 is the broker's delay (1 s 5 s 10 s 30 s 1 m 2 m … 2 h); 0 leaves it to the broker, which
    waits longer each time (10 s, 30 s, 1 m, …). Counts as a retry: after `max_retries` the message goes to the dead
    letter queue. An ordered consumer tries again on the spot after a second, `delay_level` is not used there.
    """

    def __init__(self, reason: str = "", *, delay_level: int = 0) -> None:
        if not 0 <= delay_level <= 18:
            raise ValueError(f"delay_level {delay_level} is not in 0..18")
        super().__init__(reason)
        self.delay_level = delay_level


class Reject(RocketQError):
    """Raise it in a consumer function: no use to try again, straight to the group's dead letter queue."""


@dataclass(frozen=True)
class Consumer:
    """One registered function: which messages it takes and how. Made by `RocketQ.consumer`, see there, or by
    `RocketQ.periodic`: then it has a `schedule`, and its messages are ticks."""

    function: Callable[..., Any]
    topic: str
    tag: str
    group: str
    ordered: bool
    broadcast: bool
    concurrency: int | None
    max_retries: int | None
    from_where: str | int
    sql: str | None = None
    mode: str = "auto"
    lease: float = DEFAULT_LEASE
    grace: float = DEFAULT_GRACE
    retry_delays: Sequence[float] = ()
    schedule: Schedule | None = None
    misfire: str = "once"

    def __post_init__(self) -> None:
        if self.ordered and self.broadcast:
            raise ConfigError(f"consumer {self.name}: ordered and broadcast exclude each other")
        if self.tag.strip() != ALL and parse_tags(self.tag) is None:
            raise ConfigError(f"consumer {self.name}: {self.tag!r} is not a tag expression (* or a || b)")
        if self.sql is not None and self.tag.strip() != ALL:
            raise ConfigError(f"consumer {self.name}: tag and sql exclude each other: name TAGS in the expression")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"consumer {self.name}: concurrency={self.concurrency} has to be at least 1")
        if self.max_retries is not None and self.max_retries < 0:
            raise ConfigError(f"consumer {self.name}: max_retries={self.max_retries} must not be negative")
        if self.mode not in ("auto", "pop", "pull"):
            raise ConfigError(f"consumer {self.name}: mode={self.mode!r} is not auto, pop or pull")
        if self.mode == "pop" and not self.may_pop:
            raise ConfigError(
                f"consumer {self.name}: mode='pop' is for consumers that are neither ordered nor broadcast, with "
                f"max_retries up to {DEFAULT_MAX_RETRIES}"
            )
        if self.lease < 1:
            raise ConfigError(f"consumer {self.name}: lease={self.lease} has to be at least one second")
        if not 0 <= self.grace < math.inf:
            raise ConfigError(f"consumer {self.name}: grace={self.grace} has to be a number of seconds, 0 or more")
        if any(delay < 0 for delay in self.retry_delays):
            raise ConfigError(f"consumer {self.name}: retry_delays={self.retry_delays} has a negative one")
        if self.misfire not in ("once", "skip", "all"):
            raise ConfigError(f"periodic {self.name}: misfire={self.misfire!r} is not once, skip or all")
        if isinstance(self.from_where, str) and self.from_where not in ("FIRST", "LAST"):
            raise ConfigError(
                f"consumer {self.name}: from_where={self.from_where!r} is not FIRST, LAST or ms since the epoch"
            )

    @property
    def may_pop(self) -> bool:
        """Whether it can be consumed by POP: brokers count attempts then, and give up after 16 retries."""
        return not (self.ordered or self.broadcast) and (self.retries or 0) <= DEFAULT_MAX_RETRIES

    @property
    def expression(self) -> str | Sql:
        """What of the topic it takes, as consumers subscribe to it."""
        return self.tag if self.sql is None else Sql(self.sql)

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    @cached_property
    def is_async(self) -> bool:
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        call = function if inspect.isroutine(function) else type(function).__call__
        return inspect.iscoroutinefunction(call)

    @cached_property
    def arguments(self) -> Callable[[ReceivedMessage], tuple[Any, ...]]:
        """Turns a message into the function's arguments. Raises ConfigError for a signature that cannot be filled.

        Looked up when first needed, so annotations may name types that are defined further down in the module.
        """
        return payload.parameters(self.function, may_be_none=self.schedule is not None)

    @property
    def drops_failures(self) -> bool:
        """Whether a message whose function raised is done all the same: the next tick or broadcast is another one."""
        return self.broadcast or self.schedule is not None

    def retry_delay(self, attempt: int) -> float | None:
        """Seconds before the next attempt after failed number `attempt` (from 0); None: as brokers do it."""
        return self.retry_delays[min(attempt, len(self.retry_delays) - 1)] if self.retry_delays else None

    @property
    def retries(self) -> int | None:
        """Failed deliveries before the dead letter queue; None: no limit (an ordered consumer's default)."""
        if self.max_retries is None and self.ordered:
            return None
        return DEFAULT_MAX_RETRIES if self.max_retries is None else self.max_retries
