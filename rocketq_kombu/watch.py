"""Where the topics of consumed queues are: asked again and again, without waiting for the answer.

So consumers find brokers that were added or have moved, a queue's companion for messages with keys, and where
`rocketq replay` puts old messages, within `EVERY` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from rocketq.client.namesrv import parse_addresses
from rocketq.errors import RemotingError
from rocketq.remoting.bodies import TopicRoute
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.headers import GetRouteInfoHeader
from rocketq_kombu.engine import Engine

#: Seconds between looks.
EVERY = 2.0
_TIMEOUT = 5.0


class Watch:
    """Asks one of the NameServers (`host:port;host:port`) as long as it answers, then the next.

    `learned` is told what there is of a topic: its route, or None when it does not exist.
    """

    def __init__(self, engine: Engine, namesrv: str, learned: Callable[[str, TopicRoute | None], None]) -> None:
        self._engine = engine
        self._addresses = parse_addresses(namesrv)
        self._learned = learned
        self._asked: set[str] = set()

    def look(self, topics: Iterable[str]) -> None:
        """Ask for all of them for which no answer is under way."""
        for topic in sorted(set(topics) - self._asked):
            address = self._addresses[0]
            header = GetRouteInfoHeader(topic=topic, accept_standard_json_only=True)
            try:
                self._engine.send(
                    address,
                    RequestCode.GET_ROUTEINFO_BY_TOPIC,
                    header,
                    timeout=_TIMEOUT,
                    done=partial(self._done, topic, address),
                    lane=self,
                )
            except RemotingError:  # the blocking client tells of it, where it matters
                self._go_on(address)
                return
            self._asked.add(topic)

    def _go_on(self, address: str) -> None:
        """The next look asks another one."""
        if self._addresses[0] == address:
            self._addresses.append(self._addresses.pop(0))

    def _done(self, topic: str, address: str, answer: Command | RemotingError) -> None:
        self._asked.discard(topic)
        if isinstance(answer, RemotingError):
            self._go_on(address)
        elif answer.code == ResponseCode.SUCCESS:
            self._learned(topic, TopicRoute.decode(bytes(answer.body)))
        elif answer.code == ResponseCode.TOPIC_NOT_EXIST:
            self._learned(topic, None)
