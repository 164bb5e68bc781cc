"""`rocketq group`: list, show, create, set, delete, progress, members, clients, mode, reset-offset."""

from __future__ import annotations

import click

from rocketq.cli.group_mode import group_mode
from rocketq.cli.group_offsets import reset_offset
from rocketq.cli.options import ClientOptions, client_options, confirm, yes_option
from rocketq.cli.output import done, print_json, show, time_text
from rocketq.client.browse import Browser
from rocketq.client.redeliver import DeadLetters
from rocketq.errors import BrokerError, RemotingError
from rocketq.names import DLQ_PREFIX, check_group, is_system_group
from rocketq.remoting.bodies import SubscriptionGroupConfig

_cluster = click.option("-c", "--cluster", help="On the brokers of this cluster only.")


@click.group(short_help="Consumer groups: settings, progress, members, offsets.")
def group() -> None:
    """Consumer groups of a cluster, ours or Apache's."""


group.add_command(reset_offset)
group.add_command(group_mode)


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


@group.command("set")
@click.argument("name")
@click.option(
    "--max-retries", type=click.IntRange(min=0), help="Deliveries after the first before the dead letter."
)
@click.option("--retry-queues", type=click.IntRange(min=0), help="Of its retry topic.")
@click.option("--ordered/--unordered", default=None, help="Whether members consume queues in order.")
@click.option("--enabled/--disabled", default=None, help="Whether it may consume.")
@click.option("--broadcast/--no-broadcast", default=None, help="Whether broadcast consumers may join.")
@_cluster
@client_options
def set_group(
    options: ClientOptions,
    name: str,
    max_retries: int | None,
    retry_queues: int | None,
    ordered: bool | None,
    enabled: bool | None,
    broadcast: bool | None,
    cluster: str | None,
) -> None:
    """Change settings of a group; what is not named stays as it is."""
    wanted = {
        "retry_max_times": max_retries,
        "retry_queue_nums": retry_queues,
        "consume_message_orderly": ordered,
        "consume_enable": enabled,
        "consume_broadcast_enable": broadcast,
    }
    wanted = {field: value for field, value in wanted.items() if value is not None}
    if not wanted:
        raise click.UsageError("nothing to change: name at least one setting (--help lists them)")

    def change(config: SubscriptionGroupConfig) -> None:
        for field, value in wanted.items():
            setattr(config, field, value)

    with options.admin() as admin:
        brokers = list(admin.change_group(name, change, cluster))
    done(options.as_json, f"group {name} is changed on: {', '.join(brokers)}", group=name, brokers=brokers)


@group.command("show")
@click.argument("name")
@_cluster
@client_options
def show_group(options: ClientOptions, name: str, cluster: str | None) -> None:
    """Show a group: settings, members, where it is in its topics, dead letters."""
    with options.admin() as admin:
        config = admin.group(name)
        online = admin.group_members(name, cluster)
        lags: dict[str, int] = {}
        for queue, state in admin.group_progress(name, None, cluster).items():
            lags[queue.topic] = lags.get(queue.topic, 0) + state.broker_offset - state.consumer_offset
        letters = DLQ_PREFIX + name
        dead = DeadLetters(Browser(admin), name).waiting if letters in admin.topics() else 0
    facts = {
        "group": name,
        "enabled": config.consume_enable,
        "broadcast": config.consume_broadcast_enable,
        "ordered": config.consume_message_orderly,
        "max_retries": config.retry_max_times,
        "retry_queues": config.retry_queue_nums,
        "members": len(online.connection_set) if online else 0,
        "model": online.message_model if online else None,
        "lag": lags,
        "open_dead_letters": dead,
    }
    if options.as_json:
        print_json(facts)
        return
    del facts["lag"]
    show(False, ["SETTING", "VALUE"], [[key.replace("_", " "), _word(value)] for key, value in facts.items()])
    click.echo("")
    show(False, ["TOPIC", "LAG"], [[topic, lag] for topic, lag in lags.items()])


def _word(value: object) -> object:
    """Texts only, so that the column is aligned to the left."""
    return value if value is None or isinstance(value, (bool, str)) else str(value)


@group.command()
@click.argument("name")
@_cluster
@client_options
def clients(options: ClientOptions, name: str, cluster: str | None) -> None:
    """Show what each connected member does: its queues, what it has fetched, and how fast it is."""
    rows = []
    with options.admin() as admin:
        admin.group(name)
        found = admin.group_members(name, cluster)
        for member in sorted(found.connection_set, key=lambda one: one.client_id) if found else []:
            row: list[object] = [member.client_id, member.client_addr, member.language]
            try:
                info = admin.running_info(name, member.client_id, cluster)
            except (BrokerError, RemotingError) as error:
                rows.append([*row, None, None, None, None, str(error)])
                continue
            queues = {**info.mq_table, **info.mq_pop_table}
            ok, failed = (
                round(sum(float(state.get(rate) or 0) for state in info.status_table.values()), 2)
                for rate in ("consumeOKTPS", "consumeFailedTPS")
            )
            cached = sum(int(state.get("cachedMsgCount") or 0) for state in info.mq_table.values())
            rows.append([*row, len(queues), cached, ok, failed, None])
    if not rows and not options.as_json:
        click.echo(f"nobody of group {name} is connected")
        return
    columns = ["CLIENT", "ADDRESS", "LANGUAGE", "QUEUES", "FETCHED", "OK TPS", "FAILED TPS", "PROBLEM"]
    if not options.as_json and not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    show(options.as_json, columns, rows)


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
