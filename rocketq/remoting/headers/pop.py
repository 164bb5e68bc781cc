"""Consuming by POP (5.x). Codes beyond 32767: JSON headers only."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class PopMessageHeader(RoutedHeader, kw_only=True):
    """POP_MESSAGE (200050). `queue_id` -1 is any, `init_mode` 0 the oldest, 1 the newest; times in ms.

    `holder`, of our own, names the consumer: what it has is given out again `holder_grace` ms after its last
    connection was ended by its side.
    """

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    max_msg_nums: int = field(name="maxMsgNums")
    invisible_time: int = field(name="invisibleTime")
    poll_time: int = field(name="pollTime")
    born_time: int = field(name="bornTime")
    init_mode: int = field(name="initMode")
    exp_type: str | None = field(default=None, name="expType")
    exp: str | None = None
    order: bool | None = None
    attempt_id: str | None = field(default=None, name="attemptId")
    holder: str | None = None
    holder_grace: int | None = field(default=None, name="holderGrace")


class PopMessageResponse(Header, kw_only=True):
    """Receipt data of the popped messages."""

    pop_time: int = field(name="popTime")
    invisible_time: int = field(name="invisibleTime")
    revive_qid: int = field(name="reviveQid")
    rest_num: int = field(name="restNum")
    start_offset_info: str | None = field(default=None, name="startOffsetInfo")
    msg_offset_info: str | None = field(default=None, name="msgOffsetInfo")
    order_count_info: str | None = field(default=None, name="orderCountInfo")


class AckMessageHeader(RoutedHeader, kw_only=True):
    """ACK_MESSAGE (200051). `holder` and `holder_grace`, of our own, as for a pop."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    extra_info: str = field(name="extraInfo")
    offset: int
    holder: str | None = None
    holder_grace: int | None = field(default=None, name="holderGrace")


class BatchAckHeader(Header, kw_only=True):
    """BATCH_ACK_MESSAGE (200151). What is acknowledged is in the body; both of our own, as for a pop."""

    holder: str | None = None
    holder_grace: int | None = field(default=None, name="holderGrace")


class PeekMessageHeader(RoutedHeader, kw_only=True):
    """PEEK_MESSAGE (200052)."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    max_msg_nums: int = field(name="maxMsgNums")


class ChangeInvisibleTimeHeader(RoutedHeader, kw_only=True):
    """CHANGE_MESSAGE_INVISIBLETIME (200053). `invisible_time` in ms from now.

    Of our own: `give_back`, the consumer did not work on it, what comes then is no further attempt; `holder` and
    `holder_grace` as for a pop.
    """

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    extra_info: str = field(name="extraInfo")
    offset: int
    invisible_time: int = field(name="invisibleTime")
    give_back: bool | None = field(default=None, name="giveBack")
    holder: str | None = None
    holder_grace: int | None = field(default=None, name="holderGrace")


class ChangeInvisibleTimeResponse(Header, kw_only=True):
    """The new receipt data."""

    pop_time: int = field(name="popTime")
    invisible_time: int = field(name="invisibleTime")
    revive_qid: int = field(name="reviveQid")


class NotificationHeader(RoutedHeader, kw_only=True):
    """NOTIFICATION (200054): is there something to pop? Times in ms."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    poll_time: int = field(name="pollTime")
    born_time: int = field(name="bornTime")
    order: bool | None = None
    attempt_id: str | None = field(default=None, name="attemptId")


class NotificationResponse(Header, kw_only=True):
    """Whether there is."""

    has_msg: bool = field(name="hasMsg")
    polling_full: bool | None = field(default=None, name="pollingFull")


class PollingInfoHeader(RoutedHeader, kw_only=True):
    """POLLING_INFO (200055)."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")


class PollingInfoResponse(Header, kw_only=True):
    """How many requests wait."""

    polling_num: int = field(name="pollingNum")
