"""What nobody acknowledged within its lease is given out again (`PopReviveService`).

The message is stored once more under the retry topic of group and topic, one attempt later unless its consumer gave it
back, or under the group's dead letters when its attempts are used up; with that its check point is settled. The copy
names the lease that ended (`ROCKETQ_LEASE`): a crash may take the record behind, which settles it, and a start then
makes no second copy. A lease that ends is met to the ms. The retry topic of a topic whose queues are priorities has
the same queues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice

from rocketq import properties as props
from rocketq.broker.checkpoints import CheckPoint, Key
from rocketq.broker.copies import append_copy
from rocketq.broker.groups import Groups
from rocketq.broker.revivelog import ReviveLog
from rocketq.broker.topics import Topics
from rocketq.errors import StoreError
from rocketq.message import offset_message_id
from rocketq.names import RETRY_PREFIX, dlq_topic, pop_retry_topic
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import CorruptRecord, Record, decode_record
from rocketq.remoting.bodies import DataVersion
from rocketq.store.reader import properties_of
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Messages, and topics that were set aside, before others get their turn on the loop.
_PER_TURN, _TOPICS_PER_TURN = 64, 8
#: Seconds until what could not be revived is tried again, and to the next look at the clock, which may be set.
_RETRY_AFTER, _LOOK_AGAIN = 1.0, 1.0


class Revive:
    """Watches the leases."""

    def __init__(
        self,
        store: MessageStore,
        topics: Topics,
        groups: Groups,
        revive_log: ReviveLog,
        clock_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._topics = topics
        self._groups = groups
        self._log = revive_log
        self._clock_ms = clock_ms
        #: when the next look is, and what looks then; uvloop's own handles do not say when
        self._timer: tuple[float, asyncio.TimerHandle] | None = None
        self._running = False
        #: what could not be revived, by retry topic, and what tries it again
        self._aside: dict[str, dict[Key, CheckPoint]] = {}
        self._retry: asyncio.TimerHandle | None = None
        #: the topics' version in which nothing is held of one that is gone
        self._looked_at: DataVersion | None = None
        #: what a crash, or a refusal in the middle, left copied and not settled: check point and offset
        self._copied: set[tuple[Key, int]] = set()
        #: messages that came again, and those that went to the dead letters, since the start
        self.revived = self.dead = 0

    def start(self) -> None:
        self.adopt()
        self._running = True
        self.turn()  # before anybody gets what was copied

    def adopt(self) -> None:
        """Take in what a crash left: groups that no file names and that hold messages, and copies.

        Copies that are not settled are the last records of the log, so the last of their queues.
        """
        places: set[tuple[str, str, int]] = set()
        for point in self._log.points:
            group, queue_id, retry = point.key.group, point.key.queue_id, _retry(point.key)
            self._groups.get(group)
            places |= {(group, retry, 0), (group, retry, queue_id), (group, dlq_topic(group), 0)}
        for group, topic, queue_id in places:
            low, high = self._store.min_offset(topic, queue_id), self._store.max_offset(topic, queue_id)
            for offset in reversed(range(low, high)):
                if not self._is_copy(group, topic, queue_id, offset):
                    break

    def _is_copy(self, group: str, topic: str, queue_id: int, offset: int) -> bool:
        """Note the message if it is a copy of one that is not settled, whose lease is over then."""
        entry = self._store.consume_entry(topic, queue_id, offset)
        data = self._store.record_at(entry[0]) if entry is not None else None
        lease = properties_of(data).get(props.LEASE) if data is not None else None
        try:
            origin, *numbers = (lease or "").split(" ")
            from_queue, start, pop_time, copied = map(int, numbers)
        except ValueError:
            return False
        point = self._log.points.get(Key(origin, group, from_queue, start, pop_time))
        if point is None or not point.bits([copied]):
            return False
        self._copied.add((point.key, copied))
        self._log.points.end(point, 0)
        return True

    def stop(self) -> None:
        self._running = False
        self._cancel_timer()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def schedule(self) -> None:
        """A lease was given: look when the first one ends."""
        due = self._log.points.next_due()
        if due is not None and self._running:
            self._later(min(_LOOK_AGAIN, max(0.0, (due - self._clock_ms()) / 1000)))

    def leases_ended(self) -> None:
        """Leases ended before their time: look now."""
        if self._running:
            self.turn()

    def took_in(self) -> None:
        """The log has check points of another broker's now, perhaps of topics that are gone."""
        self._looked_at = None
        self.schedule()

    def _later(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._timer[0] <= at:
                return
            self._cancel_timer()
        self._timer = at, loop.call_at(at, self.turn)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None

    def turn(self) -> None:
        """Revive what is due. What cannot be revived is set aside: one topic alone may be refused."""
        self._cancel_timer()  # of a look that was planned for later
        self._revive_all(self._log.points.take_due(self._clock_ms(), _PER_TURN))
        self.schedule()

    def try_again(self) -> None:
        """Try one check point of each topic that was set aside; where that succeeds, the others are due again."""
        self._retry = None
        points, aside = self._log.points, self._aside
        tried: dict[str, CheckPoint | None] = {}
        for topic in list(islice(aside, _TOPICS_PER_TURN)):  # they are the last ones next time
            aside[topic] = {key: each for key, each in aside.pop(topic).items() if points.get(key) is each}
            tried[topic] = next(iter(aside[topic].values()), None)
        self._revive_all([point for point in tried.values() if point is not None])
        for topic, point in tried.items():
            waiting = aside[topic]
            if point is not None and point.key in points:
                waiting[point.key] = waiting.pop(point.key)
            else:
                del aside[topic]
                points.again(each for each in waiting.values() if each is not point)
        if aside:
            self._try_again_in(0.0 if any(topic not in aside for topic in tried) else _RETRY_AFTER)
        self.schedule()

    def _try_again_in(self, seconds: float) -> None:
        if self._running:
            if self._retry is not None:
                self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(seconds, self.try_again)

    def _revive_all(self, due: list[CheckPoint]) -> None:
        """Revive these, and set aside those with which that fails."""
        points = self._log.points
        done: list[CheckPoint] = []
        copied, refused = self._copied.copy(), ""
        for point in due:
            try:
                self._revive(point)
                done.append(point)
            except StoreError as error:
                refused = str(error)
            except Exception:  # whatever it is: nobody would notice that messages come no more
                log.exception("pops of topic %s whose lease is over wait, they cannot be revived", point.key.topic)
        try:
            self._store.write()
        except StoreError as error:
            refused, done, self._copied = str(error), [], copied
        except Exception:
            log.exception("%d pops whose lease is over wait, they cannot be revived", len(due))
            done, self._copied = [], copied
        for point in done:
            points.remove(point)
        self._copied = {each for each in self._copied if each[0] in points}
        for point in due:
            if point.key in points:
                self._aside.setdefault(_retry(point.key), {})[point.key] = point
        if self._aside and self._retry is None:
            if refused:
                waiting = sum(map(len, self._aside.values()))
                log.warning("%d pops whose lease is over wait, the store refuses them: %s", waiting, refused)
            self._try_again_in(_RETRY_AFTER)

    def _revive(self, point: CheckPoint) -> None:
        """Append what is left of a check point once more, and that it is settled. Raises StoreFull."""
        topic, group, queue_id, *_ = point.key
        left = point.open_offsets
        if topic in self._topics.table and group in self._groups.table:
            for offset in left:
                record = None if (point.key, offset) in self._copied else self._record(topic, queue_id, offset)
                if record is not None:
                    self._again(point, record)
                    self._copied.add((point.key, offset))
        else:
            log.info("topic %s or group %s is gone, %d messages are not given out again", topic, group, len(left))
        self._log.settled(point.key, left)

    def _record(self, topic: str, queue_id: int, offset: int) -> Record | None:
        where = f"message {offset} of topic {topic} queue {queue_id}"
        entry = self._store.consume_entry(topic, queue_id, offset)
        data = self._store.record_at(entry[0]) if entry is not None else None
        if data is None:
            log.error("%s was not acknowledged, and is not kept any more: it cannot be given out again", where)
            return None
        try:
            return decode_record(data)
        except CorruptRecord as error:
            log.error("%s was not acknowledged and cannot be given out again: %s", where, error)
            return None

    def _again(self, point: CheckPoint, record: Record) -> None:
        topic, group, from_queue, start, pop_time = point.key
        properties = decode_properties(record.properties)
        properties[props.LEASE] = f"{topic} {from_queue} {start} {pop_time} {record.queue_offset}"
        properties.setdefault(props.FIRST_POP_TIME, str(pop_time))
        properties.setdefault(props.ORIGIN_GROUP, group)
        attempts = record.reconsume_times + (not point.given_back)
        if attempts > self._groups.table[group].retry_max_times:
            origin = topic.removeprefix(f"{RETRY_PREFIX}{group}_").removeprefix(f"{RETRY_PREFIX}{group}+")
            properties.setdefault(props.RETRY_TOPIC, origin)
            properties.setdefault(
                props.ORIGIN_MESSAGE_ID, offset_message_id(record.store_host, record.physical_offset)
            )
            target, queues, queue_id = dlq_topic(group), 1, 0
            self.dead += 1
        else:
            target = _retry(point.key)
            queues, queue_id = self._place(point)
            self.revived += 1
        config = self._topics.create_retry(target, queues)
        text = encode_properties(properties)
        if len(text.encode()) > props.MAX_LENGTH:
            text = record.properties
        append_copy(
            self._store,
            record,
            target,
            min(queue_id, config.write_queue_nums - 1),
            text,
            properties,
            born_host=self._log.store_host,
            store_host=self._log.store_host,
            reconsume_times=attempts,
        )

    def _place(self, point: CheckPoint) -> tuple[int, int]:
        """How many queues the retry topic is to have, and which of them gets the message."""
        config = self._topics.table[point.key.topic]
        priorities = config.attributes.get("message.type") == "PRIORITY" or point.key.topic.startswith(
            RETRY_PREFIX
        )
        return (config.read_queue_nums, point.key.queue_id) if priorities else (1, 0)

    def forget_deleted(self) -> None:
        """Settle what is held of topics that are gone: a new one of that name has other messages. Raises StoreFull."""
        version = self._topics.data_version
        if version == self._looked_at:
            return
        gone = [point for point in self._log.points if point.key.topic not in self._topics.table]
        for point in gone:
            self._log.settled(point.key, point.open_offsets)
            self._log.points.remove(point)
        self._looked_at = version


def _retry(key: Key) -> str:
    """The topic in which messages of a check point come again."""
    return key.topic if key.topic.startswith(RETRY_PREFIX) else pop_retry_topic(key.topic, key.group)
