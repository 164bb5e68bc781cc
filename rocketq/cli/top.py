"""`rocketq top`: what goes in and out, live.

Rates are differences of offsets between two looks, so they are the same for every broker version, and nobody has to
count. What a group takes out is what it commits.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import msgspec

from rocketq.cli.options import ClientOptions, client_options
from rocketq.cli.output import objects, print_json, print_table
from rocketq.client.admin import Admin
from rocketq.errors import BrokerError, RouteNotFound
from rocketq.names import DLQ_PREFIX, RETRY_PREFIX, is_system_group

_TOPICS = ["TOPIC", "IN TPS", "STORED"]
_GROUPS = ["GROUP", "TOPIC", "OUT TPS", "LAG"]


@dataclass(frozen=True)
class Look:
    """What was there at one moment (`when`, in seconds of a clock that does not jump)."""

    when: float
    #: topic: how many messages it has had, and how many it has
    topics: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: group and topic: how many messages are behind it, and before it
    groups: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def look(admin: Admin, *, everything: bool) -> Look:
    """Asks the brokers."""
    found = Look(time.monotonic())
    system = set() if everything else admin.system_topics()
    for topic in admin.topics():
        if topic in system or (topic.startswith((RETRY_PREFIX, "rmq_sys_")) and not everything):
            continue
        with contextlib.suppress(RouteNotFound, BrokerError):  # deleted meanwhile
            ends = admin.topic_status(topic).values()
            had = sum(end.max_offset for end in ends)
            found.topics[topic] = (had, had - sum(end.min_offset for end in ends))
    for group in admin.groups():
        if is_system_group(group) and not everything:
            continue
        for queue, state in admin.group_progress(group).items():
            behind, before = found.groups.get((group, queue.topic), (0, 0))
            lag = state.broker_offset - state.consumer_offset
            found.groups[group, queue.topic] = (behind + state.consumer_offset, before + lag)
    return found


def rates(before: Look, now: Look) -> tuple[list[list[Any]], list[list[Any]]]:
    """Rows of topics and of groups, the busiest first; what was not there before has no rate."""
    seconds = max(now.when - before.when, 1e-9)

    def rate(count: int, past: tuple[int, int] | None) -> float | None:
        # deleted and made again, or moved back
        return None if past is None or count < past[0] else round((count - past[0]) / seconds, 1)

    topics: list[list[Any]] = [
        [topic, rate(had, before.topics.get(topic)), stored] for topic, (had, stored) in now.topics.items()
    ]
    groups: list[list[Any]] = [
        [group, topic, rate(behind, before.groups.get((group, topic))), lag]
        for (group, topic), (behind, lag) in now.groups.items()
        if lag or not topic.startswith((RETRY_PREFIX, DLQ_PREFIX))
    ]
    topics.sort(key=lambda row: (-(row[1] or 0), -row[2], row[0]))
    groups.sort(key=lambda row: (-row[3], -(row[2] or 0), row[0], row[1]))
    return topics, groups


@click.command()
@click.option("-i", "--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="Between two looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="Print once, after one interval, and end.")
@click.option(
    "--rows", type=click.IntRange(1), default=20, show_default=True, help="Of each table, the busiest first."
)
@click.option("-a", "--all", "everything", is_flag=True, help="The system's topics and groups too.")
@client_options
def top(options: ClientOptions, interval: float, once: bool, rows: int, everything: bool) -> None:
    """Show topics and groups with their rates and lags, refreshed until Ctrl-C.

    IN TPS is what was stored a second, OUT TPS what a group has committed a second. With --json one object a
    look, each on a line of its own.
    """
    with contextlib.suppress(KeyboardInterrupt), options.admin() as admin:
        before = look(admin, everything=everything)
        while True:
            time.sleep(interval)
            now = look(admin, everything=everything)
            topics, groups = rates(before, now)
            before = now
            if options.as_json:
                value = {"topics": objects(_TOPICS, topics), "groups": objects(_GROUPS, groups)}
                if once:
                    print_json(value)
                else:
                    click.echo(msgspec.json.encode(value))
            else:
                if not once:
                    click.clear()
                    click.echo(f"{options.namesrv}  {datetime.now():%H:%M:%S}  every {interval:g} s\n")
                for columns, found in ((_TOPICS, topics), (_GROUPS, groups)):
                    print_table(columns, found[:rows])
                    if len(found) > rows:
                        click.echo(f"… and {len(found) - rows} more")
                    click.echo("")
            if once:
                return
