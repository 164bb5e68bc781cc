"""The JSON tables of a broker and a NameServer, alone: from their files, and as a slave gets them from its master.

Input: one byte for the table, one whether a master sent it, then the JSON. A table that cannot be used is a StoreError,
or one of the errors after which a slave asks again; one that is taken can be written, and is read again as the same.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from broker_wire import config
from fuzz_files import clock, good
from scratch import scratch
from store_kit import Opener, send

from rocketq import javajson
from rocketq.broker.assignment import Assignment
from rocketq.broker.delay import Delay
from rocketq.broker.groups import Groups
from rocketq.broker.locks import QueueLocks
from rocketq.broker.offsets import Offsets
from rocketq.broker.slavesync import groups_of, topics_of
from rocketq.broker.timercounts import TimerCounts
from rocketq.broker.topics import Topics
from rocketq.broker.transaction import Transactions
from rocketq.errors import RocketQError, StoreError
from rocketq.names import HALF_TOPIC, OP_HALF_TOPIC, SCHEDULE_TOPIC
from rocketq.namesrv.kv import KVConfig
from rocketq.store import MessageStore
from rocketq.store.configfile import load_table
from rocketq.store.files import OsFiles

PATH = Path("/table.json")
NOBODY: Any = None  # what a table does not need while it is read


_kept = ExitStack()


class OneFile(OsFiles):
    """A file system with one file, which is only read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, path: str, *, create: bool = False, write: bool = True, scan: bool = False) -> int:
        if path != str(PATH):
            raise FileNotFoundError(path)
        return -1

    def size(self, fd: int) -> int:
        return len(self.data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self.data

    def close(self, fd: int) -> None: ...


@cache
def _store() -> MessageStore:
    """With delayed messages, and two half messages of which one has ended. Nobody writes to it."""
    opener = Opener(_kept.enter_context(scratch()))
    _kept.callback(opener.close)
    store = opener()
    for _ in range(3):
        send(store, SCHEDULE_TOPIC, 2)
    for _ in range(2):
        send(store, HALF_TOPIC)
    send(store, OP_HALF_TOPIC, body=b"0,")
    return store


def end() -> None:
    """Remove the store."""
    _kept.close()
    _store.cache_clear()


def _topics(files: OsFiles) -> tuple[Any, ...]:
    table = Topics(config(Path("/")), PATH, files, lambda changed: None, clock)
    return table.load, lambda theirs: table.copy(*topics_of(theirs)), lambda: _saved(table)


def _groups(files: OsFiles) -> tuple[Any, ...]:
    table = Groups(config(Path("/")), PATH, files, clock)
    return table.load, lambda theirs: table.copy(*groups_of(theirs)), lambda: _saved(table)


def _offsets(files: OsFiles) -> tuple[Any, ...]:
    table = Offsets(PATH, files, NOBODY, NOBODY, _store(), clock)

    def written() -> Any:
        table.forget_lost()
        return table._as_json(table.table)

    return table.load, table.copy, written


def _locks(files: OsFiles) -> tuple[Any, ...]:
    table = QueueLocks(PATH, files, lambda: 0.0)
    return table.load, NOBODY, table._table


def _assignment(files: OsFiles) -> tuple[Any, ...]:
    table = Assignment(config(Path("/")), PATH, files, *[NOBODY] * 5)
    return table.load, table.copy, table._as_json


def _delay(files: OsFiles) -> tuple[Any, ...]:
    table = Delay(config(Path("/")), PATH, files, _store(), clock)
    return table._load, table.copy, lambda: table._as_json(table._offsets)


def _transactions(files: OsFiles) -> tuple[Any, ...]:
    offsets = Offsets(PATH, files, NOBODY, NOBODY, _store(), clock)
    table = Transactions(config(Path("/")), PATH, files, _store(), NOBODY, offsets, NOBODY, NOBODY, clock)
    return lambda: table.load(0), NOBODY, lambda: table.halves.as_json(1)


def _timer_counts(files: OsFiles) -> tuple[Any, ...]:
    table = TimerCounts(clock)
    return lambda: load_table(PATH, files, table.load), table.load, table.to_json


def _key_values(files: OsFiles) -> tuple[Any, ...]:
    table = KVConfig(PATH, files)
    return table.load, NOBODY, lambda: {"configTable": table._table}


def _saved(table: Topics | Groups) -> Any:
    table.unsaved()
    build = table.snapshot()
    assert build is not None
    return build()


#: For a file: how the table is loaded, how a master's is taken over, what is written.
TABLES: tuple[Callable[[OsFiles], tuple[Any, ...]], ...] = (
    *(_topics, _groups, _offsets, _locks, _assignment, _delay, _transactions, _timer_counts, _key_values),
)


def run_one(data: bytes) -> None:
    if len(data) < 2:
        return
    make = TABLES[data[0] % len(TABLES)]
    load, copy, written = make(OneFile(data[2:]))
    if data[1] & 1 and copy is not NOBODY:
        try:
            copy(javajson.loads(data[2:]))
        except (RocketQError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return
        javajson.dumps(written(), pretty=True)
        return
    try:
        load()
    except StoreError:
        return
    text = javajson.dumps(written(), pretty=True)
    load, _, written = make(OneFile(text))
    load()
    assert javajson.dumps(written(), pretty=True) == text


def seeds() -> list[bytes]:
    tables = ["topics", "subscriptionGroup", "consumerOffset", "", "", "", "halfMessages"]
    files = good()
    found = [files[f"config/{name}.json"] if name else b"{}" for name in tables] + [files["config/timermetrics"]]
    found[3] = b'{"lockTable":{"G":[{"topic":"T","brokerName":"b","queueId":0,"clientId":"c"}]}}'
    found[4] = (
        b'{"messageRequestModeMap":{"T":{"G":{"topic":"T","consumerGroup":"G","mode":"POP","popShareQueueNum":1}}}}'
    )
    found[5] = b'{"dataVersion":{"counter":1},"offsetTable":{3:2,"5":7}}'
    found.append(b'{"configTable":{"N":{"k":"v"}}}')
    return [bytes([number, way]) + table for number, table in enumerate(found) for way in (0, 1)]
