"""`rocketq send`: one message from the command line."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import click

from rocketq.app import RocketQ
from rocketq.cli.options import ClientOptions, TimeType, client_options
from rocketq.cli.output import done
from rocketq.cli.times import parse_duration


def _properties(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name or not text:
            raise click.BadParameter(f"{value!r} is not name=value")
        pairs[name] = text
    return pairs


def _delay(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else timedelta(milliseconds=parse_duration(value))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from None


def _at(context: click.Context, parameter: click.Parameter, value: int | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=value)
    if moment <= datetime.now(timezone.utc):
        raise click.BadParameter(f"{moment.isoformat()} is over; --delay takes a length of time, as 2h")
    return moment


@click.command()
@click.argument("topic")
@click.argument("body")
@click.option("--tag", help="What consumers filter by.")
@click.option("--key", help="Messages with the same key stay in order; can be looked up by it.")
@click.option("--keys", multiple=True, metavar="WORD", help="One more word to look it up by; may be repeated.")
@click.option("--property", "properties", multiple=True, callback=_properties, metavar="NAME=VALUE",
              help="A property of yours; may be repeated.")  # fmt: skip
@click.option("--delay", callback=_delay, metavar="TIME",
              help="Deliver after that time: 1500ms, 90s, 5m, 1d12h.")  # fmt: skip
@click.option("--at", type=TimeType(), callback=_at,
              help="Deliver at that time: 14:30, 2031-05-01T12:00Z.")  # fmt: skip
@click.option("--priority", type=click.IntRange(0, 2**31 - 1), help="From 0; the higher ones come first with POP.")
@click.option("--delay-level", type=click.IntRange(0, 18), default=0,
              help="Deliver later: 1 to 18 for 1 s 5 s 10 s 30 s 1 m 2 m … 10 m 20 m 30 m 1 h 2 h.")  # fmt: skip
@client_options
def send(
    options: ClientOptions,
    topic: str,
    body: str,
    tag: str | None,
    key: str | None,
    keys: tuple[str, ...],
    properties: dict[str, str],
    delay: timedelta | None,
    at: datetime | None,
    priority: int | None,
    delay_level: int,
) -> None:
    """Send BODY to TOPIC; "-" reads the body from standard input.

    \b
      rocketq send orders '{"number": 1}' --tag paid --key ada
      rocketq send pictures - < cat.png
      rocketq send reminders tea --delay 5m

    Done when the broker has stored it. Exit codes: 0 sent, 1 not sent or not known to be stored, 2 wrong usage.
    """
    if sum([delay is not None, at is not None, delay_level > 0]) > 1:
        raise click.UsageError("only one of --delay, --at and --delay-level can count")
    payload = sys.stdin.buffer.read() if body == "-" else body.encode(errors="surrogateescape")
    app = RocketQ("rocketq-send", options.namesrv, timeout=options.timeout, **options.connection)
    try:
        result = app.send(
            topic,
            payload,
            tag=tag,
            key=key,
            keys=keys,
            delay_level=delay_level,
            delay=delay,
            at=at,
            priority=priority,
            properties=properties,
            timeout=options.timeout,
        )
    finally:
        app.close()
    queue = result.queue
    done(
        options.as_json,
        f"{result.status} {result.message_id} {queue.broker_name}/{queue.queue_id}@{result.queue_offset}"
        + (f" recall handle {result.recall_handle}" if result.recall_handle else ""),
        status=result.status,
        message_id=result.message_id,
        offset_message_id=result.offset_message_id,
        topic=topic,
        broker=queue.broker_name,
        queue_id=queue.queue_id,
        queue_offset=result.queue_offset,
        recall_handle=result.recall_handle,
    )
