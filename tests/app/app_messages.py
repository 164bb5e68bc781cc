"""Makes received messages without a broker."""

from __future__ import annotations

from rocketq import ReceivedMessage
from rocketq.properties import encode_properties
from rocketq.record import Record, pack_host


def received(body: bytes, *, topic: str = "t", reconsume_times: int = 0, **properties: str) -> ReceivedMessage:
    return ReceivedMessage(
        Record(
            size=0,
            magic=0,
            body_crc=0,
            topic=topic,
            queue_id=0,
            queue_offset=0,
            physical_offset=0,
            flag=0,
            sys_flag=0,
            born_timestamp=1,
            born_host=pack_host("127.0.0.1", 1),
            store_timestamp=2,
            store_host=pack_host("127.0.0.1", 10911),
            reconsume_times=reconsume_times,
            prepared_transaction_offset=0,
            body=body,
            properties=encode_properties(properties),
        )
    )
