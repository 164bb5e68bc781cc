"""Frames and headers: round trips, any split of the stream, and what garbage does."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.errors import HeaderError
from rocketq.remoting import headers
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import (
    Command,
    FrameDecoder,
    Header,
    encode,
    encode_request,
    encode_response,
    frame,
)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    kind = draw(st.sampled_from([JSON, BINARY]))
    # what the binary form cannot tell apart: an empty text and none, no fields and empty ones
    values = text if kind == JSON else text.filter(bool)
    ext = st.dictionaries(text.filter(bool), values, max_size=5)
    return Command(
        draw(int32 if kind == JSON else st.integers(-(2**15), 2**15 - 1)),
        opaque=draw(int32),
        flag=draw(st.integers(0, 3)),
        ext=draw(st.none() | (ext if kind == JSON else ext.filter(bool))),
        remark=draw(st.none() | values),
        body=draw(st.binary(max_size=50)),
        language=draw(st.sampled_from(["JAVA", "PYTHON", "GO", "CPP"])),
        version=draw(st.integers(0, 2**15 - 1)),
        serialize_type=kind,
    )


def fields(command: Command) -> tuple:
    return (
        command.code,
        command.opaque,
        command.flag,
        command.remark,
        command.body,
        command.language,
        command.version,
        command.serialize_type,
        command.has_ext,
        command.ext,
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(commands(), max_size=6), st.randoms())
def test_any_split_of_the_stream_gives_the_same_commands(sent: list[Command], rng: random.Random) -> None:
    stream = b"".join(map(encode, sent))
    decoder = FrameDecoder()
    received: list[Command] = []
    offset = 0
    while offset < len(stream):
        size = rng.choice((1, 2, 3, 7, 20, 200))
        received += decoder.feed(stream[offset : offset + size])
        offset += size
    assert decoder.error is None
    assert decoder.buffered == 0
    assert [fields(command) for command in received] == [fields(command) for command in sent]
    assert b"".join(map(encode, received)) == stream


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_only_ever_sets_the_error(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    for piece in pieces:
        for command in decoder.feed(piece):
            assert isinstance(command, Command)
    if decoder.error is not None:
        assert decoder.feed(encode_request(10, 1)) == [], "nothing is read after garbage"


@settings(max_examples=200, deadline=None)
@given(commands(), st.integers(0), st.integers(0, 255))
def test_one_wrong_byte_never_raises(command: Command, where: int, byte: int) -> None:
    data = bytearray(encode(command))
    data[where % len(data)] = byte
    decoder = FrameDecoder()
    for received in decoder.feed(bytes(data)):
        try:
            assert isinstance(received.ext, dict)
            received.header(headers.PullMessageHeader)
        except HeaderError:
            continue


def test_a_frame_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    header = b'{"code":1}'
    whole = frame(header, bytes(1000 - 4 - len(header)))
    assert len(FrameDecoder(max_frame=1000).feed(whole)) == 1
    over = frame(header, bytes(1001 - 4 - len(header)))
    decoder = FrameDecoder(max_frame=1000)
    assert decoder.feed(over[:8]) == []
    assert decoder.error is not None, "known from the length alone, before the body has come"


def test_commands_before_garbage_are_delivered() -> None:
    decoder = FrameDecoder()
    commands = decoder.feed(encode_request(10, 1) + encode_request(11, 2) + b"\xff" * 8)
    assert [command.code for command in commands] == [10, 11]
    assert decoder.error is not None


def test_an_empty_frame_is_ignored() -> None:
    decoder = FrameDecoder()
    empty = struct.pack(">iI", 4, 0)
    commands = decoder.feed(empty + encode_request(10, 1) + empty)
    assert [command.code for command in commands] == [10]
    assert decoder.error is None


def test_deep_nesting_is_garbage_not_a_crash() -> None:
    depth = 100_000
    decoder = FrameDecoder()
    decoder.feed(frame(b'{"code":1,"x":' + b"[" * depth + b"]" * depth + b"}", b""))
    assert decoder.error is not None


def test_pop_codes_are_always_sent_with_a_json_header() -> None:
    (command,) = FrameDecoder().feed(encode_request(200050, 1, {"a": "b"}, serialize_type=BINARY))
    assert (command.code, command.serialize_type) == (200050, JSON)


@pytest.mark.parametrize("kind", [JSON, BINARY])
def test_an_answer_has_the_header_encoding_of_its_request(kind: int) -> None:
    (request,) = FrameDecoder().feed(encode_request(10, 77, None, serialize_type=kind))
    (answer,) = FrameDecoder().feed(encode_response(request, 1, "no", {"a": "b"}, b"body"))
    assert (answer.opaque, answer.code, answer.remark, answer.ext) == (77, 1, "no", {"a": "b"})
    assert (answer.is_response, answer.serialize_type, answer.body) == (True, kind, b"body")


class Sample(Header, kw_only=True):
    name: str
    number: int = 5
    yes: bool | None = None


@pytest.mark.parametrize("kind", [JSON, BINARY])
def test_a_missing_or_wrong_field_is_named(kind: int) -> None:
    def header(ext: dict[str, str]) -> Sample:
        (command,) = FrameDecoder().feed(encode_request(1, 1, ext, serialize_type=kind))
        return command.header(Sample)

    assert header({"name": "n", "yes": "true", "other": "x"}) == Sample(name="n", yes=True)
    with pytest.raises(HeaderError, match=r"Sample.*name"):
        header({"number": "1"})
    with pytest.raises(HeaderError, match=r"Sample.*number"):
        header({"name": "n", "number": "zz"})


def test_absent_fields_are_left_out_and_booleans_are_words() -> None:
    assert Sample(name="n").to_ext() == {"name": "n", "number": "5"}
    assert Sample(name="n", number=-1, yes=False).to_ext() == {"name": "n", "number": "-1", "yes": "false"}


def raw_json(ext: bytes) -> Command:
    (command,) = FrameDecoder().feed(frame(b'{"code":1,"extFields":' + ext + b"}", b""))
    return command


@pytest.mark.parametrize("ext", [b"[]", b'"text"', b"5", b'{"name":"\xff"}'])
def test_fields_that_are_no_object_are_a_header_error(ext: bytes) -> None:
    command = raw_json(ext)
    with pytest.raises(HeaderError):
        _ = command.ext
    with pytest.raises(HeaderError):
        command.header(Sample)


def test_real_peers_sloppiness_is_read() -> None:
    command = raw_json(b'{"name":5,"number":"7","yes":"True","x":null}')
    assert command.header(Sample) == Sample(name="5", number=7, yes=True)
    assert command.ext == {"name": "5", "number": "7", "yes": "True"}
    assert raw_json(b'{"name":"n","number":null}').header(Sample) == Sample(name="n")
    assert raw_json(b"null").ext == {}
    assert not raw_json(b"null").has_ext
    assert raw_json(b"{}").has_ext


@pytest.mark.parametrize("kind", vars(headers).values())
def test_every_typed_header_survives_both_encodings(kind: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Header)):
        return
    values = {}
    for number, (name, hint) in enumerate(_types(kind).items()):
        values[name] = f"v{number}" if "str" in hint else number % 2 == 0 if "bool" in hint else number
    header = kind(**values)
    assert len(header.to_ext()) == len(values)
    for serialize_type in (JSON, BINARY):
        (command,) = FrameDecoder().feed(encode_request(1, 1, header, serialize_type=serialize_type))
        assert command.header(kind) == header


def _types(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found.update(getattr(base, "__annotations__", {}))
    return {name: hint for name, hint in found.items() if name in kind.__struct_fields__}
