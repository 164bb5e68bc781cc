"""What clients know of topics and brokers: pure, fed with the routes that NameServers answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rocketq.message import MessageQueue
from rocketq.names import MAX_QUEUES
from rocketq.remoting.bodies import TopicRoute
from rocketq.remoting.codes import Perm

MASTER = 0


@dataclass(frozen=True)
class Known:
    """A topic as this client sees it: its route, when it was learned, and what follows from it."""

    route: TopicRoute
    learned_at: float
    write_queues: tuple[MessageQueue, ...]
    read_queues: tuple[MessageQueue, ...]


def write_queues(topic: str, route: TopicRoute) -> tuple[MessageQueue, ...]:
    """Queues that take messages: writable ones of brokers that have a master.

    An order configuration (`broker:4;other:4`) decides alone when the topic has one.
    """
    masters = {data.broker_name for data in route.broker_datas if MASTER in data.broker_addrs}
    if route.order_topic_conf:
        queues = []
        for part in route.order_topic_conf.split(";"):
            broker, _, number = part.partition(":")
            if broker in masters and number.isdecimal():
                queues += [MessageQueue(topic, broker, index) for index in _ids(int(number[:9]))]
        return tuple(sorted(queues))
    return tuple(
        sorted(
            MessageQueue(topic, data.broker_name, index)
            for data in route.queue_datas
            if data.perm & Perm.WRITE and data.broker_name in masters
            for index in _ids(data.write_queue_nums)
        )
    )


def _ids(number: int) -> range:
    """The ids of so many queues. Whoever can register a broker can say any number, and each would take memory."""
    return range(min(number, MAX_QUEUES))


def read_queues(topic: str, route: TopicRoute) -> tuple[MessageQueue, ...]:
    """Queues that can be read, from a master or from a slave."""
    return tuple(
        sorted(
            MessageQueue(topic, data.broker_name, index)
            for data in route.queue_datas
            if data.perm & Perm.READ
            for index in _ids(data.read_queue_nums)
        )
    )


class RouteTable:
    """Routes by topic and broker addresses by name. Times are seconds of any monotonic clock."""

    def __init__(self) -> None:
        self.topics: dict[str, Known] = {}
        self._brokers: dict[str, dict[int, str]] = {}
        #: Topics whose route led to a failure.
        self._stale: set[str] = set()
        #: Topics that a broker of their route does not know.
        self._denied: set[str] = set()

    def learn(self, topic: str, route: TopicRoute, now: float) -> bool:
        """Takes in a fresh route; True when it differs from what was known."""
        route.broker_datas.sort(key=lambda data: data.broker_name)  # servers answer in any order
        route.queue_datas.sort(key=lambda data: data.broker_name)
        old = self.topics.get(topic)
        changed = old is None or old.route != route
        if changed:
            known = Known(route, now, write_queues(topic, route), read_queues(topic, route))
        else:
            known = self.touch(topic, now)
        self.topics[topic] = known
        self._stale.discard(topic)
        self._denied.discard(topic)
        for data in route.broker_datas:
            self._brokers[data.broker_name] = data.broker_addrs
        if changed and old is not None:
            self._forget_brokers()
        return changed

    def forget(self, topic: str) -> None:
        """Nobody uses the topic any more, or it does not exist any more."""
        if self.topics.pop(topic, None) is not None:
            self._forget_brokers()

    def _forget_brokers(self) -> None:
        named = {data.broker_name for known in self.topics.values() for data in known.route.broker_datas}
        for name in self._brokers.keys() - named:
            del self._brokers[name]

    def touch(self, topic: str, now: float) -> Known:
        """Nothing new could be learned of a known topic: what is known counts for another while."""
        old = self.topics[topic]
        self._stale.discard(topic)
        known = self.topics[topic] = Known(old.route, now, old.write_queues, old.read_queues)
        return known

    def mark_stale(self, topic: str, *, denied: bool = False) -> None:
        """What is known of the topic led to a failure: ask before it is used again.

        `denied`: its broker said that there is no such topic.
        """
        self._stale.add(topic)
        if denied:
            self._denied.add(topic)

    def is_denied(self, topic: str) -> bool:
        return topic in self._denied

    def fresh(self, topic: str, now: float, max_age: float) -> Known | None:
        """What is known of the topic unless it is too old or has failed."""
        known = self.topics.get(topic)
        if known is None or topic in self._stale or now - known.learned_at > max_age:
            return None
        return known

    @property
    def brokers(self) -> dict[str, dict[int, str]]:
        """Addresses by broker name and broker id."""
        return self._brokers

    def master(self, broker_name: str) -> str | None:
        """Where to write; None when the broker has no master just now."""
        return self._brokers.get(broker_name, {}).get(MASTER)

    def reader(self, broker_name: str, broker_id: int = MASTER) -> tuple[str, int] | None:
        """Address and id to read from: that id, the next one when a slave was meant, else any."""
        addresses = self._brokers.get(broker_name)
        if not addresses:
            return None
        wanted = [broker_id, broker_id + 1] if broker_id != MASTER else [broker_id]
        for one in (*wanted, *sorted(addresses)):
            if one in addresses:
                return addresses[one], one
        return None

    def some_broker(self, topic: str, rng: random.Random) -> str | None:
        """Any broker of the topic, its master if there is one: whom to ask for the members of a group."""
        known = self.topics.get(topic)
        if known is None:
            return None
        datas = [data for data in known.route.broker_datas if data.broker_addrs]
        if not datas:
            return None
        addresses = rng.choice(datas).broker_addrs
        return addresses.get(MASTER) or rng.choice(sorted(addresses.values()))


def limit_queues(route: TopicRoute, number: int) -> TopicRoute:
    """The route of the default topic as a new topic would get it: at most `number` queues a broker."""
    for data in route.queue_datas:
        data.read_queue_nums = data.write_queue_nums = min(data.read_queue_nums, number)
    return route
