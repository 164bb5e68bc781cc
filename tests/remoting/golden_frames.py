"""What Apache RocketMQ 5.4.0 and its clients said, as recorded in tests/golden/*.jsonl."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

GOLDEN = Path(__file__).parent.parent / "golden"


class Recorded(NamedTuple):
    """One side of a recorded exchange. `code` is the request's, also for an answer."""

    file: str
    name: str
    code: int
    side: str
    kind: int
    header: bytes
    body: bytes
    succeeded: bool

    @property
    def frame(self) -> bytes:
        length = 4 + len(self.header) + len(self.body)
        return struct.pack(">iI", length, self.kind << 24 | len(self.header)) + self.header + self.body


def lines() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(GOLDEN.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield path.name, json.loads(line)


def _header(line: dict[str, Any], side: str) -> tuple[int, bytes] | None:
    text = line.get(f"{side}_header")
    if isinstance(text, str):
        return 0, text.encode()
    if isinstance(line.get(f"{side}_header_hex"), str):
        return 1, bytes.fromhex(line[f"{side}_header_hex"])
    return None


def _code(kind: int, header: bytes) -> int:
    return json.loads(header)["code"] if kind == 0 else struct.unpack_from(">h", header)[0]


def _body(line: dict[str, Any], side: str) -> bytes:
    if isinstance(line.get(f"{side}_body_hex"), str):
        return bytes.fromhex(line[f"{side}_body_hex"])
    body = line.get(f"{side}_body")
    return body.encode() if isinstance(body, str) else b""


def recorded() -> Iterator[Recorded]:
    """Every header that was recorded, with its body."""
    for file, line in lines():
        request = _header(line, "request")
        response = _header(line, "response")
        if request is None:
            continue
        code = _code(*request)
        succeeded = response is None or _code(*response) in (0, 19, 21, 210)
        yield Recorded(file, line["name"], code, "request", *request, _body(line, "request"), succeeded)
        if response is not None:
            yield Recorded(file, line["name"], code, "response", *response, _body(line, "response"), succeeded)
