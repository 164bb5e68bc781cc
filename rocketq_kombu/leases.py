"""What a channel has been given and not yet settled: Kombu's QoS over POP's leases.

A popped message is this process's for the lease. While it is worked on, the lease is renewed
(CHANGE_MESSAGE_INVISIBLETIME gives a new receipt); when the process dies, the broker hands the message to somebody
else: at once where our connections end with us, otherwise when the lease ends. Acknowledgements may come from any
thread; under an event loop those of some rounds leave in one request, with the one for more messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from rocketq.client.pop_calls import Request, ack_request, batch_ack_request, change_request, read_change
from rocketq.errors import BrokerError, ConnectFailed, RemotingError
from rocketq.remoting.codes import ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.receipts import Receipt, fits
from rocketq_kombu.unstarted import drop

if TYPE_CHECKING:
    from rocketq_kombu.engine import Engine

log = logging.getLogger("rocketq.kombu")

#: Seconds that a broker has for an answer.
_TIMEOUT = 5.0
#: Seconds between attempts to settle a message whose broker is away.
_AGAIN = 1.0
#: Has an address, code and header answered, and waits for that.
Ask = Callable[..., Command]
#: `reviveQueue` of messages popped in order: a batch of acknowledgements would not say when each was popped.
_ORDERED = 999


class Lease:
    """One message of a work queue in our hands. Times: monotonic seconds. `lost`: it is somebody else's by now."""

    __slots__ = ("address", "busy", "group", "lost", "receipt", "renew_at", "settled", "until")

    def __init__(self, group: str, receipt: Receipt, address: str, seconds: float) -> None:
        self.group = group
        self.receipt = receipt
        self.address = address
        self.lost = False
        self.last(time.monotonic(), seconds)
        self.busy = False  # a renewal is under way: the receipt is about to change
        self.settled: Callable[[], None] | None = None  # what is to be done after that

    def last(self, now: float, seconds: float) -> None:
        """It is ours for so long, and should be renewed when a third of that is over."""
        self.until, self.renew_at = now + seconds, now + seconds / 3

    def __str__(self) -> str:
        return f"offset {self.receipt.offset} of queue {self.receipt.queue_id} of {self.receipt.topic}"


