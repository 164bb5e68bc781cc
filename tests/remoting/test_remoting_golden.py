"""The codecs against what Apache RocketMQ 5.4.0 put on the wire."""

import json
import struct

import pytest
from golden_frames import lines, recorded

from rocketq import javajson
from rocketq.errors import HeaderError
from rocketq.remoting import bodies, headers
from rocketq.remoting.bodies import Body
from rocketq.remoting.command import FrameDecoder, Header, encode

RECORDED = list(recorded())

REQUEST_HEADERS: dict[int, type[Header]] = {
    10: headers.SendMessageHeader,
    11: headers.PullMessageHeader,
    12: headers.QueryMessageHeader,
    14: headers.QueryConsumerOffsetHeader,
    15: headers.UpdateConsumerOffsetHeader,
    17: headers.CreateTopicHeader,
    21: headers.GetAllTopicConfigHeader,
    29: headers.SearchOffsetHeader,
    30: headers.GetMaxOffsetHeader,
    31: headers.GetMinOffsetHeader,
    32: headers.GetEarliestMsgStoretimeHeader,
    33: headers.ViewMessageHeader,
    35: headers.UnregisterClientHeader,
    36: headers.ConsumerSendMsgBackHeader,
    37: headers.EndTransactionHeader,
    38: headers.GetConsumerListByGroupHeader,
    39: headers.CheckTransactionStateHeader,
    40: headers.NotifyConsumerIdsChangedHeader,
    100: headers.PutKVConfigHeader,
    101: headers.GetKVConfigHeader,
    102: headers.DeleteKVConfigHeader,
    103: headers.RegisterBrokerHeader,
    104: headers.UnRegisterBrokerHeader,
    105: headers.GetRouteInfoHeader,
    201: headers.GetAllSubscriptionGroupHeader,
    202: headers.GetTopicStatsInfoHeader,
    203: headers.GetConsumerConnectionListHeader,
    204: headers.GetProducerConnectionListHeader,
    205: headers.WipeWritePermOfBrokerHeader,
    207: headers.DeleteSubscriptionGroupHeader,
    208: headers.GetConsumeStatsHeader,
    215: headers.DeleteTopicHeader,
    216: headers.DeleteTopicFromNamesrvHeader,
    219: headers.GetKVListByNamespaceHeader,
    220: headers.ResetOffsetHeader,
    221: headers.GetConsumerStatusHeader,
    222: headers.ResetOffsetHeader,
    223: headers.GetConsumerStatusHeader,
    224: headers.GetTopicsByClusterHeader,
    300: headers.QueryTopicConsumeByWhoHeader,
    303: headers.QueryConsumeTimeSpanHeader,
    307: headers.GetConsumerRunningInfoHeader,
    308: headers.QueryCorrectionOffsetHeader,
    309: headers.ConsumeMessageDirectlyHeader,
    310: headers.SendMessageHeaderV2,
    314: headers.CloneGroupOffsetHeader,
    315: headers.ViewBrokerStatsDataHeader,
    317: headers.GetBrokerConsumeStatsHeader,
    320: headers.SendMessageHeaderV2,
    321: headers.QueryConsumeQueueHeader,
    322: headers.QueryDataVersionHeader,
    323: headers.ResumeCheckHalfMessageHeader,
    325: headers.SendMessageHeaderV2,
    326: headers.ReplyMessageHeader,
    327: headers.AddWritePermOfBrokerHeader,
    343: headers.QueryTopicsByConsumerHeader,
    345: headers.QuerySubscriptionByConsumerHeader,
    351: headers.GetTopicConfigHeader,
    352: headers.GetSubscriptionGroupConfigHeader,
    353: headers.UpdateGroupForbiddenHeader,
    361: headers.PullMessageHeader,
    370: headers.RecallMessageHeader,
    901: headers.GetBrokerMemberGroupHeader,
    904: headers.BrokerHeartbeatHeader,
    905: headers.NotifyMinBrokerIdChangeHeader,
    200050: headers.PopMessageHeader,
    200051: headers.AckMessageHeader,
    200052: headers.PeekMessageHeader,
    200053: headers.ChangeInvisibleTimeHeader,
    200054: headers.NotificationHeader,
    200055: headers.PollingInfoHeader,
}

