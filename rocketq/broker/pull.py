"""Messages out: codes 11 and 361.

A pull reads ConsumeQueue entries and answers with slices of the CommitLog. When there is nothing yet and the client
allows it, it is held (:mod:`rocketq.broker.hold`). Checks, codes and texts follow `PullMessageProcessor` of Apache 5.4.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from rocketq.broker.clients import Clients
from rocketq.broker.filtering import Filter, filter_for
from rocketq.broker.groups import Groups
from rocketq.broker.hold import Hold, Waiter
from rocketq.broker.offsets import Offsets, total_memory
from rocketq.broker.refusal import Refused
from rocketq.broker.replication import Replication
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.filters import ALL, TAG
from rocketq.remoting.bodies import SubscriptionData
from rocketq.remoting.codes import (
    FAQ,
    FLAG_RESPONSE,
    JSON,
    VERSION,
    Language,
    Perm,
    PullFlag,
    RequestCode,
    ResponseCode,
)
from rocketq.remoting.command import Command, Header, encode_response
from rocketq.remoting.server import Buffer, Connection, Handler, Reply
from rocketq.store.store import GetStatus, MessageStore, ReadResult

_COMMIT_OFFSET = int(PullFlag.COMMIT_OFFSET)
_SUSPEND = int(PullFlag.SUSPEND)
_SUBSCRIPTION = int(PullFlag.SUBSCRIPTION)
_READ = int(Perm.READ)

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class PullHeader(Header):
    """What the pull path reads of `PullMessageRequestHeader`."""

    consumer_group: str = msgspec.field(name="consumerGroup")
    topic: str
    queue_id: Int64 = msgspec.field(name="queueId")
    queue_offset: Int64 = msgspec.field(name="queueOffset")
    max_msg_nums: Int64 = msgspec.field(name="maxMsgNums", default=32)
    sys_flag: Int64 = msgspec.field(name="sysFlag", default=0)
    commit_offset: Int64 = msgspec.field(name="commitOffset", default=0)
    suspend_timeout_millis: Int64 = msgspec.field(name="suspendTimeoutMillis", default=0)
    subscription: str | None = None
    sub_version: Int64 = msgspec.field(name="subVersion", default=0)
    expression_type: str | None = msgspec.field(name="expressionType", default=None)


#: Status of a read -> code of the answer; the queue statuses depend on the offset as well.
_CODES = {
    GetStatus.FOUND: ResponseCode.SUCCESS,
    GetStatus.NO_MATCHED_MESSAGE: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.MESSAGE_WAS_REMOVING: ResponseCode.PULL_RETRY_IMMEDIATELY,
    GetStatus.OFFSET_FOUND_NULL: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_ONE: ResponseCode.PULL_NOT_FOUND,
    GetStatus.OFFSET_OVERFLOW_BADLY: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.OFFSET_TOO_SMALL: ResponseCode.PULL_OFFSET_MOVED,
    GetStatus.OFFSET_RESET: ResponseCode.PULL_OFFSET_MOVED,
}

#: ms that a pull is held at most, whatever it asks for; Apache's broker has no bound, and clients ask for 15 to 30 s.
LONGEST_HOLD = 300_000

_FRAME = struct.Struct(">iI")
_INT = struct.Struct(">i")
_BINARY_HEAD = struct.Struct(">hBhiii")
_FIXED_EXT = b"".join(
    len(key).to_bytes(2, "big") + key + _INT.pack(1) + b"0" for key in (b"topicSysFlag", b"groupSysFlag")
)


class Pull:
    """Answers pulls."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        offsets: Offsets,
        hold: Hold,
        statistics: Statistics,
        replication: Replication,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._offsets = offsets
        self._hold = hold
        self._statistics = statistics
        self._replication = replication
        #: (group, topic) -> subscription that its last pull carried
        self._carried: dict[tuple[str, str], tuple[str, str, int]] = {}
        #: (group, topic, queue id) -> where the group's last pull of the queue ended
        self.positions: dict[tuple[str, str, int], int] = {}
        hold.retry = self._again

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.PULL_MESSAGE: self._pull, RequestCode.LITE_PULL_MESSAGE: self._pull}

    def _pull(self, connection: Connection, request: Command) -> Reply:
        header = request.header(PullHeader)
        try:
            wanted = self._check(connection, header)
        except Refused as refused:
            ext = {"forbiddenType": str(refused.forbidden)} if refused.forbidden else {}
            return encode_response(request, refused.code, refused.remark, ext)
        topic, queue_id, offset = header.topic, header.queue_id, header.queue_offset
        config = self._config
        if self._offsets.resets:
            moved = self._moved(header.consumer_group, topic, queue_id, offset, header.commit_offset)
            if moved is not None:
                return self._answer(request.opaque, request.serialize_type, ResponseCode.PULL_OFFSET_MOVED, moved)
        max_count = min(max(1, header.max_msg_nums), config.max_transfer_count_on_message_in_memory)
        result = self._store.read(
            topic,
            queue_id,
            offset,
            max_count,
            max_bytes=config.max_transfer_bytes_on_message_in_memory,
            codes=wanted.codes,
            match=wanted.match,
        )
        flags = header.sys_flag
        if flags & _COMMIT_OFFSET and not config.is_slave:
            self._offsets.commit(header.consumer_group, topic, queue_id, header.commit_offset)
        self.positions[header.consumer_group, topic, queue_id] = result.next_offset
        code = self._code(result, offset)
        if result.count:
            self._statistics.delivered(header.consumer_group, topic, result.count, result.size)
        if code == ResponseCode.PULL_NOT_FOUND and flags & _SUSPEND:
            waiter = Waiter(
                connection,
                request.opaque,
                request.serialize_type,
                (topic, queue_id),
                offset,
                max_count,
                wanted.codes,
                header.consumer_group,
                wanted.match,
            )
            timeout = min(header.suspend_timeout_millis, LONGEST_HOLD)
            if not config.long_polling_enable:
                timeout = config.short_polling_time_mills
            if not self._hold.add(waiter, timeout / 1000):
                remark = "[TOO_MANY_PULLS]too many pulls wait for messages on this broker or this connection"
                return encode_response(request, ResponseCode.SYSTEM_BUSY, remark)
            return None
        suggested = self._suggested(header, result) if config.slave_read_enable else 0
        return self._answer(request.opaque, request.serialize_type, code, result, suggested)

    def _suggested(self, header: PullHeader, result: ReadResult) -> int:
        """The id of the broker to pull from next: a slave, when what is read is in nobody's memory any more."""
        group = self._groups.get(header.consumer_group)
        if group is None or not result.count:
            return 0
        last = self._store.consume_entry(header.topic, header.queue_id, result.next_offset - 1)
        behind = 0 if last is None else self._store.readable - last[0] - last[1]
        memory = total_memory() * self._config.access_message_in_memory_max_ratio // 100
        return group.which_broker_when_consume_slowly if behind > memory else group.broker_id

    def _check(self, connection: Connection, header: PullHeader) -> Filter:
        """What the pull asks for. Raises Refused."""
        config = self._config
        topic, group = header.topic, header.consumer_group
        if config.is_slave and not config.slave_read_enable:
            remark = (
                f"[REJECTREQUEST]slave {config.broker_name} of id {config.broker_id} has slaveReadEnable=false"
            )
            raise Refused(ResponseCode.SYSTEM_BUSY, remark)
        if not config.broker_permission & _READ:
            remark = f"the broker[{config.host}] pulling message is forbidden"
            raise Refused(ResponseCode.NO_PERMISSION, remark, 1)
        group_config = self._groups.get(group)
        if group_config is None:
            remark = f"subscription group [{group}] does not exist, \n{FAQ}"
            raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
        if not group_config.consume_enable:
            raise Refused(ResponseCode.NO_PERMISSION, f"subscription group no permission, {group}", 2)
        topic_config = self._topics.table.get(topic)
        if topic_config is None:
            remark = f"topic[{topic}] not exist, apply first please! \n{FAQ}"
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, remark)
        if not topic_config.perm & _READ:
            remark = f"the topic[{topic}] pulling message is forbidden"
            raise Refused(ResponseCode.NO_PERMISSION, remark, 3)
        if not 0 <= header.queue_id < topic_config.read_queue_nums:
            remark = (
                f"queueId[{header.queue_id}] is illegal, topic:[{topic}] "
                f"topicConfig.readQueueNums:[{topic_config.read_queue_nums}] consumer:[/{connection.peer}]"
            )
            raise Refused(ResponseCode.INVALID_PARAMETER, remark)
        if header.sys_flag & _SUBSCRIPTION:
            wanted = filter_for(header.subscription, header.expression_type, sql=config.enable_property_filter)
            self._compensate(header)
            return wanted
        subscription = self._subscription(header, group_config.consume_broadcast_enable)
        return filter_for(subscription.sub_string, subscription.expression_type, sql=config.enable_property_filter)

    def _subscription(self, header: PullHeader, broadcast_allowed: bool) -> SubscriptionData:
        """What the group said in its heartbeats that it wants of the topic. Raises Refused."""
        topic, group = header.topic, header.consumer_group
        registered = self._clients.consumer(group)
        if registered is None:
            remark = f"the consumer's group info not exist\n{FAQ}"
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_EXIST, remark)
        if registered.broadcasting and not broadcast_allowed:
            remark = f"the consumer group[{group}] can not consume by broadcast way"
            raise Refused(ResponseCode.NO_PERMISSION, remark, 4)
        if not self._groups.may_read(group, topic):
            remark = f"the consumer group[{group}] is forbidden for topic[{topic}]"
            raise Refused(ResponseCode.NO_PERMISSION, remark, 5)
        subscription = registered.subscriptions.get(topic)
        if subscription is None:
            remark = f"the consumer's subscription not exist\n{FAQ}"
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_EXIST, remark)
        if subscription.sub_version < header.sub_version:
            raise Refused(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
        return subscription

    def _compensate(self, header: PullHeader) -> None:
        """Note what a consumer wants that tells it with its pulls and not with heartbeats."""
        topic, group = header.topic, header.consumer_group
        expression = header.subscription or ALL
        kind = header.expression_type or TAG
        wanted = (expression, kind, header.sub_version)
        if self._carried.get((group, topic)) == wanted:
            return
        self._carried[group, topic] = wanted
        self._clients.compensate(group, topic, *wanted)

    def _moved(self, group: str, topic: str, queue_id: int, offset: int, committed: int) -> ReadResult | None:
        """Where an operator has moved the group in the queue; told once. None when it is there already."""
        reset = self._offsets.take_reset(group, topic, queue_id)
        if reset is None or reset == offset == committed:  # a consumer that has just started asked where to begin
            return None
        low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
        return ReadResult(GetStatus.OFFSET_RESET, reset, low, high, [])

    def _code(self, result: ReadResult, offset: int) -> ResponseCode:
        code = _CODES.get(result.status)
        if code is None:  # the queue has no messages
            code = ResponseCode.PULL_NOT_FOUND if offset == 0 else ResponseCode.PULL_OFFSET_MOVED
        if code == ResponseCode.PULL_OFFSET_MOVED and self._config.is_slave:
            # its master may have what is not here: nobody is moved, and whoever cannot ask it waits
            result.next_offset = offset
            here = self._replication.master_is_here
            code = ResponseCode.PULL_RETRY_IMMEDIATELY if here else ResponseCode.PULL_NOT_FOUND
        return code

    def _again(self, waiter: Waiter, final: bool) -> bool:
        """Run a held pull again; it goes on waiting when there still is nothing, unless this is its last chance."""
        if waiter.connection.closed:
            return True
        topic, queue_id = waiter.key
        if self._offsets.resets:
            moved = self._moved(waiter.group, topic, queue_id, -1, -1)
            if moved is not None:
                answer = self._answer(waiter.opaque, waiter.serialize_type, ResponseCode.PULL_OFFSET_MOVED, moved)
                waiter.connection.write(answer)
                return True
        result = self._store.read(
            topic,
            queue_id,
            waiter.offset,
            waiter.max_count,
            max_bytes=self._config.max_transfer_bytes_on_message_in_memory,
            codes=waiter.codes,
            match=waiter.match,
        )
        if result.status is GetStatus.NO_MATCHED_MESSAGE and result.next_offset == result.max_offset and not final:
            waiter.offset = result.next_offset  # what came was not what it waits for
            return False
        code = self._code(result, waiter.offset)
        if code == ResponseCode.PULL_NOT_FOUND and not final:
            return False
        if result.count:
            self._statistics.delivered(waiter.group, topic, result.count, result.size)
        waiter.connection.write(self._answer(waiter.opaque, waiter.serialize_type, code, result))
        return True

    def _answer(
        self, opaque: int, serialize_type: int, code: int, result: ReadResult, suggested: int = 0
    ) -> list[Buffer]:
        status = result.status
        statistics = self._statistics
        if status is GetStatus.FOUND:
            statistics.get_found += 1
            statistics.get_messages += result.count
        else:
            statistics.get_missed += 1
        # our store knows a queue only when it has messages; Apache's makes one of every id below readQueueNums
        remark = "NO_MESSAGE_IN_QUEUE" if status is GetStatus.NO_MATCHED_LOGIC_QUEUE else status.name
        if serialize_type == JSON:
            head = (
                f'{{"code":{code:d},"extFields":{{"suggestWhichBrokerId":"{suggested}","nextBeginOffset":"{result.next_offset}",'
                f'"minOffset":"{result.min_offset}","maxOffset":"{result.max_offset}","topicSysFlag":"0",'
                f'"groupSysFlag":"0"}},"flag":1,"language":"PYTHON","opaque":{opaque},"remark":"{remark}",'
                f'"serializeTypeCurrentRPC":"JSON","version":{VERSION}}}'
            ).encode()
        else:
            head = self._binary_head(opaque, code, remark, result, suggested)
        size = len(head)
        frame = _FRAME.pack(4 + size + result.size, serialize_type << 24 | size)
        return [frame + head, *result.buffers]

    def _binary_head(self, opaque: int, code: int, remark: str, result: ReadResult, suggested: int) -> bytes:
        text = remark.encode()
        ext = _FIXED_EXT
        for key, value in (
            (b"\x00\x14suggestWhichBrokerId", suggested),
            (b"\x00\x0fnextBeginOffset", result.next_offset),
            (b"\x00\x09minOffset", result.min_offset),
            (b"\x00\x09maxOffset", result.max_offset),
        ):
            raw = b"%d" % value
            ext += key + _INT.pack(len(raw)) + raw
        head = _BINARY_HEAD.pack(code, Language.PYTHON, VERSION, opaque, FLAG_RESPONSE, len(text))
        return head + text + _INT.pack(len(ext)) + ext
