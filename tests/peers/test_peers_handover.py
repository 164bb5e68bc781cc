"""Apache's broker takes the place of a master of ours that is lost, with what our slave has."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from apache import Apache
from peer import Peer, start_client
from scenarios import bodies, plain
from servers import ServerProcess
from test_peers_ha import SLAVE, Ours
from test_peers_store import consumed, everything
from wire import committed, create_topic, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

#: As Apache's broker of these tests has them, which opens the store then.
APACHES = {"mappedFileSizeConsumeQueue": 300_000, "maxHashSlotNum": 5_000_000, "maxIndexNum": 20_000_000}


def test_apaches_broker_goes_on_as_master_with_our_slaves_store(
    request: pytest.FixtureRequest, client: Callable[[str], Peer], tmp_path: Path, name: str
) -> None:
    request.getfixturevalue("apache")  # skips where it cannot run
    java, group = client("java-5.4.0"), f"G_{name}"
    with contextlib.ExitStack() as stack:
        namesrv = stack.enter_context(ServerProcess("namesrv", "--port", "0")).namesrv
        master = Ours(tmp_path / "master", namesrv, brokerRole="SYNC_MASTER", inSyncReplicas=2, **APACHES)
        stack.callback(master.end)
        slave = Ours(tmp_path / "slave", namesrv, **SLAVE, **APACHES)
        stack.callback(slave.end)
        create_topic(master, name, 3)
        java.send(master, name, plain(40, "done", tag="A", keys="key"))
        assert consumed(master, java, name, group, 40) == sorted(bodies(40, "done"))
        java.send(master, name, plain(7, "left"))
        before = everything(master, java, name)
        assert len(before) == 47

        def taken_over() -> bool:
            return sum(committed(slave, group, name, queue) or 0 for queue in range(3)) == 40

        wait_until(taken_over, "the slave has the group's offsets")
        master.kill_broker()
        shutil.rmtree(tmp_path / "master")
        assert slave.stop_broker() == 0

        theirs = Apache(tmp_path / "apache", store=slave.store, namesrv=namesrv)
        stack.callback(theirs.kill)
        theirs.start()
        java = start_client("java-5.4.0", tmp_path / "fresh")  # the other looks for the old address for a while
        stack.callback(java.close)
        assert everything(theirs, java, name) == before
        java.send(theirs, name, plain(5, "new"))
        assert consumed(theirs, java, name, group, 12) == sorted(bodies(7, "left") + bodies(5, "new"))
