"""TLS: the settings, and a transport that speaks it over another one.

A server answers plain and TLS connections on one port and tells them apart by the first byte (0x16 begins a TLS
handshake, and no frame is that long). The transport here, rather than the loop's own, is what makes that possible:
the first bytes are read already when the choice is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import Any

from rocketq.errors import ConfigError

#: First byte of a TLS handshake record.
HANDSHAKE = 0x16

_MODES = ("disabled", "permissive", "enforcing")
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "require": ssl.CERT_REQUIRED}
_READ = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """How a server or a client uses TLS (Apache's `tls.*` settings). Files are PEM.

    `mode` is the server's: ``disabled``, ``permissive`` (plain connections are served as well) or ``enforcing``.
    `cert` and `key` are one's own, which a server needs; `ca` is what the peer is verified with. A server asks its
    clients for certificates by `need_client_auth` (``none``, ``optional``, ``require``); a client verifies the
    server's certificate only with `verify_server`, and its name only with `check_hostname`, as in Apache's clients.
    """

    mode: str = "permissive"
    cert: str | None = None
    key: str | None = None
    key_password: str | None = None
    ca: str | None = None
    need_client_auth: str = "none"
    verify_server: bool = False
    check_hostname: bool = False

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"TLS mode {self.mode!r} is none of {', '.join(_MODES)}")
        if self.need_client_auth not in _CLIENT_AUTH:
            raise ConfigError(
                f"TLS client authentication {self.need_client_auth!r} is none of {', '.join(_CLIENT_AUTH)}"
            )

    def server_context(self) -> ssl.SSLContext:
        """Raises ConfigError when files are missing or are not what they should be."""
        if not self.cert:
            raise ConfigError("TLS on a server needs a certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        context.verify_mode = _CLIENT_AUTH[self.need_client_auth]
        return context

    def client_context(self) -> ssl.SSLContext:
        """Raises ConfigError when files are missing or are not what they should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname and self.verify_server
        context.verify_mode = ssl.CERT_REQUIRED if self.verify_server else ssl.CERT_NONE
        self._load(context)
        if self.verify_server and not self.ca:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.cert:
                # without a callback a protected key would ask on the terminal
                context.load_cert_chain(self.cert, self.key or None, lambda: self.key_password or "")
            if self.ca:
                context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            files = ", ".join(name for name in (self.cert, self.key, self.ca) if name)
            raise ConfigError(f"TLS files {files} cannot be used: {error}") from None


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
