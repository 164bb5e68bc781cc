"""`rocketq producer`: list."""

from __future__ import annotations

from typing import Any

import click

from rocketq.cli.options import ClientOptions, client_options
from rocketq.cli.output import show, time_text


@click.group(short_help="Producers that are connected.")
def producer() -> None:
    """Producer groups of a cluster, ours or Apache's."""


@producer.command("list")
@click.option("-g", "--group", help="This producer group only.")
@click.option("-c", "--cluster", help="On the brokers of this cluster only.")
@client_options
def list_producers(options: ClientOptions, group: str | None, cluster: str | None) -> None:
    """List the producers that are connected to brokers."""
    rows: list[list[Any]] = []
    with options.admin() as admin:
        for broker in admin.brokers(cluster):
            for name, members in admin.producers(broker.address).items():
                if group not in (None, name):
                    continue
                rows += [
                    [
                        name,
                        member.get("clientId"),
                        member.get("remoteIP"),
                        member.get("language"),
                        broker.name,
                        time_text(int(member.get("lastUpdateTimestamp") or 0)),
                    ]
                    for member in members
                ]
    show(options.as_json, ["GROUP", "CLIENT", "ADDRESS", "LANGUAGE", "BROKER", "LAST HEARTBEAT"], sorted(rows))
