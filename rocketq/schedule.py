"""When a periodic function is due: cron expressions and fixed intervals, as sets of points in time.

The next tick depends on the time it is asked for and on nothing else. So all workers agree on the ticks without
talking to each other, and two chains of timer messages for one schedule meet at the next tick.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from rocketq.errors import ConfigError

__all__ = ["Schedule", "Step", "cron", "every"]

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
#: Brokers keep timer messages to the second (Apache's), so nothing can be due more often.
SHORTEST = timedelta(seconds=1)


class Step(NamedTuple):
    """The next message of a chain: when it is due, and whether that is a tick or a halt on the way to one."""

    at: datetime
    is_tick: bool


class Schedule:
    """A set of ticks. `text` names it: two schedules with the same text have the same ticks.

    Made by `cron` and `every`. All times it gives are in UTC: in a zone with two equal hours Python compares what it
    sees on the clock. `zone` is for showing them to people.
    """

    def __init__(self, text: str, zone: tzinfo, following: Callable[[datetime], datetime]) -> None:
        self.text = text
        self.zone = zone
        self._following = following

    def __repr__(self) -> str:
        return f"<Schedule {self.text}>"

    def next_tick(self, after: datetime) -> datetime:
        """The first tick later than `after`."""
        return self._following(after)

    def next_step(self, after: datetime) -> Step:
        """The first tick later than `after`, or a halt at midnight UTC before it.

        Apache's brokers refuse timer messages of more than three days, and forget delivered messages after three: with
        a halt a day the next message is always accepted, and the last one always there to be seen.
        """
        tick = self.next_tick(after)
        halt = _multiple_after(after, DAY)
        return Step(tick, True) if tick <= halt else Step(halt, False)


def every(interval: timedelta) -> Schedule:
    """A tick each `interval`, counted from 1970-01-01 00:00 UTC, whatever clocks on walls do. Raises ConfigError."""
    if not isinstance(interval, timedelta) or interval < SHORTEST:
        raise ConfigError(f"every={interval!r} has to be a timedelta of at least one second")

    def following(after: datetime) -> datetime:
        return _multiple_after(after, interval)

    return _checked(Schedule(f"every {interval.total_seconds():.15g} s", timezone.utc, following))


def cron(expression: str, tz: tzinfo | str | None = None) -> Schedule:
    """Ticks by a cron expression: minute, hour, day of month, month, day of week; with six fields seconds come first.

    `tz`: whose clock, a zone or its name (`Europe/Berlin`); default: the local time of this host.

    When clocks change, ticks at certain hours and those that any hour has differ, as in Debian's cron: `30 2 * * *`
    (neither minute nor hour begins with `*`, five fields) comes once a day, at the end of the gap when there is no
    2:30, and at the first of two; `*/30 * * * *` comes every 30 minutes of real time. Raises ConfigError.
    """
    zone = _zone(tz)
    fields = " ".join(expression.split())

    def first(begin: datetime, after: datetime) -> datetime:
        # behind the first of two equal hours the expression's own next time may lie before `after`
        for tick in CronSim(fields, begin.astimezone(zone)):
            if (at := tick.astimezone(timezone.utc)) > after:
                return at
        raise ConfigError(f"cron={expression!r}: there is no such time")

    def following(after: datetime) -> datetime:
        tick = first(after, after)
        change = _odd_change(zone, max(after - HOUR, tick - DAY - HOUR), tick)
        if change is None:
            return tick
        # CronSim goes on by whole hours of real time and passes over ticks: begin anew then, and at the next full hour
        clock = change.astimezone(zone)
        full = change + (-timedelta(minutes=clock.minute, seconds=clock.second) % HOUR)
        return min(tick, *(first(begin - timedelta(seconds=1), after) for begin in (change, full)))

    return _checked(Schedule(f"cron {fields} {zone}", zone, following))


def _checked(schedule: Schedule) -> Schedule:
    try:
        schedule.next_tick(datetime.now(timezone.utc))
    except (CronSimError, OverflowError) as error:
        raise ConfigError(f"the schedule {schedule.text!r} cannot be used: {error}") from None
    return schedule


def _odd_change(zone: tzinfo, start: datetime, end: datetime) -> datetime | None:
    """When in (start, end] the clocks of the zone were changed by something else than whole hours, as on Lord Howe."""

    def offset(when: datetime) -> timedelta:
        return when.astimezone(zone).utcoffset() or timedelta()

    if not (offset(end) - offset(start)) % HOUR:
        return None
    start, end = start.replace(microsecond=0), end.replace(microsecond=0)
    while end - start > timedelta(seconds=1):
        middle = (start + (end - start) / 2).replace(microsecond=0)
        if offset(middle) == offset(end):
            end = middle
        else:
            start = middle
    return end


def _multiple_after(after: datetime, interval: timedelta) -> datetime:
    return EPOCH + ((after - EPOCH) // interval + 1) * interval


def _zone(tz: tzinfo | str | None) -> tzinfo:
    if tz is None:
        return LOCAL
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(f"tz={tz!r} is no time zone: {error} (on some systems: pip install tzdata)") from None


class _Local(tzinfo):
    """This host's time with all its changes; `datetime.astimezone()` has only the offset of one moment."""

    def __str__(self) -> str:
        return "local"

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None if when is None else when.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, when: datetime | None) -> timedelta | None:
        return None

    def tzname(self, when: datetime | None) -> str:
        return "local"

    def fromutc(self, when: datetime) -> datetime:
        return datetime.fromtimestamp(when.replace(tzinfo=timezone.utc).timestamp()).replace(tzinfo=self)


LOCAL = _Local()
