"""The consumer groups of this broker and their settings, kept in ``config/subscriptionGroup.json``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketq import names
from rocketq.broker.saving import Build
from rocketq.config import BrokerConfig
from rocketq.remoting.bodies import DataVersion, SubscriptionGroupConfig
from rocketq.store.configfile import load_table
from rocketq.store.files import Files

#: Bit of a group's entry in the forbidden table: it may not read the topic.
READ_FORBIDDEN = 4


class Groups:
    """All groups by name. Groups come into being when they are first used, if `autoCreateSubscriptionGroup`."""

    def __init__(
        self,
        config: BrokerConfig,
        path: Path,
        files: Files,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._config = config
        self.path = path
        self._files = files
        self._clock_ms = clock_ms
        self._dirty = False
        self.table: dict[str, SubscriptionGroupConfig] = {}
        #: group -> topic -> bits of what the group may not do there
        self.forbidden: dict[str, dict[str, int]] = {}
        self.data_version = DataVersion(timestamp=clock_ms())

    def load(self) -> None:
        """Read the file and add the groups that every broker has. Raises StoreError when the file is unreadable."""
        load_table(self.path, self._files, self._take)
        missing = [name for name in names.SYSTEM_GROUPS if name not in self.table]
        for name in missing:
            self.table[name] = SubscriptionGroupConfig(group_name=name)
        if missing:
            self._changed()

    def _take(self, saved: dict[str, Any]) -> None:
        for name, value in saved.get("subscriptionGroupTable", {}).items():
            self.table[name] = SubscriptionGroupConfig.from_json(value)
        self.forbidden = _bits(saved.get("forbiddenTable", {}))
        if "dataVersion" in saved:
            self.data_version = DataVersion.from_json(saved["dataVersion"])

    def get(self, group: str, auto_create: bool = True) -> SubscriptionGroupConfig | None:
        """The settings of `group`, created when it is unknown and may be; None otherwise."""
        known = self.table.get(group)
        if known is not None or not auto_create:
            return known
        allowed = self._config.auto_create_subscription_group or group.startswith(names.SYSTEM_GROUP_PREFIX)
        if not allowed or names.check_group(group) is not None:
            return None
        created = self.table[group] = SubscriptionGroupConfig(group_name=group)
        self._changed()
        return created

    def update(self, *groups: SubscriptionGroupConfig) -> None:
        """Create groups, or give them new settings."""
        for group in groups:
            self.table[group.group_name] = group
        self._changed()

    def copy(
        self, groups: list[SubscriptionGroupConfig], forbidden: dict[str, dict[str, int]], version: DataVersion
    ) -> None:
        """Become a master's table, unless this is it already."""
        if version == self.data_version:
            return
        self.table = {group.group_name: group for group in groups}
        self.forbidden = _bits(forbidden)
        self.data_version = version
        self._dirty = True

    def delete(self, group: str) -> bool:
        """Forget the group; False when it was unknown. Its offsets are another table."""
        self.forbidden.pop(group, None)
        if self.table.pop(group, None) is None:
            return False
        self._changed()
        return True

    def may_read(self, group: str, topic: str) -> bool:
        """False when an operator forbade the group to read the topic."""
        return not self.forbidden.get(group, {}).get(topic, 0) & READ_FORBIDDEN

    def forbid(self, group: str, topic: str, forbidden: bool) -> None:
        """Let the group not read the topic, or let it again."""
        topics = self.forbidden.setdefault(group, {})
        bits = topics.get(topic, 0)
        topics[topic] = bits | READ_FORBIDDEN if forbidden else bits & ~READ_FORBIDDEN
        if not topics[topic]:
            del topics[topic]
        if not topics:
            del self.forbidden[group]
        self._changed()

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`."""
        if not self._dirty:
            return None
        self._dirty = False
        version, table = self.data_version, self.table.copy()
        forbidden = {group: topics.copy() for group, topics in self.forbidden.items()}
        return lambda: {
            "dataVersion": version.to_json(),
            "forbiddenTable": forbidden,
            "subscriptionGroupTable": {name: group.to_json() for name, group in table.items()},
        }

    def unsaved(self) -> None:
        self._dirty = True

    def _changed(self) -> None:
        self.data_version = self.data_version.next(self._clock_ms())
        self._dirty = True


def _bits(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """What groups may not do with topics, as it is in JSON."""
    return {group: {topic: int(bits) for topic, bits in topics.items()} for group, topics in table.items()}
