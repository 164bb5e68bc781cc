"""Delivering stored messages once more: dead letters to their topic again, old messages to one group again.

A copy carries in its property ``ROCKETQ_COPY_OF`` the place of the message that it was made of
(``topic/broker/queue@offset``) and keeps that message's unique id. By the id the brokers' index finds copies that
exist already, so whoever was interrupted begins again and nothing is delivered twice. (Two that run at the same time
do not see each other's copies.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rocketq import properties as names
from rocketq.client.browse import Browser
from rocketq.client.selectors import by_hash
from rocketq.client.sync_producer import Producer
from rocketq.errors import BrokerError, InvalidMessage, RocketQError, RouteNotFound
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.names import DLQ_PREFIX, RETRY_PREFIX, is_system_topic, retry_topic
from rocketq.record import CorruptRecord
from rocketq.remoting.bodies import SubscriptionGroupConfig, TopicConfig
from rocketq.remoting.codes import ResponseCode

COPY_OF = "ROCKETQ_COPY_OF"
#: The group whose offsets in the dead-letter topics say which messages have been dealt with.
DLQ_GROUP = "rocketq_dlq"
_CHUNK = 32
#: Of the names with a meaning, those that say what the message is and not what happened to it.
_KEPT = frozenset(
    {names.KEYS, names.TAGS, names.SHARDING_KEY, names.UNIQ_KEY, names.PRIORITY, "BUYER_ID", "INSTANCE_ID"}
)


class CannotCopy(RocketQError):
    """A message that cannot be delivered again, and why."""


@dataclass
class Report:
    """What became of messages; `failed` has their places with the reasons."""

    sent: int = 0
    already: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def place(message: ReceivedMessage) -> str:
    """Where a message is stored."""
    return f"{message.stored_topic}/{message.broker_name}/{message.queue_id}@{message.queue_offset}"


def original_topic(message: ReceivedMessage) -> str | None:
    """The topic that a dead letter was sent to first; None when the message does not say."""
    for topic in (
        message.properties.get(names.RETRY_TOPIC),
        message.properties.get("DLQ_ORIGIN_TOPIC"),
        message.properties.get(names.REAL_TOPIC),
    ):
        if topic and not topic.startswith((RETRY_PREFIX, DLQ_PREFIX)) and not is_system_topic(topic):
            return topic
    return None


def copy(message: ReceivedMessage, topic: str) -> Message:
    """What is sent to `topic`: body, keys, tag, unique id and the user's own properties. Raises CannotCopy."""
    try:
        made = Message(topic, message.body, flag=message.flag)
        given = message.properties
    except CorruptRecord as error:
        raise CannotCopy(str(error)) from None
    if not made.body:
        raise CannotCopy("its body is empty, which brokers refuse")
    dropped = (names.RESERVED - _KEPT) | {names.EXCEPTION, names.TRACEBACK}
    made.properties.update({name: value for name, value in given.items() if name not in dropped})
    made.properties[names.UNIQ_KEY] = message.message_id
    made.properties[COPY_OF] = place(message)
    if topic.startswith(RETRY_PREFIX):  # consumers show the topic that is named here
        made.properties[names.RETRY_TOPIC] = original_topic(message) or message.topic
    return made


