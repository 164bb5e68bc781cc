"""Where a channel's messages come from: one source for each broker that has something of a queue.

A source has at most one request under way, which the broker holds until there is something (or for `POLL` seconds).
The channel says when to ask and for how many; what comes goes to `Channel.arrived`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from rocketq import properties as names
from rocketq.errors import RemotingError
from rocketq.hashing import tags_code
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.remoting.codes import PullFlag, RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.headers import (
    PopMessageHeader,
    PopMessageResponse,
    PullMessageHeader,
    PullMessageResponse,
)
from rocketq.remoting.session import Backoff
from rocketq_kombu.leases import Lease

if TYPE_CHECKING:
    from rocketq_kombu.channel import Channel

log = logging.getLogger("rocketq.kombu")

#: Seconds that a broker may hold a request.
POLL = 15.0
#: … and what its answer may take beyond that.
_SLACK = 5.0
#: Messages that one request brings at most.
MOST = 32
#: Seconds to wait after a broker said that too many wait already.
_AFTER_FULL = 1.0


class Source:
    """One broker's part of a queue. `busy`: a request is under way; `not_before`: monotonic seconds."""

    def __init__(self, channel: Channel, queue: str, broker: str, topic: str) -> None:
        self.channel = channel
        self.queue = queue
        self.broker = broker
        self.topic = topic
        self.busy = False
        self.not_before = 0.0
        self._closed = False
        self._backoff = Backoff()

    def ask(self, count: int) -> None:
        """Ask for up to `count` messages."""
        address = self.channel.connection.address_of(self.broker, self.topic)
        self.busy = True
        if address is None:
            self._failed(f"broker {self.broker} has no master just now")
            return
        code, header = self.request(count, POLL)
        try:
            self.channel.connection.engine.send(
                address,
                code,
                header,
                timeout=POLL + _SLACK,
                done=lambda answer: self._done(answer, address),
                lane=self.channel.lane,
            )
        except RemotingError as error:
            self._failed(str(error))

    def close(self) -> None:
        """What still comes is given back."""
        self._closed = True

    def _done(self, answer: Command | RemotingError, address: str) -> None:
        self.busy = False
        if isinstance(answer, RemotingError):
            if not self._closed:
                self._failed(str(answer))
            return
        if self.take(answer, address):
            if self._backoff.reason:
                log.info("queue %s: broker %s answers again", self.queue, self.broker)
                self._backoff.succeeded()
        elif not self._closed:
            self._failed(f"code {answer.code}: {answer.remark}")
        if not self._closed:
            self.channel.fill()

    def _failed(self, reason: str) -> None:
        level = logging.DEBUG if self._backoff.reason else logging.WARNING
        log.log(level, "queue %s: nothing comes from broker %s: %s", self.queue, self.broker, reason)
        self.busy = False
        self.channel.connection.lost(self.topic)
        self._backoff.failed(time.monotonic(), reason)
        self._pause(self._backoff.remaining(time.monotonic()))

    def _pause(self, seconds: float) -> None:
        self.not_before = time.monotonic() + seconds
        self.channel.connection.engine.later(seconds, self.channel.fill)

    def request(self, count: int, poll: float) -> tuple[int, Header]:
        """Code and header of a request that may be held for `poll` seconds."""
        raise NotImplementedError

    def take(self, answer: Command, address: str) -> bool:
        """Deal with an answer; False when it is an error."""
        raise NotImplementedError


