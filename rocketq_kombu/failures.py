"""Tasks that failed for good, after their last retry, become dead letters of their queue, with the traceback.

Celery acknowledges such tasks, so the broker would forget them. What is kept is the task as it would be sent again:
`rocketq dlq resend` lets it run anew, with all its retries before it.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import task_failure

from rocketq.client.dead_letters import told

log = logging.getLogger("rocketq.kombu")


def keep(sender: Any = None, exception: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    """Publish a failed task to the dead letters of the queue that it came from."""
    from rocketq_kombu.transport import Transport

    request = sender.request
    if isinstance(exception, tuple(sender.throws or ())) or request.is_eager or not request.delivery_info:
        return
    try:
        with sender.app.producer_pool.acquire(block=True) as producer:
            transport = producer.connection.transport
            if not isinstance(transport, Transport) or not transport.options.dead_letters:
                return
            task = sender.signature_from_request(request, args, kwargs, retries=0)
            task.options.pop("eta", None)
            task.apply_async(producer=producer, dead_letter=told(exception))
    except Exception:
        log.exception("task %s[%s] failed and could not be kept as a dead letter", sender.name, request.id)


task_failure.connect(keep, weak=False, dispatch_uid="rocketq_kombu.failures")
