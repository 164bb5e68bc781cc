"""Trace records as text: back and forth, as Java's clients write them, and whatever else may stand there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq import trace as traces
from rocketq.trace import Trace, decode, encode

texts = st.text(st.characters(exclude_characters="\x01\x02", exclude_categories=["Cs"])).filter(
    lambda s: s != "null"
)
numbers = st.integers(-(2**40), 2**40)
_VALUES = {"int": numbers, "bool": st.booleans(), "str": texts}


@st.composite
def records(draw: st.DrawFn) -> Trace:
    kind = draw(
        st.sampled_from([traces.PUB, traces.SUB_BEFORE, traces.SUB_AFTER, traces.END_TRANSACTION, traces.RECALL])
    )
    types = {name: field.type for name, field in Trace.__dataclass_fields__.items()}
    return Trace(kind, **{name: draw(_VALUES[str(types[name])]) for name in traces.fields(kind)})


@settings(deadline=None)
@given(st.lists(records()))
def test_records_come_back_as_they_were(many: list[Trace]) -> None:
    assert decode("".join([encode(trace) for trace in many])) == many


@settings(deadline=None)
@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["Pub", "SubAfter", "Recall", "\x01", "\x02", "1", "x"])).map("".join)
    )
)
def test_whatever_stands_there_is_read_or_left_out(text: str) -> None:
    assert all(trace.kind in text for trace in decode(text))


@settings(deadline=None)
@given(records(), st.text("\x01\x02ab1", max_size=9))
def test_what_is_damaged_costs_no_other_record(trace: Trace, damage: str) -> None:
    assert decode(damage + "\x02" + encode(trace))[-1] == trace


PUB = Trace(
    traces.PUB,
    "ID",
    1_700_000_000_000,
    "DefaultRegion",
    "PG",
    "Orders",
    "paid",
    "k1 k2",
    "127.0.0.1:10911",
    5,
    12,
    traces.DELAY,
    "OFFSETID",
    False,
)
JAVA = [
    ("Pub|1700000000000|DefaultRegion|PG|Orders|ID|paid|k1 k2|127.0.0.1:10911|5|12|3|OFFSETID|false", PUB),
    (
        "Pub|1700000000000|DefaultRegion|PG|Orders|ID|null|null|127.0.0.1:10911|5|12|3|OFFSETID|false",
        replace(PUB, tags="", keys=""),
    ),
    (
        "Pub|1700000000000|DefaultRegion|PG|Orders|ID|paid|k1 k2|127.0.0.1:10911|5|12|3|false",
        replace(PUB, offset_message_id=""),
    ),
    (
        "Pub|1700000000000|DefaultRegion|PG|Orders|ID|paid|k1 k2|127.0.0.1:10911|5|12|3|OFFSETID|false|10.0.0.7",
        replace(PUB, client_host="10.0.0.7"),
    ),
    (
        "SubBefore|1700000000000|DefaultRegion|G|REQ|ID|2|null",
        Trace(traces.SUB_BEFORE, "ID", 1_700_000_000_000, "DefaultRegion", "G", request_id="REQ", retries=2),
    ),
    (
        "SubAfter|REQ|ID|7|false|k1|2|1700000000007|G",
        Trace(
            traces.SUB_AFTER,
            "ID",
            1_700_000_000_007,
            group="G",
            request_id="REQ",
            cost=7,
            success=False,
            keys="k1",
            outcome=traces.EXCEPTION,
        ),
    ),
    # for the cloud, and by old clients
    ("SubAfter|REQ|ID|7|true|k1|0|", Trace(traces.SUB_AFTER, "ID", request_id="REQ", cost=7, keys="k1")),
    ("SubAfter|REQ|ID|7|true|k1|0", Trace(traces.SUB_AFTER, "ID", request_id="REQ", cost=7, keys="k1")),
    ("SubAfter|REQ|ID|7|true|k1", Trace(traces.SUB_AFTER, "ID", request_id="REQ", cost=7, keys="k1")),
    (
        "EndTransaction|1700000000000|DefaultRegion|PG|Orders|ID|paid|k1|b:1|2|TX|COMMIT_MESSAGE|true",
        Trace(
            traces.END_TRANSACTION,
            "ID",
            1_700_000_000_000,
            "DefaultRegion",
            "PG",
            "Orders",
            "paid",
            "k1",
            "b:1",
            message_type=traces.COMMIT,
            transaction_id="TX",
            state="COMMIT_MESSAGE",
            from_check=True,
        ),
    ),
    (
        "Recall|1700000000000|DefaultRegion|PG|Orders|ID|true",
        Trace(traces.RECALL, "ID", 1_700_000_000_000, "DefaultRegion", "PG", "Orders"),
    ),
]


@pytest.mark.parametrize(("text", "trace"), JAVA, ids=[text.split("|1")[0] for text, _ in JAVA])
def test_what_javas_clients_write(text: str, trace: Trace) -> None:
    assert decode(text.replace("|", "\x01") + "\x02") == [trace]


def test_what_is_written_for_javas_readers() -> None:
    """Java's reader needs something behind the last separator."""
    assert encode(PUB) == JAVA[0][0].replace("|", "\x01") + "\x02"
    assert encode(replace(PUB, tags="", keys="")) == JAVA[1][0].replace("|", "\x01") + "\x02"


@pytest.mark.parametrize(
    "text", ["", "Pub", "Pub|x|r", "Nothing|1|2", "Recall|now|r|g|t|id|true", "Recall|1|r|g|t|id"]
)
def test_what_is_no_record_is_left_out(text: str) -> None:
    assert decode(text.replace("|", "\x01") + "\x02") == []
