"""How far groups are in their topics (codes 208, 303, 308, 314, 317, 343)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rocketq import javajson
from rocketq.broker.clients import Clients
from rocketq.broker.groups import Groups
from rocketq.broker.offsets import Offsets
from rocketq.broker.pull import Pull
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.message import MessageQueue
from rocketq.remoting.bodies import ConsumeStats, OffsetWrapper, TopicList
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    CloneGroupOffsetHeader,
    GetBrokerConsumeStatsHeader,
    GetConsumeStatsHeader,
    QueryConsumeTimeSpanHeader,
    QueryCorrectionOffsetHeader,
    QueryTopicsByConsumerHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

#: Of a queue whose slowest group is before the group that is compared: it must not be corrected (Java's largest long).
NO_CORRECTION = 2**63 - 1


class Progress:
    """Answers what operators ask about groups and offsets. `address` is this broker's."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        clients: Clients,
        offsets: Offsets,
        pull: Pull,
        statistics: Statistics,
        address: Callable[[], str],
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._clients = clients
        self._offsets = offsets
        self._pull = pull
        self._statistics = statistics
        self._address = address
        self._clock_ms = clock_ms

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.GET_CONSUME_STATS: self._consume_stats,
            RequestCode.QUERY_CONSUME_TIME_SPAN: self._time_span,
            RequestCode.QUERY_CORRECTION_OFFSET: self._correction,
            RequestCode.CLONE_GROUP_OFFSET: self._clone,
            RequestCode.GET_BROKER_CONSUME_STATS: self._all_groups,
            RequestCode.QUERY_TOPICS_BY_CONSUMER: self._topics_of,
        }

    def _stats(self, group: str, topics: Iterable[str]) -> ConsumeStats:
        """Where the group is in each queue of these topics; topics that do not exist are left out."""
        store, offsets = self._store, self._offsets
        stats = ConsumeStats()
        now = time.monotonic()
        for name in topics:
            topic = self._topics.get(name)
            if topic is None:
                continue
            for queue_id in range(topic.read_queue_nums):
                offset = max(0, offsets.query(group, name, queue_id))
                last = store.store_time(name, queue_id, offset - 1) if offset > 0 else 0
                pulled = self._pull.positions.get((group, name, queue_id), 0)
                queue = MessageQueue(name, self._config.broker_name, queue_id)
                stats.offset_table[queue] = OffsetWrapper(
                    store.max_offset(name, queue_id), offset, pulled, max(0, last)
                )
            traffic = self._statistics.groups.get((name, group))
            if traffic is not None:
                stats.consume_tps += traffic.window("statsMinute", now)[1]
        return stats

    def _consume_stats(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetConsumeStatsHeader)
        group = header.consumer_group
        wanted = [topic for topic in (header.topic_list or "").split(";") if topic]
        if header.topic:
            wanted = [header.topic]
        stats = self._stats(group, wanted or self._offsets.topics_of(group))
        return encode_response(request, ResponseCode.SUCCESS, body=stats.encode())

    def _all_groups(self, connection: Connection, request: Command) -> Reply:
        """All groups of this broker, each topic by itself."""
        ordered = request.header(GetBrokerConsumeStatsHeader).is_order
        diff = in_flight = 0
        groups = []
        for group in self._groups.table:
            online = self._clients.consumer(group)
            entries = []
            for name in self._offsets.topics_of(group):
                topic = self._topics.get(name)
                if topic is None or (ordered and not topic.order):
                    continue
                if online is not None and online.subscriptions and name not in online.subscriptions:
                    continue
                stats = self._stats(group, [name])
                for queue in stats.offset_table.values():
                    diff += queue.broker_offset - queue.consumer_offset
                    in_flight += max(0, queue.pull_offset - queue.consumer_offset)
                entries.append(stats.to_json())
            groups.append({group: entries})
        body = {
            "brokerAddr": self._address(),
            "consumeStatsList": groups,
            "totalDiff": diff,
            "totalInflightDiff": in_flight,
        }
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(body))

    def _time_span(self, connection: Connection, request: Command) -> Reply:
        """From when to when a topic's messages are, and from when what the group consumed last; ms, -1: nothing."""
        header = request.header(QueryConsumeTimeSpanHeader)
        name, store = header.topic, self._store
        topic = self._topics.get(name)
        if topic is None:
            return encode_response(request, ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist")
        spans = []
        for queue_id in range(topic.write_queue_nums):
            low, high = store.min_offset(name, queue_id), store.max_offset(name, queue_id)
            earliest = store.earliest_store_time(name, queue_id)
            latest = store.store_time(name, queue_id, high - 1) if high > 0 else -1
            offset = self._offsets.query(header.group, name, queue_id)
            consumed = store.store_time(name, queue_id, offset - 1) if offset > 0 else earliest
            following = max(offset, low)
            waits_since = store.store_time(name, queue_id, following) if following < high else -1
            span: dict[str, object] = {
                "delayTime": self._clock_ms() - waits_since if waits_since >= 0 else 0,
                "messageQueue": MessageQueue(name, self._config.broker_name, queue_id),
            }
            for key, when in (("consume", consumed), ("max", latest), ("min", earliest)):
                span[f"{key}TimeStamp"] = when
                span[f"{key}TimeStampStr"] = _text(when)
            spans.append(dict(sorted(span.items())))
        body = javajson.dumps({"consumeTimeSpanSet": spans})
        return encode_response(request, ResponseCode.SUCCESS, body=body)

    def _correction(self, connection: Connection, request: Command) -> Reply:
        """The lowest offset that any group has of each queue.

        Groups in `filterGroups` are passed over (Apache's broker deletes their offsets instead).
        """
        header = request.header(QueryCorrectionOffsetHeader)
        passed_over = {group for group in (header.filter_groups or "").split(",") if group}
        lowest: dict[int, int] = {}
        for (topic, group), queues in self._offsets.table.items():
            if topic != header.topic or group in passed_over:
                continue
            for queue_id, offset in queues.items():
                if offset >= self._store.min_offset(topic, queue_id):
                    lowest[queue_id] = min(offset, lowest.get(queue_id, offset))
        compared = self._offsets.table.get((header.topic, header.compare_group), {})
        for queue_id, offset in compared.items():
            if lowest.get(queue_id, NO_CORRECTION) > offset:
                lowest[queue_id] = NO_CORRECTION
        body = javajson.dumps({"correctionOffsets": dict(sorted(lowest.items()))})
        return encode_response(request, ResponseCode.SUCCESS, body=body)

    def _clone(self, connection: Connection, request: Command) -> Reply:
        header = request.header(CloneGroupOffsetHeader)
        topics = [header.topic] if header.topic else self._offsets.topics_of(header.src_group)
        for topic in topics:
            for queue_id, offset in list(self._offsets.table.get((topic, header.src_group), {}).items()):
                self._offsets.commit(header.dest_group, topic, queue_id, offset)
        return encode_response(request, ResponseCode.SUCCESS)

    def _topics_of(self, connection: Connection, request: Command) -> Reply:
        topics = self._offsets.topics_of(request.header(QueryTopicsByConsumerHeader).group)
        body = TopicList(sorted(topics), self._address())
        return encode_response(request, ResponseCode.SUCCESS, body=body.encode())


def _text(when: int) -> str:
    """A time in ms as people read it, to the ms."""
    return f"{time.strftime('%Y-%m-%d#%H:%M:%S', time.localtime(when // 1000))}:{when % 1000:03d}"
