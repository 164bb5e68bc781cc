"""The settings of a store; names are Apache's properties in snake_case (`MessageStoreConfig`)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rocketq.errors import ConfigError

_UNITS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How a :class:`~rocketq.store.MessageStore` keeps its data. Sizes are bytes, intervals ms, ratios percent.

    `rocketq.config.BrokerConfig` documents every field for users. Raises ConfigError.
    """

    store_path_root_dir: str
    #: default: `commitlog` in the root directory
    store_path_commit_log: str | None = None
    mapped_file_size_commit_log: int = 1 << 30
    #: rounded up to whole entries of 20 bytes, as Apache does
    mapped_file_size_consume_queue: int = 6_000_000
    #: ASYNC_FLUSH or SYNC_FLUSH
    flush_disk_type: str = "ASYNC_FLUSH"
    flush_interval_commit_log: int = 500
    message_index_enable: bool = True
    max_hash_slot_num: int = 5_000_000
    max_index_num: int = 20_000_000
    check_crc_on_recover: bool = True
    #: needed to rebuild the ConsumeQueue of delayed messages
    message_delay_level: str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
    #: hours
    file_reserved_time: int = 72
    #: hours of the day, local time, "04" or "04;16"
    delete_when: str = "04"
    clean_resource_interval: int = 10_000
    clean_file_forcibly_enable: bool = True
    disk_max_used_space_ratio: int = 75
    disk_space_clean_forcibly_ratio: int = 85
    disk_space_warning_level_ratio: int = 90

    def __post_init__(self) -> None:
        if self.flush_disk_type not in ("ASYNC_FLUSH", "SYNC_FLUSH"):
            raise ConfigError(f"flushDiskType is {self.flush_disk_type!r}, not ASYNC_FLUSH or SYNC_FLUSH")
        if "," in self.commit_log_directory:
            raise ConfigError(f"storePathCommitLog={self.commit_log_directory}: only one directory is supported")
        self.delete_hours()
        whole = -(-self.mapped_file_size_consume_queue // 20) * 20
        object.__setattr__(self, "mapped_file_size_consume_queue", whole)

    @property
    def commit_log_directory(self) -> str:
        return self.store_path_commit_log or os.path.join(self.store_path_root_dir, "commitlog")

    @property
    def sync_flush(self) -> bool:
        return self.flush_disk_type == "SYNC_FLUSH"

    def delete_hours(self) -> list[int]:
        """The hours of the day at which expired files are removed. Raises ConfigError."""
        hours = [part.strip() for part in self.delete_when.split(";") if part.strip()]
        if any(not (hour.isdecimal() and int(hour) < 24) for hour in hours):
            raise ConfigError(f"deleteWhen is {self.delete_when!r}, not hours of the day like 04 or 04;16")
        return [int(hour) for hour in hours]

    def delay_levels(self) -> list[int]:
        """The delay in ms of the levels 1, 2, …. Raises ConfigError."""
        levels = []
        for text in self.message_delay_level.split():
            number, unit = text[:-1], text[-1]
            if unit not in _UNITS or not number.isdecimal() or int(number) == 0:
                raise ConfigError(f"messageDelayLevel: {text!r} is not a number followed by s, m, h or d")
            levels.append(int(number) * _UNITS[unit])
        if not levels:
            raise ConfigError("messageDelayLevel names no level")
        return levels
