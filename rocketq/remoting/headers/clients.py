"""Clients and groups: heartbeat, membership, management calls from broker to client."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class HeartbeatResponse(Header, kw_only=True):
    """What a broker answers to HEART_BEAT (34)."""

    support_heartbeat_v2: bool = field(default=True, name="IS_SUPPORT_HEART_BEAT_V2")
    sub_change: bool = field(default=True, name="IS_SUB_CHANGE")


class UnregisterClientHeader(RoutedHeader, kw_only=True):
    """UNREGISTER_CLIENT (35)."""

    client_id: str = field(name="clientID")
    producer_group: str | None = field(default=None, name="producerGroup")
    consumer_group: str | None = field(default=None, name="consumerGroup")


class GetConsumerListByGroupHeader(RoutedHeader, kw_only=True):
    """GET_CONSUMER_LIST_BY_GROUP (38)."""

    consumer_group: str = field(name="consumerGroup")


class NotifyConsumerIdsChangedHeader(RoutedHeader, kw_only=True):
    """NOTIFY_CONSUMER_IDS_CHANGED (40), broker to every member, oneway."""

    consumer_group: str = field(name="consumerGroup")


class ResetOffsetHeader(RoutedHeader, kw_only=True):
    """RESET_CONSUMER_CLIENT_OFFSET (220) and INVOKE_BROKER_TO_RESET_OFFSET (222). `queue_id` -1: all queues."""

    topic: str
    group: str
    queue_id: int = field(default=-1, name="queueId")
    offset: int | None = None
    timestamp: int
    is_force: bool = field(name="isForce")


class GetConsumerStatusHeader(RoutedHeader, kw_only=True):
    """GET_CONSUMER_STATUS_FROM_CLIENT (221) and INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223)."""

    topic: str
    group: str
    client_addr: str | None = field(default=None, name="clientAddr")


class GetConsumerRunningInfoHeader(RoutedHeader, kw_only=True):
    """GET_CONSUMER_RUNNING_INFO (307)."""

    consumer_group: str = field(name="consumerGroup")
    client_id: str = field(name="clientId")
    jstack_enable: bool | None = field(default=None, name="jstackEnable")


class ConsumeMessageDirectlyHeader(RoutedHeader, kw_only=True):
    """CONSUME_MESSAGE_DIRECTLY (309)."""

    consumer_group: str = field(name="consumerGroup")
    client_id: str | None = field(default=None, name="clientId")
    msg_id: str | None = field(default=None, name="msgId")
    broker_name: str | None = field(default=None, name="brokerName")
    topic: str | None = None
    topic_sys_flag: int | None = field(default=None, name="topicSysFlag")
    group_sys_flag: int | None = field(default=None, name="groupSysFlag")
