"""What the commands that ask servers share: the options of connections, and the types of their values."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from rocketq.cli.times import parse_time
from rocketq.client.admin import Admin
from rocketq.client.sync_producer import Producer
from rocketq.remoting.tls import TlsConfig

_F = TypeVar("_F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False)


@dataclass(frozen=True)
class ClientOptions:
    """How a command reaches the servers, and how it prints. `timeout` is a request's, in seconds."""

    namesrv: str
    timeout: float
    tls: TlsConfig | None
    as_json: bool
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)

    @property
    def connection(self) -> dict[str, Any]:
        """What every client takes: TLS and the account."""
        return {"tls": self.tls, "access_key": self.access_key, "secret_key": self.secret_key}

    def admin(self) -> Admin:
        return Admin(self.namesrv, timeout=self.timeout, **self.connection)

    def producer(self, group: str) -> Producer:
        return Producer(group, self.namesrv, timeout=self.timeout, **self.connection)


def client_options(function: _F) -> _F:
    """`--namesrv`, TLS, the account, `--timeout` and `--json`; the command gets them as its first argument."""

    @functools.wraps(function)
    def command(
        *arguments: Any,
        namesrv: str,
        timeout: float,
        tls: bool,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        access_key: str | None,
        secret_key_file: str | None,
        as_json: bool,
        **parameters: Any,
    ) -> Any:
        if tls_key and not tls_cert:
            raise click.UsageError("--tls-key is the key of a certificate: it needs --tls-cert")
        config = None
        if tls or tls_ca or tls_cert:
            config = TlsConfig(ca=tls_ca, cert=tls_cert, key=tls_key, verify_server=tls_ca is not None)
        # no option for the secret itself: everybody on the machine sees the arguments of commands
        secret_key = os.environ.get("ROCKETQ_SECRET_KEY")
        if secret_key_file:
            secret_key = Path(secret_key_file).read_text().strip()
        if bool(access_key) != bool(secret_key):
            raise click.UsageError(
                "an account is --access-key (or ROCKETQ_ACCESS_KEY) and --secret-key-file (or ROCKETQ_SECRET_KEY)"
            )
        options = ClientOptions(namesrv, timeout, config, as_json, access_key, secret_key)
        return function(options, *arguments, **parameters)

    options = [
        click.option(
            "-n",
            "--namesrv",
            envvar=["ROCKETQ_NAMESRV", "NAMESRV_ADDR"],
            default="127.0.0.1:9876",
            show_default=True,
            show_envvar=True,
            metavar="HOST:PORT[;HOST:PORT]",
            help="NameServers to ask.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            default=5.0,
            show_default=True,
            metavar="SECONDS",
            help="How long one request may take.",
        ),
        click.option("--tls", is_flag=True, help="Encrypt connections; nobody's certificate is verified."),
        click.option("--tls-ca", type=_FILE, help="Verify servers with these authorities (PEM); implies --tls."),
        click.option("--tls-cert", type=_FILE, help="Certificate to show to servers (PEM); implies --tls."),
        click.option("--tls-key", type=_FILE, help="Its private key (PEM), where that is a file of its own."),
        click.option(
            "--access-key",
            envvar="ROCKETQ_ACCESS_KEY",
            show_envvar=True,
            metavar="NAME",
            help="Account, where brokers ask for one.",
        ),
        click.option(
            "--secret-key-file",
            type=_FILE,
            help="File with its secret key; or set the environment variable ROCKETQ_SECRET_KEY.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
    ]
    for option in reversed(options):
        command = option(command)
    return command  # type: ignore[return-value]


class TimeType(click.ParamType):  # type: ignore[type-arg]
    """A point in time as :mod:`rocketq.cli.times` reads it; ms since the epoch. Some words may stand for themselves."""

    name = "time"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return "|".join([*self.words, "TIME"])

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        if isinstance(value, int) or value in self.words:
            return value  # type: ignore[no-any-return]
        try:
            return parse_time(value, int(time.time() * 1000))
        except ValueError as error:
            words = f" ({' and '.join(self.words)} are words of their own)" if self.words else ""
            self.fail(f"{error}{words}", parameter, context)


def time_option(*names: str, help: str, **settings: Any) -> Callable[[_F], _F]:
    """An option that is a point in time. `help` ends with a full stop."""
    return click.option(
        *names, type=TimeType(), help=f"{help} As 2h ago, yesterday 08:00, 2031-05-01T12:00Z.", **settings
    )


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(yes: bool, question: str) -> None:
    """Asks before something is taken away. Raises click.Abort (exit code 1) for a no, and where nobody can answer."""
    if not yes:
        click.confirm(question, abort=True, err=True)
