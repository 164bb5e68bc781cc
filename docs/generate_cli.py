"""Writes docs/cli.md from the commands: `python docs/generate_cli.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from rocketq.cli.main import main

PAGE = Path(__file__).with_name("cli.md")

HEAD = """\
# Command line

Generated from the commands' help by `python docs/generate_cli.py`; do not edit.

`rocketq COMMAND --help` says the same. Servers (`server`, `namesrv`, `broker`) and `worker` run until they are
stopped; everything else asks a cluster, ours or Apache's, and ends.

## Options of every command that asks a cluster

{common}

Points in time are `now`, `2h ago`, `90m` (ago), `1d12h`, `today`, `yesterday 08:00`, `14:30`, `2031-05-01`,
`2031-05-01T12:00:00.5+02:00`, or ms since the epoch; without a zone they are local.

Text is for people and may change; `--json` is for programs: lists of objects with the columns' names as keys.
Errors are one line on stderr. What takes something away asks first, unless `--yes` is given.

Exit codes: 0 done (or stopped by SIGTERM or SIGINT), 1 failed, 2 wrong usage or configuration.

"""


def page() -> str:
    """The text of the page."""
    commands = list(_commands(main, ("rocketq",)))
    sample = next(command for path, command in commands if path == ("rocketq", "topic", "list"))
    common = {option.name for option in sample.params} - {"everything"}
    parts = [HEAD.format(common=_options([option for option in sample.params if option.name in common]))]
    for path, command in commands:
        parts.append(f"{'#' * min(len(path), 4)} {' '.join(path)}\n\n")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            arguments = [
                p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
            ]
            parts.append(f"    {' '.join([*path, '[OPTIONS]', *arguments])}\n\n")
        parts.append(_text(command))
        shared = common if _asks(command, common) else set()
        own = [p for p in command.params if isinstance(p, click.Option) and p.name not in shared and not p.hidden]
        if own:
            parts.append(f"\n{_options(own)}\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


def _asks(command: click.Command, common: set[str | None]) -> bool:
    return common <= {param.name for param in command.params}


def _text(command: click.Command) -> str:
    """The help; paragraphs that click is told not to wrap are code."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.split("\n")
        if lines[0] == "\b":
            paragraphs.append("\n".join(f"    {line.strip()}" for line in lines[1:]))
        else:
            paragraphs.append(_escaped(paragraph))
    return "\n\n".join(paragraphs) + "\n"


def _options(options: list[click.Parameter]) -> str:
    lines = ["| option | meaning |", "|---|---|"]
    for option in options:
        assert isinstance(option, click.Option)
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        meaning = _escaped(option.help or "")
        value = "" if option.is_flag or option.count else f" `{_metavar(option)}`"
        lines.append(f"| {names}{value} | {meaning}{_default(option)} |".replace("\n", " "))
    return "\n".join(lines)


def _metavar(option: click.Option) -> str:
    text = option.make_metavar(click.Context(click.Command("x")))
    return re.sub(r"(INTEGER|FLOAT)( RANGE)?", "NUMBER", text).replace("|", "\\|")


def _default(option: click.Option) -> str:
    parts = []
    if option.required:
        parts.append("required")
    if option.multiple and "repeat" not in (option.help or ""):
        parts.append("may be repeated")
    if option.show_default and option.default is not None and not option.is_flag:
        parts.append(f"default: `{option.default}`")
    if option.envvar and option.show_envvar:
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        parts.append("environment: " + ", ".join(f"`{name}`" for name in names))
    return f" ({'; '.join(parts)})" if parts else ""


def _escaped(text: str) -> str:
    return re.sub(r"([|*<])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
