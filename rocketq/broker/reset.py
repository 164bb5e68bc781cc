"""Moving a group to another place in a topic (code 222; to clients 220), whether its consumers run or not.

The broker moves the group's offsets and remembers that its consumers do not know yet: their commits are passed over,
and the next pull of each queue, also one that is held just now, is answered with the place to go on from
(`OFFSET_RESET`). A group that broadcasts keeps its offsets itself, so all its members are asked to move instead; with
`useServerSideResetOffset=false` so are those of every group.
"""

from __future__ import annotations

import logging

from rocketq import javajson
from rocketq.broker.clients import Clients
from rocketq.broker.groups import Groups
from rocketq.broker.hold import Hold
from rocketq.broker.offsets import Offsets
from rocketq.broker.popwait import PopWait
from rocketq.broker.refusal import Refused
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import RemotingError
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import OffsetTable
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import ResetOffsetHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

NOT_SET = "not set any response code"


class Reset:
    """Moves groups."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        offsets: Offsets,
        hold: Hold,
        log: ReviveLog,
        wait: PopWait,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._offsets = offsets
        self._hold = hold
        self._log = log
        self._wait = wait

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: self._reset}

    def _reset(self, connection: Connection, request: Command) -> Reply:
        header = request.header(ResetOffsetHeader)
        online = self._clients.consumer(header.group)
        try:
            if self._config.use_server_side_reset_offset and not (online and online.broadcasting):
                offsets, remark = self._move(header), None
            else:
                offsets, remark = self._push(header, str(request.language)), NOT_SET
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark)
        log.info("%s moved group %s in topic %s to %s", connection.peer, header.group, header.topic, offsets)
        return encode_response(request, ResponseCode.SUCCESS, remark, body=self._body(header.topic, offsets))

    def _body(self, topic: str, offsets: dict[int, int]) -> bytes:
        broker = self._config.broker_name
        return OffsetTable(
            {MessageQueue(topic, broker, queue): offset for queue, offset in offsets.items()}
        ).encode()

    def _by_time(self, topic: str, queue_id: int, timestamp: int) -> int:
        if timestamp < 0:
            return self._store.max_offset(topic, queue_id)
        return self._store.offset_by_time(topic, queue_id, timestamp)

    def _move(self, header: ResetOffsetHeader) -> dict[int, int]:
        """Moves the group here. Raises Refused."""
        topic, group, store = header.topic, header.group, self._store
        known = self._topics.get(topic)
        if known is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"Topic {topic} does not exist")
        if group not in self._groups.table:
            raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"Group {group} does not exist")
        if header.queue_id < 0:
            queues = range(known.read_queue_nums)
            offsets = {queue_id: self._by_time(topic, queue_id, header.timestamp) for queue_id in queues}
        elif header.offset is None or header.offset == -1:
            offsets = {header.queue_id: self._by_time(topic, header.queue_id, header.timestamp)}
        else:
            low, high = store.min_offset(topic, header.queue_id), store.max_offset(topic, header.queue_id)
            if not low <= header.offset <= high + 1:
                remark = f"Target offset {header.offset} not in consume queue range [{low}-{high}]"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark)
            offsets = {header.queue_id: header.offset}
        if not offsets:
            raise Refused(ResponseCode.SYSTEM_ERROR, "No queues to reset.")
        self._log.moved(topic, group, offsets)
        self._offsets.reset(group, topic, offsets)
        self._hold.wake(group, topic)
        self._wait.wake(topic)
        return offsets

    def _push(self, header: ResetOffsetHeader, language: str) -> dict[int, int]:
        """Asks the connected consumers to move; `language` is the asker's. Raises Refused."""
        topic, group = header.topic, header.group
        known = self._topics.get(topic)
        if known is None:
            remark = f"[reset-offset] reset offset failed, no topic in this broker. topic={topic}"
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, remark)
        online = self._clients.consumer(group)
        if online is None:
            remark = (
                f"Consumer not online, so can not reset offset, Group: {group} Topic: {topic} "
                f"Timestamp: {header.timestamp}"
            )
            raise Refused(ResponseCode.CONSUMER_NOT_ONLINE, remark)
        offsets = {}
        for queue_id in range(known.write_queue_nums):
            if header.queue_id not in (-1, queue_id):
                continue
            committed = self._offsets.query(group, topic, queue_id)
            if committed < 0 and not online.broadcasting:
                raise Refused(ResponseCode.SYSTEM_ERROR, f"THe consumer group <{group}> not exist")
            if header.queue_id >= 0 and header.offset is not None and header.offset >= 0:
                offset = header.offset
            else:
                offset = self._by_time(topic, queue_id, header.timestamp)
            offsets[queue_id] = offset if header.is_force or committed < 0 else min(offset, committed)
        push = ResetOffsetHeader(topic=topic, group=group, timestamp=header.timestamp, is_force=header.is_force)
        for member in online.members.values():
            as_list = "CPP" in (member.language, language)
            body = self._list(topic, offsets) if as_list else self._body(topic, offsets)
            try:
                member.connection.oneway(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, push, body)
            except RemotingError as error:
                remark = f"client {member.client_id} of group {group} cannot be told to move: {error}"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
        return offsets

    def _list(self, topic: str, offsets: dict[int, int]) -> bytes:
        """The table as clients in C++ read it."""
        broker = self._config.broker_name
        return javajson.dumps(
            {
                "offsetTable": [
                    {"brokerName": broker, "offset": offset, "queueId": queue_id, "topic": topic}
                    for queue_id, offset in offsets.items()
                ]
            }
        )
