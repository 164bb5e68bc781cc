from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import date
from typing import Any

import msgspec
import pytest
from app_messages import received

from rocketq import ReceivedMessage
from rocketq.errors import ConfigError, InvalidMessage
from rocketq.payload import PayloadError, decoder, encode, parameters


@dataclass
class Point:
    x: int
    y: int


class Order(msgspec.Struct):
    number: int
    day: date


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (b"\x00raw", b"\x00raw"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ("grüß", "grüß".encode()),
        ({"a": [1, None]}, b'{"a":[1,null]}'),
        ([], b"[]"),
        (7, b"7"),
        (None, b"null"),
        (Point(1, 2), b'{"x":1,"y":2}'),
        (Order(3, date(2013, 1, 31)), b'{"number":3,"day":"2013-01-31"}'),
    ],
)
def test_a_payload_becomes_this_body(payload: object, body: bytes) -> None:
    assert encode(payload) == body


@pytest.mark.parametrize("payload", [b"", "", bytearray(), object(), {1j: 2}])
def test_what_cannot_be_sent_is_refused(payload: object) -> None:
    with pytest.raises(InvalidMessage):
        encode(payload)


@pytest.mark.parametrize(
    ("annotation", "body", "value"),
    [
        (bytes, b"\xff", b"\xff"),
        (str, "grüß".encode(), "grüß"),
        (dict, b'{"a": 1}', {"a": 1}),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
        (list[Point], b'[{"x":1,"y":2}]', [Point(1, 2)]),
        (Order, b'{"number":3,"day":"2013-01-31"}', Order(3, date(2013, 1, 31))),
        (int | None, b"null", None),
        (Any, b"[1]", [1]),
    ],
)
def test_a_body_is_read_as_the_annotation(annotation: Any, body: bytes, value: object) -> None:
    assert decoder(annotation)(body) == value


@pytest.mark.parametrize(
    ("annotation", "body"),
    [
        (str, b"\xff"),
        (dict, b"no json"),
        (Point, b'{"x":1}'),
        (Point, b'{"x":"1","y":2}'),
        (dict[str, int], b"\xff"),
    ],
)
def test_a_body_that_does_not_fit_raises_payload_error(annotation: Any, body: bytes) -> None:
    with pytest.raises(PayloadError):
        decoder(annotation)(body)


def test_a_type_that_json_cannot_fill_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot be read as"):
        decoder(complex)


def bare(message):  # type: ignore[no-untyped-def]
    ...


def annotated_message(m: ReceivedMessage) -> None: ...


def payload_only(point: Point) -> None: ...


def both(message: ReceivedMessage, point: Point) -> None: ...


def both_turned(point: Point, message) -> None:  # type: ignore[no-untyped-def]
    ...


def with_default(point: Point, factor: int = 3) -> None: ...


async def asynchronous(point: Point) -> None: ...


class Callable_:
    def __call__(self, point: Point) -> None: ...

    def method(self, point: Point, message: ReceivedMessage) -> None: ...


BODY = b'{"x":1,"y":2}'
MESSAGE = received(BODY)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bare, (MESSAGE,)),
        (annotated_message, (MESSAGE,)),
        (payload_only, (Point(1, 2),)),
        (both, (MESSAGE, Point(1, 2))),
        (both_turned, (Point(1, 2), MESSAGE)),
        (with_default, (Point(1, 2),)),
        (asynchronous, (Point(1, 2),)),
        (Callable_(), (Point(1, 2),)),
        (Callable_().method, (Point(1, 2), MESSAGE)),
        (functools.partial(with_default, factor=4), (Point(1, 2),)),
    ],
)
def test_a_function_gets_what_its_parameters_ask_for(function: Any, arguments: tuple[object, ...]) -> None:
    assert parameters(function)(MESSAGE) == arguments


def nothing() -> None: ...


def two_messages(a, b) -> None:  # type: ignore[no-untyped-def]
    ...


def two_payloads(a: Point, b: Point) -> None: ...


def three(a: Point, b: ReceivedMessage, c: str) -> None: ...


def keyword_only(*, point: Point) -> None: ...


def unknown_name(point: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [nothing, two_messages, two_payloads, three, keyword_only, unknown_name])
def test_a_signature_that_cannot_be_filled_is_a_config_error(function: Any) -> None:
    with pytest.raises(ConfigError, match=function.__name__):
        parameters(function)
