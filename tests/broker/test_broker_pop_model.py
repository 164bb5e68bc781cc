"""POP against a model: acknowledged once, never lost, given out again only after its lease; across kills too."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from pop_kit import Held, PopKit, receipt_ext

from rocketq.broker import revive as revive_module
from rocketq.broker import revivelog as revivelog_module
from rocketq.remoting.bodies import SubscriptionGroupConfig, TopicConfig
from rocketq.remoting.headers.pop import ChangeInvisibleTimeResponse
from rocketq.remoting.receipts import Receipt, batch_ack

QUEUES = 2
MOST_ATTEMPTS = 3


@dataclass
class Message:
    """What the model knows of a message: `until` is the end of its lease, 0 when nobody has it."""

    attempts: int = 0
    until: int = 0
    acked: bool = False
    dead: bool = False
    receipt: Receipt | None = None
    old: list[Receipt] = field(default_factory=list)


@dataclass
class Queue:
    """What an orderly group was sent and has acknowledged of one queue, and the batch that is out."""

    sent: list[bytes] = field(default_factory=list)
    acked: set[bytes] = field(default_factory=set)
    out: dict[bytes, tuple[Receipt, int]] = field(default_factory=dict)


class Pops(RuleBasedStateMachine):
    """One topic with a group that pops it and an orderly one. The log of POP is short, so leases move in it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(revive_module, "_PER_TURN", 2)
        self.patch.setattr(revivelog_module, "_FAR", 12)
        self.directory = Path(tempfile.mkdtemp(prefix="rocketq-pops-"))
        self.kit = PopKit(self.directory)
        random.seed(7)
        self.kit.topics.update(
            TopicConfig(topic_name="T", read_queue_nums=QUEUES, write_queue_nums=QUEUES, perm=6)
        )
        self.kit.groups.update(SubscriptionGroupConfig(group_name="G", retry_max_times=MOST_ATTEMPTS))
        self.kit.groups.update(SubscriptionGroupConfig(group_name="O"))
        self.kit.save()
        self.messages: dict[bytes, Message] = {}
        self.queues = [Queue() for _ in range(QUEUES)]

    def teardown(self) -> None:
        try:
            self.nothing_is_lost()
        finally:
            self.kit.close()
            self.patch.undo()
            shutil.rmtree(self.directory)

    @property
    def out(self) -> list[Message]:
        return [message for message in self.messages.values() if message.until]

    @rule(count=st.integers(1, 6))
    def send(self, count: int) -> None:
        for _ in range(count):
            number = len(self.messages)
            body = b"m%d" % number
            self.kit.send("T", number % QUEUES, body)
            self.messages[body] = Message()
            self.queues[number % QUEUES].sent.append(body)

    @rule(count=st.integers(1, 8), lease=st.integers(1, 5000))
    def pop(self, count: int, lease: int) -> None:
        got = self.kit.pop("T", maxMsgNums=count, invisibleTime=lease)
        self.took(got, lease)
        free = [m for m in self.messages.values() if not (m.until or m.acked or m.dead)]
        assert len(got) == count or not free, "there was more"

    def took(self, got: list[Held], lease: int) -> None:
        for message, receipt in got:
            known = self.messages[message.body]
            assert not known.acked, f"{message.body!r} was acknowledged"
            assert not known.dead, f"{message.body!r} is a dead letter"
            assert not known.until, f"{message.body!r} is held until {known.until}, now is {self.kit.now}"
            assert message.reconsume_times == known.attempts
            known.until, known.receipt = self.kit.now + lease, receipt

    @precondition(lambda self: self.out)
    @rule(data=st.data(), together=st.booleans())
    def ack(self, data: st.DataObject, together: bool) -> None:
        done = data.draw(st.lists(st.sampled_from(self.out), min_size=1, max_size=4, unique_by=id))
        receipts = [message.receipt for message in done if message.receipt]
        if together:
            assert self.kit.call(200151, {}, batch_ack("broker-a", "G", receipts)).code == 0
        else:
            assert [self.kit.call(200051, receipt_ext(receipt)).code for receipt in receipts] == [0] * len(done)
        for message in done:
            message.acked, message.until = True, 0

    @precondition(lambda self: self.out)
    @rule(data=st.data(), lease=st.integers(1, 5000), lost=st.booleans(), killed=st.booleans())
    def change_lease(self, data: st.DataObject, lease: int, lost: bool, killed: bool) -> None:
        message = data.draw(st.sampled_from(self.out))
        assert message.receipt is not None
        more = {}
        if lost:  # the answer to a first one
            more = {"holder": "consumer"}
            assert self.kit.call(200053, receipt_ext(message.receipt, invisibleTime=lease, **more)).code == 0
            if killed:
                self.kill()
        answer = self.kit.call(200053, receipt_ext(message.receipt, invisibleTime=lease, **more))
        assert answer.code == 0, answer.remark
        message.old.append(message.receipt)
        message.receipt = message.receipt.renewed(answer.header(ChangeInvisibleTimeResponse))
        message.until = message.receipt.pop_time + lease

    @precondition(lambda self: any(message.old for message in self.messages.values()))
    @rule(data=st.data())
    def settle_with_an_old_receipt(self, data: st.DataObject) -> None:
        old = [receipt for message in self.messages.values() for receipt in message.old]
        receipt = data.draw(st.sampled_from(old))
        assert self.kit.call(200051, receipt_ext(receipt)).code == 0
        assert self.kit.call(200053, receipt_ext(receipt, invisibleTime=60_000)).code == 208

    @rule(ms=st.integers(1, 4000))
    def advance(self, ms: int) -> None:
        self.kit.advance(ms)
        self.leases_end()

    @rule(ms=st.integers(1, 4000))
    def jump(self, ms: int) -> None:
        """The process did not get to run for that time."""
        self.kit.now += ms
        self.kit.advance(0)
        self.leases_end()

    def leases_end(self) -> None:
        for message in self.messages.values():
            if message.until and message.until <= self.kit.now:
                assert message.receipt is not None
                message.old.append(message.receipt)
                message.until, message.receipt = 0, None
                message.attempts += 1
                message.dead = message.attempts > MOST_ATTEMPTS

    @rule()
    def save(self) -> None:
        self.kit.save()

    @rule()
    def kill(self) -> None:
        self.kit.kill()
        self.kit.advance(0)

    @rule()
    def restart(self) -> None:
        self.kit.close()
        self.kit.open()
        self.kit.advance(0)

    # the orderly group

    @rule(queue_id=st.integers(0, QUEUES - 1), count=st.integers(1, 5), lease=st.integers(1, 5000))
    def pop_in_order(self, queue_id: int, count: int, lease: int) -> None:
        queue = self.queues[queue_id]
        got = self.kit.pop("T", "O", order="true", queueId=queue_id, maxMsgNums=count, invisibleTime=lease)
        if any(until > self.kit.now for body, (_, until) in queue.out.items() if body not in queue.acked):
            assert got == [], "a batch is out"
            return
        left = [body for body in queue.sent if body not in queue.acked]
        bodies = [held.message.body for held in got]
        assert bodies == left[:count], (bodies, left, queue)
        if got:
            queue.out = {held.message.body: (held.receipt, self.kit.now + lease) for held in got}

    @rule(queue_id=st.integers(0, QUEUES - 1), data=st.data())
    def ack_in_order(self, queue_id: int, data: st.DataObject) -> None:
        queue = self.queues[queue_id]
        left = [body for body in queue.out if body not in queue.acked]
        if left:
            body = data.draw(st.sampled_from(left))
            assert self.kit.call(200051, receipt_ext(queue.out[body][0], "O")).code == 0
            queue.acked.add(body)

    @rule(queue_id=st.integers(0, QUEUES - 1), data=st.data(), lease=st.integers(1, 5000))
    def change_lease_in_order(self, queue_id: int, data: st.DataObject, lease: int) -> None:
        queue = self.queues[queue_id]
        left = [body for body in queue.out if body not in queue.acked]
        if left:
            body = data.draw(st.sampled_from(left))
            receipt, _ = queue.out[body]
            answer = self.kit.call(200053, receipt_ext(receipt, "O", invisibleTime=lease))
            assert answer.code == 0, answer.remark
            queue.out[body] = receipt, self.kit.now + lease

    # the end

    def nothing_is_lost(self) -> None:
        """Whatever is not acknowledged comes, once."""
        self.kit.advance(10_000)
        self.leases_end()
        left = {body for body, message in self.messages.items() if not (message.acked or message.dead)}
        came: list[bytes] = []
        while got := self.kit.pop("T", invisibleTime=60_000):
            self.took(got, 60_000)
            came += [held.message.body for held in got]
        assert sorted(came) == sorted(left), (came, left, {b: self.messages[b] for b in left ^ set(came)})
        dead = self.kit.store.max_offset("%DLQ%G", 0)
        assert dead == sum(message.dead for message in self.messages.values())
        for queue_id, queue in enumerate(self.queues):
            rest = [body for body in queue.sent if body not in queue.acked]
            while rest:
                got = self.kit.pop("T", "O", order="true", queueId=queue_id, maxMsgNums=32)
                bodies = [held.message.body for held in got]
                assert bodies == rest[:32], (bodies, rest, queue)
                for held in got:
                    assert self.kit.call(200051, receipt_ext(held.receipt, "O")).code == 0
                rest = rest[32:]


TestPops = Pops.TestCase
TestPops.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
