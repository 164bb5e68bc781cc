"""Replays the recorded requests of a real Apache 5.4.0 session against our broker and compares the answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker_wire import Wire, frame

from rocketq import javajson
from rocketq.broker.server import Broker
from rocketq.message import decode_messages
from rocketq.remoting.command import Command

GOLDEN = Path(__file__).parent.parent / "golden"

#: ext values that do not depend on the run
SAME = {
    "queueId",
    "suggestWhichBrokerId",
    "topicSysFlag",
    "groupSysFlag",
    "MSG_REGION",
    "TRACE_ON",
    "forbiddenType",
    "IS_SUPPORT_HEART_BEAT_V2",
    "IS_SUB_CHANGE",
    "hasMsg",
    "pollingNum",
    "pollingFull",
    "restNum",
    "startOffsetInfo",
    "msgOffsetInfo",
    "orderCountInfo",
}
#: ext values that depend only on what was sent before
OFFSETS = {"nextBeginOffset", "minOffset", "maxOffset", "offset", "queueOffset"}
#: members of bodies that are maps by name
MAPS = {"attributes", "forbiddenTable", "offsetTable", "subscriptionGroupTable", "subscriptionTable", "table"}
MAPS |= {"topicConfigTable", "groupTopicMap", "timingCount", "correctionOffsets", "consumeStatsList"}
#: properties with a value of their own in every run; TIMER_OUT_MS is exact here
OWN = {"1ST_POP_TIME", "POP_CK", "UNIQ_KEY", "ORIGIN_MESSAGE_ID", "TIMER_OUT_MS", "BORN_TIMESTAMP"}
#: addresses and places in the log, in texts
VARYING = re.compile(r"127\.0\.0\.1:\d+|\b\d+$")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()]


class Replay:
    """The state of a replay: connections, and how places in the log and times of the recording map to ours."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.wires: dict[str, Wire] = {}
        self.problems: list[str] = []
        self.compared = 0
        #: physical offset there -> here
        self.places: dict[int, int] = {}
        #: offset in the half topic there -> here
        self.halves: dict[str, str] = {}
        #: time there -> here, ms
        self.times: dict[int, int] = {}
        #: unique id that the server gave there -> here
        self.ids: dict[str, str] = {}

    async def wire(self, name: str) -> Wire:
        if name not in self.wires:
            self.wires[name] = await Wire.connect(self.broker.port)
        return self.wires[name]

    async def close(self) -> None:
        for wire in self.wires.values():
            await wire.close()

    def request(self, line: dict[str, Any]) -> bytes:
        if "request_body_repeat" in line:
            repeat = line["request_body_repeat"]
            body = str(repeat["byte"]).encode() * repeat["count"]
        else:
            body = line.get("request_body", "").encode() or bytes.fromhex(line.get("request_body_hex", ""))
        if "request_header_hex" in line:
            return frame(bytes.fromhex(line["request_header_hex"]), body, 1)
        header = json.loads(line["request_header"])
        ext = header.get("extFields") or {}
        if header["code"] in (33, 36) and "offset" in ext:
            place = int(ext["offset"])
            ext["offset"] = str(self.places.get(place, self.places.get(place - 1, place - 1) + 1))
        if header["code"] == 37:
            ext["commitLogOffset"] = str(self.places.get(int(ext["commitLogOffset"]), ext["commitLogOffset"]))
            ext["tranStateTableOffset"] = self.halves.get(ext["tranStateTableOffset"], ext["tranStateTableOffset"])
        if header["code"] == 309:
            ext["msgId"] = f"{ext['msgId'][:16]}{self.places[int(ext['msgId'][16:], 16)]:016X}"
        if ext.get("key") in self.ids:
            ext["key"] = self.ids[ext["key"]]
        if header["code"] == 12 and int(ext["endTimestamp"]) > 1_700_000_000_000:
            ext["endTimestamp"] = str(time.time_ns() // 1_000_000 + 3_600_000)
        if "timestamp" in ext:
            when = int(ext["timestamp"])
            ext["timestamp"] = str(self.times.get(when, self.times.get(when - 1, when - 1) + 1))
        return frame(json.dumps(header, separators=(",", ":")).encode(), body)

    async def run(
        self,
        name: str,
        skip: dict[str, str],
        *,
        before: dict[str, Callable[[], Any]] | None = None,
        loose: Callable[[str], bool] = lambda line: False,
        only_code: frozenset[str] = frozenset(),
    ) -> None:
        """Replay a file. `skip`: line name -> why; `loose`: lines whose offsets depend on skipped ones."""
        known = [line["name"] for line in lines(name)]
        unknown = set(skip) - set(known)
        assert not unknown, f"{name}: no such lines: {unknown}"
        for line in lines(name):
            what = line["name"]
            if what in skip or "to" not in line:
                continue
            if before and what in before:
                await before[what]()
            wire = await self.wire(connection_of(line))
            wire.writer.write(self.request(line))
            expected = json.loads(line["response_header"])
            answer = await wire.answer(expected["opaque"], 15.0)
            self.note_places(expected, answer)
            self.compare(f"{name}:{what}", line, expected, answer, loose(what), what in only_code)

    def note_places(self, expected: dict[str, Any], answer: Command) -> None:
        theirs = (expected.get("extFields") or {}).get("msgId", "").split(",")
        ours = answer.ext.get("msgId", "").split(",")
        for their, our in zip(theirs, ours, strict=False):
            if len(their) == len(our) == 32:
                self.places[int(their[16:], 16)] = int(our[16:], 16)

    def problem(self, where: str, what: str, theirs: Any, ours: Any) -> None:
        self.problems.append(f"{where}: {what}: Apache's {theirs!r}, ours {ours!r}")

    def compare(
        self,
        where: str,
        line: dict[str, Any],
        expected: dict[str, Any],
        answer: Command,
        loose: bool,
        only_code: bool,
    ) -> None:
        self.compared += 1
        if expected["code"] != answer.code:
            self.problem(where, "code", (expected["code"], expected.get("remark")), (answer.code, answer.remark))
            return
        if only_code:
            return
        theirs, ours = expected.get("remark"), answer.remark
        if "Exception" in (theirs or ""):
            return  # Java's text, and no ext; ours says what is wrong
        if VARYING.sub("N", theirs or "") != VARYING.sub("N", ours or ""):
            self.problem(where, "remark", theirs, ours)
        their_ext = expected.get("extFields") or {}
        if set(their_ext) != set(answer.ext):
            self.problem(where, "ext keys", sorted(their_ext), sorted(answer.ext))
        for key in their_ext.keys() & answer.ext.keys():
            if (key in SAME or (key in OFFSETS and not loose)) and their_ext[key] != answer.ext[key]:
                self.problem(where, key, their_ext[key], answer.ext[key])
        if "response_body" in line and line["response_body"][:1] == "{":
            self.compare_json(where, javajson.loads(line["response_body"]), javajson.loads(answer.body))
        self.compare_records(where, line.get("records") or [], answer, loose)

    def compare_json(self, where: str, theirs: Any, ours: Any) -> None:
        """Members and types; of maps and lists only what both have, because the names in them depend on the run."""
        if isinstance(theirs, dict) and isinstance(ours, dict):
            # the offsets of a group are a map too, by queue
            is_map = where.rpartition(".")[2] in MAPS or ".offsetTable." in where
            if not is_map and theirs.keys() != ours.keys():
                self.problem(where, "members", sorted(theirs), sorted(ours))
            for key in theirs.keys() & ours.keys():
                self.compare_json(f"{where}.{key}", theirs[key], ours[key])
        elif isinstance(theirs, list) and isinstance(ours, list):
            for their, our in zip(theirs, ours, strict=False):
                self.compare_json(where, their, our)
        elif type(theirs) is not type(ours):
            self.problem(where, "type", theirs, ours)

    def compare_records(self, where: str, theirs: list[dict[str, Any]], answer: Command, loose: bool) -> None:
        if not theirs:
            return
        ours = decode_messages(answer.body)
        if len(theirs) != len(ours) and not loose:
            self.problem(where, "number of records", len(theirs), len(ours))
            return
        for their, our in zip(theirs, ours, strict=False):
            if loose and their["body"] != our.record.body.decode(errors="replace"):
                continue
            if their["physicalOffset"] not in self.places:
                self.places[their["physicalOffset"]] = our.physical_offset
            place = f"{where}: record {their['queueOffset']}"
            record = our.record
            for what, expected, got in (
                ("topic", their["topic"], record.topic),
                ("queueId", their["queueId"], record.queue_id),
                ("flag", their["flag"], record.flag),
                ("sysFlag", their["sysFlag"], record.sys_flag),
                ("reconsumeTimes", their["reconsumeTimes"], record.reconsume_times),
                ("bodyCRC", their["bodyCRC"], record.body_crc),
                ("magic", their["magic"], f"{record.magic:#x}"),
                # the recording's reader kept those without a value
                (
                    "names of properties",
                    sorted(filter(their["properties"].get, their["properties"])),
                    sorted(name for name in our.properties if not name.startswith("ROCKETQ_")),
                ),
            ):
                if expected != got:
                    self.problem(place, what, expected, got)
            for name in their["properties"].keys() & our.properties.keys() - OWN:
                if their["properties"][name] != our.properties[name]:
                    self.problem(place, name, their["properties"][name], our.properties[name])


def connection_of(line: dict[str, Any]) -> str:
    """Members of a group were on connections of their own."""
    match = re.search(r'"clientID":"127\.0\.0\.1@(\w+)"', line.get("request_body", ""))
    return match.group(1) if match and match.group(1) in ("c2", "e") else "main"
