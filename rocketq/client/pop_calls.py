"""The requests of POP consumption: pop, acknowledge, acknowledge many, change the lease.

Functions make requests and read answers without I/O, for drivers of any kind; `PopCalls` is the one for asyncio.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from rocketq.errors import BrokerError, RouteNotFound
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, Header
from rocketq.remoting.headers.pop import (
    AckMessageHeader,
    BatchAckHeader,
    ChangeInvisibleTimeHeader,
    ChangeInvisibleTimeResponse,
    PopMessageHeader,
    PopMessageResponse,
)
from rocketq.remoting.receipts import Receipt, batch_ack, receipts

if TYPE_CHECKING:
    import asyncio

    from rocketq.client.instance import ClientInstance

#: Most messages that a broker gives at once.
MOST_AT_ONCE = 32
#: Where a group without a position begins: with the first message of each queue, or with the last one (brokers give
#: all, as long as the first one is still in memory).
OLDEST, NEWEST = 0, 1

_EMPTY = frozenset({ResponseCode.POLLING_TIMEOUT, ResponseCode.POLLING_FULL, ResponseCode.PULL_NOT_FOUND})


class PopNotSupported(BrokerError):
    """The broker does not offer POP: it is one of RocketMQ 4, or its timers are switched off."""


class Request(NamedTuple):
    """What is sent."""

    code: int
    header: Header | dict[str, str]
    body: bytes = b""


class Holder(NamedTuple):
    """Who pops. Brokers give out what he holds `grace_ms` after his side has ended his last connection.

    So a living client never ends its last one while it holds messages. Apache's brokers ignore it.
    """

    name: str
    grace_ms: int = 0


def _fields(holder: Holder | None) -> dict[str, Any]:
    """What a header says of it."""
    return {} if holder is None else {"holder": holder.name, "holder_grace": holder.grace_ms}


class Popped(NamedTuple):
    """What a pop brought; `full`: the broker has too many waiting requests and did not let this one wait."""

    messages: list[ReceivedMessage]
    receipts: list[Receipt]
    full: bool = False


def pop_request(
    group: str,
    topic: str,
    broker_name: str,
    *,
    count: int,
    lease_ms: int,
    poll_ms: int,
    now_ms: int,
    expression: str = "*",
    expression_type: str = "TAG",
    init_mode: int = NEWEST,
    order: bool = False,
    holder: Holder | None = None,
) -> Request:
    """Up to `count` messages of any queue, held back from others for `lease_ms`; waits up to `poll_ms` for one.

    With `order` a queue gives nothing more until all that it gave is acknowledged, or its lease is over.
    """
    header = PopMessageHeader(
        consumer_group=group,
        topic=topic,
        queue_id=-1,
        max_msg_nums=count,
        invisible_time=lease_ms,
        poll_time=poll_ms,
        born_time=now_ms,
        init_mode=init_mode,
        exp_type=expression_type,
        exp=expression,
        order=order,
        **_fields(holder),
        bname=broker_name,
    )
    return Request(RequestCode.POP_MESSAGE, header)


def read_pop(answer: Command, group: str, topic: str, broker_name: str, address: str) -> Popped:
    """What the pop brought. Raises PopNotSupported, BrokerError, CorruptRecord."""
    code = answer.code
    if code == ResponseCode.SUCCESS:
        messages = decode_messages(answer.body, broker_name)
        told = answer.header(PopMessageResponse)
        return Popped(messages, receipts(told, messages, topic, group, broker_name))
    if code in _EMPTY:
        return Popped([], [], code == ResponseCode.POLLING_FULL)
    if code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED or "timerWheelEnable" in (answer.remark or ""):
        raise PopNotSupported(code, answer.remark, address)
    raise BrokerError(code, answer.remark, address)


def ack_request(group: str, receipt: Receipt, holder: Holder | None = None) -> Request:
    """The message is consumed."""
    header = AckMessageHeader(
        consumer_group=group,
        topic=receipt.topic,
        queue_id=receipt.queue_id,
        extra_info=str(receipt),
        offset=receipt.offset,
        **_fields(holder),
        bname=receipt.broker_name,
    )
    return Request(RequestCode.ACK_MESSAGE, header)


def batch_ack_request(
    broker_name: str, group: str, acked: Collection[Receipt], holder: Holder | None = None
) -> Request:
    """All these messages of one broker are consumed. Only for receipts that `fits`."""
    header = BatchAckHeader(**_fields(holder))
    return Request(RequestCode.BATCH_ACK_MESSAGE, header, batch_ack(broker_name, group, acked))


def change_request(
    group: str, receipt: Receipt, invisible_ms: int, *, give_back: bool = False, holder: Holder | None = None
) -> Request:
    """The message comes again in `invisible_ms` from now, unless it is acknowledged before.

    `give_back`: that is no further attempt, as nobody worked on it. Apache's brokers do not know that and count it.
    """
    header = ChangeInvisibleTimeHeader(
        consumer_group=group,
        topic=receipt.topic,
        queue_id=receipt.queue_id,
        extra_info=str(receipt),
        offset=receipt.offset,
        invisible_time=invisible_ms,
        give_back=give_back or None,
        **_fields(holder),
        bname=receipt.broker_name,
    )
    return Request(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, header)


def read_change(answer: Command, receipt: Receipt, address: str) -> Receipt:
    """The receipt that counts from now on. Raises BrokerError."""
    if answer.code != ResponseCode.SUCCESS:
        raise BrokerError(answer.code, answer.remark, address)
    return receipt.renewed(answer.header(ChangeInvisibleTimeResponse))


class PopCalls:
    """Requests of one group from an event loop. All raise RouteNotFound for a broker whose address is not known.

    `holder`: who pops, if that is to be said.
    """

    def __init__(self, instance: ClientInstance, group: str, holder: Holder | None = None) -> None:
        self.instance = instance
        self.group = group
        self.holder = holder

    def address(self, broker_name: str) -> str:
        """The master's address: only it keeps leases."""
        address = self.instance.routes.master(broker_name)
        if address is None:
            raise RouteNotFound(f"no address of broker {broker_name} is known (group {self.group})")
        return address

    def losses(self, broker_name: str) -> int:
        """How often a connection to the broker has ended."""
        return self.instance.losses[self.instance.routes.master(broker_name) or ""]

    async def connect(self, broker_name: str, timeout: float) -> None:
        """Raises ConnectFailed."""
        await self.instance.remoting.connect(self.address(broker_name), timeout)

    async def begin(self, broker_name: str, request: Request, timeout: float) -> asyncio.Future[Command]:
        """Sends a request, connecting first where that is needed; the future gets the answer.

        Raises ConnectFailed, TooManyInFlight; the future ConnectionLost, RequestTimeout.
        """
        address = self.address(broker_name)
        if not self.instance.remoting.is_connected(address):
            await self.instance.remoting.connect(address, self.instance.timeout)
        return self.instance.remoting.submit(address, *request, timeout)

    def submit(self, broker_name: str, request: Request, timeout: float) -> asyncio.Future[Command]:
        """Sends a request at once. Raises ConnectFailed when there is no connection, TooManyInFlight."""
        return self.instance.remoting.submit(self.address(broker_name), *request, timeout)
