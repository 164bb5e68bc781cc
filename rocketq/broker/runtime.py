"""The broker about itself: its settings and how it is doing (codes 25, 26, 28, 315)."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable

from rocketq import javajson
from rocketq.broker.delay import Delay
from rocketq.broker.statistics import SPANS, Series, Statistics
from rocketq.broker.timer import Timer
from rocketq.config import BrokerConfig, parse_properties
from rocketq.record import decode_record
from rocketq.remoting.bodies import KVTable
from rocketq.remoting.codes import VERSION, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import GetBrokerConfigResponse, ViewBrokerStatsDataHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Settings that a request may not change, because a broker cannot be steered out of its operator's hands.
BLACK_LIST = frozenset({"configBlackList", "brokerConfigPath"})
#: Settings that take effect while the broker runs.
LIVE = frozenset(
    {
        "auto_create_topic_enable",
        "auto_create_subscription_group",
        "broker_permission",
        "clean_file_forcibly_enable",
        "clean_resource_interval",
        "default_query_max_num",
        "default_topic_queue_nums",
        "delete_when",
        "disk_max_used_space_ratio",
        "disk_space_clean_forcibly_ratio",
        "disk_space_warning_level_ratio",
        "file_reserved_time",
        "enable_property_filter",
        "long_polling_enable",
        "max_message_size",
        "max_transfer_bytes_on_message_in_memory",
        "max_transfer_count_on_message_in_memory",
        "notify_consumer_ids_changed_enable",
        "recall_message_enable",
        "region_id",
        "short_polling_time_mills",
        "store_reply_message_enable",
        "sync_flush_timeout",
        "timer_max_delay_sec",
        "timer_roll_window_slot",
        "trace_on",
        "transaction_check_interval",
        "transaction_check_max",
        "transaction_time_out",
        "use_server_side_reset_offset",
        "validate_system_topic_when_update_topic",
    }
)


class Runtime:
    """Serves operators. `on_config` is called with the names of settings that changed."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        delay: Delay,
        timer: Timer,
        statistics: Statistics,
        on_config: Callable[[set[str]], None],
        clock_ms: Callable[[], int],
        booted: int,
    ) -> None:
        self._config = config
        self._store = store
        self._delay = delay
        self._timer = timer
        self._statistics = statistics
        self._on_config = on_config
        self._clock_ms = clock_ms
        self._booted = booted
        self._config_version = {"counter": 0, "stateVersion": 0, "timestamp": booted}

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.UPDATE_BROKER_CONFIG: self._update_config,
            RequestCode.GET_BROKER_CONFIG: self._get_config,
            RequestCode.GET_BROKER_RUNTIME_INFO: self._runtime,
            RequestCode.VIEW_BROKER_STATS_DATA: self._traffic,
        }

    def _update_config(self, connection: Connection, request: Command) -> Reply:
        entries = {key: value for key, value, _ in parse_properties(request.body.decode())}
        if not BLACK_LIST.isdisjoint(entries):
            remark = "Can not update config in black list."
            return encode_response(request, ResponseCode.NO_PERMISSION, remark)
        options = {option.key: option for option in self._config.options()}
        values = {}
        for key, text in entries.items():
            option = options.get(key)
            if option is None:
                log.warning("%s set %s, which is no setting of this broker", connection.peer, key)
                continue
            if option.name not in LIVE:
                remark = f"{key} takes effect only when the broker starts: set it in the broker's file"
                return encode_response(request, ResponseCode.NO_PERMISSION, remark)
            try:
                values[option.name] = option.parse(text)
            except ValueError as error:
                return encode_response(request, ResponseCode.SYSTEM_ERROR, f"{key}: {error}")
        for name, value in values.items():
            setattr(self._config, name, value)
            log.info("%s set %s to %s", connection.peer, name, value)
        if values:
            self._config_version["counter"] += 1
            self._config_version["timestamp"] = self._clock_ms()
            self._on_config(set(values))
        return encode_response(request, ResponseCode.SUCCESS)

    def _get_config(self, connection: Connection, request: Command) -> Reply:
        text = "".join([f"{key}={value}\n" for key, value in self._config.as_properties().items()])
        ext = GetBrokerConfigResponse(version=javajson.dumps(self._config_version).decode())
        return encode_response(request, ResponseCode.SUCCESS, header=ext, body=text.encode())

    def _runtime(self, connection: Connection, request: Command) -> Reply:
        return encode_response(request, ResponseCode.SUCCESS, body=KVTable(self.table()).encode())

    def _traffic(self, connection: Connection, request: Command) -> Reply:
        """Sums and rates of one topic or one group, over a minute, an hour and a day."""
        header = request.header(ViewBrokerStatsDataHeader)
        name, key = header.stats_name, header.stats_key
        series = self._series(name, key)
        if series is None:
            return encode_response(request, ResponseCode.SYSTEM_ERROR, f"The stats <{name}> <{key}> not exist")
        now = time.monotonic()
        body = {}
        for span in sorted(SPANS):
            total, rate, average = series.window(span, now, of_bytes=name.endswith("_SIZE"))
            body[span] = {"avgpt": average, "sum": total, "tps": rate}
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(body))

    def _series(self, name: str, key: str) -> Series | None:
        statistics = self._statistics
        if name in ("TOPIC_PUT_NUMS", "TOPIC_PUT_SIZE"):
            return statistics.topics.get(key)
        topic, _, group = key.partition("@")
        if name in ("GROUP_GET_NUMS", "GROUP_GET_SIZE"):
            return statistics.groups.get((topic, group))
        if name == "SNDBCK_PUT_NUMS":
            return statistics.returned.get((topic, group))
        if key != self._config.broker_cluster_name:
            return None
        return {"BROKER_PUT_NUMS": statistics.stored, "BROKER_GET_NUMS": statistics.handed_out}.get(name)

    def table(self) -> dict[str, str]:
        """The key table of GET_BROKER_RUNTIME_INFO; keys without a meaning here have the value that says so."""
        store, statistics = self._store, self._statistics
        now_ms = self._clock_ms()
        seconds = max(0, now_ms - self._booted) // 1000
        rates = statistics.rates(time.monotonic())
        total = [found + missed for found, missed in zip(rates["found"], rates["missed"], strict=True)]
        log_path = self._config.store_path_commit_log or f"{self._config.store_path_root_dir}/commitlog"
        disk = shutil.disk_usage(self._config.store_path_root_dir)
        ratio = f"{disk.used / disk.total:.2f}"
        oldest = -1
        record = store.record_at(store.min_physical_offset)
        if record is not None:
            oldest = decode_record(record).store_timestamp
        table: dict[str, object] = {
            "bootTimestamp": self._booted,
            "brokerActive": "true",
            "brokerVersion": VERSION,
            "brokerVersionDesc": "V5_4_0",
            "commitLogDirCapacity": f"Total : {_size(disk.total)}, Free : {_size(disk.free)}.",
            "commitLogDiskRatio": ratio,
            f"commitLogDiskRatio_{log_path}": ratio,
            "commitLogMaxOffset": store.written_offset,
            "commitLogMinOffset": store.min_physical_offset,
            "consumeQueueDiskRatio": ratio,
            "dispatchBehindBytes": 0,
            "dispatchMaxBuffer": 0,
            "earliestMessageTimeStamp": oldest,
            "getFoundTps": _rates(rates["found"]),
            "getMessageEntireTimeMax": 0,
            "getMissTps": _rates(rates["missed"]),
            "getTotalTps": _rates(total),
            "getTransferredTps": _rates(rates["transferred"]),
            "msgGetTotalTodayMorning": 0,
            "msgGetTotalTodayNow": statistics.get_messages,
            "msgGetTotalYesterdayMorning": 0,
            "msgPutTotalTodayMorning": 0,
            "msgPutTotalTodayNow": statistics.put_count,
            "msgPutTotalYesterdayMorning": 0,
            "pageCacheLockTimeMills": 0,
            "putLatency99": "0.00",
            "putLatency999": "0.00",
            "putMessageAverageSize": statistics.put_bytes / statistics.put_count if statistics.put_count else 0.0,
            "putMessageDistributeTime": "",
            "putMessageEntireTimeMax": int(statistics.put_slowest * 1000),
            "putMessageFailedTimes": statistics.put_failed,
            "putMessageSizeTotal": statistics.put_bytes,
            "putMessageTimesTotal": statistics.put_count,
            "putTps": _rates(rates["put"]),
            "remainHowManyDataToFlush": _size(store.written_offset - store.durable_offset),
            "remainTransientStoreBufferNumbs": 2**31 - 1,
            "runtime": (
                f"[ {seconds // 86400} days, {seconds // 3600 % 24} hours, {seconds // 60 % 60} minutes, "
                f"{seconds % 60} seconds ]"
            ),
            "startAcceptSendRequestTimeStamp": 0,
            **self._timer.runtime(),
        }
        # there are no queues in front of thread pools here
        for pool in ("send", "pull", "litePull", "query", "ack"):
            table[f"{pool}ThreadPoolQueueSize"] = 0
            table[f"{pool}ThreadPoolQueueCapacity"] = 0
            table[f"{pool}ThreadPoolQueueHeadWaitTimeMills"] = 0
        table["EndTransactionQueueSize"] = 0
        table["EndTransactionThreadPoolQueueCapacity"] = 0
        for level, (offset, end) in self._delay.positions().items():
            table[f"scheduleMessageOffset_{level}"] = f"{offset},{end}"
        return {key: str(value) for key, value in table.items()}


def _rates(values: list[float]) -> str:
    return " ".join([repr(value) for value in values])


def _size(count: float) -> str:
    """Bytes for people: `3.2 KiB`."""
    if count < 1024:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
