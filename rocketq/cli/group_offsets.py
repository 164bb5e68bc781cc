"""`rocketq group reset-offset`, and what `rocketq replay` shares with it."""

from __future__ import annotations

from collections.abc import Callable

import click

from rocketq.cli.options import ClientOptions, client_options, confirm, time_option, yes_option
from rocketq.cli.output import objects, print_json, show
from rocketq.client import resetting
from rocketq.client.browse import Browser
from rocketq.client.resetting import Move
from rocketq.message import MessageQueue

_COLUMNS = ["BROKER", "QUEUE", "FROM", "TO", "MESSAGES"]


@click.command("reset-offset")
@click.argument("group")
@click.option("-t", "--topic", required=True, help="In this topic.")
@time_option("--to-time", help="To the first message stored then or later.")
@click.option("--to-offset", type=click.IntRange(0), help="To this offset; give --queue as well.")
@click.option("--to-max", is_flag=True, help="To the end: what waits now is skipped.")
@click.option("--to-min", is_flag=True, help="To the oldest message that is left.")
@click.option("-q", "--queue", "queue_id", type=click.IntRange(0), help="Only the queue with this number.")
@click.option("-b", "--broker", help="Only on this broker.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@yes_option
@client_options
def reset_offset(
    options: ClientOptions,
    group: str,
    topic: str,
    to_time: int | None,
    to_offset: int | None,
    to_max: bool,
    to_min: bool,
    queue_id: int | None,
    broker: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Move GROUP to another place in a topic, back or forward. Its consumers may run or not.

    \b
      rocketq group reset-offset billing --topic orders --to-time "yesterday 08:00"
      rocketq group reset-offset billing --topic orders --to-offset 1200 --queue 3

    Running consumers go on at the new place with their next pull; what they have fetched already is still handled.
    Brokers before 5.0 do that only while nobody of the group is connected.
    """
    if sum([to_time is not None, to_offset is not None, to_max, to_min]) != 1:
        raise click.UsageError("where to? one of --to-time, --to-offset, --to-max, --to-min")
    if to_offset is not None and queue_id is None:
        raise click.UsageError("--to-offset is a place in one queue: give --queue as well")
    with options.admin() as admin:
        browser = Browser(admin)
        moves = resetting.plan(
            browser, group, topic, _target(browser, to_time, to_offset, to_max), queue_id=queue_id, broker=broker
        )
        carry_out(options, browser, group, topic, moves, dry_run=dry_run, yes=yes)


def _target(
    browser: Browser, to_time: int | None, to_offset: int | None, to_max: bool
) -> Callable[[MessageQueue], int]:
    if to_time is not None:
        return lambda queue: browser.offset_at(queue, to_time)
    if to_offset is not None:
        return lambda queue: to_offset
    return browser.max_offset if to_max else browser.min_offset


def carry_out(
    options: ClientOptions,
    browser: Browser,
    group: str,
    topic: str,
    moves: list[Move],
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Shows the moves, asks, and does them."""
    rows = [
        [move.queue.broker_name, move.queue.queue_id, move.before, move.after, move.end - move.after]
        for move in moves
    ]
    if not options.as_json:
        show(False, _COLUMNS, rows)
    if not dry_run and moves:
        total = sum(move.end - move.after for move in moves)
        confirm(yes, f"Move group {group} in topic {topic}, so that it has {total} messages before it?")
        resetting.apply(browser, group, moves)
    if options.as_json:
        print_json(objects(_COLUMNS, rows))
        return
    if dry_run:
        click.echo("nothing was changed (--dry-run)")
    elif moves:
        click.echo(f"group {group} is moved in {len(moves)} queues of topic {topic}")
    else:
        click.echo(f"group {group} is not further than that in any queue of topic {topic}: nothing to do")
