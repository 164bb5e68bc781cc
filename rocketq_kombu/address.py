"""Broker URLs and transport options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rocketq.errors import ConfigError
from rocketq.remoting.tls import TlsConfig

DEFAULT_PORT = 9876


@dataclass(frozen=True)
class Address:
    """Where a URL leads.

    `namesrv`: NameServers (`host:port;host:port`), empty for a server of this machine, whose data are in the directory
    `local`; `virtual_host` keeps the queues of several applications apart; `tls`: whether the URL asks for it;
    `access_key`, `secret_key`: the account.
    """

    namesrv: str
    local: str = ""
    virtual_host: str = "/"
    tls: bool = False
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, client: Any) -> Address:
        """The address of a `kombu.Connection`.

        ``rocketq://[user:secret@]host[:port][,host…][/virtual host][?ssl=true]``, or ``rocketq:///directory``.
        """
        text = client.hostname or "localhost"
        host, tls = client.virtual_host or "/", False
        account = (client.userid or None, client.password or None)
        if "://" in text:
            parts = urlsplit(text)
            query = parse_qs(parts.query)
            tls = parts.scheme == "rocketqs" or query.get("ssl", ["false"])[0].lower() == "true"
            path = unquote(parts.path)
            if not parts.netloc and path.strip("/"):
                return cls("", path, query.get("virtual_host", ["/"])[0])
            host = path or host
            user, _, text = parts.netloc.rpartition("@")
            if user:
                name, _, secret = user.partition(":")
                account = (unquote(name), unquote(secret))
        elif client.port:
            text = f"{text}:{client.port}"
        servers: list[str] = []
        for server in (text or "localhost").split(","):
            server = server.strip()
            if server and ":" not in server:
                server = f"{server}:{DEFAULT_PORT}"
            if server and server not in servers:
                servers.append(server)
        return cls(";".join(servers), "", host, tls, *account)


@dataclass(frozen=True)
class Options:
    """`transport_options`.

    `lease`: seconds (1 to 3600, default 30) for which a delivered message is ours before it has to be renewed, and
    after which another worker gets the tasks of one that was killed. `hold_eta`: whether brokers keep tasks with an
    eta until they are due (default) or workers do. `dead_letters`: whether tasks that failed for good are kept in the
    dead letters of their queue (default). `tls`: how to connect.
    """

    lease: float = 30.0
    hold_eta: bool = True
    dead_letters: bool = True
    tls: TlsConfig | None = None

    @classmethod
    def read(cls, options: dict[str, Any], ssl: Any) -> Options:
        """Raises ConfigError for a lease that cannot be."""
        try:
            lease = float(options.get("lease", cls.lease))
        except (TypeError, ValueError):
            lease = 0.0
        if not 1 <= lease <= 3600:
            raise ConfigError(f"transport option lease={options['lease']!r}: a lease has 1 to 3600 seconds")
        tls = None
        if ssl:
            given = ssl if isinstance(ssl, dict) else {}
            ca = given.get("ca_certs") or given.get("ssl_ca_certs") or ""
            tls = TlsConfig(
                cert=given.get("certfile") or given.get("ssl_certfile") or "",
                key=given.get("keyfile") or given.get("ssl_keyfile") or "",
                ca=ca,
                verify_server=bool(ca),
            )
        return cls(lease, bool(options.get("hold_eta", True)), bool(options.get("dead_letters", True)), tls)
