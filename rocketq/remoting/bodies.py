"""Typed JSON bodies that more than one room reads or writes.

Every record turns into a dict of JSON values with ``to_json`` (members sorted by name, absent ones left out, as
fastjson does) and comes from one with ``from_json``, as lenient as Apache's readers: enums by name or ordinal,
numbers as text, unknown members ignored. ``encode`` and ``decode`` do the same with bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, TypeVar

import msgspec
from msgspec import field

from rocketq import javajson
from rocketq.message import MessageQueue
from rocketq.remoting.codes import VERSION

__all__ = [
    "BrokerData",
    "BrokerMemberGroup",
    "ClusterInfo",
    "Connection",
    "ConsumeMessageDirectlyResult",
    "ConsumeStats",
    "ConsumerConnection",
    "ConsumerData",
    "ConsumerList",
    "ConsumerRunningInfo",
    "DataVersion",
    "GetConsumerListBody",
    "GroupList",
    "HeartbeatData",
    "KVTable",
    "LockBatchBody",
    "LockBatchResponse",
    "OffsetTable",
    "OffsetWrapper",
    "ProducerConnection",
    "ProducerData",
    "QueueData",
    "RegisterBrokerBody",
    "SubscriptionData",
    "SubscriptionGroupConfig",
    "TopicConfig",
    "TopicConfigTable",
    "TopicList",
    "TopicOffset",
    "TopicRoute",
    "TopicStats",
]

#: Enums that some clients send by their ordinal.
_ORDINALS = {
    "consumeType": ("CONSUME_ACTIVELY", "CONSUME_PASSIVELY", "CONSUME_POP"),
    "messageModel": ("BROADCASTING", "CLUSTERING"),
    "consumeFromWhere": (
        "CONSUME_FROM_LAST_OFFSET",
        "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
        "CONSUME_FROM_MIN_OFFSET",
        "CONSUME_FROM_MAX_OFFSET",
        "CONSUME_FROM_FIRST_OFFSET",
        "CONSUME_FROM_TIMESTAMP",
    ),
    "topicFilterType": ("SINGLE_TAG", "MULTI_TAG"),
}
_QUEUE_MEMBERS = {"brokerName", "queueId", "topic"}

B = TypeVar("B", bound="Body")


class Body(msgspec.Struct, rename="camel"):
    """Base of the bodies. Wire names are the fields' in camelCase unless they say otherwise."""

    def to_json(self) -> dict[str, Any]:
        """The members by wire name, sorted, absent (None) ones left out."""
        members = sorted(zip(self.__struct_encode_fields__, self.__struct_fields__, strict=True))
        return {wire: _plain(value) for wire, name in members if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls: type[B], data: Any) -> B:
        """Raises ValueError when a member that cannot be done without is missing, or is not of its type."""
        try:
            return msgspec.convert(_lenient(data), cls, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None

    def encode(self) -> bytes:
        """Compact JSON, integer keys unquoted."""
        return javajson.dumps(self.to_json())

    @classmethod
    def decode(cls: type[B], data: bytes) -> B:
        """Raises ValueError when `data` is not JSON or not this body."""
        return cls.from_json(javajson.loads(data))


def _plain(value: Any) -> Any:
    if isinstance(value, Body):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, MessageQueue):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value


def _lenient(value: Any) -> Any:
    """Read JSON without its nulls, with enums by name and queues as MessageQueue."""
    if isinstance(value, dict):
        if value.keys() == _QUEUE_MEMBERS:
            return _queue(value)
        plain = {}
        for key, item in value.items():
            if item is None:
                continue
            names = _ORDINALS.get(key)
            if names is not None and not isinstance(item, (dict, list)):
                number = int(item) if isinstance(item, int) or str(item).isdigit() else -1
                plain[key] = names[number] if 0 <= number < len(names) else item
            else:
                plain[key] = _lenient(item)
        return plain
    if isinstance(value, list):
        return [_lenient(item) for item in value]
    return value


def _queue(value: dict[str, Any]) -> Any:
    try:
        return MessageQueue(str(value["topic"]), str(value["brokerName"]), int(value["queueId"]))
    except (TypeError, ValueError):
        return value  # not a queue after all: whoever wants one will say so


class DataVersion(Body):
    """Tells whether a table has changed. `timestamp` in ms."""

    counter: int = 0
    state_version: int = 0
    timestamp: int = 0

    def next(self, timestamp: int) -> DataVersion:
        """The version after a change at `timestamp`."""
        return DataVersion(counter=self.counter + 1, state_version=self.state_version, timestamp=timestamp)


# -- routes ---------------------------------------------------------------------------------------------------


class BrokerData(Body):
    """The addresses of one broker name: id 0 is the master."""

    cluster: str
    broker_name: str
    broker_addrs: dict[int, str] = {}
    enable_acting_master: bool | None = False
    zone_name: str | None = None


