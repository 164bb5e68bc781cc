"""Signing requests as Apache's `AclClientRPCHook`."""

from __future__ import annotations

import pytest

from rocketq import RocketQ
from rocketq.errors import ConfigError
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import FrameDecoder, encode_request
from rocketq.remoting.credentials import Credentials, signature
from rocketq.remoting.session import Session

ALICE = Credentials("alice", "alices secret")


@pytest.mark.parametrize(
    ("ext", "body", "secret", "expected"),
    [
        # computed by org.apache.rocketmq.acl.common.AclClientRPCHook of 5.4.0
        (
            {"AccessKey": "alice", "b": "orders", "a": "group"},
            b"hello",
            "secret-key",
            "Ib+4TxQGk8mnve+0/xv357/bC1Y=",
        ),
        ({"AccessKey": "alice", "topic": "übung"}, b"", "schlüssel", "y6XDCurJEw5RKGN5hP1PzAtUH9A="),
        ({"AccessKey": "alice"}, bytes(range(256)), "12345678", "bWHi9D6ZVgR3gG/0wZeG4LqwZqc="),
    ],
)
def test_signatures_are_those_of_apaches_signer(
    ext: dict[str, str], body: bytes, secret: str, expected: str
) -> None:
    assert signature(ext, body, secret.encode()) == expected
    assert signature({**ext, "Signature": "whatever"}, body, secret.encode()) == expected


@pytest.mark.parametrize("serialize_type", [JSON, BINARY])
@pytest.mark.parametrize("oneway", [False, True])
def test_every_request_of_a_session_is_signed(serialize_type: int, oneway: bool) -> None:
    session = Session(lambda: 0.0, serialize_type=serialize_type, credentials=ALICE)
    header = {"topic": "T", "queueId": "3"}
    frame = session.oneway(10, header, b"body") if oneway else session.request(10, header, b"body")[1]
    (command,) = FrameDecoder().feed(frame)
    ext = dict(command.ext)
    assert ext.pop("Signature") == signature(ext, b"body", b"alices secret")
    assert ext == {"topic": "T", "queueId": "3", "AccessKey": "alice"}
    assert header == {"topic": "T", "queueId": "3"}


def test_without_credentials_nothing_is_added() -> None:
    session = Session(lambda: 0.0)
    assert session.oneway(10, {"a": "b"}) == encode_request(10, 0, {"a": "b"}, oneway=True)


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(ALICE).replace("secret_key", "")


def test_half_an_account_is_refused() -> None:
    with pytest.raises(ConfigError, match="secret_key is missing"):
        RocketQ("app", access_key="alice")
    with pytest.raises(ConfigError, match="access_key is missing"):
        Credentials.of(None, "secret")
    assert Credentials.of(None, None) is None


def test_applications_find_their_account_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKETQ_ACCESS_KEY", "alice")
    monkeypatch.setenv("ROCKETQ_SECRET_KEY", "s")
    assert RocketQ("app").connection_options == {"access_key": "alice", "secret_key": "s"}
