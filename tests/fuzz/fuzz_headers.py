"""Every typed header of every request and answer, from fields as a JSON and as a binary header carry them.

Input: one byte for the encoding, then the bytes of a frame's header.
"""

from functools import cache

from rocketq.errors import HeaderError, ProtocolError
from rocketq.remoting import headers
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import Header, decode_command, encode_request


@cache
def kinds() -> tuple[type[Header], ...]:
    found = {value for value in vars(headers).values() if isinstance(value, type) and issubclass(value, Header)}
    return tuple(sorted(found - {Header}, key=lambda kind: kind.__name__))


def run_one(data: bytes) -> None:
    try:
        command = decode_command(JSON if data[:1] < b"\x80" else BINARY, data[1:], b"")
    except ProtocolError:
        return
    for kind in kinds():
        try:
            header = command.header(kind)
        except HeaderError:
            continue
        sent = decode_command(JSON, encode_request(1, 1, header)[8:], b"")
        assert sent.header(kind) == header


def seeds() -> list[bytes]:
    from golden_frames import recorded

    return list(
        dict.fromkeys((b"\xff" if one.kind else b"\0") + one.header for one in recorded() if one.succeeded)
    )
