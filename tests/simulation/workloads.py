"""What goes on in a simulated cluster: producers and consumers of every kind, and what each of them must come to.

A workload keeps its own account of what it sent, was answered and consumed, outside of everything that can die.
`open` says what is still to come; `check` is asked when nothing is, and all is quiet.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from rocketq.client.offsets import LocalOffsets
from rocketq.client.pop_consumer import PopConsumer
from rocketq.client.producer import AsyncProducer
from rocketq.client.pull import PullConsumer
from rocketq.client.push import PushConsumer
from rocketq.client.results import ConsumeResult, RetryLater
from rocketq.errors import RocketQError
from rocketq.message import Message, MessageQueue, ReceivedMessage
from rocketq.remoting.bodies import TopicConfig

if TYPE_CHECKING:
    from simulation import Simulation

#: Seconds between what clients do on their own.
OFTEN: dict[str, Any] = {"route_refresh": 5.0, "heartbeat_interval": 5.0}


class HandlerFailed(Exception):
    """What handlers raise now and then. `expected`: no problem of the product's."""

    expected = True


class Client:
    """A client process: `main` begins anew at each start."""

    def __init__(self, simulation: Simulation, name: str, main: Callable[[], Awaitable[None]]) -> None:
        self.world = simulation.world
        self.process = self.world.process(name)
        self._main = main

    def start(self) -> None:
        async def main() -> None:
            await self._main()
            await asyncio.Event().wait()

        self.world.note("start", self.process)
        self.process.start(main)

    def kill(self) -> None:
        self.world.note("kill", self.process)
        self.world.bury(self.process, silent=self.world.chance.random() < 0.3)