class Keeper:
    """Acknowledges, gives back and renews leases.

    `lease`: seconds; `lane`: where messages are asked for; `waits` is told that there is something to
    :meth:`flush`, under an event loop; `lost` of leases that others have by now.
    """

    def __init__(
        self,
        engine: Engine,
        lane: Hashable,
        lease: float,
        address_of: Callable[[str], str | None],
        waits: Callable[[], None],
        lost: Callable[[Lease], None],
    ) -> None:
        self._engine = engine
        self._lane = lane
        self.lease = lease
        self._address_of = address_of
        self._waits = waits
        self._lost = lost
        self._lock = threading.Lock()  # of `busy`, `settled` and `_done`
        self._done: list[Lease] = []  # to be acknowledged

    def _later(self, lease: Lease, call: Callable[[], None]) -> bool:
        """True when `call` has to wait for the receipt that a renewal is about to bring."""
        with self._lock:
            if lease.busy:
                lease.settled = call
            return lease.busy

    def ack(self, lease: Lease) -> None:
        """The message is done with."""
        if lease.lost or self._later(lease, lambda: self.ack(lease)):
            return
        with self._lock:
            self._done.append(lease)
            first = len(self._done) == 1
        if not self._engine.attached:
            self.flush()
        elif first:
            self._waits()

    @property
    def waiting(self) -> bool:
        """Whether there are acknowledgements to send."""
        return bool(self._done)

    def flush(self) -> None:
        """Send the acknowledgements that are waiting."""
        with self._lock:
            done, self._done = self._done, []
        together: dict[tuple[str, str], list[Lease]] = {}
        for lease in done:
            if fits(lease.receipt) and lease.receipt.revive_queue != _ORDERED and len(done) > 1:
                together.setdefault((lease.receipt.broker_name, lease.group), []).append(lease)
            else:
                self._acknowledge([lease], ack_request(lease.group, lease.receipt, self._engine.holder))
        for (broker, group), leases in together.items():
            receipts = [one.receipt for one in leases]
            self._acknowledge(leases, batch_ack_request(broker, group, receipts, self._engine.holder))

    def _acknowledge(self, leases: list[Lease], request: Request) -> None:
        def done(answer: Command | RemotingError) -> None:
            if isinstance(answer, RemotingError):
                self._again(leases, answer)
            elif answer.code != ResponseCode.SUCCESS:
                log.warning("%s was not acknowledged: %s", ", ".join(map(str, leases)), answer.remark)

        try:  # where messages are asked for, so that both leave and are answered together
            self._send(leases[0], request, done, self._lane)
        except ConnectFailed as error:
            self._again(leases, error)

    def _again(self, leases: list[Lease], why: RemotingError) -> None:
        """Receipts hold over a restart of the broker; when the lease is over there is nothing left to do."""
        for lease in leases:
            if time.monotonic() + _AGAIN > lease.until:
                log.warning("%s will come again, it was not acknowledged: %s", lease, why)
            else:
                self._engine.calls.later(_AGAIN, partial(self.ack, lease))

    def give_back(self, lease: Lease) -> None:
        """Somebody else may have the message at once; that does not count as an attempt."""
        if lease.lost or self._later(lease, lambda: self.give_back(lease)):
            return

        def done(answer: Command | RemotingError) -> None:
            if isinstance(answer, RemotingError) or answer.code != ResponseCode.SUCCESS:
                log.info("%s comes back when its lease ends: %s", lease, answer)

        try:
            request = change_request(lease.group, lease.receipt, 1, give_back=True, holder=self._engine.holder)
            self._send(lease, request, done)
        except ConnectFailed as error:
            done(error)

    def renew_due(self, leases: Iterable[Lease], ask: Ask | None = None) -> None:
        """Renew those that should be by now; with `ask` wait for the answers."""
        now = time.monotonic()
        with self._lock:
            due = [lease for lease in leases if lease.renew_at <= now and not lease.busy]
            for lease in due:
                lease.busy = True
        for lease in due:
            self._renew(lease, ask)

    def _renew(self, lease: Lease, ask: Ask | None) -> None:
        """Keep the message, which is marked as busy, for another lease."""
        began = time.monotonic()

        def done(answer: Command | RemotingError) -> None:
            try:
                if isinstance(answer, RemotingError):
                    raise answer
                lease.receipt = read_change(answer, lease.receipt, lease.address)
                lease.last(began, self.lease)
            except RemotingError as error:  # who asks for messages warns of it
                log.info("the lease of %s was not renewed yet: %s", lease, error)
            except BrokerError as error:
                log.warning("the lease of %s was not renewed: %s", lease, error)
                lease.lost = error.code == ResponseCode.NO_MESSAGE
            with self._lock:
                lease.busy = False
                settled, lease.settled = lease.settled, None
            if lease.lost:
                self._lost(lease)
            if settled is not None:
                settled()

        lease_ms = int(self.lease * 1000)
        request = change_request(lease.group, lease.receipt, lease_ms, holder=self._engine.holder)
        try:
            if ask is None:
                self._send(lease, request, done)
                return
            answer: Command | RemotingError = ask(self._address(lease), *request)
        except RemotingError as error:
            answer = error
        done(answer)

    def _address(self, lease: Lease) -> str:
        return self._address_of(lease.receipt.broker_name) or lease.address

    def _send(
        self,
        lease: Lease,
        request: Request,
        done: Callable[[Command | RemotingError], None],
        lane: Hashable = None,
    ) -> None:
        address = self._address(lease)
        lane = lane if self._engine.answers(address, lane) else None
        self._engine.send(address, *request, timeout=_TIMEOUT, done=done, lane=lane, wait=True)


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
        if message.lease is not None:
            self.channel.connection.renew_meanwhile()
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
        if lease is not None and lease.lost:
            pass
        elif requeue:
            self.channel.requeue(message)
        else:
            self.channel.dead_letter(message)
        if lease is not None:
            self._keeper.ack(lease)
        self.channel.settled()

    def leases(self) -> list[Lease]:
        """Those of messages that were handed out."""
        with self._lock:
            return [lease for _, lease in self._held.values() if lease is not None and not lease.lost]

    def dropped(self, lease: Lease) -> None:
        """Somebody else has the message: keep it from being worked on here if that has not begun."""
        with self._lock:
            found = [(tag, message) for tag, (message, held) in self._held.items() if held is lease]
        for tag, message in found:
            if drop(message):
                self._take(tag)
                self.channel.settled()

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
