"""`rocketq worker`: run the consumers of an application."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import click
import msgspec

import rocketq
from rocketq import signals
from rocketq.cli.output import json_option
from rocketq.embedded import EmbeddedServer, end_with_parent
from rocketq.errors import ConfigError, RocketQError
from rocketq.worker import Worker, leave, load_app, run
from rocketq.worker.exits import CRASHED, USAGE
from rocketq.worker.supervisor import SourceWatcher, Supervisor

EXITS = """
\b
Exit codes:
  0    stopped by SIGTERM or SIGINT, everything in flight was finished
  1    something broke; the log has the traceback
  2    wrong options, or the application cannot be loaded
  3    stopped, but some functions did not finish within --shutdown-timeout;
       their messages will be delivered again
  130, 143   a second SIGINT or SIGTERM: ended at once
"""


@click.command(epilog=EXITS)
@click.option(
    "-A", "--app", "target", required=True, help="The application: module:attribute, module, or file.py."
)
@click.option(
    "-n", "--namesrv", metavar="HOST:PORT[;…]", help="NameServers, instead of the application's own setting."
)
@click.option("-g", "--group", "groups", multiple=True, help="Run only this consumer group; may be repeated.")
@click.option("--concurrency", type=click.IntRange(1), default=20, show_default=True,
              help="Functions running at once, for each consumer that does not say itself.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True,
              help="Worker processes; each is a member of every group.")  # fmt: skip
@click.option("--shutdown-timeout", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
              help="How long functions may still run when the worker is told to stop.")  # fmt: skip
@click.option("--create-topics", is_flag=True, help="Create topics that do not exist yet.  [--embedded: always]")
@click.option("--reload", is_flag=True, help="Restart when a .py file below the current directory changes.")
@click.option("--embedded", is_flag=True, help="Start a server for this worker and use it.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path),
              help="Data directory of the embedded server.  [default: a temporary one]")  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
              show_default=True, help="How much is logged, to stderr.")  # fmt: skip
@json_option
@click.option("--supervised", type=int, hidden=True)
def worker(
    target: str,
    namesrv: str | None,
    groups: tuple[str, ...],
    concurrency: int,
    processes: int,
    shutdown_timeout: float,
    create_topics: bool,
    reload: bool,
    embedded: bool,
    data: Path | None,
    log_level: str,
    as_json: bool,
    supervised: int | None,
) -> None:
    """Run the consumer functions of an application.

    \b
      rocketq worker -A shop:app
      rocketq worker -A shop:app --embedded --reload     # develop without a server
      rocketq worker -A shop:app --processes 4

    Sync functions run in threads, async ones in the event loop. SIGTERM or Ctrl-C stops it: nothing new is taken,
    what is in flight is finished or handed back, and the position in every queue is stored.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if data is not None and not embedded:
        raise click.UsageError("--data is the embedded server's directory: it needs --embedded")
    if embedded and namesrv:
        raise click.UsageError("--embedded and --namesrv exclude each other")
    with contextlib.ExitStack() as stack:
        if embedded:
            try:
                namesrv = stack.enter_context(EmbeddedServer(data)).namesrv
            except RocketQError as error:
                click.echo(f"Error: {error}", err=True)
                stack.close()
                sys.exit(CRASHED)
            where = "a temporary directory" if data is None else str(data)
            if not as_json:
                click.echo(f"embedded server: namesrv={namesrv}, data in {where}")
        if namesrv:
            os.environ["ROCKETQ_NAMESRV"] = namesrv
        if supervised is None and (processes > 1 or reload):
            command = [sys.executable, "-m", "rocketq", "worker", "-A", target, "--log-level", log_level,
                       "--concurrency", str(concurrency), "--shutdown-timeout", str(shutdown_timeout)]  # fmt: skip
            for group in groups:
                command += ["--group", group]
            if create_topics or embedded:
                command.append("--create-topics")
            if as_json:
                command.append("--json")
            if namesrv:
                command += ["--namesrv", namesrv]
            watcher = SourceWatcher(Path.cwd()) if reload else None
            supervisor = Supervisor(
                [*command, "--supervised"], processes, shutdown_timeout=shutdown_timeout, watcher=watcher
            )
            code = supervisor.run()
        else:
            if supervised is not None:
                threading.Thread(target=end_with_parent, daemon=True).start()
            options = {
                "groups": groups,
                "concurrency": concurrency,
                "shutdown_timeout": shutdown_timeout,
                "create_topics": create_topics or embedded,
                "member": supervised or 0,
            }
            code = run_here(target, namesrv, options, as_json)
    leave(code)


def run_here(target: str, namesrv: str | None, options: dict[str, Any], as_json: bool) -> int:
    """Load the application and run its worker in this process; returns the exit code."""
    try:
        app = load_app(target)
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        return USAGE
    except Exception:  # noqa: BLE001 the module's own mistake: its traceback is what the user needs
        traceback.print_exc()
        click.echo(f"Error: {target} cannot be imported, see above", err=True)
        return USAGE
    if namesrv:
        app.namesrv = namesrv

    def make() -> Worker:
        made = Worker(app, **options)
        if made.member == 0 and not as_json:
            click.echo(describe(made))
        return made

    def ready(_: object, *, worker: Worker) -> None:
        if as_json:
            click.echo(msgspec.json.encode(as_value(worker)))
        else:
            click.echo(f"rocketq worker ready app={app.name} consumers={len(worker.consumers)} pid={os.getpid()}")

    signals.worker_ready.connect(ready, sender=app)
    try:
        return run(make)
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        return USAGE
    except RocketQError as error:
        click.echo(f"Error: {error}", err=True)
        return CRASHED
    except Exception:  # the last boundary of the process
        logging.getLogger("rocketq.worker").exception("the worker ends")
        return CRASHED


def as_value(worker: Worker) -> dict[str, Any]:
    """Banner and ready line for programs."""
    consumers = [
        {
            "topic": consumer.topic,
            "tag": consumer.tag,
            "sql": consumer.sql,
            "group": consumer.group,
            "function": consumer.name,
            "async": consumer.is_async,
            "ordered": consumer.ordered,
            "broadcast": consumer.broadcast,
            "schedule": consumer.schedule.text if consumer.schedule is not None else None,
            "concurrency": consumer.concurrency or worker.concurrency,
        }
        for consumer in worker.consumers
    ]
    app = worker.app
    return {"ready": "worker", "app": app.name, "namesrv": app.namesrv, "pid": os.getpid(), "consumers": consumers}


def describe(worker: Worker) -> str:
    """The banner: what is consumed from where."""
    lines = [f"rocketq {rocketq.__version__} worker: application {worker.app.name} on {worker.app.namesrv}"]
    rows = []
    for consumer in worker.consumers:
        size = consumer.concurrency or worker.concurrency
        how = [f"{size} {'coroutines' if consumer.is_async else 'threads'}"]
        how += ["ordered"] * consumer.ordered + ["broadcast"] * consumer.broadcast
        wanted = f"tag {consumer.tag}" if consumer.sql is None else f"sql {consumer.sql}"
        if consumer.schedule is not None:
            wanted = consumer.schedule.text
        rows.append((consumer.topic, wanted, consumer.name, consumer.group, ", ".join(how)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for topic, wanted, name, group, how_text in rows:
        lines.append(
            f"  {topic:<{widths[0]}}  {wanted:<{widths[1]}}  -> {name:<{widths[2]}}  "
            f"group {group:<{widths[3]}}  ({how_text})"
        )
    lines.append("  Ctrl-C stops it")
    return "\n".join(lines)
