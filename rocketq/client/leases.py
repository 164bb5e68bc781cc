"""What a POP consumer holds: leases that are prolonged while work goes on, and acknowledgements sent in bulk.

A popped message is ours for the lease. While it waits or is worked on, its lease is renewed at half-time
(CHANGE_MESSAGE_INVISIBLETIME, which gives a new receipt), and at once when a connection to its broker has ended: that
takes us for gone when we do not come back within the grace. What is done is acknowledged with what else is done at the
moment, in one request a broker. What is not done is told when to come again, or simply comes when the lease ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from rocketq.client.pop_calls import (
    PopCalls,
    Popped,
    Request,
    ack_request,
    batch_ack_request,
    change_request,
    read_change,
)
from rocketq.client.troubles import Troubles
from rocketq.errors import BrokerError, RemotingError, RocketQError
from rocketq.message import ReceivedMessage
from rocketq.remoting.codes import ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.receipts import Receipt, fits
from rocketq.remoting.waiting import cancel_all

log = logging.getLogger("rocketq.client")

#: Acknowledgements wait so long (seconds) for others, or until so many have come together.
ACK_DELAY, ACK_BATCH = 0.003, 256
#: Seconds until an acknowledgement that failed is sent again, and those that its answer gets.
AGAIN, TIMEOUT = 0.5, 3.0

_HOPELESS = frozenset(
    {
        ResponseCode.NO_MESSAGE,
        ResponseCode.TOPIC_NOT_EXIST,
        ResponseCode.MESSAGE_ILLEGAL,
        ResponseCode.NO_PERMISSION,
    }
)


class Held:
    """A message that is ours until `expires` (seconds of the monotonic clock), or that was and is `lost`.

    `losses`: how often a connection to its broker had ended (`PopCalls.losses`) when we last asked for it.
    """

    __slots__ = ("expires", "losses", "lost", "message", "receipt", "renewing", "then")

    def __init__(self, message: ReceivedMessage, receipt: Receipt, expires: float, losses: int) -> None:
        self.message = message
        self.receipt = receipt
        self.expires = expires
        self.losses = losses
        self.lost = False
        self.renewing = False
        #: What to do when the renewal that is under way has brought the receipt.
        self.then: Callable[[], None] | None = None


class Leases:
    """Everything that one consumer holds. `lease` in seconds; `room` is called when it holds less."""

    def __init__(
        self,
        calls: PopCalls,
        lease: float,
        room: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._group = calls.group
        self._lease = lease
        self._room = room
        self._clock = clock
        self._held: dict[Held, None] = {}
        self._done: dict[str, list[Held]] = {}
        self._under_way: set[asyncio.Future[Command]] = set()
        self._flush_timer: asyncio.TimerHandle | None = None
        #: Brokers that take acknowledgements only one by one.
        self._one_by_one: set[str] = set()
        #: Brokers that a lease waits for, and attempts to reach them.
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._troubles = Troubles()
        self._keeper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def begin(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name=f"rocketq-leases-{self._group}")

    async def close(self, timeout: float) -> bool:
        """Sends what is left to send; False when brokers did not take all of it within `timeout` seconds."""
        end = self._clock() + timeout
        while self._done or self._under_way:
            self._flush()
            left = end - self._clock()
            if left <= 0:
                break
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(min(left, 0.05))
                await asyncio.gather(*[self._connect(broker) for broker in self._done])
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        if self._keeper is not None:
            await cancel_all([self._keeper, *self._connecting.values()])
        return not self._done and not self._under_way

    async def _connect(self, broker: str) -> None:
        try:
            await self._calls.connect(broker, TIMEOUT)
        except RocketQError as error:
            log.debug("group %s: broker %s hears nothing of what is held: %s", self._group, broker, error)
        finally:
            self._connecting.pop(broker, None)

    # taking and settling

    def take(self, popped: Popped, losses: int) -> list[Held]:
        """The messages of a pop, just arrived. `losses`: `PopCalls.losses` when they were asked for."""
        expires = self._clock() + self._lease
        fresh = [Held(m, r, expires, losses) for m, r in zip(popped.messages, popped.receipts, strict=True)]
        self._held.update(dict.fromkeys(fresh))
        return fresh

    def ack(self, done: Iterable[Held]) -> None:
        """These are consumed."""
        for held in done:
            if held.lost:
                log.warning(
                    "group %s: %s is done, but its lease had ended: it comes again", self._group, held.message
                )
            elif held.renewing:
                held.then = partial(self.ack, (held,))
            else:
                self._let_go(held)
                waiting = self._done.get(held.receipt.broker_name)
                if waiting is None:
                    waiting = self._done[held.receipt.broker_name] = []
                waiting.append(held)
                if len(waiting) >= ACK_BATCH:
                    self._send_acks(held.receipt.broker_name)
        if self._done and self._flush_timer is None:
            self._flush_soon(ACK_DELAY)

    def give_back(self, held: Held, delay: float, *, begun: bool = True) -> None:
        """It is to come again in `delay` seconds. When the broker cannot be told, it comes when the lease ends.

        It is nobody's from now on: it comes no sooner when we are gone. With `begun` False this was no attempt.
        What is acknowledged, given back or lost already stays so.
        """
        if held not in self._held or held.then is not None:
            return
        delay_ms = max(1, round(delay * 1000))  # raises before anything is changed
        if held.renewing:
            held.then = partial(self.give_back, held, delay, begun=begun)
            return
        self._let_go(held)
        request = change_request(self._group, held.receipt, delay_ms, give_back=not begun)
        try:
            future = self._calls.submit(held.receipt.broker_name, request, TIMEOUT)
        except RocketQError as error:
            self._not_given_back(held, error)
            return
        self._under_way.add(future)
        future.add_done_callback(partial(self._given_back, held))

    def _let_go(self, held: Held) -> None:
        self._held.pop(held, None)
        self._room()

    def _given_back(self, held: Held, future: asyncio.Future[Command]) -> None:
        self._under_way.discard(future)
        try:
            read_change(_answer(future), held.receipt, held.receipt.broker_name)
        except RocketQError as error:
            self._not_given_back(held, error)

    def _not_given_back(self, held: Held, error: RocketQError) -> None:
        level = self._troubles.level(("back", held.receipt.broker_name))
        log.log(level, "group %s: %s comes again only when its lease ends: %s", self._group, held.message, error)

    # acknowledgements

    def _flush_soon(self, delay: float) -> None:
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(delay, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for broker in list(self._done):
            self._send_acks(broker)

    def _send_acks(self, broker: str) -> None:
        done, holder = self._done.pop(broker), self._calls.holder
        if broker in self._one_by_one:
            alone = done
        else:
            alone = [held for held in done if not fits(held.receipt)]
            together = [held for held in done if fits(held.receipt)] if alone else done
            if together:
                receipts = [held.receipt for held in together]
                self._send(broker, together, partial(batch_ack_request, broker, self._group, receipts, holder))
        for held in alone:
            self._send(broker, [held], partial(ack_request, self._group, held.receipt, holder))

    def _send(self, broker: str, done: list[Held], make: Callable[[], Request]) -> None:
        try:
            future = self._calls.submit(broker, make(), TIMEOUT)
        except RocketQError as error:
            self._ack_again(broker, done, error)
            return
        self._under_way.add(future)
        future.add_done_callback(partial(self._acked, broker, done))

    def _acked(self, broker: str, done: list[Held], future: asyncio.Future[Command]) -> None:
        self._under_way.discard(future)
        try:
            answer = _answer(future)
        except RocketQError as error:
            self._ack_again(broker, done, error)
            return
        if answer.code == ResponseCode.SUCCESS:
            self._troubles.over(("ack", broker))
            return
        if answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED and broker not in self._one_by_one:
            log.info("group %s: broker %s takes acknowledgements one by one", self._group, broker)
            self._one_by_one.add(broker)
            self._done.setdefault(broker, []).extend(done)
            self._flush_soon(0)
            return
        refused = BrokerError(answer.code, answer.remark, broker)
        if answer.code in _HOPELESS:
            log.warning("group %s: %s cannot be acknowledged: %s", self._group, done[0].message, refused)
        else:
            self._ack_again(broker, done, refused)

    def _ack_again(self, broker: str, done: list[Held], error: RocketQError) -> None:
        now = self._clock()
        again = [held for held in done if held.expires > now]
        level = self._troubles.level(("ack", broker))
        log.log(level, "group %s: %d messages are not acknowledged yet: %s", self._group, len(done), error)
        if len(again) < len(done):
            log.warning(
                "group %s: %d messages that were consumed come again, broker %s did not take their acknowledgement: %s",
                self._group,
                len(done) - len(again),
                broker,
                error,
            )
        if again:
            self._done.setdefault(broker, []).extend(again)
            self._flush_soon(AGAIN)

    # leases

    async def _keep(self) -> None:
        pause = min(1.0, self._lease / 20)
        while True:
            await asyncio.sleep(pause)
            self._renew()

    def _renew(self) -> None:
        """Renews the leases of which half has passed, and all of brokers that may take us for gone.

        What cannot be sent now is met again in a moment.
        """
        now = self._clock()
        losses = {
            broker: self._calls.losses(broker) for broker in {held.receipt.broker_name for held in self._held}
        }
        for held in list(self._held):
            if held.expires <= now:
                self._lose(held, "the broker did not renew it in time")
            elif not held.renewing:
                lost = losses[held.receipt.broker_name]
                if held.expires <= now + self._lease / 2 or held.losses != lost:
                    self._ask_for(held, now, lost)

    def _ask_for(self, held: Held, now: float, losses: int) -> None:
        broker = held.receipt.broker_name
        request = change_request(self._group, held.receipt, round(self._lease * 1000), holder=self._calls.holder)
        try:
            # listened to until the lease ends: the broker may have renewed it although it answers late, and
            # then takes no acknowledgement that names the old receipt
            future = self._calls.submit(broker, request, held.expires - now)
        except RocketQError as error:
            log.debug("group %s: the lease of %s waits: %s", self._group, held.message, error)
            if broker not in self._connecting:
                self._connecting[broker] = asyncio.create_task(self._connect(broker))
            return
        held.renewing = True
        self._under_way.add(future)
        future.add_done_callback(partial(self._renewed, held, now, losses))

    def _renewed(self, held: Held, asked_at: float, losses: int, future: asyncio.Future[Command]) -> None:
        self._under_way.discard(future)
        held.renewing = False
        try:
            held.receipt = read_change(_answer(future), held.receipt, held.receipt.broker_name)
        except RocketQError as error:
            if isinstance(error, BrokerError) and error.code in _HOPELESS:
                self._lose(held, str(error))
            log.debug("group %s: the lease of %s was not renewed: %s", self._group, held.message, error)
        else:
            held.expires = asked_at + self._lease
            held.losses = losses
        then, held.then = held.then, None
        if then is not None:
            then()

    def _lose(self, held: Held, why: str) -> None:
        if held in self._held:
            self._let_go(held)
            held.lost = True
            level = self._troubles.level("lost")
            log.log(
                level, "group %s: the lease of %s has ended, it comes again: %s", self._group, held.message, why
            )


def _answer(future: asyncio.Future[Command]) -> Command:
    """What the future got. Raises RemotingError."""
    if future.cancelled():
        raise RemotingError("the connection was closed")
    error = future.exception()
    if error is not None:
        raise error
    return future.result()
