"""Broker URLs and transport options."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from rocketq.errors import ConfigError
from rocketq.remoting.tls import TlsConfig

DEFAULT_PORT = 9876
_PORT = re.compile(r"[^:]:\d+$|\]:\d+$")


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
        NameServers may be separated by ``;`` as well; after ``;scheme://`` another cluster begins, which is used when
        the one before cannot be reached. Raises ConfigError for a parameter that means nothing.
        """
        parts = _parts(client)
        tls = "rocketqs" in (parts[0].scheme, client.transport_cls)
        query = {name: value for part in parts for name, value in parse_qsl(part.query)}
        if parts[0].scheme:
            tls = tls or query.pop("ssl", "false").lower() == "true"
        path = next((unquote(part.path) for part in parts if part.path.strip("/")), client.virtual_host or "/")
        local = bool(parts[0].scheme) and not any(part.netloc for part in parts) and path.strip("/") != ""
        host = query.pop("virtual_host", "/") if local else path
        if query:
            raise ConfigError(f"a rocketq URL has no parameter {', '.join(query)}: there is ssl=true")
        if local:
            return cls("", path, host)
        account = (client.userid or None, client.password or None)
        servers: list[str] = []
        for part in parts:
            user, _, netloc = part.netloc.rpartition("@")
            if user:
                name, _, secret = user.partition(":")
                account = (unquote(name), unquote(secret))
            for server in filter(None, map(str.strip, netloc.split(","))):
                server = server if _PORT.search(server) else f"{server}:{DEFAULT_PORT}"
                if server not in servers:
                    servers.append(server)
        return cls(";".join(servers or [f"localhost:{DEFAULT_PORT}"]), "", host, tls, *account)


def _parts(client: Any) -> list[SplitResult]:
    """The URL that the connection uses now, and the NameServers behind it without a scheme of their own.

    Kombu takes ``;`` for the beginning of an alternative, and names only the one that it is at.
    """
    urls: list[list[str]] = []
    current = None
    for text in client.alt or ():
        if "://" in text or not urls:
            urls.append([])
        urls[-1].append(text)
        if current is None and _is_at(client, text):
            current = urls[-1]
    if current is None:
        current = [client.hostname or "localhost"]
        if client.port and "://" not in current[0]:
            current = [f"{current[0]}:{client.port}"]
    return [urlsplit(text if "://" in text else f"//{text}") for text in current]


def _is_at(client: Any, text: str) -> bool:
    if text == client.hostname:
        return True
    parts = urlsplit(text)
    if not parts.scheme or "," in parts.netloc:
        return False
    return (parts.hostname, parts.port) == (client.hostname, client.port)


@dataclass(frozen=True)
class Options:
    """`transport_options`.

    `lease`: seconds (1 to 3600, default 30) for which a delivered message is ours before it has to be renewed, and
    after which another worker gets the tasks of one whose machine is gone. `grace`: seconds (0 to 3600, default 0)
    that a worker has to come back after its connections ended, before others get its tasks. `hold_eta`: whether
    brokers keep tasks with an eta until they are due (default) or workers do. `dead_letters`: whether tasks that
    failed for good are kept in the dead letters of their queue (default). `confirm_publish`: whether publishing waits
    until the broker has the message (default), or only until it is sent, and nobody hears of what is refused or lost.
    `tls`: how to connect.
    """

    lease: float = 30.0
    grace: float = 0.0
    hold_eta: bool = True
    dead_letters: bool = True
    confirm_publish: bool = True
    tls: TlsConfig | None = None

    @classmethod
    def read(cls, options: dict[str, Any], ssl: Any) -> Options:
        """Raises ConfigError for a lease or a grace that cannot be."""
        lease = _seconds(options, "lease", 1, cls.lease)
        grace = _seconds(options, "grace", 0, cls.grace)
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
        chosen = {name: bool(options.get(name, True)) for name in ("hold_eta", "dead_letters", "confirm_publish")}
        return cls(lease, grace, tls=tls, **chosen)


def _seconds(options: dict[str, Any], name: str, least: int, default: float) -> float:
    """Raises ConfigError."""
    try:
        seconds = float(options.get(name, default))
    except (TypeError, ValueError):
        seconds = -1.0
    if not least <= seconds <= 3600:
        raise ConfigError(f"transport option {name}={options[name]!r}: it has {least} to 3600 seconds")
    return seconds
