"""Retention: oldest CommitLog files go, and what is derived from them follows.

A round every `cleanResourceInterval` decides whether files may go at all (`CleanCommitLogService`):

=====================================================  ====================================================
in an hour of `deleteWhen`, on request, or when the    files that are expired: all in them is older than
disk is past `diskMaxUsedSpaceRatio`                   `fileReservedTime`
when the disk is past `diskSpaceCleanForciblyRatio`    the oldest files, expired or not, unless
                                                       `cleanFileForciblyEnable` is false
=====================================================  ====================================================

At most ten files go in a round, oldest first, never the one that is written to, and none that a recovery from the
last saved checkpoint would look at. ConsumeQueue files follow, whose last entry is of a record that is gone, and index
files; the newest file of each stays, because it says where its queue goes on. What a reader holds of a file stays
readable until it lets go.

Deciding is done on the owner's thread. The files' names are removed on the store's second thread, as freeing a GiB
takes the file system a while; those of the CommitLog strictly oldest first, so that a crash leaves no hole.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress

from rocketq.store.commitlog import CommitLog
from rocketq.store.config import StoreConfig
from rocketq.store.consumequeue import ConsumeQueues
from rocketq.store.files import Files
from rocketq.store.index import Index

log = logging.getLogger("rocketq.store")

#: CommitLog files that one round takes (`deleteFileBatchMax`).
_FILES_PER_ROUND = 10
#: Rounds that look for expired files after a request (`MAX_MANUAL_DELETE_FILE_TIMES`).
_ROUNDS_ON_REQUEST = 20
#: ConsumeQueues that one call of `step` looks at.
_QUEUES_PER_STEP = 100
_HOUR = 3_600_000


class Retention:
    """Decides what goes. `config` may be replaced at any time.

    `store_time(offset)`: when the record at an offset of the log was stored (ms), None when there is none.
    """

    def __init__(
        self,
        config: StoreConfig,
        commit_log: CommitLog,
        queues: ConsumeQueues,
        index: Index,
        files: Files,
        store_time: Callable[[int], int | None],
        clock_ms: Callable[[], int],
    ) -> None:
        self.config = config
        self._log = commit_log
        self._queues = queues
        self._index = index
        self._files = files
        self._store_time = store_time
        self._clock_ms = clock_ms
        self._next_round = 0.0
        self._requested = 0
        self._doomed: deque[str] = deque()  # CommitLog files that are to be removed, oldest first
        self._removing: Future[None] | None = None
        self._walk: deque[tuple[str, int]] = deque()  # queues that have to be looked at
        self._cleaned_for = -1  # where the log began when the last walk started

    def request(self) -> None:
        """Let the next rounds remove expired files at any hour (DELETE_EXPIRED_COMMITLOG)."""
        self._requested = _ROUNDS_ON_REQUEST
        self._next_round = 0.0

    def request_queues(self) -> None:
        """Look for ConsumeQueue and index files that nothing needs any more (CLEAN_EXPIRED_CONSUMEQUEUE)."""
        self._cleaned_for = -1

    def step(self, safe: int, helper: Executor) -> None:
        """A few ms of work, to be called regularly. Raises OSError.

        `safe`: files that end at or before this offset of the log are on disk, and no recovery looks at them.
        """
        now = time.monotonic()
        if now >= self._next_round and not self._busy():
            self._next_round = now + self.config.clean_resource_interval / 1000
            self._round(safe)
        if self._doomed and self._removing is None:
            self._removing = helper.submit(self._remove)
        derived = self._follow()
        if derived:
            helper.submit(self._remove_derived, derived)

    def _busy(self) -> bool:
        """Whether files are still being removed."""
        if self._removing is not None and self._removing.done():
            self._removing.result()
            self._removing = None
        return self._removing is not None

    def _round(self, safe: int) -> None:
        config = self.config
        directories = {self._log.directory, config.store_path_root_dir}
        used = 100 * max(self._files.disk(directory)[0] for directory in directories)
        forced = config.clean_file_forcibly_enable and used > config.disk_space_clean_forcibly_ratio
        requested, self._requested = self._requested > 0, max(0, self._requested - 1)
        over = used > config.disk_max_used_space_ratio
        if not (forced or requested or over or self._is_time()):
            return
        expired_before = self._clock_ms() - config.file_reserved_time * _HOUR
        removed = 0
        while removed < _FILES_PER_ROUND and len(self._log.files) > 1:
            first, second = self._log.files[:2]
            if first.end > safe:
                break
            # what the next file begins with is not older than anything in this one
            ended = self._store_time(second.start)
            expired = ended is not None and ended <= expired_before
            if not (forced or expired):
                break
            removed += 1
            self._doomed.append(self._log.forget_first())
            why = f"older than {config.file_reserved_time} hours" if expired else f"the disk is {used:.1f}% full"
            (log.info if expired else log.warning)("removing %s: %s", first.path, why)
        if over and not removed:
            log.warning("the disk is %.1f%% full, and no CommitLog file may be removed to make room", used)

    def _is_time(self) -> bool:
        hour = time.localtime(self._clock_ms() / 1000).tm_hour
        return hour in self.config.delete_hours()

    def _remove(self) -> None:
        """On the helper's thread: stops at the first file that cannot be removed, the next round goes on with it."""
        while self._doomed:
            path = self._doomed[0]
            try:
                with suppress(FileNotFoundError):  # an operator was faster
                    self._files.unlink(path)
                self._files.fsync_dir(self._log.directory)
            except OSError as error:
                log.error("%s cannot be removed (%s), trying again later", path, error)
                return
            self._doomed.popleft()

    def _follow(self) -> list[str]:
        """Forget derived files whose records are gone; returns their paths."""
        log_min = self._log.min_offset
        paths: list[str] = []
        if self._cleaned_for != log_min:
            self._cleaned_for = log_min
            if log_min:
                self._walk = deque(self._queues.keys())
                paths += self._index.clean(log_min)
        for _ in range(min(len(self._walk), _QUEUES_PER_STEP)):
            queue = self._queues.get(*self._walk.popleft())
            if queue is not None:
                paths += self._queues.clean(queue, log_min)
        return paths

    def _remove_derived(self, paths: list[str]) -> None:
        """On the helper's thread. One that stays is found by the next start, and goes then."""
        for path in paths:
            try:
                with suppress(FileNotFoundError):
                    self._files.unlink(path)
            except OSError as error:
                log.error("%s cannot be removed: %s", path, error)

    def finish(self) -> None:
        """Remove what was decided upon, and is not removed yet."""
        if self._removing is not None:
            self._removing.result()  # two at a time would take each other's files from the list
            self._removing = None
        self._remove()