class Workload:
    """Base of all. `clients` are its processes, `topics` has to be there."""

    topic = ""
    group = ""
    queues = 4
    lease = 0.0

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.chance = simulation.world.chance
        self.topics = [
            TopicConfig(topic_name=self.topic, read_queue_nums=self.queues, write_queue_nums=self.queues)
        ]
        self.clients: list[Client] = []
        self.accepted: dict[str, float] = {}
        self.tried: set[str] = set()
        self.consumed: Counter[str] = Counter()
        self.count = 0
        self.most = self.chance.randint(8, 30)

    def client(self, name: str, main: Callable[[], Awaitable[None]]) -> Client:
        client = Client(self.simulation, name, main)
        self.clients.append(client)
        return client

    def failed(self, what: str) -> None:
        self.world.failed(f"{type(self).__name__.lower()}: {what}")

    # sending

    @property
    def options(self) -> dict[str, Any]:
        return {"namesrv": self.simulation.namesrv, **OFTEN}

    def message(self, name: str) -> Message:
        return Message(self.topic, name.encode() + b" " * self.chance.choice((0, 100, 700)), keys=[name])

    async def send(self, producer: AsyncProducer, message: Message, **how: Any) -> bool:
        """Send one message; whether it is certain that it was taken."""
        name = text(message)
        self.tried.add(name)
        self.world.note("send", name, *how.values())
        try:
            result = await producer.send(message, **how)
        except RocketQError as error:
            self.world.note("not sent", name, type(error).__name__, error)
            return False
        self.world.note(result.status, name, f"{result.queue}@{result.queue_offset}")
        if result.status != "SEND_OK":
            return False
        self.accepted[name] = self.world.now
        self.simulation.check_slave(name, result)
        return True

    async def produce(self) -> None:
        """Send all that is to be sent, now and then."""
        producer = AsyncProducer(self.group, retries=self.simulation.retries, **self.options)
        await producer.start()
        while self.count < self.most:
            self.count += 1
            name = f"{self.topic}-{self.count}"
            await asyncio.sleep(self.chance.expovariate(1.0))
            await self.send(producer, self.message(name))

    # consuming

    async def joined(self, consumer: Any) -> None:
        """Start a consumer; NameServers and brokers may be down just now."""
        consumer.subscribe(self.topic)
        while True:
            try:
                await consumer.start()
                return
            except RocketQError as error:
                self.world.note("not started", error)
                await asyncio.sleep(1.0)

    def done(self, name: str) -> None:
        if name not in self.tried:
            self.failed(f"{name!r} was consumed and never sent")
        self.consumed[name] += 1
        self.world.note("consumed", name)

    async def handle(self, messages: list[ReceivedMessage]) -> ConsumeResult | RetryLater:
        """A handler as people write them: it takes its time, and fails at times."""
        name = text(messages[0])
        self.world.note("handle", name, f"{messages[0].queue}@{messages[0].queue_offset}")
        await asyncio.sleep(self.chance.expovariate(20.0))
        outcome = self.chance.random() if self.simulation.stormy else 1.0
        if outcome < 0.04:
            raise HandlerFailed(name)
        if outcome < 0.1:
            return ConsumeResult.RETRY_LATER
        if outcome < 0.13:
            await asyncio.sleep(12.0)
        for message in messages:
            self.done(text(message))
        return ConsumeResult.SUCCESS

    # what has to be

    def open(self) -> list[str]:
        """What is still to come: accepted and not consumed."""
        return [f"{name} was accepted and not consumed" for name in self.accepted if name not in self.consumed]

    def check(self) -> None:
        """The rest of what has to be."""
        copies = self.copies()
        for name in self.accepted:
            if not copies[name]:
                self.failed(f"{name} was accepted and is not stored")
        if not self.simulation.retries:
            for name, count in copies.items():
                if count > 1:
                    self.failed(f"{name} was sent once and is stored {count} times")

    def check_slaves(self) -> None:
        """What a master has can be read from its slave, from where that began: with the file that was written to."""
        for broker in self.simulation.brokers:
            if broker.slave is not None and broker.slave.broker is not None:
                begins = broker.slave.broker.store.min_physical_offset
                ours, theirs = (
                    [body_text(r.body) for r in each.records(self.topic) if r.physical_offset >= begins]
                    for each in (broker, broker.slave)
                )
                if ours != theirs:
                    self.failed(f"{broker.name} has {len(ours)} messages and its slave {len(theirs)}, or others")

    def copies(self) -> Counter[str]:
        """How often each message is stored under its topic."""
        found: Counter[str] = Counter()
        for broker in self.simulation.brokers:
            found.update(body_text(record.body) for record in broker.records(self.topic))
        return found

    def lag(self) -> int:
        return sum(broker.lag(self.group, self.topic) for broker in self.simulation.brokers)


def body_text(body: bytes) -> str:
    return bytes(body).decode().strip()


def text(message: Message | ReceivedMessage) -> str:
    return body_text(message.body)


class Plain(Workload):
    """Messages at once, with delay levels and as timers; a group of two that share the queues."""

    topic, group = "plain", "G_plain"

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.due: dict[str, float] = {}
        self.levels: set[str] = set()
        self.client("producer", self.produce)
        for number in (1, 2):
            self.client(f"push{number}", self.consume)

    def message(self, name: str) -> Message:
        message, kind = super().message(name), self.chance.random()
        if kind < 0.4:
            delay = self.chance.choice((0.05, 1.0, 3.0, 8.0, 15.0)) * self.chance.uniform(0.5, 1.5)
            if self.simulation.days_pass and self.simulation.stormy and self.chance.random() < 0.5:
                delay = self.chance.uniform(0.5, 10.0) * 86_400
                # a point in time: a send that is answered only after the days have passed must not wait days from then
                message.postpone(at=datetime.fromtimestamp(time.time() + delay, timezone.utc))
            else:
                message.postpone(delay=delay)
            self.due[name] = self.world.now + delay
        elif kind < 0.5:
            message.properties["DELAY"] = str(self.chance.randint(1, 4))
            self.levels.add(name)
        return message

    async def consume(self) -> None:
        consumer = PushConsumer(
            self.group,
            handler=self.handle,
            from_where="FIRST",
            consume_timeout=8.0,
            rebalance_interval=5.0,
            persist_interval=2.0,
            concurrency=4,
            **self.options,
        )
        await self.joined(consumer)

    def done(self, name: str) -> None:
        super().done(name)
        if (
            not self.simulation.clocks_jump
            and self.simulation.stormy
            and self.world.now < self.due.get(name, 0.0) - 0.002
        ):
            self.failed(f"{name} came {self.due[name] - self.world.now:.3f} s early")

    def check(self) -> None:
        for name in self.levels:  # how far a level is is saved now and then: after a kill some come twice
            self.accepted.pop(name, None)
        super().check()

    def copies(self) -> Counter[str]:
        found = super().copies()
        for name in self.levels:
            del found[name]
        return found


