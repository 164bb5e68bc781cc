"""Taking timer messages back before they are due: code 370 (`RecallMessageProcessor`).

The answer to the send of a timer message has a handle: who keeps the message, until when, and its unique id. A recall
stores a message that is due in the same second as the one to take back; the timer delivers neither
(:mod:`rocketq.broker.timer`).
"""

from __future__ import annotations

from collections.abc import Callable

from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.refusal import Refused
from rocketq.broker.send import Sender
from rocketq.broker.timer import Timer
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import StoreFull
from rocketq.recall import RecallHandle
from rocketq.remoting.codes import Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers.send import RecallMessageHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

#: Recalls of what is due within this time (ms) count from when they are asked for, not only from when they are stored.
_SOON = 60_000
_TAG = "_RECALL_TAG_"


class Recall:
    """Serves code 370."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        sender: Sender,
        batch: Batch,
        timer: Timer,
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._sender = sender
        self._batch = batch
        self._timer = timer
        self._clock_ms = clock_ms

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.RECALL_MESSAGE: self._recall}

    def _recall(self, connection: Connection, request: Command) -> Reply:
        header = request.header(RecallMessageHeader)
        ext = {props.MSG_REGION: self._config.region_id}
        try:
            handle = self._check(header)
            self._take_back(connection, request, handle, header.producer_group or "")
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, ext)
        except StoreFull as error:
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error), ext)
        return None

    def _check(self, header: RecallMessageHeader) -> RecallHandle:
        config = self._config
        if not config.recall_message_enable:
            raise Refused(ResponseCode.NO_PERMISSION, "recall failed, operation is forbidden")
        if not config.broker_permission & Perm.WRITE:
            raise Refused(ResponseCode.SERVICE_NOT_AVAILABLE, "recall failed, broker service not available")
        if self._topics.get(header.topic) is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"recall failed, the topic[{header.topic}] not exist")
        try:
            handle = RecallHandle.decode(header.recall_handle)
        except ValueError as error:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, str(error)) from None
        if handle.topic != header.topic:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, "recall failed, topic not match")
        if handle.broker_name != config.broker_name:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, "recall failed, broker service not available")
        left = handle.due - self._clock_ms()
        if left <= 0 or (config.timer_max_delay_sec and left >= config.timer_max_delay_sec * 1000):
            raise _over()
        return handle

    def _take_back(self, connection: Connection, request: Command, handle: RecallHandle, group: str) -> None:
        """Store the message that takes the other one back."""
        topic, _, due, unique_id = handle
        now = self._clock_ms()
        properties = {
            props.TAGS: _TAG,
            props.TIMER_DEL_UNIQKEY: unique_id,
            props.UNIQ_KEY: unique_id,
            props.TIMER_DELIVER_MS: str(due),
            props.BORN_TIMESTAMP: str(now),
            props.TRACE_CONTEXT: "",
            props.PGROUP: group,
        }
        try:
            place = self._sender.place(topic, 0, properties)
        except Refused:  # a ms later it is due
            raise _over() from None
        self._store.append(
            place.topic,
            place.queue_id,
            b"0",
            place.properties,
            tag=_TAG,
            unique_id=unique_id,
            keys=None,
            flag=0,
            sys_flag=0,
            born_timestamp=now,
            born_host=connection.peer_packed,
            store_host=self._batch.store_host,
        )
        undo = None
        if due - now < _SOON:
            self._timer.recall(due, topic, unique_id)

            def undo() -> None:
                self._timer.forget_recall(due, topic, unique_id)

        ext = {"msgId": unique_id, props.MSG_REGION: self._config.region_id}
        answer = encode_response(request, ResponseCode.SUCCESS, "not set any response code", ext)
        self._batch.reply(connection, request, answer, undo=undo)


def _over() -> Refused:
    """Nothing is there to take back any more, or not yet."""
    return Refused(ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid")
