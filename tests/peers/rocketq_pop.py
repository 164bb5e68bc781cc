"""The single requests of POP with our own client, the verbs of `java/v5/Pop.java` (peek is ours alone)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from rocketq.client import AsyncProducer
from rocketq.client.pop_calls import (
    OLDEST,
    PopCalls,
    Request,
    ack_request,
    batch_ack_request,
    change_request,
    pop_request,
    read_change,
    read_pop,
)
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers.pop import (
    NotificationHeader,
    NotificationResponse,
    PeekMessageHeader,
    PollingInfoHeader,
    PollingInfoResponse,
)
from rocketq.remoting.receipts import fits, parse_receipt

Object = dict[str, Any]


class Pop:
    """`producer` lends its connections; `describe` makes a message JSON."""

    def __init__(self, producer: AsyncProducer, describe: Callable[[ReceivedMessage], Object]) -> None:
        self.producer = producer
        self.describe = describe
        self.verbs: dict[str, Callable[[Object], Awaitable[Any]]] = {
            "Pop.take": self.take,
            "Pop.ack": self.ack,
            "Pop.change": self.change,
            "Pop.notified": self.notified,
            "Pop.waiting": self.waiting,
            "Pop.peek": self.peek,
        }

    async def ask(self, c: Object, request: Request) -> Command:
        await self.producer.introduce(c["topic"])
        calls = PopCalls(self.producer.instance, c["group"])
        return await (await calls.begin(c["broker"], request, c.get("poll", 0) / 1000 + 10))

    async def take(self, c: Object) -> list[Object]:
        group, topic, broker = c["group"], c["topic"], c["broker"]
        request = pop_request(
            group,
            topic,
            broker,
            count=c["count"],
            lease_ms=c["lease"],
            poll_ms=c["poll"],
            now_ms=time.time_ns() // 1_000_000,
            init_mode=OLDEST,
            order=c.get("order", False),
        )
        popped = read_pop(await self.ask(c, request), group, topic, broker, c["address"])
        return [
            {**self.describe(message), "receipt": str(receipt)}
            for message, receipt in zip(popped.messages, popped.receipts, strict=True)
        ]

    async def ack(self, c: Object) -> str:
        receipts = [parse_receipt(text, c["topic"], c["group"]) for text in c["receipts"]]
        if c.get("batch"):
            assert all(map(fits, receipts))
            requests = [batch_ack_request(c["broker"], c["group"], receipts)]
        else:
            requests = [ack_request(c["group"], receipt) for receipt in receipts]
        codes = {(await self.ask(c, request)).code for request in requests}
        return "OK" if codes == {ResponseCode.SUCCESS} else f"codes {sorted(codes)}"

    async def change(self, c: Object) -> str:
        receipt = parse_receipt(c["receipt"], c["topic"], c["group"])
        answer = await self.ask(c, change_request(c["group"], receipt, c["lease"]))
        return str(read_change(answer, receipt, c["address"]))

    async def notified(self, c: Object) -> bool:
        header = NotificationHeader(
            consumer_group=c["group"],
            topic=c["topic"],
            queue_id=-1,
            poll_time=c["poll"],
            born_time=time.time_ns() // 1_000_000,
        )
        answer = await self.ask(c, Request(RequestCode.NOTIFICATION, header))
        return answer.header(NotificationResponse).has_msg

    async def waiting(self, c: Object) -> int:
        """How many pops of any queue wait at the broker."""
        header = PollingInfoHeader(consumer_group=c["group"], topic=c["topic"], queue_id=-1)
        answer = await self.ask(c, Request(RequestCode.POLLING_INFO, header))
        return answer.header(PollingInfoResponse).polling_num

    async def peek(self, c: Object) -> list[Object]:
        header = PeekMessageHeader(
            consumer_group=c["group"], topic=c["topic"], queue_id=-1, max_msg_nums=c["count"]
        )
        answer = await self.ask(c, Request(RequestCode.PEEK_MESSAGE, header))
        return [self.describe(message) for message in decode_messages(answer.body, c["broker"])]