RESPONSE_HEADERS: dict[int, type[Header]] = {
    10: headers.SendMessageResponse,
    11: headers.PullMessageResponse,
    12: headers.QueryMessageResponse,
    14: headers.QueryConsumerOffsetResponse,
    21: headers.GetAllTopicConfigResponse,
    26: headers.GetBrokerConfigResponse,
    29: headers.SearchOffsetResponse,
    30: headers.GetMaxOffsetResponse,
    31: headers.GetMinOffsetResponse,
    32: headers.GetEarliestMsgStoretimeResponse,
    34: headers.HeartbeatResponse,
    101: headers.GetKVConfigResponse,
    103: headers.RegisterBrokerResponse,
    201: headers.GetAllSubscriptionGroupResponse,
    205: headers.WipeWritePermOfBrokerResponse,
    310: headers.SendMessageResponse,
    320: headers.SendMessageResponse,
    322: headers.QueryDataVersionResponse,
    325: headers.SendMessageResponse,
    327: headers.AddWritePermOfBrokerResponse,
    361: headers.PullMessageResponse,
    370: headers.RecallMessageResponse,
    200050: headers.PopMessageResponse,
    200053: headers.ChangeInvisibleTimeResponse,
    200054: headers.NotificationResponse,
    200055: headers.PollingInfoResponse,
}

REQUEST_BODIES: dict[int, type[Body]] = {
    34: bodies.HeartbeatData,
    41: bodies.LockBatchBody,
    42: bodies.LockBatchBody,
    103: bodies.RegisterBrokerBody,
    217: bodies.TopicRoute,
    220: bodies.OffsetTable,
    322: bodies.DataVersion,
}

RESPONSE_BODIES: dict[int, type[Body]] = {
    21: bodies.TopicConfigTable,
    28: bodies.KVTable,
    38: bodies.ConsumerList,
    41: bodies.LockBatchResponse,
    103: bodies.KVTable,
    105: bodies.TopicRoute,
    106: bodies.ClusterInfo,
    202: bodies.TopicStats,
    203: bodies.ConsumerConnection,
    204: bodies.ProducerConnection,
    206: bodies.TopicList,
    208: bodies.ConsumeStats,
    219: bodies.KVTable,
    222: bodies.OffsetTable,
    224: bodies.TopicList,
    300: bodies.GroupList,
    304: bodies.TopicList,
    305: bodies.TopicList,
    307: bodies.ConsumerRunningInfo,
    309: bodies.ConsumeMessageDirectlyResult,
    322: bodies.DataVersion,
    343: bodies.TopicList,
    351: bodies.TopicConfig,
    352: bodies.SubscriptionGroupConfig,
}

#: Written by hand for the recording, with members left out that Apache's own clients send, or in another form.
BY_HAND = {"register_compressed", "register_with_zone", "reset_offset_cpp_forwarded_to_client"}


def one(frame: bytes):
    decoder = FrameDecoder()
    (command,) = decoder.feed(frame)
    assert decoder.error is None
    assert decoder.buffered == 0
    return command


def without_empty_values(header: bytes) -> bytes:
    """A binary header without the entries whose value is empty, which count as absent."""
    (remark,) = struct.unpack_from(">i", header, 13)
    start = 17 + remark
    offset, kept = start + 4, b""
    while offset < len(header):
        (key,) = struct.unpack_from(">h", header, offset)
        (value,) = struct.unpack_from(">i", header, offset + 2 + key)
        stop = offset + 6 + key + value
        kept += header[offset:stop] if value else b""
        offset = stop
    return header[:start] + struct.pack(">i", len(kept)) + kept


def test_there_is_something_to_compare_with() -> None:
    assert len(RECORDED) > 1200
    assert sum(entry.kind for entry in RECORDED) > 30


def test_every_recorded_frame_is_decoded_and_rebuilt_byte_for_byte() -> None:
    for entry in RECORDED:
        header = entry.header if entry.kind == 0 else without_empty_values(entry.header)
        expected = entry._replace(header=header).frame
        assert encode(one(entry.frame)) == expected, f"{entry.file}: {entry.name} {entry.side}"


def test_rebuilding_also_works_when_the_fields_were_read_first() -> None:
    for entry in RECORDED:
        if entry.kind == 0:
            command = one(entry.frame)
            assert command.ext == json.loads(entry.header).get("extFields", {})
            assert encode(command) == entry.frame, f"{entry.file}: {entry.name} {entry.side}"


