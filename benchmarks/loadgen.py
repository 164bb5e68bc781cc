"""Compiles load/load.c once per version of its text, and runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "load" / "load.c"


def compiler() -> str | None:
    """The C compiler of this machine, if it has one."""
    return shutil.which(os.environ.get("CC", "cc"))


def build() -> Path:
    """The compiled generator, from the cache when its source did not change."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("the load generator needs a C compiler: install gcc or clang, or set CC")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rocketq-benchmarks"
    binary = cache / f"load-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half_done = binary.with_suffix(f".{os.getpid()}")
        subprocess.run([cc, "-O2", "-o", str(half_done), str(SOURCE)], check=True)
        half_done.rename(binary)
    return binary


def load(mode: str, port: int, **options: object) -> dict[str, Any]:
    """Runs the generator (`send`, `pull`, `pop` or `e2e`) against 127.0.0.1:port and returns what it measured."""
    command = [str(build()), mode, "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip() or done.stdout.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["errors"] and not result["messages"]:  # a full disk, mostly: Apache's broker stops at 90 %
        raise RuntimeError(f"{' '.join(command[1:])}: every message was refused: {done.stderr.strip()}")
    return result
