"""`rocketq server`, `rocketq namesrv`, `rocketq broker`: the daemons."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rocketq.cli.lazy import LazyGroup
from rocketq.cli.output import print_json
from rocketq.config import BrokerConfig, Config, NamesrvConfig, load, parse_settings
from rocketq.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])
#: distance of the ports of several brokers: each may use the one above and the one two below
_PORT_STEP = 10


#: subcommand of `rocketq broker`: its place
BROKER_COMMANDS = {
    "list": "rocketq.cli.broker_admin:list_brokers",
    "status": "rocketq.cli.broker_admin:status",
    "config": "rocketq.cli.broker_admin:broker_config",
    "clean": "rocketq.cli.broker_admin:clean",
    "ha-status": "rocketq.cli.broker_admin:ha_status",
    "wipe-write": "rocketq.cli.broker_admin:wipe_write",
    "add-write": "rocketq.cli.broker_admin:add_write",
}


settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, over the file's; repeatable."
)


def _daemon_options(function: _F) -> _F:
    for option in (
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="warning",
            show_default=True,
            help="How much is logged, to stderr.",
        ),
        settings_option,
        click.option("-p", "--print-config", is_flag=True, help="Print the settings and exit."),
        click.option("--json", "as_json", is_flag=True, help="Print the ready line, or the settings, as JSON."),
    ):
        function = option(function)
    return function


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _given(**options: Any) -> dict[str, Any]:
    """The options that were stated on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _print(config: Config, as_json: bool) -> None:
    settings = config.as_properties()
    if as_json:
        print_json(settings)
        return
    for key, value in settings.items():
        click.echo(f"{key}={value}")


