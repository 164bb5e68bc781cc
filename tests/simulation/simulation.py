"""One seed: a cluster, what goes on in it, a storm, the calm after it, and what has to hold then."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import doors
from cluster import BrokerHost, NameServerHost
from nemesis import Nemesis
from workloads import ALL, Workload
from world import TAIL, History, SeedFailed, World

from rocketq.message import parse_offset_message_id

#: Seconds of the world's within which everything has to come to rest after the storm.
PATIENCE = 600.0
DAY = 86_400


class Simulation:
    """Everything that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rocketq-simulation-"))
        doors.begin(seed)
        self.seed = seed
        self.world = World(seed)
        chance = self.world.chance
        self.stormy = True
        self.storm = chance.uniform(10.0, 40.0)
        self.retries = chance.choice((0, 0, 2))
        self.clocks_jump = chance.random() < 0.3
        self.days_pass = chance.random() < 0.25
        self.lease = chance.choice((1.0, 3.0, 8.0))
        self.namesrvs = [NameServerHost(self.world, f"namesrv{number}") for number in range(chance.choice((1, 2)))]
        self.namesrv = ";".join(each.address for each in self.namesrvs)
        names = ["broker-a", "broker-b"][: chance.choice((1, 1, 2))]
        kinds = chance.sample(ALL, chance.randint(1, 3))
        self.brokers: list[BrokerHost] = []
        self.workloads: list[Workload] = []
        settings = self._settings(chance)
        replicated = chance.random() < 0.3
        #: what is acknowledged is on the slave
        self.safe_on_slave = replicated and chance.random() < 0.5
        if self.safe_on_slave:
            settings |= {"broker_role": "SYNC_MASTER", "in_sync_replicas": 2}
        self.brokers += [BrokerHost(self.world, name, self.namesrv, [], settings) for name in names]
        self.slaves: list[BrokerHost] = []
        if replicated:
            settings = settings | {"broker_role": "SLAVE", "broker_id": 1}
            for broker in self.brokers:
                broker.slave = BrokerHost(self.world, broker.name, self.namesrv, [], settings)
                self.slaves.append(broker.slave)
        self.workloads += [kind(self) for kind in kinds]
        for broker in self.brokers:
            broker._topics = [topic for workload in self.workloads for topic in workload.topics]
        self.nemesis = Nemesis(self)

    @staticmethod
    def _settings(chance: Any) -> dict[str, Any]:
        return {
            "flush_disk_type": chance.choice(("SYNC_FLUSH", "SYNC_FLUSH", "ASYNC_FLUSH")),
            "mapped_file_size_commit_log": chance.choice((16_384, 1 << 20)),
            "mapped_file_size_consume_queue": chance.choice((400, 60_000)),
            "mapped_file_size_timer_log": chance.choice((1024, 1 << 16)),
            "max_hash_slot_num": 16,
            "max_index_num": 100,
            "file_reserved_time": 10_000,
            "flush_consumer_offset_interval": chance.choice((10, 1000, 5000)),
            "register_name_server_period": 5000,
            "channel_expired_timeout": 15_000,
            "rebalance_lock_max_live_time": 40_000,
            "message_delay_level": "1s 2s 3s 4s" + 14 * " 5s",
            "transaction_time_out": 3000,
            "transaction_check_interval": 2000,
            "transaction_check_max": 1000,
            "slave_read_enable": True,
            "slave_timeout": 1000,
            "ha_send_heartbeat_interval": 1000,
            "ha_housekeeping_interval": 5000,
        }

    def holds(self, receipt: Any) -> bool:
        """Whether a lease of POP holds now, as its broker sees it."""
        (broker,) = [each for each in self.brokers if each.name == receipt.broker_name]
        return bool(broker.process.wall() * 1000 < receipt.pop_time + receipt.invisible_time)

    def check_slave(self, name: str, result: Any) -> None:
        """A message was acknowledged just now."""
        if not self.safe_on_slave:
            return
        (slave,) = [each.slave for each in self.brokers if each.name == result.queue.broker_name]
        if slave is not None and slave.broker is not None and slave.process.alive:
            _, _, physical = parse_offset_message_id(result.offset_message_id)
            if physical >= slave.broker.store.written_offset:
                self.world.failed(f"{name} was acknowledged and is not on the slave of {slave.name}")

    # the way of a seed

    def run(self) -> int:
        """Live through it; returns the checksum of everything that happened. Raises SeedFailed."""
        history = History(self.world)
        logger = logging.getLogger("rocketq")
        logger.addHandler(history)
        try:
            self._run()
        finally:
            logger.removeHandler(history)
            self.world.end()
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.world.problems:
            raise SeedFailed(self.world.problems[0])
        return self.world.sum ^ self.world.network.sum

    def _run(self) -> None:
        world = self.world
        for host in (*self.namesrvs, *self.brokers, *self.slaves):
            host.start()
        world.run(lambda: all(each.broker for each in self.brokers), 30.0)
        for workload in self.workloads:
            for client in workload.clients:
                client.start()
        self.nemesis.start()
        world.run(lambda: False, self.storm)
        self.stormy = False
        world.note("the storm is over")
        if self.days_pass and not world.problems:
            self._let_days_pass()
        self.nemesis.calm()
        if not world.run(self._is_quiet, PATIENCE) and not world.problems:
            world.failed(f"still open after {PATIENCE:g} s: {'; '.join(self._open()[:10])}")
        if not world.problems:
            for workload in self.workloads:
                workload.check()
                workload.check_slaves()
            self._check_counters()

    def _let_days_pass(self) -> None:
        """The brokers are down for eleven days: what was due meanwhile is overdue when they start."""
        for broker in self.brokers:
            if broker.process.alive:
                if broker.sync and self.world.chance.random() < 0.5:
                    broker.lose_power()
                else:
                    broker.kill()
        self.world.note("eleven days pass")
        for process in self.world.processes:
            process.wall_ahead += 11 * DAY

    def _open(self) -> list[str]:
        found = []
        for workload in self.workloads:
            if workload.count < workload.most and not hasattr(workload, "next"):
                found.append(f"{workload.topic} is not all sent")
            found += workload.open()
        for each in self.brokers:
            if each.broker is None:
                found.append(f"{each.name} does not serve")
            elif (
                each.broker.timer.in_memory
            ):  # not `pending`, which a kill may leave wrong: see docs/simulation.md
                found.append(f"{each.name} has {each.broker.timer.in_memory} timer messages that are due")
            elif difference := each.difference():
                found.append(difference)
        if not found:
            for workload in self.workloads:
                if lag := workload.lag():
                    found.append(f"{workload.topic}: {lag} on hand")
        return found

    def _is_quiet(self) -> bool:
        if self.world.now < self._look_again:
            return False
        self._look_again = self.world.now + 0.5
        return not self._open()

    _look_again = 0.0

    def _check_counters(self) -> None:
        """What the brokers count is what is there."""
        for each in self.brokers:
            broker = each.broker
            assert broker is not None
            store = broker.store
            for topic, queue_id in store.queues():
                low, high = store.min_offset(topic, queue_id), store.max_offset(topic, queue_id)
                if low > high:
                    self.world.failed(f"{each.name}: {topic}/{queue_id} begins at {low} and ends at {high}")
            for workload in self.workloads:
                records = each.records(workload.topic)
                ends = sum(
                    store.max_offset(topic, queue) for topic, queue in store.queues() if topic == workload.topic
                )
                if len(records) != ends:
                    self.world.failed(
                        f"{each.name}: {workload.topic} has {len(records)} messages, offsets say {ends}"
                    )


def live(seed: int, show: bool = False) -> tuple[int, Simulation]:
    """Run a seed; what fails says its seed and how its history ended."""
    simulation = Simulation(seed)
    try:
        return simulation.run(), simulation
    except SeedFailed as error:
        tail = "\n".join(simulation.world.history[-TAIL:])
        raise SeedFailed(f"seed {seed}: {error}\n\nthe last {TAIL} lines of its history:\n{tail}") from None
    finally:
        if show:
            print("\n".join(simulation.world.history))  # noqa: T201
