"""Constraints are checked in AWS's words, and every pattern of the models is one that Python can check."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lambent.model.errors import ValidationError
from lambent.wire.service_model import load
from lambent.wire.validation import compile_pattern, validate

MODEL = load("lambda")
CODE = {"ZipFile": b"PK"}
ROLE = "arn:aws:iam::000000000000:role/r"


def complaint(operation: str, params: dict[str, Any]) -> str:
    shape = MODEL.operation(operation).input
    assert shape is not None
    with pytest.raises(ValidationError) as caught:
        validate(params, shape)
    return caught.value.message


def test_sound_parameters_pass() -> None:
    shape = MODEL.operation("CreateFunction").input
    assert shape is not None
    validate({"FunctionName": "f", "Role": ROLE, "Code": CODE, "Tags": {"für": "ä b"}}, shape)


def test_missing_members_are_null() -> None:
    assert complaint("CreateFunction", {"FunctionName": "f", "Code": CODE}) == (
        "1 validation error detected: Value null at 'role' failed to satisfy constraint: Member must not be null"
    )


def test_several_violations_are_counted_and_joined() -> None:
    text = complaint(
        "CreateFunction",
        {"FunctionName": "f", "Role": ROLE, "Code": CODE, "Timeout": 0, "Runtime": "cobol", "MemorySize": 1},
    )
    assert text.startswith("3 validation errors detected: ")
    assert (
        "Value '0' at 'timeout' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1; " in text
    )
    assert "Value 'cobol' at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [" in text


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"Layers": ["x"]},
            "Value '[x]' at 'layers' failed to satisfy constraint: Member must satisfy constraint: "
            "[Member must have length less than or equal to 2048, "
            "Member must have length greater than or equal to 1, "
            "Member must satisfy regular expression pattern: ",
        ),
        (
            {"Environment": {"Variables": {"a b": "secret"}}},
            "Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: "
            "[Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+, Member must not be null]",
        ),
        (
            {"FileSystemConfigs": [{"Arn": "x", "LocalMountPath": "/mnt/a"}]},
            "Value 'x' at 'fileSystemConfigs.1.member.arn' failed to satisfy constraint: ",
        ),
        (
            {"FileSystemConfigs": [None]},
            "Value null at 'fileSystemConfigs.1.member' failed to satisfy constraint: Member must not be null",
        ),
        ({"KMSKeyArn": "x"}, "Value 'x' at 'kMSKeyArn' failed to satisfy constraint: "),
        ({"Handler": "x" * 5000}, "Value '" + "x" * 1024 + "...' at 'handler'"),
    ],
)
def test_what_aws_says(params: dict[str, Any], expected: str) -> None:
    text = complaint("UpdateFunctionConfiguration", {"FunctionName": "f", **params})
    assert text.startswith(f"1 validation error detected: {expected}")


def test_secrets_are_not_echoed() -> None:
    params = {"FunctionName": "f", "Environment": {"Variables": {"a b": "secret", "AB": None}}}
    assert "secret" not in complaint("UpdateFunctionConfiguration", params)


def test_the_number_of_violations_is_bounded() -> None:
    params = {"FunctionName": "f", "FileSystemConfigs": [{"Arn": "x", "LocalMountPath": "x"}] * 10_000}
    assert complaint("UpdateFunctionConfiguration", params).startswith("100 validation errors detected")


PATTERNS = sorted(
    {
        (service, shape.name, shape.pattern)
        for service in ("lambda", "logs")
        for shape in (load(service).shape(name) for name in load(service).shape_names)
        if shape.pattern
    }
)


def test_every_pattern_compiles() -> None:
    assert [name for _, name, pattern in PATTERNS if compile_pattern(pattern) is None] == []


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "größe 日本 ٣_.:/=+-@\u2003", "a!b"),
        (r"[\w-_]*", "a-b_c", "a b"),
        (r"\d{2}", "12", "٣٣"),
        (r"^[a-z]+$", "abc", "abc\n"),
    ],
)
def test_java_s_dialect(pattern: str, good: str, bad: str) -> None:
    compiled = compile_pattern(pattern)
    assert compiled is not None
    assert compiled.fullmatch(good)
    assert not compiled.fullmatch(bad)


def test_no_pattern_takes_long_on_hostile_text() -> None:
    """Backtracking must stay bounded on the longest text that reaches a pattern."""
    starts = ("", "arn:", "arn:aws:lambda:us-east-1:000000000000:function:", "a", "https://")
    for service, name, pattern in PATTERNS:
        compiled = compile_pattern(pattern)
        assert compiled is not None
        for start in starts:
            for filler in ("a", "-", "0", "a-", "/", "."):
                text = (start + filler * 16_384)[:16_383] + "\n"
                before = time.perf_counter()
                compiled.fullmatch(text)
                assert time.perf_counter() - before < 0.5, (service, name, pattern, start, filler)
