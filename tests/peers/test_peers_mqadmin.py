"""Apache's administration tool, mqadmin 5.4.0: every command on our server and, to test the tests, on Apache's own.

One JVM runs all commands. What the tool prints is what is looked at: names and numbers, not its layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import Peer
from scenarios import plain, stopped_after
from wire import Server, call, committed, create_topic, members, wait_until

from rocketq.hashing import tags_code

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
Mqadmin = Callable[[str], str]
JAVA = "java-5.4.0"
CLUSTER, BROKER = "DefaultCluster", "broker-a"


@pytest.fixture
def mqadmin(server: Server, client: GetClient) -> Mqadmin:
    """Runs one command and gives what it prints; what fails prints to stderr only, so the answer is empty."""

    def run(command: str) -> str:
        tool = client("mqadmin")
        printed: str = tool.ask("mqadmin", namesrv=server.namesrv, arguments=command.split(), timeout=60)
        return printed

    return run


def rows(table: str) -> list[list[str]]:
    """The lines of a printed table without its head, as words."""
    return [line.split() for line in table.splitlines() if line.strip() and not line.startswith(("#", "-"))]


def fields(text: str, separator: str) -> dict[str, str]:
    """Lines such as `name : value`."""
    pairs = [line.partition(separator) for line in text.splitlines() if separator in line]
    return {name.strip(): value.strip() for name, _, value in pairs}


def offsets(table: str) -> dict[str, str]:
    """Queue id -> offset, as the commands that move offsets print them."""
    return {row[1]: row[2] for row in rows(table) if row[0] == BROKER}


def route(mqadmin: Mqadmin, topic: str) -> list[str]:
    """Read queues, write queues and permissions of the topic at the broker."""
    return next((row[-3:] for row in rows(mqadmin(f"topicRoute -t {topic} -l")) if row[1:2] == [BROKER]), [])


def test_clusters_and_brokers(server: Server, mqadmin: Mqadmin) -> None:
    def shown() -> list[str]:
        return rows(mqadmin("clusterList"))[0]

    # Apache's broker may be too slow for the tool at its first question
    wait_until(lambda: shown()[-1] == "true", "the broker is shown as active", interval=0.2)
    cluster, broker, broker_id, address, version, *_ = shown()
    assert (cluster, broker, broker_id, address) == (CLUSTER, BROKER, "0", server.broker)
    assert version == "V5_4_0"
    assert [row[:2] for row in rows(mqadmin("clusterList -m"))] == [[CLUSTER, BROKER]]
    replication = mqadmin(f"haStatus -b {server.broker}")
    assert f"#MasterAddr\t{server.broker}" in replication
    assert "#SlaveNum\t0" in replication


def test_the_state_and_the_settings_of_a_broker(
    server: Server, mqadmin: Mqadmin, client: GetClient, name: str
) -> None:
    at = f"-b {server.broker}"
    create_topic(server, name)
    client(JAVA).send(server, name, plain(1))  # Apache counts from 1 even where there was nothing

    def ten_more() -> tuple[dict[str, str], dict[str, str]] | None:
        """The state before and after; None when something else was stored meanwhile, as leases of other tests end."""
        state = fields(mqadmin(f"brokerStatus {at}"), ":")
        client(JAVA).send(server, name, plain(10))
        of_cluster = mqadmin(f"brokerStatus -c {CLUSTER}").splitlines()
        assert all(line.startswith(server.broker) for line in of_cluster if line)
        later = fields("\n".join(line[len(server.broker) :] for line in of_cluster), ":")
        counts = ("putMessageTimesTotal", "msgPutTotalTodayNow")
        return (state, later) if all(int(later[each]) == int(state[each]) + 10 for each in counts) else None

    state, later = wait_until(ten_more, "ten messages are counted as ten")
    assert int(later["commitLogMaxOffset"]) > int(state["commitLogMaxOffset"])
    assert later["bootTimestamp"] == state["bootTimestamp"]
    assert re.fullmatch(r"Total : [\d.]+ \w+, Free : [\d.]+ \w+\.", later["commitLogDirCapacity"])

    lag = mqadmin(f"haStatus {at}")
    assert f"#MasterAddr\t{server.broker}\n" in lag
    assert "#SlaveNum\t0\n" in lag

    settings = fields(mqadmin(f"getBrokerConfig {at}"), "=")
    assert (settings["brokerName"], settings["maxMessageSize"]) == (BROKER, "4194304")
    before = settings["defaultQueryMaxNum"]
    try:
        assert "success" in mqadmin(f"updateBrokerConfig {at} -k defaultQueryMaxNum -v 31")
        assert fields(mqadmin(f"getBrokerConfig -c {CLUSTER}"), "=")["defaultQueryMaxNum"] == "31"
    finally:
        assert "success" in mqadmin(f"updateBrokerConfig -c {CLUSTER} -k defaultQueryMaxNum -v {before}")
    assert fields(mqadmin(f"getBrokerConfig {at}"), "=")["defaultQueryMaxNum"] == before


def test_topics(server: Server, mqadmin: Mqadmin, name: str) -> None:
    assert "success" in mqadmin(f"updateTopic -c {CLUSTER} -t {name} -r 3 -w 3")
    wait_until(lambda: route(mqadmin, name) == ["3", "3", "6"], "the route")
    shown = json.loads(mqadmin(f"topicRoute -t {name}").replace('0:"', '"0":"'))
    assert shown["brokerDatas"][0]["brokerAddrs"] == {"0": server.broker}
    (queues,) = shown["queueDatas"]
    facts = ("brokerName", "readQueueNums", "writeQueueNums", "perm")
    assert [queues[fact] for fact in facts] == [BROKER, 3, 3, 6]
    assert name in mqadmin("topicList").split()
    assert [CLUSTER, name] in [row[:2] for row in rows(mqadmin("topicList -c"))]
    assert mqadmin(f"topicClusterList -t {name}").split() == [CLUSTER]
    shares = json.loads(mqadmin(f"allocateMQ -t {name} -i 1.1.1.1,2.2.2.2"))["result"]
    assert [len(shares[ip]) for ip in ("1.1.1.1", "2.2.2.2")] == [2, 1]
    assert sorted(queue["queueId"] for share in shares.values() for queue in share) == [0, 1, 2]

    assert "from 6 to 4" in mqadmin(f"updateTopicPerm -b {server.broker} -t {name} -p 4")
    wait_until(lambda: route(mqadmin, name) == ["3", "3", "4"], "the route without the write bit")
    assert mqadmin(f"sendMessage -t {name} -p refused").strip() == ""
    assert "from 4 to 6" in mqadmin(f"updateTopicPerm -c {CLUSTER} -t {name} -p 6")
    wait_until(lambda: route(mqadmin, name) == ["3", "3", "6"], "the route with the write bit")

    # an order topic with attributes: its layout stands at the NameServers
    settings = "-r 4 -w 4 -o true -a +message.type=FIFO"
    assert "orderConf=[broker-a:4]" in mqadmin(f"updateTopic -c {CLUSTER} -t {name}_order {settings}")
    assert "[broker-a:4]" in mqadmin(f"updateOrderConf -t {name}_order -m get")
    stored = json.loads(call(server.broker, 351, {"topic": f"{name}_order"}).body)
    assert (stored["order"], stored["attributes"]) == (True, {"message.type": "FIFO"})

    assert "success" in mqadmin(f"updateOrderConf -t {name}_order -m delete")
    assert mqadmin(f"updateOrderConf -t {name}_order -m get").strip() == ""
    both = {name, f"{name}_order"}

    def are_gone() -> bool:
        for topic in both:
            assert "success" in mqadmin(f"deleteTopic -c {CLUSTER} -t {topic}")
        return not both & set(mqadmin("topicList").split()) and not any(route(mqadmin, topic) for topic in both)

    # Apache's broker may just be telling the NameServer of all its topics, which brings them back: then once more
    wait_until(are_gone, "both topics are gone", 60 if server.kind == "apache" else 0)


def test_lists_of_topics_and_groups_from_files(
    server: Server, mqadmin: Mqadmin, tmp_path: Path, name: str
) -> None:
    topics, groups = tmp_path / "topics.json", tmp_path / "groups.json"
    names = [f"{name}_a", f"{name}_b"]
    topics.write_text(json.dumps([{"topicName": each, "readQueueNums": 2, "writeQueueNums": 2} for each in names]))
    groups.write_text(json.dumps([{"groupName": each, "retryMaxTimes": 7} for each in names]))
    assert "success" in mqadmin(f"updateTopicList -b {server.broker} -f {topics}")
    assert "success" in mqadmin(f"updateSubGroupList -b {server.broker} -f {groups}")
    for each in names:
        wait_until(lambda each=each: route(mqadmin, each) == ["2", "2", "6"], f"the route of {each}")
        assert fields(mqadmin(f"getConsumerConfig -g {each}"), "=")["retryMaxTimes"] == "7"


def test_messages_are_sent_and_found_again(server: Server, mqadmin: Mqadmin, client: GetClient, name: str) -> None:
    create_topic(server, name, 3)
    (first,) = client(JAVA).send(server, name, [{"body": b"from Java", "keys": "two"}])
    ((_, queue, status, unique_id),) = rows(
        mqadmin(f"sendMessage -t {name} -p hello -k one -c tagA -b {BROKER} -i 1")
    )
    assert (queue, status) == ("1", "SEND_OK")
    java_queue = str(first["queue"])
    ends = {q: ["0", str((q == queue) + (q == java_queue))] for q in "012"}

    def shown_ends() -> dict[str, list[str]]:
        return {line[1]: line[2:4] for line in rows(mqadmin(f"topicStatus -t {name}")) if line[0] == BROKER}

    wait_until(lambda: shown_ends() == ends, "both are in their queues", interval=0.2)

    found = wait_until(lambda: rows(mqadmin(f"queryMsgByKey -t {name} -k one")), "the index", interval=0.2)
    queue_offset = str(int(ends[queue][1]) - 1)
    assert [row[:3] for row in found] == [[unique_id, queue, queue_offset]]
    assert rows(mqadmin(f"queryMsgByKey -t {name} -k three")) == []
    for command in (
        f"queryMsgByUniqueKey -t {name} -i {unique_id}",
        f"queryMsgByOffset -t {name} -b {BROKER} -i {queue} -o {queue_offset}",
        f"queryMsgById -t {name} -i {unique_id}",
    ):
        shown = fields(mqadmin(command), ":")
        assert (shown["Topic"], shown["Queue ID"], shown["Queue Offset"]) == (name, queue, queue_offset), command
        assert (shown["Tags"], shown["Keys"], shown["Reconsume Times"]) == ("[tagA]", "[one]", "0"), command
    by_offset_id = fields(mqadmin(f"queryMsgById -t {name} -i {first['offset_message_id']}"), ":")
    assert (by_offset_id["OffsetID"], by_offset_id["Keys"]) == (first["offset_message_id"], "[two]")

    printed = mqadmin(f"printMsg -t {name}")
    assert sorted(re.findall("BODY: (.*)", printed)) == ["from Java", "hello"]
    one_queue = mqadmin(f"printMsgByQueue -t {name} -a {BROKER} -i {queue} -p true -c UTF-8")
    assert unique_id in one_queue
    taken = mqadmin(f"consumeMessage -t {name} -g C_{name} -b {BROKER} -i {queue} -o {queue_offset} -c 1")
    assert "Consume ok" in taken
    assert "BODY: hello" in taken
    entry = mqadmin(f"queryCq -t {name} -q {queue} -i {queue_offset} -c 1")
    assert f"max: {ends[queue][1]}, min: 0" in entry
    assert f"tagsCode={tags_code('tagA')}" in entry

    assert mqadmin(f"sendMsgStatus -b {BROKER} -s 10 -c 1").count("sendStatus=SEND_OK") == 1
    assert [row[:3] for row in rows(mqadmin(f"checkMsgSendRT -t {name} -a 2 -s 10")) if row[0] == BROKER] == [
        [BROKER, "0", "true"],
        [BROKER, "1", "true"],
    ]


def test_a_group_and_its_members(server: Server, mqadmin: Mqadmin, client: GetClient, name: str) -> None:
    java, group = client(JAVA), f"G_{name}"
    create_topic(server, name, 2)
    java.send(server, name, plain(20))
    assert "success" in mqadmin(f"updateSubGroup -c {CLUSTER} -g {group} -r 5")
    config = fields(mqadmin(f"getConsumerConfig -g {group}"), "=")
    assert (config["groupName"], config["retryMaxTimes"]) == (group, "5")

    consumer = java.consume(server, name, group)
    consumer.wait(20)
    online = mqadmin(f"consumerConnection -g {group}")
    client_id, _, language, version = rows(online)[0]
    assert (language, version) == ("JAVA", "V5_4_0")
    assert [name, "*"] in rows(online)
    assert [f"%RETRY%{group}", "*"] in rows(online)
    assert "CONSUME_FROM_FIRST_OFFSET" in online
    assert client_id in mqadmin(f"consumerStatus -g {group}")
    running = mqadmin(f"consumerStatus -g {group} -i {client_id}")
    assert {(name, BROKER, "0"), (name, BROKER, "1")} <= {tuple(row[:3]) for row in rows(running)}
    assert "PROP_CONSUME_TYPE" in running
    producers = wait_until(lambda: rows(mqadmin(f"producerConnection -g peer_producers -t {name}")), "a heartbeat")
    assert ["JAVA", "V5_4_0"] in [row[-2:] for row in producers]  # other tests' clients are of the same group
    assert "peer_producers" in mqadmin(f"producer -b {server.broker}")

    # one message again, to this member, past all offsets
    again = consumer.messages[7]
    direct = mqadmin(f"queryMsgByUniqueKey -t {name} -i {again['message_id']} -g {group} -d {client_id}")
    assert "consumeResult=CR_SUCCESS" in direct
    consumer.wait(21)
    assert (
        sorted(m["queue_offset"] for m in consumer.messages if m["body"] == again["body"])
        == [again["queue_offset"]] * 2
    )

    stopped_after(server, name, consumer, 20)
    wait_until(lambda: mqadmin(f"consumerConnection -g {group}").strip() == "", "nobody is there any more")
    java.send(server, name, plain(4, "left"))
    progress = mqadmin(f"consumerProgress -g {group}")
    lags = {row[2]: [int(n) for n in row[3:6]] for row in rows(progress) if row[0] == name}
    assert lags.keys() == {"0", "1"}
    assert all(end - done == lag for end, done, lag in lags.values())
    assert sum(lag for _, _, lag in lags.values()) == 4
    assert "Consume Diff Total: 4" in progress
    assert [row[-1] for row in rows(mqadmin("consumerProgress")) if row[0] == group] == ["4"]
    at_broker = [
        row for row in rows(mqadmin(f"brokerConsumeStats -b {server.broker}")) if row[:2] == [name, group]
    ]
    assert sorted((row[3], int(row[6])) for row in at_broker) == sorted((q, lag[2]) for q, lag in lags.items())
    # topic, group, accumulation, rates in and out, messages in and out within 24 hours
    (today,) = (row for row in rows(mqadmin(f"statsAll -t {name}")) if row[:2] == [name, group])
    assert today[2] == "4"
    assert today[-2] == "24" or server.kind == "apache"  # which counts every ten minutes

    assert "success" in mqadmin(f"deleteSubGroup -c {CLUSTER} -g {group} -r true")
    assert mqadmin(f"getConsumerConfig -g {group}").count(group) == 0
    assert mqadmin(f"consumerProgress -g {group}").strip() == ""


def test_offsets_move_to_a_time_to_the_end_and_to_another_group(
    server: Server, mqadmin: Mqadmin, client: GetClient, name: str
) -> None:
    java, group = client(JAVA), f"G_{name}"
    create_topic(server, name, 2)
    sent = java.send(server, name, plain(20))
    ends = {str(q): str(sum(result["queue"] == q for result in sent)) for q in (0, 1)}
    mqadmin(f"updateSubGroup -c {CLUSTER} -g {group}")
    consumer = java.consume(server, name, group)
    consumer.wait(20)
    stopped_after(server, name, consumer, 20)

    def left() -> int:
        return int(re.search(r"Consume Diff Total: (\d+)", mqadmin(f"consumerProgress -g {group}")).group(1))  # type: ignore[union-attr]

    reset = f"resetOffsetByTime -g {group} -t {name}"
    assert left() == 0
    assert offsets(mqadmin(f"{reset} -s 2020-01-01#00:00:00:000")) == {"0": "0", "1": "0"}
    assert left() == 20
    assert offsets(mqadmin(f"{reset} -s -1")) == ends
    assert left() == 0
    assert "reset consumer offset to 3" in mqadmin(f"{reset} -s -1 -b {server.broker} -q 1 -o 3")
    assert left() == int(ends["1"]) - 3
    assert offsets(mqadmin(f"skipAccumulatedMessage -g {group} -t {name}")) == ends
    assert left() == 0
    middle = next(m["stored"] for m in sorted(consumer.messages, key=lambda m: m["physical_offset"])[10:])
    moved = offsets(mqadmin(f"{reset} -s {middle}"))
    wanted = {str(q): sum(m["queue"] == q and m["stored"] < middle for m in consumer.messages) for q in (0, 1)}
    assert moved == {q: str(n) for q, n in wanted.items()}
    # the group reads what it was given back, and nothing else
    count = left()
    consumer = java.consume(server, name, group)
    consumer.wait(count)
    assert sorted(m["queue_offset"] for m in consumer.stop() if m["queue"] == 0) == [
        *range(wanted["0"], int(ends["0"]))
    ]

    mqadmin(f"updateSubGroup -c {CLUSTER} -g {group}_copy")
    assert "success" in mqadmin(f"cloneGroupOffset -s {group} -d {group}_copy -t {name}")
    assert {q: str(committed(server, f"{group}_copy", name, int(q))) for q in ends} == ends


def test_the_nameserver_takes_write_permission_and_gives_it_back(
    server: Server, mqadmin: Mqadmin, name: str
) -> None:
    create_topic(server, name, 2)
    try:

        def wipe() -> str:
            """Empty when the broker registered meanwhile, as it does every 30 seconds: then it has them again."""
            said = mqadmin(f"wipeWritePerm -b {BROKER}")
            return said if route(mqadmin, name) == ["2", "2", "4"] else ""

        wiped: str = wait_until(wipe, "the route without the write bit")
        assert int(wiped.split()[-1]) > 1  # so many topics
    finally:
        added = mqadmin(f"addWritePerm -b {BROKER}")
    assert added.split()[-1] == wiped.split()[-1]
    assert route(mqadmin, name) == ["2", "2", "6"]


def test_settings_of_the_nameserver(server: Server, mqadmin: Mqadmin, name: str) -> None:
    assert "success" in mqadmin(f"updateKvConfig -s {name} -k color -v red")
    assert call(server.namesrv, 101, {"namespace": name, "key": "color"}).ext["value"] == "red"
    assert "success" in mqadmin(f"deleteKvConfig -s {name} -k color")
    assert call(server.namesrv, 101, {"namespace": name, "key": "color"}).code == 22
    settings = fields(mqadmin("getNamesrvConfig"), "=")
    assert settings["scanNotActiveBrokerInterval"] == "5000"
    try:
        assert "success" in mqadmin("updateNamesrvConfig -k scanNotActiveBrokerInterval -v 5001")
        assert fields(mqadmin("getNamesrvConfig"), "=")["scanNotActiveBrokerInterval"] == "5001"
    finally:
        mqadmin("updateNamesrvConfig -k scanNotActiveBrokerInterval -v 5000")


def test_cleaning_keeps_what_is_in_use(server: Server, mqadmin: Mqadmin, client: GetClient, name: str) -> None:
    create_topic(server, name, 1)
    (sent,) = client(JAVA).send(server, name, plain(1))
    for command in ("cleanExpiredCQ", "cleanUnusedTopic", "deleteExpiredCommitLog"):
        assert "success" in mqadmin(f"{command} -b {server.broker}")
        assert "success" in mqadmin(f"{command} -c {CLUSTER}")
    shown = fields(mqadmin(f"queryMsgByOffset -t {name} -b {BROKER} -i 0 -o 0"), ":")
    assert shown["OffsetID"] == sent["offset_message_id"]


def test_exports(server: Server, mqadmin: Mqadmin, client: GetClient, tmp_path: Path, name: str) -> None:
    create_topic(server, name, 3)
    assert "success" in mqadmin(f"updateSubGroup -c {CLUSTER} -g G_{name}")
    for command in ("exportMetadata", "exportConfigs", "exportMetrics"):
        assert "success" in mqadmin(f"{command} -c {CLUSTER} -f {tmp_path}")
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["topicConfigTable"][name]["readQueueNums"] == 3
    assert f"G_{name}" in metadata["subscriptionGroupTable"]
    configs = json.loads((tmp_path / "configs.json").read_text())
    assert configs["brokerConfigs"][BROKER]["brokerName"] == BROKER
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["evaluateReport"]


def test_the_way_a_group_consumes(server: Server, mqadmin: Mqadmin, client: GetClient, name: str) -> None:
    group = f"G_{name}"
    create_topic(server, name, 4)
    mqadmin(f"updateSubGroup -c {CLUSTER} -g {group}")
    consumer = client(JAVA).consume(server, name, group)  # only a member is given queues
    (client_id,) = wait_until(lambda: members(server, group), "the member is known")

    def assigned() -> list[tuple[int, str]]:
        asked = {"topic": name, "consumerGroup": group, "clientId": client_id, "strategyName": "AVG"}
        answer = call(server.broker, 400, body=json.dumps({**asked, "messageModel": "CLUSTERING"}).encode())
        found = json.loads(answer.body).get("messageQueueAssignments", [])
        return sorted((each["messageQueue"]["queueId"], each["mode"]) for each in found)

    pulled = [(queue, "PULL") for queue in range(4)]
    wait_until(lambda: assigned() == pulled, "all queues to pull")
    for mode, wanted in (("POP", [(-1, "POP")]), ("PULL", pulled)):
        assert "success" in mqadmin(f"setConsumeMode -c {CLUSTER} -t {name} -g {group} -m {mode} -q 0")
        assert assigned() == wanted
    consumer.stop()
