"""What a record in the timer's topic says (:mod:`rocketq.broker.timer`)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from rocketq import properties as props
from rocketq.names import can_be_stored
from rocketq.record import BORN_HOST_V6, MAGIC_V1, STORE_HOST_V6

_PREFIX = struct.Struct(">iI28xi")


class Waiting(NamedTuple):
    """What the properties of a record in the timer's topic say. `recalls`: the unique id that it takes back."""

    due: int
    topic: str
    recalls: str | None


def second_of(due: int) -> int:
    """The second of the wheel that holds what is due then."""
    return (due - 1) // 1000


def out_of(due: int) -> int:
    """The property TIMER_OUT_MS of what is due then: the last ms before, but no multiple of 1000."""
    return due if due % 1000 == 1 else due - 1


def due_of(properties: dict[str, str]) -> int:
    """When a record of the timer's topic is due, ms. Raises KeyError, ValueError."""
    out = int(properties[props.TIMER_OUT_MS])
    if out % 1000:
        return out + 1
    deliver = properties.get(props.TIMER_DELIVER_MS, "")
    if deliver.isdecimal() and out < int(deliver) <= out + 1000:
        return int(deliver)
    return out + 1000


def waiting_of(properties: dict[str, str]) -> Waiting:
    """Raises KeyError, ValueError when they are not those of a timer message."""
    topic, due = properties[props.REAL_TOPIC], due_of(properties)
    if not can_be_stored(topic):
        raise ValueError(f"{props.REAL_TOPIC} {topic[:80]!r} cannot be a name")
    if not 0 <= int(properties[props.REAL_QID]) < 1 << 31:
        raise ValueError(f"{props.REAL_QID} {properties[props.REAL_QID][:20]} is no queue")
    recalls = properties.get(props.TIMER_DEL_UNIQKEY)
    if recalls is not None:
        recalls = recalls.removeprefix(f"{topic}+")  # 5.3 names the topic too
    return Waiting(due, topic, recalls)


def prepared_offset(record: memoryview) -> int:
    """The field preparedTransactionOffset of a record."""
    sys_flag: int = _PREFIX.unpack_from(record)[2]
    at = 76 + 12 * (bool(sys_flag & BORN_HOST_V6) + bool(sys_flag & STORE_HOST_V6))
    return int.from_bytes(record[at : at + 8], "big", signed=True)


def properties_text(record: memoryview) -> str:
    """The property string of a record, without looking at its body. Raises ValueError when it is no text."""
    _, magic, sys_flag = _PREFIX.unpack_from(record)
    at = 84 + 12 * (bool(sys_flag & BORN_HOST_V6) + bool(sys_flag & STORE_HOST_V6))
    at += 4 + int.from_bytes(record[at : at + 4], "big")
    width = 1 if magic == MAGIC_V1 else 2
    at += width + int.from_bytes(record[at : at + width], "big")
    return str(record[at + 2 :], "utf-8")
