"""`rocketq topic`: list, show, create, update, perm, delete, route, status, stats."""

from __future__ import annotations

from collections.abc import Callable

import click

from rocketq.cli.options import ClientOptions, client_options, confirm, yes_option
from rocketq.cli.output import done, objects, print_json, show, time_text
from rocketq.client.admin import MASTER
from rocketq.names import check_topic
from rocketq.remoting.bodies import TopicConfig

_PERMS = {"rw": 6, "r": 4, "w": 2}
_cluster = click.option("-c", "--cluster", help="On the brokers of this cluster only.")
_broker = click.option("-b", "--broker", help="On this broker only.")


@click.group(short_help="Topics: settings, permissions, queues, rates.")
def topic() -> None:
    """Topics of a cluster, ours or Apache's."""


@topic.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="The system's and retry topics too.")
@client_options
def list_topics(options: ClientOptions, everything: bool) -> None:
    """List the topics."""
    with options.admin() as admin:
        topics = admin.topics()
        if not everything:
            system = admin.system_topics()
            topics = [
                name for name in topics if name not in system and not name.startswith(("%RETRY%", "rmq_sys_"))
            ]
    show(options.as_json, ["TOPIC"], [[name] for name in topics])


@topic.command()
@click.argument("name")
@click.option(
    "-q", "--queues", type=click.IntRange(1, 65536), default=8, show_default=True, help="Queues on each broker."
)
@click.option(
    "--read-queues", type=click.IntRange(1, 65536), help="If it differs, as while queues are taken away."
)
@click.option(
    "--perm",
    type=click.Choice(list(_PERMS)),
    default="rw",
    show_default=True,
    help="What clients may do: read, write.",
)
@click.option("--order", is_flag=True, help="A topic whose queues keep their order when a broker is away.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="As message.type=FIFO; repeatable."
)
@_cluster
@_broker
@client_options
def create(
    options: ClientOptions,
    name: str,
    queues: int,
    read_queues: int | None,
    perm: str,
    order: bool,
    attributes: tuple[str, ...],
    cluster: str | None,
    broker: str | None,
) -> None:
    """Create a topic, or change one."""
    if problem := check_topic(name):
        raise click.UsageError(problem)
    config = TopicConfig(
        topic_name=name,
        read_queue_nums=read_queues or queues,
        write_queue_nums=queues,
        perm=_PERMS[perm],
        order=order,
        attributes=dict(_pair(attribute) for attribute in attributes),
    )
    with options.admin() as admin:
        brokers = [broker.name for broker in admin.create_topic(config, cluster, broker=broker)]
    done(
        options.as_json,
        f"topic {name} has {queues} queues on each of: {', '.join(brokers)}",
        topic=name,
        brokers=brokers,
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--attribute {text}: expected KEY=VALUE")
    return key, value


@topic.command()
@click.argument("name")
@click.option("-q", "--queues", type=click.IntRange(1, 65536), help="Queues on each broker, to write and to read.")
@click.option("--write-queues", type=click.IntRange(1, 65536), help="Queues to write only.")
@click.option("--read-queues", type=click.IntRange(1, 65536), help="Queues to read only.")
@click.option("--order/--no-order", default=None, help="Whether queues keep their order when a broker is away.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="As message.type=FIFO; repeatable."
)
@_cluster
@_broker
@client_options
def update(
    options: ClientOptions,
    name: str,
    queues: int | None,
    write_queues: int | None,
    read_queues: int | None,
    order: bool | None,
    attributes: tuple[str, ...],
    cluster: str | None,
    broker: str | None,
) -> None:
    """Change a topic; what is not named stays as it is.

    To take queues away without losing messages: first --write-queues, and when the groups have consumed the
    others, --read-queues.
    """
    write, read = write_queues or queues, read_queues or queues
    given = dict(_pair(attribute) for attribute in attributes)
    if write is None and read is None and order is None and not given:
        raise click.UsageError("nothing to change: name at least one setting (--help lists them)")

    def change(config: TopicConfig) -> None:
        config.write_queue_nums = write or config.write_queue_nums
        config.read_queue_nums = read or config.read_queue_nums
        config.order = config.order if order is None else order
        config.attributes = given

    _change(options, name, change, cluster, broker)


@topic.command()
@click.argument("name")
@click.argument("permission", type=click.Choice(list(_PERMS)))
@_cluster
@_broker
@client_options
def perm(options: ClientOptions, name: str, permission: str, cluster: str | None, broker: str | None) -> None:
    """Say what clients may do with a topic: read and write, only read (rw, r, w)."""

    def change(config: TopicConfig) -> None:
        config.perm = _PERMS[permission]

    _change(options, name, change, cluster, broker)


def _change(
    options: ClientOptions,
    name: str,
    change: Callable[[TopicConfig], None],
    cluster: str | None,
    broker: str | None,
) -> None:
    with options.admin() as admin:
        changed = admin.change_topic(name, change, cluster, broker=broker)
    texts = [
        f"{where} (write {config.write_queue_nums}, read {config.read_queue_nums}, {perm_text(config.perm)})"
        for where, config in changed.items()
    ]
    done(options.as_json, f"topic {name} is changed on: {', '.join(texts)}", topic=name, brokers=list(changed))


@topic.command("show")
@click.argument("name")
@client_options
def show_topic(options: ClientOptions, name: str) -> None:
    """Show a topic: settings on each broker, how much is in it, and who consumes it."""
    with options.admin() as admin:
        stored: dict[str, int] = {}
        for queue, ends in admin.topic_status(name).items():
            stored[queue.broker_name] = stored.get(queue.broker_name, 0) + ends.max_offset - ends.min_offset
        rows = []
        for broker in admin.brokers():
            config = admin.topic_config(broker.address, name) if broker.broker_id == MASTER else None
            if config is not None:
                attributes = ", ".join(f"{key}={value}" for key, value in sorted(config.attributes.items()))
                sizes = [config.write_queue_nums, config.read_queue_nums, perm_text(config.perm), config.order]
                rows.append([broker.name, *sizes, attributes or None, stored.get(broker.name, 0)])
        groups = []
        for group in admin.topic_groups(name):
            lag = sum(
                state.broker_offset - state.consumer_offset
                for queue, state in admin.group_progress(group, name).items()
                if queue.topic == name
            )
            members = admin.group_members(group)
            groups.append([group, len(members.connection_set) if members else 0, lag])
    columns = ["BROKER", "WRITE QUEUES", "READ QUEUES", "PERM", "ORDER", "ATTRIBUTES", "MESSAGES"]
    if options.as_json:
        print_json({"topic": name, "brokers": objects(columns, rows), "groups": objects(_GROUPS, groups)})
        return
    show(False, columns, rows)
    click.echo("")
    if groups:
        show(False, _GROUPS, groups)
    else:
        click.echo("no group consumes it")


_GROUPS = ["GROUP", "MEMBERS", "LAG"]


@topic.command()
@click.argument("name")
@client_options
def stats(options: ClientOptions, name: str) -> None:
    """Show how fast messages go in and out, as the brokers count: each second in the last minute, and in 24 hours."""
    totals: dict[tuple[str, str | None], list[float]] = {}
    with options.admin() as admin:
        groups = admin.topic_groups(name)
        wanted: list[tuple[str, str | None]] = [("TOPIC_PUT_NUMS", None)]
        wanted += [("GROUP_GET_NUMS", group) for group in groups]
        for broker in admin.topic_masters(name):
            for counter, group in wanted:
                found = admin.stats(broker, counter, f"{name}@{group}" if group else name) or {}
                total = totals.setdefault((counter, group), [0.0, 0])
                total[0] += found.get("statsMinute", {}).get("tps", 0.0)
                total[1] += found.get("statsDay", {}).get("sum", 0)
    rows = [
        ["out" if group else "in", group, round(tps, 2), int(count)] for (_, group), (tps, count) in totals.items()
    ]
    show(options.as_json, ["WAY", "GROUP", "TPS", "IN 24 H"], rows)


@topic.command()
@click.argument("name")
@_cluster
@yes_option
@client_options
def delete(options: ClientOptions, name: str, cluster: str | None, yes: bool) -> None:
    """Delete a topic and its messages."""
    with options.admin() as admin:
        admin.route(name)
        confirm(yes, f"Delete topic {name} and all its messages?")
        brokers = sorted({broker.name for broker in admin.delete_topic(name, cluster)})
    done(options.as_json, f"topic {name} is deleted on: {', '.join(brokers)}", topic=name, brokers=brokers)


@topic.command()
@click.argument("name")
@client_options
def route(options: ClientOptions, name: str) -> None:
    """Show which brokers have a topic."""
    with options.admin() as admin:
        found = admin.route(name)
    if options.as_json:
        print_json(
            {**found.to_json(), "brokerDatas": [_with_text_ids(data.to_json()) for data in found.broker_datas]}
        )
        return
    addresses = {data.broker_name: data for data in found.broker_datas}
    rows = []
    for queues in sorted(found.queue_datas, key=lambda data: data.broker_name):
        data = addresses.get(queues.broker_name)
        rows.append(
            [
                queues.broker_name,
                data.cluster if data else None,
                data.broker_addrs.get(MASTER) if data else None,
                queues.read_queue_nums,
                queues.write_queue_nums,
                perm_text(queues.perm),
            ]
        )
    show(False, ["BROKER", "CLUSTER", "MASTER", "READ QUEUES", "WRITE QUEUES", "PERM"], rows)


def perm_text(perm: int) -> str:
    """`rw`; `-` for none."""
    return "".join(letter for bit, letter in ((4, "r"), (2, "w"), (1, "i")) if perm & bit) or "-"


def _with_text_ids(data: dict[str, object]) -> dict[str, object]:
    ids = data["brokerAddrs"]
    assert isinstance(ids, dict)
    return {**data, "brokerAddrs": {str(broker_id): address for broker_id, address in sorted(ids.items())}}


@topic.command()
@click.argument("name")
@client_options
def status(options: ClientOptions, name: str) -> None:
    """Show how many messages each queue has had, and when the last came."""
    with options.admin() as admin:
        table = admin.topic_status(name)
    rows = [
        [
            queue.broker_name,
            queue.queue_id,
            ends.min_offset,
            ends.max_offset,
            ends.max_offset - ends.min_offset,
            time_text(ends.last_update_timestamp),
        ]
        for queue, ends in table.items()
    ]
    show(options.as_json, ["BROKER", "QUEUE", "MIN OFFSET", "MAX OFFSET", "MESSAGES", "LAST UPDATE"], rows)
    if not options.as_json:
        click.echo(
            f"{sum(ends.max_offset - ends.min_offset for ends in table.values())} messages in {len(rows)} queues"
        )
