"""kill -9 of a slave, and of its SYNC_MASTER, again and again while messages flow: both agree byte by byte at the end,
and nothing that was answered is lost. `ROCKETQ_REPLICA_KILLS=20` has it go on for longer.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from servers import wait_until

sys.path.insert(0, str(Path(__file__).parent))

from brokers import TOPIC, Brokers, Load, create_topic
from members import MemberProcess

KILLS = int(os.environ.get("ROCKETQ_REPLICA_KILLS", "3"))
MASTER = ("brokerRole=SYNC_MASTER", "inSyncReplicas=2", "slaveTimeout=1000", "mappedFileSizeCommitLog=131072")
# it looks for its master more often than every 30 s, as that gives its log at another port each time
SLAVE = (
    "brokerRole=SLAVE",
    "brokerId=1",
    "mappedFileSizeCommitLog=131072",
    "registerNameServerPeriod=1000",
    "flushDiskType=SYNC_FLUSH",
)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_master_and_slave_agree_however_often_they_are_killed(tmp_path: Path) -> None:
    brokers = Brokers(tmp_path)
    loads: list[Load] = []
    member: MemberProcess | None = None

    def start(directory: str) -> None:
        brokers.start(directory, "broker-a", *(MASTER if directory == "a" else SLAVE))

    try:
        start("a")
        start("a-slave")
        create_topic(brokers.namesrv.namesrv)
        loads = [Load(brokers.namesrv.namesrv, name=f"{index}:") for index in range(4)]
        chance = random.Random(7)
        for number in range(KILLS):
            victim = "a" if number % 3 == 2 else "a-slave"
            for load in loads:
                load.wait_sent(chance.randrange(20, 60))
            brokers.kill(victim)
            start(victim)
        for load in loads:
            load.wait_sent(20)  # answered SEND_OK: both have them
            load.finish()
        sent = {name for load in loads for name in load.sent}
        wait_until(lambda: brokers.same_log("a", "a-slave"), 60, "master and slave have the same bytes")
        brokers.kill("a")  # what was answered is on the slave as well
        one = member = MemberProcess(brokers.namesrv.namesrv, TOPIC, "all", "push")
        wait_until(lambda: sent <= set(one.seen), 60, "the slave has everything that was answered")
    finally:
        for load in loads:
            load.finish()
        if member is not None:
            member.kill()
        brokers.stop()
