"""Delivering messages again, as `rocketq dlq resend` and `rocketq replay` show it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from rocketq.cli.options import ClientOptions
from rocketq.cli.output import done, show, time_text
from rocketq.client.redeliver import Redelivery, Report, place
from rocketq.message import Message, ReceivedMessage

_SHOWN_FAILURES = 10


def print_plan(options: ClientOptions, planned: Iterable[tuple[ReceivedMessage, Message | str | None]]) -> None:
    """What would become of each message."""
    rows = []
    for message, made in planned:
        if isinstance(made, Message):
            what = ["send", made.topic, None]
        else:
            what = ["leave out", None, made or "there is a copy already"]
        rows.append([place(message), time_text(message.store_timestamp), message.message_id, *what])
    show(options.as_json, ["PLACE", "STORED", "MESSAGE ID", "WHAT", "TO", "WHY"], rows)


def run_copies(
    options: ClientOptions,
    redelivery: Redelivery,
    messages: Iterable[ReceivedMessage],
    *,
    after: Callable[[list[ReceivedMessage]], None] = lambda messages: None,
    total: int | None = None,
    **fields: Any,
) -> None:
    """Sends, with a progress bar on a terminal, and reports. Exit code 1 when messages could not be copied."""
    with contextlib.ExitStack() as stack:
        bar = None
        if sys.stderr.isatty() and not options.as_json and total:
            bar = stack.enter_context(click.progressbar(length=total, label="sending", file=sys.stderr))

        def finished(chunk: list[ReceivedMessage], so_far: Report) -> None:
            after(chunk)
            if bar is not None:
                bar.update(len(chunk))

        report = redelivery.run(messages, finished)
    for where, why in list(report.failed.items())[:_SHOWN_FAILURES]:
        click.echo(f"{where} was not sent: {why}", err=True)
    text = f"{report.sent} messages sent"
    if report.already:
        text += f", {report.already} left out that have a copy already (--again sends them once more)"
    if report.failed:
        text += f", {len(report.failed)} not sent"
    done(options.as_json, text, **fields, sent=report.sent, already=report.already, failed=report.failed)
    if report.failed:
        sys.exit(1)
