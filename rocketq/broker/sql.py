"""SQL92 expressions over a message's properties: ``amount > 3 AND TAGS IN ('paid', 'open')``.

What may be written, and what it means, is what Apache's `SelectorParser` takes: ``= <> > >= < <=``, ``BETWEEN``,
``IN``, ``IS NULL``, ``CONTAINS``, ``STARTSWITH``, ``ENDSWITH`` (each with ``NOT``), ``AND OR NOT``, strings in single
quotes, numbers, TRUE, FALSE, NULL. From loose to tight: OR; AND; = <> IS; the other comparisons; NOT + -.

Properties are strings. What they are compared with decides how they are read: beside 3 as an integer, beside 3.5 as a
number, beside TRUE as a boolean, and with ``> >= < <=`` between two properties both as numbers. A property that is not
of that kind makes its message not match. A property that is missing is NULL: a comparison with it is neither true nor
false, nor are AND, OR and NOT over it unless the other side decides; only what is true matches.

Three things are stricter or wider here: text behind the expression is an error, an expression has limits, and numbers
beside an integer may have 64 bits whatever the integer's size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: Characters of an expression.
MAX_LENGTH = 8192
#: How deep parentheses, NOT, signs and chains like ``a = b = c`` may nest.
MAX_DEPTH = 50

Properties = Mapping[str, str]
Value = str | int | float | bool | None
Evaluate = Callable[[Properties], Value]

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\n\r\f]+|--[^\n\r]*|/\*.*?\*/)
    |(?P<float>(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
    |(?P<integer>[0-9]+[lL]?)
    |(?P<string>'(?:''|[^'])*')
    |(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    |(?P<symbol><>|<=|>=|[=<>(),+-])""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset("NOT AND OR BETWEEN IN TRUE FALSE NULL IS CONTAINS STARTSWITH ENDSWITH".split())
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(
    r"\s*[+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[fFdD]?\s*", re.ASCII
)
_LONG = 2**63


class SqlError(ValueError):
    """An expression that cannot be read: where (the first character is 1) and why."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"position {position}: {reason}")
        self.position = position
        self.reason = reason


class _Incomparable(Exception):
    """A property is not of the kind that it is compared with; its message does not match."""


class _Token(NamedTuple):
    """`kind`: a keyword, a symbol, or one of name, string, integer, float, end."""

    kind: str
    text: str
    position: int


class _Node(NamedTuple):
    """A part of an expression. `kind`: constant (of `value`), property, condition, or negated (a property)."""

    evaluate: Evaluate
    kind: str
    depth: int
    value: Value = None


def compile_sql(expression: str) -> Callable[[Properties], bool]:
    """What tells whether a message with these properties matches. Raises SqlError."""
    if len(expression) > MAX_LENGTH:
        raise SqlError(MAX_LENGTH + 1, f"the expression is longer than {MAX_LENGTH} characters")
    evaluate = _Parser(_tokens(expression)).parse()

    def match(properties: Properties) -> bool:
        try:
            return evaluate(properties) is True
        except _Incomparable:
            return False

    return match


def _tokens(expression: str) -> list[_Token]:
    tokens = []
    at = 0
    while at < len(expression):
        found = _TOKEN.match(expression, at)
        if found is None:
            rest = expression[at:]
            if rest.startswith("'"):
                raise SqlError(at + 1, "the string has no closing quote")
            if rest.startswith("/*"):
                raise SqlError(at + 1, "the comment has no end")
            raise SqlError(at + 1, f"unexpected character {rest[0]!r}")
        kind, text = str(found.lastgroup), found[0]
        if kind == "symbol":
            kind = text
        elif kind == "name" and text.upper() in _KEYWORDS:
            kind = text.upper()
        if kind != "blank":
            tokens.append(_Token(kind, text, at + 1))
        at = found.end()
    tokens.append(_Token("end", "the end of the expression", at + 1))
    return tokens


