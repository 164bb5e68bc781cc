"""The bytes between master and slave: tables of cases, anything cut anywhere, and what Apache's 5.4.0 master sent."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketq.broker.hastream import HEAD, MAX_PIECE, REPORT, HaStreamError, Piece, Pieces, Reports
from rocketq.record import decode_record

GOLDEN = Path(__file__).parents[1] / "golden" / "ha_stream.jsonl"


def report(offset):
    return REPORT.pack(offset)


def piece(offset, data=b""):
    return HEAD.pack(offset, len(data)) + data


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([report(0)], [0]),
        ([report(5) + report(6) + report(7)], [7]),
        ([report(5) + report(6)[:3], report(6)[3:]], [5, 6]),
        ([report(5)[:7]], [None]),
        ([report(5)[:7], report(5)[7:] + report(9)[:1]], [None, 5]),
        ([b"", report(2**63 - 1)], [None, 2**63 - 1]),
    ],
)
def test_the_last_whole_report_of_a_read_counts(reads, expected):
    reports = Reports()
    assert [reports.feed(data) for data in reads] == expected


def test_a_negative_report_is_an_error():
    with pytest.raises(HaStreamError):
        Reports().feed(report(-1))


@pytest.mark.parametrize("head", [HEAD.pack(-1, 0), HEAD.pack(0, -1), HEAD.pack(0, MAX_PIECE + 1)])
def test_a_head_that_cannot_be_is_an_error(head):
    pieces = Pieces()
    found = pieces.feed(piece(3, b"good") + head)
    assert next(found) == Piece(3, b"good")
    with pytest.raises(HaStreamError):
        next(found)


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.binary(max_size=50))), st.lists(st.integers(0, 400)))
def test_pieces_come_out_as_they_went_in_wherever_reads_cut_them(sent, cuts):
    wire = b"".join(piece(*one) for one in sent)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = Pieces()
    found = [one for start, end in itertools.pairwise(edges) for one in pieces.feed(wire[start:end])]
    assert found == [Piece(*one) for one in sent]


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1), st.lists(st.integers(0, 400)))
def test_the_last_report_comes_out_wherever_reads_cut_them(sent, cuts):
    wire = b"".join(map(report, sent))
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    reports = Reports()
    found = [reports.feed(wire[start:end]) for start, end in itertools.pairwise(edges)]
    assert found[-1] == sent[-1]


@given(st.binary(max_size=200))
def test_rubbish_raises_nothing_else(data):
    for stream in (Reports(), Pieces()):
        try:
            result = stream.feed(data)
            if isinstance(stream, Pieces):
                list(result)
        except HaStreamError:
            pass


def test_what_apaches_master_sent_is_read_and_made_alike():
    """Every event of the recorded streams, in both directions."""
    first: bytes = b""
    for line in GOLDEN.read_text().splitlines():
        scenario = json.loads(line)
        reports, pieces = Reports(), Pieces()
        position = None
        for event in scenario["events"]:
            if event["dir"] == "slave->master":
                position = reports.feed(bytes.fromhex(event["hex"]))
                assert position is not None
                assert report(position).hex() == event["hex"]
            elif event["dir"] == "master->slave":
                data = bytes.fromhex(event["data_hex"])
                wire = bytes.fromhex(event["header_hex"]) + data
                assert piece(event["physicalOffset"], data) == wire
                assert list(pieces.feed(wire)) == [Piece(event["physicalOffset"], data)]
                if event["physicalOffset"] == 0 and len(data) > len(first):
                    first = data
    at = 0
    while at < len(first):
        at += decode_record(first, at, check_crc=True).size
    assert at == len(first) > 800
