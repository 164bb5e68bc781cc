"""Who may do what: the file of accounts, signatures, permissions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from broker_wire import Wire, config, running
from hypothesis import example, given
from hypothesis import strategies as st

from rocketq.broker.access import _NEEDS, Access, Rules
from rocketq.broker.refusal import Refused
from rocketq.broker.server import Broker
from rocketq.errors import ConfigError
from rocketq.remoting.codes import BINARY, JSON, RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.credentials import Credentials

APACHES = """
globalWhiteRemoteAddresses:
  - 10.10.103.*
  - 192.168.0.*

accounts:
  - accessKey: RocketMQ
    secretKey: 12345678
    whiteRemoteAddress:
    admin: false
    defaultTopicPerm: DENY
    defaultGroupPerm: SUB
    topicPerms:
      - topicA=DENY
      - topicB=PUB|SUB
      - topicC=SUB
      - topicD=PUB
    groupPerms:
      # the group should convert to retry topic
      - groupA=DENY
      - groupB=PUB|SUB
      - groupC=SUB

  - accessKey: rocketmq2
    secretKey: 12345678
    whiteRemoteAddress: 192.168.1.*
    # if it is admin, it could access all resources
    admin: true
"""
USER = Credentials("RocketMQ", "12345678")
ADMIN = Credentials("rocketmq2", "12345678")
OUTSIDE = "127.0.0.1:4711"


def access(directory: Path, text: str = APACHES) -> Access:
    path = directory / "plain_acl.yml"
    path.write_text(text)
    made = Access(path)
    made.load()
    return made


def request(
    code: int, ext: dict[str, str] | None = None, body: bytes = b"", who: Credentials | None = USER
) -> Command:
    return Command(code, ext=who.signed(ext, body) if who else ext, body=body)


def heartbeat(group: str, *topics: str) -> bytes:
    subscriptions = ",".join(f'{{"topic":"{topic}","subString":"*"}}' for topic in topics)
    consumer = f'{{"groupName":"{group}","subscriptionDataSet":[{subscriptions}]}}'
    return f'{{"clientID":"c","consumerDataSet":[{consumer}],"producerDataSet":[]}}'.encode()


C = RequestCode


@pytest.mark.parametrize(
    ("code", "ext", "body", "refused"),
    [
        (C.SEND_MESSAGE, {"topic": "topicB"}, b"", None),
        (C.SEND_MESSAGE, {"topic": "topicC"}, b"", "topic topicC"),
        (C.SEND_MESSAGE_V2, {"b": "topicB"}, b"x", None),
        (C.SEND_MESSAGE_V2, {"b": "topicA"}, b"x", "topic topicA"),
        (C.SEND_MESSAGE_V2, {"b": "other"}, b"x", "topic other"),
        (C.SEND_MESSAGE_V2, {}, b"x", "names no topic"),
        (C.SEND_MESSAGE_V2, {"b": "RMQ_SYS_TRACE_TOPIC"}, b"x", None),
        (C.SEND_MESSAGE_V2, {"b": "%RETRY%groupB", "a": "groupA"}, b"", None),
        (C.SEND_MESSAGE_V2, {"b": "%RETRY%groupA", "a": "groupB"}, b"", "group groupA"),
        (C.SEND_MESSAGE_V2, {"b": "%DLQ%groupA", "a": "groupB"}, b"", "group groupA"),
        (C.SEND_BATCH_MESSAGE, {"b": "topicC"}, b"", "topic topicC"),
        (C.CONSUMER_SEND_MSG_BACK, {"group": "groupA"}, b"", "group groupA"),
        (C.CONSUMER_SEND_MSG_BACK, {"group": "any"}, b"", None),
        (C.PULL_MESSAGE, {"topic": "topicC", "consumerGroup": "groupC"}, b"", None),
        (C.PULL_MESSAGE, {"topic": "topicD", "consumerGroup": "groupC"}, b"", "topic topicD"),
        (C.PULL_MESSAGE, {"topic": "topicC", "consumerGroup": "groupA"}, b"", "group groupA"),
        (C.PULL_MESSAGE, {"topic": "%RETRY%groupA", "consumerGroup": "groupC"}, b"", "group groupA"),
        (C.PULL_MESSAGE, {"topic": "RMQ_SYS_TRACE_TOPIC", "consumerGroup": "groupC"}, b"", "RMQ_SYS_TRACE"),
        (C.POP_MESSAGE, {"topic": "topicD", "consumerGroup": "groupC"}, b"", "topic topicD"),
        (C.POP_MESSAGE, {"topic": "topicB", "consumerGroup": "groupB"}, b"", None),
        (C.ACK_MESSAGE, {"topic": "%RETRY%groupC_topicC", "consumerGroup": "groupC"}, b"", None),
        (C.ACK_MESSAGE, {"topic": "topicC", "consumerGroup": "groupA"}, b"", "group groupA"),
        (C.BATCH_ACK_MESSAGE, {}, b'{"acks":[{"c":"groupC","t":"topicC"}]}', None),
        (C.BATCH_ACK_MESSAGE, {}, b'{"acks":[{"c":"groupC"},{"c":"groupA"}]}', "group groupA"),
        (C.BATCH_ACK_MESSAGE, {}, b"garbage", "cannot be read"),
        (C.QUERY_ASSIGNMENT, {}, b'{"topic":"topicC","consumerGroup":"groupA"}', "group groupA"),
        (C.UPDATE_CONSUMER_OFFSET, {"topic": "topicC", "consumerGroup": "groupA"}, b"", "group groupA"),
        (C.GET_MAX_OFFSET, {"topic": "topicD"}, b"", None),
        (C.GET_MAX_OFFSET, {"topic": "topicA"}, b"", "topic topicA"),
        (C.HEART_BEAT, {}, heartbeat("groupC", "topicC", "%RETRY%groupC"), None),
        (C.HEART_BEAT, {}, heartbeat("groupC", "topicC", "topicD"), "topic topicD"),
        (C.HEART_BEAT, {}, heartbeat("groupA", "topicC"), "group groupA"),
        (C.LOCK_BATCH_MQ, {}, b'{"consumerGroup":"groupA","clientId":"c","mqSet":[]}', "group groupA"),
        (C.UNREGISTER_CLIENT, {"clientID": "c", "producerGroup": "p"}, b"", None),
        (C.UPDATE_AND_CREATE_TOPIC, {"topic": "topicB"}, b"", "Need admin permission for request code=17"),
        (C.VIEW_MESSAGE_BY_ID, {"offset": "0"}, b"", "Need admin permission"),
        (C.UPDATE_BROKER_CONFIG, {}, b"aclEnable=false", "Need admin permission"),
        (99_999, {}, b"", "Need admin permission"),
    ],
)
def test_accounts_may_do_what_their_permissions_say(
    tmp_path: Path, code: int, ext: dict[str, str], body: bytes, refused: str | None
) -> None:
    rules = access(tmp_path)
    rules.check(request(code, ext, body, ADMIN), OUTSIDE)
    if refused is None:
        rules.check(request(code, ext, body), OUTSIDE)
        return
    with pytest.raises(Refused, match=refused) as caught:
        rules.check(request(code, ext, body), OUTSIDE)
    assert caught.value.code == ResponseCode.NO_PERMISSION


def test_every_change_of_topics_groups_and_brokers_is_an_operators() -> None:
    operators = {17, 18, 25, 26, 43, 200, 207, 215, 222, 225, 306, 309, 314, 329, 401, 21, 201, 33}
    assert not operators & set(_NEEDS)


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({"AccessKey": ""}, "No accessKey is configured"),
        ({"AccessKey": "nobody!"}, "No acl config for nobody!"),
        ({"Signature": ""}, "Check signature failed for accessKey=RocketMQ"),
        ({"Signature": "ümlaut"}, "Check signature failed"),
        ({"topic": "topicD"}, "Check signature failed"),
        ({"more": "1"}, "Check signature failed"),
        ({"AccessKey": "rocketmq2"}, "Check signature failed for accessKey=rocketmq2"),
    ],
)
def test_what_is_not_signed_is_refused(tmp_path: Path, changed: dict[str, str], remark: str) -> None:
    rules = access(tmp_path)
    ext = {**USER.signed({"topic": "topicB"}, b"body"), **changed}
    with pytest.raises(Refused, match=remark):
        rules.check(Command(10, ext=ext, body=b"body"), OUTSIDE)
    with pytest.raises(Refused, match="No accessKey"):
        rules.check(Command(10), OUTSIDE)
    with pytest.raises(Refused, match="Check signature failed"):
        rules.check(Command(10, ext=USER.signed({"topic": "topicB"}, b"body"), body=b"b0dy"), OUTSIDE)


def test_queries_of_old_clients_leave_one_field_unsigned(tmp_path: Path) -> None:
    ext = USER.signed({"topic": "topicC"}, b"") | {"_UNIQUE_KEY_QUERY": "true"}
    access(tmp_path).check(Command(12, ext=ext), OUTSIDE)


@pytest.mark.parametrize(
    ("peer", "passes"),
    [
        ("10.10.103.7:1", True),
        ("[::ffff:10.10.103.7]:1", True),
        ("::ffff:192.168.0.1:1", True),
        ("10.10.104.7:1", False),
        ("[::1]:1", False),
        ("", False),
    ],
)
def test_trusted_addresses_need_no_signature(tmp_path: Path, peer: str, passes: bool) -> None:
    rules = access(tmp_path)
    if passes:
        rules.check(Command(17), peer)
    else:
        with pytest.raises(Refused):
            rules.check(Command(17), peer)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*", ["1.2.3.4", "::1"], []),
        ("1.2.3.4", ["1.2.3.4"], ["1.2.3.5"]),
        ("1.2.3.4,5.6.7.8", ["1.2.3.4", "5.6.7.8"], ["1.2.7.8"]),
        ("1.2.3.{4,5}", ["1.2.3.4", "1.2.3.5"], ["1.2.3.6"]),
        ("1.2.3-9.*", ["1.2.3.0", "1.2.9.255"], ["1.2.10.1", "1.3.3.1"]),
        ("::1", ["::1", "0:0:0:0:0:0:0:1"], ["::2", "127.0.0.1"]),
    ],
)
def test_patterns_of_addresses(tmp_path: Path, pattern: str, inside: list[str], outside: list[str]) -> None:
    text = f'accounts: [{{accessKey: someone, secretKey: anything, whiteRemoteAddress: "{pattern}"}}]'
    rules = access(tmp_path, text)
    unsigned = Command(25, ext={"AccessKey": "someone"})
    for address in inside:
        rules.check(unsigned, f"{address}:1")
    for address in outside:
        with pytest.raises(Refused, match="Check signature"):
            rules.check(unsigned, f"{address}:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accounts: 3", "is not a file of accounts"),
        ("a: [", "is not a file of accounts"),
        ("accounts: [{accessKey: someone}]", "secretKey"),
        ("accounts: [{accessKey: someone, secretKey: short}]", "account 1 .someone.*longer than 6"),
        ("accounts: [{accessKey: someone, secretKey: anything, admn: true}]", "admn"),
        ("accounts: [{accessKey: someone, secretKey: anything, topicPerms: [x]}]", "'x' is not NAME=PERMISSION"),
        ("accounts: [{accessKey: someone, secretKey: anything, topicPerms: [x=ALL]}]", "none of DENY, PUB, SUB"),
        ("accounts: [{accessKey: someone, secretKey: anything, whiteRemoteAddress: 1.2.3}]", "neither an address"),
        ("globalWhiteRemoteAddresses: [1.2.3.4-300]", "neither an address"),
        (
            "accounts: [{accessKey: someone, secretKey: anything}, {accessKey: someone, secretKey: anything}]",
            "account 2 .someone.*already",
        ),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        access(tmp_path, text)
    assert "anything" not in str(caught.value)  # the secret


@given(st.text(alphabet="acesKyuntos: -[]{}=|*.,\n&#'\"!19é", max_size=60) | st.binary(max_size=40))
@example("accounts:\n- accessKey: 1\n  secretKey: 2024-99-99")
@example("[" * 50)
@example("a: &a [*a]")
def test_any_file_is_read_or_refused(data: str | bytes) -> None:
    with contextlib.suppress(ConfigError):
        Rules(data if isinstance(data, bytes) else data.encode(), Path("plain_acl.yml"))


def test_changes_of_the_file_count_at_once_and_broken_ones_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = access(tmp_path)
    path = tmp_path / "plain_acl.yml"
    path.write_text(APACHES.replace("topicB=PUB|SUB", "topicB=DENY"))
    rules.refresh()
    with pytest.raises(Refused, match="topic topicB"):
        rules.check(request(10, {"topic": "topicB"}), OUTSIDE)
    path.write_text("accounts: [")
    rules.refresh()
    rules.refresh()
    assert caplog.text.count("the accounts stay as they were") == 1
    os.remove(path)
    rules.refresh()
    rules.check(request(10, {"topic": "topicD"}), OUTSIDE)


def test_a_broker_serves_signed_requests_only(tmp_path: Path) -> None:
    path = tmp_path / "accounts.yml"
    path.write_text("accounts: [{accessKey: someone, secretKey: anything, topicPerms: [T=PUB]}]")
    someone = Credentials("someone", "anything")

    async def main() -> None:
        settings: dict[str, Any] = {"acl_enable": True, "acl_file": str(path)}
        async with running(tmp_path / "store", **settings) as (broker, wire):
            for serialize_type in (JSON, BINARY):
                answer = await wire.store("T", serialize_type=serialize_type)
                assert (answer.code, answer.remark) == (16, "No accessKey is configured")
                assert (await send(wire, someone, serialize_type)).code == 0
            wrong = Credentials("someone", "somewhat")
            assert (await send(wire, wrong, JSON)).code == 16
            path.write_text("accounts: [{accessKey: someone, secretKey: somewhat, topicPerms: [T=PUB]}]")
            deadline = time.monotonic() + 20
            while (await send(wire, wrong, JSON)).code == 16:
                assert time.monotonic() < deadline, "the changed file was not read"
                await asyncio.sleep(0.05)
            assert broker.topics.get("T") is not None

    asyncio.run(main())


async def send(wire: Wire, who: Credentials, serialize_type: int) -> Command:
    ext = {"a": "PG", "b": "T", "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "1", "h": "0", "i": "", "j": "0"}
    return await wire.call(310, who.signed({**ext, "k": "false"}, b"x"), b"x", serialize_type=serialize_type)


def test_the_log_is_open_to_slaves_only_when_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "accounts.yml"
    path.write_text("accounts: [{accessKey: someone, secretKey: anything}]")

    async def port(**settings: Any) -> int:
        async with running(tmp_path / "store", **settings) as (broker, _):
            return broker.replication.port

    async def main() -> None:
        signed: dict[str, Any] = {"acl_enable": True, "acl_file": str(path)}
        assert await port()
        assert not await port(**signed)
        assert await port(**signed, ha_listen_port=0)

    asyncio.run(main())


def test_a_broker_without_its_file_does_not_start(tmp_path: Path) -> None:
    broker = Broker(config(tmp_path, acl_enable=True))
    with pytest.raises(ConfigError, match=r"needs the file of accounts .*config/plain_acl\.yml"):
        asyncio.run(broker.start())
