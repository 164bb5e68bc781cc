"""`rocketq group`: list, create, delete, progress, members."""

from __future__ import annotations

import click

from rocketq.cli.group_offsets import reset_offset
from rocketq.cli.options import ClientOptions, client_options, confirm, yes_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.names import check_group, is_system_group
from rocketq.remoting.bodies import SubscriptionGroupConfig

_cluster = click.option("-c", "--cluster", help="On the brokers of this cluster only.")


@click.group(short_help="Consumer groups: list, create, delete, progress, members.")
def group() -> None:
    """Consumer groups of a cluster, ours or Apache's."""


group.add_command(reset_offset)


@group.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="The system's groups too.")
@_cluster
@client_options
def list_groups(options: ClientOptions, everything: bool, cluster: str | None) -> None:
    """List the groups and their settings."""
    with options.admin() as admin:
        groups = admin.groups(cluster)
    if not everything:
        groups = {name: config for name, config in groups.items() if not is_system_group(name)}
    show(
        options.as_json,
        ["GROUP", "ENABLED", "BROADCAST", "ORDERED", "MAX RETRIES", "RETRY QUEUES"],
        [
            [
                name,
                config.consume_enable,
                config.consume_broadcast_enable,
                config.consume_message_orderly,
                config.retry_max_times,
                config.retry_queue_nums,
            ]
            for name, config in groups.items()
        ],
    )


@group.command()
@click.argument("name")
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Deliveries after the first before a message goes to the dead-letter topic.",
)
@click.option(
    "--retry-queues", type=click.IntRange(min=0), default=1, show_default=True, help="Of its retry topic."
)
@click.option("--ordered", is_flag=True, help="Members consume queues in order.")
@click.option("--disabled", is_flag=True, help="Nobody may consume.")
@click.option("--no-broadcast", is_flag=True, help="Refuse broadcast consumers.")
@_cluster
@client_options
def create(
    options: ClientOptions,
    name: str,
    max_retries: int,
    retry_queues: int,
    ordered: bool,
    disabled: bool,
    no_broadcast: bool,
    cluster: str | None,
) -> None:
    """Create a group, or change one."""
    if problem := check_group(name):
        raise click.UsageError(problem)
    config = SubscriptionGroupConfig(
        group_name=name,
        consume_enable=not disabled,
        consume_broadcast_enable=not no_broadcast,
        consume_message_orderly=ordered,
        retry_max_times=max_retries,
        retry_queue_nums=retry_queues,
    )
    with options.admin() as admin:
        brokers = [broker.name for broker in admin.create_group(config, cluster)]
    done(options.as_json, f"group {name} is on: {', '.join(brokers)}", group=name, brokers=brokers)


@group.command()
@click.argument("name")
@click.option("--keep-offsets", is_flag=True, help="Remember how far it was.")
@yes_option
@_cluster
@client_options
def delete(options: ClientOptions, name: str, keep_offsets: bool, yes: bool, cluster: str | None) -> None:
    """Delete a group with its retry and dead-letter topics."""
    confirm(yes, f"Delete group {name} with its retry and dead-letter messages?")
    with options.admin() as admin:
        brokers = [broker.name for broker in admin.delete_group(name, cluster, offsets=not keep_offsets)]
    done(options.as_json, f"group {name} is deleted on: {', '.join(brokers)}", group=name, brokers=brokers)


@group.command()
@click.argument("name")
@click.option("-t", "--topic", help="Of this topic only.")
@_cluster
@client_options
def progress(options: ClientOptions, name: str, topic: str | None, cluster: str | None) -> None:
    """Show how far a group is in each queue, and how many messages wait for it (LAG)."""
    with options.admin() as admin:
        table = admin.group_progress(name, topic, cluster)
    rows = [
        [
            queue.topic,
            queue.broker_name,
            queue.queue_id,
            state.broker_offset,
            state.consumer_offset,
            state.broker_offset - state.consumer_offset,
            time_text(state.last_timestamp),
        ]
        for queue, state in table.items()
    ]
    columns = ["TOPIC", "BROKER", "QUEUE", "MAX OFFSET", "OFFSET", "LAG", "LAST CONSUMED"]
    if not options.as_json and not rows:
        click.echo(f"group {name} has not consumed anything yet")
        return
    show(options.as_json, columns, rows)
    if not options.as_json:
        click.echo(
            f"lag {sum(state.broker_offset - state.consumer_offset for state in table.values())} in {len(rows)} queues"
        )


@group.command()
@click.argument("name")
@_cluster
@client_options
def members(options: ClientOptions, name: str, cluster: str | None) -> None:
    """Show who is connected and what the group subscribes to."""
    with options.admin() as admin:
        found = admin.group_members(name, cluster)
    if options.as_json:
        print_json({"connectionSet": [], "subscriptionTable": {}} if found is None else found.to_json())
        return
    if found is None:
        click.echo(f"nobody of group {name} is connected")
        return
    show(
        False,
        ["CLIENT", "ADDRESS", "LANGUAGE", "VERSION"],
        [
            [member.client_id, member.client_addr, member.language, member.version]
            for member in sorted(found.connection_set, key=lambda member: member.client_id)
        ],
    )
    click.echo("")
    show(
        False,
        ["TOPIC", "EXPRESSION"],
        [[topic, data.sub_string] for topic, data in sorted(found.subscription_table.items())],
    )
    click.echo(f"{found.message_model}, {found.consume_type}, {found.consume_from_where}")
