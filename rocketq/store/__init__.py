"""The store: CommitLog, ConsumeQueues, index, flushing, recovery. It knows neither network nor event loop."""

from rocketq.store.config import StoreConfig
from rocketq.store.files import Files, OsFiles
from rocketq.store.store import Appended, GetStatus, MessageStore, QueryResult, ReadResult, Recovery

__all__ = [
    "Appended",
    "Files",
    "GetStatus",
    "MessageStore",
    "OsFiles",
    "QueryResult",
    "ReadResult",
    "Recovery",
    "StoreConfig",
]
