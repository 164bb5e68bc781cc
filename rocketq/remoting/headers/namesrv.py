"""The name server: registration, routes, key-value configuration."""

from __future__ import annotations

from msgspec import field

from rocketq.remoting.command import Header
from rocketq.remoting.headers.base import RoutedHeader


class RegisterBrokerHeader(Header, kw_only=True):
    """REGISTER_BROKER (103). `body_crc32` 0: not checked; times in ms."""

    broker_name: str = field(name="brokerName")
    broker_addr: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName")
    ha_server_addr: str = field(name="haServerAddr")
    broker_id: int = field(name="brokerId")
    heartbeat_timeout_millis: int | None = field(default=None, name="heartbeatTimeoutMillis")
    enable_acting_master: bool | None = field(default=None, name="enableActingMaster")
    compressed: bool = False
    body_crc32: int = field(default=0, name="bodyCrc32")
    zone_name: str | None = field(default=None, name="__ZONE_NAME")


class RegisterBrokerResponse(Header, kw_only=True):
    """For a slave: where its master is."""

    ha_server_addr: str | None = field(default=None, name="haServerAddr")
    master_addr: str | None = field(default=None, name="masterAddr")


class UnRegisterBrokerHeader(Header, kw_only=True):
    """UNREGISTER_BROKER (104)."""

    broker_name: str = field(name="brokerName")
    broker_addr: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName")
    broker_id: int = field(name="brokerId")


class QueryDataVersionHeader(Header, kw_only=True):
    """QUERY_DATA_VERSION (322)."""

    broker_name: str = field(name="brokerName")
    broker_addr: str = field(name="brokerAddr")
    cluster_name: str = field(name="clusterName")
    broker_id: int = field(name="brokerId")


class QueryDataVersionResponse(Header, kw_only=True):
    """Whether the broker has to register again."""

    changed: bool


class BrokerHeartbeatHeader(Header, kw_only=True):
    """BROKER_HEARTBEAT (904). The timeout is in ms."""

    cluster_name: str = field(name="clusterName")
    broker_addr: str = field(name="brokerAddr")
    broker_name: str = field(name="brokerName")
    broker_id: int | None = field(default=None, name="brokerId")
    epoch: int | None = None
    max_offset: int | None = field(default=None, name="maxOffset")
    confirm_offset: int | None = field(default=None, name="confirmOffset")
    heartbeat_timeout_mills: int | None = field(default=None, name="heartbeatTimeoutMills")
    election_priority: int | None = field(default=None, name="electionPriority")


class GetRouteInfoHeader(RoutedHeader, kw_only=True):
    """GET_ROUTEINFO_BY_TOPIC (105)."""

    topic: str
    accept_standard_json_only: bool | None = field(default=None, name="acceptStandardJsonOnly")


class GetBrokerMemberGroupHeader(Header, kw_only=True):
    """GET_BROKER_MEMBER_GROUP (901)."""

    cluster_name: str = field(name="clusterName")
    broker_name: str = field(name="brokerName")


class NotifyMinBrokerIdChangeHeader(Header, kw_only=True):
    """NOTIFY_MIN_BROKER_ID_CHANGE (905), name server to broker, oneway."""

    min_broker_id: int | None = field(default=None, name="minBrokerId")
    broker_name: str | None = field(default=None, name="brokerName")
    min_broker_addr: str | None = field(default=None, name="minBrokerAddr")
    offline_broker_addr: str | None = field(default=None, name="offlineBrokerAddr")
    ha_broker_addr: str | None = field(default=None, name="haBrokerAddr")


class PutKVConfigHeader(Header, kw_only=True):
    """PUT_KV_CONFIG (100)."""

    namespace: str
    key: str
    value: str


class GetKVConfigHeader(Header, kw_only=True):
    """GET_KV_CONFIG (101)."""

    namespace: str
    key: str


class GetKVConfigResponse(Header, kw_only=True):
    """The value."""

    value: str | None = None


class DeleteKVConfigHeader(Header, kw_only=True):
    """DELETE_KV_CONFIG (102)."""

    namespace: str
    key: str


class GetKVListByNamespaceHeader(Header, kw_only=True):
    """GET_KVLIST_BY_NAMESPACE (219)."""

    namespace: str


class WipeWritePermOfBrokerHeader(Header, kw_only=True):
    """WIPE_WRITE_PERM_OF_BROKER (205)."""

    broker_name: str = field(name="brokerName")


class WipeWritePermOfBrokerResponse(Header, kw_only=True):
    """How many topics it concerned."""

    wipe_topic_count: int = field(name="wipeTopicCount")


class AddWritePermOfBrokerHeader(Header, kw_only=True):
    """ADD_WRITE_PERM_OF_BROKER (327)."""

    broker_name: str = field(name="brokerName")


class AddWritePermOfBrokerResponse(Header, kw_only=True):
    """How many topics it concerned."""

    add_topic_count: int = field(name="addTopicCount")


class GetTopicsByClusterHeader(Header, kw_only=True):
    """GET_TOPICS_BY_CLUSTER (224)."""

    cluster: str


class DeleteTopicFromNamesrvHeader(RoutedHeader, kw_only=True):
    """DELETE_TOPIC_IN_NAMESRV (216)."""

    topic: str
    cluster_name: str | None = field(default=None, name="clusterName")


class RegisterTopicHeader(RoutedHeader, kw_only=True):
    """REGISTER_TOPIC_IN_NAMESRV (217)."""

    topic: str
