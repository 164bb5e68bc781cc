"""Keeps a client's sockets from its forked children.

A child that inherits a connection keeps it open beyond the death of its parent, which the server would not notice then.
"""

from __future__ import annotations

import os
import socket
from weakref import WeakSet

_sockets: WeakSet[socket.socket] = WeakSet()


def not_for_children(sock: socket.socket) -> socket.socket:
    """Have every child that is forked close its copy, without a word to the server."""
    _sockets.add(sock)
    return sock


def _close_all() -> None:
    for sock in list(_sockets):
        sock.close()
    _sockets.clear()


if hasattr(os, "register_at_fork"):  # there are systems that do not fork
    os.register_at_fork(after_in_child=_close_all)
