import asyncio
import errno

import pytest

from rocketq.errors import StoreError, StoreFull
from rocketq.namesrv.kv import KVConfig
from rocketq.store.files import OsFiles


class FullDisk(OsFiles):
    """Real files, until `full` is set."""

    full = False

    def pwrite(self, fd, data, offset):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(fd, data, offset)


def test_a_change_that_cannot_be_stored_does_not_count(tmp_path):
    files = FullDisk()

    async def scenario():
        kv = KVConfig(tmp_path / "kvConfig.json", files)
        await kv.put("N", "k", "old")
        files.full = True
        with pytest.raises(StoreFull):
            await kv.put("N", "k", "new")
        with pytest.raises(StoreFull):
            await kv.delete("N", "k")
        assert kv.get("N", "k") == "old"

    asyncio.run(scenario())
    again = KVConfig(tmp_path / "kvConfig.json", OsFiles())
    again.load()
    assert again.namespace("N") == {"k": "old"}


def test_apaches_file_is_read(tmp_path):
    path = tmp_path / "kvConfig.json"
    path.write_text('{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"broker-a:4"},"E":{}}}')
    kv = KVConfig(path, OsFiles())
    kv.load()
    assert kv.get("ORDER_TOPIC_CONFIG", "T") == "broker-a:4"
    assert kv.namespace("E") == {}
    assert kv.namespace("other") is None


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "kvConfig.json"
    for text in ("nonsense", "[1]", '{"configTable":[]}', '{"configTable":{"N":1}}'):
        path.write_text(text)
        with pytest.raises(StoreError, match=r"kvConfig\.json"):
            KVConfig(path, OsFiles()).load()