class _Parser:
    """Reads tokens from left to right, one method for each level of precedence."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._nested = 0

    def parse(self) -> Evaluate:
        start = self._next
        condition = self._condition(self._or(), start)
        if self._next.kind != "end":
            raise self._unexpected("AND, OR or the end")
        return condition.evaluate

    # tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *kinds: str) -> _Token | None:
        """The next token if it is one of `kinds`."""
        token = self._next
        if token.kind not in kinds:
            return None
        self._at += 1
        return token

    def _need(self, kind: str, what: str) -> _Token:
        token = self._take(kind)
        if token is None:
            raise self._unexpected(what)
        return token

    def _unexpected(self, wanted: str) -> SqlError:
        token = self._next
        found = token.text if token.kind == "end" else repr(token.text[:40])
        return SqlError(token.position, f"expected {wanted}, found {found}")

    # nodes

    def _node(self, at: _Token, evaluate: Evaluate, kind: str, *parts: _Node) -> _Node:
        depth = 1 + max([part.depth for part in parts], default=0)
        if depth > MAX_DEPTH:
            raise SqlError(at.position, f"the expression nests deeper than {MAX_DEPTH}")
        return _Node(evaluate, kind, depth)

    def _condition(self, node: _Node, at: _Token) -> _Node:
        """`node` as something that is true, false or unknown."""
        if node.kind == "condition" or (node.kind == "constant" and (node.value is None or _is_bool(node.value))):
            return node
        if node.kind == "property":  # a string is not true
            value = node.evaluate
            return self._node(
                at, lambda properties: None if value(properties) is None else False, "condition", node
            )
        raise SqlError(at.position, "expected a condition, found a value")

    # levels of precedence

    def _or(self) -> _Node:
        return self._chain("OR", self._and, _any_true)

    def _and(self) -> _Node:
        return self._chain("AND", self._equality, _all_true)

    def _chain(self, word: str, level: Callable[[], _Node], join: Callable[[list[Evaluate]], Evaluate]) -> _Node:
        start = self._next
        first = level()
        if self._next.kind != word:
            return first
        parts = [self._condition(first, start)]
        while self._take(word):
            start = self._next
            parts.append(self._condition(level(), start))
        return self._node(start, join([part.evaluate for part in parts]), "condition", *parts)

    def _equality(self) -> _Node:
        start = self._next
        left = self._comparison()
        while operator := self._take("=", "<>", "IS"):
            if operator.kind == "IS":
                negated = self._take("NOT")
                self._need("NULL", "NULL or NOT NULL")
                value = left.evaluate
                null = _is_not_null(value) if negated else _is_null(value)
                left = self._node(operator, null, "condition", left)
                continue
            position = self._next
            right = self._comparison()
            for side, token in ((left, start), (right, position)):
                if side.kind == "constant" and side.value is None:
                    raise SqlError(token.position, "NULL cannot be compared, write IS NULL or IS NOT NULL")
            constants = left.kind == right.kind == "constant"
            if constants and _is_bool(left.value) and not _is_bool(right.value):
                raise SqlError(position.position, "TRUE and FALSE can be compared with each other only")
            equal = _equal(left.evaluate, right.evaluate)
            evaluate = _not(equal) if operator.kind == "<>" else equal
            left = self._node(operator, evaluate, "condition", left, right)
        return left

    def _comparison(self) -> _Node:
        start = self._next
        left = self._unary()
        while True:
            operator = self._next
            if self._take(">", ">=", "<", "<="):
                self._comparable(left, start)
                left = self._ordered(operator, left, self._bound())
                continue
            negated = operator.kind == "NOT"
            word = self._tokens[self._at + 1] if negated else operator
            if word.kind not in ("BETWEEN", "IN", "CONTAINS", "STARTSWITH", "ENDSWITH"):
                return left
            self._at += 1 + negated
            if word.kind == "BETWEEN":
                self._comparable(left, start)
                left = self._between(operator, left, negated)
            elif word.kind == "IN":
                if left.kind != "property":
                    raise SqlError(start.position, "IN needs the name of a property before it")
                left = self._node(operator, _is_in(left.evaluate, self._strings(), negated), "condition", left)
            else:
                text = self._string()
                evaluate = _has_text(left.evaluate, word.kind, text, negated)
                left = self._node(operator, evaluate, "condition", left)

    def _comparable(self, node: _Node, at: _Token) -> None:
        number = node.kind == "constant" and not _is_bool(node.value) and isinstance(node.value, (int, float))
        if not number and node.kind not in ("property", "negated"):
            raise SqlError(at.position, "> >= < <= and BETWEEN compare numbers and properties only")

    def _bound(self) -> _Node:
        at = self._next
        node = self._unary()
        self._comparable(node, at)
        return node

    def _ordered(self, operator: _Token, left: _Node, right: _Node) -> _Node:
        return self._node(
            operator, _compare(left.evaluate, right.evaluate, operator.kind), "condition", left, right
        )

    def _between(self, operator: _Token, value: _Node, negated: bool) -> _Node:
        at = self._next
        low = self._bound()
        self._need("AND", "AND")
        high = self._bound()
        if isinstance(low.value, (int, float)) and isinstance(high.value, (int, float)) and low.value > high.value:
            raise SqlError(at.position, f"BETWEEN needs the smaller number first: {low.value} AND {high.value}")
        kinds = ("<", ">") if negated else (">=", "<=")
        sides = [
            _compare(value.evaluate, bound.evaluate, kind) for bound, kind in zip((low, high), kinds, strict=True)
        ]
        joined = _any_true(sides) if negated else _all_true(sides)
        return self._node(operator, joined, "condition", value, low, high)

    def _unary(self) -> _Node:
        operator = self._take("+", "-", "NOT")
        if operator is None:
            return self._primary()
        self._nested += 1
        if self._nested > MAX_DEPTH:
            raise SqlError(operator.position, f"the expression nests deeper than {MAX_DEPTH}")
        start = self._next
        operand = self._unary()
        self._nested -= 1
        if operator.kind == "+":
            return operand
        if operator.kind == "NOT":
            condition = self._condition(operand, start)
            return self._node(operator, _not(condition.evaluate), "condition", condition)
        value = operand.value
        if operand.kind == "constant" and not _is_bool(value) and isinstance(value, (int, float)):
            return _constant(-value)
        # properties are strings, and a string has no negative
        return self._node(operator, lambda properties: None, "negated", operand)

    def _primary(self) -> _Node:
        token = self._next
        if self._take("("):
            self._nested += 1
            if self._nested > MAX_DEPTH:
                raise SqlError(token.position, f"the expression nests deeper than {MAX_DEPTH}")
            inner = self._or()
            self._need(")", "')'")
            self._nested -= 1
            return inner
        if self._take("name"):
            name = token.text
            return _Node(lambda properties: properties.get(name), "property", 1)
        if token.kind == "string":
            return _constant(self._string())
        if self._take("integer"):
            digits = token.text.rstrip("lL")
            if len(digits) > 1 and digits[0] == "0":
                raise SqlError(token.position, "an integer does not begin with 0")
            number = int(digits[:20])
            if number >= _LONG:
                raise SqlError(token.position, "the number does not fit into 64 bits")
            return _constant(number)
        if self._take("float"):
            real = float(token.text)
            if real == float("inf"):
                raise SqlError(token.position, "the number is too large")
            return _constant(real)
        if self._take("TRUE", "FALSE", "NULL"):
            return _constant({"TRUE": True, "FALSE": False, "NULL": None}[token.kind])
        raise self._unexpected("a property, a value or '('")

    def _string(self) -> str:
        return self._need("string", "a string in single quotes").text[1:-1].replace("''", "'")

    def _strings(self) -> frozenset[str]:
        self._need("(", "'('")
        strings = [self._string()]
        while self._take(","):
            strings.append(self._string())
        self._need(")", "',' or ')'")
        return frozenset(strings)


# what nodes evaluate


def _is_bool(value: Value) -> bool:
    return isinstance(value, bool)


def _constant(value: Value) -> _Node:
    return _Node(lambda properties: value, "constant", 1, value)


def _all_true(parts: list[Evaluate]) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        unknown = False
        for part in parts:
            value = part(properties)
            if value is False:
                return False
            unknown = unknown or value is None
        return None if unknown else True

    return evaluate


def _any_true(parts: list[Evaluate]) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        unknown = False
        for part in parts:
            value = part(properties)
            if value is True:
                return True
            unknown = unknown or value is None
        return None if unknown else False

    return evaluate


def _not(condition: Evaluate) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        value = condition(properties)
        return None if value is None else not value

    return evaluate


def _is_null(value: Evaluate) -> Evaluate:
    return lambda properties: value(properties) is None


def _is_not_null(value: Evaluate) -> Evaluate:
    return lambda properties: value(properties) is not None


def _is_in(value: Evaluate, strings: frozenset[str], negated: bool) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        found = value(properties)
        return None if found is None else (found in strings) is not negated

    return evaluate


def _has_text(value: Evaluate, word: str, text: str, negated: bool) -> Evaluate:
    """CONTAINS, STARTSWITH, ENDSWITH: false with and without NOT where there is no string or nothing to look for."""
    test: Callable[[str], bool]
    if word == "CONTAINS":
        test = lambda found: text in found  # noqa: E731
    elif word == "STARTSWITH":
        test = lambda found: found.startswith(text)  # noqa: E731
    else:
        test = lambda found: found.endswith(text)  # noqa: E731

    def evaluate(properties: Properties) -> Value:
        found = value(properties)
        return isinstance(found, str) and bool(text) and test(found) is not negated

    return evaluate


def _equal(left: Evaluate, right: Evaluate) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        one, other = left(properties), right(properties)
        if one is None:
            return True if other is None else None
        if other is None:  # not unknown: Apache's brokers tell the sides apart
            return False
        if type(one) is type(other):
            return one == other
        if isinstance(one, bool):
            if isinstance(other, str):
                raise _Incomparable
            return False
        if isinstance(other, bool):
            return isinstance(one, str) and (one.lower() == "true") is other
        one, other = _numbers(one, other)
        return one == other

    return evaluate


def _compare(left: Evaluate, right: Evaluate, operator: str) -> Evaluate:
    def evaluate(properties: Properties) -> Value:
        one, other = left(properties), right(properties)
        if one is None or other is None:
            return None
        one, other = _numbers(one, other)
        if operator == ">":
            return one > other
        if operator == ">=":
            return one >= other
        return one < other if operator == "<" else one <= other

    return evaluate


def _numbers(one: Value, other: Value) -> tuple[int | float, int | float]:
    """Both as numbers, a string as the other side is. Raises _Incomparable."""
    return _number(one, other), _number(other, one)


def _number(value: Value, beside: Value) -> int | float:
    if not isinstance(value, str):
        assert isinstance(value, (int, float))  # the parser lets nothing else come to a comparison
        return value
    if isinstance(beside, int):
        if _INTEGER.fullmatch(value) and -_LONG <= int(value) < _LONG:
            return int(value)
    elif _NUMBER.fullmatch(value):
        return float(value.strip().rstrip("fFdD"))
    raise _Incomparable
