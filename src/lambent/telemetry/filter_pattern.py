"""CloudWatch Logs' filter patterns.

    ERROR "time out"        every term occurs (case counts)
    ?ERROR ?WARN            any of the terms occurs
    ERROR -exited           the first occurs, the second does not; `?` terms are then ignored, as CloudWatch does
    %A[a-z]+\\d{3}%           a regular expression fits somewhere (see linear_regex)
    { ($.level = "ERROR" || $.status >= 500) && $.user.id = * && $.tags[0] NOT EXISTS }

A JSON pattern fits only messages that are JSON. A comparison with a member that does not exist is false, also `!=`.
Text may hold `*` for anything. Space-delimited patterns (`[ip, user, ...]`) are refused.

`compile_pattern` returns a predicate on messages that never raises, or raises BadFilterPattern.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from lambent.telemetry.linear_regex import BadRegex, LinearRegex

Predicate = Callable[[str], bool]
_Test = Callable[[list[Any]], bool]
_NESTING_MAX: Final = 50


class BadFilterPattern(ValueError):
    """The text is no filter pattern; the message says why."""


def compile_pattern(text: str) -> Predicate | None:
    """The predicate of a pattern; None for the empty one, which every message fits."""
    pattern = text.strip()
    if not pattern:
        return None
    if pattern.startswith("["):
        raise BadFilterPattern("space-delimited patterns are not supported by Lambent: use terms or a JSON pattern")
    try:
        if pattern.startswith("{"):
            return _JsonPattern(pattern).parse()
        return _compile_terms(pattern)
    except BadRegex as problem:
        raise BadFilterPattern(str(problem)) from None


# -- terms

_TERM = re.compile(
    r'\s*(?P<sign>[?-]?)(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|%(?P<regex>(?:[^%\\]|\\.)+)%|(?P<bare>[^\s"%][^\s"]*))(?=\s|$)',
    re.DOTALL,
)


def _compile_terms(pattern: str) -> Predicate:
    required: list[Predicate] = []
    excluded: list[Predicate] = []
    optional: list[Predicate] = []
    at = 0
    while at < len(pattern):
        match = _TERM.match(pattern, at)
        if match is None:
            raise BadFilterPattern(f"cannot read the pattern from character {at}: {pattern[at : at + 40]!r}")
        at = match.end()
        if match["regex"] is not None:
            found: Predicate = LinearRegex(match["regex"]).search
        else:
            term = _unescape(match["quoted"]) if match["quoted"] is not None else match["bare"]
            found = _contains(term)
        {"": required, "-": excluded, "?": optional}[match["sign"]].append(found)
    if required or excluded:
        return lambda message: (
            all(found(message) for found in required) and not any(found(message) for found in excluded)
        )
    return lambda message: any(found(message) for found in optional)


def _contains(term: str) -> Predicate:
    return lambda message: term in message


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


# -- JSON patterns

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<selector>\$(?:\.[^\s.\[\](){}=!<>&|"%]+|\[\s*(?:\d{1,9}|\*|"[^"]*"|'[^']*')\s*\])*)
    | (?P<operator><=|>=|!=|=|<|>|&&|\|\||\(|\)|\{|\})
    | "(?P<quoted>(?:[^"\\]|\\.)*)"
    | %(?P<regex>(?:[^%\\]|\\.)+)%
    | (?P<word>[^\s(){}=!<>&|"%]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_STEP = re.compile(r"""\.([^\s.\[\](){}=!<>&|"%]+)|\[\s*(?:(\d+)|(\*)|"([^"]*)"|'([^']*)')\s*\]""")
_ORDER: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class _JsonPattern:
    """Recursive descent over the tokens of one pattern."""

    def __init__(self, pattern: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, end = 0, len(pattern)
        while at < end:
            match = _TOKEN.match(pattern, at)
            if match is None:
                raise BadFilterPattern(f"cannot read the pattern from character {at}: {pattern[at : at + 40]!r}")
            kind = match.lastgroup or ""
            self._tokens.append((kind, match[kind]))
            at = match.end()
        self._at = 0
        self._depth = 0

    def parse(self) -> Predicate:
        self._expect("{")
        test = self._either()
        self._expect("}")
        if self._at < len(self._tokens):
            raise BadFilterPattern("something follows the closing brace")

        def predicate(message: str) -> bool:
            try:
                document = msgspec.json.decode(message)
            except (msgspec.DecodeError, ValueError, RecursionError):
                return False
            return test([document])

        return predicate

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise BadFilterPattern("the pattern ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _accept(self, text: str) -> bool:
        """Take the token if it is this operator or, in any case, this word."""
        if self._at < len(self._tokens):
            kind, found = self._tokens[self._at]
            if (kind == "operator" and found == text) or (kind == "word" and found.upper() == text):
                self._at += 1
                return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            found = self._tokens[self._at][1] if self._at < len(self._tokens) else "the end"
            raise BadFilterPattern(f"{text} expected, {found!r} found")

    def _either(self) -> _Test:
        tests = [self._both()]
        while self._accept("||"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda root: any(test(root) for test in tests)

    def _both(self) -> _Test:
        tests = [self._single()]
        while self._accept("&&"):
            tests.append(self._single())
        return tests[0] if len(tests) == 1 else lambda root: all(test(root) for test in tests)

    def _single(self) -> _Test:
        if self._accept("("):
            self._depth += 1
            if self._depth > _NESTING_MAX:
                raise BadFilterPattern(f"more than {_NESTING_MAX} parentheses inside each other")
            test = self._either()
            self._expect(")")
            self._depth -= 1
            return test
        kind, text = self._next()
        if kind != "selector":
            raise BadFilterPattern(f"a selector such as $.level expected, {text!r} found")
        select = _compile_selector(text)
        if self._accept("IS"):
            return self._is(select)
        if self._accept("NOT"):
            self._expect("EXISTS")
            return lambda root: not select(root)
        if self._accept("EXISTS"):
            return lambda root: bool(select(root))
        return self._comparison(select)

    def _is(self, select: Callable[[list[Any]], list[Any]]) -> _Test:
        for word, constant in (("NULL", None), ("TRUE", True), ("FALSE", False)):
            if self._accept(word):
                return lambda root: any(value is constant for value in select(root))
        raise BadFilterPattern("IS must be followed by NULL, TRUE or FALSE")

    def _comparison(self, select: Callable[[list[Any]], list[Any]]) -> _Test:
        kind, sign = self._next()
        if kind != "operator" or sign not in (*_ORDER, "=", "!="):
            raise BadFilterPattern(f"a comparison expected, {sign!r} found")
        kind, text = self._next()
        if kind in ("operator", "selector"):
            raise BadFilterPattern(f"a value expected, {text!r} found")
        if sign in _ORDER:
            bound = _number(text) if kind == "word" else None
            if bound is None:
                raise BadFilterPattern(f"{sign} needs a number, not {text!r}")
            order = _ORDER[sign]
            return lambda root: any(_is_number(value) and order(value, bound) for value in select(root))
        equal = _compile_equal(kind, text)
        if sign == "=":
            return lambda root: any(equal(value) for value in select(root))

        def differs(root: list[Any]) -> bool:
            values = select(root)
            return bool(values) and not any(equal(value) for value in values)

        return differs


def _compile_selector(text: str) -> Callable[[list[Any]], list[Any]]:
    """What a selector finds: no value when a step leads nowhere, several behind `[*]`."""
    steps: list[str | int | None] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise BadFilterPattern(f"{text} is no selector")
        name, index, star, double, single = match.groups()
        if index is not None:
            steps.append(int(index))
        elif star is not None:
            steps.append(None)
        else:
            steps.append(next(part for part in (name, double, single) if part is not None))
        at = match.end()

    def select(values: list[Any]) -> list[Any]:
        for step in steps:
            values = [found for value in values for found in _follow(value, step)]
        return values

    return select


def _follow(value: Any, step: str | int | None) -> list[Any]:
    if isinstance(step, str):
        return [value[step]] if isinstance(value, dict) and step in value else []
    if not isinstance(value, list):
        return []
    if step is None:
        return value
    return value[step : step + 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> float | None:
    if not re.fullmatch(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", text, re.ASCII) or len(text) > 40:
        return None
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _compile_equal(kind: str, text: str) -> Callable[[Any], bool]:
    if kind == "regex":
        search = LinearRegex(text).search
        return lambda value: isinstance(value, str) and search(value)
    number = _number(text) if kind == "word" else None
    plain = _unescape(text) if kind == "quoted" else text
    like = _compile_wildcards(plain)

    def equal(value: Any) -> bool:
        if isinstance(value, str):
            return like(value)
        if _is_number(value):
            return bool(value == number) if number is not None else like(msgspec.json.encode(value).decode())
        if isinstance(value, bool):
            return like("true" if value else "false")
        return plain == "*"  # null, objects and arrays exist, and that is all that can be said of them here

    return equal


def _compile_wildcards(pattern: str) -> Callable[[str], bool]:
    """Equality, with `*` for any text. Takes the first place for each part, so it cannot backtrack."""
    first, *rest = pattern.split("*")
    if not rest:
        return lambda text: text == first
    *middle, last = rest

    def like(text: str) -> bool:
        if not text.startswith(first):
            return False
        at = len(first)
        for part in middle:
            found = text.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return len(text) - at >= len(last) and text.endswith(last)

    return like
