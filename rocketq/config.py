"""One typed record per daemon: the single source for file keys, environment, CLI options and the reference page.

A file uses Apache's property names (``brokerName=broker-a``), the environment ``ROCKETQ_`` and the field's name in
capitals (``ROCKETQ_BROKER_NAME``). Later wins: default, file, environment, command line.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from rocketq.errors import ConfigError
from rocketq.names import TRACE_TOPIC

if typing.TYPE_CHECKING:
    from rocketq.remoting.credentials import Credentials
    from rocketq.remoting.tls import TlsConfig
    from rocketq.store.config import StoreConfig

log = logging.getLogger("rocketq.config")

_C = TypeVar("_C", bound="Config")


def _option(
    default: object,
    doc: str,
    *,
    key: str | None = None,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    shown: str | None = None,
) -> Any:
    """A field with its reference text; `key` where the file's name is not the field's in camelCase."""
    metadata = {"doc": doc, "key": key, "unit": unit, "low": low, "high": high, "shown": shown}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@dataclass(frozen=True)
class Option:
    """One setting as the reference page and the loaders see it."""

    name: str
    key: str
    type: Any
    default: Any
    doc: str
    unit: str
    low: float | None
    high: float | None
    shown: str | None

    @property
    def env(self) -> str:
        return "ROCKETQ_" + self.name.upper()

    @property
    def type_name(self) -> str:
        if typing.get_origin(self.type) is Literal:
            return " \\| ".join(f"`{value}`" for value in typing.get_args(self.type))
        return {bool: "true \\| false", int: "integer", float: "number", str: "text"}[_plain(self.type)]

    def parse(self, text: str) -> Any:
        """The value that `text` states. Raises ValueError with what is wrong."""
        kind = self.type
        text = text.strip()
        value: Any = text
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            if text not in choices:
                raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
            return text
        kind = _plain(kind)
        if kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"{text!r} is neither true nor false")
            return text.lower() == "true"
        if kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                raise ValueError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
            self.check(value)
        return value

    def check(self, value: float) -> None:
        if self.low is not None and value < self.low:
            raise ValueError(f"{value} is below {self.low}")
        if self.high is not None and value > self.high:
            raise ValueError(f"{value} is above {self.high}")


def _plain(kind: Any) -> Any:
    """`kind` without its `| None`."""
    if isinstance(kind, types.UnionType):
        return next(part for part in kind.__args__ if part is not type(None))
    return kind


@dataclass(kw_only=True)
class Config:
    """What every daemon has: where it listens, and TLS."""

    bind_address: str = _option("0.0.0.0", "Address to listen on.")
    server_channel_max_idle_time_seconds: int = _option(
        120, "A connection that is silent for this long is closed.", unit="s", low=1
    )
    tls_server_mode: Literal["disabled", "permissive", "enforcing"] = _option(
        "permissive",
        "Whether TLS is refused, offered next to plain text on the same port, or demanded. "
        "Without a certificate it is always refused.",
        key="tls.server.mode",
    )
    tls_server_cert_path: str | None = _option(
        None, "PEM file of the server's certificate chain.", key="tls.server.certPath"
    )
    tls_server_key_path: str | None = _option(None, "PEM file of its private key.", key="tls.server.keyPath")
    tls_server_key_password: str | None = _option(
        None, "Password of the private key, if it has one.", key="tls.server.keyPassword"
    )
    tls_server_trust_cert_path: str | None = _option(
        None, "PEM file of the authorities whose client certificates are accepted.", key="tls.server.trustCertPath"
    )
    tls_server_need_client_auth: Literal["none", "optional", "require"] = _option(
        "none", "Whether clients have to show a certificate.", key="tls.server.need.client.auth"
    )

    @classmethod
    def options(cls) -> list[Option]:
        """All settings in the order of the reference page: the daemon's own first, then the shared ones."""
        hints = typing.get_type_hints(cls)
        shared = {field.name for field in dataclasses.fields(Config)}
        found = []
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in shared):
            meta = field.metadata
            missing = field.default is dataclasses.MISSING
            found.append(
                Option(
                    field.name,
                    meta["key"] or _camel(field.name),
                    hints[field.name],
                    None if missing else field.default,
                    meta["doc"],
                    meta["unit"],
                    meta["low"],
                    meta["high"],
                    meta["shown"],
                )
            )
        return found

    @staticmethod
    def text(value: object) -> str:
        """A value as it stands in a file."""
        if value is None:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)

    def as_properties(self) -> dict[str, str]:
        """Every setting under its file key, as text, sorted by key. Secrets are left out."""
        values = {
            option.key: self.text(getattr(self, option.name))
            for option in self.options()
            if "password" not in option.name and "credentials" not in option.name
        }
        return dict(sorted(values.items()))

    def tls(self) -> TlsConfig | None:
        """The server's TLS settings; None when there is no certificate or TLS is disabled."""
        if self.tls_server_mode == "disabled":
            return None
        if not self.tls_server_cert_path:
            if self.tls_server_mode == "enforcing":
                raise ConfigError("tls.server.mode=enforcing needs tls.server.certPath and tls.server.keyPath")
            return None
        from rocketq.remoting.tls import TlsConfig

        return TlsConfig(
            mode=self.tls_server_mode,
            cert=self.tls_server_cert_path,
            key=self.tls_server_key_path or "",
            key_password=self.tls_server_key_password or "",
            ca=self.tls_server_trust_cert_path or "",
            need_client_auth=self.tls_server_need_client_auth,
        )


