from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from app_processes import alive

from rocketq import EmbeddedServer, RocketQ
from rocketq.errors import RocketQError


def test_an_embedded_server_serves_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedServer() as server:
        assert len(os.listdir(tmp_path)) == 1
        app = RocketQ("tests", server.namesrv)
        assert app.send("t", "x").status == "SEND_OK"
        app.close()
        host, port = server.broker.split(":")
        socket.create_connection((host, int(port)), 3).close()
        pid = server.pid
    assert os.listdir(tmp_path) == []
    assert not alive(pid)


def test_an_embedded_server_keeps_its_data_where_told(tmp_path: Path) -> None:
    for offset in (0, 1):
        with EmbeddedServer(tmp_path) as server:
            app = RocketQ("tests", server.namesrv)
            result = app.send("t", "x", selector=lambda queues, message, key: queues[0])
            app.close()
            assert result.queue_offset == offset


def test_an_embedded_server_that_cannot_start_says_so(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path), pytest.raises(RocketQError, match="did not start"):
        EmbeddedServer(tmp_path).start()
