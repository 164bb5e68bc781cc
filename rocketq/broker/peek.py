"""Looking at what a POP group would get: peek, "is there something?", and who waits (codes 200052, 200054, 200055)."""

from __future__ import annotations

import random
from collections.abc import Callable

from rocketq.broker.groups import Groups
from rocketq.broker.pop import MOST, Pop, check_group, check_queue
from rocketq.broker.popwait import Line, PopWait, Waiter
from rocketq.broker.refusal import Refused
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.names import pop_retry_topic
from rocketq.remoting.codes import Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers.pop import (
    NotificationHeader,
    NotificationResponse,
    PeekMessageHeader,
    PollingInfoHeader,
    PollingInfoResponse,
    PopMessageResponse,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

#: The remark that Apache's broker leaves in these answers.
_UNSET = "not set any response code"


class Peek:
    """Answers without giving anything out."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        pop: Pop,
        log: ReviveLog,
        wait: PopWait,
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._pop = pop
        self._log = log
        self._wait = wait
        self._clock_ms = clock_ms

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.PEEK_MESSAGE: self._peek,
            RequestCode.NOTIFICATION: self._notification,
            RequestCode.POLLING_INFO: self._polling_info,
        }

    def _check(self, connection: Connection, topic: str, group: str, queue_id: int) -> None:
        """Raises Refused."""
        if not self._config.broker_permission & Perm.READ:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"the broker[{self._config.host}] peeking message is forbidden"
            )
        check_queue(self._topics, topic, queue_id, connection)
        check_group(self._groups, group, topic)

    def _queues(self, topic: str, group: str, queue_id: int) -> list[tuple[str, int]]:
        """The queues that such a request is about, the retry topic's first one time in five."""
        config, retry = self._topics.table[topic], self._topics.get(pop_retry_topic(topic, group))
        first = random.randrange(max(1, config.read_queue_nums))
        ids = [queue_id] if queue_id >= 0 else range(config.read_queue_nums)
        own = [(topic, (first + each) % config.read_queue_nums if queue_id < 0 else each) for each in ids]
        again = [(retry.topic_name, each) for each in range(retry.read_queue_nums)] if retry is not None else []
        return again + own if random.randrange(5) == 0 else own + again

    def _peek(self, connection: Connection, request: Command) -> Reply:
        header = request.header(PeekMessageHeader)
        topic, group = header.topic, header.consumer_group
        try:
            self._check(connection, topic, group, header.queue_id)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, _nothing())
        buffers: list[memoryview] = []
        count = size = rest = 0
        for stored, queue_id in self._queues(topic, group, header.queue_id):
            offset = self._pop.position(group, stored, queue_id, 0)
            room = min(header.max_msg_nums, MOST) - count
            if room > 0:
                most = max(1, self._config.max_transfer_bytes_on_message_in_memory - size)
                result = self._store.read(stored, queue_id, offset, room, max_bytes=most)
                buffers += result.buffers
                count += result.count
                size += result.size
                offset = result.next_offset
            rest += max(0, self._store.max_offset(stored, queue_id) - offset)
        answer = _nothing(self._clock_ms(), rest)
        if not count:
            return encode_response(request, ResponseCode.PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", answer)
        return [encode_response(request, ResponseCode.SUCCESS, "FOUND", answer, following=size), *buffers]

    def _notification(self, connection: Connection, request: Command) -> Reply:
        header = request.header(NotificationHeader)
        topic, group = header.topic, header.consumer_group
        try:
            self._check(connection, topic, group, header.queue_id)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, NotificationResponse(has_msg=False))

        def answer(has_message: bool, full: bool = False) -> bytes:
            told = NotificationResponse(has_msg=has_message, polling_full=full)
            return encode_response(request, ResponseCode.SUCCESS, _UNSET, told)

        def serve(final: bool) -> bool:
            found = self._has_message(header)
            if found or final:
                connection.write(answer(found))
            return found or final

        if self._has_message(header):
            return answer(True)
        now = self._clock_ms()
        left = min(header.poll_time, (header.born_time or now) + header.poll_time - now)
        if left <= 0:
            return answer(False)
        line = Line(group, topic, header.queue_id, "", "notification", bool(header.order))
        waiter = Waiter(line, connection, serve)
        if not self._wait.add(waiter, (topic, pop_retry_topic(topic, group)), left / 1000):
            return answer(False, full=True)
        return None

    def _has_message(self, header: NotificationHeader) -> bool:
        topic, group = header.topic, header.consumer_group
        if topic not in self._topics.table:
            return False
        now = self._clock_ms()
        for stored, queue_id in self._queues(topic, group, header.queue_id):
            if header.order:
                info = self._log.orders.get((stored, group, queue_id))
                if stored != topic or (info is not None and info.blocked_until(header.attempt_id, now)):
                    continue
            if self._store.max_offset(stored, queue_id) > self._pop.position(group, stored, queue_id, 0):
                return True
        return False

    def _polling_info(self, connection: Connection, request: Command) -> Reply:
        header = request.header(PollingInfoHeader)
        try:
            self._check(connection, header.topic, header.consumer_group, header.queue_id)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, PollingInfoResponse(polling_num=0))
        count = self._wait.waiting(header.consumer_group, header.topic, header.queue_id)
        return encode_response(request, ResponseCode.SUCCESS, _UNSET, PollingInfoResponse(polling_num=count))


def _nothing(pop_time: int = 0, rest: int = 0) -> PopMessageResponse:
    return PopMessageResponse(pop_time=pop_time, invisible_time=0, revive_qid=0, rest_num=rest)
