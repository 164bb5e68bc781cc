"""How servers and clients use TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from rocketq.errors import ConfigError

_MODES = ("disabled", "permissive", "enforcing")
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "require": ssl.CERT_REQUIRED}


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
