"""Points in time as people write them."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketq.cli.times import parse_duration, parse_time

ZONE = timezone(timedelta(hours=2))
NOW = datetime(2031, 5, 10, 14, 30, 15, 250_000, tzinfo=ZONE)
NOW_MS = round(NOW.timestamp() * 1000)


def at(*parts: int, zone: timezone = ZONE) -> int:
    return round(datetime(*parts, tzinfo=zone).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW_MS),
        ("2h ago", NOW_MS - 7_200_000),
        ("2h", NOW_MS - 7_200_000),
        ("2 hours ago", NOW_MS - 7_200_000),
        ("  90m ", NOW_MS - 5_400_000),
        ("1h30m", NOW_MS - 5_400_000),
        ("1h 30 min ago", NOW_MS - 5_400_000),
        ("1.5h", NOW_MS - 5_400_000),
        ("250ms", NOW_MS - 250),
        ("1w", NOW_MS - 7 * 86_400_000),
        ("1D12H", NOW_MS - 36 * 3_600_000),
        ("today", at(2031, 5, 10)),
        ("Yesterday 08:00", at(2031, 5, 9, 8)),
        ("yesterday", at(2031, 5, 9)),
        ("14:30", at(2031, 5, 10, 14, 30)),
        ("8:05:09", at(2031, 5, 10, 8, 5, 9)),
        ("2031-05-01", at(2031, 5, 1)),
        ("2031-05-01 12:00", at(2031, 5, 1, 12)),
        ("2031-05-01T12:00:01.5", at(2031, 5, 1, 12, 0, 1) + 500),
        ("2031-05-01T12:00:01,123456789", at(2031, 5, 1, 12, 0, 1) + 123),
        ("2031-05-01T12:00Z", at(2031, 5, 1, 12, zone=timezone.utc)),
        ("2031-05-01T12:00-0330", at(2031, 5, 1, 15, 30, zone=timezone.utc)),
        ("2031-05-01 12:00:00 +02:00", at(2031, 5, 1, 12)),
        ("1935403200000", 1_935_403_200_000),
    ],
)
def test_a_time_is_understood(text, expected):
    assert parse_time(text, NOW_MS, ZONE) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "examples"),
        ("soon", "examples"),
        ("2 fortnights", "examples"),
        ("ago", "examples"),
        ("2h from now", "examples"),
        ("25:00", "examples"),
        ("2031-02-30", "examples"),
        ("2031-05-01T12:00+25:00", "examples"),
        ("90", "90m is minutes ago"),
        ("1935403200", "13 digits"),
        ("99999999999d", "before 1970"),
        ("1969-01-01", "examples"),
        ("٢h", "examples"),
    ],
)
def test_what_is_no_time_is_explained(text, says):
    with pytest.raises(ValueError, match=says):
        parse_time(text, NOW_MS, ZONE)


@given(st.text(alphabet="0123456789abdhmnowstyz:-+., T", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_time_or_an_error_for_people(text):
    try:
        found = parse_time(text, NOW_MS, ZONE)
    except ValueError as error:
        said = str(error)
    else:
        said = repr(text) if found >= 0 else ""
    assert repr(text) in said


ZONES = st.integers(-14 * 60 + 1, 14 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=ZONES),
    st.sampled_from(["milliseconds", "microseconds"]),
    st.sampled_from(["T", " "]),
)
def test_iso_texts_come_back_to_the_millisecond(moment, precision, separator):
    expected = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1)
    assert parse_time(moment.isoformat(separator, precision), NOW_MS) == expected


@given(st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1)))
def test_without_a_zone_it_is_this_machines_clock(moment):
    moment = moment.replace(microsecond=0, fold=0)
    assert parse_time(moment.isoformat(), NOW_MS) == round(moment.timestamp() * 1000)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["", " "]))
def test_durations_add_up(hours, seconds, gap):
    now = 10**13
    assert parse_time(f"{hours}h{gap}{seconds}s ago", now) == now - hours * 3_600_000 - seconds * 1000


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1500ms", 1500), ("90s", 90_000), ("5m", 300_000), ("1d12h", 129_600_000), ("1h 30m", 5_400_000)],
)
def test_lengths_of_time_are_read(text, ms):
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5 parsecs", "soon"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValueError, match="is no length of time"):
        parse_duration(text)
