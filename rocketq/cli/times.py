"""Points in time as people write them, for `--since`, `--until`, `--at`, `--from`, `--to-time`.

``now``, ``2h ago``, ``90m``, ``1d12h``, ``yesterday 08:00``, ``today``, ``14:30``, ``2031-05-01``,
``2031-05-01T12:00:00.5+02:00``, ``1935403200000`` (ms since the epoch). Without a zone a time is local.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo

#: What error messages and help texts show.
EXAMPLES = "2h ago, 90m, yesterday 08:00, 14:30, 2031-05-01T12:00+02:00, 1935403200000 (ms)"

#: unit: ms
_UNITS = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1000),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("w", "week", "weeks"), 604_800_000),
}
_PIECE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([a-z]+)(?: |$|(?=\d))", re.ASCII)
_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
_DAY = r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
_ZONE = r"(?P<zone> ?z| ?[+-]\d{2}:?\d{2})"
_ABSOLUTE = re.compile(rf"(?:{_DAY}|(?P<word>today|yesterday))(?:[t ]{_CLOCK}{_ZONE}?)?", re.ASCII)
_TODAY = re.compile(_CLOCK, re.ASCII)
_EPOCH = re.compile(r"\d{12,14}", re.ASCII)


def parse_time(text: str, now_ms: int, zone: tzinfo | None = None) -> int:
    """The point in time that `text` names, in ms since the epoch.

    `now_ms` is what durations count back from; `zone` is whose clock is meant without a zone (None: this machine's).
    Raises ValueError with a text for people.
    """
    words = " ".join(text.lower().split())
    if words == "now":
        return now_ms
    if _EPOCH.fullmatch(words):
        return int(words)
    back = _duration(words.removesuffix(" ago"))
    if back is not None:
        if back > now_ms:
            raise ValueError(f"{text!r} is before 1970")
        return now_ms - back
    if words.isdecimal():
        raise ValueError(f"{text!r} has no unit: {words}m is minutes ago; ms since the epoch have 13 digits")
    try:
        return _calendar(words, now_ms, zone)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no point in time; examples: {EXAMPLES}") from None


def parse_duration(text: str) -> int:
    """The time that `90s`, `5m`, `1d12h` take, in ms. Raises ValueError with a text for people."""
    duration = _duration(" ".join(text.lower().split()))
    if duration is None:
        raise ValueError(f"{text!r} is no length of time; examples: 1500ms, 90s, 5m, 1d12h")
    return duration


def _duration(words: str) -> int | None:
    """`2h`, `1h 30m`, `1d12h` in ms; None for anything else."""
    total, at = 0.0, 0
    while match := _PIECE.match(words, at):
        unit = _UNITS.get(match[2])
        if unit is None:
            return None
        total += float(match[1]) * unit
        at = match.end()
    return round(total) if at and at == len(words) else None


def _calendar(words: str, now_ms: int, zone: tzinfo | None) -> int:
    match = _ABSOLUTE.fullmatch(words)
    parts = (match or _TODAY.fullmatch(words) or _nothing()).groupdict()
    if parts.get("year"):
        day = date(int(parts["year"]), int(parts["month"]), int(parts["day"]))
    else:
        day = datetime.fromtimestamp(now_ms / 1000, zone).date()
        if parts.get("word") == "yesterday":
            day -= timedelta(days=1)
    micros = int((parts["fraction"] or "0").ljust(6, "0")[:6])
    clock = time(int(parts["hour"] or 0), int(parts["minute"] or 0), int(parts["second"] or 0), micros)
    moment = datetime.combine(day, clock, _zone(parts.get("zone")) or zone)
    if moment.tzinfo is None:
        moment = moment.astimezone()  # this machine's zone, with the rules of that day
    result = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1)
    if result < 0:
        raise ValueError("before 1970")
    return result


def _zone(text: str | None) -> tzinfo | None:
    if not text:
        return None
    text = text.strip()
    if text == "z":
        return timezone.utc
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _nothing() -> re.Match[str]:
    raise ValueError("no form of a time")
