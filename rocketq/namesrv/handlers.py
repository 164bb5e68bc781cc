"""The requests that a NameServer answers, one method each, with Apache's codes and texts."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from rocketq import javajson
from rocketq.config import NamesrvConfig, parse_properties
from rocketq.namesrv.kv import ORDER_TOPIC_CONFIG, KVConfig
from rocketq.namesrv.table import UNIT, UNIT_SUBSCRIPTION, Registration, RouteTable
from rocketq.remoting import headers
from rocketq.remoting.bodies import (
    BrokerMemberGroup,
    DataVersion,
    KVTable,
    RegisterBrokerBody,
    TopicList,
    TopicRoute,
)
from rocketq.remoting.codes import FAQ, VERSION_STANDARD_JSON, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header, encode_response

if TYPE_CHECKING:
    from rocketq.remoting.server import Connection, Handler, Reply

log = logging.getLogger("rocketq.namesrv")

_UNSET = "not set any response code"
_FIXED = frozenset({"configBlackList", "configStorePath", "kvConfigPath", "rocketmqHome"})
#: What can be changed while the NameServer runs.
_LIVE = frozenset(
    {
        "scan_not_active_broker_interval",
        "order_message_enable",
        "return_order_topic_config_to_broker",
        "enable_all_topic_list",
        "enable_topic_list",
        "support_acting_master",
    }
)


def _success(request: Command, body: bytes = b"", header: Header | None = None) -> bytes:
    return encode_response(request, ResponseCode.SUCCESS, header=header, body=body)


class Requests:
    """Answers requests from the table and the key-value configuration. `clock_ms` never goes back."""

    def __init__(
        self, config: NamesrvConfig, table: RouteTable, kv: KVConfig, clock_ms: Callable[[], int]
    ) -> None:
        self._config = config
        self._table = table
        self._kv = kv
        self._clock_ms = clock_ms
        self.handlers: dict[int, Handler] = {
            RequestCode.REGISTER_BROKER: self._register_broker,
            RequestCode.UNREGISTER_BROKER: self._unregister_broker,
            RequestCode.QUERY_DATA_VERSION: self._query_data_version,
            RequestCode.BROKER_HEARTBEAT: self._heartbeat,
            RequestCode.GET_BROKER_MEMBER_GROUP: self._members,
            RequestCode.GET_ROUTEINFO_BY_TOPIC: self._route,
            RequestCode.GET_BROKER_CLUSTER_INFO: self._cluster_info,
            RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: self._all_topics,
            RequestCode.GET_TOPICS_BY_CLUSTER: self._topics_of_cluster,
            RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS: self._system_topics,
            RequestCode.GET_UNIT_TOPIC_LIST: self._unit_topics,
            RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST: self._unit_topics,
            RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST: self._unit_topics,
            RequestCode.DELETE_TOPIC_IN_NAMESRV: self._delete_topic,
            RequestCode.REGISTER_TOPIC_IN_NAMESRV: self._register_topic,
            RequestCode.WIPE_WRITE_PERM_OF_BROKER: self._wipe_write,
            RequestCode.ADD_WRITE_PERM_OF_BROKER: self._add_write,
            RequestCode.PUT_KV_CONFIG: self._put_kv,
            RequestCode.GET_KV_CONFIG: self._get_kv,
            RequestCode.DELETE_KV_CONFIG: self._delete_kv,
            RequestCode.GET_KVLIST_BY_NAMESPACE: self._kv_namespace,
            RequestCode.UPDATE_NAMESRV_CONFIG: self._update_config,
            RequestCode.GET_NAMESRV_CONFIG: self._get_config,
        }

    def handle(self, connection: Connection, request: Command) -> Reply | Awaitable[Reply]:
        handler = self.handlers.get(request.code)
        if handler is None:
            return encode_response(
                request,
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                f" request type {request.code} not supported",
            )
        return handler(connection, request)

    def end_batch(self, connection: Connection) -> None:
        """Nothing is collected over a batch."""

    def connection_lost(self, connection: Connection) -> None:
        for address in self._table.owner_lost(connection):
            log.warning("the connection of broker %s is gone, it is taken out of the routes", address)

    # -- brokers

    def _register_broker(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.RegisterBrokerHeader)
        if header.body_crc32 and zlib.crc32(request.body) & 0x7FFFFFFF != header.body_crc32:
            log.warning("registration of %s from %s: checksum differs", header.broker_name, connection.peer)
            return encode_response(
                request, ResponseCode.SYSTEM_ERROR, "crc32 not match", headers.RegisterBrokerResponse()
            )
        if request.body:
            body = RegisterBrokerBody.decode(request.body, compressed=header.compressed, version=request.version)
        else:
            body = RegisterBrokerBody()
        master = self._table.register(
            self._clock_ms(),
            Registration(
                cluster=header.cluster_name,
                name=header.broker_name,
                address=header.broker_addr,
                broker_id=header.broker_id,
                ha_address=header.ha_server_addr,
                version=body.data_version,
                topics=body.topic_config_table,
                timeout=header.heartbeat_timeout_millis,
                acting_master=header.enable_acting_master,
                zone=header.zone_name,
            ),
            connection,
        )
        if master is None:
            return encode_response(
                request, ResponseCode.SYSTEM_ERROR, "register broker failed", headers.RegisterBrokerResponse()
            )
        order = (
            self._kv.namespace(ORDER_TOPIC_CONFIG) if self._config.return_order_topic_config_to_broker else None
        )
        return _success(
            request,
            b"" if order is None else KVTable(order).encode(),
            headers.RegisterBrokerResponse(ha_server_addr=master.ha_address, master_addr=master.address),
        )

    def _unregister_broker(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.UnRegisterBrokerHeader)
        self._table.unregister(header.cluster_name, header.broker_name, header.broker_addr)
        return _success(request)

    def _query_data_version(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.QueryDataVersionHeader)
        theirs = DataVersion.decode(request.body)
        ours = self._table.version(header.cluster_name, header.broker_addr)
        self._table.heartbeat(self._clock_ms(), header.cluster_name, header.broker_addr)
        return _success(
            request,
            b"" if ours is None else ours.encode(),
            headers.QueryDataVersionResponse(changed=ours != theirs),
        )

    def _heartbeat(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.BrokerHeartbeatHeader)
        self._table.heartbeat(self._clock_ms(), header.cluster_name, header.broker_addr)
        return _success(request)

    def _members(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.GetBrokerMemberGroupHeader)
        group = BrokerMemberGroup(header.cluster_name, header.broker_name, self._table.members(header.broker_name))
        return encode_response(
            request, ResponseCode.SUCCESS, _UNSET, body=javajson.dumps({"brokerMemberGroup": group.to_json()})
        )

    def _wipe_write(self, connection: Connection, request: Command) -> bytes:
        name = request.header(headers.WipeWritePermOfBrokerHeader).broker_name
        count = self._table.wipe_write(name)
        log.info("%s takes the write permission of broker %s away: %d topics", connection.peer, name, count)
        return _success(request, header=headers.WipeWritePermOfBrokerResponse(wipe_topic_count=count))

    def _add_write(self, connection: Connection, request: Command) -> bytes:
        name = request.header(headers.AddWritePermOfBrokerHeader).broker_name
        count = self._table.add_write(name)
        log.info("%s gives broker %s write permission: %d topics", connection.peer, name, count)
        return _success(request, header=headers.AddWritePermOfBrokerResponse(add_topic_count=count))

    # -- routes and topics

    def _route(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.GetRouteInfoHeader)
        route = self._table.route(header.topic, acting_master=self._config.support_acting_master)
        if route is None:
            return encode_response(
                request,
                ResponseCode.TOPIC_NOT_EXIST,
                f"No topic route info in name server for the topic: {header.topic}\n{FAQ}",
            )
        if self._config.order_message_enable:
            order = self._kv.get(ORDER_TOPIC_CONFIG, header.topic)
            route = TopicRoute(route.broker_datas, route.queue_datas, order)
        standard = request.version >= VERSION_STANDARD_JSON or bool(header.accept_standard_json_only)
        return _success(request, route.encode(standard))

    def _cluster_info(self, connection: Connection, request: Command) -> bytes:
        return _success(request, self._table.cluster_info().encode())

    def _all_topics(self, connection: Connection, request: Command) -> bytes:
        return self._topic_list(request, self._table.topics(), allowed=self._config.enable_all_topic_list)

    def _topics_of_cluster(self, connection: Connection, request: Command) -> bytes:
        cluster = request.header(headers.GetTopicsByClusterHeader).cluster
        return self._topic_list(
            request, self._table.topics_of_cluster(cluster), allowed=self._config.enable_topic_list
        )

    def _system_topics(self, connection: Connection, request: Command) -> bytes:
        topics, address = self._table.system_topics()
        return _success(request, TopicList(topic_list=topics, broker_addr=address).encode())

    def _unit_topics(self, connection: Connection, request: Command) -> bytes:
        if request.code == RequestCode.GET_UNIT_TOPIC_LIST:
            topics = self._table.unit_topics(UNIT)
        elif request.code == RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST:
            topics = self._table.unit_topics(UNIT_SUBSCRIPTION)
        else:
            topics = self._table.unit_topics(UNIT_SUBSCRIPTION, UNIT)
        return self._topic_list(request, topics, allowed=self._config.enable_topic_list)

    @staticmethod
    def _topic_list(request: Command, topics: list[str], *, allowed: bool) -> bytes:
        if not allowed:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, "disable")
        return _success(request, TopicList(topic_list=topics).encode())

    def _delete_topic(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.DeleteTopicFromNamesrvHeader)
        self._table.delete_topic(header.topic, header.cluster_name)
        return _success(request)

    def _register_topic(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.RegisterTopicHeader)
        self._table.register_topic(header.topic, TopicRoute.decode(request.body).queue_datas)
        return _success(request)

    # -- configuration

    async def _put_kv(self, connection: Connection, request: Command) -> Reply:
        header = request.header(headers.PutKVConfigHeader)
        await self._kv.put(header.namespace, header.key, header.value)
        return _success(request)

    def _get_kv(self, connection: Connection, request: Command) -> bytes:
        header = request.header(headers.GetKVConfigHeader)
        value = self._kv.get(header.namespace, header.key)
        if value is None:
            return encode_response(
                request,
                ResponseCode.QUERY_NOT_FOUND,
                f"No config item, Namespace: {header.namespace} Key: {header.key}",
                headers.GetKVConfigResponse(),
            )
        return _success(request, header=headers.GetKVConfigResponse(value=value))

    async def _delete_kv(self, connection: Connection, request: Command) -> Reply:
        header = request.header(headers.DeleteKVConfigHeader)
        await self._kv.delete(header.namespace, header.key)
        return _success(request)

    def _kv_namespace(self, connection: Connection, request: Command) -> bytes:
        namespace = request.header(headers.GetKVListByNamespaceHeader).namespace
        table = self._kv.namespace(namespace)
        if table is None:
            return encode_response(
                request, ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {namespace}"
            )
        return _success(request, KVTable(table=table).encode())

    def _update_config(self, connection: Connection, request: Command) -> bytes:
        """Apply settings while running, until the next start; keys that we do not have are passed over."""
        entries = parse_properties(request.body.decode())
        if any(key in _FIXED for key, _, _ in entries):
            return encode_response(request, ResponseCode.NO_PERMISSION, "Can not update config in black list.")
        options = {option.key: option for option in NamesrvConfig.options()}
        changes: dict[str, Any] = {}
        for key, value, _ in entries:
            option = options.get(key)
            if option is None:
                continue
            if option.name not in _LIVE:
                return encode_response(request, ResponseCode.INVALID_PARAMETER, f"{key} can only be set at start")
            try:
                changes[option.name] = option.parse(value)
            except ValueError as error:
                return encode_response(request, ResponseCode.INVALID_PARAMETER, f"{key}: {error}")
        for name, value in changes.items():
            log.info("%s sets %s to %s", connection.peer, name, value)
            setattr(self._config, name, value)
        return _success(request)

    def _get_config(self, connection: Connection, request: Command) -> bytes:
        text = "".join(f"{key}={value}\n" for key, value in self._config.as_properties().items())
        return _success(request, text.encode())
