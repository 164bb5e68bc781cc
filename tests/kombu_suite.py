"""Kombu's own integration tests, of the version that is installed.

They are in Kombu's source distribution only: it is downloaded once into ``$ROCKETQ_PEER_CACHE`` (default
``~/.cache/rocketq-peers``). Without a package index they are skipped, but not in CI.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest


def integration_tests() -> ModuleType:
    """Kombu's ``t/integration/common.py``; skips the calling test module where it cannot be had."""
    default = Path.home() / ".cache" / "rocketq-peers"
    cache = Path(os.environ.get("ROCKETQ_PEER_CACHE") or default)
    source = cache / f"kombu-{version('kombu')}" / "common.py"
    if not source.exists():
        reason = _download(source)
        if reason and os.environ.get("CI"):
            raise RuntimeError(reason)
        if reason:
            pytest.skip(reason, allow_module_level=True)
    spec = importlib.util.spec_from_file_location("kombu_integration_common", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _download(target: Path) -> str:
    """Why it failed; empty when it did not."""
    wanted = f"kombu=={version('kombu')}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", "kombu", "--no-deps", wanted]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        archives = list(Path(directory).glob("*.tar.gz"))
        if done.returncode or not archives:
            return f"the source distribution of {wanted} could not be downloaded: {done.stderr[-500:]}"
        with tarfile.open(archives[0]) as archive:
            name = next(one for one in archive.getnames() if one.endswith("/t/integration/common.py"))
            content = archive.extractfile(name)
            assert content is not None
            copy = Path(directory) / "common.py"
            copy.write_bytes(content.read())
        copy.replace(target)  # at once, other test processes do the same
    return ""
