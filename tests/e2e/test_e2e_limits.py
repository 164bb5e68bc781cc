"""Small forms of limits.py, on real processes: who misbehaves costs nobody else anything."""

from __future__ import annotations

import signal
import struct
import sys
from pathlib import Path

from servers import wait_until

sys.path.insert(0, str(Path(__file__).parent))

from limits import _stays, is_closed, running


def test_a_process_without_files_left_serves_whom_it_has_and_others_when_there_is_room() -> None:
    with running(files=128) as server:
        peers = [server.connect() for _ in range(150)]
        wait_until(lambda: sum(is_closed(peer) for peer in peers) >= 80, 30, "those beyond the limit are closed")
        sent = server.probe.sent()
        wait_until(lambda: server.probe.sent() > sent + 20, 60, "the first client's sends go on")
        for peer in peers:
            peer.close()
        wait_until(lambda: _stays(server), 30, "a new connection is served")
        assert server.probe.lap().failed == 0
        refusals = [line for line in server.process.errors if "closed at once" in line]
        assert len(refusals) == 1, "one line, however many are refused"


def test_a_stopped_server_loses_no_client_and_unfinished_frames_cost_none() -> None:
    with running() as server:
        unfinished = [server.connect() for _ in range(50)]
        for peer in unfinished:
            peer.sendall(struct.pack(">ii", 16 << 20, 20) + bytes(1 << 20))
        server.process.process.send_signal(signal.SIGSTOP)
        try:
            status = Path(f"/proc/{server.process.process.pid}/status")
            wait_until(lambda: "State:\tT" in status.read_text(), 30, "the server is stopped")
            stopped_at = server.probe.sent()
        finally:
            server.process.process.send_signal(signal.SIGCONT)
        wait_until(lambda: server.probe.sent() > stopped_at + 20, 60, "sends go on")
        assert server.probe.lap().failed == 0
        for peer in unfinished:
            peer.close()
