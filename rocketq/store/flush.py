"""The flusher: one thread that forces the CommitLog to disk, so that nobody else has to wait for a disk.

With SYNC_FLUSH it works as long as something is unflushed: all that was written meanwhile is one group, forced by one
fdatasync. With ASYNC_FLUSH it looks once an interval: a thread that each write wakes would ask for the GIL while the
writer goes on to answer. fdatasync releases the GIL.

When fdatasync fails the kernel may have dropped the data although it marks the pages clean: trying again would succeed
and lie. So the flusher stops for good, and the store refuses writes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from rocketq.store.commitlog import CommitLog

log = logging.getLogger("rocketq.store")


class Flusher:
    """`written` is set by the owner, `durable` here; both are ends of whole batches. `failure`: why it stopped.

    `interval`: seconds, in which only `stop` wakes the thread; 0 is SYNC_FLUSH. `on_durable(offset)` is called whenever
    `durable` moved, on the thread that moved it.
    """

    def __init__(self, commit_log: CommitLog, interval: float) -> None:
        self._log = commit_log
        self._interval = interval
        self.written = 0
        self.durable = 0
        self.failure = ""
        self.on_durable: Callable[[int], None] | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, offset: int) -> None:
        """Begin; everything before `offset` is on disk."""
        self.written = self.durable = offset
        self._thread = threading.Thread(target=self._run, name="rocketq-flush", daemon=True)
        self._thread.start()

    def advance(self, written: int) -> None:
        """The log was written up to here."""
        self.written = written
        if not self._interval and not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Force everything that is written to disk, from any thread. Look at `failure` afterwards."""
        with self._busy:
            target, durable = self.written, self.durable
            if target <= durable or self.failure:
                return
            try:
                self._log.sync(durable, target)
            except OSError as error:
                self.failure = (
                    f"the CommitLog in {self._log.directory} could not be forced to disk ({error}); what was not "
                    f"acknowledged since offset {durable} may be lost: check the disk and restart"
                )
                log.error("%s", self.failure)
                return
            self.durable = target
        on_durable = self.on_durable
        if on_durable is not None:
            on_durable(target)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._interval or None)
            self._wake.clear()
            self.flush()

    def stop(self) -> None:
        """Flush a last time and end the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()
