"""Hooks around every send and every consumption: the way to extend an application.

    class Timing(Middleware):
        def before_consume(self, consumer, message):
            self.local.start = time.perf_counter()

    app = RocketQ("shop", middleware=[Timing()])

Hooks are plain functions. Those of a message run on the thread that runs its function, so thread locals and
context variables set in `before_consume` are seen by the function and by `after_consume`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rocketq.message import Message, ReceivedMessage

if TYPE_CHECKING:
    from rocketq.app import RocketQ
    from rocketq.client import SendResult
    from rocketq.consumers import Consumer

__all__ = ["Chain", "Middleware"]

logger = logging.getLogger("rocketq.app")


class Middleware:
    """Override what you need. `before_…` run in the order of the list, `after_…` in reverse.

    An exception in a `before_…` hook is the outcome: the send fails with it; the consumption fails with it as if the
    function had raised it (`Retry` and `Reject` work too). Then the `after_…` hooks of the middleware before it run.
    An exception in an `after_…` hook is logged and changes nothing.
    """

    def before_send(self, app: RocketQ, message: Message) -> None:
        """May change `message`: add properties, replace the body."""

    def after_send(
        self, app: RocketQ, message: Message, result: SendResult | None, error: BaseException | None
    ) -> None:
        """The send ended: with `result`, or with `error`."""

    def before_consume(self, consumer: Consumer, message: ReceivedMessage) -> None:
        """Runs before the payload is read and the function is called."""

    def after_consume(
        self, consumer: Consumer, message: ReceivedMessage, result: Any, error: BaseException | None
    ) -> None:
        """The function returned `result`, or raised `error`; an async function that is cancelled raises too."""


class Chain:
    """Runs one pair of hooks over a list of middleware: `before` forwards, `after` backwards over those that began."""

    __slots__ = ("_begun", "_middleware")

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        self._middleware = middleware
        self._begun = 0

    def before(self, hook: str, *values: Any) -> None:
        for middleware in self._middleware:
            getattr(middleware, hook)(*values)
            self._begun += 1

    def after(self, hook: str, *values: Any) -> None:
        for middleware in reversed(self._middleware[: self._begun]):
            try:
                getattr(middleware, hook)(*values)
            except Exception:  # the outcome is settled; a hook's mistake must not change it
                logger.exception("%s.%s raised", type(middleware).__name__, hook)
