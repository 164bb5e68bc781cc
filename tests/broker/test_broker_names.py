"""Names of topics and groups, and tag expressions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq import filters, names
from rocketq.hashing import tags_code


@pytest.mark.parametrize("topic", ["T", "a" * 127, "%RETRY%g", "%DLQ%" + "g" * 250, "a|b-c_D%9"])
def test_good_topics_pass(topic: str) -> None:
    assert names.check_topic(topic) is None


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("", "blank"),
        ("  ", "blank"),
        ("a b", "illegal characters"),
        ("ä", "illegal characters"),
        ("a\n", "illegal characters"),
        ("a" * 128, "longer than topic max length: 127"),
        ("%RETRY%" + "g" * 249, "max length: 255"),
    ],
)
def test_bad_topics_are_explained(topic: str, text: str) -> None:
    assert text in (names.check_topic(topic) or "")


@pytest.mark.parametrize(
    ("group", "text"),
    [("", "blank"), ("a b", "illegal"), ("g" * 121, "longer than group max length: 120"), ("g\x00", "illegal")],
)
def test_bad_groups_are_explained(group: str, text: str) -> None:
    assert text in (names.check_group(group) or "")


def test_the_longest_group_has_retry_and_dead_letter_topics() -> None:
    group = "g" * names.GROUP_MAX_LENGTH
    assert names.check_group(group) is None
    assert names.check_topic(names.retry_topic(group)) is None
    assert names.check_topic(names.dlq_topic(group)) is None


def test_system_topics_are_known_by_name_and_prefix() -> None:
    assert names.is_system_topic("TBW102")
    assert names.is_system_topic("rmq_sys_anything")
    assert not names.is_system_topic("Orders")


@pytest.mark.parametrize("expression", [None, "", "*", "||", " || "])
def test_expressions_that_let_everything_pass(expression: str | None) -> None:
    assert filters.parse_codes(expression) is None


def test_tags_are_trimmed_and_parts_without_text_ignored() -> None:
    assert filters.parse_tags(" TagA||TagB || ||") == {"TagA", "TagB"}
    assert filters.parse_codes("TagA || TagB") == {2598919, 2598920}


tags = st.text(
    st.characters(blacklist_characters="|*", blacklist_categories=("Cs", "Zs", "Cc", "Zl", "Zp")), min_size=1
)


@settings(max_examples=100)
@given(st.lists(tags, min_size=1, max_size=6), st.sampled_from(["||", " || ", "  ||"]))
def test_every_tag_of_an_expression_passes_it(parts: list[str], separator: str) -> None:
    codes = filters.parse_codes(separator.join(parts))
    assert codes == {tags_code(part) for part in parts}
