"""`rocketq broker list|status|config|clean|wipe-write|add-write`: looking after running brokers."""

from __future__ import annotations

from collections.abc import Iterable

import click

from rocketq.cli.options import ClientOptions, client_options, confirm, yes_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.client.admin import Broker
from rocketq.errors import BrokerError, ConfigError, RemotingError, RocketQError


@click.command("list")
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


@click.command()
@click.argument("broker")
@client_options
def status(options: ClientOptions, broker: str) -> None:
    """Show what a broker says about itself. BROKER: a master's name, or an address."""
    with options.admin() as admin:
        info = admin.runtime_info(admin.broker(broker).address)
    if options.as_json:
        print_json(dict(sorted(info.items())))
    else:
        show(False, ["KEY", "VALUE"], [[key, value] for key, value in sorted(info.items())])


@click.command("ha-status")
@click.argument("broker", required=False)
@client_options
def ha_status(options: ClientOptions, broker: str | None) -> None:
    """Show how far slaves are behind their masters. BROKER: a master's name, or an address; all brokers without one.

    A master shows its slaves: their address, how far they are, how many bytes they lack, when they last said so. A
    slave shows where its master is.
    """
    rows: list[list[object]] = []
    with options.admin() as admin:
        for one in [admin.broker(broker)] if broker else admin.brokers():
            status = admin.ha_status(one.address)
            who: list[object] = [one.name, one.broker_id, one.address]
            if not status.get("master"):
                own = status.get("haClientRuntimeInfo") or {}
                master = own.get("masterAddr") or ""
                rows.append(
                    [
                        *who,
                        f"slave of {master}",
                        own.get("maxOffset"),
                        None,
                        None,
                        time_text(own.get("lastReadTimestamp") or 0),
                        "",
                    ]
                )
                continue
            slaves = status.get("haConnectionInfo") or []
            if not slaves:
                rows.append([*who, "no slave", status.get("masterCommitLogMaxOffset"), None, None, None, ""])
            for slave in slaves:
                rows.append(
                    [
                        *who,
                        slave.get("addr"),
                        slave.get("slaveAckOffset"),
                        slave.get("diff"),
                        slave.get("inSync"),
                        time_text(slave.get("lastAckTimestamp") or 0),
                        slave.get("problem") or "",
                    ]
                )
    show(
        options.as_json,
        ["BROKER", "ID", "ADDRESS", "PEER", "OFFSET", "BEHIND BYTES", "IN SYNC", "LAST HEARD", "PROBLEM"],
        rows,
    )


@click.group("config")
def broker_config() -> None:
    """Settings of a running broker, by Apache's names (docs/configuration.md)."""


@broker_config.command("get")
@click.argument("broker")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@client_options
def get_config(options: ClientOptions, broker: str, keys: tuple[str, ...]) -> None:
    """Show the settings of BROKER (a master's name, or an address) in effect: those named, or all."""
    with options.admin() as admin:
        one = admin.broker(broker)
        found = admin.broker_config(one.address)
    _known(one, found, keys)
    chosen = {key: found[key] for key in keys or sorted(found)}
    if options.as_json:
        print_json(chosen)
    else:
        show(False, ["KEY", "VALUE"], [[key, value] for key, value in chosen.items()])


@broker_config.command("set")
@click.argument("broker")
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@client_options
def set_config(options: ClientOptions, broker: str, settings: tuple[str, ...]) -> None:
    """Change settings of BROKER (a master's name, or an address) while it runs.

    Not every setting has an effect before the broker's next start.
    """
    wanted = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{setting}: expected KEY=VALUE")
        wanted[key] = value
    with options.admin() as admin:
        one = admin.broker(broker)
        before = admin.broker_config(one.address)
        _known(one, before, wanted)
        admin.set_broker_config(one.address, wanted)
        after = admin.broker_config(one.address)
    refused = {key: value for key, value in wanted.items() if after.get(key) != value}
    if refused:
        texts = ", ".join(f"{key} is {after.get(key)!r} and not {value!r}" for key, value in refused.items())
        raise RocketQError(f"broker {one.name} did not take everything: {texts}")
    if options.as_json:
        done(True, "", broker=one.name, before={key: before[key] for key in wanted}, after=wanted)
    else:
        show(False, ["KEY", "BEFORE", "NOW"], [[key, before[key], value] for key, value in wanted.items()])


def _known(broker: Broker, settings: dict[str, str], keys: Iterable[str]) -> None:
    if unknown := [key for key in keys if key not in settings]:
        raise ConfigError(
            f"broker {broker.name} has no setting {', '.join(unknown)}; rocketq broker config get lists them"
        )


@click.command()
@click.argument("broker")
@yes_option
@client_options
def clean(options: ClientOptions, broker: str, yes: bool) -> None:
    """Let BROKER (a master's name, or an address) remove at once what it would remove by and by.

    That is messages older than it keeps them (fileReservedTime), at any hour of the day, and queues of topics that
    do not exist.
    """
    with options.admin() as admin:
        one = admin.broker(broker)
        confirm(yes, f"Remove expired messages and unused queues of broker {one.name}?")
        admin.clean(one.address)
    done(options.as_json, f"broker {one.name} removes expired messages and unused queues", broker=one.name)


@click.command("wipe-write")
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


@click.command("add-write")
@click.argument("broker")
@client_options
def add_write(options: ClientOptions, broker: str) -> None:
    """Let producers send to a broker again."""
    with options.admin() as admin:
        count = admin.add_write(broker)
    if not count:
        raise RocketQError(f"no NameServer of {options.namesrv} knows topics of a broker named {broker}")
    done(options.as_json, f"broker {broker} takes messages for {count} topics", broker=broker, topics=count)