class QueueData(Body):
    """A topic's queues on one broker. `perm` is a Perm."""

    broker_name: str
    read_queue_nums: int = 0
    write_queue_nums: int = 0
    perm: int = 0
    topic_sys_flag: int = 0


class TopicRoute(Body):
    """Where a topic's queues are."""

    broker_datas: list[BrokerData] = []
    queue_datas: list[QueueData] = []
    order_topic_conf: str | None = None
    filter_server_table: dict[str, list[str]] = {}

    def encode(self, standard_json: bool = False) -> bytes:
        """Compact JSON; with `standard_json` ids are quoted and maps sorted, as clients from 4.9.4 on want it."""
        members = self.to_json()
        if standard_json:
            for broker in members["brokerDatas"]:
                broker["brokerAddrs"] = dict(sorted(broker["brokerAddrs"].items()))
        return javajson.dumps(members, numeric_keys_quoted=standard_json)


class ClusterInfo(Body):
    """All brokers by name, and the names by cluster."""

    broker_addr_table: dict[str, BrokerData] = {}
    cluster_addr_table: dict[str, list[str]] = {}


class BrokerMemberGroup(Body):
    """The brokers of one name."""

    cluster: str = ""
    broker_name: str = ""
    broker_addrs: dict[int, str] = {}


# -- topics and groups ------------------------------------------------------------------------------------------


class TopicConfig(Body):
    """A topic's settings on one broker. `perm` is a Perm."""

    topic_name: str = ""
    read_queue_nums: int = 16
    write_queue_nums: int = 16
    perm: int = 6
    topic_filter_type: str = "SINGLE_TAG"
    topic_sys_flag: int = 0
    order: bool = False
    attributes: dict[str, str] = {}

    def to_text(self) -> str:
        """The form of a compressed registration: fields separated by spaces."""
        numbers = f"{self.read_queue_nums} {self.write_queue_nums} {self.perm}"
        text = f"{self.topic_name} {numbers} {self.topic_filter_type}"
        return f"{text} {javajson.dumps(self.attributes).decode()}" if self.attributes else text

    @classmethod
    def from_text(cls, text: str) -> TopicConfig:
        """Raises ValueError when fields are missing or not numbers."""
        parts = text.split(" ", 5)
        if len(parts) < 5:
            raise ValueError(f"topic configuration {text!r} has fewer than five fields")
        name, read, write, perm, filter_type, *attributes = parts
        config = cls(name, int(read), int(write), int(perm), filter_type)
        if attributes and attributes[0]:
            config.attributes = {key: str(value) for key, value in javajson.loads(attributes[0]).items()}
        return config


class TopicConfigTable(Body):
    """Topics by name, as brokers register them and as GET_ALL_TOPIC_CONFIG answers."""

    data_version: DataVersion = field(default_factory=DataVersion)
    topic_config_table: dict[str, TopicConfig] = {}
    mapping_data_version: DataVersion | None = None
    topic_queue_mapping_detail_map: dict[str, Any] = {}
    topic_queue_mapping_info_map: dict[str, Any] = {}


class GroupRetryPolicy(Body):
    """How a group's retries are spaced: CUSTOMIZED means by the delay levels."""

    type: str = "CUSTOMIZED"
    exponential_retry_policy: Any = None
    customized_retry_policy: Any = None


class SubscriptionGroupConfig(Body):
    """A consumer group's settings on one broker."""

    group_name: str = ""
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_nums: int = 1
    retry_max_times: int = 16
    group_retry_policy: GroupRetryPolicy = field(default_factory=GroupRetryPolicy)
    broker_id: int = 0
    which_broker_when_consume_slowly: int = 1
    notify_consumer_ids_changed_enable: bool = True
    group_sys_flag: int = 0
    consume_timeout_minute: int = 15
    subscription_data_set: list[dict[str, Any]] | None = None
    attributes: dict[str, str] = {}


class TopicList(Body):
    """Names of topics; `broker_addr` is where to ask for more."""

    topic_list: list[str] = []
    broker_addr: str | None = None


class GroupList(Body):
    """Names of consumer groups."""

    group_list: list[str] = []


class KVTable(Body):
    """Texts by name."""

    table: dict[str, str] = {}


# -- registration -----------------------------------------------------------------------------------------------

_INT = struct.Struct(">i")


