"""A network between clients and a server that fails: TCP connections pass through this process."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import NamedTuple

#: SO_LINGER: closing a socket resets its connection.
_RESET = struct.pack("ii", 1, 0)


class _Pair(NamedTuple):
    """One connection: the client's end of it, and the server's."""

    client: socket.socket
    server: socket.socket


class Network:
    """Takes connections at `host:port` to `to:port`.

    `hold` lets nothing pass, neither bytes nor the end of a connection; `heal` brings all that was held. `forget` does
    the same for the connections that there are, for good; new ones pass. `cut` resets them, and refuses new ones until
    `heal`.
    """

    def __init__(self, host: str, port: int, to: str = "127.0.0.1") -> None:
        self._to = to, port
        self._listener = socket.create_server((host, port))
        self.address = f"{host}:{port}"
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._forgotten: set[_Pair] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self._passing.wait()
        if self._refusing:
            _reset(client)
            return
        try:
            pair = _Pair(client, socket.create_connection(self._to, 5.0))
        except OSError:
            _reset(client)
            return
        pair.server.settimeout(None)
        with self._lock:
            self._pairs.add(pair)
        for source, sink in ((pair.client, pair.server), (pair.server, pair.client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(pair, source, sink), daemon=True).start()

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self._passes(pair):
                    return
                sink.sendall(data)
        except OSError:
            pass
        if self._passes(pair):  # whoever closed it is heard of
            with self._lock:
                self._pairs.discard(pair)
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _passes(self, pair: _Pair) -> bool:
        """Wait while everything is held; False for a connection that is forgotten."""
        self._passing.wait()
        return pair not in self._forgotten

    def hold(self) -> None:
        self._passing.clear()

    def cut(self) -> None:
        self._refusing = True
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                _reset(end)

    def forget(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
            self._forgotten |= pairs

    def heal(self) -> None:
        self._refusing = False
        self._passing.set()

    def close(self) -> None:
        self._listener.close()
        self.heal()
        self.cut()
        for pair in self._forgotten:
            for end in pair:
                _reset(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RD)  # wakes who reads from it
    end.close()
