"""Receipts of popped messages: what they say, how a pop's answer gives them, and many of them as one acknowledgement.

Who pops a message has it for a lease, and says with the receipt which delivery he acknowledges or prolongs. As text it
is ``startOffset popTime invisibleTime reviveQueue flag broker queueId offset``, where `flag` is 1 or 2 for the retry
topic of group and topic in its older and newer form (`ExtraInfoUtil`, `BatchAck`). No I/O here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from rocketq import properties as names
from rocketq.message import ReceivedMessage
from rocketq.names import RETRY_PREFIX, pop_retry_topic
from rocketq.record import CorruptRecord
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse, PopMessageResponse

#: The revive queue that receipts of orderly pops name.
ORDERLY_QUEUE = 999
#: Offsets behind the start of its pop up to which a message is acknowledged in a bit set.
MOST_BITS = 4096


class Receipt(NamedTuple):
    """The right to one delivery of one message. `topic` is where the message is stored; times in ms."""

    start_offset: int
    pop_time: int
    invisible_time: int
    revive_queue: int
    flag: str
    broker_name: str
    queue_id: int
    offset: int
    topic: str

    def __str__(self) -> str:
        return (
            f"{self.start_offset} {self.pop_time} {self.invisible_time} {self.revive_queue} {self.flag} "
            f"{self.broker_name} {self.queue_id} {self.offset}"
        )

    def renewed(self, answer: ChangeInvisibleTimeResponse) -> Receipt:
        """The receipt after the lease was changed: the message stands alone then."""
        return self._replace(
            start_offset=self.offset,
            pop_time=answer.pop_time,
            invisible_time=answer.invisible_time,
            revive_queue=answer.revive_qid,
        )


def parse_receipt(text: str, topic: str, group: str) -> Receipt:
    """The receipt of a message that `group` got when it popped `topic`. Raises CorruptRecord."""
    try:
        start, pop_time, invisible, revive, flag, broker, queue, *offsets = text.split(" ")
        (offset,) = offsets or [start]  # the offset may be left out
        return Receipt(
            int(start),
            int(pop_time),
            int(invisible),
            int(revive),
            flag,
            broker,
            int(queue),
            int(offset),
            stored_topic(topic, group, flag),
        )
    except ValueError:
        raise CorruptRecord(f"the receipt {text!r} of a message of topic {topic} is not one") from None


def stored_topic(topic: str, group: str, flag: str) -> str:
    """Where a message that `group` popped of `topic` is stored: there, or in one of its retry topics."""
    if flag == "1":
        return pop_retry_topic(topic, group)
    return f"{RETRY_PREFIX}{group}+{topic}" if flag == "2" else topic


def receipts(
    answer: PopMessageResponse, messages: Sequence[ReceivedMessage], topic: str, group: str, broker_name: str
) -> list[Receipt]:
    """One receipt for each message of a pop of `topic`. Raises CorruptRecord.

    Messages of the retry topic carry theirs (POP_CK); the others' are put together from where the broker began to read
    each queue.
    """
    own = ("2" if "+" in topic else "1") if topic.startswith(RETRY_PREFIX) else "0"
    starts: dict[int, int] = {}
    retried = False
    try:
        for part in (answer.start_offset_info or "").split(";"):
            if part:
                flag, queue, start = part.split(" ")
                retried = retried or flag != "0"
                if flag == own:
                    starts[int(queue)] = int(start)
    except ValueError:
        raise CorruptRecord(
            f"broker {broker_name} says {answer.start_offset_info!r} of where it read topic {topic}"
        ) from None
    made = []
    pop_time, invisible_time, revive_queue = answer.pop_time, answer.invisible_time, answer.revive_qid
    for message in messages:
        if retried:
            try:
                carried = message.properties.get(names.POP_CK)
            except CorruptRecord:
                carried = None  # brokers write it into messages that they can read
            if carried is not None:
                made.append(parse_receipt(carried, topic, group))
                continue
        queue_id, offset = message.queue_id, message.queue_offset
        start_offset = starts.setdefault(queue_id, offset)
        made.append(
            Receipt(
                start_offset,
                pop_time,
                invisible_time,
                revive_queue,
                own,
                broker_name,
                queue_id,
                offset,
                topic,
            )
        )
    return made


def batch_ack(broker_name: str, group: str, acked: Iterable[Receipt]) -> bytes:
    """The body of a BATCH_ACK_MESSAGE: one entry for each pop of a queue, with a bit for each message of it.

    Only for receipts that `fits`.
    """
    bits: dict[tuple[str, int, int, int, int, int], int] = {}
    for receipt in acked:
        start_offset, pop_time, invisible_time, revive_queue, _, _, queue_id, offset, topic = receipt
        key = (topic, queue_id, start_offset, revive_queue, pop_time, invisible_time)
        bits[key] = bits.get(key, 0) | 1 << (offset - start_offset)
    acks = [
        {
            "b": base64.b64encode(mask.to_bytes((mask.bit_length() + 7) // 8, "little")).decode(),
            "c": group,
            "it": invisible_time,
            "pt": pop_time,
            "q": queue_id,
            "r": "0",  # the topic is already the one in which the message is stored
            "rq": revive_queue,
            "so": start_offset,
            "t": topic,
        }
        for (topic, queue_id, start_offset, revive_queue, pop_time, invisible_time), mask in bits.items()
    ]
    return msgspec.json.encode({"acks": acks, "brokerName": broker_name})


def fits(receipt: Receipt) -> bool:
    """Whether the message can be part of a batch: a filter may have skipped too much before it."""
    return 0 <= receipt.offset - receipt.start_offset < MOST_BITS
