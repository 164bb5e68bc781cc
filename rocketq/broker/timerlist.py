"""Which timer messages of a topic are due next: the wheel is read ahead and nothing is taken out of it."""

from __future__ import annotations

from rocketq import properties as props
from rocketq.broker.timed import properties_text, waiting_of
from rocketq.properties import decode_properties
from rocketq.store.store import MessageStore
from rocketq.store.timerlog import TimerLog
from rocketq.store.timerwheel import TimerWheel

#: Units of the timer log, of all topics, that one answer may cost, and bytes that it has at most.
_MOST_READ = 5_000
_MOST_BYTES = 4 * 1024 * 1024


def waiting_for(
    store: MessageStore,
    wheel: TimerWheel,
    log: TimerLog,
    topic: str,
    most: int,
    now: int,
    seconds: range,
    recalled: set[tuple[str, str]],
) -> list[memoryview]:
    """The records of up to `most` messages of `topic` that are due after `now` (ms), the first ones in `seconds`.

    Those in `recalled` (topic, unique id) and those whose recall stands near them are left out. What stands behind
    several thousand messages of other topics may be left out as well.
    """
    found: list[tuple[int, str, memoryview]] = []
    recalled = set(recalled)
    read = size = 0
    second, until = seconds.start, seconds.stop
    while read < _MOST_READ and size < _MOST_BYTES and len(found) < most:
        second = wheel.next_used(second, until)
        slot = wheel.get(second) if second < until else None
        if slot is None:
            break
        position = slot.last
        while position >= 0 and read < _MOST_READ and (unit := log.unit(position)) is not None:
            read += 1
            data = store.record_at(unit.physical)
            try:
                if data is None:
                    raise KeyError("the record is gone")
                properties = decode_properties(properties_text(data))
                due, real_topic, recalls = waiting_of(properties)
            except (KeyError, ValueError):  # a damaged file: the timer says so when the message is due
                pass
            else:
                if recalls is not None:
                    recalled.add((real_topic, recalls))
                elif real_topic == topic and due > now:
                    found.append((due, properties.get(props.UNIQ_KEY, ""), data))
                    size += len(data)
            if unit.previous >= position:
                break
            position = unit.previous
        second += 1
    found.sort(key=lambda each: each[0])
    return [data for _, unique_id, data in found if (topic, unique_id) not in recalled][:most]
