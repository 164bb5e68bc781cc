"""`celery inspect scheduled`: what the worker holds until it is due, and what brokers hold for the worker's queues.

Every worker of a queue names the same tasks, as any of them may get them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from celery.exceptions import CeleryError
from celery.worker import control
from celery.worker.request import Request
from kombu.exceptions import KombuError

from rocketq.errors import RocketQError
from rocketq_kombu.envelope import QueueMessage, decode
from rocketq_kombu.eta import waiting

log = logging.getLogger("rocketq.kombu")

#: Celery's own answer.
_held_here = control.scheduled
#: What Celery's workers give tasks with an eta in their own timers.
_PRIORITY = 6
#: Tasks of one queue that are named.
_MOST = 100
_NO_TASK = (KombuError, CeleryError, ValueError, KeyError, TypeError, AttributeError)


@control.inspect_command(alias="dump_schedule")  # type: ignore[untyped-decorator]
def scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """List of currently scheduled ETA/countdown tasks."""
    found: list[dict[str, Any]] = list(_held_here(state, **kwargs))
    consumer = state.consumer
    if getattr(consumer.connection.transport, "driver_type", None) == "rocketq":
        for name in sorted(queue.name for queue in consumer.task_consumer.queues):
            try:
                found += _held_by_brokers(state, name)
            except RocketQError as error:
                log.warning("what waits for its eta in queue %s is not known just now: %s", name, error)
    return found


def _held_by_brokers(state: Any, queue: str) -> Iterator[dict[str, Any]]:
    consumer = state.consumer
    for message in waiting(consumer.connection, queue, _MOST):
        try:
            payload = decode(message.body)
            payload["properties"].update(delivery_tag="", queue=queue)
            payload["properties"]["delivery_info"]["redelivered"] = False
            request = Request(QueueMessage(payload), app=state.app, hostname=consumer.hostname)
        except _NO_TASK as error:  # it is no task, or none that this worker knows or accepts
            log.debug("offset %d of the timer's topic is no task of this worker: %r", message.queue_offset, error)
            continue
        eta = request.eta
        yield {"eta": eta.isoformat() if eta else None, "priority": _PRIORITY, "request": request.info()}
