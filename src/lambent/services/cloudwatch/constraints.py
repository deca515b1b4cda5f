"""A call's parameters against the model's constraints, in CloudWatch's own words: names of parameters as the query
protocol writes them (`MetricData.member.2.Unit`), one line for each that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from lambent.services.cloudwatch.errors import CloudWatchError, InvalidParameterValue, InvalidRequest, MissingParameter
from lambent.wire.service_model import Shape
from lambent.wire.validation import compile_pattern

_LINES_MAX: Final = 20
_NUMBERS: Final = ("integer", "long", "double", "float")


def check(operation: str, params: dict[str, Any], shape: Shape) -> None:
    """Raise what CloudWatch answers to parameters that do not satisfy the model."""
    missing: list[str] = []
    wrong: list[str] = []
    for is_missing, line in _structure(params, shape, ""):
        (missing if is_missing else wrong).append(line)
        if len(missing) + len(wrong) >= _LINES_MAX:
            break
    lines = [*missing, *wrong]
    if not lines:
        return
    error: type[CloudWatchError] = MissingParameter if missing else InvalidParameterValue
    if operation == "GetMetricData":
        error = InvalidRequest
    raise error("\n".join(lines))


def _structure(values: dict[str, Any], shape: Shape, path: str) -> Iterator[tuple[bool, str]]:
    for name in shape.required:
        if values.get(name) is None:
            yield True, f"The parameter {path}{name} is required."
    for name, value in values.items():
        member = shape.members.get(name)
        if member is not None and value is not None:
            yield from _value(value, member.shape, f"{path}{name}")


def _value(value: Any, shape: Shape, path: str) -> Iterator[tuple[bool, str]]:
    kind = shape.kind
    if kind == "structure":
        yield from _structure(value, shape, f"{path}.")
    elif kind == "list":
        if shape.max is not None and len(value) > shape.max:
            yield False, f"The collection {path} must not have a size greater than {int(shape.max)}."
        elif shape.min is not None and len(value) < shape.min:
            yield False, f"The collection {path} must not have a size less than {int(shape.min)}."
        for index, item in enumerate(value, 1):
            if item is None:
                yield True, f"The parameter {path}.member.{index} is required."
            else:
                yield from _value(item, shape.element.shape, f"{path}.member.{index}")
    elif kind == "string":
        yield from _text(value, shape, path)
    elif kind in _NUMBERS:
        if shape.min is not None and value < shape.min:
            yield False, f"The parameter {path} must be greater than or equal to {int(shape.min)}."
        if shape.max is not None and value > shape.max:
            yield False, f"The parameter {path} must be less than or equal to {int(shape.max)}."


def _text(value: str, shape: Shape, path: str) -> Iterator[tuple[bool, str]]:
    if shape.enum is not None and value not in shape.enum:
        yield False, f"The parameter {path} must be a value in the set [ {', '.join(shape.enum)} ]."
    elif shape.max is not None and len(value) > shape.max:
        yield False, f"The parameter {path} must be shorter than {int(shape.max) + 1} characters."
    elif shape.min is not None and len(value) < shape.min:
        yield False, f"The parameter {path} must be longer than {int(shape.min) - 1} characters."
    elif shape.pattern is not None:
        compiled = compile_pattern(shape.pattern)
        if compiled is not None and not compiled.fullmatch(value):
            yield False, f"The value {value} for parameter {path} is invalid."
