"""Helpers of the tests of POP: pops, acknowledgements and leases by hand."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from broker_wire import Wire

from rocketq.message import ReceivedMessage, decode_messages
from rocketq.remoting.command import Command
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse, PopMessageResponse
from rocketq.remoting.receipts import Receipt, batch_ack, receipts


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Held(NamedTuple):
    message: ReceivedMessage
    receipt: Receipt


def pop_ext(topic: str, group: str = "G", **more: Any) -> dict[str, Any]:
    ext = {"consumerGroup": group, "topic": topic, "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000}
    return ext | {"pollTime": 0, "bornTime": now_ms(), "initMode": 0} | more


def held(answer: Command, topic: str, group: str = "G") -> list[Held]:
    if answer.code in (209, 210):
        return []
    assert answer.code == 0, answer.remark
    messages = decode_messages(answer.body)
    got = receipts(answer.header(PopMessageResponse), messages, topic, group, "broker-a")
    return [Held(*pair) for pair in zip(messages, got, strict=True)]


async def pop(wire: Wire, topic: str, group: str = "G", timeout: float = 5.0, **more: Any) -> list[Held]:
    return held(await wire.call(200050, pop_ext(topic, group, **more), timeout=timeout), topic, group)


def receipt_ext(receipt: Receipt, group: str = "G", **more: Any) -> dict[str, Any]:
    ext = {"consumerGroup": group, "topic": receipt.topic, "queueId": receipt.queue_id, "offset": receipt.offset}
    return ext | {"extraInfo": str(receipt)} | more


async def ack(wire: Wire, receipt: Receipt, group: str = "G") -> Command:
    return await wire.call(200051, receipt_ext(receipt, group))


async def ack_all(wire: Wire, all_held: list[Held], group: str = "G") -> Command:
    return await wire.call(200151, {}, batch_ack("broker-a", group, [each.receipt for each in all_held]))


async def lease(wire: Wire, receipt: Receipt, ms: int, group: str = "G") -> Receipt | Command:
    """The new receipt, or the refusal."""
    answer = await wire.call(200053, receipt_ext(receipt, group, invisibleTime=ms))
    return receipt.renewed(answer.header(ChangeInvisibleTimeResponse)) if answer.code == 0 else answer


async def create(wire: Wire, topic: str, queues: int = 1, **attributes: str) -> None:
    ext: dict[str, Any] = {"topic": topic, "defaultTopic": "TBW102", "readQueueNums": queues}
    ext |= {
        "writeQueueNums": queues,
        "perm": 6,
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": 0,
        "order": "false",
    }
    if attributes:
        ext["attributes"] = ",".join(f"+{key.replace('_', '.')}={value}" for key, value in attributes.items())
    answer = await wire.call(17, ext)
    assert answer.code == 0, answer.remark


def bodies(got: list[Held]) -> list[bytes]:
    return [each.message.body for each in got]
