"""Moving a group to another place in a topic, whether its consumers run or not.

Brokers from 5.0 on do it themselves (code 222): they answer the consumers' next pull with the new offset. Older ones
would have to push it to the clients; there a group is moved only while nobody of it is connected (code 15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rocketq.client.browse import Browser
from rocketq.errors import RocketQError
from rocketq.message import MessageQueue
from rocketq.remoting import headers
from rocketq.remoting.codes import RequestCode, ResponseCode


@dataclass(frozen=True)
class Move:
    """One queue's offset: `before` is None when the group has none stored; the queue has `min_offset` to `end`."""

    queue: MessageQueue
    before: int | None
    after: int
    min_offset: int
    end: int


def plan(
    browser: Browser,
    group: str,
    topic: str,
    target: Callable[[MessageQueue], int],
    *,
    queue_id: int | None = None,
    broker: str | None = None,
    only_back: bool = False,
) -> list[Move]:
    """What to do so that each queue (of `broker`, with `queue_id`) is at `target(queue)`, kept within the queue.

    `only_back`: queues that are there or before stay where they are. Raises RocketQError for a group or queue that
    does not exist.
    """
    browser.admin.group(group)
    queues = [
        queue
        for queue in browser.queues(topic)
        if (queue_id is None or queue.queue_id == queue_id) and (broker is None or queue.broker_name == broker)
    ]
    if not queues:
        where = f" on broker {broker}" if broker else ""
        raise RocketQError(
            f"topic {topic} has no such queue{where}; rocketq topic status {topic} shows its queues"
        )
    moves = []
    for queue in queues:
        low, end = browser.min_offset(queue), browser.max_offset(queue)
        before = browser.committed(group, queue)
        after = min(max(target(queue), low), end)
        if not (only_back and before is not None and before <= after):
            moves.append(Move(queue, before, after, low, end))
    return moves


def apply(browser: Browser, group: str, moves: list[Move]) -> None:
    """Do it. Raises RocketQError when a broker cannot while consumers are connected."""
    admin = browser.admin
    for move in moves:
        address = browser.address(move.queue)
        if admin.is_before_5(address) or not _reset_by_broker(browser, group, move):
            if admin.is_online(address, group):
                raise RocketQError(
                    f"broker {move.queue.broker_name} cannot move group {group} while its consumers are connected: "
                    f"stop them and try again (rocketq group clients {group})"
                )
            browser.commit(group, move.queue, move.after)


def _reset_by_broker(browser: Browser, group: str, move: Move) -> bool:
    """False when the broker does not know how."""
    header = headers.ResetOffsetHeader(
        topic=move.queue.topic,
        group=group,
        queue_id=move.queue.queue_id,
        offset=move.after,
        timestamp=-1,
        is_force=True,
    )
    allowed = (ResponseCode.SUCCESS, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
    address = browser.address(move.queue)
    answer = browser.admin.ask(address, RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header, allowed=allowed)
    return answer.code == ResponseCode.SUCCESS
