"""The servers of a simulated cluster: real NameServers and brokers, started, killed and started again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from disk import Disk
from process import Process, doors_of
from world import World

from rocketq.broker.server import Broker
from rocketq.config import BrokerConfig, NamesrvConfig
from rocketq.names import retry_topic
from rocketq.namesrv.server import NameServer
from rocketq.record import Record, decode_record, split_records
from rocketq.remoting.bodies import TopicConfig

NAMESRV_PORT, BROKER_PORT = 9876, 10911


class NameServerHost:
    """A NameServer and what becomes of it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.process: Process = world.process(name)
        self.address = f"{self.process.host}:{NAMESRV_PORT}"

    def start(self) -> None:
        async def main() -> None:
            config = NamesrvConfig(
                listen_port=NAMESRV_PORT,
                bind_address=self.process.host,
                kv_config_path="/nowhere/kvConfig.json",
                scan_not_active_broker_interval=1000,
            )
            await NameServer(config).start()

        self.world.note("start", self.process)
        self.process.start(main)

    def kill(self) -> None:
        self.world.note("kill", self.process)
        self.world.bury(self.process, silent=False)


class BrokerHost:
    """A broker, its disk, and what becomes of both. `topics` are there from its first start."""

    def __init__(
        self, world: World, name: str, namesrv: str, topics: Iterable[TopicConfig], settings: dict[str, Any]
    ) -> None:
        self.world = world
        self.name = name
        self.process: Process = world.process(f"{name}-slave" if settings.get("broker_id") else name)
        self.disk = Disk(world)
        self.address = f"{self.process.host}:{BROKER_PORT}"
        self.settings: dict[str, Any] = {
            "store_path_root_dir": "/store",
            "broker_name": name,
            "broker_ip1": self.process.host,
            "bind_address": self.process.host,
            "listen_port": BROKER_PORT,
            "namesrv_addr": namesrv,
            **settings,
        }
        self.broker: Broker | None = None
        #: what copies it
        self.slave: BrokerHost | None = None
        self._topics = list(topics)
        self._stopped = False

    @property
    def sync(self) -> bool:
        return self.settings["flush_disk_type"] == "SYNC_FLUSH"

    @property
    def serves(self) -> bool:
        """It is up, or about to be."""
        return self.process.alive

    def start(self) -> None:
        self.disk.restart()
        self.broker = None

        async def main() -> None:
            broker = Broker(BrokerConfig(**self.settings), files=self.disk)
            if self._topics and not self.disk.exists("/store/config/topics.json"):
                broker.topics.update_all(self._topics)
                broker.saver.save(broker.topics)
            await broker.start()
            self.broker = broker
            self.world.note("serves")

        self.world.note("start", self.process)
        self.process.start(main)

    def kill(self) -> None:
        """SIGKILL: the process is gone, its disk is as it was, its connections are closed by the system."""
        self.world.note("kill", self.process)
        self.world.bury(self.process, silent=False)
        self.broker = None

    def kill_after(self, changes: int) -> None:
        """SIGKILL in the middle of something: before so many changes of its disk from now are done."""
        self.world.note("kill", self.process, "after", changes, "changes of its disk")
        self.disk.dies_after = changes

    def lose_power(self) -> None:
        """Host and process are gone; nobody is told."""
        self.world.note("power of", self.process, "fails")
        self.world.network.dark.add(self.process.host)
        self.world.bury(self.process, silent=True)
        self.disk.lose_power()
        self.broker = None

    def power_back(self) -> None:
        self.world.network.dark.discard(self.process.host)

    def stop(self) -> None:
        """SIGTERM: the broker stops in order."""
        broker, process = self.broker, self.process
        if broker is None or not process.alive:
            return
        self.world.note("stop", process)
        self.broker = None

        async def stop() -> None:
            await broker.stop()
            self.world.note("stopped")
            process.world.bury(process, silent=False)

        with doors_of(process):
            process.loop.create_task(stop())
        process.plan()

    # looking inside, when all is quiet

    def records(self, topic: str) -> list[Record]:
        """Everything that the broker has of a topic."""
        assert self.broker is not None
        store, found = self.broker.store, []
        for name, queue_id in sorted(store.queues()):
            if name != topic:
                continue
            offset = store.min_offset(topic, queue_id)
            while (read := store.read(topic, queue_id, offset, 64)).count:
                for buffer in read.buffers:
                    found += [decode_record(buffer, start, check_crc=True) for start, _ in split_records(buffer)]
                offset = read.next_offset
        return found

    def difference(self) -> str:
        """How the slave differs from its master; nothing when it does not, or when there is none."""
        if self.slave is None:
            return ""
        assert self.broker is not None
        if self.slave.broker is None:
            return f"the slave of {self.name} does not serve"
        ours, theirs = self.broker.store, self.slave.broker.store
        if theirs.readable != ours.written_offset:
            return f"the slave of {self.name} has {theirs.readable} of {ours.written_offset} bytes"
        at = max(ours.min_physical_offset, theirs.min_physical_offset)
        while piece := ours.raw(at, 1 << 16):
            if theirs.raw(at, len(piece)) != piece:
                return f"the slave of {self.name} has other bytes within {at} and {at + len(piece)}"
            at += len(piece)
        return ""

    def lag(self, group: str, topic: str) -> int:
        """Messages of a topic, and of the group's retry topic, that the group has not done."""
        assert self.broker is not None
        broker, lag = self.broker, 0
        for name, queue_id in broker.store.queues():
            if name in (topic, retry_topic(group)):
                done = max(0, broker.offsets.query(group, name, queue_id))
                lag += broker.store.max_offset(name, queue_id) - done
        return lag
