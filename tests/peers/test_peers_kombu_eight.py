"""The eight things of the Kombu transport, by the same tests, on Apache's server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from apache import Apache

sys.path.insert(0, str(Path(__file__).parents[1] / "kombu"))
pytest.register_assert_rewrite("test_kombu_eight")
from test_kombu_eight import *  # noqa: E402, F403

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture
def server(apache: Apache) -> Apache:
    return apache


@pytest.fixture
def url(apache: Apache, name: str) -> str:
    return f"rocketq://{apache.namesrv}/{name}"


@pytest.fixture
def late() -> float:
    """Apache's broker looks for leases that ended every second, and waits for more in its timer."""
    return 20.0


@pytest.fixture
def settles() -> float:
    """Apache's broker answers first."""
    return 60.0


@pytest.fixture
def overtakes() -> int:
    """Apache's broker skips what it is just committing the acknowledgements of; in any order there would be 200."""
    return 5
