"""Has an event loop go round once more before it waits."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from rocketq.remoting.forks import not_for_children


class Waker:
    """A pair of sockets of which a `kombu.asynchronous.Hub` reads one.

    A hub decides for how long it will wait, and then calls whoever wants to be called before it does. What it is asked
    for meanwhile, by `Hub.call_soon` (as Celery puts acknowledgements off) or `Hub.call_later`, would lie there until
    something else happens, for up to a second.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._out, self._in = map(not_for_children, socket.socketpair())
        self._out.setblocking(False)
        self._in.setblocking(False)
        hub.add_reader(self._out.fileno(), self._read)

    def wake(self) -> None:
        """Keep the hub from waiting."""
        with contextlib.suppress(BlockingIOError):  # it is full: the hub will not wait
            self._in.send(b".")

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)

    def close(self) -> None:
        """A child that was forked leaves the loop, which it has in common with its parent, alone."""
        if self._out.fileno() != -1:  # children have their copies closed as they begin
            self._hub.remove(self._out.fileno())
        self._out.close()
        self._in.close()
