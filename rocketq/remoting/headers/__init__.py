"""Typed headers: the `extFields` of every request and response, by what they are about.

A request's record is named as in Apache RocketMQ without "Request" (`SendMessageHeader`), a response's ends in
`Response`. Fields are snake_case here and have their own names on the wire.
"""

from rocketq.remoting.headers.admin import (
    CloneGroupOffsetHeader as CloneGroupOffsetHeader,
)
from rocketq.remoting.headers.admin import (
    CreateTopicHeader as CreateTopicHeader,
)
from rocketq.remoting.headers.admin import (
    DeleteSubscriptionGroupHeader as DeleteSubscriptionGroupHeader,
)
from rocketq.remoting.headers.admin import (
    DeleteTopicHeader as DeleteTopicHeader,
)
from rocketq.remoting.headers.admin import (
    GetAllSubscriptionGroupHeader as GetAllSubscriptionGroupHeader,
)
from rocketq.remoting.headers.admin import (
    GetAllSubscriptionGroupResponse as GetAllSubscriptionGroupResponse,
)
from rocketq.remoting.headers.admin import (
    GetAllTopicConfigHeader as GetAllTopicConfigHeader,
)
from rocketq.remoting.headers.admin import (
    GetAllTopicConfigResponse as GetAllTopicConfigResponse,
)
from rocketq.remoting.headers.admin import (
    GetBrokerConfigResponse as GetBrokerConfigResponse,
)
from rocketq.remoting.headers.admin import (
    GetBrokerConsumeStatsHeader as GetBrokerConsumeStatsHeader,
)
from rocketq.remoting.headers.admin import (
    GetConsumerConnectionListHeader as GetConsumerConnectionListHeader,
)
from rocketq.remoting.headers.admin import (
    GetConsumeStatsHeader as GetConsumeStatsHeader,
)
from rocketq.remoting.headers.admin import (
    GetProducerConnectionListHeader as GetProducerConnectionListHeader,
)
from rocketq.remoting.headers.admin import (
    GetSubscriptionGroupConfigHeader as GetSubscriptionGroupConfigHeader,
)
from rocketq.remoting.headers.admin import (
    GetTopicConfigHeader as GetTopicConfigHeader,
)
from rocketq.remoting.headers.admin import (
    GetTopicStatsInfoHeader as GetTopicStatsInfoHeader,
)
from rocketq.remoting.headers.admin import (
    QueryConsumeQueueHeader as QueryConsumeQueueHeader,
)
from rocketq.remoting.headers.admin import (
    QueryConsumeTimeSpanHeader as QueryConsumeTimeSpanHeader,
)
from rocketq.remoting.headers.admin import (
    QueryCorrectionOffsetHeader as QueryCorrectionOffsetHeader,
)
from rocketq.remoting.headers.admin import (
    QuerySubscriptionByConsumerHeader as QuerySubscriptionByConsumerHeader,
)
from rocketq.remoting.headers.admin import (
    QueryTopicConsumeByWhoHeader as QueryTopicConsumeByWhoHeader,
)
from rocketq.remoting.headers.admin import (
    QueryTopicsByConsumerHeader as QueryTopicsByConsumerHeader,
)
from rocketq.remoting.headers.admin import (
    ResumeCheckHalfMessageHeader as ResumeCheckHalfMessageHeader,
)
from rocketq.remoting.headers.admin import (
    UpdateGroupForbiddenHeader as UpdateGroupForbiddenHeader,
)
from rocketq.remoting.headers.admin import (
    ViewBrokerStatsDataHeader as ViewBrokerStatsDataHeader,
)
from rocketq.remoting.headers.clients import (
    ConsumeMessageDirectlyHeader as ConsumeMessageDirectlyHeader,
)
from rocketq.remoting.headers.clients import (
    GetConsumerListByGroupHeader as GetConsumerListByGroupHeader,
)
from rocketq.remoting.headers.clients import (
    GetConsumerRunningInfoHeader as GetConsumerRunningInfoHeader,
)
from rocketq.remoting.headers.clients import (
    GetConsumerStatusHeader as GetConsumerStatusHeader,
)
from rocketq.remoting.headers.clients import (
    HeartbeatResponse as HeartbeatResponse,
)
from rocketq.remoting.headers.clients import (
    NotifyConsumerIdsChangedHeader as NotifyConsumerIdsChangedHeader,
)
from rocketq.remoting.headers.clients import (
    ResetOffsetHeader as ResetOffsetHeader,
)
from rocketq.remoting.headers.clients import (
    UnregisterClientHeader as UnregisterClientHeader,
)
from rocketq.remoting.headers.namesrv import (
    AddWritePermOfBrokerHeader as AddWritePermOfBrokerHeader,
)
from rocketq.remoting.headers.namesrv import (
    AddWritePermOfBrokerResponse as AddWritePermOfBrokerResponse,
)
from rocketq.remoting.headers.namesrv import (
    BrokerHeartbeatHeader as BrokerHeartbeatHeader,
)
from rocketq.remoting.headers.namesrv import (
    DeleteKVConfigHeader as DeleteKVConfigHeader,
)
from rocketq.remoting.headers.namesrv import (
    DeleteTopicFromNamesrvHeader as DeleteTopicFromNamesrvHeader,
)
from rocketq.remoting.headers.namesrv import (
    GetBrokerMemberGroupHeader as GetBrokerMemberGroupHeader,
)
from rocketq.remoting.headers.namesrv import (
    GetKVConfigHeader as GetKVConfigHeader,
)
from rocketq.remoting.headers.namesrv import (
    GetKVConfigResponse as GetKVConfigResponse,
)
from rocketq.remoting.headers.namesrv import (
    GetKVListByNamespaceHeader as GetKVListByNamespaceHeader,
)
from rocketq.remoting.headers.namesrv import (
    GetRouteInfoHeader as GetRouteInfoHeader,
)
from rocketq.remoting.headers.namesrv import (
    GetTopicsByClusterHeader as GetTopicsByClusterHeader,
)
from rocketq.remoting.headers.namesrv import (
    NotifyMinBrokerIdChangeHeader as NotifyMinBrokerIdChangeHeader,
)
from rocketq.remoting.headers.namesrv import (
    PutKVConfigHeader as PutKVConfigHeader,
)
from rocketq.remoting.headers.namesrv import (
    QueryDataVersionHeader as QueryDataVersionHeader,
)
from rocketq.remoting.headers.namesrv import (
    QueryDataVersionResponse as QueryDataVersionResponse,
)
from rocketq.remoting.headers.namesrv import (
    RegisterBrokerHeader as RegisterBrokerHeader,
)
from rocketq.remoting.headers.namesrv import (
    RegisterBrokerResponse as RegisterBrokerResponse,
)
from rocketq.remoting.headers.namesrv import (
    RegisterTopicHeader as RegisterTopicHeader,
)
from rocketq.remoting.headers.namesrv import (
    UnRegisterBrokerHeader as UnRegisterBrokerHeader,
)
from rocketq.remoting.headers.namesrv import (
    WipeWritePermOfBrokerHeader as WipeWritePermOfBrokerHeader,
)
from rocketq.remoting.headers.namesrv import (
    WipeWritePermOfBrokerResponse as WipeWritePermOfBrokerResponse,
)
from rocketq.remoting.headers.pop import (
    AckMessageHeader as AckMessageHeader,
)
from rocketq.remoting.headers.pop import (
    BatchAckHeader as BatchAckHeader,
)
from rocketq.remoting.headers.pop import (
    ChangeInvisibleTimeHeader as ChangeInvisibleTimeHeader,
)
from rocketq.remoting.headers.pop import (
    ChangeInvisibleTimeResponse as ChangeInvisibleTimeResponse,
)
from rocketq.remoting.headers.pop import (
    NotificationHeader as NotificationHeader,
)
from rocketq.remoting.headers.pop import (
    NotificationResponse as NotificationResponse,
)
from rocketq.remoting.headers.pop import (
    PeekMessageHeader as PeekMessageHeader,
)
from rocketq.remoting.headers.pop import (
    PollingInfoHeader as PollingInfoHeader,
)
from rocketq.remoting.headers.pop import (
    PollingInfoResponse as PollingInfoResponse,
)
from rocketq.remoting.headers.pop import (
    PopMessageHeader as PopMessageHeader,
)
from rocketq.remoting.headers.pop import (
    PopMessageResponse as PopMessageResponse,
)
from rocketq.remoting.headers.pull import (
    GetEarliestMsgStoretimeHeader as GetEarliestMsgStoretimeHeader,
)
from rocketq.remoting.headers.pull import (
    GetEarliestMsgStoretimeResponse as GetEarliestMsgStoretimeResponse,
)
from rocketq.remoting.headers.pull import (
    GetMaxOffsetHeader as GetMaxOffsetHeader,
)
from rocketq.remoting.headers.pull import (
    GetMaxOffsetResponse as GetMaxOffsetResponse,
)
from rocketq.remoting.headers.pull import (
    GetMinOffsetHeader as GetMinOffsetHeader,
)
from rocketq.remoting.headers.pull import (
    GetMinOffsetResponse as GetMinOffsetResponse,
)
from rocketq.remoting.headers.pull import (
    ListTimerHeader as ListTimerHeader,
)
from rocketq.remoting.headers.pull import (
    PullMessageHeader as PullMessageHeader,
)
from rocketq.remoting.headers.pull import (
    PullMessageResponse as PullMessageResponse,
)
from rocketq.remoting.headers.pull import (
    QueryConsumerOffsetHeader as QueryConsumerOffsetHeader,
)
from rocketq.remoting.headers.pull import (
    QueryConsumerOffsetResponse as QueryConsumerOffsetResponse,
)
from rocketq.remoting.headers.pull import (
    QueryMessageHeader as QueryMessageHeader,
)
from rocketq.remoting.headers.pull import (
    QueryMessageResponse as QueryMessageResponse,
)
from rocketq.remoting.headers.pull import (
    SearchOffsetHeader as SearchOffsetHeader,
)
from rocketq.remoting.headers.pull import (
    SearchOffsetResponse as SearchOffsetResponse,
)
from rocketq.remoting.headers.pull import (
    UpdateConsumerOffsetHeader as UpdateConsumerOffsetHeader,
)
from rocketq.remoting.headers.pull import (
    ViewMessageHeader as ViewMessageHeader,
)
from rocketq.remoting.headers.send import (
    CheckTransactionStateHeader as CheckTransactionStateHeader,
)
from rocketq.remoting.headers.send import (
    ConsumerSendMsgBackHeader as ConsumerSendMsgBackHeader,
)
from rocketq.remoting.headers.send import (
    EndTransactionHeader as EndTransactionHeader,
)
from rocketq.remoting.headers.send import (
    RecallMessageHeader as RecallMessageHeader,
)
from rocketq.remoting.headers.send import (
    RecallMessageResponse as RecallMessageResponse,
)
from rocketq.remoting.headers.send import (
    ReplyMessageHeader as ReplyMessageHeader,
)
from rocketq.remoting.headers.send import (
    SendMessageHeader as SendMessageHeader,
)
from rocketq.remoting.headers.send import (
    SendMessageHeaderV2 as SendMessageHeaderV2,
)
from rocketq.remoting.headers.send import (
    SendMessageResponse as SendMessageResponse,
)
