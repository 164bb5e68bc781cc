"""`rocketq topic`: list, create, delete, route, status."""

from __future__ import annotations

import click

from rocketq.cli.options import ClientOptions, client_options, confirm, yes_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.client.admin import MASTER
from rocketq.names import check_topic
from rocketq.remoting.bodies import TopicConfig


@click.group(short_help="Topics: list, create, delete, route, status.")
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
    type=click.Choice(["rw", "r", "w"]),
    default="rw",
    show_default=True,
    help="What clients may do: read, write.",
)
@click.option("--order", is_flag=True, help="A topic whose queues keep their order when a broker is away.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="As message.type=FIFO; repeatable."
)
@click.option("-c", "--cluster", help="On the brokers of this cluster only.")
@click.option("-b", "--broker", help="On this broker only.")
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
        perm={"rw": 6, "r": 4, "w": 2}[perm],
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
@click.option("-c", "--cluster", help="On the brokers of this cluster only.")
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
        perm = "".join(letter for bit, letter in ((4, "r"), (2, "w"), (1, "i")) if queues.perm & bit)
        rows.append(
            [
                queues.broker_name,
                data.cluster if data else None,
                data.broker_addrs.get(MASTER) if data else None,
                queues.read_queue_nums,
                queues.write_queue_nums,
                perm or "-",
            ]
        )
    show(False, ["BROKER", "CLUSTER", "MASTER", "READ QUEUES", "WRITE QUEUES", "PERM"], rows)


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
