"""`rocketq store`: check, repair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rocketq.cli.options import confirm, yes_option
from rocketq.cli.output import json_option, print_json, print_table
from rocketq.cli.server import settings_option
from rocketq.config import BrokerConfig, load, parse_settings
from rocketq.store.check import Problem, StoreCheck, mend
from rocketq.store.config import StoreConfig

_F = TypeVar("_F", bound=Callable[..., Any])
#: Lost messages of one stretch that are named.
_NAMED = 20
_MEANING = {
    "log": "messages are lost",
    "tail": "cut off by the next start",
    "derived": "made again from the CommitLog by repair",
    "timer": "made again from the CommitLog by repair",
    "small": "mended by the next start, or by hand",
}


def _of_a_store(function: _F) -> _F:
    for option in (
        json_option,
        settings_option,
        click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="Its broker.conf."),
        click.argument("directory", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


def _config(directory: Path, config_file: Path | None, settings: tuple[str, ...]) -> StoreConfig:
    overrides = {**parse_settings(BrokerConfig, settings), "store_path_root_dir": str(directory)}
    return load(BrokerConfig, config_file, overrides=overrides).store()


def _checked(config: StoreConfig) -> list[Problem]:
    with click.progressbar(length=100, label="reading", file=sys.stderr) as bar:
        return StoreCheck(config).run(lambda done, whole: bar.update(100 * done // max(whole, 1) - bar.pos))


def _lost(problem: Problem) -> str:
    named = [f"{topic} queue {queue} {number}" for topic, queue, number in problem.messages[:_NAMED]]
    more = len(problem.messages) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _show(problems: list[Problem]) -> None:
    rows = [
        [problem.file, problem.position, _MEANING[problem.kind], problem.text, _lost(problem)]
        for problem in problems
    ]
    print_table(["FILE", "BYTE", "MEANS", "WHAT", "LOST"], rows)


def _objects(problems: list[Problem]) -> list[dict[str, Any]]:
    return [
        {
            "kind": problem.kind,
            "file": problem.file,
            "byte": problem.position,
            "what": problem.text,
            "lost": [
                {"topic": topic, "queue": queue, "offset": number} for topic, queue, number in problem.messages
            ],
        }
        for problem in problems
    ]


@click.group(short_help="Check and repair the files of a broker that is stopped.")
def store() -> None:
    """The files of a broker that is stopped: look for damage, and mend it.

    DIRECTORY is the broker's storePathRootDir, of ours or Apache's; under the --data of rocketq server it is called
    broker-0. Settings that the files were made with (mappedFileSizeConsumeQueue, maxHashSlotNum, ...) come from
    the broker's --config, the environment and --set.
    """


@store.command()
@_of_a_store
def check(directory: Path, config_file: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Read everything, and say what is damaged. Nothing is changed.

    Every record of the CommitLog with its CRC; every entry of ConsumeQueues and index with the record that it
    names; the timer's log and wheel; checkpoint and tables. Exit code 1 when anything is wrong.
    """
    problems = _checked(_config(directory, config_file, settings))
    if as_json:
        print_json(_objects(problems))
    elif problems:
        _show(problems)
    else:
        click.echo(f"{directory}: nothing is wrong")
    if problems:
        sys.exit(1)


@store.command()
@yes_option
@_of_a_store
def repair(directory: Path, config_file: Path | None, settings: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Check, and mend what is damaged.

    What cannot be read is taken out of the CommitLog and kept in DIRECTORY/damaged; consumers pass over the messages
    that are lost with it, and get all others. ConsumeQueues and index are made again by the next start. Restore
    the files from a copy instead, if there is one.
    """
    config = _config(directory, config_file, settings)
    problems = _checked(config)
    if problems and not as_json:
        _show(problems)
    if any(problem.kind == "log" for problem in problems):
        confirm(yes, "Give up the messages that cannot be read?")
    done = mend(config, problems)
    if as_json:
        print_json({"problems": _objects(problems), "done": done})
    else:
        for line in done or ["nothing is to be mended"]:
            click.echo(line)
