"""The JSON files beside the store: replaced whole or not at all."""

import os

import pytest
from store_kit import GOLDEN

from rocketq.errors import StoreError, StoreFull
from rocketq.store.configfile import load_json, save_json
from rocketq.store.files import OsFiles


class Recording(OsFiles):
    def __init__(self):
        self.calls = []

    def fdatasync(self, fd):
        self.calls.append("sync")
        super().fdatasync(fd)

    def rename(self, old, new):
        self.calls.append((os.path.basename(old), os.path.basename(new)))
        super().rename(old, new)

    def fsync_dir(self, path):
        self.calls.append("directory")
        super().fsync_dir(path)


def test_a_table_comes_back(tmp_path):
    path = tmp_path / "config" / "topics.json"
    save_json(path, {"a": {"b": [1, True, None, "x"]}}, OsFiles())
    save_json(path, {"a": 2}, OsFiles())
    assert load_json(path, OsFiles()) == {"a": 2}
    assert load_json(f"{path}.bak", OsFiles()) == {"a": {"b": [1, True, None, "x"]}}
    assert sorted(os.listdir(path.parent)) == ["topics.json", "topics.json.bak"]


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path):
    files = Recording()
    save_json(tmp_path / "t.json", {}, files)
    save_json(tmp_path / "t.json", {}, files)
    first = ["sync", ("t.json.tmp", "t.json"), "directory"]
    assert files.calls == [*first, "sync", ("t.json", "t.json.bak"), ("t.json.tmp", "t.json"), "directory"]


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_damaged_or_missing_file_is_replaced_by_its_backup(tmp_path, damage):
    path = tmp_path / "t.json"
    save_json(path, {"n": 1}, OsFiles())
    save_json(path, {"n": 2}, OsFiles())
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert load_json(path, OsFiles()) == {"n": 1}


def test_nothing_is_none_and_rubbish_without_a_backup_an_error(tmp_path):
    path = tmp_path / "t.json"
    assert load_json(path, OsFiles()) is None
    path.write_bytes(b"{oops")
    with pytest.raises(StoreError, match=r"t\.json"):
        load_json(path, OsFiles())


def test_a_failed_save_keeps_the_old_table(tmp_path):
    path = tmp_path / "t.json"
    save_json(path, {"n": 1}, OsFiles())

    class Full(OsFiles):
        def pwrite(self, fd, data, offset):
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreFull, match=r"t\.json"):
        save_json(path, {"n": 2}, Full())
    assert load_json(path, OsFiles()) == {"n": 1}


@pytest.mark.parametrize("name", ["disk_default", "disk_small", "disk_options"])
def test_files_of_apaches_broker_are_read(name):
    for source in (GOLDEN / name / "config").iterdir():
        assert load_json(source, OsFiles()), source.name
