"""Where a channel's messages come from: one source for each broker that has something of a queue.

Brokers hold a request until there is something (or for `POLL` seconds). The channel says when to ask and for how many;
what comes goes to `Channel.arrived`. A work queue may have two requests under way: one brings the next messages while
what the other one brought is worked on.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING

from rocketq.client.pop_calls import OLDEST, Request, pop_request, read_pop
from rocketq.errors import BrokerError, RemotingError
from rocketq.hashing import tags_code
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.record import CorruptRecord
from rocketq.remoting.codes import PullFlag, RequestCode, ResponseCode
from rocketq.remoting.command import Command, header_decoder
from rocketq.remoting.headers import PopMessageResponse, PullMessageHeader, PullMessageResponse
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
#: A message, its lease (None in short-lived queues), and how many are behind it in its queue.
Arrival = tuple[ReceivedMessage, Lease | None, int]

_PULLED = frozenset(
    {
        ResponseCode.SUCCESS,
        ResponseCode.PULL_NOT_FOUND,
        ResponseCode.PULL_RETRY_IMMEDIATELY,
        ResponseCode.PULL_OFFSET_MOVED,
    }
)
#: Seconds to wait after a broker said that too many wait already.
_AFTER_FULL = 1.0


class Source:
    """One broker's part of a queue. `not_before`: when to ask again at the earliest, monotonic seconds."""

    #: Seconds that a broker may hold a request whose answer is wanted at once.
    at_once = 0.0
    #: Requests that may be under way together, …
    requests = 1
    #: … and messages that one brings at most.
    most = MOST

    def __init__(self, channel: Channel, queue: str, broker: str, topic: str) -> None:
        self.channel = channel
        self.queue = queue
        self.broker = broker
        self.topic = topic
        self.not_before = 0.0
        self._numbers = itertools.count()
        self._under_way: dict[int, int] = {}  # number of a request -> messages that it may bring
        self._closed = False
        self._backoff = Backoff()

    @property
    def asked(self) -> int:
        """Messages that may come of what is under way."""
        return sum(self._under_way.values())

    def may_ask(self, now: float) -> bool:
        """Whether another request may leave; `now`: monotonic seconds."""
        return len(self._under_way) < self.requests and self.not_before <= now

    def give_up(self) -> None:
        """What is under way is not waited for any more."""
        self._under_way.clear()

    def ask(self, count: int) -> None:
        """Ask for up to `count` messages, of which at most `most` come."""
        address = self.channel.cluster.address_of(self.broker, self.topic)
        if address is None:
            self.failed(f"broker {self.broker} has no master just now")
            return
        number, count = next(self._numbers), min(count, self.most)
        try:
            self.channel.connection.engine.send(
                address,
                *self.request(count, POLL),
                timeout=POLL + _SLACK,
                done=lambda answer: self._done(answer, address, number),
                lane=self.channel.lane,
            )
        except RemotingError as error:
            self.failed(str(error))
        else:
            self._under_way[number] = count

    def close(self) -> None:
        """What still comes is given back."""
        self._closed = True

    def _done(self, answer: Command | RemotingError, address: str, number: int) -> None:
        waited_for = self._under_way.pop(number, None) is not None
        if isinstance(answer, RemotingError):
            if waited_for:
                self.failed(str(answer))
            return
        if self.take(answer, address) and self._backoff.reason:
            log.info("queue %s: broker %s answers again", self.queue, self.broker)
            self._backoff.succeeded()
        if not self._closed:
            self.channel.go_on()

    def failed(self, reason: str) -> None:
        """Nothing came; the next attempt is made a little later, and to where the broker is then."""
        if self._closed:
            return
        level = logging.DEBUG if self._backoff.reason else logging.WARNING
        log.log(level, "queue %s: nothing comes from broker %s: %s", self.queue, self.broker, reason)
        self.channel.connection.lost(self.topic)
        self._backoff.failed(time.monotonic(), reason)
        self._pause(self._backoff.remaining(time.monotonic()))

    def _pause(self, seconds: float) -> None:
        self.not_before = time.monotonic() + seconds
        self.channel.connection.engine.calls.later(seconds, self.channel.fill)

    def request(self, count: int, poll: float) -> Request:
        """A request that may be held for `poll` seconds."""
        raise NotImplementedError

    def take(self, answer: Command, address: str) -> bool:
        """Deal with an answer; False when it was an error."""
        raise NotImplementedError


class WorkSource(Source):
    """A work queue's topic, or its companion (`ordered`: one message after the other of each of its queues), by POP."""

    at_once = 0.1  # Apache's brokers need a moment until what they acknowledged can be popped
    requests = 2

    def __init__(self, channel: Channel, queue: str, broker: str, topic: str, group: str, ordered: bool) -> None:
        super().__init__(channel, queue, broker, topic)
        self.group = group
        self.ordered = ordered
        self.most = 1 if ordered else MOST
        header_decoder(PopMessageResponse)  # the first message need not wait until it is made

    def request(self, count: int, poll: float) -> Request:
        return pop_request(
            self.group,
            self.topic,
            self.broker,
            count=count,
            lease_ms=int(self.channel.keeper.lease * 1000),
            poll_ms=int(poll * 1000),
            now_ms=int(time.time() * 1000),
            init_mode=OLDEST,
            order=self.ordered,
            holder=self.channel.connection.engine.holder,
        )

    def take(self, answer: Command, address: str) -> bool:
        try:
            popped = read_pop(answer, self.group, self.topic, self.broker, address)
        except (BrokerError, CorruptRecord) as error:
            self.failed(str(error))
            return False
        if popped.full:
            self._pause(_AFTER_FULL)
        if popped.messages:
            seconds = self.channel.keeper.lease
            rest = answer.header(PopMessageResponse).rest_num + len(popped.messages) - 1
            arrivals: list[Arrival] = [
                (message, Lease(self.group, receipt, address, seconds), rest - index)
                for index, (message, receipt) in enumerate(zip(popped.messages, popped.receipts, strict=True))
            ]
            if self._closed:
                for _, lease, _ in arrivals:
                    if lease is not None:
                        self.channel.keeper.give_back(lease)
            else:
                self.channel.arrived(self.queue, arrivals)
        return True


class CursorSource(Source):
    """A short-lived queue: what is tagged with its name in one queue of the topic that all of them share."""

    def __init__(
        self, channel: Channel, queue: str, broker: str, topic: str, queue_id: int, offset: int, tag: str
    ):
        super().__init__(channel, queue, broker, topic)
        self.queue_id = queue_id
        self.offset = offset
        self.tag = tag

    def request(self, count: int, poll: float) -> Request:
        header = PullMessageHeader(
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
        return Request(RequestCode.PULL_MESSAGE, header)

    def take(self, answer: Command, address: str) -> bool:
        if answer.code not in _PULLED:
            self.failed(f"code {answer.code}: {answer.remark}")
            return False
        self.offset = answer.header(PullMessageResponse).next_begin_offset
        self.channel.moved(self.queue, self.offset)
        if answer.code == ResponseCode.SUCCESS and not self._closed:
            found = decode_messages(bytes(answer.body), self.broker)
            self.channel.arrived(self.queue, [(each, None, 0) for each in found if each.has_tag((self.tag,))])
        return True
