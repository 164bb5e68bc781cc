"""`rocketq replay`: messages of the past once more, for one group."""

from __future__ import annotations

from collections.abc import Iterator

import click

from rocketq.cli.copying import print_plan, run_copies
from rocketq.cli.group_offsets import carry_out
from rocketq.cli.options import ClientOptions, client_options, confirm, time_option, yes_option
from rocketq.client import resetting
from rocketq.client.browse import Browser, Wanted
from rocketq.client.redeliver import Redelivery, prepare_retry_topic
from rocketq.filters import parse_tags
from rocketq.message import ReceivedMessage
from rocketq.names import retry_topic

_INDEX_LIMIT = 10_000


@click.command()
@click.option("-t", "--topic", required=True, help="Where the messages are.")
@click.option("-g", "--group", required=True, help="Who gets them again.")
@time_option("--since", required=True, help="Messages stored then or later.")
@time_option("--until", help="Messages stored before. Without it up to now.")
@click.option("--tag", default="*", show_default=True, help='Only these: a tag, or several as "a || b".')
@click.option("--key", help="Only messages with this key.")
@click.option("--sql", help="Only these, as the broker evaluates SQL92: \"color = 'red' AND price > 3\".")
@click.option("--again", is_flag=True, help="Also messages that the group was given again before.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@yes_option
@client_options
def replay(
    options: ClientOptions,
    topic: str,
    group: str,
    since: int,
    until: int | None,
    tag: str,
    key: str | None,
    sql: str | None,
    again: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Deliver messages of the past again, to one group.

    \b
      rocketq replay --topic orders --group billing --since "2h ago"
      rocketq replay --topic orders --group billing --since yesterday --until today --tag paid

    With --since alone the group's offsets are moved back to that time, and it consumes everything from there on again,
    in order; queues in which it is not that far yet stay where they are. Its consumers may run.

    With --until, --tag, --key or --sql copies of the matching messages are sent to %RETRY%GROUP, which only this
    group consumes; its consumers see them as messages of the topic. The group goes on with other work, and the copies
    have no order. A message is copied once: after an interruption give the same command again, and to replay the same
    messages a second time give --again. The group needs consumers that get retries: push consumers, not broadcast
    ones and not those that assign queues themselves.
    """
    if sql and tag != "*":
        raise click.UsageError("--sql and --tag exclude each other: name TAGS in the expression")
    if key and sql:
        raise click.UsageError("--key and --sql exclude each other")
    with options.admin() as admin:
        browser = Browser(admin)
        if until is None and tag == "*" and not key and not sql and not again:
            moves = resetting.plan(
                browser, group, topic, lambda queue: browser.offset_at(queue, since), only_back=True
            )
            carry_out(options, browser, group, topic, moves, dry_run=dry_run, yes=yes)
            return
        settings = admin.group(group)
        with options.producer("rocketq-replay") as producer:
            found = _by_key(browser, topic, key, since, until, tag) if key else browser.between(
                topic, since, until, Wanted(tag, sql)
            )  # fmt: skip
            target = retry_topic(group) if dry_run else prepare_retry_topic(browser, settings)
            redelivery = Redelivery(browser, producer, lambda message: target, again=again)
            if dry_run:
                print_plan(options, redelivery.plan(found))
                return
            confirm(yes, f"Send copies of the matching messages of {topic} to group {group}?")
            run_copies(options, redelivery, found, topic=topic, group=group)


def _by_key(
    browser: Browser, topic: str, key: str, since: int, until: int | None, tag: str
) -> Iterator[ReceivedMessage]:
    tags = parse_tags(tag)
    for message in browser.by_key(topic, key, since, until, _INDEX_LIMIT):
        in_time = since <= message.store_timestamp and (until is None or message.store_timestamp < until)
        if in_time and (tags is None or message.tag in tags):
            yield message
