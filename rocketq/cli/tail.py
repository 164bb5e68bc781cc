"""`rocketq tail`: watch a topic without being a consumer of it."""

from __future__ import annotations

import asyncio
import contextlib

import click
import msgspec

from rocketq.cli.message_text import as_line, as_object
from rocketq.cli.options import ClientOptions, TimeType, client_options
from rocketq.client import PullConsumer
from rocketq.errors import RouteNotFound
from rocketq.filters import Sql
from rocketq.message import MessageQueue

#: A group that every broker has from its first start; nothing is ever committed for it here.
GROUP = "TOOLS_CONSUMER"


@click.command()
@click.argument("topic")
@click.option("--tag", default="*", show_default=True, help='Only these: a tag, or several as "a || b".')
@click.option("--sql", help="Only these, as the broker evaluates SQL92: \"color = 'red' AND price > 3\".")
@click.option("--from", "start", default="last", type=TimeType("first", "last"), show_default=True,
              help="Begin with the oldest message, with the next that arrives, or at a time like 2h ago.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--no-follow", is_flag=True, help="Stop at the end of what is there now.")
@client_options
def tail(
    options: ClientOptions,
    topic: str,
    tag: str,
    sql: str | None,
    start: str | int,
    count: int | None,
    no_follow: bool,
) -> None:
    """Show the messages of TOPIC as they arrive. Takes nothing away from its consumers.

    \b
      rocketq tail orders --tag "paid || shipped"
      rocketq tail orders --sql "amount > 100 AND TAGS = 'paid'"
      rocketq tail orders --from first --no-follow --json > orders.jsonl
      rocketq tail %DLQ%shop-ship --from 2013-01-31T18:00

    With --json one object a line. Ctrl-C stops it.
    """
    if sql and tag != "*":
        raise click.UsageError("--sql and --tag exclude each other: name TAGS in the expression")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow(options, topic, Sql(sql) if sql else tag, start, count, no_follow))


async def follow(
    options: ClientOptions,
    topic: str,
    expression: str | Sql,
    start: str | int,
    count: int | None,
    no_follow: bool,
) -> None:
    async with PullConsumer(
        GROUP, options.namesrv, auto_commit=False, timeout=options.timeout, **options.connection
    ) as consumer:
        queues = await wait_for_queues(consumer, topic, wait=not no_follow)
        await consumer.assign(queues, expression)
        for queue in queues:
            await seek(consumer, queue, start)
        ends = {queue: await consumer.membership.calls.max_offset(queue) for queue in queues}
        shown = 0
        while not no_follow or any(consumer.position(queue) < end for queue, end in ends.items()):
            for message in await consumer.poll(0.2 if no_follow else 5.0):
                if no_follow and message.queue_offset >= ends[message.queue]:
                    continue
                click.echo(msgspec.json.encode(as_object(message)) if options.as_json else as_line(message))
                shown += 1
                if shown == count:
                    return


async def wait_for_queues(consumer: PullConsumer, topic: str, *, wait: bool) -> list[MessageQueue]:
    """The topic's queues; waits for a topic that does not exist yet."""
    told = False
    while True:
        try:
            return await consumer.queues(topic)
        except RouteNotFound:
            if not wait:
                raise
        if not told:
            click.echo(f"topic {topic} does not exist yet, waiting for it", err=True)
            told = True
        await asyncio.sleep(0.5)


async def seek(consumer: PullConsumer, queue: MessageQueue, start: str | int) -> None:
    if isinstance(start, int):
        await consumer.seek_to_time(queue, start)
    elif start == "first":
        await consumer.seek_to_begin(queue)
    else:
        await consumer.seek_to_end(queue)
