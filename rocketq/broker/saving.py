"""Tables that live in memory and are kept in files. A thread writes them, so that the loop does not wait for a disk.

What was not yet written when the broker is killed is lost from the file, never from the log: topics that have messages
come back by themselves, groups are created again by their members, consumers repeat a little. Operators' changes are
written before they are answered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rocketq.errors import StoreError
from rocketq.store.configfile import save_json
from rocketq.store.files import Files

log = logging.getLogger("rocketq.broker")

#: After a save that took `t` seconds the next one of that table waits this many times `t`, so that thousands of
#: topics created in a row do not spend their time on rewriting the file.
PAUSE = 10

#: Builds the JSON value of a file; runs on a thread, so it works on copies. May raise StoreError.
Build = Callable[[], dict[str, Any]]


class Table(Protocol):
    """Something that is kept in one file."""

    @property
    def path(self) -> Path: ...

    def snapshot(self) -> Build | None:
        """What the file should hold, which counts as saved from now on; None when the file holds it already."""

    def unsaved(self) -> None:
        """The last snapshot could not be written: the next one is due."""


class Saver:
    """Writes tables: in threads, and on the caller's when the broker stops."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._number = 0
        self._written: dict[Path, int] = {}
        #: tables that threads are to write
        self._in_thread: Counter[Path] = Counter()
        self._waiting: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._due: dict[Path, float] = {}

    async def save_later(self, table: Table, every: float) -> None:
        """Write the table in a thread if it changed, but not more often than `every` seconds. Never raises StoreError:
        a disk that is full is logged, and tried again the next time.
        """
        begun = time.monotonic()
        if begun < self._due.get(table.path, 0.0):
            return
        build = table.snapshot()
        if build is None:
            return
        try:
            await self._write_in_thread(table, build)
        except StoreError as error:
            log.error("%s is behind what the broker has in memory: %s", table.path, error)
        ended = time.monotonic()
        self._due[table.path] = max(begun + every, ended + (ended - begun) * PAUSE)

    async def save_soon(self, table: Table) -> None:
        """Have the table in its file before something is answered; those who wait at the same time share one write.

        Raises StoreError.
        """
        async with self._waiting[table.path]:
            build = self._unwritten(table)
            if build is not None:
                await self._write_in_thread(table, build)

    def is_writing(self, table: Table) -> bool:
        """Whether a thread has a snapshot that it has not written yet."""
        return self._in_thread[table.path] > 0

    def _unwritten(self, table: Table) -> Build | None:
        """What the file is to hold, also when a thread is about to write that: it may fail, and would not tell us."""
        if self.is_writing(table):
            table.unsaved()
        return table.snapshot()

    async def _write_in_thread(self, table: Table, build: Build) -> None:
        self._number += 1
        self._in_thread[table.path] += 1
        try:
            await asyncio.to_thread(self._write, table.path, build, self._number)
        except StoreError:
            table.unsaved()
            raise
        finally:
            self._in_thread[table.path] -= 1

    def save(self, table: Table) -> None:
        """Write the table now, while nothing else is to go on. Raises StoreError."""
        build = self._unwritten(table)
        if build is None:
            return
        self._number += 1
        try:
            self._write(table.path, build, self._number)
        except StoreError:
            table.unsaved()
            raise

    def _write(self, path: Path, build: Build, number: int) -> None:
        with self._lock:
            if self._written.get(path, 0) > number:
                return  # a newer state was written while this one waited
            save_json(path, build(), self._files)
            self._written[path] = number
