"""Accounts and signatures between the makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache import Apache, PeerMissing, missing
from ours import Rocketq
from peer import ACCESS_KEY, CLIENTS, SECRET_KEY, Peer
from scenarios import bodies, plain
from wire import Server

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

GetClient = Callable[[str], Peer]
#: Java says no more than this once it has tried all brokers.
REFUSED = r"topic Secret|No accessKey is configured|Send \[\d\] times, still failed"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rocketq]:
    """Our server, where the account of the clients may do all but what has to do with `Secret`."""
    directory = tmp_path_factory.mktemp("guarded")
    accounts = directory / "plain_acl.yml"
    account = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY, "defaultTopicPerm": "PUB|SUB"}
    account |= {"defaultGroupPerm": "SUB", "topicPerms": ["Secret=DENY"]}
    accounts.write_text(json.dumps({"accounts": [account]}))  # which is YAML too
    server = Rocketq(directory, config={"aclEnable": "true", "aclFile": accounts}).start()
    yield server
    server.stop()


@pytest.fixture
def guarded_apache(tmp_path: Path) -> Iterator[Apache]:
    """Apache's broker, which knows the account of the clients only."""
    provider = "org.apache.rocketmq.auth.authentication.provider"
    account = json.dumps({"username": ACCESS_KEY, "password": SECRET_KEY})
    settings: dict[str, object] = {
        "authenticationEnabled": "true",
        "authenticationProvider": f"{provider}.DefaultAuthenticationProvider",
        "authenticationMetadataProvider": f"{provider}.LocalAuthenticationMetadataProvider",
        "authConfigPath": tmp_path / "auth",
        "initAuthenticationUser": account,
    }
    server = Apache(tmp_path / "apache", config=settings)
    try:
        server.start()
    except PeerMissing as reason:
        missing(reason)
    yield server
    server.kill()


def works(server: Server, peer: Peer, topic: str) -> None:
    peer.send(server, topic, plain(20, "sync"))
    peer.send(server, topic, plain(20, "async"), how="async")
    consumer = peer.consume(server, topic, f"G_{topic}")
    consumer.wait(40)
    assert sorted(message["body"] for message in consumer.stop()) == bodies(20, "async") + bodies(20, "sync")


@pytest.mark.parametrize("make", CLIENTS)
def test_clients_of_all_makes_sign_for_our_server(
    guarded: Rocketq, client: GetClient, name: str, make: str
) -> None:
    works(guarded, client(f"{make}-acl"), name)
    with pytest.raises(RuntimeError, match=REFUSED):
        client(f"{make}-acl").send(guarded, "Secret", plain(1))


def test_clients_without_an_account_are_refused(guarded: Rocketq, client: GetClient, name: str) -> None:
    for make in ("java-5.4.0", "rocketq"):
        with pytest.raises(RuntimeError, match=REFUSED):
            client(make).send(guarded, name, plain(1))


def test_our_client_signs_for_apaches_server(guarded_apache: Apache, client: GetClient, name: str) -> None:
    works(guarded_apache, client("rocketq-acl"), name)
    with pytest.raises(RuntimeError, match=r"(?i)username|authenticat"):
        client("rocketq").send(guarded_apache, f"{name}_unsigned", plain(1))
