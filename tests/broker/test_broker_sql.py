"""SQL92 expressions: what they mean, what is refused, and against a model that evaluates trees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.broker.sql import MAX_DEPTH, MAX_LENGTH, SqlError, compile_sql

MESSAGE = {
    "a": "5",
    "b": "b",
    "price": "2.50",
    "big": "3000000000",
    "yes": "True",
    "quote": "it's",
    "TAGS": "paid",
    "$x_1": "1",
}

MATCH = [
    "a = 5",
    "a = 5L",
    "5 = a",
    "a = '5'",
    "a <> 6",
    "a > 4.5",
    "a >= 5 AND a <= 5",
    "a < 6 and NOT (a < 5)",
    "+a = 5",
    "a > -5",
    "a > - - 4",
    "price > 2.4",
    "price = .25e1",
    "price < 1e3",
    "big > 5",
    "a > $x_1",
    "price < a",
    "a BETWEEN 5 AND 5",
    "a BETWEEN -1 AND 9",
    "a NOT BETWEEN 6 AND 9",
    "a BETWEEN $x_1 AND big",
    "b IN ('a', 'b')",
    "b NOT IN ('a')",
    "(b) IN ('b')",
    "TAGS = 'paid'",
    "quote = 'it''s'",
    "quote CONTAINS ''''",
    "b contains 'b'",
    "b NOT CONTAINS 'x'",
    "TAGS STARTSWITH 'pa' AND TAGS ENDSWITH 'id'",
    "TAGS NOT STARTSWITH 'x' AND TAGS NOT ENDSWITH 'x'",
    "yes = TRUE",
    "yes <> false",
    "b = FALSE",
    "b = TRUE = FALSE",
    "missing IS NULL",
    "a IS NOT NULL",
    "a is not null = true",
    "missing = other",  # Apache's two nulls are the same
    "5 <> missing",  # and it does not look for a null on the right
    "NOT b",  # a string is not true
    "TRUE",
    "FALSE OR a = 5",
    "missing = 1 OR a = 5",
    "a = 5 OR missing > b",
    "a = 6 OR b = 'b' AND TAGS = 'paid'",
    "(a = 6 OR b = 'b') AND TAGS = 'paid'",
    "a = 5 -- the rest is a comment",
    "/* first */ a /* then */ = 5",
    "a\n=\t5\r",
    "1 = 1.0",
    "1 < 2",
]
NO_MATCH = [
    "a = 6",
    "a <> 5",
    "a = '6'",
    "b = 5",  # not a number
    "b <> 5",
    "NOT (b = 5)",
    "price > 2",  # beside an integer it has to be one
    "a > b",
    "b",
    "NULL",
    "FALSE",
    "NOT TRUE",
    "a IS NULL",
    "missing = 1",
    "missing <> 1",
    "NOT (missing = 1)",
    "missing > 1",
    "NOT (missing > 1)",
    "missing BETWEEN 1 AND 2",
    "missing NOT BETWEEN 1 AND 2",
    "missing IN ('x')",
    "missing NOT IN ('x')",
    "missing CONTAINS 'x'",
    "missing NOT CONTAINS 'x'",
    "b CONTAINS ''",
    "b NOT CONTAINS ''",
    "missing = 1 AND a = 5",
    "missing",
    "NOT missing",
    "-a = -5",  # properties are strings, which have no negative
    "NOT a = 'x'",  # NOT binds tighter: a boolean beside a string
    "a > 5 AND a > b",  # false decides before what cannot be compared
    "TAGS = 'PAID'",
    "tags = 'paid'",
]
ERRORS = [
    ("", 1, "expected a property, a value or '(', found the end"),
    ("a >", 4, "found the end of the expression"),
    ("a = 5 garbage", 7, "expected AND, OR or the end, found 'garbage'"),
    ("a = 5 6", 7, "expected AND, OR or the end"),
    ("(a = 5", 7, "expected ')'"),
    ("a = 5)", 6, "found ')'"),
    ("a = 'x", 5, "no closing quote"),
    ("a = 5 /* x", 7, "comment has no end"),
    ("a == 5", 4, "expected a property"),
    ("a ! 5", 3, "unexpected character '!'"),
    ('a = "x"', 5, "unexpected character"),
    ("a + 5 = 6", 3, "expected AND, OR or the end"),
    ("a > 'x'", 5, "compare numbers and properties only"),
    ("TRUE < a", 1, "compare numbers"),
    ("NOT a > 3", 1, "compare numbers"),
    ("a > 3 > 2", 1, "compare numbers"),
    ("a BETWEEN 2 AND 1", 11, "smaller number first"),
    ("a BETWEEN 'a' AND 'b'", 11, "compare numbers"),
    ("a BETWEEN NULL AND 5", 11, "compare numbers"),
    ("a BETWEEN 1 OR 5", 13, "expected AND"),
    ("a IN ()", 7, "string in single quotes"),
    ("a IN (5)", 7, "string in single quotes, found '5'"),
    ("a IN ('x' 'y')", 11, "',' or ')'"),
    ("5 IN ('x')", 1, "name of a property"),
    ("a CONTAINS b", 12, "string in single quotes"),
    ("a NOT 5", 3, "expected AND, OR or the end"),
    ("a = NULL", 5, "IS NULL"),
    ("NULL <> a", 1, "IS NULL"),
    ("a IS TRUE", 6, "NULL or NOT NULL"),
    ("TRUE = 'x'", 8, "with each other only"),
    ("5", 1, "expected a condition"),
    ("a = 5 AND 'x'", 11, "expected a condition"),
    ("a = 007", 5, "does not begin with 0"),
    ("a = 9223372036854775808", 5, "64 bits"),
    ("a = " + "9" * 5000, 5, "64 bits"),
    ("a = 1e999", 5, "too large"),
    ("a LIKE 'x'", 3, "expected AND, OR or the end, found 'LIKE'"),
    ("a = 5" + " " * MAX_LENGTH, MAX_LENGTH + 1, f"longer than {MAX_LENGTH}"),
]


@pytest.mark.parametrize("expression", MATCH)
def test_it_matches(expression: str) -> None:
    assert compile_sql(expression)(MESSAGE)


@pytest.mark.parametrize("expression", NO_MATCH)
def test_it_does_not_match(expression: str) -> None:
    assert not compile_sql(expression)(MESSAGE)


@pytest.mark.parametrize(("expression", "position", "reason"), ERRORS, ids=[error[0][:30] for error in ERRORS])
def test_what_cannot_be_read_is_told_with_its_position(expression: str, position: int, reason: str) -> None:
    with pytest.raises(SqlError) as caught:
        compile_sql(expression)
    assert caught.value.position == position
    assert reason in caught.value.reason
    assert str(caught.value) == f"position {position}: {caught.value.reason}"


def test_what_cannot_be_compared_only_counts_when_it_is_looked_at() -> None:
    assert not compile_sql("b = 5 OR TRUE")(MESSAGE)
    assert compile_sql("TRUE OR b = 5")(MESSAGE)


@pytest.mark.parametrize("value", ["Infinity", " 7 ", "7.", ".7e1", "7d", "+7F", "1e400", "7"])
def test_numbers_as_java_writes_them(value: str) -> None:
    assert compile_sql("a > 3.5")({"a": value})


@pytest.mark.parametrize(
    "value", ["", "NaN", "seven", "7_0", "0x7", "7 7", "--7", "7e", ".", "inf", "1" * 40 + "x"]
)
def test_what_java_takes_for_no_number(value: str) -> None:
    assert not compile_sql("a > 3.5 OR a <= 3.5")({"a": value})


@pytest.mark.parametrize("value", ["9223372036854775808", "5.0", " 5", "5_0", "5L", "1" * 4000, ""])
def test_what_java_takes_for_no_long(value: str) -> None:
    assert not compile_sql("a > 3 OR a <= 3")({"a": value})


@pytest.mark.parametrize("deep", ["({})", "NOT ({})", "NOT {}", "{} IS NULL", "{} = TRUE", "{} CONTAINS 'x'"])
def test_depth_is_limited(deep: str) -> None:
    def nested(times: int) -> str:
        text = "TRUE"
        for _ in range(times):
            text = deep.format(text)
        return text

    compile_sql(nested(20))({})
    with pytest.raises(SqlError, match=f"deeper than {MAX_DEPTH}"):
        compile_sql(nested(500))


def test_signs_are_limited_too() -> None:
    with pytest.raises(SqlError, match="deeper"):
        compile_sql("a > " + "- " * 2000 + "5")


def test_a_long_flat_expression_is_not_deep() -> None:
    many = " OR ".join(["a = 1"] * 900)
    assert len(many) < MAX_LENGTH
    assert not compile_sql(many)({"a": "2"})
    assert compile_sql(many)({"a": "1"})


# what follows builds expressions of which it knows the value


NAMES = ["a", "b", "c"]
Tri = bool | None
Props = dict[str, str]


def _sql_string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _as_long(text: str) -> int | None:
    digits = text.removeprefix("-").removeprefix("+")
    plain = digits.isascii() and digits.isdigit() and len(text) - len(digits) <= 1
    return int(text) if plain and -(2**63) <= int(text) < 2**63 else None


class _Error(Exception):
    pass


def _model(tree: tuple, properties: Props) -> Tri:
    """Three-valued logic, written down once more and as plainly as possible."""
    kind, *parts = tree
    if kind == "and" or kind == "or":
        deciding = kind == "or"
        values = []
        for part in parts:
            value = _model(part, properties)
            if value is deciding:
                return deciding
            values.append(value)
        return None if None in values else not deciding
    if kind == "not":
        value = _model(parts[0], properties)
        return None if value is None else not value
    name, *rest = parts
    value = properties.get(name)
    if kind == "null":
        return (value is None) is rest[0]
    if kind == "contains":
        return bool(value is not None and rest[0]) and (rest[0] in value) is rest[1]
    if value is None:
        return None
    if kind == "string":
        return (value == rest[0]) is rest[1]
    if kind == "in":
        return (value in rest[0]) is rest[1]
    number = _as_long(value)
    if number is None:
        raise _Error
    if kind == "between":
        return (rest[0] <= number <= rest[1]) is rest[2]
    return {
        "=": number == rest[1],
        "<>": number != rest[1],
        "<": number < rest[1],
        "<=": number <= rest[1],
        ">": number > rest[1],
        ">=": number >= rest[1],
    }[rest[0]]


def _text(tree: tuple) -> str:
    kind, *parts = tree
    if kind in ("and", "or"):
        return f" {kind.upper()} ".join(f"({_text(part)})" for part in parts)
    if kind == "not":
        return f"NOT ({_text(parts[0])})"
    name, *rest = parts
    if kind == "null":
        return f"{name} IS {'' if rest[0] else 'NOT '}NULL"
    if kind == "contains":
        return f"{name} {'' if rest[1] else 'NOT '}CONTAINS {_sql_string(rest[0])}"
    if kind == "string":
        return f"{name} {'=' if rest[1] else '<>'} {_sql_string(rest[0])}"
    if kind == "in":
        return f"{name} {'' if rest[1] else 'not '}in ({', '.join(map(_sql_string, rest[0]))})"
    if kind == "between":
        return f"{name} {'' if rest[2] else 'NOT '}BETWEEN {rest[0]} AND {rest[1]}"
    return f"{name}{rest[0]}{rest[1]}"


names = st.sampled_from(NAMES)
words = st.sampled_from(["", "x", "it's", "''", "5", "-1", "--", "xx"])
numbers = st.integers(-6, 6)
leaves = st.one_of(
    st.tuples(st.just("null"), names, st.booleans()),
    st.tuples(st.just("contains"), names, words, st.booleans()),
    st.tuples(st.just("string"), names, words, st.booleans()),
    st.tuples(st.just("in"), names, st.lists(words, min_size=1, max_size=6), st.booleans()),
    st.tuples(st.just("number"), names, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), numbers),
    st.builds(
        lambda name, one, other, plain: ("between", name, min(one, other), max(one, other), plain),
        names,
        numbers,
        numbers,
        st.booleans(),
    ),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.builds(lambda kind, parts: (kind, *parts), st.sampled_from(["and", "or"]), st.lists(inner, min_size=2)),
    ),
    max_leaves=12,
)
messages = st.dictionaries(names, st.one_of(words.filter(bool), numbers.map(str)))


@settings(deadline=None)
@given(trees, st.lists(messages, min_size=1, max_size=4))
def test_expressions_mean_what_a_model_says(tree: tuple, many: list[Props]) -> None:
    match = compile_sql(_text(tree))
    for properties in many:
        try:
            expected = _model(tree, properties) is True
        except _Error:
            expected = False
        assert match(properties) is expected, (_text(tree), properties)


@settings(deadline=None)
@given(trees)
def test_without_parentheses_and_binds_tighter_than_or(tree: tuple) -> None:
    expression = f"a = '1' OR {_text(tree) if tree[0] != 'or' else '(' + _text(tree) + ')'}"
    assert compile_sql(expression)({"a": "1"})


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="aN0.'()=<>-+*/ \n,$"),
        st.lists(
            st.sampled_from(
                "a 'x' 5 .5 1e9 NOT AND OR IN BETWEEN IS NULL TRUE ( ) , = <> < >= - + CONTAINS -- /* */".split()
            )
        ).map(" ".join),
    ),
    messages,
)
def test_any_text_is_read_or_refused(text: str, properties: Props) -> None:
    position = 1
    try:
        assert compile_sql(text)(properties) in (True, False)
    except SqlError as error:
        position = error.position
    assert 1 <= position <= len(text) + 1
