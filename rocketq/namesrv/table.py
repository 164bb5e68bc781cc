"""What a NameServer knows: brokers, where they are, and which queues of which topics they have.

Brokers tell it by registering; nothing is agreed between NameServers. A full registration states all topics of a
broker, an incremental one only what changed, so what it does not mention stays. A topic is in the table as long as
a broker that has it is; a broker is, as long as its heartbeats come and its connection stands.

No sockets and no clock: `now` is given, in ms, and `owner` is whatever stands for the broker's connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rocketq.remoting.bodies import BrokerData, ClusterInfo, DataVersion, QueueData, TopicConfig, TopicRoute
from rocketq.remoting.codes import Perm

log = logging.getLogger("rocketq.namesrv")

MASTER = 0
#: ms without a heartbeat after which a broker is taken out, unless it asked for another time
BROKER_TIMEOUT = 120_000
UNIT = 1
UNIT_SUBSCRIPTION = 2


@dataclass
class Registration:
    """What a broker says about itself. `acting_master` is None for brokers older than 5.0."""

    cluster: str
    name: str
    address: str
    broker_id: int
    ha_address: str | None = None
    version: DataVersion = field(default_factory=DataVersion)
    topics: dict[str, TopicConfig] = field(default_factory=dict)
    timeout: int | None = None
    acting_master: bool | None = None
    zone: str | None = None


@dataclass
class Master:
    """What a slave is told about its master; both None when it has none or is the master."""

    address: str | None = None
    ha_address: str | None = None


@dataclass
class _Live:
    """Heartbeat state of one broker process."""

    seen: int
    timeout: int
    version: DataVersion
    owner: object
    ha_address: str | None


class RouteTable:
    """Brokers by name and address, queues by topic and broker.

    `delete_unmentioned`: a full registration takes away topics that it does not mention
    (`deleteTopicWithBrokerRegistration`).
    """

    def __init__(self, *, delete_unmentioned: bool = False) -> None:
        self._delete_unmentioned = delete_unmentioned
        self._clusters: dict[str, set[str]] = {}
        self._brokers: dict[str, BrokerData] = {}
        self._topics: dict[str, dict[str, QueueData]] = {}
        self._live: dict[tuple[str, str], _Live] = {}

    # -- brokers come and go

    def register(self, now: int, broker: Registration, owner: object = None) -> Master | None:
        """Take in a registration. None: refused, because a broker that is not known registers a single topic.

        That is the incremental form; its sender has to register in full first.
        """
        data = self._brokers.get(broker.name)
        addresses = {} if data is None else dict(data.broker_addrs)
        for broker_id, address in list(addresses.items()):
            if address == broker.address and broker_id != broker.broker_id:
                del addresses[broker_id]
        held_by = addresses.get(broker.broker_id)
        if held_by is not None and held_by != broker.address:
            holder = self._live.get((broker.cluster, held_by))
            if holder is not None and holder.version.state_version > broker.version.state_version:
                log.warning(
                    "broker %s at %s is refused: %s holds id %d with a newer state version",
                    broker.name,
                    broker.address,
                    held_by,
                    broker.broker_id,
                )
                self._live.pop((broker.cluster, broker.address), None)
                return Master()
        if held_by is None and len(broker.topics) == 1:
            log.info("broker %s at %s has to register in full first", broker.name, broker.address)
            return None
        addresses[broker.broker_id] = broker.address
        if data is None or data.cluster != broker.cluster:
            if data is not None:
                self._leave_cluster(data.cluster, broker.name)
            self._clusters.setdefault(broker.cluster, set()).add(broker.name)
        self._brokers[broker.name] = data = BrokerData(
            cluster=broker.cluster,
            broker_name=broker.name,
            broker_addrs=addresses,
            enable_acting_master=bool(broker.acting_master),
            zone_name=broker.zone,
        )
        key = (broker.cluster, broker.address)
        known = self._live.get(key)
        if held_by is None:
            log.info(
                "broker %s/%s id %d is at %s", *(broker.cluster, broker.name, broker.broker_id, broker.address)
            )
        is_master = broker.broker_id == MASTER
        acts_as_master = not is_master and broker.acting_master is not None and broker.broker_id == min(addresses)
        if is_master or acts_as_master:
            changed = held_by is None or known is None or known.version != broker.version
            read_only = acts_as_master and bool(data.enable_acting_master)
            self._take_topics(broker, changed=changed, read_only=read_only)
        self._live[key] = _Live(now, broker.timeout or BROKER_TIMEOUT, broker.version, owner, broker.ha_address)
        if not is_master and MASTER in addresses:
            master = self._live.get((broker.cluster, addresses[MASTER]))
            if master is not None:
                return Master(addresses[MASTER], master.ha_address)
        return Master()

    def _take_topics(self, broker: Registration, *, changed: bool, read_only: bool) -> None:
        if self._delete_unmentioned and len(broker.topics) > 1:
            for topic in [topic for topic, queues in self._topics.items() if broker.name in queues]:
                if topic not in broker.topics:
                    self._drop_queues(topic, broker.name)
        for topic, config in broker.topics.items():
            queues = self._topics.get(topic)
            if not changed and queues is not None and broker.name in queues:
                continue  # a permission that was wiped here stays wiped until the broker changes its topics
            if queues is None:
                queues = self._topics[topic] = {}
            queues[broker.name] = QueueData(
                broker_name=broker.name,
                read_queue_nums=config.read_queue_nums,
                write_queue_nums=config.write_queue_nums,
                perm=config.perm & ~int(Perm.WRITE) if read_only else config.perm,
                topic_sys_flag=config.topic_sys_flag,
            )

    def unregister(self, cluster: str, name: str, address: str) -> None:
        """Take a broker out, and its topics when it was the last of its name."""
        self._live.pop((cluster, address), None)
        data = self._brokers.get(name)
        if data is None or address not in data.broker_addrs.values():
            return
        left = {broker_id: held for broker_id, held in data.broker_addrs.items() if held != address}
        log.info("broker %s/%s at %s left", cluster, name, address)
        if not left:
            del self._brokers[name]
            self._leave_cluster(data.cluster, name)
            for topic in list(self._topics):
                self._drop_queues(topic, name)
            return
        self._brokers[name] = BrokerData(
            cluster=data.cluster,
            broker_name=name,
            broker_addrs=left,
            enable_acting_master=data.enable_acting_master,
            zone_name=data.zone_name,
        )
        if data.enable_acting_master and MASTER not in left:
            self._set_perm(name, lambda perm: perm & ~int(Perm.WRITE))

    def _leave_cluster(self, cluster: str, name: str) -> None:
        names = self._clusters.get(cluster, set())
        names.discard(name)
        if not names:
            self._clusters.pop(cluster, None)

    def _drop_queues(self, topic: str, name: str) -> None:
        queues = self._topics[topic]
        queues.pop(name, None)
        if not queues:
            del self._topics[topic]

    def heartbeat(self, now: int, cluster: str, address: str) -> None:
        """A sign of life; of an unknown broker it means nothing."""
        live = self._live.get((cluster, address))
        if live is not None:
            live.seen = now

    def version(self, cluster: str, address: str) -> DataVersion | None:
        """The data version that the broker last registered with."""
        live = self._live.get((cluster, address))
        return None if live is None else live.version

    def owner_lost(self, owner: object) -> list[str]:
        """The connection is gone: take out the brokers that registered over it; returns their addresses."""
        return self._take_out([key for key, live in self._live.items() if live.owner is owner])

    def excuse(self, now: int, late: int) -> None:
        """Nobody could be heard for `late` ms up to now: this time does not count as a broker's silence."""
        for live in self._live.values():
            live.seen = min(now, live.seen + max(0, late))

    def expire(self, now: int) -> list[object]:
        """Take out the brokers whose heartbeat is overdue; returns the owners, whose connections are of no use."""
        late = [(key, live) for key, live in self._live.items() if live.seen + live.timeout < now]
        for (cluster, address), live in late:
            log.warning("broker at %s in %s sent nothing for %d ms", address, cluster, now - live.seen)
        self._take_out([key for key, _ in late])
        return [live.owner for _, live in late]

    def _take_out(self, keys: Iterable[tuple[str, str]]) -> list[str]:
        found = []
        for cluster, address in keys:
            found.append(address)
            names = [
                data.broker_name
                for data in self._brokers.values()
                if data.cluster == cluster and address in data.broker_addrs.values()
            ]
            self._live.pop((cluster, address), None)
            for name in names:
                self.unregister(cluster, name, address)
        return found

    # -- questions

    def route(self, topic: str, *, acting_master: bool = False) -> TopicRoute | None:
        """Queues and brokers of a topic; None when no broker has it.

        `acting_master`: where a broker has lost its master, its first slave stands in under id 0, for reading.
        """
        queues = self._topics.get(topic)
        if not queues:
            return None
        brokers = []
        for name in queues:
            data = self._brokers.get(name)
            if data is None:
                continue
            if acting_master and data.enable_acting_master and MASTER not in data.broker_addrs:
                addresses = dict(data.broker_addrs)
                if not queues[name].perm & Perm.WRITE:
                    addresses[MASTER] = addresses.pop(min(addresses))
                data = BrokerData(
                    cluster=data.cluster,
                    broker_name=name,
                    broker_addrs=addresses,
                    enable_acting_master=True,
                    zone_name=data.zone_name,
                )
            brokers.append(data)
        return TopicRoute(broker_datas=brokers, queue_datas=list(queues.values())) if brokers else None

    def cluster_info(self) -> ClusterInfo:
        return ClusterInfo(
            broker_addr_table=dict(self._brokers),
            cluster_addr_table={cluster: sorted(names) for cluster, names in self._clusters.items()},
        )

    def members(self, name: str) -> dict[int, str]:
        """The addresses of a broker name by broker id."""
        data = self._brokers.get(name)
        return {} if data is None else dict(data.broker_addrs)

    def topics(self) -> list[str]:
        return list(self._topics)

    def topics_of_cluster(self, cluster: str) -> list[str]:
        names = self._clusters.get(cluster, set())
        return [topic for topic, queues in self._topics.items() if not names.isdisjoint(queues)]

    def unit_topics(self, wanted: int, unwanted: int = 0) -> list[str]:
        """Topics whose system flag has the bits `wanted` and none of `unwanted`."""
        found = []
        for topic, queues in self._topics.items():
            flag = next(iter(queues.values())).topic_sys_flag
            if flag & wanted == wanted and not flag & unwanted:
                found.append(topic)
        return found

    def system_topics(self) -> tuple[list[str], str | None]:
        """Names of clusters and brokers, which are topics too, and the address of some broker."""
        found = []
        for cluster, names in self._clusters.items():
            found += [cluster, *sorted(names)]
        address = next(
            (address for data in self._brokers.values() for address in data.broker_addrs.values()), None
        )
        return list(dict.fromkeys(found)), address

    # -- an operator's changes

    def wipe_write(self, name: str) -> int:
        """Let nobody send to the broker any more; returns the number of topics. Holds until its topics change."""
        return self._set_perm(name, lambda perm: perm & ~int(Perm.WRITE))

    def add_write(self, name: str) -> int:
        """Undo :meth:`wipe_write`: reading and writing for all topics of the broker; returns their number."""
        return self._set_perm(name, lambda perm: int(Perm.READ | Perm.WRITE))

    def _set_perm(self, name: str, change: Callable[[int], int]) -> int:
        count = 0
        for queues in self._topics.values():
            data = queues.get(name)
            if data is not None:
                queues[name] = QueueData(
                    broker_name=name,
                    read_queue_nums=data.read_queue_nums,
                    write_queue_nums=data.write_queue_nums,
                    perm=change(data.perm),
                    topic_sys_flag=data.topic_sys_flag,
                )
                count += 1
        return count

    def delete_topic(self, topic: str, cluster: str | None = None) -> None:
        """Forget the topic, on the brokers of `cluster` only when that is given."""
        queues = self._topics.get(topic)
        if queues is None:
            return
        names = (
            list(queues) if not cluster else [name for name in queues if name in self._clusters.get(cluster, ())]
        )
        for name in names:
            self._drop_queues(topic, name)

    def register_topic(self, topic: str, queue_datas: list[QueueData]) -> None:
        """Add queues of a topic on brokers that are known."""
        known = {data.broker_name: data for data in queue_datas if data.broker_name in self._brokers}
        if known:
            self._topics.setdefault(topic, {}).update(known)
