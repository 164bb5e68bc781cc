"""What a channel has been given and not yet settled: Kombu's QoS over POP's leases.

A popped message is this process's for the lease. While it is worked on, the lease is renewed
(CHANGE_MESSAGE_INVISIBLETIME gives a new receipt); when the process dies, the broker hands the message to somebody
else as soon as the lease ends. Acknowledgements may come from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rocketq.errors import ConnectFailed, RemotingError
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers import AckMessageHeader, ChangeInvisibleTimeHeader, ChangeInvisibleTimeResponse

if TYPE_CHECKING:
    from rocketq_kombu.engine import Engine

log = logging.getLogger("rocketq.kombu")

#: Seconds that a broker has for an answer.
_TIMEOUT = 5.0
#: Seconds between attempts to settle a message whose broker is away.
_AGAIN = 1.0


class Lease:
    """One message of a work queue in our hands.

    `topic`, `queue_id`, `offset`: where the message is (a retry topic, when it is not its first delivery); `receipt`:
    POP's extra info; `until`: monotonic seconds.
    """

    __slots__ = (
        "address",
        "broker",
        "busy",
        "group",
        "offset",
        "queue_id",
        "receipt",
        "settled",
        "topic",
        "until",
    )

    def __init__(
        self,
        group: str,
        topic: str,
        broker: str,
        address: str,
        queue_id: int,
        offset: int,
        receipt: str,
        until: float,
    ) -> None:
        self.group = group
        self.topic = topic
        self.broker = broker
        self.address = address
        self.queue_id = queue_id
        self.offset = offset
        self.receipt = receipt
        self.until = until
        self.busy = False  # a renewal is under way: the receipt is about to change
        self.settled: Callable[[], None] | None = None  # what is to be done after that


class Keeper:
    """Acknowledges, gives back and renews leases. `lease`: seconds."""

    def __init__(self, engine: Engine, lease: float, address_of: Callable[[str], str | None]) -> None:
        self._engine = engine
        self.lease = lease
        self._address_of = address_of
        self._lock = threading.Lock()  # of `busy` and `settled`

    def _later(self, lease: Lease, call: Callable[[], None]) -> bool:
        """True when `call` has to wait for the receipt that a renewal is about to bring."""
        with self._lock:
            if lease.busy:
                lease.settled = call
            return lease.busy

    def ack(self, lease: Lease) -> None:
        """The message is done with."""
        if self._later(lease, lambda: self.ack(lease)):
            return
        header = AckMessageHeader(
            consumer_group=lease.group,
            topic=lease.topic,
            queue_id=lease.queue_id,
            extra_info=lease.receipt,
            offset=lease.offset,
            bname=lease.broker,
        )

        def done(answer: Command | RemotingError) -> None:
            if isinstance(answer, RemotingError):
                self._try_again(lease, lambda: self.ack(lease), answer)
            elif answer.code != ResponseCode.SUCCESS:
                log.warning("%s of %s was not acknowledged: %s", lease.offset, lease.topic, answer.remark)

        self._send(lease, RequestCode.ACK_MESSAGE, header, done, lambda: self.ack(lease))

    def give_back(self, lease: Lease) -> None:
        """Somebody else may have the message at once."""
        if self._later(lease, lambda: self.give_back(lease)):
            return

        def done(answer: Command | RemotingError) -> None:
            if isinstance(answer, RemotingError) or answer.code != ResponseCode.SUCCESS:
                log.info("offset %d of %s comes back when its lease ends: %s", lease.offset, lease.topic, answer)

        self._change(lease, 1, done, lambda: None)

    def renew(self, lease: Lease) -> None:
        """Keep the message, which is marked as busy, for another lease."""
        began = time.monotonic()

        def done(answer: Command | RemotingError) -> None:
            if isinstance(answer, Command) and answer.code == ResponseCode.SUCCESS:
                header = answer.header(ChangeInvisibleTimeResponse)
                kind = lease.receipt.split(" ")[4]
                lease.until = began + self.lease
                lease.receipt = (
                    f"{lease.offset} {header.pop_time} {header.invisible_time} {header.revive_qid} {kind} "
                    f"{lease.broker} {lease.queue_id} {lease.offset}"
                )
            else:
                reason = answer.remark if isinstance(answer, Command) else answer
                log.warning("the lease of offset %d of %s was not renewed: %s", lease.offset, lease.topic, reason)
            free()

        def free() -> None:
            with self._lock:
                lease.busy = False
                settled, lease.settled = lease.settled, None
            if settled is not None:
                settled()

        self._change(lease, int(self.lease * 1000), done, free)

    def _change(
        self, lease: Lease, ms: int, done: Callable[[Command | RemotingError], None], failed: Callable[[], None]
    ) -> None:
        header = ChangeInvisibleTimeHeader(
            consumer_group=lease.group,
            topic=lease.topic,
            queue_id=lease.queue_id,
            extra_info=lease.receipt,
            offset=lease.offset,
            invisible_time=ms,
            bname=lease.broker,
        )
        self._send(lease, RequestCode.CHANGE_MESSAGE_INVISIBLETIME, header, done, failed)

    def _send(
        self,
        lease: Lease,
        code: int,
        header: Any,
        done: Callable[[Command | RemotingError], None],
        failed: Callable[[], None],
    ) -> None:
        address = self._address_of(lease.broker) or lease.address
        try:
            self._engine.send(address, code, header, timeout=_TIMEOUT, done=done)
        except ConnectFailed as error:
            if code == RequestCode.ACK_MESSAGE:
                self._try_again(lease, failed, error)
            else:
                failed()

    def _try_again(self, lease: Lease, call: Callable[[], None], why: RemotingError) -> None:
        """Receipts hold over a restart of the broker; when the lease is over there is nothing left to do."""
        if time.monotonic() + _AGAIN > lease.until:
            log.warning(
                "offset %d of %s will come again, it was not acknowledged: %s", lease.offset, lease.topic, why
            )
        else:
            self._engine.later(_AGAIN, call)


class Leases:
    """Kombu's QoS of a channel: at most `prefetch_count` messages (0: any number) that are not settled."""

    def __init__(self, channel: Any, keeper: Keeper, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._keeper = keeper
        self._lock = threading.Lock()
        #: delivery tag -> message and its lease; short-lived queues have none
        self._held: dict[str, tuple[Any, Lease | None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def can_consume(self) -> bool:
        return not self.prefetch_count or len(self._held) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        return max(self.prefetch_count - len(self._held), 0) if self.prefetch_count else None

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message was handed out."""
        with self._lock:
            self._held[delivery_tag] = message, message.lease

    def get(self, delivery_tag: str) -> Any:
        return self._held[delivery_tag][0]

    def _take(self, delivery_tag: str) -> tuple[Any, Lease | None] | None:
        with self._lock:
            return self._held.pop(delivery_tag, None)

    def ack(self, delivery_tag: str) -> None:
        found = self._take(delivery_tag)
        if found is not None:
            if found[1] is not None:
                self._keeper.ack(found[1])
            self.channel.settled()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put the message at the end of its queue again, or into the queue's dead letters."""
        found = self._take(delivery_tag)
        if found is None:
            return
        message, lease = found
        if requeue:
            self.channel.requeue(message)
        else:
            self.channel.dead_letter(message)
        if lease is not None:
            self._keeper.ack(lease)
        self.channel.settled()

    def renew(self) -> None:
        """Renew what has less than two thirds of its lease left."""
        soon = time.monotonic() + self._keeper.lease * 2 / 3
        with self._lock:
            due = [lease for _, lease in self._held.values() if lease and lease.until < soon and not lease.busy]
            for lease in due:
                lease.busy = True
        for lease in due:
            self._keeper.renew(lease)

    def restore_unacked(self) -> list[Any]:
        """Give everything back that is not settled."""
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for message, lease in held:
            if lease is not None:
                self._keeper.give_back(lease)
            else:
                self.channel.requeue(message)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        self.restore_unacked()