@pytest.mark.parametrize(("side", "kinds"), [("request", REQUEST_HEADERS), ("response", RESPONSE_HEADERS)])
def test_typed_headers_keep_the_recorded_fields(side: str, kinds: dict[int, type[Header]]) -> None:
    seen = set()
    for entry in RECORDED:
        kind = kinds.get(entry.code)
        if kind is None or entry.side != side or not entry.succeeded:
            continue
        command = one(entry.frame)
        if not command.ext:
            continue
        try:
            rebuilt = command.header(kind).to_ext()
        except HeaderError:
            # a request that lacks what its header needs, answered 0 all the same
            assert entry.name in {"end_transaction_missing"}, f"{entry.file}: {entry.name} {command.ext}"
            continue
        known = set(kind.__struct_encode_fields__)
        assert command.ext.keys() - known <= {"ReqT", "producerGroup"}, f"{entry.file}: {entry.name}"
        expected = {key: value for key, value in command.ext.items() if key in known}
        assert expected.items() <= rebuilt.items(), f"{entry.file}: {entry.name}"
        seen.add(entry.code)
    assert len(seen) > len(kinds) * 0.8, f"no recording uses {sorted(kinds.keys() - seen)}"


@pytest.mark.parametrize(("side", "kinds"), [("request", REQUEST_BODIES), ("response", RESPONSE_BODIES)])
def test_typed_bodies_are_read_and_rebuilt(side: str, kinds: dict[int, type[Body]]) -> None:
    same, seen = 0, set()
    for entry in RECORDED:
        kind = kinds.get(entry.code)
        if kind is None or entry.side != side or not entry.succeeded or not entry.body or entry.name in BY_HAND:
            continue
        body = kind.decode(entry.body)
        rebuilt = body.encode()
        if isinstance(body, bodies.TopicRoute) and b'{"0":' in entry.body:
            rebuilt = body.encode(standard_json=True)
        assert javajson.loads(rebuilt) == javajson.loads(entry.body), f"{entry.file}: {entry.name}"
        same += rebuilt == entry.body
        seen.add(entry.code)
    assert seen >= kinds.keys() - {217}
    assert same > 15


def test_a_compressed_registration_is_read_and_rebuilt() -> None:
    (entry,) = [entry for entry in RECORDED if entry.name == "register_compressed" and entry.side == "request"]
    body = bodies.RegisterBrokerBody.decode(entry.body, compressed=True)
    assert body.topic_config_table
    assert all(config.topic_name == name for name, config in body.topic_config_table.items())
    assert bodies.RegisterBrokerBody.decode(body.encode_compressed(), compressed=True) == body


def test_the_offsets_for_cpp_clients_are_read() -> None:
    (entry,) = [e for e in RECORDED if e.name == "reset_offset_cpp_forwarded_to_client" and e.code == 220][:1]
    table = bodies.OffsetTable.decode(entry.body).offset_table
    assert {queue.queue_id: offset for queue, offset in table.items()} == {0: 2, 1: 0, 2: 0, 3: 0}


def test_odd_frames_close_the_connection_exactly_when_apache_does() -> None:
    checked = 0
    for file, line in lines():
        if file != "remoting.jsonl" or "request_hex" not in line or "closed_by_server" not in line:
            continue
        if line["name"].startswith("proxy_protocol"):
            continue  # the preamble of HAProxy is not understood here
        decoder = FrameDecoder()
        decoder.feed(bytes.fromhex(line["request_hex"]))
        assert (decoder.error is not None) == line["closed_by_server"], line["name"]
        checked += 1
    assert checked > 20


def test_fields_as_numbers_and_booleans_are_read_as_apache_reads_them() -> None:
    (line,) = [line for _, line in lines() if line.get("name") == "ext_values_as_numbers_and_booleans"]
    command = one(bytes.fromhex(line["request_hex"]))
    header = command.header(headers.SendMessageHeaderV2)
    assert (header.queue_id, header.default_topic_queue_nums, header.batch) == (0, 4, False)
    assert command.ext["d"] == "4"
    assert command.ext["m"] == "false"


def test_the_form_of_files_is_fastjsons() -> None:
    # the form of RocketMQ's files; numeric keys come back as text, which the files' readers turn into numbers
    text = b'{\n\t"a":{\n\t\t0:5,\n\t\t"x":[0,1]\n\t},\n\t"empty":{\n\t\t\n\t},\n\t"names":[\n\t\t"p",\n\t\t"q"\n\t]\n}'
    value = {"a": {0: 5, "x": [0, 1]}, "empty": {}, "names": ["p", "q"]}
    assert javajson.dumps(value, pretty=True) == text
    assert javajson.loads(text) == {"a": {"0": 5, "x": [0, 1]}, "empty": {}, "names": ["p", "q"]}
