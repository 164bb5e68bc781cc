"""Which queues a member of a group shall consume, and by pull or by POP (codes 400, 401, 402).

Clients that let the broker decide ask it with the group's strategy. What an operator set for a group and topic is kept
in ``config/messageRequestMode.json`` (`QueryAssignmentProcessor`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rocketq import javajson
from rocketq.broker.clients import Clients
from rocketq.broker.groups import Groups
from rocketq.broker.saving import Build, Saver
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.message import MessageQueue
from rocketq.names import RETRY_PREFIX
from rocketq.rebalance import Strategy, average, average_by_circle
from rocketq.remoting.bodies import MessageRequestMode, QueryAssignmentBody, TopicRoute
from rocketq.remoting.codes import Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.configfile import load_table
from rocketq.store.files import Files

_STRATEGIES: dict[str, Strategy] = {"AVG": average, "AVG_BY_CIRCLE": average_by_circle}
#: Seconds that a route is used before the NameServer is asked again, and how many are kept.
_FRESH, _KEPT = 5.0, 1000


class Assignment:
    """Decides for clients. `route` asks a NameServer for the queues of all brokers; None when it knows nothing."""

    def __init__(
        self,
        config: BrokerConfig,
        path: Path,
        files: Files,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        saver: Saver,
        route: Callable[[str], Awaitable[TopicRoute | None]],
    ) -> None:
        self._config = config
        self.path = path
        self._files = files
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._saver = saver
        self._route = route
        self._dirty = False
        self._modes: dict[tuple[str, str], MessageRequestMode] = {}
        self._routes: dict[str, tuple[float, list[MessageQueue] | None]] = {}

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.QUERY_ASSIGNMENT: self._query,
            RequestCode.SET_MESSAGE_REQUEST_MODE: self._set_mode,
            RequestCode.GET_ALL_MESSAGE_REQUEST_MODE: self._all_modes,
        }

    # what was set

    def load(self) -> None:
        """Raises StoreError when the file is unreadable."""
        load_table(self.path, self._files, self._take)

    def _take(self, saved: dict[str, Any]) -> None:
        for topic, groups in saved.get("messageRequestModeMap", {}).items():
            for group, value in groups.items():
                self._modes[topic, group] = MessageRequestMode.from_json(value)

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`."""
        if not self._dirty:
            return None
        self._dirty = False
        value = self._as_json()
        return lambda: value

    def unsaved(self) -> None:
        self._dirty = True

    def copy(self, theirs: dict[str, Any]) -> None:
        """Become a master's table."""
        if theirs == self._as_json():
            return
        self._modes.clear()
        self._take(theirs)
        self._dirty = True

    def _as_json(self) -> dict[str, Any]:
        table: dict[str, dict[str, Any]] = {}
        for (topic, group), mode in self._modes.items():
            table.setdefault(topic, {})[group] = mode.to_json()
        return {"messageRequestModeMap": table}

    def mode(self, topic: str, group: str) -> MessageRequestMode:
        """How the group consumes the topic when it asks. What failed is pulled, unless it was popped."""
        known = self._modes.get((topic, group))
        if known is not None:
            return known
        mode = "PULL" if topic.startswith(RETRY_PREFIX) else self._config.default_message_request_mode
        share = self._config.default_pop_share_queue_num if mode == "POP" else 0
        return MessageRequestMode(topic=topic, consumer_group=group, mode=mode, pop_share_queue_num=share)

    async def _set_mode(self, connection: Connection, request: Command) -> Reply:
        wanted = MessageRequestMode.decode(request.body)
        topic, group = wanted.topic, wanted.consumer_group
        if topic.startswith(RETRY_PREFIX):
            remark = "retry topic is not allowed to set mode"
            return encode_response(request, ResponseCode.NO_PERMISSION, remark)
        if topic not in self._topics.table:
            return encode_response(request, ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist")
        if self._groups.get(group) is None:
            remark = "subscription group does not exist"
            return encode_response(request, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
        if wanted.mode not in ("PULL", "POP"):
            remark = f"mode {wanted.mode} of group {group} and topic {topic} is neither PULL nor POP"
            return encode_response(request, ResponseCode.INVALID_PARAMETER, remark)
        self._modes[topic, group] = wanted
        self._dirty = True
        await self._saver.save_soon(self)
        return encode_response(request, ResponseCode.SUCCESS)

    def _all_modes(self, connection: Connection, request: Command) -> Reply:
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(self._as_json()))

    # who gets what

    async def _query(self, connection: Connection, request: Command) -> bytes:
        asked = QueryAssignmentBody.decode(request.body)
        mode = self.mode(asked.topic, asked.consumer_group)
        queues = self.share(asked, mode, await self._queues(asked.topic))
        body: dict[str, Any] = {}
        if queues is not None:
            body["messageQueueAssignments"] = [
                {"messageQueue": queue, "mode": mode.mode} for queue in dict.fromkeys(queues)
            ]
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(body))

    async def _queues(self, topic: str) -> list[MessageQueue] | None:
        """The readable queues of all brokers, sorted; None when nobody knows the topic."""
        now = time.monotonic()
        at, queues = self._routes.get(topic, (0.0, None))
        if queues is None or now - at > _FRESH:
            route = await self._route(topic)
            queues = None if route is None else _queues_of(topic, route)
            if queues is None and (own := self._topics.get(topic)) is not None:
                queues = [
                    MessageQueue(topic, self._config.broker_name, each) for each in range(own.read_queue_nums)
                ]
            if len(self._routes) >= _KEPT:
                self._routes.clear()
            self._routes[topic] = now, queues
        return queues

    def share(
        self, asked: QueryAssignmentBody, mode: MessageRequestMode, queues: list[MessageQueue] | None
    ) -> list[MessageQueue] | None:
        """What the client is to consume; None when that cannot be said, and it shall go on as it is."""
        if queues is None or asked.message_model == "BROADCASTING":
            return queues
        group = self._clients.consumer(asked.consumer_group)
        strategy = _STRATEGIES.get(asked.strategy_name)
        if group is None or strategy is None:
            return None
        members = sorted({member.client_id for member in group.members.values()})
        if mode.mode != "POP":
            return strategy(asked.client_id, members, queues)
        if not 0 < mode.pop_share_queue_num < len(members) - 1:
            return [queue._replace(queue_id=-1) for queue in queues]
        if asked.client_id not in members:
            return []
        first = members.index(asked.client_id)
        if len(members) > len(queues):
            return [queues[first % len(queues)]] if queues else []
        sharing = [members[(first + i) % len(members)] for i in range(mode.pop_share_queue_num + 1)]
        return [queue for member in sharing for queue in strategy(member, members, queues)]


def _queues_of(topic: str, route: TopicRoute) -> list[MessageQueue]:
    return sorted(
        MessageQueue(topic, queue.broker_name, queue_id)
        for queue in route.queue_datas
        if queue.perm & Perm.READ
        for queue_id in range(queue.read_queue_nums)
    )