@dataclass(kw_only=True)
class NamesrvConfig(Config):
    """Settings of a NameServer."""

    listen_port: int = _option(9876, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    kv_config_path: str = _option(
        lambda: str(Path.home() / "namesrv" / "kvConfig.json"),
        "File that keeps the key-value configuration.",
        shown="~/namesrv/kvConfig.json",
    )
    scan_not_active_broker_interval: int = _option(
        5000, "How often brokers without a heartbeat are looked for.", unit="ms", low=10
    )
    order_message_enable: bool = _option(
        False, "Add the ORDER_TOPIC_CONFIG entry of a topic to its route (for ordered topics of old clients)."
    )
    return_order_topic_config_to_broker: bool = _option(
        True, "Answer a broker's registration with the ORDER_TOPIC_CONFIG entries."
    )
    delete_topic_with_broker_registration: bool = _option(
        False,
        "A registration of several topics takes away those of its broker that it does not mention. Leave it off where "
        "several topics may change at once: brokers, Apache's too, then register these alone, and the others are gone "
        "until the broker starts again. With Apache's NameServer a single changed topic does that already.",
    )
    support_acting_master: bool = _option(
        False, "Where a broker has lost its master, name its first slave as one that can be read from."
    )
    enable_all_topic_list: bool = _option(True, "Answer requests for the list of all topics.")
    enable_topic_list: bool = _option(
        True, "Answer requests for the topics of a cluster, of units and of the system."
    )


@dataclass(kw_only=True)
class BrokerConfig(Config):
    """Settings of a broker and its store."""

    # who it is
    broker_cluster_name: str = _option("DefaultCluster", "Cluster that the broker belongs to.")
    broker_name: str = _option(
        socket.gethostname, "Name of the broker: one name per broker of a cluster.", shown="the host's name"
    )
    broker_id: int = _option(0, "0: master; a slave has a number above 0 of its own.", low=0)
    broker_role: Literal["ASYNC_MASTER", "SYNC_MASTER", "SLAVE"] = _option(
        "ASYNC_MASTER",
        "SLAVE: copy everything from the master of the same brokerName; see replication.md. SYNC_MASTER: answer sends "
        "when `inSyncReplicas` brokers have the message.",
    )
    broker_ip1: str | None = _option(
        None,
        "Address that clients are told to connect to.",
        key="brokerIP1",
        shown="`bindAddress`, or the host's own address when that is 0.0.0.0",
    )
    listen_port: int = _option(
        10911,
        "Port to listen on; 0 takes a free one. The port two below it serves old clients.",
        low=0,
        high=65535,
    )
    # NameServers
    namesrv_addr: str = _option(
        "",
        "NameServers to register with, `host:port;host:port`. The environment's NAMESRV_ADDR is read as well.",
        shown="none",
    )
    register_name_server_period: int = _option(
        30_000, "How often the broker registers with every NameServer.", unit="ms", low=100
    )
    register_broker_timeout_mills: int = _option(
        24_000, "How long a NameServer may take to answer a registration.", unit="ms", low=1
    )
    tls_enable: bool = _option(False, "Use TLS towards the NameServers.", key="tls.enable")
    tls_client_cert_path: str | None = _option(
        None, "PEM file of the certificate that NameServers are shown.", key="tls.client.certPath"
    )
    tls_client_key_path: str | None = _option(None, "PEM file of its private key.", key="tls.client.keyPath")
    tls_client_key_password: str | None = _option(
        None, "Password of that key, if it has one.", key="tls.client.keyPassword"
    )
    tls_client_auth_server: bool = _option(
        False, "Check the certificates of the NameServers.", key="tls.client.authServer"
    )
    tls_client_trust_cert_path: str | None = _option(
        None, "PEM file of the authorities that signed them.", key="tls.client.trustCertPath"
    )
    # who may come in
    acl_enable: bool = _option(
        False, "Serve signed requests only, within the permissions of the accounts in `aclFile`; see security.md."
    )
    acl_file: str | None = _option(
        None,
        "File of accounts, in the form of Apache's `plain_acl.yml`; read again when it changes.",
        shown="`config/plain_acl.yml` in `storePathRootDir`",
    )
    inner_client_authentication_credentials: str | None = _option(
        None,
        'The account that this broker signs its own requests for, as a slave those to its master: `{"accessKey":"…",'
        '"secretKey":"…"}`. The master asks for an admin account. Not shown to anybody.',
        shown="none, nothing is signed",
    )
    # replication
    ha_listen_port: int | None = _option(
        None,
        "Port on which a master gives its CommitLog to slaves; 0 takes a free one.",
        low=0,
        high=65535,
        shown="`listenPort` + 1; none with `aclEnable` or where TLS is demanded",
    )
    ha_master_address: str | None = _option(
        None,
        "On a slave: where the master gives its CommitLog, `host:port`.",
        shown="what the NameServer says",
    )
    in_sync_replicas: int = _option(
        1,
        "With SYNC_MASTER: how many brokers have to have a message before its send is answered, the master counts; "
        "so it is 2 for one slave. With 1 nothing waits, as in Apache's 5.x.",
        low=1,
    )
    slave_timeout: int = _option(
        3000,
        "With SYNC_MASTER: how long a producer waits for slaves at most; then it is told FLUSH_SLAVE_TIMEOUT.",
        unit="ms",
        low=1,
    )
    ha_max_gap_not_in_sync: int = _option(
        268_435_456, "A slave that is further behind than this does not count as in sync.", unit="bytes", low=1
    )
    ha_transfer_batch_size: int = _option(
        32_768,
        "At most this much of the CommitLog is sent to a slave in one piece.",
        unit="bytes",
        low=1024,
        high=4_000_000,
    )
    ha_send_heartbeat_interval: int = _option(
        5000, "Master and slave send each other something at least so often.", unit="ms", low=10
    )
    ha_housekeeping_interval: int = _option(
        20_000,
        "Without hearing from the other for so long, master and slave close the connection.",
        unit="ms",
        low=10,
    )
    slave_read_enable: bool = _option(
        False,
        "On a slave: let consumers read from it. On a master: send consumers that are far behind to the slave.",
    )
    access_message_in_memory_max_ratio: int = _option(
        40,
        "A consumer that is further behind than this share of the machine's memory is sent to the slave.",
        unit="%",
        low=0,
        high=100,
    )
    # topics, groups, clients
    auto_create_topic_enable: bool = _option(True, "Create a topic when something is first sent to it.")
    auto_create_subscription_group: bool = _option(True, "Create a consumer group when its first member arrives.")
    default_topic_queue_nums: int = _option(
        8, "At most this many queues for a topic that is created by a send.", low=1
    )
    broker_permission: int = _option(
        6, "What the broker allows: 6 all, 4 reads only, 2 writes only.", low=0, high=7
    )
    validate_system_topic_when_update_topic: bool = _option(
        True, "Refuse to create, change or delete the topics that the system itself uses."
    )
    notify_consumer_ids_changed_enable: bool = _option(
        True, "Tell the members of a group at once when one joins or leaves."
    )
    channel_expired_timeout: int = _option(
        120_000, "A client without heartbeat for this long is taken out of its groups.", unit="ms", low=100
    )
    rebalance_lock_max_live_time: int = _option(
        60_000,
        "A queue that an ordered consumer has locked is free again when the lock was not renewed for this long. "
        "Clients stop working on a queue 30 s after they last heard that it is theirs, so not below that.",
        key="rocketmq.broker.rebalance.lockMaxLiveTime",
        unit="ms",
        low=1,
    )
    flush_consumer_offset_interval: int = _option(
        5000, "How often consumer offsets are written to disk.", unit="ms", low=10
    )
    # messages
    max_message_size: int = _option(
        4_194_304, "Largest body that is accepted.", unit="bytes", low=1, high=16_000_000
    )
    enable_property_filter: bool = _option(
        True,
        "Let consumers filter by SQL92 expressions over properties; Apache's default is false.",
    )
    trace_topic_enable: bool = _option(
        False,
        "Have the topic for traces from the start; else the first client that traces creates it as any other.",
    )
    msg_trace_topic_name: str = _option(TRACE_TOPIC, "The topic that traceTopicEnable=true makes.")
    store_reply_message_enable: bool = _option(
        True, "Store replies to requests in <cluster>_REPLY_TOPIC, besides handing them to whoever asked."
    )
    long_polling_enable: bool = _option(
        True, "Hold a pull that finds nothing until something arrives, for as long as the client allows."
    )
    short_polling_time_mills: int = _option(
        1000, "How long a pull is held when longPollingEnable=false.", unit="ms", low=1
    )
    max_transfer_count_on_message_in_memory: int = _option(
        32, "At most this many messages in the answer to a pull.", low=1
    )
    max_transfer_bytes_on_message_in_memory: int = _option(
        262_144,
        "At most this many bytes in the answer to a pull that has more than one message.",
        unit="bytes",
        low=1,
    )
    default_query_max_num: int = _option(32, "At most this many messages for a query by unique id.", low=1)
    message_delay_level: str = _option(
        "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h", "The delay levels 1, 2, …; units s m h d."
    )
    pop_polling_size: int = _option(
        1024,
        "Pops of one group, topic, queue and filter that may wait for messages; more are answered at once.",
        low=1,
    )
    max_pop_polling_size: int = _option(100_000, "Pops that may wait in all.", low=1)
    max_pop_check_points: int = _option(
        1_000_000,
        "Pops that may hold messages at a time, in all: about 0.5 KB each. Beyond that nothing is given out.",
        low=1,
    )
    pop_from_retry_probability: int = _option(
        20, "In how many of 100 pops the retry topic is looked into before the topic itself.", low=0, high=100
    )
    default_message_request_mode: Literal["PULL", "POP"] = _option(
        "PULL", "How groups consume that let the broker decide, when nothing was set for them."
    )
    default_pop_share_queue_num: int = _option(
        -1, "Of how many other members a POP member consumes the queues too; -1: of all."
    )
    timer_wheel_enable: bool = _option(True, "Accept and deliver timer messages, which name a time of their own.")
    timer_max_delay_sec: int = _option(
        0, "Timer messages that are due later than this are refused; 0: there is no limit.", unit="s", low=0
    )
    timer_roll_window_slot: int = _option(
        172_800,
        "Timer messages that are due later than this are stored anew within that time, sooner when fileReservedTime "
        "is shorter.",
        unit="s",
        low=2,
        high=604_740,
    )
    recall_message_enable: bool = _option(True, "Let producers take timer messages back that are not yet due.")
    transaction_time_out: int = _option(
        6000,
        "A producer is asked about a transactional message that it has neither committed nor rolled back for so long.",
        unit="ms",
        low=0,
    )
    transaction_check_interval: int = _option(
        30_000, "How often producers are asked about such messages.", unit="ms", low=10
    )
    transaction_check_max: int = _option(
        15,
        "A transactional message that its producers were asked about so often and in vain goes to "
        "TRANS_CHECK_MAX_TIME_TOPIC.",
        low=1,
    )
    use_server_side_reset_offset: bool = _option(
        True,
        "Tell a group that was moved with its next pull; otherwise its connected consumers are asked to move.",
    )
    trace_on: bool = _option(True, "Tell producers that they may trace their messages.")
    region_id: str = _option("DefaultRegion", "Region written into every message.")
    # store
    store_path_root_dir: str = _option(lambda: str(Path.home() / "store"), "Data directory.", shown="~/store")
    store_path_commit_log: str | None = _option(
        None, "Directory of the CommitLog.", shown="`commitlog` in the data directory"
    )
    mapped_file_size_commit_log: int = _option(1 << 30, "Size of a CommitLog file.", unit="bytes", low=1024)
    mapped_file_size_consume_queue: int = _option(
        6_000_000, "Size of a ConsumeQueue file, 20 bytes a message.", unit="bytes", low=20
    )
    mapped_file_size_timer_log: int = _option(
        104_857_600, "Size of a file of the timer log, 52 bytes a message.", unit="bytes", low=1024
    )
    flush_disk_type: Literal["ASYNC_FLUSH", "SYNC_FLUSH"] = _option(
        "ASYNC_FLUSH",
        "ASYNC_FLUSH: acknowledged when written, on disk within flushIntervalCommitLog. "
        "SYNC_FLUSH: acknowledged when on disk.",
    )
    sync_flush_timeout: int = _option(
        5000, "With SYNC_FLUSH: how long a producer waits for the disk at most.", unit="ms", low=1
    )
    send_thread_pool_queue_capacity: int = _option(
        10_000,
        "So many sends may wait for the disk or for slaves; while there are more, sends are answered SYSTEM_BUSY.",
        low=1,
    )
    os_page_cache_busy_time_out_mills: int = _option(
        1000,
        "After a write to the CommitLog that took the system longer than this, sends are answered SYSTEM_BUSY until "
        "all that is written is on disk.",
        unit="ms",
        low=1,
    )
    flush_interval_commit_log: int = _option(500, "How often the CommitLog is forced to disk.", unit="ms", low=1)
    message_index_enable: bool = _option(True, "Keep the index that finds messages by key and id.")
    max_hash_slot_num: int = _option(5_000_000, "Hash slots of an index file.", low=1)
    max_index_num: int = _option(20_000_000, "Entries of an index file.", low=2)
    check_crc_on_recover: bool = _option(True, "Check bodies after an unclean stop.", key="checkCRCOnRecover")
    file_reserved_time: int = _option(
        72, "Messages are kept for at least this long, unless the disk gets full.", unit="h", low=0
    )
    delete_when: str = _option(
        "04", "Hours of the day, `04` or `04;16` in local time, in which expired files are removed."
    )
    clean_resource_interval: int = _option(
        10_000, "How often is looked for files that may be removed.", unit="ms", low=10
    )
    disk_max_used_space_ratio: int = _option(
        75,
        "From this use of the disk on, expired files are removed at any hour, with a warning.",
        unit="%",
        low=10,
        high=99,
    )
    disk_space_clean_forcibly_ratio: int = _option(
        85,
        "From this use of the disk on, the oldest files are removed, expired or not.",
        unit="%",
        low=10,
        high=100,
    )
    clean_file_forcibly_enable: bool = _option(
        True, "Remove files that are not expired when the disk is past diskSpaceCleanForciblyRatio."
    )
    disk_space_warning_level_ratio: int = _option(
        90, "From this use of the disk on, writes are refused.", unit="%", low=10, high=100
    )

    @property
    def namesrv_addresses(self) -> list[str]:
        return parse_addresses(self.namesrv_addr)

    @property
    def is_slave(self) -> bool:
        return self.broker_role == "SLAVE"

    def check_role(self) -> None:
        """Raises ConfigError when brokerRole and brokerId, or the way to the master, do not fit."""
        if self.is_slave and not self.broker_id:
            raise ConfigError("brokerRole=SLAVE needs a brokerId above 0: 0 is the master's")
        if self.broker_id and not self.is_slave:
            raise ConfigError(f"brokerId={self.broker_id} is a slave's and needs brokerRole=SLAVE; a master has 0")
        if self.ha_master_address and len(parse_addresses(self.ha_master_address)) != 1:
            raise ConfigError(f"haMasterAddress={self.ha_master_address} is not one address")
        if self.is_slave and not self.ha_master_address and not self.namesrv_addr:
            raise ConfigError("a slave finds its master through namesrvAddr or haMasterAddress: set one of them")

    @property
    def host(self) -> str:
        """The address that clients are told."""
        if self.broker_ip1:
            return self.broker_ip1
        if self.bind_address not in ("", "0.0.0.0", "::"):
            return self.bind_address
        return local_address()

    def credentials(self) -> Credentials | None:
        """The account that requests of this broker are signed for. Raises ConfigError when it cannot be read."""
        text = self.inner_client_authentication_credentials
        if not text:
            return None
        from rocketq.remoting.credentials import Credentials

        try:
            value = msgspec.json.decode(text, type=dict[str, str])
            return Credentials(value["accessKey"], value["secretKey"])
        except (msgspec.MsgspecError, KeyError):  # whose text would show the secret
            raise ConfigError(
                'innerClientAuthenticationCredentials is not of the form {"accessKey":"…","secretKey":"…"}'
            ) from None

    def client_tls(self) -> TlsConfig | None:
        """TLS towards the NameServers; None when it is off."""
        if not self.tls_enable:
            return None
        from rocketq.remoting.tls import TlsConfig

        return TlsConfig(
            cert=self.tls_client_cert_path or "",
            key=self.tls_client_key_path or "",
            key_password=self.tls_client_key_password or "",
            ca=self.tls_client_trust_cert_path or "",
            verify_server=self.tls_client_auth_server,
        )

    def store(self) -> StoreConfig:
        """The store's part of the settings."""
        from rocketq.store.config import StoreConfig

        names = [field.name for field in dataclasses.fields(StoreConfig)]
        return StoreConfig(**{name: getattr(self, name) for name in names})


def parse_addresses(text: str) -> list[str]:
    """The addresses of a list like `host:port;host:port`. Raises ConfigError."""
    found = []
    for part in text.replace(",", ";").split(";"):
        address = part.strip()
        if not address:
            continue
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{address!r} is not an address of the form host:port")
        if address not in found:
            found.append(address)
    return found


def local_address() -> str:
    """This host's own IPv4 address, as its route to the world has it; 127.0.0.1 without one. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def load(
    kind: type[_C],
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] = os.environ,
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> _C:
    """The settings of a daemon from a properties file, the environment and `overrides` (field: value).

    `defaults` take the place of the record's own; a None in `overrides` means not given.
    Keys that the daemon does not have are reported by one warning each. Raises ConfigError naming file, line and
    key, or the variable.
    """
    options = kind.options()
    by_key = {option.key: option for option in options}
    values: dict[str, Any] = dict(defaults or {})
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
        for key, value, line in parse_properties(text):
            option = by_key.get(key)
            if option is None:
                log.warning("%s line %d: %s is not supported and has no effect", path, line, key)
                continue
            try:
                values[option.name] = option.parse(value)
            except ValueError as error:
                raise ConfigError(f"{path} line {line}: {key}: {error}") from None
    if "NAMESRV_ADDR" in env and "namesrvAddr" in by_key:
        values["namesrv_addr"] = env["NAMESRV_ADDR"]
    for option in options:
        if option.env in env:
            try:
                values[option.name] = option.parse(env[option.env])
            except ValueError as error:
                raise ConfigError(f"environment variable {option.env}: {error}") from None
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    config = kind(**{**values, **given})
    if isinstance(config, BrokerConfig):
        parse_addresses(config.namesrv_addr)
    return config


def parse_settings(kind: type[Config], settings: Iterable[str]) -> dict[str, Any]:
    """Fields from texts like `brokerName=broker-a`. Raises ConfigError."""
    by_key = {option.key: option for option in kind.options()}
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        option = by_key.get(key.strip())
        if option is None or not equals:
            raise ConfigError(f"{setting!r}: expected KEY=VALUE with a key of docs/configuration.md")
        try:
            found[option.name] = option.parse(value)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None
    return found


_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse_properties(text: str) -> list[tuple[str, str, int]]:
    """(key, value, line number) of every entry of a Java properties text, as `Properties.load` reads it."""
    entries = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        number = index + 1
        line = lines[index].lstrip(" \t\f")
        index += 1
        if not line or line[0] in "#!":
            continue
        while (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1]
            if index == len(lines):
                break
            line += lines[index].lstrip(" \t\f")
            index += 1
        end = 0
        while end < len(line) and line[end] not in "=: \t\f":
            end += 2 if line[end] == "\\" else 1
        rest = line[end:].lstrip(" \t\f")
        if rest[:1] in ("=", ":"):
            rest = rest[1:].lstrip(" \t\f")
        entries.append((_unescape(line[:end]), _unescape(rest), number))
    return entries


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    out = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char != "\\":
            out.append(char)
            continue
        char = text[position : position + 1]
        position += 1
        digits = text[position : position + 4]
        if char == "u" and len(digits) == 4 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            out.append(chr(int(digits, 16)))
            position += 4
        else:
            out.append(_ESCAPES.get(char, char))
    return "".join(out)
