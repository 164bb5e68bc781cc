"""One server for the tests of a file; each site has a virtual host of its own."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery_kit import POOLS, Site
from servers import ServerProcess, start_server

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def site(server: ServerProcess, tmp_path: Path) -> Callable[..., Site]:
    """Makes sites on the file's server."""

    def make(**options: object) -> Site:
        return Site(f"rocketq://{server.namesrv}/v{next(_numbers)}", tmp_path, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    return name
