"""The topics of this broker: their queues and permissions, kept in ``config/topics.json``.

A topic comes into being by an operator's request, by the first message sent to it (when `autoCreateTopicEnable`),
or because a group needs its retry or dead-letter topic. Every change raises the data version and is told to the
NameServers through `on_change`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rocketq import names
from rocketq.broker.saving import Build
from rocketq.config import BrokerConfig
from rocketq.remoting.bodies import DataVersion, TopicConfig
from rocketq.remoting.codes import Perm
from rocketq.store.configfile import load_table
from rocketq.store.files import Files

#: `defaultTopicQueueNums` of producers, Apache's and ours, unless they are told otherwise.
ASKED_FOR = 4

READ_WRITE = int(Perm.READ | Perm.WRITE)
INHERITED = int(Perm.READ | Perm.WRITE | Perm.INHERIT)


class Topics:
    """All topics of the broker by name. `on_change` gets the topics that are new or changed."""

    def __init__(
        self,
        config: BrokerConfig,
        path: Path,
        files: Files,
        on_change: Callable[[list[TopicConfig]], None],
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._config = config
        self.path = path
        self._files = files
        self._on_change = on_change
        self._clock_ms = clock_ms
        self._dirty = False
        self.table: dict[str, TopicConfig] = {}
        self.data_version = DataVersion(timestamp=clock_ms())
        #: topics of the broker itself, those named after it and its cluster included
        self.system: set[str] = set(names.SYSTEM_TOPICS)

    def load(self) -> None:
        """Read the file and add the topics that every broker has. Raises StoreError when the file is unreadable."""
        load_table(self.path, self._files, self._take)
        config = self._config
        cluster, broker = config.broker_cluster_name, config.broker_name
        queues = config.default_topic_queue_nums
        system = [
            (names.SELF_TEST_TOPIC, 1, READ_WRITE),
            (names.BENCHMARK_TOPIC, 1024, READ_WRITE),
            (cluster, 16, INHERITED),
            (broker, 1, INHERITED),
            (names.OFFSET_MOVED_TOPIC, 1, READ_WRITE),
            (names.SCHEDULE_TOPIC, 18, READ_WRITE),
            (names.reply_topic(cluster), 1, READ_WRITE),
            (f"rmq_sys_REVIVE_LOG_{cluster}", 8, READ_WRITE),
            (f"rmq_sys_SYNC_BROKER_MEMBER_{broker}", 1, int(Perm.INHERIT)),
            (names.HALF_TOPIC, 1, READ_WRITE),
            (names.OP_HALF_TOPIC, 1, READ_WRITE),
            (names.TIMER_TOPIC, 1, READ_WRITE),
        ]
        if config.trace_topic_enable:
            system.append((config.msg_trace_topic_name, 1, READ_WRITE))
        if config.auto_create_topic_enable:
            system.append((names.AUTO_CREATE_TOPIC, queues, INHERITED))
        missing = [entry for entry in system if entry[0] not in self.table]
        for name, count, perm in missing:
            self.table[name] = TopicConfig(
                topic_name=name, read_queue_nums=count, write_queue_nums=count, perm=perm
            )
        self.system.update(entry[0] for entry in system)
        if missing:
            self._changed([self.table[entry[0]] for entry in missing])

    def _take(self, saved: dict[str, Any]) -> None:
        for name, value in saved.get("topicConfigTable", {}).items():
            self.table[name] = TopicConfig.from_json(value)
        if "dataVersion" in saved:
            self.data_version = DataVersion.from_json(saved["dataVersion"])

    def adopt(self, queues: Iterable[tuple[str, int]]) -> list[str]:
        """Take in topics that the store has queues of and the file does not name; returns their names.

        They were created just before a crash: their messages are in the log, so they must not vanish. How many
        queues they had is not known; they get no fewer than producers ask for when a send creates a topic, so that
        routes which clients know still hold.
        """
        found: dict[str, int] = {}
        for topic, queue_id in queues:
            if topic not in self.table:
                found[topic] = max(found.get(topic, 0), queue_id + 1)
        for topic, used in found.items():
            derived = topic.startswith((names.RETRY_PREFIX, names.DLQ_PREFIX))
            count = used if derived else max(used, min(ASKED_FOR, self._config.default_topic_queue_nums))
            self.table[topic] = TopicConfig(
                topic_name=topic, read_queue_nums=count, write_queue_nums=count, perm=READ_WRITE
            )
        if found:
            self._changed([self.table[topic] for topic in found])
        return sorted(found)

    def get(self, name: str) -> TopicConfig | None:
        return self.table.get(name)

    def is_system(self, name: str) -> bool:
        """True for topics of the broker itself, which nobody may change or delete."""
        return name in self.system or names.is_system_topic(name)

    def is_ordered(self, name: str) -> bool:
        """True when the topic was created as an ordered one."""
        topic = self.table.get(name)
        return topic is not None and topic.order

    def create_on_send(self, name: str, default_topic: str, queue_nums: int) -> TopicConfig | None:
        """The topic `name`, created after the pattern of `default_topic` when it is unknown.

        `queue_nums` is what the producer asks for; it gets no more than the default topic has. None when topics are
        not created this way: the pattern is unknown, lets nobody inherit, or `autoCreateTopicEnable` is off.
        """
        known = self.table.get(name)
        if known is not None:
            return known
        pattern = self.table.get(default_topic)
        if pattern is None or not pattern.perm & Perm.INHERIT:
            return None
        if default_topic == names.AUTO_CREATE_TOPIC and not self._config.auto_create_topic_enable:
            return None
        count = max(0, min(queue_nums, pattern.write_queue_nums))
        return self._add(
            TopicConfig(
                topic_name=name,
                read_queue_nums=count,
                write_queue_nums=count,
                perm=pattern.perm & ~int(Perm.INHERIT),
                topic_filter_type=pattern.topic_filter_type,
            )
        )

    def create_retry(self, name: str, queue_nums: int, order: bool = False) -> TopicConfig:
        """The retry or dead-letter topic `name`, created when it is unknown."""
        known = self.table.get(name)
        if known is not None and (known.order or not order):
            return known
        if known is not None:
            known.order = True
            return self._add(known)
        return self._add(
            TopicConfig(
                topic_name=name,
                read_queue_nums=queue_nums,
                write_queue_nums=queue_nums,
                perm=READ_WRITE,
                order=order,
            )
        )

    def update(self, topic: TopicConfig) -> None:
        """Create the topic, or give it new settings."""
        self._add(topic)

    def update_all(self, topics: list[TopicConfig]) -> None:
        """Several topics at once, with one raise of the data version."""
        for topic in topics:
            self.table[topic.topic_name] = topic
        self._changed(topics)

    def delete(self, name: str) -> bool:
        """Forget the topic; False when it was unknown. Its messages are the store's business."""
        if self.table.pop(name, None) is None:
            return False
        self._changed([])
        return True

    def copy(self, topics: list[TopicConfig], version: DataVersion) -> None:
        """Become a master's table, unless this is it already."""
        if version == self.data_version:
            return
        self.table = {topic.topic_name: topic for topic in topics}
        self.data_version = version
        self._dirty = True
        self._on_change(topics)

    def changed(self) -> None:
        """Raise the data version without a change of a topic, as for a new `brokerPermission`."""
        self._changed(list(self.table.values()))

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`."""
        if not self._dirty:
            return None
        self._dirty = False
        version, table = self.data_version, self.table.copy()
        return lambda: {
            "dataVersion": version.to_json(),
            "topicConfigTable": {name: topic.to_json() for name, topic in table.items()},
        }

    @property
    def dirty(self) -> bool:
        """Whether a snapshot is due."""
        return self._dirty

    def unsaved(self) -> None:
        self._dirty = True

    def _add(self, topic: TopicConfig) -> TopicConfig:
        self.table[topic.topic_name] = topic
        self._changed([topic])
        return topic

    def _changed(self, topics: list[TopicConfig]) -> None:
        self.data_version = self.data_version.next(self._clock_ms())
        self._dirty = True
        self._on_change(topics)
