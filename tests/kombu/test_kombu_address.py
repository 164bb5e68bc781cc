"""Broker URLs and transport options, as Kombu hands them to the transport."""

from __future__ import annotations

import json
import subprocess
import sys

import kombu
import pytest

from rocketq.errors import ConfigError
from rocketq_kombu.address import Address, Options


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rocketq://", Address("localhost:9876")),
        ("rocketq://mq", Address("mq:9876")),
        ("rocketq://mq:1/shop", Address("mq:1", virtual_host="/shop")),
        ("rocketq://a:1,b", Address("a:1;b:9876")),
        ("rocketq://a:1,b:2,a:1/shop", Address("a:1;b:2", virtual_host="/shop")),
        ("rocketq://a:1;b:2", Address("a:1;b:2")),
        ("rocketq://a:1;b/shop", Address("a:1;b:9876", virtual_host="/shop")),
        ("rocketq://a:1/shop;b:2", Address("a:1;b:2", virtual_host="/shop")),
        ("rocketq://[::1]:1", Address("[::1]:1")),
        ("rocketq://[::1]", Address("[::1]:9876")),
        ("rocketqs://a:1", Address("a:1", tls=True)),
        ("rocketq://a:1?ssl=true", Address("a:1", tls=True)),
        ("rocketq://a:1;b:2?ssl=true", Address("a:1;b:2", tls=True)),
        ("rocketq://me:s%3Acret@a:1,b:2", Address("a:1;b:2", access_key="me", secret_key="s:cret")),
        ("rocketq://me:secret@a:1;b:2/v", Address("a:1;b:2", "", "/v", access_key="me", secret_key="secret")),
        ("rocketq:///var/lib/mq", Address("", "/var/lib/mq")),
        ("rocketq:///var/l%20ib?virtual_host=shop", Address("", "/var/l ib", "shop")),
    ],
)
def test_urls_say_where_the_nameservers_are(url: str, expected: Address) -> None:
    assert Address.of(kombu.Connection(url)) == expected
    if not expected.local:  # Kombu makes a transport for a copy, which starts the server
        assert Address.of(kombu.Connection(url).clone()) == expected, "a pool's connections are copies"


def test_parts_may_be_given_one_by_one() -> None:
    connection = kombu.Connection("mq", transport="rocketq", userid="me", password="x", port=1, virtual_host="v")
    assert Address.of(connection) == Address("mq:1", virtual_host="v", access_key="me", secret_key="x")
    assert Address.of(kombu.Connection("mq", transport="rocketqs")).tls


def test_kombu_goes_through_alternatives_but_never_loses_a_cluster_or_its_virtual_host() -> None:
    connection = kombu.Connection("rocketq://a:1;b:2/one;rocketq://me:x@c:3;d:4/two")
    one = Address("a:1;b:2", virtual_host="/one")
    two = Address("c:3;d:4", virtual_host="/two", access_key="me", secret_key="x")
    seen = [Address.of(connection)]
    for _ in range(4):
        connection.maybe_switch_next()
        seen.append(Address.of(connection))
    assert seen == [one, one, two, two, one]


def test_a_parameter_that_means_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter sls"):
        Address.of(kombu.Connection("rocketq://a?sls=true"))


def test_secrets_are_not_shown() -> None:
    for url in ("rocketq://me:hidden@a:1,b:2/v", "rocketq://me:hidden@a:1;b:2", "rocketqs://me:hidden@a"):
        connection = kombu.Connection(url)
        assert "hidden" not in repr(Address.of(connection))
        assert connection.as_uri() == url.split(";")[0].replace("hidden", "**")
        assert "hidden" in connection.as_uri(include_password=True)


@pytest.mark.parametrize("lease", [0, 0.5, 3601, "soon", None])
def test_a_lease_has_1_to_3600_seconds(lease: object) -> None:
    with pytest.raises(ConfigError, match="1 to 3600"):
        Options.read({"lease": lease}, None)


def test_a_worker_loads_no_event_loop_beside_kombus() -> None:
    code = (
        "import json, sys, kombu.asynchronous.hub, kombu.transport.virtual; before = set(sys.modules);"
        "import rocketq_kombu.transport; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "rocketq.client.sync_producer" in loaded
    assert not {"asyncio", "rocketq.client.producer", "rocketq.client.push", "rocketq.broker"} & set(loaded)
