"""JSON in fastjson's manner."""

import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq import javajson
from rocketq.message import MessageQueue
from rocketq.remoting import bodies

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | text
queues = st.builds(MessageQueue, text, text, st.integers(0, 100))
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
lenient = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.integers() | queues, inner, max_size=3),
    max_leaves=10,
)


def with_text_keys(value):
    if isinstance(value, dict):
        return {str(k) if isinstance(k, int) else k: with_text_keys(item) for k, item in value.items()}
    return [with_text_keys(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None)
@given(plain)
def test_plain_values_are_plain_json_both_ways(value: object) -> None:
    written = javajson.dumps(value)
    assert json.loads(written) == value
    assert javajson.loads(written) == value
    assert javajson.loads(json.dumps(value)) == value
    assert javajson.loads(javajson.dumps(value, pretty=True)) == value


@settings(max_examples=150, deadline=None)
@given(lenient, st.booleans(), st.booleans())
def test_numbers_and_queues_as_keys_survive(value: object, pretty: bool, quoted: bool) -> None:
    written = javajson.dumps(value, pretty=pretty, numeric_keys_quoted=quoted)
    assert javajson.loads(written) == with_text_keys(value)
    assert javajson.loads(written.decode()) == with_text_keys(value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}[]":,.0123456789-+eEtrufalsn \\au', max_size=30) | st.binary(max_size=30))
def test_garbage_is_a_value_error_and_what_json_reads_we_read(data: str | bytes) -> None:
    try:
        text = data if isinstance(data, str) else data.decode()  # json itself would look for UTF-16 in bytes
        expected = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except ValueError:
        with contextlib.suppress(ValueError):
            javajson.loads(data)
    else:
        assert javajson.loads(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{a}",
        b"{1:2} x",
        b"[1 2]",
        b'{0:"a" 1:"b"}',
        b'{0:"unfinished',
        b"{'a':1}",
        b"{0:01}",
        b"{0:NaN}",
        b"\xff\xfe",
        b"{0:\xff}",
        b'{0:"\xff"}',
        b"[" * 100_000,
        b"{0:" * 100_000,
        b"{" * 100_000,
    ],
)
def test_what_is_not_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        javajson.loads(data)


def test_keys_without_quotes_and_objects_as_keys() -> None:
    assert javajson.loads('{0:"a:10911", -1 : "b", name_1:2}') == {"0": "a:10911", "-1": "b", "name_1": 2}
    key = MessageQueue("T", "b", 3)
    assert javajson.loads('{"offsetTable":{{"topic":"T","brokerName":"b","queueId":3}:7}}') == {
        "offsetTable": {key: 7}
    }
    assert javajson.loads('{{"b":1,"a":[2]}:3}') == {(("a", (2,)), ("b", 1)): 3}


def test_queues_are_written_as_objects_also_as_keys() -> None:
    queue = MessageQueue("T", "b", 3)
    written = b'{"brokerName":"b","queueId":3,"topic":"T"}'
    assert javajson.dumps([queue]) == b"[" + written + b"]"
    assert javajson.dumps({queue: 1}) == b"{" + written + b":1}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (0.03333333333333333, "0.03333333333333333"),
        (1e20, "1.0E20"),
        (1.5e7, "1.5E7"),
        (9999999.0, "9999999.0"),
        (0.001, "0.001"),
        (0.0009, "9.0E-4"),
        (-1.25e-10, "-1.25E-10"),
        (math.nan, "null"),
        (math.inf, "null"),
    ],
)
def test_doubles_are_written_as_java_does(value: float, expected: str) -> None:
    assert javajson.dumps(value) == expected.encode()


@pytest.mark.parametrize("value", [object(), b"bytes", {(1, 2): 3}, {None: 1}])
def test_what_has_no_json_form_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        javajson.dumps(value)


def test_enums_are_read_by_name_ordinal_or_ordinal_as_text() -> None:
    for kind, where, model in (
        ("CONSUME_POP", "CONSUME_FROM_TIMESTAMP", "BROADCASTING"),
        (2, 5, 0),
        ("2", "5", "0"),
    ):
        body = {
            "clientID": "c",
            "consumerDataSet": [
                {"groupName": "g", "consumeType": kind, "consumeFromWhere": where, "messageModel": model}
            ],
            "unknown": {"a": [1]},
            "producerDataSet": None,
        }
        (consumer,) = bodies.HeartbeatData.from_json(body).consumer_data_set
        assert consumer.consume_type == "CONSUME_POP"
        assert consumer.consume_from_where == "CONSUME_FROM_TIMESTAMP"
        assert consumer.message_model == "BROADCASTING"


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"[]", b"{}", b'{"clientID":["x"]}', b'{"clientID":"c","consumerDataSet":5}']
)
def test_a_body_that_is_not_one_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        bodies.HeartbeatData.decode(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_a_compressed_registration_of_garbage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        bodies.RegisterBrokerBody.decode(data, compressed=True)


def test_a_compressed_registration_cannot_fill_the_memory() -> None:
    body = bodies.RegisterBrokerBody(filter_server_list=["x" * 1_000_000])
    data = body.encode_compressed()
    assert len(data) < 10_000
    with pytest.raises(ValueError, match="more than"):
        bodies.RegisterBrokerBody.decode(data, compressed=True, max_size=100_000)
    assert bodies.RegisterBrokerBody.decode(data, compressed=True) == body


def test_both_styles_of_a_route() -> None:
    route = bodies.TopicRoute(
        [bodies.BrokerData("C", "b", {1: "h:2", 0: "h:1"})],
        [bodies.QueueData("b", 4, 4, 6)],
        order_topic_conf="b:4",
    )
    assert b'"brokerAddrs":{1:"h:2",0:"h:1"}' in route.encode()
    assert b'"brokerAddrs":{"0":"h:1","1":"h:2"}' in route.encode(standard_json=True)
    for style in (False, True):
        assert bodies.TopicRoute.decode(route.encode(style)) == route
        assert b" " not in route.encode(style)