class RegisterBrokerBody(Body):
    """What a broker tells the name server: its topics, and which version of the table they are."""

    data_version: DataVersion = field(default_factory=DataVersion)
    topic_config_table: dict[str, TopicConfig] = {}
    filter_server_list: list[str] = []
    mapping_data_version: DataVersion | None = None
    topic_queue_mapping_detail_map: dict[str, Any] = {}
    topic_queue_mapping_info_map: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """On the wire all but the filter servers is wrapped once more."""
        wrapper = super().to_json()
        servers = wrapper.pop("filterServerList")
        return {"filterServerList": servers, "topicConfigSerializeWrapper": wrapper}

    @classmethod
    def from_json(cls, data: Any) -> RegisterBrokerBody:
        """Reads the bare table of brokers older than 3.0.11 as well."""
        if isinstance(data, dict) and isinstance(wrapper := data.get("topicConfigSerializeWrapper"), dict):
            data = {**wrapper, "filterServerList": data.get("filterServerList")}
        return super().from_json(data)

    @classmethod
    def decode(
        cls, data: bytes, *, compressed: bool = False, version: int = VERSION, max_size: int = 64 << 20
    ) -> RegisterBrokerBody:
        """The body, also from its zlib form; `version` is the broker's (from 5.0.0 on, 413, mappings follow).

        Raises ValueError when it is not JSON, cut short, or longer than `max_size` bytes unpacked.
        """
        if not compressed:
            try:  # tens of thousands of topics come in one body, and this is forty times as fast
                read = _decode_registration(data)
            except msgspec.MsgspecError:  # not plain JSON, with nulls or ordinals, or of an old broker
                return super().decode(data)
            read.wrapper.filter_server_list = read.filter_server_list
            return read.wrapper
        inflate = zlib.decompressobj()
        try:
            raw = inflate.decompress(data, max_size)
        except zlib.error as error:
            raise ValueError(f"compressed registration: {error}") from None
        if not inflate.eof:
            raise ValueError(f"compressed registration is cut short or unpacks to more than {max_size} bytes")
        reader = _Counted(raw)
        body = cls(DataVersion.decode(reader.blob()))
        for _ in range(reader.number()):
            config = TopicConfig.from_text(reader.text())
            body.topic_config_table[config.topic_name] = config
        body.filter_server_list = [str(server) for server in javajson.loads(reader.blob()) or ()]
        if version >= 413 and not reader.at_end:
            for _ in range(reader.number()):
                mapping = javajson.loads(reader.blob())
                if isinstance(mapping, dict):
                    body.topic_queue_mapping_info_map[str(mapping.get("topic"))] = mapping
        return body

    def encode(self) -> bytes:
        """Compact JSON; faster than other bodies are written, as there may be tens of thousands of topics."""
        wrapper = {
            wire: value
            for wire, name in zip(self.__struct_encode_fields__, self.__struct_fields__, strict=True)
            if wire != "filterServerList" and (value := getattr(self, name)) is not None
        }
        members = {"filterServerList": self.filter_server_list, "topicConfigSerializeWrapper": wrapper}
        return _encode_sorted(members)

    def encode_compressed(self) -> bytes:
        """The zlib form, for a header with `compressed=true`."""
        topics = [config.to_text().encode() for config in self.topic_config_table.values()]
        mappings = [javajson.dumps(mapping) for mapping in self.topic_queue_mapping_info_map.values()]
        pieces = [_counted(self.data_version.encode()), _INT.pack(len(topics)), *map(_counted, topics)]
        pieces += [_counted(javajson.dumps(self.filter_server_list)), _INT.pack(len(mappings))]
        return zlib.compress(b"".join([*pieces, *map(_counted, mappings)]), 9)


class _WrappedRegistration(msgspec.Struct):
    """A registration as it is on the wire."""

    wrapper: RegisterBrokerBody = field(name="topicConfigSerializeWrapper")
    filter_server_list: list[str] = field(name="filterServerList", default_factory=list)


_decode_registration = msgspec.json.Decoder(_WrappedRegistration, strict=False).decode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def _counted(data: bytes) -> bytes:
    return _INT.pack(len(data)) + data


class _Counted:
    """Reads int32-prefixed pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def number(self) -> int:
        try:
            (value,) = _INT.unpack_from(self._data, self._at)
        except struct.error:
            raise ValueError("compressed registration is cut short") from None
        self._at += 4
        return int(value)

    def blob(self) -> bytes:
        length = self.number()
        start = self._at
        self._at += length
        if length < 0 or self._at > len(self._data):
            raise ValueError("compressed registration is cut short")
        return self._data[start : self._at]

    def text(self) -> str:
        return self.blob().decode()


# -- clients ----------------------------------------------------------------------------------------------------


class SubscriptionData(Body):
    """What a group wants of a topic. `sub_version` is the time of the subscription in ms."""

    topic: str = ""
    sub_string: str = "*"
    tags_set: list[str] = []
    code_set: list[int] = []
    sub_version: int = 0
    expression_type: str | None = "TAG"
    class_filter_mode: bool = False


class ProducerData(Body):
    """A producer group of a client."""

    group_name: str = ""


class ConsumerData(Body):
    """A consumer group of a client. Enums are Apache's names."""

    group_name: str = ""
    consume_type: str = "CONSUME_PASSIVELY"
    message_model: str = "CLUSTERING"
    consume_from_where: str = "CONSUME_FROM_LAST_OFFSET"
    subscription_data_set: list[SubscriptionData] = []
    unit_mode: bool = False


