"""With SYNC_FLUSH no answer promises what a power failure can take: here the disk is slower than all else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker_wire import Wire, running
from pop_kit import ack_all, batch_ack, held, pop, pop_ext, receipt_ext

from rocketq.broker.server import Broker
from rocketq.remoting.command import Command


class SlowDisk:
    """While in it the log gets no further on the disk; `answers` then are what waited for that."""

    def __init__(self, broker: Broker, wire: Wire) -> None:
        self.broker, self.wire = broker, wire
        self.answers: list[Command] = []
        self._asked: list[int] = []

    def ask(self, opaque: int) -> None:
        self._asked.append(opaque)

    async def __aenter__(self) -> SlowDisk:
        self._advance = self.broker.store.advance
        self.broker.store.advance = lambda: 0  # type: ignore[method-assign]
        return self

    async def __aexit__(self, *failure: object) -> None:
        # an answer that waits for nothing overtakes those that wait for the disk, and no others
        assert (await self.wire.store("Other", properties={"WAIT": "false"})).code == 0
        early = [opaque for opaque in self._asked if opaque in self.wire.answers]
        self.broker.store.advance = self._advance  # type: ignore[method-assign]
        self.broker.batch._durable()
        if failure == (None, None, None):
            assert not early, "answered before it was on disk"
            self.answers = [await self.wire.answer(opaque) for opaque in self._asked]


def test_leases_and_acknowledgements_are_answered_when_they_are_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            for number in range(4):
                assert (await wire.store("T", b"%d" % number)).code == 0
            async with SlowDisk(broker, wire) as slow:
                slow.ask(wire.send(200050, pop_ext("T", maxMsgNums=3)))
            got = held(slow.answers[0], "T")
            assert [each.message.body for each in got] == [b"0", b"1", b"2"]
            async with SlowDisk(broker, wire) as slow:
                slow.ask(wire.send(200053, receipt_ext(got[0].receipt, invisibleTime=60_000)))
                slow.ask(wire.send(200053, receipt_ext(got[1].receipt, invisibleTime=60_000, giveBack="true")))
                slow.ask(wire.send(200051, receipt_ext(got[2].receipt)))
            assert [answer.code for answer in slow.answers] == [0, 0, 0]
            (last,) = await pop(wire, "T")
            body = batch_ack("broker-a", "G", [last.receipt])
            async with SlowDisk(broker, wire) as slow:
                slow.ask(wire.send(200151, {}, body))
                slow.ask(wire.send(200151, {}, body))  # its client gave the first answer up
            assert [answer.code for answer in slow.answers] == [0, 0]
            assert (await ack_all(wire, [last])).code == 0  # nothing is left to wait for

    asyncio.run(main())


def test_a_message_that_is_sent_back_is_answered_when_it_is_on_disk(tmp_path: Path) -> None:
    """A consumer commits behind it then: its old place is never read again."""

    async def main() -> None:
        async with running(tmp_path, flush_disk_type="SYNC_FLUSH") as (broker, wire):
            assert (await wire.store("T")).code == 0
            async with SlowDisk(broker, wire) as slow:
                slow.ask(wire.send(36, {"offset": 0, "group": "G", "delayLevel": 3}))
                slow.ask(wire.send(36, {"offset": 0, "group": "G", "delayLevel": -1}))
            assert [answer.code for answer in slow.answers] == [0, 0]

    asyncio.run(main())
