import json

from click.testing import CliRunner
from store_kit import Opener, send

from rocketq.cli.main import main
from rocketq.store.configfile import save_json
from rocketq.store.files import OsFiles

SETTINGS = [
    part
    for setting in ("mappedFileSizeCommitLog=16384", "mappedFileSizeConsumeQueue=400", "maxHashSlotNum=64")
    for part in ("--set", setting)
] + ["--set", "maxIndexNum=100000"]


def rocketq(*arguments, input=None):
    return CliRunner().invoke(main, ["store", *map(str, arguments), *SETTINGS], prog_name="rocketq", input=input)


def damaged(directory):
    """A store of ten messages of topic T, the fourth of which cannot be read; where that is."""
    opener = Opener(directory)
    store = opener()
    sent = [send(store, body=b"%d" % n * 20) for n in range(10)]
    store.close()
    save_json(directory / "config" / "topics.json", {"topicConfigTable": {"T": {}}}, OsFiles())
    with (directory / "commitlog" / f"{0:020d}").open("r+b") as file:
        file.seek(sent[3].physical_offset + 90)
        file.write(b"?")
    return sent[3].physical_offset


def test_damage_is_shown_and_repaired_when_that_is_wanted(tmp_path):
    at = damaged(tmp_path)
    shown = rocketq("check", tmp_path)
    assert shown.exit_code == 1
    assert f"{tmp_path}/commitlog/{0:020d}" in shown.output
    assert "messages are lost" in shown.output
    assert "T queue 0 3" in shown.output
    (problem,) = json.loads(rocketq("check", tmp_path, "--json").stdout)
    assert (problem["kind"], problem["byte"]) == ("log", at)
    assert problem["lost"] == [{"topic": "T", "queue": 0, "offset": 3}]

    refused = rocketq("repair", tmp_path, input="n\n")
    assert refused.exit_code == 1
    assert rocketq("check", tmp_path).exit_code == 1, "nothing was done"
    done = rocketq("repair", tmp_path, "--yes")
    assert done.exit_code == 0
    assert f"{tmp_path}/damaged/{at:020d}" in done.output
    opener = Opener(tmp_path)
    assert opener().max_offset("T", 0) == 10
    opener.close()
    assert "nothing is wrong" in rocketq("check", tmp_path).output


def test_a_directory_that_holds_no_store_is_named(tmp_path):
    result = rocketq("check", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path} holds no store" in result.output