class Redelivery:
    """Sends copies to `target(message)`. `again`: also of messages that have a copy there.

    Raises RouteNotFound, RemotingError, BrokerError when the servers fail; what was sent until then stays sent.
    """

    def __init__(
        self,
        browser: Browser,
        producer: Producer,
        target: Callable[[ReceivedMessage], str | None],
        *,
        again: bool = False,
    ) -> None:
        self._browser = browser
        self._producer = producer
        self._target = target
        self._again = again
        self._known: dict[str, bool] = {}

    def plan(self, messages: Iterable[ReceivedMessage]) -> Iterator[tuple[ReceivedMessage, Message | str | None]]:
        """Each message with its copy; with None when that exists; with a text when it cannot be made."""
        for message in messages:
            try:
                made = self._copy(message)
            except CannotCopy as error:
                yield message, str(error)
                continue
            yield message, None if not self._again and self._exists(made) else made

    def run(
        self, messages: Iterable[ReceivedMessage], after: Callable[[list[ReceivedMessage], Report], None]
    ) -> Report:
        """Sends what has to be sent; `after` is called when a part of the messages is done."""
        report = Report()
        planned = self.plan(messages)
        while chunk := list(itertools.islice(planned, _CHUNK)):
            done = []
            for message, made in chunk:
                if isinstance(made, str):
                    report.failed[place(message)] = made
                    continue
                if made is None:
                    report.already += 1
                else:
                    try:
                        selector = by_hash if made.sharding_key else None
                        self._producer.send(made, selector=selector, key=made.sharding_key)
                    except InvalidMessage as error:
                        report.failed[place(message)] = str(error)
                        continue
                    report.sent += 1
                done.append(message)
            after(done, report)
        return report

    def _copy(self, message: ReceivedMessage) -> Message:
        topic = self._target(message)
        if topic is None:
            raise CannotCopy("it does not say which topic it was sent to; name one with --to")
        if topic not in self._known and not topic.startswith(RETRY_PREFIX):  # those are made when they are needed
            try:  # sending would create the topic
                self._browser.admin.route(topic)
                self._known[topic] = True
            except RouteNotFound:
                self._known[topic] = False
        if not self._known.get(topic, True):
            raise CannotCopy(f"topic {topic} does not exist any more; create it, or name another with --to")
        return copy(message, topic)

    def _exists(self, made: Message) -> bool:
        try:
            found = self._browser.by_unique_id(made.topic, made.properties[names.UNIQ_KEY])
        except RouteNotFound:
            return False
        return any(one.properties.get(COPY_OF) == made.properties[COPY_OF] for one in found)


class DeadLetters:
    """The dead-letter topic of a group, and how far people have dealt with it.

    The position is kept as the offset of the group `rocketq_dlq`, so every operator and machine sees the same.
    """

    def __init__(self, browser: Browser, group: str) -> None:
        self.browser = browser
        self.group = group
        self.topic = DLQ_PREFIX + group
        #: The first message of each queue that is not dealt with, and the queue's end.
        self.open = {
            queue: (
                max(browser.committed(DLQ_GROUP, queue) or 0, browser.min_offset(queue)),
                browser.max_offset(queue),
            )
            for queue in browser.queues(self.topic)
        }

    @property
    def waiting(self) -> int:
        """How many messages nobody has dealt with."""
        return sum(max(0, end - start) for start, end in self.open.values())

    def messages(self, *, everything: bool = False) -> Iterator[ReceivedMessage]:
        """The messages nobody has dealt with, or all that are stored, queue by queue."""
        for queue, (start, end) in self.open.items():
            yield from self.browser.scan(queue, 0 if everything else start, end)

    def dealt_with(self, messages: Iterable[ReceivedMessage]) -> None:
        """Move the position over `messages`, as far as they follow it without a gap."""
        moved = set()
        for message in messages:
            queue = message.queue
            start, end = self.open[queue]
            if message.queue_offset == start:
                self.open[queue] = (start + 1, end)
                moved.add(queue)
        for queue in moved:
            self._commit(queue, self.open[queue][0])

    def purge(self, until: int | None) -> int:
        """Count what was stored before `until` (ms; None: everything) as dealt with; returns how many messages."""
        count = 0
        for queue, (start, end) in self.open.items():
            stop = end if until is None else min(end, self.browser.offset_at(queue, until))
            if stop > start:
                self._commit(queue, stop)
                self.open[queue] = (stop, end)
                count += stop - start
        return count

    def _commit(self, queue: MessageQueue, offset: int) -> None:
        try:
            self.browser.commit(DLQ_GROUP, queue, offset)
        except BrokerError as error:
            if error.code != ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
                raise
            self.browser.admin.create_group(SubscriptionGroupConfig(group_name=DLQ_GROUP))
            self.browser.commit(DLQ_GROUP, queue, offset)


def prepare_retry_topic(browser: Browser, group: SubscriptionGroupConfig) -> str:
    """The topic that only `group` consumes; made on all masters when it is not there yet, as brokers make it."""
    topic = retry_topic(group.group_name)
    try:
        browser.admin.route(topic)
    except RouteNotFound:
        queues = max(1, group.retry_queue_nums)
        browser.admin.create_topic(TopicConfig(topic, queues, queues, perm=6))
    return topic
