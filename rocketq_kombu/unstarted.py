"""Tasks that a Celery worker has not begun, and that are somebody else's by now."""

from __future__ import annotations

import sys
from typing import Any


def drop(message: Any) -> bool:
    """Keep the task of a delivered message from being started; False when it may have begun."""
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return False
    for request in list(state.reserved_requests):
        if request.message is message and request._apply_result is None and request not in state.active_requests:
            request._already_revoked = True  # Celery looks at that when it is the task's turn
            state.reserved_requests.discard(request)
            if state.requests.get(request.id) is request:
                del state.requests[request.id]
            return True
    return False
