"""JSON as fastjson writes and reads it, which is what RocketMQ's bodies and files are made of.

It differs from plain JSON in what may stand before the colon: numbers without quotes (``{0:"a:10911"}``) and whole
objects (``{{"brokerName":"b","queueId":0,"topic":"T"}:5}``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from decimal import Decimal
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.encoder import encode_basestring
from typing import Any

import msgspec

from rocketq.message import MessageQueue

__all__ = ["dumps", "loads"]

_decode = msgspec.json.Decoder().decode
_quote = encode_basestring
_SPACE = re.compile(r"[ \t\r\n]*").match
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][+-]?[0-9]+)?").match
_BARE_KEY = re.compile(r"-?[0-9]+|[A-Za-z_$][A-Za-z0-9_$]*").match
_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile("true|false|null").match
_MAX_DEPTH = 200


def loads(data: bytes | str) -> Any:
    """The value of a JSON text.

    Numeric keys come back as text (``"0"``) whether they were quoted or not. An object as key becomes a
    :class:`~rocketq.message.MessageQueue` when it has exactly the fields of one, else a tuple of its sorted items.
    Raises ValueError for anything else that is not JSON.
    """
    try:
        return _decode(data)
    except msgspec.DecodeError:
        pass  # not plain JSON; the reader below knows the rest
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    text = data if isinstance(data, str) else bytes(data).decode()
    reader = _Reader(text)
    value = reader.value(reader.skip(0), 0)
    if reader.skip(reader.end) != len(text):
        raise reader.wrong(reader.end, "the end")
    return value


class _Reader:
    """Recursive descent over `text`; `end` is where the last value ended."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0

    def skip(self, at: int) -> int:
        return _SPACE(self.text, at).end()  # type: ignore[union-attr]

    def wrong(self, at: int, expected: str) -> ValueError:
        return ValueError(f"not JSON: expected {expected} at character {at}, found {self.text[at : at + 20]!r}")

    def value(self, at: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("JSON is nested too deeply")
        first = self.text[at : at + 1]
        if first == "{":
            return self.object(at, depth)
        if first == "[":
            return self.array(at, depth)
        if first == '"':
            return self.string(at)
        word = _WORD(self.text, at)
        if word is not None:
            self.end = word.end()
            return _WORDS[word.group()]
        number = _NUMBER(self.text, at)
        if number is None:
            raise self.wrong(at, "a value")
        self.end = number.end()
        whole, fraction, exponent = number.groups()
        return int(whole) if fraction is None and exponent is None else float(number.group())

    def string(self, at: int) -> str:
        value: str
        value, self.end = scanstring(self.text, at + 1, True)  # its JSONDecodeError is a ValueError
        return value

    def array(self, at: int, depth: int) -> list[Any]:
        items: list[Any] = []
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "]":
            self.end = at + 1
            return items
        while True:
            items.append(self.value(at, depth + 1))
            at = self.skip(self.end)
            mark = self.text[at : at + 1]
            if mark == "]":
                self.end = at + 1
                return items
            if mark != ",":
                raise self.wrong(at, "',' or ']'")
            at = self.skip(at + 1)

    def object(self, at: int, depth: int) -> dict[Any, Any]:
        members: dict[Any, Any] = {}
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "}":
            self.end = at + 1
            return members
        while True:
            key = self.key(at, depth)
            at = self.skip(self.end)
            if self.text[at : at + 1] != ":":
                raise self.wrong(at, "':'")
            members[key] = self.value(self.skip(at + 1), depth + 1)
            at = self.skip(self.end)
            mark = self.text[at : at + 1]
            if mark == "}":
                self.end = at + 1
                return members
            if mark != ",":
                raise self.wrong(at, "',' or '}'")
            at = self.skip(at + 1)

    def key(self, at: int, depth: int) -> Hashable:
        first = self.text[at : at + 1]
        if first == '"':
            return self.string(at)
        if first == "{":
            return _frozen(self.value(at, depth + 1))
        bare = _BARE_KEY(self.text, at)
        if bare is None:
            raise self.wrong(at, "a key")
        self.end = bare.end()
        return bare.group()


def _frozen(value: Any) -> Hashable:
    """A read object in a form that can be a key."""
    if isinstance(value, dict):
        if value.keys() == {"brokerName", "queueId", "topic"} and isinstance(value["queueId"], int):
            return MessageQueue(value["topic"], value["brokerName"], value["queueId"])
        return tuple(sorted(((str(key), _frozen(item)) for key, item in value.items()), key=lambda pair: pair[0]))
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value  # type: ignore[no-any-return]


def dumps(obj: Any, *, numeric_keys_quoted: bool = False, pretty: bool = False) -> bytes:
    """`obj` as compact JSON, with the members of objects in the order given.

    Integer keys are written without quotes unless `numeric_keys_quoted`; a MessageQueue is an object, also as a
    key. NaN and the infinities become ``null``. `pretty` is the form of RocketMQ's files: one member a line,
    indented by tabs, no line end after the last. Raises TypeError for what JSON has no form for.
    """
    out: list[str] = []
    _write(obj, out, numeric_keys_quoted, 0 if pretty else None)
    return "".join(out).encode()


def _write(obj: Any, out: list[str], quoted: bool, indent: int | None) -> None:
    if isinstance(obj, str):
        out.append(_quote(obj))
    elif obj is None:
        out.append("null")
    elif obj is True:
        out.append("true")
    elif obj is False:
        out.append("false")
    elif isinstance(obj, int):
        out.append(str(int(obj)))
    elif isinstance(obj, float):
        out.append(_double(obj))
    elif isinstance(obj, dict):
        _write_object(obj, out, quoted, indent)
    elif isinstance(obj, MessageQueue):
        _write_object(_queue_members(obj), out, quoted, indent)
    elif isinstance(obj, (list, tuple, set, frozenset)):
        _write_array(list(obj), out, quoted, indent)
    else:
        raise TypeError(f"{type(obj).__name__} has no JSON form")


def _queue_members(queue: MessageQueue) -> dict[str, Any]:
    return {"brokerName": queue.broker_name, "queueId": queue.queue_id, "topic": queue.topic}


def _write_object(obj: dict[Any, Any], out: list[str], quoted: bool, indent: int | None) -> None:
    inner = None if indent is None else indent + 1
    line = "" if inner is None else "\n" + "\t" * inner
    out.append("{" + line)
    between = ""
    for key, value in obj.items():
        out.append(between)
        between = "," + line
        if isinstance(key, str):
            out.append(_quote(key))
        elif isinstance(key, int):
            out.append(f'"{int(key)}"' if quoted else str(int(key)))
        elif isinstance(key, MessageQueue):
            _write_object(_queue_members(key), out, quoted, None)
        else:
            raise TypeError(f"{type(key).__name__} cannot be a key in JSON")
        out.append(":")
        _write(value, out, quoted, inner)
    if indent is not None:
        out.append("\n" + "\t" * indent)
    out.append("}")


def _write_array(items: list[Any], out: list[str], quoted: bool, indent: int | None) -> None:
    # fastjson keeps lists of numbers on one line, everything else stands one a line
    lines = indent is not None and bool(items) and not isinstance(items[0], (int, float))
    inner = indent + 1 if indent is not None and lines else indent
    line = "\n" + "\t" * inner if inner is not None and lines else ""
    out.append("[" + line)
    for number, item in enumerate(items):
        if number:
            out.append("," + line)
        _write(item, out, quoted, inner)
    if lines and indent is not None:
        out.append("\n" + "\t" * indent)
    out.append("]")


def _double(value: float) -> str:
    """As `Double.toString` writes it: plain from 0.001 to 10,000,000, else with an exponent."""
    if not math.isfinite(value):
        return "null"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    return f"{'-' if sign else ''}{text[0]}.{text[1:] or '0'}E{int(exponent) + len(text) - 1}"
