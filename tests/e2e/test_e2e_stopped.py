"""SIGSTOP: processes that hang for a while. Nothing is lost, others do not notice, and who hung goes on.

They hang for 4 s, which is longer than requests and leases wait; `ROCKETQ_STOPPED_SECONDS=10` has them hang longer.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import start_server, wait_until

sys.path.insert(0, str(Path(__file__).parent))

from brokers import TOPIC, Brokers, Load, create_topic
from members import CONCURRENCY, MemberProcess

SECONDS = float(os.environ.get("ROCKETQ_STOPPED_SECONDS", "4"))
#: Messages of a pull.
PULL = 32
#: Queues of the topic: two members of a group have two each.
QUEUES = 4
#: Kinds of members and their groups; one of all but the last hangs.
KINDS = (("push", "hung"), ("orderly", "ordered"), ("pull", "polling"), ("pop", "popping"), ("push", "other"))
#: Those whose members have queues.
SHARING = ("hung", "ordered", "polling")


def wait_seen(names: list[str], seen: Callable[[], Counter[str]], what: str) -> None:
    wait_until(lambda: not set(names) - seen().keys(), 60, what)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_member_that_hangs_is_replaced_and_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "broker.conf"
    config.write_text(
        "mappedFileSizeCommitLog=67108864\nchannelExpiredTimeout=3000\n"
        "rocketmq.broker.rebalance.lockMaxLiveTime=3000\n"
    )
    with start_server(tmp_path / "data", "--config", str(config)) as server:
        create_topic(server.namesrv)
        members: dict[str, list[MemberProcess]] = {}
        load = Load(server.namesrv)
        try:
            for kind, group in KINDS:
                members[group] = [MemberProcess(server.namesrv, TOPIC, group, kind) for _ in range(2)]

            def seen(group: str) -> Counter[str]:
                return Counter(name for member in members[group] for name in list(member.seen))

            def shared() -> bool:
                """Each of the members that pull has its share."""
                return all(m.queues == QUEUES // 2 for group in (*SHARING, "other") for m in members[group])

            wait_until(shared, 60, "all members have queues")
            wait_until(lambda: all(m.seen for m in members["popping"]), 60, "both members pop")
            hung = {group: members[group][0] for group in (*SHARING, "popping")}
            load.phase = "b"  # what is in flight when members hang may come twice, what is sent now has time
            load.wait_sent(100)
            for group in members:
                wait_seen(load.of("a"), lambda group=group: seen(group), "the first messages")

            for member in hung.values():
                member.freeze()
            begun = time.monotonic()
            load.phase = "c"
            load.wait_sent(100)
            # leases end by themselves; the queues are given away when the broker has not heard of their owner
            wait_seen(load.of("b"), lambda: seen("popping"), "what the hanging member had leased")
            for group in SHARING:
                wait_until(lambda g=group: members[g][1].queues == QUEUES, 60, "the other member has all queues")
                wait_seen(load.of("c"), lambda g=group: seen(g), "the other member consumes them")
            while time.monotonic() - begun < SECONDS:
                load.wait_sent(10)
            before = {member: len(member.seen) for member in hung.values()}
            for member in before:
                member.thaw()
            wait_until(shared, 60, "the member that hung has its share again")
            load.phase = "d"
            load.wait_sent(100)
            for member, count in before.items():
                wait_until(lambda m=member, n=count: len(m.seen) > n + 10, 60, "who hung consumes again")
            load.finish()
            assert not load.errors, load.errors[:3]
            for group in members:
                wait_seen(load.sent, lambda group=group: seen(group), f"group {group} gets everything")

            def twice(group: str) -> set[str]:
                """What came twice, not counting the time in which members joined."""
                return {name for name, count in seen(group).items() if count > 1 and name[0] != "a"}

            assert not twice("other")
            # what the one that hung had, or the broker had sent it: no more than two pulls of each of its queues …
            for group in SHARING:
                assert twice(group) <= set(hung[group].seen)
                # (who polls commits by the clock, and not with its pulls)
                most = (4 if group == "polling" else 2) * (QUEUES // 2) * PULL
                assert len(twice(group)) <= most, twice(group)
            # … and of POP what its handlers had, and acknowledgements under way
            assert twice("popping") <= set(hung["popping"].seen)
            assert len(twice("popping")) <= 4 * CONCURRENCY, twice("popping")
            for group in members:
                assert not [name for name in twice(group) if name[0] == "d"]
            sys.stdout.write(f"came twice: { {group: len(twice(group)) for group in members} }\n")
        finally:
            load.finish()
            for group in members.values():
                for member in group:
                    member.kill()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_servers_that_hang_lose_nothing_and_go_on(tmp_path: Path) -> None:
    """A server of its own, and a master that waits for its slave; then the slave."""
    config = tmp_path / "broker.conf"
    config.write_text("mappedFileSizeCommitLog=16777216\n")
    master = ("brokerRole=SYNC_MASTER", "inSyncReplicas=2", "slaveTimeout=1000")
    brokers = Brokers(tmp_path, *master)
    loads: list[Load] = []
    members: list[MemberProcess] = []
    with start_server(tmp_path / "data", "--config", str(config)) as server:
        try:
            brokers.start("a", "broker-a", *master)
            brokers.start("a-slave", "broker-a", "brokerRole=SLAVE", "brokerId=1")
            for namesrv in (server.namesrv, brokers.namesrv.namesrv):
                create_topic(namesrv)
                loads.append(Load(namesrv))
                members.append(MemberProcess(namesrv, TOPIC, "G", "push" if len(members) else "pop"))
            for load in loads:
                load.wait_sent(100)

            hanging = server, brokers.running["a"]
            for process in hanging:
                process.freeze()
            time.sleep(SECONDS)
            for process in hanging:
                process.thaw()
            for load in loads:
                load.wait_sent(100)

            brokers.running["a-slave"].freeze()
            wait_until(lambda: "FLUSH_SLAVE_TIMEOUT" in loads[1].statuses, 60, "sends are not answered as safe")
            brokers.running["a-slave"].thaw()
            loads[1].wait_sent(100)

            for load, member in zip(loads, members, strict=True):
                load.finish()
                assert not load.errors, load.errors[:3]
                wait_seen(load.sent, lambda member=member: Counter(list(member.seen)), "everything is consumed")
                # what was under way when the server hung is sent again by its producer, and comes with two offsets
                again = [name for name, count in Counter(member.seen).items() if count > 1]
                assert len(again) <= 4, again
            wait_until(lambda: brokers.same_log("a", "a-slave"), 60, "master and slave agree")
        finally:
            for load in loads:
                load.finish()
            for member in members:
                member.kill()
            brokers.stop()
