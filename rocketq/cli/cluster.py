"""`rocketq cluster`: list, wipe-write, add-write."""

from __future__ import annotations

import click

from rocketq.cli.options import ClientOptions, client_options
from rocketq.cli.output import done, show
from rocketq.errors import BrokerError, RemotingError, RocketQError


@click.group(short_help="Brokers: list, drain, bring back.")
def cluster() -> None:
    """Brokers of a cluster, ours or Apache's."""


@cluster.command("list")
@click.option("-c", "--cluster", "name", help="This cluster only.")
@client_options
def list_brokers(options: ClientOptions, name: str | None) -> None:
    """List the brokers."""
    rows: list[list[object]] = []
    with options.admin() as admin:
        for broker in admin.brokers(name):
            try:
                info = admin.runtime_info(broker.address)
            except (RemotingError, BrokerError) as error:
                info = {"brokerVersionDesc": f"({error})"}
            rows.append(
                [
                    broker.cluster,
                    broker.name,
                    broker.broker_id,
                    broker.address,
                    info.get("brokerVersionDesc"),
                    _first(info.get("putTps")),
                    _first(info.get("getTransferredTps")),
                ]
            )
    show(options.as_json, ["CLUSTER", "BROKER", "ID", "ADDRESS", "VERSION", "IN TPS", "OUT TPS"], rows)


def _first(text: str | None) -> float | None:
    """The first of a list like `1.0 0.5 0.1`."""
    try:
        return round(float((text or "").split()[0]), 2)
    except (IndexError, ValueError):
        return None


@cluster.command("wipe-write")
@click.argument("broker")
@client_options
def wipe_write(options: ClientOptions, broker: str) -> None:
    """Drain a broker: producers stop sending to it within one route refresh, consumers finish what is there.

    It holds until the broker is restarted or its topics are changed.
    """
    with options.admin() as admin:
        count = admin.wipe_write(broker)
    if not count:
        raise RocketQError(f"no NameServer of {options.namesrv} knows topics of a broker named {broker}")
    done(options.as_json, f"broker {broker} takes no messages for {count} topics", broker=broker, topics=count)


@cluster.command("add-write")
@click.argument("broker")
@client_options
def add_write(options: ClientOptions, broker: str) -> None:
    """Let producers send to a broker again."""
    with options.admin() as admin:
        count = admin.add_write(broker)
    if not count:
        raise RocketQError(f"no NameServer of {options.namesrv} knows topics of a broker named {broker}")
    done(options.as_json, f"broker {broker} takes messages for {count} topics", broker=broker, topics=count)
