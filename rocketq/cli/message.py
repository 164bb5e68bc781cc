"""`rocketq message`: get, query, at, print, recall; trace is in `message_trace`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from itertools import islice

import click

from rocketq.cli.message_text import as_block, as_line, as_object
from rocketq.cli.message_trace import show_trace
from rocketq.cli.options import ClientOptions, client_options, time_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.client.browse import Browser, Wanted
from rocketq.errors import RocketQError
from rocketq.message import MessageQueue, ReceivedMessage

_body = click.option("--body", is_flag=True, help="With the body.")


@click.group(short_help="Messages: by id, by key, by place, by time; their traces; take back delayed ones.")
def message() -> None:
    """Messages that brokers have stored. Nothing is taken away from their consumers.

    Bodies are shown with --body only: as text when they are UTF-8, with control characters escaped; --json has
    others in base64.
    """


message.add_command(show_trace)


@message.command()
@click.argument("message_id", metavar="ID")
@click.option("-t", "--topic", help="Where to look; without it in every topic.")
@_body
@client_options
def get(options: ClientOptions, message_id: str, topic: str | None, body: bool) -> None:
    """Show the message with an ID: the producer's unique id, or the broker's (which names its place).

    Retries and dead letters of a message have its unique id as well, so there may be several.
    """
    with options.admin() as admin:
        browser = Browser(admin)
        one = None if topic else browser.by_offset_id(message_id)
        if one is not None:
            found = [one]
        else:
            topics = [topic] if topic else admin.topics()
            found = [match for name in topics for match in _by_unique_id(browser, name, message_id)]
    if not found:
        where = f"topic {topic} has" if topic else "the cluster has"
        raise RocketQError(f"{where} no message with the id {message_id}; its retention may have ended")
    _print(options, sorted(found, key=lambda match: (match.store_timestamp, match.physical_offset)), body)


def _by_unique_id(browser: Browser, topic: str, message_id: str) -> list[ReceivedMessage]:
    found = browser.by_unique_id(topic, message_id)
    return [match for match in found if match.stored_topic == topic]


def _print(options: ClientOptions, messages: list[ReceivedMessage], body: bool) -> None:
    if options.as_json:
        print_json([as_object(message, body=body) for message in messages])
    else:
        click.echo("\n\n".join(as_block(message, body=body) for message in messages))


def _table(options: ClientOptions, messages: Iterable[ReceivedMessage], body: bool) -> None:
    """One line a message."""
    if options.as_json:
        print_json([as_object(message, body=body) for message in messages])
        return
    show(
        False,
        ["STORED", "BROKER", "QUEUE", "OFFSET", "TAG", "KEYS", "SIZE", "MESSAGE ID"],
        [
            [
                time_text(message.store_timestamp),
                message.broker_name,
                message.queue_id,
                message.queue_offset,
                message.tag,
                ",".join(message.keys) or None,
                len(message.stored_body),
                message.message_id,
            ]
            for message in messages
        ],
    )


@message.command()
@click.option("-t", "--topic", required=True, help="Where to look.")
@click.option("-k", "--key", required=True, help="One of the message's keys.")
@time_option("--since", help="Only messages stored then or later.", default=0)
@time_option("--until", help="Only messages stored before.")
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True, help="Not more than so many.")
@_body
@client_options
def query(
    options: ClientOptions, topic: str, key: str, since: int, until: int | None, limit: int, body: bool
) -> None:
    """List the messages with a key, oldest first."""
    with options.admin() as admin:
        found = Browser(admin).by_key(topic, key, since, until, limit)
    if body and not options.as_json:
        _print(options, found[:limit], body)
    else:
        _table(options, found[:limit], body)


@message.command()
@click.argument("topic")
@click.option("-q", "--queue", "queue_id", type=click.IntRange(0), required=True, help="The queue's number.")
@click.option("-o", "--offset", type=click.IntRange(0), required=True, help="The offset in the queue.")
@click.option("-b", "--broker", help="The broker's name; needed when several have such a queue.")
@_body
@client_options
def at(options: ClientOptions, topic: str, queue_id: int, offset: int, broker: str | None, body: bool) -> None:
    """Show the message of TOPIC at a place."""
    with options.admin() as admin:
        browser = Browser(admin)
        queue = _one_queue(browser, topic, queue_id, broker)
        found = browser.at(queue, offset)
        if found is None:
            low, end = browser.min_offset(queue), browser.max_offset(queue)
            raise RocketQError(
                f"queue {queue_id} of topic {topic} on {queue.broker_name} has offsets from {low} to before {end}, "
                f"and no message at {offset}"
            )
    _print(options, [found], body)


def _one_queue(browser: Browser, topic: str, queue_id: int, broker: str | None) -> MessageQueue:
    queues = [
        queue
        for queue in browser.queues(topic)
        if queue.queue_id == queue_id and broker in (None, queue.broker_name)
    ]
    if len(queues) > 1:
        brokers = ", ".join(queue.broker_name for queue in queues)
        raise click.UsageError(
            f"several brokers have a queue {queue_id} of topic {topic} ({brokers}): give --broker"
        )
    if not queues:
        where = f" on broker {broker}" if broker else ""
        raise RocketQError(
            f"topic {topic} has no queue {queue_id}{where}; rocketq topic status {topic} shows its queues"
        )
    return queues[0]


@message.command("print")
@click.argument("topic")
@time_option("--since", help="Only messages stored then or later.", default=0)
@time_option("--until", help="Only messages stored before. Without it up to now.")
@click.option("--tag", default="*", show_default=True, help='Only these: a tag, or several as "a || b".')
@click.option("--sql", help="Only these, as the broker evaluates SQL92: \"color = 'red' AND price > 3\".")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Not more than so many.")
@_body
@client_options
def print_messages(
    options: ClientOptions,
    topic: str,
    since: int,
    until: int | None,
    tag: str,
    sql: str | None,
    limit: int,
    body: bool,
) -> None:
    """Print the messages of TOPIC in the order in which they were stored. To follow new ones: rocketq tail."""
    if sql and tag != "*":
        raise click.UsageError("--sql and --tag exclude each other: name TAGS in the expression")
    with options.admin() as admin:
        found = Browser(admin).between(topic, since, until, Wanted(tag, sql))
        messages = list(islice(found, limit))
        more = next(found, None) is not None
    if body and not options.as_json:
        for one in messages:
            click.echo(as_line(one))
    else:
        _table(options, messages, body)
    if more:
        click.echo(f"there are more than {limit}; --limit shows them, or --since and --until", err=True)


@message.command()
@click.argument("handle")
@client_options
def recall(options: ClientOptions, handle: str) -> None:
    """Take back a delayed message whose time has not come. HANDLE is what its producer got when it was sent."""
    topic, broker, due, message_id = read_handle(handle)
    with options.admin() as admin:
        admin.recall(broker, topic, handle)
    done(
        options.as_json,
        f"message {message_id} of topic {topic}, due {time_text(due)}, is recalled",
        message_id=message_id,
        topic=topic,
        broker=broker,
        due=due,
    )


def read_handle(handle: str) -> tuple[str, str, int, str]:
    """Topic, broker name, delivery time in ms and unique id of a recall handle (`RecallMessageHandle`)."""
    try:
        version, topic, broker, due, message_id = base64.urlsafe_b64decode(handle).decode().split(" ")
        if version != "v1":
            raise ValueError
        return topic, broker, int(due), message_id
    except (ValueError, binascii.Error):
        raise click.UsageError("HANDLE is not a recall handle, as sending a delayed message gives one") from None
