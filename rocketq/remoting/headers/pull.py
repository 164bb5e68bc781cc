"""Consuming by pull: messages, offsets, look-ups."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class PullMessageHeader(RoutedHeader, kw_only=True):
    """PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361). `sys_flag` is a PullFlag, `suspend_timeout_millis` in ms."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    queue_offset: int = field(name="queueOffset")
    max_msg_nums: int = field(name="maxMsgNums")
    sys_flag: int = field(name="sysFlag")
    commit_offset: int = field(name="commitOffset")
    suspend_timeout_millis: int = field(name="suspendTimeoutMillis")
    subscription: str | None = None
    sub_version: int = field(name="subVersion")
    expression_type: str | None = field(default=None, name="expressionType")
    max_msg_bytes: int | None = field(default=None, name="maxMsgBytes")
    request_source: int | None = field(default=None, name="requestSource")
    proxy_froward_client_id: str | None = field(default=None, name="proxyFrowardClientId")


class PullMessageResponse(Header, kw_only=True):
    """Where the queue begins and ends, and where to go on."""

    suggest_which_broker_id: int = field(name="suggestWhichBrokerId")
    next_begin_offset: int = field(name="nextBeginOffset")
    min_offset: int = field(name="minOffset")
    max_offset: int = field(name="maxOffset")
    offset_delta: int | None = field(default=None, name="offsetDelta")
    topic_sys_flag: int | None = field(default=None, name="topicSysFlag")
    group_sys_flag: int | None = field(default=None, name="groupSysFlag")
    forbidden_type: int | None = field(default=None, name="forbiddenType")


class QueryConsumerOffsetHeader(RoutedHeader, kw_only=True):
    """QUERY_CONSUMER_OFFSET (14). `set_zero_if_not_found` absent means true."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int = field(name="queueId")
    set_zero_if_not_found: bool | None = field(default=None, name="setZeroIfNotFound")


class QueryConsumerOffsetResponse(Header, kw_only=True):
    """The offset that the group has committed."""

    offset: int


class UpdateConsumerOffsetHeader(RoutedHeader, kw_only=True):
    """UPDATE_CONSUMER_OFFSET (15)."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: int | None = field(default=None, name="queueId")
    commit_offset: int | None = field(default=None, name="commitOffset")


class SearchOffsetHeader(RoutedHeader, kw_only=True):
    """SEARCH_OFFSET_BY_TIMESTAMP (29). `timestamp` in ms; `boundary_type` is LOWER (also when absent) or UPPER."""

    topic: str
    queue_id: int = field(name="queueId")
    timestamp: int
    boundary_type: str | None = field(default=None, name="boundaryType")


class SearchOffsetResponse(Header, kw_only=True):
    """The offset found."""

    offset: int


class GetMaxOffsetHeader(RoutedHeader, kw_only=True):
    """GET_MAX_OFFSET (30)."""

    topic: str
    queue_id: int = field(name="queueId")
    committed: bool | None = None


class GetMaxOffsetResponse(Header, kw_only=True):
    """The offset that the next message will get."""

    offset: int


class GetMinOffsetHeader(RoutedHeader, kw_only=True):
    """GET_MIN_OFFSET (31)."""

    topic: str
    queue_id: int = field(name="queueId")


class GetMinOffsetResponse(Header, kw_only=True):
    """The offset of the oldest message."""

    offset: int


class GetEarliestMsgStoretimeHeader(RoutedHeader, kw_only=True):
    """GET_EARLIEST_MSG_STORETIME (32)."""

    topic: str
    queue_id: int = field(name="queueId")


class GetEarliestMsgStoretimeResponse(Header, kw_only=True):
    """Store time of the oldest message in ms; -1 when there is none."""

    timestamp: int


class ListTimerHeader(RoutedHeader, kw_only=True):
    """LIST_TIMER_MESSAGES (30061): the `max_num` messages of a topic that are due next."""

    topic: str
    max_num: int = field(name="maxNum")


class QueryMessageHeader(RoutedHeader, kw_only=True):
    """QUERY_MESSAGE (12). `index_type` K (key, default), U (unique id) or T (tag); times in ms."""

    topic: str
    key: str
    max_num: int = field(name="maxNum")
    begin_timestamp: int = field(name="beginTimestamp")
    end_timestamp: int = field(name="endTimestamp")
    index_type: str | None = field(default=None, name="indexType")
    last_key: str | None = field(default=None, name="lastKey")
    unique_key_query: bool | None = field(default=None, name="_UNIQUE_KEY_QUERY")


class QueryMessageResponse(Header, kw_only=True):
    """How far the index has come."""

    index_last_update_timestamp: int = field(name="indexLastUpdateTimestamp")
    index_last_update_phyoffset: int = field(name="indexLastUpdatePhyoffset")


class ViewMessageHeader(RoutedHeader, kw_only=True):
    """VIEW_MESSAGE_BY_ID (33). `offset` is the physical one."""

    topic: str | None = None
    offset: int
