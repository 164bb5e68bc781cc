"""What a store does with the log of another one: it looks for whole records in bytes that were cut anywhere.

ConsumeQueues and index are not copied, they are made here. Where a copy begins in the middle of a log, its queues begin
with the first record that is there. A topic that the master deleted and made anew begins at 0 again.

The bytes of a record whose body does not match its CRC are kept, as the logs have to stay the same, and those behind it
are taken in.
"""

from __future__ import annotations

import logging
import struct

from rocketq.errors import StoreError
from rocketq.record import MAGIC_BLANK, MAGIC_V1, MAGIC_V2, CorruptRecord
from rocketq.store.commitlog import CommitLog
from rocketq.store.consumequeue import ConsumeQueues
from rocketq.store.index import Index
from rocketq.store.recovery import Found, Rebuilder, parse
from rocketq.store.values import Appended

log = logging.getLogger("rocketq.store")

_SIZE_MAGIC = struct.Struct(">II")
#: Records that are taken in at once.
_BATCH = 1000


class Following:
    """Finds the records of a log that grows by raw bytes."""

    def __init__(self, commit_log: CommitLog, queues: ConsumeQueues, index: Index, delays: list[int]) -> None:
        self._log = commit_log
        self._entries = Rebuilder(queues, index, delays, whole=True)
        #: end of the last record that came with a body that does not match its CRC
        self.damaged = 0

    def take(self, start: int, end: int) -> tuple[int, list[Appended]]:
        """The whole records from `start` on in a log that is written up to `end`, and where they end.

        A few at a time: call it again until nothing comes and the end stays. Raises StoreError for what is no record.
        """
        batch: list[Appended] = []
        while len(batch) < _BATCH:
            file = self._log.find(start)
            head = self._log.view(start, _SIZE_MAGIC.size) if start + _SIZE_MAGIC.size <= end else None
            if file is None or head is None:
                break
            size, magic = _SIZE_MAGIC.unpack(head)
            if magic == MAGIC_BLANK and start + size == file.end:
                if file.end > end:
                    break
                start = file.end
                continue
            if magic not in (MAGIC_V1, MAGIC_V2) or not 91 <= size <= file.end - start:
                raise self._no_log(start, f"magic {magic:#010x} with size {size}")
            if start + size > end:
                break
            data = self._log.view(start, size)
            assert data is not None
            found = self._parse(bytes(data), start)
            if batch and not self._entries.continues(found):
                break
            batch.append(self._entries.take(found))
            start += size
        return start, batch

    def _parse(self, data: bytes, start: int) -> Found:
        try:
            return parse(data, 0, len(data), start, True)
        except CorruptRecord:
            try:
                found = parse(data, 0, len(data), start, False)
            except CorruptRecord as error:
                raise self._no_log(start, str(error)) from None
        file = self._log.find(start)
        assert file is not None
        log.error(
            "%s is damaged at byte %d: the master sent message %d of topic %s queue %d with a body that does not match "
            "its CRC, it is not handed out. See `rocketq store check` on the master; if it is sound there, remove this "
            "store, which is copied again then",
            *(file.path, start - file.start, found.queue_offset, found.topic, found.queue_id),
        )
        self.damaged = start + len(data)
        return found

    def _no_log(self, offset: int, why: str) -> StoreError:
        return StoreError(
            f"what the master sent for offset {offset} is no record ({why}): its log is damaged there, or this store "
            "followed another master or has files of another size. Remove this store, it is copied again then"
        )
