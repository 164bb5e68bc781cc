"""Pages that are generated are current, and the tests that a page names exist."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["cli", "compatibility"])
def test_generated_pages_are_current(name):
    page = runpy.run_path(str(DOCS / f"generate_{name}.py"))["page"]()
    assert page == (DOCS / f"{name}.md").read_text(encoding="utf-8"), f"run python docs/generate_{name}.py"


def test_every_guarantee_names_a_test_that_exists():
    page = (DOCS / "durability.md").read_text(encoding="utf-8")
    table, _, listed = page.partition("## The tests")
    tests = dict(re.findall(r'<a id="(\w+)"></a>\w+ \[`([^`]+)`\]', listed))
    assert set(re.findall(r"\]\(#([a-z]\d+)\)", table)) == tests.keys()
    for name in tests.values():
        path, _, test = name.partition("::")
        source = (DOCS.parent / path).read_text(encoding="utf-8")
        assert re.search(rf"^(?:def {test}\(|{test} = )", source, re.MULTILINE), f"{name} does not exist"


def test_every_cell_of_what_is_guaranteed_has_its_test():
    page = (DOCS / "durability.md").read_text(encoding="utf-8").partition("## The tests")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    guarantees = [cell for row in rows if len(row) == 3 for cell in row[1:] if not cell.startswith(("`", "---"))]
    assert len(guarantees) > 50
    needs_none = re.compile("the same|without slaves everything")
    assert [cell for cell in guarantees if "](#" not in cell and not needs_none.match(cell)] == []