@click.command(short_help="Run a NameServer and a broker.")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.  [default: rocketq-data]")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option(
    "--namesrv-port", type=click.IntRange(0, 65535), default=9876, show_default=True, help="0: a free one."
)
@click.option("--broker-port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 10911]")
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="A broker.conf.")
@click.option(
    "--brokers", type=click.IntRange(1, 64), default=1, show_default=True, help="Broker processes, one a core."
)
@_daemon_options
def server(
    data: Path | None,
    host: str | None,
    namesrv_port: int,
    broker_port: int | None,
    config_file: Path | None,
    brokers: int,
    settings: tuple[str, ...],
    print_config: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Run a NameServer and a broker in one process, everything they keep under one directory.

    When they serve, one line is printed:

    \b
    rocketq server ready namesrv=127.0.0.1:9876 broker=127.0.0.1:10911 pid=1234

    The broker's settings come from --config, the environment and --set, and how it listens (address, TLS) holds for
    the NameServer as well; the broker registers with this NameServer only. With --brokers N, N broker processes
    run under this one, named broker-0, broker-1, ..., on ports that are 10 apart, each with a data directory of
    its own; one that dies is started again.

    SIGTERM and SIGINT stop everything gracefully. Exit codes: 0 stopped, 1 could not start (port taken, data
    directory in use, ...), 2 wrong usage or configuration.
    """
    _log_to_stderr(log_level)
    from rocketq import server as daemons

    overrides = parse_settings(BrokerConfig, settings)
    overrides.update(_given(bind_address=host, listen_port=broker_port, namesrv_addr=""))
    directory = data or Path("rocketq-data")
    store = str(directory / "broker-0")
    if data is not None:
        overrides["store_path_root_dir"] = store
    config = load(
        BrokerConfig,
        config_file,
        defaults={"bind_address": "127.0.0.1", "broker_name": "broker-0", "store_path_root_dir": store},
        overrides=overrides,
    )
    if data is None and config.store_path_root_dir != store:
        directory = Path(config.store_path_root_dir)
    # how it listens is said once for both
    shared = {option.name: getattr(config, option.name) for option in Config.options()}
    secure = config.tls() is not None
    config.tls_enable = secure and (config.tls_enable or config.tls_server_mode == "enforcing")
    namesrv_config = load(
        NamesrvConfig,
        overrides={
            **shared,
            "listen_port": namesrv_port,
            "kv_config_path": str(directory / "namesrv" / "kvConfig.json"),
        },
    )
    if print_config:
        _print(config, as_json)
        return
    if brokers == 1:
        daemons.run_server(namesrv_config, config, as_json=as_json)
        return
    base = "broker" if config.broker_name == "broker-0" else config.broker_name
    names = [f"{base}-{index}" for index in range(brokers)]
    if config.store_path_commit_log is not None:
        raise ConfigError("storePathCommitLog is one directory, several brokers cannot share it: use --data alone")
    first = config.listen_port
    highest = first + _PORT_STEP * (brokers - 1)
    if highest > 65535:
        raise ConfigError(f"{brokers} brokers from port {first} on need ports up to {highest}")

    def command(index: int, port: int, namesrv_addr: str) -> list[str]:
        line = [sys.executable, "-m", "rocketq", "broker", "--supervised", "--log-level", log_level]
        if config_file is not None:
            line += ["--config", str(config_file)]
        for setting in settings:
            line += ["--set", setting]
        line += ["--set", f"tls.enable={config.text(config.tls_enable)}"]
        line += ["--namesrv", namesrv_addr, "--host", config.bind_address, "--port", str(port)]
        return [*line, "--name", names[index], "--data", str(directory / names[index])]

    ports = [first + _PORT_STEP * index if first else 0 for index in range(brokers)]
    daemons.run_server_processes(namesrv_config, names, command, ports, as_json=as_json)


@click.command(short_help="Run a NameServer.")
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="A namesrv.conf.")
@click.option("--host", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 9876]")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of kvConfig.json.  [default: ~/namesrv]")
@_daemon_options
def namesrv(
    config_file: Path | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    settings: tuple[str, ...],
    print_config: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Run a NameServer: brokers register with it, clients learn from it where topics are.

    Run two or more on different machines: they are independent, brokers register with all of them. When it
    serves, it prints `rocketq namesrv ready namesrv=127.0.0.1:9876 pid=1234`. Exit codes as `rocketq server`.
    """
    _log_to_stderr(log_level)
    from rocketq import server as daemons

    overrides = parse_settings(NamesrvConfig, settings)
    overrides.update(_given(bind_address=host, listen_port=port))
    if data is not None:
        overrides["kv_config_path"] = str(data / "kvConfig.json")
    config = load(NamesrvConfig, config_file, overrides=overrides)
    if print_config:
        _print(config, as_json)
        return
    daemons.run_namesrv(config, as_json=as_json)


@click.group(
    cls=LazyGroup,
    places=BROKER_COMMANDS,
    invoke_without_command=True,
    short_help="Run a broker, or look after running ones.",
)
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="A broker.conf.")
@click.option(
    "-n", "--namesrv", "namesrv_addr", metavar="HOST:PORT[;HOST:PORT]", help="NameServers to register with."
)
@click.option("--name", help="Broker name.  [default: the host's name]")
@click.option("--host", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 10911]")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.  [default: ~/store]")
@click.option("--supervised", is_flag=True, hidden=True, help="Stop when stdin closes.")
@_daemon_options
@click.pass_context
def broker(
    context: click.Context,
    config_file: Path | None,
    namesrv_addr: str | None,
    name: str | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    supervised: bool,
    settings: tuple[str, ...],
    print_config: bool,
    as_json: bool,
    log_level: str,
) -> None:
    """Run a broker: it stores messages and hands them out. An Apache broker.conf works as --config.

    When it serves, it prints `rocketq broker ready broker=10.0.0.5:10911 pid=1234`. A NameServer that is down does
    not stop it. Exit codes as `rocketq server`. The commands are about brokers that run.
    """
    if context.invoked_subcommand is not None:
        given = [
            name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(
                f"give options behind the command: rocketq broker {context.invoked_subcommand} …"
            )
        return
    _log_to_stderr(log_level)
    from rocketq import server as daemons

    overrides = parse_settings(BrokerConfig, settings)
    overrides.update(_given(namesrv_addr=namesrv_addr, broker_name=name, bind_address=host, listen_port=port))
    if data is not None:
        overrides["store_path_root_dir"] = str(data)
    config = load(BrokerConfig, config_file, overrides=overrides)
    if print_config:
        _print(config, as_json)
        return
    daemons.run_broker(config, supervised=supervised, as_json=as_json)
