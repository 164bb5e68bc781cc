"""`rocketq cluster`: list, wipe-write, add-write."""

from __future__ import annotations

import click

from rocketq.cli.broker_admin import add_write, list_brokers, wipe_write


@click.group(short_help="The brokers of a cluster; as rocketq broker list.")
def cluster() -> None:
    """Brokers of a cluster, ours or Apache's. The same commands are under rocketq broker."""


cluster.add_command(list_brokers)
cluster.add_command(wipe_write)
cluster.add_command(add_write)
