"""When periodic functions are due: tables of cron and of clocks that change, and what holds for every schedule."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketq import RocketQ
from rocketq.errors import ConfigError
from rocketq.schedule import Schedule, cron, every

UTC = timezone.utc
BERLIN = "Europe/Berlin"


def ticks(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        after = schedule.next_tick(after)
        found.append(after)
    return found


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        (cron("*/5 * * * *", "UTC"), "2026-01-01 00:00:00", "2026-01-01 00:05"),
        (cron("*/5 * * * *", "UTC"), "2025-12-31 23:59:59.999999", "2026-01-01 00:00"),
        (cron("*/15 * * * * *", "UTC"), "2026-01-01 00:00:01", "2026-01-01 00:00:15"),
        (cron("0 9 * * MON-FRI", "UTC"), "2026-01-02 09:00", "2026-01-05 09:00"),
        (cron("0 0 29 2 *", "UTC"), "2025-01-01 00:00", "2028-02-29 00:00"),
        (cron("0  9 * * *", BERLIN), "2026-01-01 00:00", "2026-01-01 08:00"),
        (cron("0 9 * * *", BERLIN), "2026-07-01 00:00", "2026-07-01 07:00"),
        (cron("0 9 * * *", timezone(timedelta(hours=-3))), "2026-01-01 00:00", "2026-01-01 12:00"),
        (every(timedelta(seconds=1)), "2026-01-01 00:00:00.500", "2026-01-01 00:00:01"),
        (every(timedelta(days=1)), "2026-01-01 00:00", "2026-01-02 00:00"),
        (every(timedelta(minutes=5)), "2025-12-31 23:59", "2026-01-01 00:00"),
    ],
)
def test_the_next_tick(schedule: Schedule, after: str, expected: str) -> None:
    assert schedule.next_tick(utc(after)) == utc(expected)


# On 2026-03-29 Berlin goes from 02:00 (+1) to 03:00 (+2) at 01:00 UTC, on 2026-10-25 from 03:00 (+2) back at 01:00 UTC.
@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("30 2 * * *", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        ("*/30 * * * *", "2026-03-29 00:00", ["2026-03-29 00:30", "2026-03-29 01:00", "2026-03-29 01:30"]),
        ("30 2 * * *", "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        ("30 2 * * *", "2026-10-25 01:10", ["2026-10-26 01:30"]),
        ("*/30 * * * *", "2026-10-25 00:00", ["2026-10-25 00:30", "2026-10-25 01:00", "2026-10-25 01:30"]),
        ("15 * * * *", "2026-10-25 00:00", ["2026-10-25 00:15", "2026-10-25 01:15", "2026-10-25 02:15"]),
    ],
)
def test_clocks_that_change(expression: str, after: str, expected: list[str]) -> None:
    found = ticks(cron(expression, BERLIN), utc(after), len(expected))
    assert found == [utc(each) for each in expected]


@pytest.fixture
def local_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", BERLIN)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("local_berlin")
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 * * * *", "*/7 */2 * * *", "0 3 * * *"])
@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24", "2026-12-31"])
def test_local_time_is_that_of_the_host_with_all_its_changes(expression: str, day: str) -> None:
    assert os.environ["TZ"] == BERLIN
    local, berlin = cron(expression), cron(expression, BERLIN)
    found = ticks(local, utc(day), 150)
    assert found == ticks(berlin, utc(day), 150)
    assert "local" in local.text
    assert [each.astimezone(local.zone).isoformat() for each in found] == [
        each.astimezone(berlin.zone).isoformat() for each in found
    ]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [  # 2:00 is 1:30 again on 2026-04-05, and 2:30 at once on 2026-10-04
        ("*/20 2 * * *", "2026-04-04 13:59", ["2026-04-04 15:30", "2026-04-04 15:50", "2026-04-04 16:10"]),
        ("*/20 2 * * *", "2026-04-04 15:10", ["2026-04-04 15:30", "2026-04-04 15:50", "2026-04-04 16:10"]),
        ("5 */2 * * *", "2026-04-04 13:30", ["2026-04-04 15:35", "2026-04-04 17:35"]),
        ("*/30 1 * * *", "2026-04-04 13:59", ["2026-04-04 14:00", "2026-04-04 14:30", "2026-04-04 15:00"]),
        ("*/20 0 * * *", "2026-04-04 13:50", ["2026-04-05 13:30", "2026-04-05 13:50", "2026-04-05 14:10"]),
        ("*/20 2 5 4 *", "2025-06-01 00:00", ["2026-04-04 15:30", "2026-04-04 15:50", "2026-04-04 16:10"]),
        ("*/10 3 * * *", "2026-10-03 14:00", ["2026-10-03 16:00", "2026-10-03 16:10"]),
        ("40 * * * *", "2026-04-04 14:52", ["2026-04-04 15:10", "2026-04-04 16:10"]),
        ("40 * * * *", "2026-10-03 15:18", ["2026-10-03 15:40", "2026-10-03 16:40"]),
        ("*/20 2 * * *", "2026-10-03 14:00", ["2026-10-03 15:40", "2026-10-04 15:00"]),
    ],
)
def test_clocks_that_change_by_half_an_hour(expression: str, after: str, expected: list[str]) -> None:
    found = ticks(cron(expression, "Australia/Lord_Howe"), utc(after), len(expected))
    assert found == [utc(each) for each in expected]


SCHEDULES = st.one_of(
    st.integers(1, 40 * 86400).map(lambda seconds: every(timedelta(seconds=seconds))),
    st.builds(
        cron,
        st.sampled_from(
            ["* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 1-3 * * *", "*/20 2 * * *", "5 */2 * * *", "10 4 1 * *",
             "0 0 * * SUN", "*/30 * * * * *", "0 30 2 * * *"]
        ),
        st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    ),
)  # fmt: skip
# half of them within a day of a change of clocks somewhere
CHANGES = [utc(each) for each in ("2026-03-29 01:00", "2026-10-25 01:00", "2026-03-08 07:00", "2026-11-01 06:00",
                                  "2026-04-04 15:00", "2026-10-03 15:30")]  # fmt: skip
TIMES = st.one_of(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    st.builds(
        lambda change, seconds: change + timedelta(seconds=seconds),
        st.sampled_from(CHANGES),
        st.floats(-86400, 86400),
    ),
)


@given(SCHEDULES, TIMES, st.floats(0, 1, exclude_max=True))
def test_ticks_increase_and_do_not_depend_on_who_asks_when(
    schedule: Schedule, after: datetime, part: float
) -> None:
    first, second = ticks(schedule, after, 2)
    assert after < first < second
    between = after + (first - after) * part
    if between < first:
        assert schedule.next_tick(between) == first


@given(SCHEDULES, TIMES)
def test_steps_lead_to_every_tick_with_a_day_at_most_between_them(schedule: Schedule, after: datetime) -> None:
    tick, at = schedule.next_tick(after), after
    for _ in range(400):
        step = schedule.next_step(at)
        assert timedelta(0) < step.at - at <= timedelta(days=1)
        at = step.at
        assert step.is_tick == (at == tick)
        if step.is_tick:
            return
    raise AssertionError(f"no step came to {tick}")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "either cron="),
        ({"cron": "* * * * *", "every": timedelta(1)}, "either cron="),
        ({"every": timedelta(1), "tz": "UTC"}, "either cron="),
        ({"cron": ""}, "Wrong number of fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "0 0 30 2 *"}, "Bad day-of-month"),
        ({"cron": "* * * * *", "tz": "Europe/Nowhere"}, "no time zone"),
        ({"every": timedelta(milliseconds=999)}, "at least one second"),
        ({"every": 5}, "at least one second"),
        ({"every": timedelta.max}, "cannot be used"),
        ({"every": timedelta(1), "misfire": "maybe"}, "once, skip or all"),
    ],
)
def test_a_schedule_that_cannot_be_is_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RocketQ("telling").periodic(**options)(lambda: None)


def test_a_function_takes_nothing_or_the_tick() -> None:
    app = RocketQ("registering")

    @app.periodic(every=timedelta(hours=1))
    def nothing() -> None: ...

    @app.periodic(cron="0 0 * * *", tz=ZoneInfo(BERLIN), group="nightly")
    async def at(tick: datetime) -> None: ...

    @app.periodic(every=timedelta(hours=1))
    def wrong(one: int, two: int) -> None: ...

    hourly, nightly, refused = app.consumers
    assert (hourly.topic, hourly.group) == ("registering-nothing-ticks", "registering-nothing")
    assert (nightly.topic, nightly.group) == ("nightly-ticks", "nightly")
    assert nightly.schedule is not None
    assert nightly.schedule.text == "cron 0 0 * * * Europe/Berlin"
    assert hourly.arguments is not None
    assert nightly.arguments is not None
    with pytest.raises(ConfigError, match="wrong"):
        _ = refused.arguments
    with pytest.raises(ConfigError, match="already belongs to"):
        app.periodic(every=timedelta(hours=2))(nothing)
