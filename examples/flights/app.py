"""Three groups that consume departures from New York's airports; run.py feeds them and checks what they did.

    rocketq worker -A examples/flights/app.py

Every message is one departure as JSON. Its key is the aircraft's tail number, its tag says how it went: `ontime`,
`late` (15 minutes or more, on arrival) or `cancelled`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rocketq import ReceivedMessage, RocketQ

TOPIC = os.environ.get("FLIGHTS_TOPIC", "flights")
JOURNAL = os.environ.get("FLIGHTS_JOURNAL")

app = RocketQ("flights")


@dataclass
class Departure:
    run: str  # which run of run.py sent it: a cluster may still hold those of earlier runs
    leg: int  # 1, 2, 3, … for each aircraft
    time: str
    kind: str
    carrier: str
    flight: str
    aircraft: str
    origin: str
    dest: str
    dep_delay: int | None
    arr_delay: int | None
    distance: int


@app.consumer(TOPIC, "late", group="flights-late", from_where="FIRST")
def late(departure: Departure) -> None:
    """The broker filters: on-time and cancelled departures never travel to this function."""
    note("late", departure)


@app.consumer(TOPIC, group="flights-order", ordered=True, from_where="FIRST")
def order(departure: Departure) -> None:
    """All departures of one aircraft are in one queue, and a queue is worked off in order."""
    note("order", departure)


@app.consumer(TOPIC, group="flights-board", from_where="FIRST")
async def board(departure: Departure, message: ReceivedMessage) -> None:
    """Two workers run this one: each gets a part of the queues. An async function that takes the message as well."""
    assert departure.aircraft in message.keys
    await asyncio.sleep(0)
    note("board", departure)


_journal = -1


def note(group: str, departure: Departure) -> None:
    """Write down what was consumed and when, one file per process; one `write` a line, so a kill loses nothing."""
    global _journal
    if JOURNAL is None:
        print(
            f"{group}: {departure.time} {departure.aircraft} {departure.origin}-{departure.dest} {departure.kind}"
        )
        return
    if _journal < 0:
        _journal = os.open(Path(JOURNAL) / f"{os.getpid()}.csv", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fields = (time.monotonic_ns(), group, departure.run, departure.aircraft, departure.leg, departure.kind)
    os.write(_journal, (",".join([*map(str, fields), departure.time]) + "\n").encode())
