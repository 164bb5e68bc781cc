"""The stream between master and slave: the same pieces however the bytes arrive, or HaStreamError; nothing else.

Input: one byte says where the stream is cut in two, the rest is the stream.
"""

from rocketq.broker.hastream import HEAD, MAX_PIECE, REPORT, HaStreamError, Piece, Pieces, Reports


def _pieces(*parts: bytes) -> tuple[list[Piece], bool]:
    """What comes out, and whether it ended with an error."""
    pieces, found = Pieces(), []
    try:
        for part in parts:
            found += pieces.feed(part)
    except HaStreamError:
        return found, True
    return found, False


def _report(*parts: bytes) -> int | None:
    reports, last = Reports(), None
    for part in parts:
        report = reports.feed(part)
        last = last if report is None else report
    return last


def run_one(data: bytes) -> None:
    cut, stream = data[0] * len(data) // 256 if data else 0, data[1:]
    whole, failed = _pieces(stream)
    pieces, failed_too = _pieces(stream[:cut], stream[cut:])
    assert failed == failed_too
    if not failed:  # pieces of a read that ends with an error are not handed out
        assert whole == pieces
    assert all(piece.offset >= 0 and len(piece.data) <= MAX_PIECE for piece in whole)
    try:
        assert _report(stream) == _report(stream[:cut], stream[cut:])
    except HaStreamError:
        return


def seeds() -> list[bytes]:
    pieces = b"".join(HEAD.pack(at, 20) + bytes(range(20)) for at in (0, 20, 40))
    return [b"\x80" + pieces, b"\x20" + HEAD.pack(60, 0) + pieces, b"\x40" + REPORT.pack(0) + REPORT.pack(1 << 40)]
