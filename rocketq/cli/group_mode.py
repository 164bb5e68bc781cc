"""`rocketq group mode`: whether a group pulls a topic or pops it."""

from __future__ import annotations

import click

from rocketq.cli.options import ClientOptions, client_options
from rocketq.cli.output import show
from rocketq.remoting.bodies import MessageRequestMode


@click.command("mode")
@click.argument("group")
@click.argument("topic")
@click.argument("mode", type=click.Choice(["pull", "pop"]), required=False)
@click.option(
    "--share",
    type=click.IntRange(min=0),
    metavar="N",
    help="With pop: a member takes its own queues and those of N others.  [default: all queues]",
)
@client_options
def group_mode(options: ClientOptions, group: str, topic: str, mode: str | None, share: int | None) -> None:
    """Show whether GROUP pulls TOPIC or pops it, or change that.

    It holds for clients that let the broker decide (Java's with clientRebalance=false): with pull each member has
    queues of its own, with pop members share them and take leases of messages.
    """
    if share is not None and mode != "pop":
        raise click.UsageError("--share says how members share queues: it goes with pop")
    with options.admin() as admin:
        if mode is not None:
            admin.group(group)
            admin.set_request_mode(
                MessageRequestMode(
                    topic=topic, consumer_group=group, mode=mode.upper(), pop_share_queue_num=share or 0
                )
            )
        modes = admin.request_modes(group, topic)
    rows = [
        [broker, found.mode.lower() if found else None, found.pop_share_queue_num if found else None]
        for broker, found in modes.items()
    ]
    show(options.as_json, ["BROKER", "MODE", "SHARE"], rows)
    if not options.as_json and None in modes.values():
        click.echo("-: nothing was set, the broker's defaultMessageRequestMode holds")
