"""Pages that are generated are current: the commands' help, and which request codes are served."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["cli", "compatibility"])
def test_generated_pages_are_current(name):
    page = runpy.run_path(str(DOCS / f"generate_{name}.py"))["page"]()
    assert page == (DOCS / f"{name}.md").read_text(encoding="utf-8"), f"run python docs/generate_{name}.py"
