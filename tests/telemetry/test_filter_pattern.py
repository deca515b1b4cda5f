"""Filter patterns: what fits, what is refused, and that nothing hangs."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambent.telemetry.filter_pattern import BadFilterPattern, compile_pattern
from lambent.telemetry.linear_regex import BadRegex, LinearRegex

EVENT = (
    '{"level": "ERROR", "status": 503, "ok": false, "gone": null, "user": {"id": "u-17", "a b": 1},'
    ' "tags": ["x", "y"], "items": [{"n": 1}, {"n": 20}], "ratio": 0.5, "on": true}\n'
)


def fits(pattern: str, message: str) -> bool:
    predicate = compile_pattern(pattern)
    return predicate is None or predicate(message)


@pytest.mark.parametrize(
    ("pattern", "message", "expected"),
    [
        ("", "anything", True),
        ("   ", "anything", True),
        ("ERROR", "an ERROR here", True),
        ("ERROR", "an error here", False),
        ("ERROR time", "time of ERROR", True),
        ("ERROR time", "ERROR only", False),
        ('"time out"', "a time out", True),
        ('"time out"', "out of time", False),
        (r'"say \"hi\""', 'they say "hi" often', True),
        ("?ERROR ?WARN", "a WARN", True),
        ("?ERROR ?WARN", "an INFO", False),
        ("ERROR -exited", "ERROR one", True),
        ("ERROR -exited", "ERROR exited", False),
        ('-"exited badly"', "it exited badly", False),
        ("-DEBUG", "INFO", True),
        ("?WARN ERROR", "WARN alone", False),
        ("REPORT RequestId:", "REPORT RequestId: 1", True),
        (r"%Duration: \d{3,}\.%", "Duration: 103.1 ms", True),
        (r"%Duration: \d{3,}\.%", "Duration: 10.31 ms", False),
        (r"-%^INFO%", "INFO x", False),
    ],
)
def test_terms(pattern: str, message: str, expected: bool) -> None:
    assert fits(pattern, message) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ('{ $.level = "ERROR" }', True),
        ("{ $.level = ERROR }", True),
        ("{$.level=ERR*}", True),
        ("{ $.level = *RR* }", True),
        ("{ $.level = *RO }", False),
        ('{ $.level != "ERROR" }', False),
        ('{ $.level != "INFO" }', True),
        ('{ $.missing != "INFO" }', False),
        ("{ $.status = 503 }", True),
        ("{ $.status = 5* }", True),
        ("{ $.status = 503.0 }", True),
        ("{ $.status > 502 && $.status < 504 }", True),
        ("{ $.status >= 503 && $.status <= 503 }", True),
        ("{ $.status < 503 || $.ratio = 0.5 }", True),
        ("{ $.status < 503 || $.ratio = 0.6 }", False),
        ("{ $.level > 1 }", False),
        ("{ ($.status = 1 || $.level = ERROR) && $.on IS TRUE }", True),
        ("{ $.status = 1 || $.level = ERROR && $.on IS FALSE }", False),
        ("{ $.ok IS FALSE && $.gone IS NULL }", True),
        ("{ $.ok is true }", False),
        ("{ $.missing IS NULL }", False),
        ("{ $.missing NOT EXISTS }", True),
        ("{ $.user.id NOT EXISTS }", False),
        ("{ $.user.id EXISTS }", True),
        ("{ $.user.id = u-17 }", True),
        ('{ $.user["a b"] = 1 }', True),
        ("{ $['user']['id'] = \"u-*\" }", True),
        ("{ $.user = * }", True),
        ("{ $.tags[0] = x }", True),
        ("{ $.tags[2] NOT EXISTS }", True),
        ("{ $.items[*].n > 10 }", True),
        ("{ $.items[*].n > 100 }", False),
        ("{ $.user.id = %u-[0-9]+% }", True),
        ("{ $.on = true }", True),
    ],
)
def test_json(pattern: str, expected: bool) -> None:
    assert fits(pattern, EVENT) is expected
    assert not fits(pattern, "no JSON")
    assert not fits("{ $.a = 1 }", "[" * 100_000)


@pytest.mark.parametrize(
    "pattern",
    [
        '"open',
        "%open",
        "%(a)%",
        "[ip, user]",
        "{",
        "{ }",
        "{ $.a }",
        "{ $.a = }",
        "{ $.a = 1",
        "{ $.a = 1 } x",
        "{ a = 1 }",
        "{ $.a > x }",
        "{ $.a IS MAYBE }",
        "{ $.a NOT 1 }",
        "{ $.a = 1 && }",
        "{ $.a = %(% }",
        "{ " + "(" * 200 + "$.a = 1" + ")" * 200 + " }",
    ],
)
def test_what_is_no_pattern_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(BadFilterPattern, match=r"\w"):
        compile_pattern(pattern)


WORDS = ("$.a", ".b", "[0]", "[*]", "!=", "&&", "||", "IS", "NOT", "EXISTS", "NULL", "{2,3}", "\\d")
PIECES = st.sampled_from([*'{}$()=<>"%\\x1* ?-^+|é²', *WORDS])


@settings(max_examples=500, deadline=None)
@given(
    pattern=st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=20),
    message=st.text(max_size=20) | st.just(EVENT),
)
@example("{$.a=²}", EVENT)
def test_any_text_is_a_pattern_that_works_or_is_refused(pattern: str, message: str) -> None:
    try:
        predicate = compile_pattern(pattern)
    except BadFilterPattern:
        return
    if predicate is not None:
        assert predicate(message) in (True, False)


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "\\d", "\\w", "\\S", "[a-c1]", "\\.", "\\x61"])
PARTS = st.tuples(ATOMS, st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}"])).map("".join)
BRANCHES = st.tuples(
    st.sampled_from(["", "^"]), st.lists(PARTS, min_size=1, max_size=5).map("".join), st.sampled_from(["", "$"])
).map("".join)


@settings(max_examples=500, deadline=None)
@given(pattern=st.lists(BRANCHES, min_size=1, max_size=3).map("|".join), text=st.text("abc1. ", max_size=10))
def test_regular_expressions_agree_with_python(pattern: str, text: str) -> None:
    python = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
    assert LinearRegex(pattern).search(text) is python


@pytest.mark.parametrize(
    "pattern", ["(a)", "a**", "*a", "a{", "a{x}", "a{2,1}", "a{999}", "[a", "[z-a]", "\\q", "a$b", "\\x6"]
)
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(BadRegex):
        LinearRegex(pattern)


def test_hostile_patterns_take_time_in_proportion() -> None:
    hostile = LinearRegex("a*" * 30 + "b|" + ".*" * 30 + "[^a]c" + "a{0,50}" * 5)
    before = time.perf_counter()
    assert not hostile.search("a" * 50_000)
    assert time.perf_counter() - before < 2
    stars = compile_pattern('{ $.a = "' + "*a" * 400 + 'b" }')
    assert stars is not None
    assert not stars('{"a": "' + "a" * 100_000 + '"}')
