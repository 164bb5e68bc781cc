"""What a consumer asks brokers about queues: messages and offsets. Shared by push and pull consumers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeVar

from rocketq.client.instance import ClientInstance
from rocketq.client.routes import MASTER
from rocketq.errors import BrokerError, RouteNotFound
from rocketq.filters import TAG, parse_tags
from rocketq.message import MessageQueue, ReceivedMessage, decode_messages
from rocketq.remoting.codes import PullFlag, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.headers import (
    GetMaxOffsetHeader,
    GetMaxOffsetResponse,
    GetMinOffsetHeader,
    GetMinOffsetResponse,
    PullMessageHeader,
    PullMessageResponse,
    QueryConsumerOffsetHeader,
    QueryConsumerOffsetResponse,
    SearchOffsetHeader,
    SearchOffsetResponse,
    UpdateConsumerOffsetHeader,
)

H = TypeVar("H", bound=Header)

MAX_BYTES = 262_144


class PullStatus(Enum):
    """How a pull ended."""

    FOUND = ResponseCode.SUCCESS.value
    NO_NEW = ResponseCode.PULL_NOT_FOUND.value
    NO_MATCH = ResponseCode.PULL_RETRY_IMMEDIATELY.value
    OFFSET_ILLEGAL = ResponseCode.PULL_OFFSET_MOVED.value


_STATUS = {status.value: status for status in PullStatus}


class Pulled(NamedTuple):
    """The answer to a pull; `messages` are those that pass the expression exactly."""

    status: PullStatus
    messages: list[ReceivedMessage]
    next_offset: int
    min_offset: int
    max_offset: int


class QueueCalls:
    """Requests of one consumer group. All raise BrokerError, RemotingError, or RouteNotFound for a lost broker."""

    def __init__(self, instance: ClientInstance, group: str) -> None:
        self.instance = instance
        self.group = group
        #: The broker id that the last answer suggested for the next pull.
        self._pull_from: dict[MessageQueue, int] = {}

    def _reader(self, queue: MessageQueue, broker_id: int = MASTER) -> tuple[str, int]:
        found = self.instance.routes.reader(queue.broker_name, broker_id)
        if found is None:
            raise RouteNotFound(f"no address of broker {queue.broker_name} is known (topic {queue.topic})")
        return found

    async def _call(self, queue: MessageQueue, code: int, header: Header) -> tuple[Command, str]:
        address, _ = self._reader(queue)
        answer = await self.instance.remoting.call(address, code, header, timeout=self.instance.timeout)
        return answer, address

    async def _ask(self, queue: MessageQueue, code: int, header: Header, kind: type[H]) -> H:
        answer, address = await self._call(queue, code, header)
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
        return answer.header(kind)

    def forget(self, queue: MessageQueue) -> None:
        """The queue is not ours any more."""
        self._pull_from.pop(queue, None)

    async def pull(
        self,
        queue: MessageQueue,
        offset: int,
        *,
        expression: str,
        expression_type: str = TAG,
        sub_version: int,
        count: int,
        commit_offset: int | None = None,
        suspend_ms: int = 15_000,
        carry_expression: bool = False,
    ) -> Pulled:
        """Messages from `offset` on, held by the broker for up to `suspend_ms` (0: not) when there are none.

        `carry_expression`: the group may be unknown to the broker, so the request says what it wants.
        `commit_offset`: committed on the way when the master answers.
        """
        address, broker_id = self._reader(queue, self._pull_from.get(queue, MASTER))
        flags = 0
        if commit_offset is not None and broker_id == MASTER:
            flags |= PullFlag.COMMIT_OFFSET
        if suspend_ms:
            flags |= PullFlag.SUSPEND
        if carry_expression:
            flags |= PullFlag.SUBSCRIPTION
        header = PullMessageHeader(
            consumer_group=self.group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            queue_offset=offset,
            max_msg_nums=count,
            sys_flag=int(flags),
            commit_offset=commit_offset or 0,
            suspend_timeout_millis=suspend_ms,
            subscription=expression if carry_expression else None,
            sub_version=sub_version,
            expression_type=expression_type,
            max_msg_bytes=MAX_BYTES,
            bname=queue.broker_name,
        )
        timeout = max(10.0, suspend_ms / 1000 + 15.0)
        answer = await self.instance.remoting.call(address, RequestCode.PULL_MESSAGE, header, timeout=timeout)
        status = _STATUS.get(answer.code)
        if status is None:
            raise BrokerError(answer.code, answer.remark, address)
        told = answer.header(PullMessageResponse)
        if told.suggest_which_broker_id:
            self._pull_from[queue] = told.suggest_which_broker_id
        else:
            self._pull_from.pop(queue, None)
        messages: list[ReceivedMessage] = []
        if status is PullStatus.FOUND:
            messages = decode_messages(answer.body, queue.broker_name)
            tags = parse_tags(expression) if expression_type == TAG else None
            if tags is not None:  # the broker compares hashes only
                messages = [message for message in messages if message.has_tag(tags)]
        return Pulled(status, messages, told.next_begin_offset, told.min_offset, told.max_offset)

    async def max_offset(self, queue: MessageQueue) -> int:
        """The offset that the next message of the queue will get."""
        header = GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.queue_id, bname=queue.broker_name)
        return (await self._ask(queue, RequestCode.GET_MAX_OFFSET, header, GetMaxOffsetResponse)).offset

    async def min_offset(self, queue: MessageQueue) -> int:
        """The offset of the oldest message that is left."""
        header = GetMinOffsetHeader(topic=queue.topic, queue_id=queue.queue_id, bname=queue.broker_name)
        return (await self._ask(queue, RequestCode.GET_MIN_OFFSET, header, GetMinOffsetResponse)).offset

    async def offset_by_time(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at that time or later."""
        header = SearchOffsetHeader(
            topic=queue.topic, queue_id=queue.queue_id, timestamp=timestamp_ms, bname=queue.broker_name
        )
        code = RequestCode.SEARCH_OFFSET_BY_TIMESTAMP
        return (await self._ask(queue, code, header, SearchOffsetResponse)).offset

    async def committed(self, queue: MessageQueue, *, zero_if_young: bool = False) -> int | None:
        """What the group has committed for the queue; None when nothing.

        `zero_if_young`: brokers may say 0 for a queue that has all its messages still, and few. So nothing is missed
        of a queue that was added while the group runs.
        """
        header = QueryConsumerOffsetHeader(
            consumer_group=self.group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            set_zero_if_not_found=None if zero_if_young else False,
            bname=queue.broker_name,
        )
        answer, address = await self._call(queue, RequestCode.QUERY_CONSUMER_OFFSET, header)
        if answer.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
        return answer.header(QueryConsumerOffsetResponse).offset

    async def commit(self, queue: MessageQueue, offset: int, *, oneway: bool) -> None:
        """Stores the group's offset on the broker; `oneway` does not wait for the answer."""
        header = UpdateConsumerOffsetHeader(
            consumer_group=self.group,
            topic=queue.topic,
            queue_id=queue.queue_id,
            commit_offset=offset,
            bname=queue.broker_name,
        )
        if oneway:
            address, _ = self._reader(queue)
            await self.instance.remoting.oneway(address, RequestCode.UPDATE_CONSUMER_OFFSET, header)
            return
        answer, address = await self._call(queue, RequestCode.UPDATE_CONSUMER_OFFSET, header)
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)
