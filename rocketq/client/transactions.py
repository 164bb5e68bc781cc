"""Transactions of producers: a message that is kept back until local work is done, and answers to brokers that ask.

What both producers share is in :class:`HalfMessage`; a `Transaction` and an `AsyncTransaction` are its two drivers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rocketq import properties as names
from rocketq.errors import BrokerError, ConfigError, InvalidMessage, RemotingError, RocketQError, RouteNotFound
from rocketq.message import Message, ReceivedMessage, parse_offset_message_id
from rocketq.record import TRANSACTION_COMMIT, TRANSACTION_ROLLBACK
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers import EndTransactionHeader

if TYPE_CHECKING:
    from rocketq.client.producer import AsyncProducer
    from rocketq.client.sending import SendResult
    from rocketq.client.sync_producer import Producer

log = logging.getLogger("rocketq.client")

#: Decides what becomes of a message whose producer has not said: True commits it, False rolls it back, None leaves it
#: open, so that a broker asks again. Sync or async; sync functions run in threads.
Check = Callable[[ReceivedMessage], "bool | Awaitable[bool | None] | None"]


class HalfMessage:
    """A message on its way through a transaction. `result` says where its half message is, once it is sent."""

    def __init__(self, group: str, message: Message, check_after: int | None) -> None:
        half = Message(message.topic, message.body, flag=message.flag)
        half.properties.clear()
        half.properties.update(message.properties)
        half.properties.pop(names.UNIQ_KEY, None)
        half.properties.update({names.TRAN_MSG: "true", names.PGROUP: group})
        if check_after is not None:
            if check_after < 1:
                raise InvalidMessage(f"transaction for topic {message.topic}: check_after has to be 1 s or more")
            half.properties[names.CHECK_IMMUNITY_TIME] = str(check_after)
        self.group = group
        self.message = half
        self.result: SendResult | None = None
        self.decided = False

    def __repr__(self) -> str:
        where = self.result.message_id if self.result else "not sent"
        return f"<{type(self).__name__} topic={self.message.topic} {where}>"

    def _sent(self, result: SendResult) -> bool:
        """Notes the result; False when the broker is not sure to keep the message."""
        self.result = result
        return result.status == "SEND_OK"

    def _unsure(self) -> BrokerError:
        assert self.result is not None
        remark = f"the half message for topic {self.message.topic} is not safe and was rolled back"
        return BrokerError(ResponseCode[self.result.status], remark, self.result.queue.broker_name)

    def _decide(self, how: int) -> EndTransactionHeader:
        """The request that ends it. Raises ConfigError when it has not begun or was decided."""
        result = self.result
        if result is None:
            raise ConfigError(f"the transaction for topic {self.message.topic} has not begun: use `with`")
        if self.decided:
            raise ConfigError(
                f"the transaction {result.message_id} for topic {self.message.topic} is decided already"
            )
        self.decided = True
        return EndTransactionHeader(
            topic=self.message.topic,
            producer_group=self.group,
            tran_state_table_offset=result.queue_offset,
            commit_log_offset=parse_offset_message_id(result.offset_message_id)[2],
            commit_or_rollback=how,
            msg_id=result.message_id,
            transaction_id=result.transaction_id,
            bname=result.queue.broker_name,
        )

    def _master(self, address: str | None) -> str:
        assert self.result is not None
        if address is None:
            broker = self.result.queue.broker_name
            raise RouteNotFound(f"broker {broker}, which has the half message, has no master just now")
        return address

    def _left_open(self, error: RocketQError) -> None:
        log.warning("%r could not be rolled back and stays open until its broker asks: %s", self, error)


def check_ended(answer: Command, address: str) -> None:
    """Raises BrokerError when the broker did not take the end of a transaction."""
    if answer.code != ResponseCode.SUCCESS:
        raise BrokerError(answer.code, answer.remark, address)


class Transaction(HalfMessage):
    """A transaction of a `Producer`, see its method `transaction`."""

    def __init__(
        self, producer: Producer, message: Message, check_after: int | None, timeout: float, **how: Any
    ) -> None:
        super().__init__(producer.group, message, check_after)
        self._producer = producer
        self._timeout = timeout
        self._how = how

    def begin(self) -> None:
        """Sends the half message. Raises as `send`; nothing is to be done then."""
        self._producer.introduce(self.message.topic)
        if self._sent(self._producer.send(self.message, timeout=self._timeout, **self._how)):
            return
        self._roll_back_anyhow()
        raise self._unsure()

    def commit(self) -> None:
        """Lets consumers have the message.

        Raises BrokerError when it was decided otherwise before, RemotingError when nobody knows whether the broker
        heard it: it asks then (see `check` of the producer).
        """
        self._end(TRANSACTION_COMMIT)

    def rollback(self) -> None:
        """Makes as if the message had never been. Raises as `commit`."""
        self._end(TRANSACTION_ROLLBACK)

    def _end(self, how: int) -> None:
        header = self._decide(how)
        address = self._master(self._producer.routes.master(header.bname or ""))
        self._producer.end_transaction(address, self.message, header, self._timeout)

    def _roll_back_anyhow(self) -> None:
        try:
            self.rollback()
        except (RemotingError, BrokerError, RouteNotFound) as error:
            self._left_open(error)

    def __enter__(self) -> Transaction:
        if self.result is None:
            self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.decided:
            return
        if error is None:
            self.commit()
        else:
            self._roll_back_anyhow()


class AsyncTransaction(HalfMessage):
    """A transaction of an `AsyncProducer`, see its method `transaction`."""

    def __init__(
        self, producer: AsyncProducer, message: Message, check_after: int | None, timeout: float, **how: Any
    ) -> None:
        super().__init__(producer.group, message, check_after)
        self._producer = producer
        self._timeout = timeout
        self._how = how

    async def begin(self) -> None:
        """Sends the half message. Raises as `send`; nothing is to be done then."""
        await self._producer.introduce(self.message.topic)
        if self._sent(await self._producer.send(self.message, timeout=self._timeout, **self._how)):
            return
        await self._roll_back_anyhow()
        raise self._unsure()

    async def commit(self) -> None:
        """Lets consumers have the message.

        Raises BrokerError when it was decided otherwise before, RemotingError when nobody knows whether the broker
        heard it: it asks then (see `check` of the producer).
        """
        await self._end(TRANSACTION_COMMIT)

    async def rollback(self) -> None:
        """Makes as if the message had never been. Raises as `commit`."""
        await self._end(TRANSACTION_ROLLBACK)

    async def _end(self, how: int) -> None:
        header = self._decide(how)
        instance = self._producer.instance
        address = self._master(instance.routes.master(header.bname or ""))
        answer = await instance.remoting.call(address, RequestCode.END_TRANSACTION, header, timeout=self._timeout)
        check_ended(answer, address)
        if self._producer.tracer is not None:
            self._producer.tracer.ended(self.message, header, address)

    async def _roll_back_anyhow(self) -> None:
        try:
            await self.rollback()
        except (RemotingError, BrokerError, RouteNotFound) as error:
            self._left_open(error)

    async def __aenter__(self) -> AsyncTransaction:
        if self.result is None:
            await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.decided:
            return
        if error is None:
            await self.commit()
        else:
            await self._roll_back_anyhow()
