"""Binary headers are read by the layout of earlier ones; what is read must not depend on that."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.remoting.codes import BINARY
from rocketq.remoting.command import FrameDecoder, encode_request

names = st.text(min_size=1, max_size=3)
values = st.text(max_size=4)


def read(frame: bytes) -> dict[str, str]:
    (command,) = FrameDecoder().feed(frame)
    return command.ext


@settings(max_examples=200)
@given(st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=6))
def test_headers_of_one_code_are_read_as_they_were_written(headers: list[dict[str, str]]) -> None:
    for ext in headers + headers:
        frame = encode_request(310, 1, ext, serialize_type=BINARY)
        assert read(frame) == {key: value for key, value in ext.items() if value}


def test_entries_of_equal_length_in_other_places_are_read_right() -> None:
    for ext in ({"a": "12", "bc": "3"}, {"a": "1", "bc": "23"}, {"ab": "12", "c": "3"}, {"a": "45", "bc": "6"}):
        assert read(encode_request(11, 1, ext, serialize_type=BINARY)) == ext


def test_a_value_that_is_not_text_is_an_error_whether_its_place_is_known_or_not() -> None:
    good = encode_request(34, 1, {"key": "value"}, serialize_type=BINARY)
    assert read(good) == {"key": "value"}
    decoder = FrameDecoder()
    assert decoder.feed(good.replace(b"value", b"\xff\xfe\xfd\xfc\xfb")) == []
    assert decoder.error is not None


def test_a_name_that_comes_twice_has_its_last_value() -> None:
    def entry(key: bytes, value: bytes) -> bytes:
        return struct.pack(">h", len(key)) + key + struct.pack(">i", len(value)) + value

    ext = entry(b"k", b"1") + entry(b"k", b"2")
    header = struct.pack(">hBhiii", 35, 0, 493, 1, 0, 0) + struct.pack(">i", len(ext)) + ext
    frame = struct.pack(">iI", 4 + len(header), BINARY << 24 | len(header)) + header
    assert read(frame) == {"k": "2"}
    assert read(frame) == {"k": "2"}