class Pulled(Workload):
    """A pull consumer that commits by hand."""

    topic, group = "pulled", "G_pulled"

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.client("producer", self.produce)
        self.client("pull", self.consume)

    async def consume(self) -> None:
        consumer = PullConsumer(
            self.group, from_where="FIRST", auto_commit=False, rebalance_interval=5.0, **self.options
        )
        await self.joined(consumer)
        while True:
            for message in await consumer.poll(timeout=2.0, max_messages=self.chance.randint(1, 8)):
                await asyncio.sleep(self.chance.expovariate(50.0))
                self.done(text(message))
            await consumer.commit()


class Ordered(Workload):
    """Keys whose messages are numbered; each key has a queue. A group of three, in order, under locks."""

    topic, group = "ordered", "G_ordered"
    keys = 5

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.topics = [TopicConfig(topic_name=self.topic, read_queue_nums=4, write_queue_nums=4, order=True)]
        self.next = [0] * self.keys
        #: key -> numbers that were accepted and not handled yet, in order
        self.waiting: list[list[int]] = [[] for _ in range(self.keys)]
        self.handled: list[set[int]] = [set() for _ in range(self.keys)]
        #: queue -> the loop of the process that works on it, and on what
        self.working: dict[MessageQueue, tuple[Any, int]] = {}
        self.client("producer", self.produce)
        for number in (1, 2, 3):
            self.client(f"order{number}", self.consume)

    async def produce(self) -> None:
        producer = AsyncProducer(self.group, retries=0, **self.options)
        await producer.start()
        await asyncio.gather(*[self._produce(producer, key) for key in range(self.keys)])

    async def _produce(self, producer: AsyncProducer, key: int) -> None:
        brokers = self.simulation.brokers
        queue = MessageQueue(self.topic, brokers[key % len(brokers)].name, key % 4)
        while self.next[key] < self.most // 2:
            await asyncio.sleep(self.chance.expovariate(0.5))
            name = f"{key}:{self.next[key]}"
            if await self.send(producer, Message(self.topic, name.encode(), sharding_key=str(key)), queue=queue):
                self.waiting[key].append(self.next[key])
                self.next[key] += 1
            else:
                await asyncio.sleep(0.5)  # the same number again: it may be stored twice then

    async def consume(self) -> None:
        consumer = PushConsumer(
            self.group,
            handler=lambda messages: self._handle(consumer, messages),
            ordered=True,
            from_where="FIRST",
            rebalance_interval=5.0,
            suspend=0.2,
            **self.options,
        )
        await self.joined(consumer)

    async def _handle(self, who: Any, messages: list[ReceivedMessage]) -> ConsumeResult:
        queue = messages[0].queue
        loop: Any = asyncio.get_running_loop()
        self.world.note("handle", text(messages[0]), queue, messages[0].queue_offset)
        other, _ = self.working.get(queue, (loop, 0))
        if other is not loop and other.process.alive and other.process.loop is other:
            self.failed(f"{queue} is worked on by {loop.process} and by {other.process}")
        mark = self.working[queue] = loop, id(messages)
        await asyncio.sleep(self.chance.expovariate(10.0))
        if self.working.get(queue) is mark and loop.process.alive:
            del self.working[queue]
        if self.simulation.stormy and self.chance.random() < 0.1:
            return ConsumeResult.SUSPEND
        for message in messages:
            name = text(message)
            key, number = map(int, name.split(":"))
            self.done(name)
            first = number not in self.handled[key]
            self.handled[key].add(number)
            if first and (missing := [each for each in range(number) if each not in self.handled[key]]):
                self.failed(f"key {key}: {number} came before {missing}")
        return ConsumeResult.SUCCESS

    def check(self) -> None:
        copies = self.copies()
        for name in self.accepted:
            if not copies[name]:
                self.failed(f"{name} was accepted and is not stored")


