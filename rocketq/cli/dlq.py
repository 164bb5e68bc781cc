"""`rocketq dlq`: list, show, resend, purge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import click

from rocketq import properties as names
from rocketq.cli.copying import print_plan, run_copies
from rocketq.cli.message_text import as_block, as_object
from rocketq.cli.options import ClientOptions, client_options, confirm, time_option, yes_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.client.browse import Browser
from rocketq.client.redeliver import DeadLetters, Redelivery, original_topic, place, prepare_retry_topic
from rocketq.errors import RocketQError, RouteNotFound
from rocketq.message import ReceivedMessage
from rocketq.names import DLQ_PREFIX, retry_topic

_all = click.option("-a", "--all", "everything", is_flag=True, help="Also those that were resent or purged.")
_id = click.option("--id", "ids", multiple=True, metavar="MESSAGE_ID", help="Only this message; may be repeated.")
_since = time_option("--since", help="Only what became a dead letter then or later.")
_until = time_option("--until", help="Only what became one before.")


@click.group(short_help="Dead letters: list, show, resend, purge.")
def dlq() -> None:
    """Messages that a group could not consume however often it tried: %DLQ%GROUP.

    Which of them have been dealt with (resent or purged) is kept at the brokers as offsets of the group
    rocketq_dlq, so everybody sees the same. The messages themselves stay until the broker's retention ends.
    """


@dlq.command("list")
@_all
@client_options
def list_dlq(options: ClientOptions, everything: bool) -> None:
    """List the groups that have dead letters. OPEN: nobody has dealt with them yet."""
    rows = []
    with options.admin() as admin:
        browser = Browser(admin)
        for topic in admin.topics():
            if not topic.startswith(DLQ_PREFIX):
                continue
            letters = DeadLetters(browser, topic.removeprefix(DLQ_PREFIX))
            ends = admin.topic_status(topic).values()
            stored = sum(end.max_offset - end.min_offset for end in ends)
            if not everything and not letters.waiting:
                continue
            oldest = [time for queue in letters.open if (time := browser.oldest(queue)) is not None]
            newest = max((end.last_update_timestamp for end in ends), default=0)
            rows.append(
                [
                    letters.group,
                    letters.waiting,
                    stored,
                    time_text(min(oldest, default=0)),
                    time_text(newest),
                ]
            )
    if not rows and not options.as_json:
        click.echo("no group has dead letters" if everything else "no group has open dead letters")
        return
    show(options.as_json, ["GROUP", "OPEN", "STORED", "OLDEST", "NEWEST"], rows)


@dlq.command("show")
@click.argument("group")
@_id
@_since
@_until
@_all
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Not more than so many.")
@click.option("--full", is_flag=True, help="All properties, with the traceback.")
@click.option("--body", is_flag=True, help="With the body; implies --full.")
@client_options
def show_dlq(
    options: ClientOptions,
    group: str,
    ids: tuple[str, ...],
    since: int | None,
    until: int | None,
    everything: bool,
    limit: int,
    full: bool,
    body: bool,
) -> None:
    """Show the dead letters of GROUP: where they came from, how often they were tried, and why they failed.

    The reason is there when a rocketq worker gave up; other clients do not tell.
    """
    with options.admin() as admin:
        letters = _letters(Browser(admin), group)
        chosen = _chosen(letters, ids, since, until, everything)
        messages = list(islice(chosen, limit))
        more = next(chosen, None) is not None
    if options.as_json:
        print_json([as_letter(message, body=body) for message in messages])
        return
    if full or body:
        click.echo("\n\n".join(as_block(message, body=body) for message in messages))
    else:
        show(
            False,
            ["PLACE", "SINCE", "TOPIC", "ATTEMPTS", "KEYS", "MESSAGE ID", "EXCEPTION"],
            [
                [
                    f"{message.broker_name}/{message.queue_id}@{message.queue_offset}",
                    time_text(message.store_timestamp),
                    original_topic(message),
                    message.reconsume_times,
                    ",".join(message.keys) or None,
                    message.message_id,
                    message.properties.get(names.EXCEPTION),
                ]
                for message in messages
            ],
        )
    if more:
        click.echo(f"there are more than {limit}; --limit shows them", err=True)


def as_letter(message: ReceivedMessage, *, body: bool) -> dict[str, object]:
    """A dead letter for programs."""
    return {
        **as_object(message, body=body),
        "group": message.stored_topic.removeprefix(DLQ_PREFIX),
        "original_topic": original_topic(message),
        "attempts": message.reconsume_times,
        "exception": message.properties.get(names.EXCEPTION),
        "traceback": message.properties.get(names.TRACEBACK),
    }


@dlq.command()
@click.argument("group")
@click.option("-a", "--all", "everything", is_flag=True, help="Everything that is open.")
@_id
@_since
@_until
@click.option("--to", "topic", metavar="TOPIC", help="Send to this topic instead of the one it was sent to first.")
@click.option("--only-group", is_flag=True, help="For GROUP only (by %RETRY%GROUP), not for others on the topic.")
@click.option("--again", is_flag=True, help="Also what was resent already.")
@click.option("--dry-run", is_flag=True, help="Only show what would be sent.")
@yes_option
@client_options
def resend(
    options: ClientOptions,
    group: str,
    everything: bool,
    ids: tuple[str, ...],
    since: int | None,
    until: int | None,
    topic: str | None,
    only_group: bool,
    again: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send dead letters of GROUP to the topics they came from, with their keys, tags and own properties.

    \b
      rocketq dlq resend shop-ship --all
      rocketq dlq resend shop-ship --since "2h ago" --only-group

    Every group on the topic gets the copies, except with --only-group. A copy has the message's id, and in its property
    ROCKETQ_COPY_OF the place of the dead letter. What has such a copy already is left out: after an
    interruption give the same command again.
    """
    if not (everything or ids or since is not None or until is not None):
        raise click.UsageError("which? --all, --id, --since or --until")
    if topic and only_group:
        raise click.UsageError("--to and --only-group exclude each other")
    with options.admin() as admin, options.producer("rocketq-dlq-resend") as producer:
        browser = Browser(admin)
        letters = _letters(browser, group)
        target: Callable[[ReceivedMessage], str | None] = original_topic
        if only_group:
            settings = admin.group(group)
            topic = retry_topic(group) if dry_run else prepare_retry_topic(browser, settings)
        if topic:
            fixed = topic
            target = lambda message: fixed  # noqa: E731
        redelivery = Redelivery(browser, producer, target, again=again)
        chosen = _chosen(letters, ids, since, until, everything=bool(ids) or again)
        if dry_run:
            print_plan(options, redelivery.plan(chosen))
            return
        what = f"{letters.waiting} dead letters" if everything else "the chosen dead letters"
        confirm(yes, f"Send {what} of group {group} to {topic or 'the topics they came from'}?")
        run_copies(
            options,
            redelivery,
            chosen,
            after=letters.dealt_with,
            total=letters.waiting if everything else None,
            group=group,
        )