class WorkSource(Source):
    """A work queue's topic, consumed by POP. `ordered`: messages of one queue one after the other."""

    def __init__(self, channel: Channel, queue: str, broker: str, topic: str, group: str, ordered: bool) -> None:
        super().__init__(channel, queue, broker, topic)
        self.group = group
        self.ordered = ordered

    def request(self, count: int, poll: float) -> tuple[int, Header]:
        return RequestCode.POP_MESSAGE, PopMessageHeader(
            consumer_group=self.group,
            topic=self.topic,
            queue_id=-1,
            max_msg_nums=count,
            invisible_time=int(self.channel.keeper.lease * 1000),
            poll_time=int(poll * 1000),
            born_time=int(time.time() * 1000),
            init_mode=0,
            exp_type="TAG",
            exp="*",
            order=self.ordered,
            bname=self.broker,
        )

    def take(self, answer: Command, address: str) -> bool:
        if answer.code == ResponseCode.SUCCESS:
            popped = leases(answer, self.group, self.topic, self.broker, address)
            if self._closed:
                for _, lease, _ in popped:
                    self.channel.keeper.give_back(lease)
            else:
                self.channel.arrived(self.queue, popped)
        elif answer.code == ResponseCode.POLLING_FULL:
            self._pause(_AFTER_FULL)
        return answer.code in (
            ResponseCode.SUCCESS,
            ResponseCode.POLLING_FULL,
            ResponseCode.POLLING_TIMEOUT,
            ResponseCode.PULL_NOT_FOUND,
        )


class CursorSource(Source):
    """A short-lived queue: what is tagged with its name in one queue of the topic that all of them share."""

    def __init__(
        self, channel: Channel, queue: str, broker: str, topic: str, queue_id: int, offset: int, tag: str
    ):
        super().__init__(channel, queue, broker, topic)
        self.queue_id = queue_id
        self.offset = offset
        self.tag = tag

    def request(self, count: int, poll: float) -> tuple[int, Header]:
        return RequestCode.PULL_MESSAGE, PullMessageHeader(
            consumer_group=self.topic,
            topic=self.topic,
            queue_id=self.queue_id,
            queue_offset=self.offset,
            max_msg_nums=count,
            sys_flag=int(PullFlag.SUBSCRIPTION | (PullFlag.SUSPEND if poll else 0)),
            commit_offset=0,
            suspend_timeout_millis=int(poll * 1000),
            subscription=self.tag,
            sub_version=tags_code(self.tag),
            expression_type="TAG",
            bname=self.broker,
        )

    def take(self, answer: Command, address: str) -> bool:
        if answer.code not in (
            ResponseCode.SUCCESS,
            ResponseCode.PULL_NOT_FOUND,
            ResponseCode.PULL_RETRY_IMMEDIATELY,
            ResponseCode.PULL_OFFSET_MOVED,
        ):
            return False
        self.offset = answer.header(PullMessageResponse).next_begin_offset
        self.channel.moved(self.queue, self.offset)
        if answer.code == ResponseCode.SUCCESS and not self._closed:
            found = decode_messages(bytes(answer.body), self.broker)
            self.channel.arrived(self.queue, [(message, None, 0) for message in found if message.tag == self.tag])
        return True


#: The topic that a message is in by the kind that its receipt names (`KeyBuilder`).
_STORED = {"0": "{topic}", "1": "%RETRY%{group}_{topic}", "2": "%RETRY%{group}+{topic}"}

#: A message, its lease (None in short-lived queues), and how many are behind it in its queue.
Arrival = tuple[ReceivedMessage, Lease, int]


def leases(answer: Command, group: str, topic: str, broker: str, address: str) -> list[Arrival]:
    """The messages of a pop's answer with their receipts (`ExtraInfoUtil`)."""
    header = answer.header(PopMessageResponse)
    until = time.monotonic() + header.invisible_time / 1000
    times = f"{header.pop_time} {header.invisible_time} {header.revive_qid}"
    starts: dict[tuple[str, int], int] = {}
    for part in (header.start_offset_info or "").split(";"):
        if part:
            kind, queue_id, first = part.split(" ")
            starts[kind, int(queue_id)] = int(first)
    found = decode_messages(bytes(answer.body), broker)
    arrivals = []
    for index, message in enumerate(found):
        offset, own_queue = message.queue_offset, message.queue_id
        # retries come under their first topic, and with their receipt
        receipt = message.properties.get(names.POP_CK)
        if receipt is None:
            start = starts.get(("0", own_queue), offset)
            receipt = f"{start} {times} 0 {broker} {own_queue} {offset}"
        stored = _STORED[receipt.split(" ", 5)[4]].format(group=group, topic=topic)
        lease = Lease(group, stored, broker, address, own_queue, offset, receipt, until)
        arrivals.append((message, lease, header.rest_num + len(found) - 1 - index))
    return arrivals