class Leased(Workload):
    """A POP group of three with short leases. Nobody gets what somebody else holds, or what was acknowledged."""

    topic, group = "leased", "G_leased"

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.holders: dict[str, list[Any]] = {}
        self.given_back: set[int] = set()
        #: when those were given out whose acknowledgement counts
        self.settled: dict[str, int] = {}
        self.client("producer", self.produce)
        for number in (1, 2, 3):
            self.client(f"pop{number}", self.consume)

    async def consume(self) -> None:
        consumer = PopConsumer(
            self.group,
            handler=lambda messages: self._handle(consumer, messages[0]),
            from_where="FIRST",
            lease=self.simulation.lease,
            grace=self.simulation.lease,  # networks that end connections are cut for longer than the default, too
            concurrency=3,
            **self.options,
        )
        acked = consumer._leases._acked

        def watch(broker: str, done: list[Any], future: Any) -> None:
            acked(broker, done, future)
            if not future.cancelled() and future.exception() is None and future.result().code == 0:
                for held in done:
                    self._acknowledged(held)

        consumer._leases._acked = watch  # type: ignore[method-assign]
        await self.joined(consumer)

    def _acknowledged(self, held: Any) -> None:
        receipt = held.receipt
        if self.simulation.holds(receipt):
            self.world.note("acknowledged", text(held.message))
            self.settled[text(held.message)] = receipt.pop_time

    async def _handle(self, consumer: PopConsumer, message: ReceivedMessage) -> ConsumeResult | RetryLater:
        name = text(message)
        (held,) = [each for each in consumer._running_calls if each.message is message]
        receipt = held.receipt
        self.world.note("handle", name, receipt)
        if not self.simulation.retries:
            if name in self.settled and receipt.pop_time > self.settled[name]:
                self.failed(f"{name} was acknowledged and comes again")
            for other in self.holders.get(name, ()):
                # what was long on its way is handled when its lease is over already: nobody's fault
                first, second = sorted((other.receipt, receipt), key=lambda each: each.pop_time)
                early = first.pop_time + first.invisible_time - second.pop_time
                if (
                    early > 0
                    and self.simulation.holds(first)
                    and id(other) not in self.given_back
                    and not self.simulation.clocks_jump
                ):
                    self.failed(f"{name} is given out as {second} {early} ms before {first} ends")
            self.holders.setdefault(name, []).append(held)
        await asyncio.sleep(self.chance.expovariate(5.0))
        outcome = self.chance.random() if self.simulation.stormy else 1.0
        if outcome < 0.05:
            self.given_back.add(id(held))
            raise HandlerFailed(name)
        if outcome < 0.15:
            self.given_back.add(id(held))
            return RetryLater(delay=self.chance.choice((0.01, 0.5, 4.0)))
        if outcome < 0.25:
            await asyncio.sleep(self.simulation.lease * 2.5)  # the lease is renewed meanwhile
        self.given_back.add(id(held))
        self.done(name)
        return ConsumeResult.SUCCESS

    def lag(self) -> int:
        """Nothing may be held or waited for."""
        return sum(len(broker.broker.revive_log.points) for broker in self.simulation.brokers if broker.broker)


