"""What the store's tests share."""

import pytest
from store_kit import Opener


@pytest.fixture
def opened(tmp_path):
    """`opened(**settings)` opens a store in one directory; it is closed when the test ends."""
    opener = Opener(tmp_path / "store")
    yield opener
    opener.close()
