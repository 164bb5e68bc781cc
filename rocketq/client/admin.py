"""Administration: topics, groups and brokers of a cluster, ours or Apache's, by request codes."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rocketq import javajson
from rocketq.config import parse_addresses, parse_properties
from rocketq.errors import BrokerError, ConfigError, RemotingError, RocketQError, RouteNotFound
from rocketq.message import MessageQueue
from rocketq.remoting import headers
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import (
    ClusterInfo,
    ConsumerConnection,
    ConsumerRunningInfo,
    ConsumeStats,
    GroupList,
    KVTable,
    MessageRequestMode,
    OffsetWrapper,
    SubscriptionGroupConfig,
    TopicConfig,
    TopicList,
    TopicOffset,
    TopicRoute,
    TopicStats,
)
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.credentials import Credentials
from rocketq.remoting.tls import TlsConfig

MASTER = 0
_GROUP_PAGE = 1000


@dataclass(frozen=True)
class Broker:
    """One broker process of a cluster."""

    cluster: str
    name: str
    broker_id: int
    address: str


class Admin:
    """Asks NameServers (`host:port;host:port`) and through them the brokers. `timeout` is a request's, in s;
    `tls` says how to connect, plain when None; `access_key` and `secret_key` are the account, where brokers ask.

    Every method raises RemotingError when a server does not answer and BrokerError when it refuses. Changes of
    topics and groups go to every master of the cluster (all clusters when none is given).
    """

    def __init__(
        self,
        namesrv: str,
        *,
        timeout: float = 5.0,
        tls: TlsConfig | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        self._servers = parse_addresses(namesrv)
        if not self._servers:
            raise ConfigError("no NameServer address is given (host:port, several separated by ';')")
        self._timeout = timeout
        self._client = BlockingClient(tls=tls, credentials=Credentials.of(access_key, secret_key))

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the cluster

    def brokers(self, cluster: str | None = None) -> list[Broker]:
        """All brokers, or those of a cluster, in the order of their names. Raises RouteNotFound when there are none."""
        info = ClusterInfo.decode(bytes(self._ask_namesrv(RequestCode.GET_BROKER_CLUSTER_INFO).body))
        found = [
            Broker(data.cluster, name, broker_id, address)
            for name, data in info.broker_addr_table.items()
            for broker_id, address in data.broker_addrs.items()
            if cluster is None or data.cluster == cluster
        ]
        if not found:
            known = ", ".join(sorted(info.cluster_addr_table)) or "none"
            what = "no broker is" if cluster is None else f"no broker of cluster {cluster} is"
            raise RouteNotFound(f"{what} registered with {';'.join(self._servers)} (clusters: {known})")
        return sorted(found, key=lambda broker: (broker.cluster, broker.name, broker.broker_id))

    def runtime_info(self, address: str) -> dict[str, str]:
        """What a broker says about itself, as text by name."""
        return KVTable.decode(bytes(self.ask(address, RequestCode.GET_BROKER_RUNTIME_INFO).body)).table

    def ha_status(self, address: str) -> dict[str, Any]:
        """What a broker says of replication (`HARuntimeInfo`): a master of its slaves, a slave of its master."""
        status: dict[str, Any] = _json(self.ask(address, RequestCode.GET_BROKER_HA_STATUS))
        return status

    def broker(self, name: str) -> Broker:
        """The broker with that address, or the master with that name. Raises RouteNotFound."""
        brokers = self.brokers()
        for broker in brokers:
            if name == broker.address or (name == broker.name and broker.broker_id == MASTER):
                return broker
        known = ", ".join(f"{broker.name} ({broker.address})" for broker in brokers)
        raise RouteNotFound(f"no broker {name} is registered with {';'.join(self._servers)}; there are {known}")

    def broker_config(self, address: str) -> dict[str, str]:
        """The settings of a broker in effect, by Apache's names."""
        text = bytes(self.ask(address, RequestCode.GET_BROKER_CONFIG).body).decode()
        return {key: value for key, value, _ in parse_properties(text)}

    def set_broker_config(self, address: str, settings: Mapping[str, str]) -> None:
        """Change settings of a running broker. Brokers ignore names that they do not know."""
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.ask(address, RequestCode.UPDATE_BROKER_CONFIG, body=text.encode())

    def clean(self, address: str) -> None:
        """Let a broker remove at once what it would remove by and by: CommitLog files older than it keeps them,
        ConsumeQueue files that lead to nothing, and queues of topics that do not exist."""
        for code in (
            RequestCode.DELETE_EXPIRED_COMMITLOG,
            RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE,
            RequestCode.CLEAN_UNUSED_TOPIC,
        ):
            self.ask(address, code)

    def producers(self, address: str) -> dict[str, list[dict[str, Any]]]:
        """The producer groups connected to a broker, with their members."""
        data: dict[str, list[dict[str, Any]]] = _json(self.ask(address, RequestCode.GET_ALL_PRODUCER_INFO)).get(
            "data", {}
        )
        return data

    def stats(self, address: str, name: str, key: str) -> dict[str, dict[str, float]] | None:
        """A counter of a broker (`TOPIC_PUT_NUMS` of a topic, `GROUP_GET_NUMS` of `topic@group`, …) with its sums and
        rates of the last minute, hour and day; None when it has not counted anything."""
        header = headers.ViewBrokerStatsDataHeader(stats_name=name, stats_key=key)
        allowed = (ResponseCode.SUCCESS, ResponseCode.SYSTEM_ERROR)
        answer = self.ask(address, RequestCode.VIEW_BROKER_STATS_DATA, header, allowed=allowed)
        return _json(answer) if answer.code == ResponseCode.SUCCESS else None

    def is_before_5(self, address: str) -> bool:
        """Whether a broker says that it is of the 3.x or 4.x line."""
        return self.runtime_info(address).get("brokerVersionDesc", "").startswith(("V3", "V4"))

    def wipe_write(self, broker_name: str) -> int:
        """Let nobody send to the broker any more, on all NameServers; returns the number of its topics."""
        header = headers.WipeWritePermOfBrokerHeader(broker_name=broker_name)
        answers = self._ask_all_namesrv(RequestCode.WIPE_WRITE_PERM_OF_BROKER, header)
        return max(answer.header(headers.WipeWritePermOfBrokerResponse).wipe_topic_count for answer in answers)

    def add_write(self, broker_name: str) -> int:
        """Undo :meth:`wipe_write`; returns the number of topics."""
        header = headers.AddWritePermOfBrokerHeader(broker_name=broker_name)
        answers = self._ask_all_namesrv(RequestCode.ADD_WRITE_PERM_OF_BROKER, header)
        return max(answer.header(headers.AddWritePermOfBrokerResponse).add_topic_count for answer in answers)

    # -- what NameServers keep for anybody: texts by namespace and key

    def kv_table(self, namespace: str) -> dict[str, str]:
        """All keys and texts of a namespace; none when there is no such namespace."""
        header = headers.GetKVListByNamespaceHeader(namespace=namespace)
        try:
            return KVTable.decode(bytes(self._ask_namesrv(RequestCode.GET_KVLIST_BY_NAMESPACE, header).body)).table
        except BrokerError as error:
            if error.code != ResponseCode.QUERY_NOT_FOUND:
                raise
            return {}

    def kv_get(self, namespace: str, key: str) -> str | None:
        """One text; None when there is none."""
        header = headers.GetKVConfigHeader(namespace=namespace, key=key)
        try:
            return self._ask_namesrv(RequestCode.GET_KV_CONFIG, header).header(headers.GetKVConfigResponse).value
        except BrokerError as error:
            if error.code != ResponseCode.QUERY_NOT_FOUND:
                raise
            return None

    def kv_put(self, namespace: str, key: str, value: str) -> None:
        """Keep a text on all NameServers."""
        header = headers.PutKVConfigHeader(namespace=namespace, key=key, value=value)
        self._ask_all_namesrv(RequestCode.PUT_KV_CONFIG, header)

    def kv_delete(self, namespace: str, key: str) -> None:
        """Forget a text on all NameServers; one that is not there is no error."""
        header = headers.DeleteKVConfigHeader(namespace=namespace, key=key)
        self._ask_all_namesrv(RequestCode.DELETE_KV_CONFIG, header)

    # -- topics

    def topics(self) -> list[str]:
        """Names of all topics, the system's included."""
        answer = self._ask_namesrv(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        return sorted(TopicList.decode(bytes(answer.body)).topic_list)

    def system_topics(self) -> set[str]:
        """Names of the topics that the system itself uses, brokers' and clusters' names included."""
        found = TopicList.decode(bytes(self._ask_namesrv(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS).body))
        topics = set(found.topic_list)
        for broker in self.brokers():
            try:
                answer = self.ask(broker.address, RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER)
            except RemotingError:
                continue  # one that does not answer has no topics of its own kind
            topics.update(TopicList.decode(bytes(answer.body)).topic_list)
            break
        return topics

    def route(self, topic: str) -> TopicRoute:
        """Where a topic's queues are. Raises RouteNotFound when no broker has it."""
        header = headers.GetRouteInfoHeader(topic=topic, accept_standard_json_only=True)
        try:
            return TopicRoute.decode(bytes(self._ask_namesrv(RequestCode.GET_ROUTEINFO_BY_TOPIC, header).body))
        except BrokerError as error:
            if error.code != ResponseCode.TOPIC_NOT_EXIST:
                raise
            raise RouteNotFound(
                f"topic {topic} does not exist on any broker of {';'.join(self._servers)}"
            ) from None

    def create_topic(
        self, config: TopicConfig, cluster: str | None = None, *, broker: str | None = None
    ) -> list[Broker]:
        """Create a topic, or change it, on every master or on the one named `broker`; returns those brokers."""
        header = headers.CreateTopicHeader(
            topic=config.topic_name,
            default_topic="TBW102",
            read_queue_nums=config.read_queue_nums,
            write_queue_nums=config.write_queue_nums,
            perm=config.perm,
            topic_filter_type=config.topic_filter_type,
            topic_sys_flag=config.topic_sys_flag,
            order=config.order,
            attributes=",".join(f"+{key}={value}" for key, value in config.attributes.items()),
        )
        masters = [one for one in self._masters(cluster) if broker is None or one.name == broker]
        if not masters:
            raise RocketQError(f"no master named {broker} is registered with {';'.join(self._servers)}")
        for one in masters:
            self.ask(one.address, RequestCode.UPDATE_AND_CREATE_TOPIC, header)
        return masters

    def topic_config(self, address: str, topic: str) -> TopicConfig | None:
        """A topic's settings on a broker; None when it does not have it."""
        header = headers.GetTopicConfigHeader(topic=topic)
        allowed = (ResponseCode.SUCCESS, ResponseCode.TOPIC_NOT_EXIST)
        answer = self.ask(address, RequestCode.GET_TOPIC_CONFIG, header, allowed=allowed)
        return TopicConfig.decode(bytes(answer.body)) if answer.code == ResponseCode.SUCCESS else None

    def change_topic(
        self,
        topic: str,
        change: Callable[[TopicConfig], None],
        cluster: str | None = None,
        *,
        broker: str | None = None,
    ) -> dict[str, TopicConfig]:
        """Change a topic's settings on each master that has it (or the one named `broker`); the new ones by broker.

        Raises RouteNotFound when none has it.
        """
        changed = {}
        for one in self._masters(cluster):
            config = self.topic_config(one.address, topic) if broker in (None, one.name) else None
            if config is not None:
                config.attributes = {}  # those that are not named stay as they are
                change(config)
                changed[one.name] = config
                self.create_topic(config, one.cluster, broker=one.name)
        if not changed:
            raise RouteNotFound(
                f"topic {topic} does not exist on {broker or 'any broker'}; rocketq topic create makes it"
            )
        return changed

    def topic_masters(self, topic: str) -> list[str]:
        """Addresses of the masters that have a topic. Raises RouteNotFound."""
        datas = self.route(topic).broker_datas
        return [data.broker_addrs[MASTER] for data in datas if MASTER in data.broker_addrs]

    def topic_groups(self, topic: str) -> list[str]:
        """The groups that consume a topic or have consumed it."""
        header = headers.QueryTopicConsumeByWhoHeader(topic=topic)
        found: set[str] = set()
        for address in self.topic_masters(topic):
            answer = self.ask(address, RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, header)
            found.update(GroupList.decode(bytes(answer.body)).group_list)
        return sorted(found)

    def recall(self, broker_name: str, topic: str, handle: str) -> str:
        """Take back a message whose time has not come; returns its unique id."""
        header = headers.RecallMessageHeader(topic=topic, recall_handle=handle)
        answer = self.ask(self.broker(broker_name).address, RequestCode.RECALL_MESSAGE, header)
        return answer.header(headers.RecallMessageResponse).msg_id

    def delete_topic(self, topic: str, cluster: str | None = None) -> list[Broker]:
        """Delete a topic with its messages; returns the brokers that were told."""
        brokers = self.brokers(cluster)
        for broker in brokers:
            self.ask(broker.address, RequestCode.DELETE_TOPIC_IN_BROKER, headers.DeleteTopicHeader(topic=topic))
        header = headers.DeleteTopicFromNamesrvHeader(topic=topic, cluster_name=cluster)
        self._ask_all_namesrv(RequestCode.DELETE_TOPIC_IN_NAMESRV, header)
        return brokers

    def topic_status(self, topic: str) -> dict[MessageQueue, TopicOffset]:
        """The ends of every queue. Raises RouteNotFound."""
        table: dict[MessageQueue, TopicOffset] = {}
        header = headers.GetTopicStatsInfoHeader(topic=topic)
        for address in self.topic_masters(topic):
            answer = self.ask(address, RequestCode.GET_TOPIC_STATS_INFO, header)
            table.update(TopicStats.decode(bytes(answer.body)).offset_table)
        return dict(sorted(table.items()))

    # -- consumer groups

    def groups(self, cluster: str | None = None) -> dict[str, SubscriptionGroupConfig]:
        """Settings of all groups by name; of one that several brokers have, the first broker's."""
        found: dict[str, SubscriptionGroupConfig] = {}
        for broker in self._masters(cluster):
            for name, config in self._groups_of(broker.address).items():
                found.setdefault(name, config)
        return dict(sorted(found.items()))

    def _groups_of(self, address: str) -> dict[str, SubscriptionGroupConfig]:
        found: dict[str, SubscriptionGroupConfig] = {}
        version: str | None = None
        while True:
            header = headers.GetAllSubscriptionGroupHeader(
                group_seq=len(found), data_version=version, max_group_num=_GROUP_PAGE
            )
            answer = self.ask(address, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, header)
            body = _json(answer)
            page = body.get("subscriptionGroupTable") or {}
            found.update({name: SubscriptionGroupConfig.from_json(config) for name, config in page.items()})
            total = answer.ext.get("totalGroupNum")
            if total is None or not page or len(found) >= int(total):
                return found
            version = javajson.dumps(body.get("dataVersion", {})).decode()

    def group(self, name: str) -> SubscriptionGroupConfig:
        """Settings of a group. Raises RocketQError when it does not exist (asking for one by name would create it)."""
        config = self.groups().get(name)
        if config is None:
            raise RocketQError(f"group {name} does not exist; rocketq group list shows which do")
        return config

    def create_group(self, config: SubscriptionGroupConfig, cluster: str | None = None) -> list[Broker]:
        """Create a consumer group, or change it; returns the brokers that have it now."""
        masters = self._masters(cluster)
        for broker in masters:
            self.ask(broker.address, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=config.encode())
        return masters

    def change_group(
        self, name: str, change: Callable[[SubscriptionGroupConfig], None], cluster: str | None = None
    ) -> dict[str, SubscriptionGroupConfig]:
        """Change a group's settings on each master that has it; the new ones by broker. Raises RocketQError."""
        changed = {}
        for broker in self._masters(cluster):
            config = self._groups_of(broker.address).get(name)
            if config is not None:
                change(config)
                config.attributes = {}  # those that are not named stay as they are
                self.ask(broker.address, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=config.encode())
                changed[broker.name] = config
        if not changed:
            raise RocketQError(f"group {name} does not exist; rocketq group list shows which do")
        return changed

    def delete_group(self, group: str, cluster: str | None = None, *, offsets: bool = True) -> list[Broker]:
        """Delete a group, its retry and dead-letter topics, and unless `offsets` is false how far it was."""
        masters = self._masters(cluster)
        header = headers.DeleteSubscriptionGroupHeader(group_name=group, clean_offset=offsets)
        for broker in masters:
            self.ask(broker.address, RequestCode.DELETE_SUBSCRIPTIONGROUP, header)
        existing = set(self.topics())
        for topic in (f"%RETRY%{group}", f"%DLQ%{group}"):
            if topic in existing:
                self.delete_topic(topic, cluster)
        return masters

    def group_progress(
        self, group: str, topic: str | None = None, cluster: str | None = None
    ) -> dict[MessageQueue, OffsetWrapper]:
        """How far a group is in every queue that it has consumed, or in those of a topic."""
        table: dict[MessageQueue, OffsetWrapper] = {}
        header = headers.GetConsumeStatsHeader(consumer_group=group, topic=topic)
        for broker in self._masters(cluster):
            try:
                answer = self.ask(broker.address, RequestCode.GET_CONSUME_STATS, header)
            except BrokerError as error:
                if error.code != ResponseCode.TOPIC_NOT_EXIST:
                    raise
                continue  # this broker does not have the topic
            table.update(ConsumeStats.decode(bytes(answer.body)).offset_table)
        return dict(sorted(table.items()))

    def group_members(self, group: str, cluster: str | None = None) -> ConsumerConnection | None:
        """Who is connected, and what the group subscribes to; None when nobody is."""
        found: ConsumerConnection | None = None
        header = headers.GetConsumerConnectionListHeader(consumer_group=group)
        for broker in self._masters(cluster):
            try:
                answer = self.ask(broker.address, RequestCode.GET_CONSUMER_CONNECTION_LIST, header)
            except BrokerError as error:
                if error.code != ResponseCode.CONSUMER_NOT_ONLINE:
                    raise
                continue
            one = ConsumerConnection.decode(bytes(answer.body))
            if found is None:
                found = one
            else:
                known = {member.client_id for member in found.connection_set}
                found.connection_set += [m for m in one.connection_set if m.client_id not in known]
        return found

    def running_info(self, group: str, client_id: str, cluster: str | None = None) -> ConsumerRunningInfo:
        """What a member says about itself, asked through the first master that it is connected to."""
        header = headers.GetConsumerRunningInfoHeader(
            consumer_group=group, client_id=client_id, jstack_enable=False
        )
        failure: RocketQError = RouteNotFound("no master is known")
        for broker in self._masters(cluster):
            try:
                answer = self.ask(broker.address, RequestCode.GET_CONSUMER_RUNNING_INFO, header)
            except (BrokerError, RemotingError) as error:
                failure = error
                continue
            return ConsumerRunningInfo.decode(bytes(answer.body))
        raise failure

    def request_modes(self, group: str, topic: str) -> dict[str, MessageRequestMode | None]:
        """How a group consumes a topic, by the masters that have the topic; None where nothing was set."""
        found: dict[str, MessageRequestMode | None] = {}
        addresses = self.topic_masters(topic)
        for broker in self.brokers():
            if broker.address in addresses:
                answer = _json(self.ask(broker.address, RequestCode.GET_ALL_MESSAGE_REQUEST_MODE))
                value = answer.get("messageRequestModeMap", {}).get(topic, {}).get(group)
                found[broker.name] = MessageRequestMode.from_json(value) if value else None
        return found

    def set_request_mode(self, mode: MessageRequestMode) -> None:
        """Say how a group consumes a topic, on all masters that have the topic. Raises RouteNotFound."""
        for address in self.topic_masters(mode.topic):
            self.ask(address, RequestCode.SET_MESSAGE_REQUEST_MODE, body=mode.encode())

    def is_online(self, address: str, group: str) -> bool:
        """Whether consumers of the group are connected to that broker."""
        header = headers.GetConsumerConnectionListHeader(consumer_group=group)
        allowed = (ResponseCode.SUCCESS, ResponseCode.CONSUMER_NOT_ONLINE)
        answer = self.ask(address, RequestCode.GET_CONSUMER_CONNECTION_LIST, header, allowed=allowed)
        return answer.code == ResponseCode.SUCCESS

    # -- requests

    def _masters(self, cluster: str | None) -> list[Broker]:
        return [broker for broker in self.brokers(cluster) if broker.broker_id == MASTER]

    def ask(
        self,
        address: str,
        code: int,
        header: Header | None = None,
        body: bytes = b"",
        *,
        allowed: Container[int] = (ResponseCode.SUCCESS,),
    ) -> Command:
        """One request, and its answer when that has one of the `allowed` codes. Raises RemotingError, BrokerError."""
        answer = self._client.call(address, code, header, body, timeout=self._timeout)
        if answer.code not in allowed:
            raise BrokerError(answer.code, answer.remark, address)
        return answer

    def _ask_namesrv(self, code: int, header: Header | None = None) -> Command:
        """The answer of the first NameServer that gives one."""
        failure: RemotingError | None = None
        for address in self._servers:
            try:
                return self.ask(address, code, header)
            except RemotingError as error:
                failure = error
        assert failure is not None
        raise failure

    def _ask_all_namesrv(self, code: int, header: Header) -> list[Command]:
        """The answers of all; when one fails the others are asked all the same, then the failure is raised."""
        answers = []
        failure: RemotingError | None = None
        for address in self._servers:
            try:
                answers.append(self.ask(address, code, header))
            except RemotingError as error:
                failure = error
        if failure is not None:
            raise failure
        return answers


def _json(answer: Command) -> dict[str, Any]:
    try:
        value = javajson.loads(bytes(answer.body))
    except ValueError as error:
        raise RocketQError(f"the answer is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