class HeartbeatData(Body):
    """Who a client is (HEART_BEAT)."""

    client_id: str = field(name="clientID")
    producer_data_set: list[ProducerData] = []
    consumer_data_set: list[ConsumerData] = []
    heartbeat_fingerprint: int = 0
    without_sub: bool = False


class CheckClientBody(Body):
    """CHECK_CLIENT_CONFIG (46): a consumer asks whether the broker can filter as it wants."""

    subscription_data: SubscriptionData | None = None


class QueryAssignmentBody(Body):
    """QUERY_ASSIGNMENT (400): which queues shall this client consume, and how?"""

    topic: str = ""
    consumer_group: str = ""
    client_id: str = ""
    strategy_name: str = "AVG"
    message_model: str = "CLUSTERING"


class MessageRequestMode(Body):
    """How a group consumes a topic when it asks (401): `PULL` or `POP`.

    `pop_share_queue_num`: a POP member consumes its own share and that of so many others; 0 or less: everything.
    """

    topic: str = ""
    consumer_group: str = ""
    mode: str = "PULL"
    pop_share_queue_num: int = 0


class ConsumerList(Body):
    """Client ids of a group's members."""

    client_ids: list[str] = field(default_factory=list, name="consumerIdList")


#: The name that the contract between the rooms uses.
GetConsumerListBody = ConsumerList


class LockBatchBody(Body):
    """Which queues a client wants to lock or unlock."""

    consumer_group: str
    client_id: str
    queues: list[MessageQueue] = field(default_factory=list, name="mqSet")
    only_this_broker: bool = False


class LockBatchResponse(Body):
    """The queues that the client holds now."""

    queues: list[MessageQueue] = field(default_factory=list, name="lockOKMQSet")


class Connection(Body):
    """A connected client as the connection lists show it."""

    client_id: str = ""
    client_addr: str = ""
    language: str | None = None
    version: int = 0


class ConsumerConnection(Body):
    """The members of a consumer group, and what it subscribes to."""

    connection_set: list[Connection] = []
    subscription_table: dict[str, SubscriptionData] = {}
    consume_type: str | None = None
    message_model: str | None = None
    consume_from_where: str | None = None


class ProducerConnection(Body):
    """The members of a producer group."""

    connection_set: list[Connection] = []


class ConsumerRunningInfo(Body):
    """How a consumer is doing (GET_CONSUMER_RUNNING_INFO)."""

    properties: dict[str, str] = {}
    subscription_set: list[SubscriptionData] = []
    mq_table: dict[MessageQueue, dict[str, Any]] = {}
    mq_pop_table: dict[MessageQueue, dict[str, Any]] = {}
    status_table: dict[str, dict[str, Any]] = {}
    user_consumer_info: dict[str, str] | None = None
    jstack: str | None = None


class ConsumeMessageDirectlyResult(Body):
    """What came of consuming one message on demand. `consume_result` is CR_SUCCESS, CR_LATER, …"""

    consume_result: str = "CR_SUCCESS"
    order: bool = False
    auto_commit: bool = True
    remark: str | None = None
    spent_time_mills: int = 0


# -- offsets and statistics -------------------------------------------------------------------------------------


class OffsetTable(Body):
    """Offsets by queue (RESET_CONSUMER_CLIENT_OFFSET)."""

    offset_table: dict[MessageQueue, int] = {}

    @classmethod
    def from_json(cls, data: Any) -> OffsetTable:
        """Reads the list that is sent to C++ clients as well."""
        table = data.get("offsetTable") if isinstance(data, dict) else None
        if isinstance(table, list):
            try:
                offsets = {_queue(entry): int(entry["offset"]) for entry in table}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"OffsetTable: an entry of the list is not an offset: {error!r}") from None
            return cls(offsets)
        return super().from_json(data)


class TopicOffset(Body):
    """A queue's ends. `last_update_timestamp` in ms."""

    min_offset: int = 0
    max_offset: int = 0
    last_update_timestamp: int = 0


class TopicStats(Body):
    """The ends of a topic's queues."""

    offset_table: dict[MessageQueue, TopicOffset] = {}
    topic_put_tps: float | None = 0.0


class OffsetWrapper(Body):
    """How far a group is in one queue. `last_timestamp` is the store time of what it consumed last, in ms."""

    broker_offset: int = 0
    consumer_offset: int = 0
    pull_offset: int = 0
    last_timestamp: int = 0


class ConsumeStats(Body):
    """How far a group is in its queues."""

    offset_table: dict[MessageQueue, OffsetWrapper] = {}
    consume_tps: float = 0.0
