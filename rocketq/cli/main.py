"""The `rocketq` command. A subcommand's module is imported when it is used."""

from __future__ import annotations

from typing import Any

import click

from rocketq.cli.lazy import LazyGroup
from rocketq.errors import ConfigError, RocketQError

#: subcommand: module and attribute of its click command
COMMANDS = {
    "server": "rocketq.cli.server:server",
    "namesrv": "rocketq.cli.server:namesrv",
    "broker": "rocketq.cli.server:broker",
    "worker": "rocketq.cli.worker:worker",
    "send": "rocketq.cli.send:send",
    "tail": "rocketq.cli.tail:tail",
    "top": "rocketq.cli.top:top",
    "message": "rocketq.cli.message:message",
    "dlq": "rocketq.cli.dlq:dlq",
    "replay": "rocketq.cli.replay:replay",
    "topic": "rocketq.cli.topic:topic",
    "group": "rocketq.cli.group:group",
    "producer": "rocketq.cli.producer:producer",
    "cluster": "rocketq.cli.cluster:cluster",
    "store": "rocketq.cli.store:store",
}


class WrongConfig(click.ClickException):
    """A ConfigError as one line, with the exit code of wrong usage."""

    exit_code = 2


class Main(LazyGroup):
    """Turns errors of rocketq into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise WrongConfig(str(error)) from error
        except RocketQError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=Main, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="rocketq", prog_name="rocketq")
def main() -> None:
    """RocketMQ for Python: servers, workers and tools on Apache RocketMQ's wire protocol.

    \b
    rocketq server                          a NameServer and a broker on this machine
    rocketq topic create Orders --queues 8  a topic
    rocketq send Orders "hello"             a message
    rocketq tail Orders                     watch what arrives

    Exit codes: 0 done (or stopped by SIGTERM or SIGINT), 1 failed, 2 wrong usage or configuration.
    """
