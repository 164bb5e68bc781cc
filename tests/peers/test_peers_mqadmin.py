"""Apache's administration tool on our server."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from peer import Peer
from wire import Server, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]


def rows(table: str) -> list[list[str]]:
    """The lines of a printed table without its head, as words."""
    return [line.split() for line in table.splitlines() if line.strip() and not line.startswith("#")]


# Proven against Apache's server as well; but the tool needs 3 seconds to end every other of its clients.
@pytest.mark.parametrize("server", ["rocketq"], indirect=True)
def test_mqadmin_shows_and_changes_what_there_is(server: Server, client: GetClient, name: str) -> None:
    tool = client("mqadmin")

    def mqadmin(command: str) -> str:
        printed: str = tool.ask("mqadmin", namesrv=server.namesrv, arguments=command.split(), timeout=30)
        return printed

    cluster, broker, broker_id, address, *_ = rows(mqadmin("clusterList"))[0]
    assert (cluster, broker_id, address) == ("DefaultCluster", "0", server.broker)

    assert "success" in mqadmin(f"updateTopic -c {cluster} -t {name} -r 3 -w 3")
    route = json.loads(mqadmin(f"topicRoute -t {name}").replace('0:"', '"0":"'))
    assert route["brokerDatas"][0]["brokerAddrs"] == {"0": server.broker}
    (queues,) = route["queueDatas"]
    facts = ("brokerName", "readQueueNums", "writeQueueNums", "perm")
    assert [queues[fact] for fact in facts] == [broker, 3, 3, 6]
    assert name in mqadmin("topicList").split()

    ((_, queue, status, message_id),) = rows(mqadmin(f"sendMessage -t {name} -p hello -k one -c tagA"))
    assert status == "SEND_OK"
    ends = {line[1]: line[2:4] for line in rows(mqadmin(f"topicStatus -t {name}")) if line[0] == broker}
    assert ends == {"0": ["0", "0"], "1": ["0", "0"], "2": ["0", "0"], queue: ["0", "1"]}
    found = wait_until(lambda: rows(mqadmin(f"queryMsgByKey -t {name} -k one")), "the index", interval=0.2)
    assert found[0][:3] == [message_id, queue, "0"]
    assert f"Queue ID:            {queue}" in mqadmin(f"queryMsgByUniqueKey -t {name} -i {message_id}")
    assert "BODY: hello" in mqadmin(f"printMsg -t {name}")

    group = f"G_{name}"
    assert "success" in mqadmin(f"updateSubGroup -c {cluster} -g {group} -r 5")
    consumer = client("java-5.4.0").consume(server, name, group)
    consumer.wait(1)
    online = mqadmin(f"consumerConnection -g {group}")
    assert "JAVA" in online
    assert [name, "*"] in rows(online)
    assert "CONSUME_FROM_FIRST_OFFSET" in online
    consumer.stop()
    progress = mqadmin(f"consumerProgress -g {group}")
    assert {line[2]: (line[3], line[4]) for line in rows(progress) if line[0] == name}[queue] == ("1", "1")
    assert "Consume Diff Total: 0" in progress

    status_of_broker = mqadmin(f"brokerStatus -b {server.broker}")
    assert "commitLogMaxOffset" in status_of_broker
    assert "msgPutTotalTodayNow" in status_of_broker

    assert "success" in mqadmin(f"deleteSubGroup -c {cluster} -g {group}")
    assert "success" in mqadmin(f"deleteTopic -c {cluster} -t {name}")
    assert mqadmin(f"topicRoute -t {name}").strip() == ""
