"""Apache's requests of the golden files against our handlers: the answers have the same structure."""

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rocketq import javajson
from rocketq.config import NamesrvConfig
from rocketq.namesrv.handlers import Requests
from rocketq.namesrv.kv import KVConfig
from rocketq.namesrv.table import RouteTable
from rocketq.remoting.command import FrameDecoder, decode_command
from rocketq.store.files import OsFiles

GOLDEN = Path(__file__).parents[1] / "golden"


def lines(name: str) -> list[dict]:
    with open(GOLDEN / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Replay:
    """A NameServer without sockets; requests and answers as in the golden files."""

    def __init__(self, path: Path, **settings) -> None:
        self.config = NamesrvConfig(**settings)
        self.table = RouteTable()
        self.kv = KVConfig(path / "kvConfig.json", OsFiles())
        self.kv.load()
        self.now = 0
        self.requests = Requests(self.config, self.table, self.kv, lambda: self.now)

    def send(self, line: dict, connection: object = None):
        if "request_header_hex" in line:
            kind, header = 1, bytes.fromhex(line["request_header_hex"])
        else:
            kind, header = 0, line["request_header"].encode()
        body = line.get("request_body", "").encode()
        if "request_body_hex" in line:
            body = bytes.fromhex(line["request_body_hex"])
        request = decode_command(kind, header, body)
        answer = self.requests.handle(connection or SimpleNamespace(peer="test"), request)
        if isinstance(answer, Awaitable):
            answer = asyncio.run(answered(answer))
        (command,) = FrameDecoder().feed(answer)
        return command


async def answered(answer: Awaitable) -> bytes:
    return await answer


def check(line: dict, answer) -> None:
    """Code, remark, extFields and body are Apache's; members of lists and maps may come in any order."""
    expected = json.loads(line["response_header"])
    assert answer.is_response
    assert answer.opaque == expected["opaque"]
    assert (answer.code, answer.remark) == (expected["code"], expected.get("remark"))
    assert answer.ext == expected.get("extFields", {})
    body = line.get("response_body", "")
    if not body.startswith("{"):
        return
    theirs, ours = body.encode(), bytes(answer.body)
    assert (b'{"0":' in ours, b"{0:" in ours) == (b'{"0":' in theirs, b"{0:" in theirs), "the JSON dialect"
    assert b" " not in ours
    assert unordered(javajson.loads(ours)) == unordered(javajson.loads(theirs))


def unordered(value):
    if isinstance(value, dict):
        return {str(key): unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((unordered(item) for item in value), key=repr)
    return value


def registration() -> dict:
    (first,) = [line for line in lines("broker_to_namesrv.jsonl") if line["name"] == "register_full_first"]
    return first


@pytest.mark.parametrize("setting", [False, True])
def test_the_recorded_requests_get_apaches_answers(tmp_path, setting):
    replay = Replay(tmp_path, return_order_topic_config_to_broker=setting)
    check(registration(), replay.send(registration()))
    seen = 0
    for line in lines("namesrv.jsonl"):
        answer = replay.send(line)
        if line["name"] == "namesrv_config":
            assert answer.code == 0
            keys = {text.split("=")[0] for text in bytes(answer.body).decode().splitlines()}
            assert {"listenPort", "kvConfigPath", "orderMessageEnable"} <= keys
            continue
        check(line, answer)
        seen += 1
    assert seen > 30


def test_what_a_broker_sends_over_its_life_is_understood(tmp_path):
    replay = Replay(tmp_path)
    for line in lines("broker_to_namesrv.jsonl"):
        if line["name"].startswith("acting"):
            continue
        if line["name"] == "route":  # of a topic that an incremental registration between the lines created
            assert replay.send(line).code == 17
            continue
        answer = replay.send(line)
        check(line, answer)
        if line["name"] == "register_incremental_one_topic":
            assert {"TopicSend", "TBW102", "BenchmarkTest"} <= set(replay.table.topics())
    assert replay.table.topics() == [], "the last line is the unregistration"


def test_the_heartbeats_of_a_broker_that_may_be_acted_for_are_understood(tmp_path):
    replay = Replay(tmp_path, support_acting_master=True)
    by_name = {line["name"]: line for line in lines("broker_to_namesrv.jsonl")}
    assert replay.send(by_name["acting_new_register"]).code == 0
    check(by_name["acting_new_member_group_901"], replay.send(by_name["acting_new_member_group_901"]))
    check(by_name["acting_member_group_by_route_105"], replay.send(by_name["acting_member_group_by_route_105"]))
    replay.now = 9_000
    assert replay.send(by_name["acting_new_heartbeat_904"]).code == 0
    replay.now = 15_000
    answer = replay.send(by_name["acting_heartbeat_by_data_version_322"])
    assert answer.ext == {"changed": "false"}
    assert json.loads(bytes(answer.body)) == json.loads(
        by_name["acting_heartbeat_by_data_version_322"]["request_body"]
    )
    replay.now = 25_000
    assert replay.table.expire(replay.now) == [], "both count as heartbeats"
    assert len(replay.table.expire(25_001)) == 1, "heartbeatTimeoutMillis of the registration is 10 s"


def test_slaves_that_stand_in_for_their_master(tmp_path):
    replay = Replay(tmp_path, support_acting_master=True, order_message_enable=True)
    acting = [line for line in lines("broker_to_namesrv.jsonl") if line["name"] == "acting_new_register"]
    assert replay.send(acting[0]).code == 0
    connections: dict[str, object] = {}
    for line in lines("namesrv_acting_master.jsonl"):
        if line.get("from"):  # 905: not sent by us
            continue
        name = line["name"]
        if name == "route_after_master_left":
            replay.requests.connection_lost(connections["127.0.0.1:50931"])
        if name == "route_after_expiry":
            replay.now += 5_100
            replay.table.expire(replay.now)
        fields = json.loads(line["request_header"]).get("extFields", {})
        connection = SimpleNamespace(peer="test")
        if name.startswith("register"):
            connections[fields["brokerAddr"]] = connection
        check(line, replay.send(line, connection))


def test_a_registration_with_a_wrong_body_is_refused(tmp_path):
    replay = Replay(tmp_path)
    line = registration()
    header = json.loads(line["request_header"])
    header["extFields"]["bodyCrc32"] = "0"
    for body in ("{", "[]", '{"topicConfigSerializeWrapper":{"topicConfigTable":{"T":{"perm":"x"}}}}'):
        with pytest.raises(ValueError):
            replay.send({"request_header": json.dumps(header), "request_body": body})
    header["extFields"]["compressed"] = "true"
    with pytest.raises(ValueError):
        replay.send({"request_header": json.dumps(header), "request_body": "not zlib"})
    assert replay.table.topics() == []


def test_settings_change_while_it_runs(tmp_path):
    replay = Replay(tmp_path)

    def update(text: str):
        header = {"code": 318, "flag": 0, "language": "JAVA", "opaque": 1, "version": 493}
        return replay.send({"request_header": json.dumps(header), "request_body": text})

    assert update("enableAllTopicList=false\nunknownKey=1").code == 0
    header = json.dumps({"code": 206, "flag": 0, "opaque": 2, "version": 493})
    answer = replay.send({"request_header": header})
    assert (answer.code, answer.remark) == (1, "disable")
    assert update("listenPort=1").code == 29
    assert update("enableAllTopicList=maybe").code == 29
    assert replay.config.enable_all_topic_list is False


def test_the_key_value_configuration_survives_a_restart(tmp_path):
    def header(code: int, **ext: str) -> dict:
        return {"request_header": json.dumps({"code": code, "flag": 0, "opaque": 1, "extFields": ext})}

    replay = Replay(tmp_path)
    assert replay.send(header(100, namespace="N", key="k", value="ü")).code == 0
    assert replay.send(header(100, namespace="N", key="gone", value="v")).code == 0
    assert replay.send(header(102, namespace="N", key="gone")).code == 0
    assert replay.send(header(102, namespace="N", key="never there")).code == 0
    again = Replay(tmp_path)
    assert again.send(header(101, namespace="N", key="k")).ext == {"value": "ü"}
    assert again.send(header(101, namespace="N", key="gone")).code == 22
