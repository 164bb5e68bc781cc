"""JSON files that keep tables (`config/*.json`): replaced atomically, with the last but one state beside (`.bak`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from rocketq.errors import StoreError
from rocketq.javajson import dumps, loads
from rocketq.store.files import Files, make_durable_dirs, read_file, store_error, write_file

T = TypeVar("T")

log = logging.getLogger("rocketq.store")


def save_json(path: str | os.PathLike[str], value: Any, files: Files) -> None:
    """Replace the file by `value` in fastjson's pretty form; when this returns it is on disk.

    The former content is kept as `<path>.bak`. Raises StoreError (StoreFull); the old file is in place then, or
    readable through its `.bak`.
    """
    name = os.fspath(path)
    directory = os.path.dirname(name) or "."
    temporary = name + ".tmp"
    data = dumps(value, pretty=True)
    try:
        make_durable_dirs(files, directory)
        write_file(files, temporary, data)
        if files.exists(name):
            files.rename(name, name + ".bak")
        files.rename(temporary, name)
        files.fsync_dir(directory)
    except OSError as error:
        raise store_error(f"cannot save {name}", error) from error


def load_json(path: str | os.PathLike[str], files: Files) -> Any:
    """The value that :func:`save_json` (or Apache's broker) left; None when there is neither file nor `.bak`.

    A file that is missing, empty or not JSON is replaced by its `.bak`, with a warning. Raises StoreError when
    no readable one is left although there was one.
    """
    name = os.fspath(path)
    problems = []
    for candidate in (name, name + ".bak"):
        try:
            data = read_file(files, candidate)
        except OSError as error:
            raise store_error(f"cannot read {candidate}", error) from error
        if data is None:
            continue
        try:
            if not data:
                raise ValueError("it is empty")
            value = loads(data)
        except ValueError as error:
            problems.append(f"{candidate}: {error}")
            continue
        if candidate != name:
            log.warning(
                "%s is used instead of %s (%s)", candidate, name, "; ".join(problems) or "which is missing"
            )
        return value
    if problems:
        raise StoreError(f"{'; '.join(problems)}. Repair or remove the file")
    return None


def load_table(path: str | os.PathLike[str], files: Files, take: Callable[[dict[str, Any]], T]) -> T | None:
    """What `take` makes of the table that :func:`load_json` finds; None, and no call, when there is none.

    Raises StoreError also when it is no table, or `take` cannot use it.
    """
    value = load_json(path, files)
    if value is None:
        return None
    try:
        if not isinstance(value, dict):
            raise ValueError("it is no table")
        return take(value)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        why = f"it holds what cannot be used ({type(error).__name__}: {error})"
        raise StoreError(f"{os.fspath(path)}: {why}. Repair or remove the file") from error
