"""How far each group has consumed each queue (codes 14, 15, 43), kept in ``config/consumerOffset.json``.

Offsets live in memory and are written every few seconds: after a crash a group repeats what it consumed since, as on
Apache's broker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocketq import javajson
from rocketq.broker.groups import Groups
from rocketq.broker.saving import Build
from rocketq.broker.topics import Topics
from rocketq.remoting.bodies import DataVersion
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    QueryConsumerOffsetHeader,
    QueryConsumerOffsetResponse,
    UpdateConsumerOffsetHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.configfile import load_table
from rocketq.store.files import Files
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Messages within this share of the machine's memory behind the log's end count as "in memory".
IN_MEMORY_RATIO = 0.4


def total_memory() -> int:
    """This machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Offsets:
    """Offsets by group, topic and queue."""

    def __init__(
        self,
        path: Path,
        files: Files,
        groups: Groups,
        topics: Topics,
        store: MessageStore,
        clock_ms: Callable[[], int],
    ) -> None:
        self.path = path
        self._files = files
        self._groups = groups
        self._topics = topics
        self._store = store
        self._clock_ms = clock_ms
        self._dirty = False
        self._memory = int(total_memory() * IN_MEMORY_RATIO)
        #: (topic, group) -> queue id -> offset
        self.table: dict[tuple[str, str], dict[int, int]] = {}
        #: moves that the consumers were not told of yet: (topic, group) -> queue id -> offset
        self.resets: dict[tuple[str, str], dict[int, int]] = {}
        self.data_version = DataVersion(timestamp=clock_ms())
        #: where the log of POP ended when the file that was loaded was made
        self.revive_end = 0
        self.revive_topic = ""

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.QUERY_CONSUMER_OFFSET: self._query,
            RequestCode.UPDATE_CONSUMER_OFFSET: self._update,
            RequestCode.GET_ALL_CONSUMER_OFFSET: self._all,
        }

    def load(self) -> None:
        """Raises StoreError when the file is unreadable."""
        load_table(self.path, self._files, self._load)

    def _load(self, saved: dict[str, Any]) -> None:
        self._take(saved)
        self.revive_end = int(saved.get("reviveEnd", 0))

    def _take(self, saved: dict[str, Any]) -> None:
        for key, queues in saved.get("offsetTable", {}).items():
            parts = key.split("@")
            if len(parts) == 2:
                self.table[parts[0], parts[1]] = {int(queue): int(offset) for queue, offset in queues.items()}
        if "dataVersion" in saved:
            self.data_version = DataVersion.from_json(saved["dataVersion"])

    def copy(self, theirs: dict[str, Any]) -> None:
        """Take over the offsets of a master; groups and topics that it does not name stay."""
        self._take(theirs)
        self._dirty = True

    def forget_lost(self) -> None:
        """Take back offsets that lie behind the end of their queue: after an unclean stop, and when a slave stops.

        A power failure may have taken messages that were consumed and not yet on disk; a slave may have copied offsets
        before it had the messages. New messages get their offsets, and a group that went on from where it was would
        skip them.
        """
        for (topic, group), queues in self.table.items():
            for queue_id, offset in queues.items():
                end = self._store.max_offset(topic, queue_id)
                if offset > end:
                    log.warning(
                        "group %s was at %d of topic %s queue %d, which ends at %d here: going on there",
                        *(group, offset, topic, queue_id, end),
                    )
                    queues[queue_id] = end
                    self._dirty = True

    def snapshot(self) -> Build | None:
        """See :class:`rocketq.broker.saving.Table`.

        Before they are written the log is forced to disk up to where it is now: a power failure must not leave offsets
        behind messages, or behind pops, that it lost.
        """
        if not self._dirty:
            return None
        self._dirty = False
        store = self._store
        table = {key: queues.copy() for key, queues in self.table.items()}
        end, written = store.max_offset(self.revive_topic, 0), store.written_offset

        def build() -> dict[str, Any]:
            store.force(written)
            return {**self._as_json(table), "reviveEnd": end}

        return build

    def unsaved(self) -> None:
        self._dirty = True

    def commit(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Note that `group` consumed everything below `offset`; any value is taken, also a lower one."""
        self.table.setdefault((topic, group), {})[queue_id] = offset
        self._dirty = True

    def reset(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        """Move `group` to these offsets by queue id. Until its consumers know, their commits are passed over."""
        for queue_id, offset in offsets.items():
            self.commit(group, topic, queue_id, offset)
        self.resets.setdefault((topic, group), {}).update(offsets)

    def take_reset(self, group: str, topic: str, queue_id: int) -> int | None:
        """Where the queue's consumer has to go on, if it has to be told; whoever asks tells it."""
        pending = self.resets.get((topic, group))
        if pending is None:
            return None
        offset = pending.pop(queue_id, None)
        if not pending:
            del self.resets[topic, group]
        return offset

    def query(self, group: str, topic: str, queue_id: int) -> int:
        """The offset that `group` goes on from; -1 when it never committed one."""
        offset = self.table.get((topic, group), {}).get(queue_id, -1)
        return offset if offset >= 0 else -1

    def topics_of(self, group: str) -> list[str]:
        """The topics that `group` has offsets for."""
        return [topic for topic, owner in self.table if owner == group]

    def groups_of(self, topic: str) -> list[str]:
        """The groups that have offsets for `topic`."""
        return [group for owned, group in self.table if owned == topic]

    def remove_topic(self, topic: str) -> None:
        self._remove(lambda key: key[0] == topic)

    def remove_group(self, group: str) -> None:
        self._remove(lambda key: key[1] == group)

    def _remove(self, doomed: Callable[[tuple[str, str]], bool]) -> None:
        for key in [key for key in self.table if doomed(key)]:
            del self.table[key]
            self._dirty = True
        for key in [key for key in self.resets if doomed(key)]:
            del self.resets[key]

    def _as_json(self, table: dict[tuple[str, str], dict[int, int]]) -> dict[str, object]:
        by_group: dict[str, list[str]] = {}
        for topic, group in table:
            by_group.setdefault(group, []).append(topic)
        return {
            "dataVersion": self.data_version.to_json(),
            "groupTopicMap": by_group,
            "offsetTable": {f"{topic}@{group}": queues for (topic, group), queues in table.items()},
        }

    def _all(self, connection: Connection, request: Command) -> Reply:
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(self._as_json(self.table)))

    def _query(self, connection: Connection, request: Command) -> Reply:
        header = request.header(QueryConsumerOffsetHeader)
        offset = self.query(header.consumer_group, header.topic, header.queue_id)
        if offset < 0:
            if header.set_zero_if_not_found is False:
                remark = "Not found, do not set to zero, maybe this group boot first"
                return encode_response(request, ResponseCode.QUERY_NOT_FOUND, remark, {})
            if not self.young(header.topic, header.queue_id):
                remark = "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first"
                return encode_response(request, ResponseCode.QUERY_NOT_FOUND, remark, {})
            offset = 0
        return encode_response(request, ResponseCode.SUCCESS, header=QueryConsumerOffsetResponse(offset=offset))

    def young(self, topic: str, queue_id: int) -> bool:
        """True when the queue's first message is still there, near the log's end: a new group starts at 0."""
        if self._store.min_offset(topic, queue_id) > 0:
            return False
        first = self._store.consume_entry(topic, queue_id, 0)
        return first is not None and self._store.written_offset - first[0] <= self._memory

    def _update(self, connection: Connection, request: Command) -> Reply:
        header = request.header(UpdateConsumerOffsetHeader)
        topic, group = header.topic, header.consumer_group
        if group not in self._groups.table:
            return encode_response(
                request, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"Group {group} not exist!", {}
            )
        if self._topics.get(topic) is None:
            return encode_response(request, ResponseCode.TOPIC_NOT_EXIST, f"Topic {topic} not exist!", {})
        if header.queue_id is None:
            return encode_response(
                request, ResponseCode.INVALID_PARAMETER, f"QueueId is null, topic is {topic}", {}
            )
        if header.commit_offset is None:
            return encode_response(
                request, ResponseCode.INVALID_PARAMETER, f"Offset is null, topic is {topic}", {}
            )
        if header.queue_id in self.resets.get((topic, group), {}):
            return encode_response(request, ResponseCode.SUCCESS, "Offset has been previously reset", {})
        self.commit(group, topic, header.queue_id, header.commit_offset)
        return encode_response(request, ResponseCode.SUCCESS, header={})
