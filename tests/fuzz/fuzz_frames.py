"""The frame decoder: garbage sets `decoder.error`, and never raises anything. Input: what comes over a connection."""

from rocketq.errors import HeaderError
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import Command, FrameDecoder, encode, encode_request
from rocketq.remoting.headers import PullMessageHeader, SendMessageHeaderV2


def run_one(data: bytes) -> list[Command]:
    """Feed `data` whole and in two pieces, and use what comes out; any exception is a finding."""
    whole = FrameDecoder()
    commands = whole.feed(data)
    cut = data[0] * len(data) // 256 if data else 0
    pieces = FrameDecoder()
    again = pieces.feed(data[:cut]) + pieces.feed(data[cut:])
    assert len(commands) == len(again), "the commands depend on how the bytes arrive"
    assert (whole.error is None) == (pieces.error is None), "the error depends on how the bytes arrive"
    assert whole.buffered <= len(data)
    for command in commands:
        for kind in (SendMessageHeaderV2, PullMessageHeader):
            try:
                command.header(kind)
            except HeaderError:
                continue
        try:
            readable = command.ext is not None
        except HeaderError:
            readable = False
        if readable and -(2**31) <= command.opaque < 2**31 and -(2**31) <= command.flag < 2**31:
            again = FrameDecoder().feed(encode(command))
            assert [repr(one) for one in again] == [repr(command)]
    return commands


def seeds() -> list[bytes]:
    ext = {"a": "group", "b": "topic", "e": "0", "i": "KEYS\x01k\x02"}
    return [
        encode_request(310, 1, ext, b"body"),
        encode_request(310, 1, ext, b"body", serialize_type=BINARY),
        encode_request(34, 2, None, b'{"clientID":"c"}', serialize_type=JSON, oneway=True),
        encode_request(11, 3, {"topic": "ü", "queueId": "x"}, serialize_type=BINARY),
        bytes.fromhex("0000000400000000"),
    ]
