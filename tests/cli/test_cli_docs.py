"""The page about the commands is what their help says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_about_the_commands_is_current():
    page = runpy.run_path(str(DOCS / "generate_cli.py"))["page"]()
    assert page == (DOCS / "cli.md").read_text(encoding="utf-8"), "run python docs/generate_cli.py"
