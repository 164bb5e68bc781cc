"""Sending: messages, replies, retries, transactions, recall."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class SendMessageHeader(RoutedHeader, kw_only=True):
    """SEND_MESSAGE (10) and SEND_REPLY_MESSAGE (324)."""

    producer_group: str = field(name="producerGroup")
    topic: str
    default_topic: str = field(name="defaultTopic")
    default_topic_queue_nums: int = field(name="defaultTopicQueueNums")
    queue_id: int = field(name="queueId")
    sys_flag: int = field(name="sysFlag")
    born_timestamp: int = field(name="bornTimestamp")
    flag: int
    properties: str | None = None
    reconsume_times: int | None = field(default=None, name="reconsumeTimes")
    unit_mode: bool | None = field(default=None, name="unitMode")
    batch: bool | None = None
    max_reconsume_times: int | None = field(default=None, name="maxReconsumeTimes")


class SendMessageHeaderV2(Header, kw_only=True):
    """SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320), SEND_REPLY_MESSAGE_V2 (325): one letter a field."""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c")
    default_topic_queue_nums: int = field(name="d")
    queue_id: int = field(name="e")
    sys_flag: int = field(name="f")
    born_timestamp: int = field(name="g")
    flag: int = field(name="h")
    properties: str | None = field(default=None, name="i")
    reconsume_times: int | None = field(default=None, name="j")
    unit_mode: bool | None = field(default=None, name="k")
    max_reconsume_times: int | None = field(default=None, name="l")
    batch: bool | None = field(default=None, name="m")
    broker_name: str | None = field(default=None, name="n")


class SendMessageResponse(Header, kw_only=True):
    """Where a message went. `msg_id` is the offset id (of a batch: several), `transaction_id` the unique id."""

    msg_id: str = field(name="msgId")
    queue_id: int = field(name="queueId")
    queue_offset: int = field(name="queueOffset")
    transaction_id: str | None = field(default=None, name="transactionId")
    batch_uniq_id: str | None = field(default=None, name="batchUniqId")
    recall_handle: str | None = field(default=None, name="recallHandle")
    msg_region: str | None = field(default=None, name="MSG_REGION")
    trace_on: bool | None = field(default=None, name="TRACE_ON")


class ConsumerSendMsgBackHeader(RoutedHeader, kw_only=True):
    """CONSUMER_SEND_MSG_BACK (36). `offset` is physical; `delay_level` 0: by retries, < 0: to the DLQ."""

    offset: int
    group: str
    delay_level: int = field(name="delayLevel")
    origin_msg_id: str | None = field(default=None, name="originMsgId")
    origin_topic: str | None = field(default=None, name="originTopic")
    unit_mode: bool | None = field(default=None, name="unitMode")
    max_reconsume_times: int | None = field(default=None, name="maxReconsumeTimes")


class EndTransactionHeader(RoutedHeader, kw_only=True):
    """END_TRANSACTION (37). `commit_or_rollback`: 0 unknown, 8 commit, 12 rollback."""

    topic: str | None = None
    producer_group: str = field(name="producerGroup")
    tran_state_table_offset: int = field(name="tranStateTableOffset")
    commit_log_offset: int = field(name="commitLogOffset")
    commit_or_rollback: int = field(name="commitOrRollback")
    from_transaction_check: bool = field(default=False, name="fromTransactionCheck")
    msg_id: str = field(name="msgId")
    transaction_id: str | None = field(default=None, name="transactionId")


class CheckTransactionStateHeader(RoutedHeader, kw_only=True):
    """CHECK_TRANSACTION_STATE (39), broker to producer."""

    topic: str | None = None
    tran_state_table_offset: int = field(name="tranStateTableOffset")
    commit_log_offset: int = field(name="commitLogOffset")
    msg_id: str | None = field(default=None, name="msgId")
    transaction_id: str | None = field(default=None, name="transactionId")
    offset_msg_id: str | None = field(default=None, name="offsetMsgId")


class ReplyMessageHeader(RoutedHeader, kw_only=True):
    """PUSH_REPLY_MESSAGE_TO_CLIENT (326), broker to the client that asked. Hosts are `ip:port`."""

    producer_group: str = field(name="producerGroup")
    topic: str
    default_topic: str = field(name="defaultTopic")
    default_topic_queue_nums: int = field(name="defaultTopicQueueNums")
    queue_id: int = field(name="queueId")
    sys_flag: int = field(name="sysFlag")
    born_timestamp: int = field(name="bornTimestamp")
    flag: int
    properties: str | None = None
    reconsume_times: int | None = field(default=None, name="reconsumeTimes")
    unit_mode: bool | None = field(default=None, name="unitMode")
    born_host: str = field(name="bornHost")
    store_host: str = field(name="storeHost")
    store_timestamp: int = field(name="storeTimestamp")


class RecallMessageHeader(RoutedHeader, kw_only=True):
    """RECALL_MESSAGE (370): take back a message whose time has not come."""

    producer_group: str | None = field(default=None, name="producerGroup")
    topic: str
    recall_handle: str = field(name="recallHandle")


class RecallMessageResponse(Header, kw_only=True):
    """The unique id of the recalled message."""

    msg_id: str = field(name="msgId")
    msg_region: str | None = field(default=None, name="MSG_REGION")
