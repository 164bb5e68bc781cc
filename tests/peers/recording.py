"""`rocketq server` that notes who asks for what: `python recording.py DIRECTORY server …`, as `rocketq server …`.

As it ends it writes one JSON file into DIRECTORY: for both sides (`broker`, `namesrv`), and for what brokers ask of
clients (`from broker`), which client used which request code, and with which response codes it was answered.
A client is known by the program at the other end of its connection, which /proc tells.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rocketq.cli.main import main
from rocketq.remoting import server as remoting
from rocketq.remoting.command import Command, FrameDecoder

#: A part of the command line of each program: its name in the record. The first that fits.
PROGRAMS = {
    "BrokerStartup": "Apache's broker 5.4.0",
    "/server-5.4.0/": "mqadmin 5.4.0",
    "/client-4.9.8/": "Java 4.9.8",
    "/client-5.4.0/": "Java 5.4.0",
    "go-peer-": "Go 2.1.2",
    "rocketq_peer.py": "rocketq",
}
#: side: request code: client: response codes, None for a request without an answer
Seen = dict[str, dict[int, dict[str, set[int | None]]]]
seen: Seen = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))


def program(port: int, our_port: int) -> str | None:
    """The client whose socket has that port, connected to ours; None for any other program."""
    ends = f":{port:04X}", f":{our_port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                return _named(_command_line(f"socket:[{fields[9]}]"))
    return None


def _command_line(socket: str) -> str:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == socket for fd in (process / "fd").iterdir()):
                return (process / "cmdline").read_text()
        except OSError:
            continue  # it ended, or closed the file, meanwhile
    return ""


def _named(command_line: str) -> str | None:
    return next((name for part, name in PROGRAMS.items() if part in command_line), None)


class Recording(remoting._ServerConnection):
    """A connection that notes what passes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        port, our_port = (int(address.rpartition(":")[2]) for address in (self.peer, self.local))
        self.client = program(port, our_port)
        self.side = "namesrv" if "namesrv" in type(self._service).__module__ else "broker"
        self.asked: dict[int, int] = {}
        self.asked_by_us: dict[int, int] = {}
        self.outgoing = FrameDecoder()

    def _note(self, command: Command, asked: dict[int, int], answered: dict[int, int], side: str) -> None:
        if self.client is None:
            return
        other = "from broker" if side != "from broker" else self.side
        if command.is_response:
            code = answered.pop(command.opaque, None)
            if code is not None:
                seen[other][code][self.client].add(command.code)
        elif command.is_oneway:
            seen[side][command.code][self.client].add(None)
        else:
            asked[command.opaque] = command.code
            seen[side][command.code][self.client]  # it was asked for, answered or not

    def _handle(self, commands: list[Command]) -> None:
        for command in commands:
            self._note(command, self.asked, self.asked_by_us, self.side)
        super()._handle(commands)

    def _flush(self) -> None:
        for command in self.outgoing.feed(b"".join(bytes(piece) for piece in self._out)):
            self._note(command, self.asked_by_us, self.asked, "from broker")
        super()._flush()


def plain(seen: Seen) -> dict[str, Any]:
    """As JSON has it, sorted."""
    return {
        side: {
            str(code): {
                client: sorted(answers, key=lambda answer: -1 if answer is None else answer)
                for client, answers in sorted(users.items())
            }
            for code, users in sorted(codes.items())
        }
        for side, codes in sorted(seen.items())
    }


def merge(directory: Path, into: Path) -> None:
    """Adds what the servers of a test session wrote into `directory` to the record in the file `into`."""
    together: Seen = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    for path in [*([into] if into.exists() else []), *directory.glob("*.json")]:
        for side, codes in json.loads(path.read_text()).items():
            for code, users in codes.items():
                for client, answers in users.items():
                    together[side][int(code)][client].update(answers)
    into.write_text(json.dumps(plain(together), indent=1) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1]) / f"{os.getpid()}.json"
    atexit.register(lambda: target.write_text(json.dumps(plain(seen))))
    remoting._ServerConnection = Recording  # type: ignore[misc]
    main(sys.argv[2:], prog_name="rocketq")
