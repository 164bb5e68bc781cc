"""Where targets that read files have them: in memory, laid out anew from bytes for every input."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from rocketq.broker import timer, timerfiles
from rocketq.store import timerwheel

_MEMORY = "/dev/shm"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory, which is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="rocketq-fuzz-", dir=_MEMORY if os.path.isdir(_MEMORY) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a directory by its path below it."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def lay_out(root: Path, files: dict[str, bytes]) -> None:
    """The opposite of `contents`."""
    for directory in {os.path.dirname(name) for name in files}:
        os.makedirs(root / directory, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)


@contextlib.contextmanager
def small_wheel(slots: int = 256) -> Iterator[None]:
    """A timer wheel of so many seconds instead of two weeks: its file has 38 MB else."""
    with contextlib.ExitStack() as patches:
        for module in (timerwheel, timer, timerfiles):
            patches.enter_context(mock.patch.object(module, "SLOTS", slots))
        yield