class Broadcast(Workload):
    """Each of two members gets everything, and keeps its own offsets in a file."""

    topic, group = "broadcast", "G_broadcast"

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.by_member: list[set[str]] = [set(), set()]
        self.client("producer", self.produce)
        for member in (0, 1):
            self.client(f"all{member + 1}", self._member(member))

    def _member(self, member: int) -> Callable[[], Awaitable[None]]:
        async def handle(messages: list[ReceivedMessage]) -> ConsumeResult:
            await asyncio.sleep(self.chance.expovariate(50.0))
            for message in messages:
                self.done(text(message))
                self.by_member[member].add(text(message))
            return ConsumeResult.SUCCESS

        async def consume() -> None:
            consumer = PushConsumer(
                self.group,
                handler=handle,
                model="BROADCASTING",
                from_where="FIRST",
                rebalance_interval=5.0,
                persist_interval=2.0,
                client_id=f"member{member}",
                offset_store=LocalOffsets(f"member{member}", self.group, self.simulation.directory),
                **self.options,
            )
            await self.joined(consumer)

        return consume

    def open(self) -> list[str]:
        return [
            f"{name} was accepted and not consumed by member {member + 1}"
            for member, consumed in enumerate(self.by_member)
            for name in self.accepted
            if name not in consumed
        ]

    def lag(self) -> int:
        return 0


class Transactional(Workload):
    """Transactions whose outcome is in a data base that outlives its producers; brokers ask those that are there."""

    topic, group = "transactions", "G_transactions"
    outcomes: ClassVar = (True, True, False, None)

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        #: what was decided: commit, or roll back
        self.decided: dict[str, bool] = {}
        for number in (1, 2):
            self.client(f"bank{number}", self.produce)
        self.client("push", self.consume)

    async def _check(self, message: ReceivedMessage) -> bool | None:
        name = text(message)
        if not self.simulation.stormy:
            self.decided.setdefault(name, False)
        verdict = self.decided.get(name)
        self.world.note("asked about", name, "says", verdict)
        return verdict

    async def produce(self) -> None:
        producer = AsyncProducer(
            self.group, retries=0, check=self._check, check_topics=[self.topic], **self.options
        )
        while True:
            try:
                await producer.start()
                break
            except RocketQError as error:
                self.world.note("not started", error)
                await asyncio.sleep(1.0)
        while self.count < self.most:
            self.count += 1
            name = f"t{self.count}"
            await asyncio.sleep(self.chance.expovariate(1.0))
            await self._transaction(producer, name)

    async def _transaction(self, producer: AsyncProducer, name: str) -> None:
        self.tried.add(name)
        self.world.note("begin", name)
        transaction = producer.transaction(self.message(name), check_after=self.chance.choice((None, 1)))
        try:
            await transaction.begin()
        except RocketQError as error:
            self.world.note("not begun", name, type(error).__name__, error)
            self.decided[name] = False
            return
        await asyncio.sleep(self.chance.expovariate(5.0))
        outcome = self.chance.choice(self.outcomes)
        if (
            outcome is None
        ):  # the producer thinks about it for long, or never says; a check may have been asked before
            if self.chance.random() < 0.5:
                self.decided.setdefault(name, self.chance.random() < 0.5)
            self.world.note("leaves open", name)
            return
        outcome = self.decided.setdefault(name, outcome)
        self.world.note("commit" if outcome else "roll back", name)
        if outcome:
            self.accepted[name] = self.world.now
        try:
            await (transaction.commit() if outcome else transaction.rollback())
        except RocketQError as error:
            self.world.note("not told", name, type(error).__name__, error)

    async def consume(self) -> None:
        consumer = PushConsumer(
            self.group, handler=self.handle, from_where="FIRST", rebalance_interval=5.0, **self.options
        )
        await self.joined(consumer)

    def done(self, name: str) -> None:
        super().done(name)
        if not self.decided.get(name):
            self.failed(f"{name} came, and was {'rolled back' if name in self.decided else 'not decided'}")

    def lag(self) -> int:
        open_ = sum(len(each.broker.transactions.halves.open) for each in self.simulation.brokers if each.broker)
        return super().lag() + open_

    def check(self) -> None:
        copies = self.copies()
        for name in self.accepted:
            if copies[name] != 1:
                self.failed(f"{name} was committed and is stored {copies[name]} times")
        for name in copies:
            if not self.decided.get(name):
                self.failed(f"{name} is stored, and was not committed")


ALL: list[type[Workload]] = [Plain, Pulled, Ordered, Leased, Broadcast, Transactional]
