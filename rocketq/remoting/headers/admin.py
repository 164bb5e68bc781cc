"""Administration of topics, groups, offsets and brokers."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class CreateTopicHeader(RoutedHeader, kw_only=True):
    """UPDATE_AND_CREATE_TOPIC (17). `attributes`: `+key=value,-key`."""

    topic: str
    default_topic: str = field(name="defaultTopic")
    read_queue_nums: int = field(name="readQueueNums")
    write_queue_nums: int = field(name="writeQueueNums")
    perm: int
    topic_filter_type: str = field(name="topicFilterType")
    topic_sys_flag: int | None = field(default=None, name="topicSysFlag")
    order: bool
    attributes: str | None = None
    force: bool | None = None


class GetAllTopicConfigHeader(Header, kw_only=True):
    """GET_ALL_TOPIC_CONFIG (21): a page of names in order; without fields everything."""

    topic_seq: int | None = field(default=None, name="topicSeq")
    data_version: str | None = field(default=None, name="dataVersion")
    max_topic_num: int | None = field(default=None, name="maxTopicNum")


class GetAllTopicConfigResponse(Header, kw_only=True):
    """How many topics there are in all."""

    total_topic_num: int = field(name="totalTopicNum")


class GetTopicConfigHeader(RoutedHeader, kw_only=True):
    """GET_TOPIC_CONFIG (351)."""

    topic: str


class DeleteTopicHeader(RoutedHeader, kw_only=True):
    """DELETE_TOPIC_IN_BROKER (215)."""

    topic: str


class GetAllSubscriptionGroupHeader(Header, kw_only=True):
    """GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201)."""

    group_seq: int | None = field(default=None, name="groupSeq")
    data_version: str | None = field(default=None, name="dataVersion")
    max_group_num: int | None = field(default=None, name="maxGroupNum")


class GetAllSubscriptionGroupResponse(Header, kw_only=True):
    """How many groups there are in all."""

    total_group_num: int = field(name="totalGroupNum")


class GetSubscriptionGroupConfigHeader(RoutedHeader, kw_only=True):
    """GET_SUBSCRIPTIONGROUP_CONFIG (352)."""

    group: str


class DeleteSubscriptionGroupHeader(RoutedHeader, kw_only=True):
    """DELETE_SUBSCRIPTIONGROUP (207)."""

    group_name: str = field(name="groupName")
    clean_offset: bool | None = field(default=None, name="cleanOffset")


class UpdateGroupForbiddenHeader(RoutedHeader, kw_only=True):
    """UPDATE_AND_GET_GROUP_FORBIDDEN (353)."""

    group: str
    topic: str
    readable: bool | None = None


class QueryTopicConsumeByWhoHeader(RoutedHeader, kw_only=True):
    """QUERY_TOPIC_CONSUME_BY_WHO (300)."""

    topic: str


class QueryTopicsByConsumerHeader(RoutedHeader, kw_only=True):
    """QUERY_TOPICS_BY_CONSUMER (343)."""

    group: str


class QuerySubscriptionByConsumerHeader(RoutedHeader, kw_only=True):
    """QUERY_SUBSCRIPTION_BY_CONSUMER (345)."""

    group: str
    topic: str | None = None


class QueryConsumeTimeSpanHeader(RoutedHeader, kw_only=True):
    """QUERY_CONSUME_TIME_SPAN (303)."""

    topic: str
    group: str


class QueryCorrectionOffsetHeader(RoutedHeader, kw_only=True):
    """QUERY_CORRECTION_OFFSET (308)."""

    filter_groups: str | None = field(default=None, name="filterGroups")
    compare_group: str = field(name="compareGroup")
    topic: str


class CloneGroupOffsetHeader(RoutedHeader, kw_only=True):
    """CLONE_GROUP_OFFSET (314)."""

    src_group: str = field(name="srcGroup")
    dest_group: str = field(name="destGroup")
    topic: str | None = None
    offline: bool | None = None


class QueryConsumeQueueHeader(RoutedHeader, kw_only=True):
    """QUERY_CONSUME_QUEUE (321)."""

    topic: str | None = None
    queue_id: int | None = field(default=None, name="queueId")
    index: int | None = None
    count: int | None = None
    consumer_group: str | None = field(default=None, name="consumerGroup")


class GetBrokerConfigResponse(Header, kw_only=True):
    """The configuration's data version, as JSON text."""

    version: str


class GetTopicStatsInfoHeader(RoutedHeader, kw_only=True):
    """GET_TOPIC_STATS_INFO (202)."""

    topic: str


class GetConsumeStatsHeader(RoutedHeader, kw_only=True):
    """GET_CONSUME_STATS (208). `topic_list` is `;`-separated."""

    consumer_group: str = field(name="consumerGroup")
    topic: str | None = None
    topic_list: str | None = field(default=None, name="topicList")


class GetBrokerConsumeStatsHeader(Header, kw_only=True):
    """GET_BROKER_CONSUME_STATS (317)."""

    is_order: bool = field(name="isOrder")


class GetConsumerConnectionListHeader(RoutedHeader, kw_only=True):
    """GET_CONSUMER_CONNECTION_LIST (203)."""

    consumer_group: str = field(name="consumerGroup")


class GetProducerConnectionListHeader(RoutedHeader, kw_only=True):
    """GET_PRODUCER_CONNECTION_LIST (204)."""

    producer_group: str = field(name="producerGroup")


class ViewBrokerStatsDataHeader(Header, kw_only=True):
    """VIEW_BROKER_STATS_DATA (315)."""

    stats_name: str = field(name="statsName")
    stats_key: str = field(name="statsKey")


class ResumeCheckHalfMessageHeader(RoutedHeader, kw_only=True):
    """RESUME_CHECK_HALF_MESSAGE (323)."""

    topic: str | None = None
    msg_id: str | None = field(default=None, name="msgId")
