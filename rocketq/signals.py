"""blinker signals at each point of a message's and a worker's life. They observe; middleware changes.

    from rocketq import signals

    @signals.failed.connect
    def count(app, *, consumer, message, error): ...

The sender is the application. `received`, `consumed` and `failed` are sent on the thread that runs the function: the
pool's for a sync one, the event loop's for an async one; the worker's other signals on the event loop's. A receiver
must not block there. One that raises is logged and changes nothing. While nobody listens a signal costs one look at
an empty dict.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import blinker

if TYPE_CHECKING:
    from rocketq.app import RocketQ

logger = logging.getLogger("rocketq.app")

_signals = blinker.Namespace()

#: (message) right before a message is sent, after the middleware.
before_send = _signals.signal("before-send")
#: (message, result, error) after a send; `result` is None when it failed with `error`.
after_send = _signals.signal("after-send")
#: (consumer, message) a message reached the worker, before middleware and function.
received = _signals.signal("received")
#: (consumer, message, seconds) the function returned after `seconds`.
consumed = _signals.signal("consumed")
#: (consumer, message, error) the function (or its middleware, or reading the payload) raised; what happens to the
#: message then is told by `retried` or `dead_lettered`. A broadcast consumer's failure is followed by neither.
failed = _signals.signal("failed")
#: (consumer, message) the broker has taken it back for another delivery; or an ordered consumer will try it again.
retried = _signals.signal("retried")
#: (consumer, message) the broker has put it into the group's dead letter queue.
dead_lettered = _signals.signal("dead-lettered")
#: (consumer, topic, assigned, revoked) the consumer's share of the queues of `topic` (its own, or its group's retry
#: topic) changed: lists of MessageQueue. Never with POP, where nobody has a share.
rebalanced = _signals.signal("rebalanced")
#: (worker) every consumer is connected and pulling.
worker_ready = _signals.signal("worker-ready")
#: (worker) the worker was told to stop; nothing new is taken, what is in flight still runs.
worker_stopping = _signals.signal("worker-stopping")


def emit(signal: blinker.NamedSignal, app: RocketQ, **values: Any) -> None:
    """Tell the listeners of `signal`, if there are any."""
    if not signal.receivers:
        return
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **values)
        except Exception:  # an observer's mistake must not change what happens to a message
            logger.exception("a receiver of the signal %s raised", signal.name)
