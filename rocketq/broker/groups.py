"""The consumer groups of this broker and their settings, kept in ``config/subscriptionGroup.json``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from rocketq import names
from rocketq.broker.topics import SAVE_PAUSE
from rocketq.config import BrokerConfig
from rocketq.errors import StoreError
from rocketq.remoting.bodies import DataVersion, SubscriptionGroupConfig
from rocketq.store.configfile import load_json, save_json
from rocketq.store.files import Files

log = logging.getLogger("rocketq.broker")

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
        self._path = path
        self._files = files
        self._clock_ms = clock_ms
        self._dirty = False
        self._next_save = 0.0
        self.table: dict[str, SubscriptionGroupConfig] = {}
        #: group -> topic -> bits of what the group may not do there
        self.forbidden: dict[str, dict[str, int]] = {}
        self.data_version = DataVersion(timestamp=clock_ms())

    def load(self) -> None:
        """Read the file and add the groups that every broker has. Raises StoreError when the file is unreadable."""
        saved = load_json(self._path, self._files)
        if saved:
            for name, value in saved.get("subscriptionGroupTable", {}).items():
                self.table[name] = SubscriptionGroupConfig.from_json(value)
            self.forbidden = {
                group: {topic: int(bits) for topic, bits in topics.items()}
                for group, topics in saved.get("forbiddenTable", {}).items()
            }
            if "dataVersion" in saved:
                self.data_version = DataVersion.from_json(saved["dataVersion"])
        missing = [name for name in names.SYSTEM_GROUPS if name not in self.table]
        for name in missing:
            self.table[name] = SubscriptionGroupConfig(group_name=name)
        if missing:
            self._changed()

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

    def forbid_reading(self, group: str, topic: str, forbidden: bool) -> None:
        """Forbid or allow again that `group` reads `topic`."""
        topics = self.forbidden.setdefault(group, {})
        bits = topics.get(topic, 0)
        bits = bits | READ_FORBIDDEN if forbidden else bits & ~READ_FORBIDDEN
        if bits:
            topics[topic] = bits
        else:
            topics.pop(topic, None)
        if not topics:
            del self.forbidden[group]
        self._changed()

    def to_json(self) -> dict[str, object]:
        return {
            "dataVersion": self.data_version.to_json(),
            "forbiddenTable": self.forbidden,
            "subscriptionGroupTable": {name: group.to_json() for name, group in self.table.items()},
        }

    def _changed(self) -> None:
        version = self.data_version
        self.data_version = DataVersion(
            counter=version.counter + 1, state_version=version.state_version, timestamp=self._clock_ms()
        )
        self._dirty = True
        try:
            self.save(now=False)
        except StoreError as error:
            log.error("%d groups are kept in memory only, the next save tries again: %s", len(self.table), error)

    def save(self, *, now: bool = True) -> None:
        """Write the file when anything changed; with `now` false only when the last write is long enough ago.

        Raises StoreError.
        """
        if not self._dirty or (not now and time.monotonic() < self._next_save):
            return
        begun = time.monotonic()
        save_json(self._path, self.to_json(), self._files)
        self._dirty = False
        ended = time.monotonic()
        self._next_save = ended + (ended - begun) * SAVE_PAUSE
