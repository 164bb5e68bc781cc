"""Finds the application that `-A` names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rocketq import app as apps
from rocketq.app import RocketQ
from rocketq.errors import ConfigError


def load_app(target: str) -> RocketQ:
    """The application at `target`: `package.module:attribute`, `package.module`, or `path/to/file.py[:attribute]`.

    The current directory comes first on the import path. Without an attribute: `app`, else the module's only RocketQ;
    a module that has none but uses the module-level `@consumer` gets one, named after the module. Raises ConfigError;
    an exception inside the module comes out as it is.
    """
    name, _, attribute = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, RocketQ):
            raise ConfigError(f"{name} has no RocketQ application called {attribute!r}")
        return found
    if isinstance(getattr(module, "app", None), RocketQ):
        return module.app  # type: ignore[no-any-return]
    candidates = {id(value): value for value in vars(module).values() if isinstance(value, RocketQ)}
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise ConfigError(f"{name} has {len(candidates)} RocketQ applications: say which one, {name}:<name>")
    if apps.has_shared_consumers():
        return RocketQ(module.__name__.replace(".", "-"))
    raise ConfigError(f"{name} has neither a RocketQ application nor a function with @consumer")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only when the module itself is missing: one that it imports is the module's own error.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(f"there is no module {name!r} here ({Path.cwd()}) or on the import path") from None
        raise


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))
    return _import_module(path.stem)