@dlq.command()
@click.argument("group")
@click.option("-a", "--all", "everything", is_flag=True, help="Everything that is open.")
@time_option("--until", help="Only what became a dead letter before.")
@yes_option
@client_options
def purge(options: ClientOptions, group: str, everything: bool, until: int | None, yes: bool) -> None:
    """Count dead letters of GROUP as dealt with: they are no longer open, and resend --all leaves them out.

    Nothing is deleted before the broker's retention ends, and the topic stays: brokers write dead letters to it at any
    moment, and those that come while a topic is deleted and made again would be lost. dlq show --all still
    shows what was purged, and resend --id can still send it.
    """
    if everything == (until is not None):
        raise click.UsageError("which? --all or --until")
    with options.admin() as admin:
        letters = _letters(Browser(admin), group)
        what = "all" if everything else f"those before {time_text(until or 0)}"
        confirm(yes, f"Purge {what} of the {letters.waiting} open dead letters of group {group}?")
        count = letters.purge(until)
        done(
            options.as_json,
            f"{count} dead letters of group {group} are purged, {letters.waiting} are open",
            group=group,
            purged=count,
            open=letters.waiting,
        )


def _letters(browser: Browser, group: str) -> DeadLetters:
    try:
        return DeadLetters(browser, group)
    except RouteNotFound:
        if group in browser.admin.groups():
            raise RocketQError(f"group {group} has no dead letters") from None
        raise RocketQError(
            f"group {group} does not exist; rocketq dlq list shows which have dead letters"
        ) from None


def _chosen(
    letters: DeadLetters, ids: tuple[str, ...], since: int | None, until: int | None, everything: bool
) -> Iterator[ReceivedMessage]:
    """Those that the options name. Raises RocketQError for an id that there is not."""
    if ids:
        by_id = {one: _with_id(letters, one) for one in ids}
        if missing := [one for one, found in by_id.items() if not found]:
            raise RocketQError(f"group {letters.group} has no dead letter with id {', '.join(missing)}")
        messages = iter({place(message): message for found in by_id.values() for message in found}.values())
    else:
        messages = letters.messages(everything=everything)
    for message in messages:
        if since is not None and message.store_timestamp < since:
            continue
        if until is not None and message.store_timestamp >= until:
            continue
        yield message


def _with_id(letters: DeadLetters, message_id: str) -> list[ReceivedMessage]:
    found = letters.browser.by_unique_id(letters.topic, message_id)
    if not found:
        one = letters.browser.by_offset_id(message_id)
        found = [one] if one is not None and one.stored_topic == letters.topic else []
    return found
