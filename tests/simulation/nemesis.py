"""What goes wrong in a simulated cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster import BrokerHost, NameServerHost
from process import Process
from workloads import Client

if TYPE_CHECKING:
    from simulation import Simulation

Host = BrokerHost | NameServerHost | Client


class Nemesis:
    """A process of its own, which does things to the others until the storm is over."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.chance = simulation.world.chance
        self.process = self.world.process("nemesis")
        self.world.on_died = self._died
        self._acts = [
            self._kill_client,
            self._kill_broker,
            self._kill_in_the_middle,
            self._stop_broker,
            self._kill_namesrv,
            self._cut,
            self._cut,
            self._stall,
            self._pause,
            self._slow_disk,
        ]
        if simulation.brokers[0].sync:
            self._acts += [self._lose_power, self._lose_power]
        if simulation.clocks_jump:
            self._acts += [self._jump, self._jump]

    def start(self) -> None:
        async def main() -> None:
            pace = self.chance.choice((0.5, 1.5, 4.0))
            while True:
                await asyncio.sleep(self.chance.expovariate(1.0 / pace))
                if not self.simulation.stormy:
                    break
                self.chance.choice(self._acts)()

        self.process.start(main)

    def calm(self) -> None:
        """Bring up again what is down; nothing goes wrong any more."""
        for host in self._hosts():
            if isinstance(host, BrokerHost):
                host.disk.dies_after = None
                host.power_back()
            if not host.process.alive:
                host.start()
            host.process.slowness = 1.0
        self.world.network.loss = 0.0

    def _hosts(self) -> list[Host]:
        simulation = self.simulation
        clients = [client for workload in simulation.workloads for client in workload.clients]
        return [*simulation.namesrvs, *simulation.brokers, *simulation.slaves, *clients]

    def _died(self, process: Process) -> None:
        for host in self._hosts():
            if host.process is process:
                self.world.note(process, "died")
                self._start_again(host)

    def _start_again(self, host: Host) -> None:
        seconds = self.chance.choice((0.05, 0.5, 2.0, 8.0)) * self.chance.uniform(0.5, 1.5)

        def start() -> None:
            if isinstance(host, BrokerHost):
                host.power_back()
            if not host.process.alive:
                host.start()

        self.process.loop.call_later(seconds, start)

    def _broker(self) -> BrokerHost:
        return self.chance.choice([*self.simulation.brokers, *self.simulation.slaves])

    # the acts

    def _kill_client(self) -> None:
        host = self.chance.choice([each for workload in self.simulation.workloads for each in workload.clients])
        if host.process.alive:
            host.kill()
            self._start_again(host)

    def _kill_broker(self) -> None:
        host = self._broker()
        if host.process.alive:
            host.kill()
            self._start_again(host)

    def _kill_in_the_middle(self) -> None:
        host = self._broker()
        if host.process.alive:
            host.kill_after(self.chance.randrange(40))

    def _lose_power(self) -> None:
        host = self._broker()
        if host.process.alive:
            host.lose_power()
            self._start_again(host)

    def _stop_broker(self) -> None:
        host = self._broker()
        host.stop()
        self._start_when_stopped(host)

    def _start_when_stopped(self, host: BrokerHost) -> None:
        if host.broker is None and host.process.alive:
            self.process.loop.call_later(0.5, self._start_when_stopped, host)
        elif not host.process.alive:
            self._start_again(host)

    def _kill_namesrv(self) -> None:
        host = self.chance.choice(self.simulation.namesrvs)
        if host.process.alive:
            host.kill()
            self._start_again(host)

    def _cut(self) -> None:
        connections = self.world.network.connections()
        for transport in self.chance.sample(connections, min(len(connections), self.chance.randint(1, 4))):
            silent = self.chance.random() < 0.3
            self.world.note("cut", transport.local, transport.remote, "silently" if silent else "")
            transport.cut(silent=silent)

    def _stall(self) -> None:
        hosts = [host.process.host for host in self._hosts()]
        one, seconds = self.chance.choice(hosts), self.chance.uniform(0.2, 8.0)
        others = hosts if self.chance.random() < 0.5 else self.chance.sample(hosts, 2)
        self.world.note("nothing passes between", one, "and", len(others), "others for", round(seconds, 2))
        for other in others:
            self.world.network.stalled[frozenset((one, other))] = self.world.now + seconds

    def _pause(self) -> None:
        host, seconds = self.chance.choice(self._hosts()), self.chance.uniform(0.05, 4.0)
        self.world.note("pause", host.process, round(seconds, 2))
        host.process.pause(seconds)

    def _slow_disk(self) -> None:
        host = self._broker()
        host.process.slowness = self.chance.choice((1.0, 10.0, 100.0))
        self.world.note("the disk of", host.process, "is", host.process.slowness, "times as slow")

    def _jump(self) -> None:
        host = self.chance.choice(self._hosts())
        seconds = self.chance.choice((0.3, 5.0, 20.0)) * self.chance.uniform(-1.0, 1.0)
        self.world.note("the clock of", host.process, "jumps by", round(seconds, 2))
        host.process.wall_ahead += seconds
