"""A transport that speaks TLS over another one.

A server answers plain and TLS connections on one port and tells them apart by the first byte (0x16 begins a TLS
handshake, and no frame is that long). The transport here, rather than the loop's own, is what makes that possible:
the first bytes are read already when the choice is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

#: First byte of a TLS handshake record.
HANDSHAKE = 0x16

_READ = 256 * 1024


class TlsTransport(asyncio.Transport):
    """The server side of TLS over the transport `raw`, whose owner passes what it receives to :meth:`feed`."""

    def __init__(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        super().__init__()
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._open = False

    def feed(self, data: bytes) -> bytes:
        """What the peer said in `data`. Raises ssl.SSLError when that is not TLS or the handshake fails."""
        self._incoming.write(data)
        plain: list[bytes] = []
        try:
            if not self._open:
                self._tls.do_handshake()
                self._open = True
            while piece := self._tls.read(_READ):
                plain.append(piece)
            self.close()  # nothing more to read: the peer's goodbye
        except ssl.SSLWantReadError:
            pass  # the rest is still under way
        finally:
            self._send()  # also the alert that tells the peer what is wrong
        return b"".join(plain)

    def _send(self) -> None:
        if self._outgoing.pending:
            self._raw.write(self._outgoing.read())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._tls.write(data)
        self._send()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self._tls.write(data)
        self._send()

    def close(self) -> None:
        if not self._raw.is_closing():
            with contextlib.suppress(ssl.SSLError, ValueError):  # the peer's goodbye is not waited for
                self._tls.unwrap()
            self._send()
            self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._raw.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()
