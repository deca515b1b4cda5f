"""A call's parameters against the constraints of the service model, in the words of AWS's front end.

Outcome: nothing, or one ValidationError that lists every violation (up to a bound), such as
`1 validation error detected: Value '0' at 'timeout' failed to satisfy constraint: Member must have value
greater than or equal to 1`. Elements of lists and entries of maps are reported on the container with all
constraints of the element, which is what AWS does. Values of sensitive shapes are never echoed.

Parameters have the types of the model already (a codec made them); a pattern that Python cannot express is
skipped.
"""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any, Final

from lambent.model.errors import SerializationError, ValidationError
from lambent.wire.service_model import Shape

_VIOLATIONS_MAX: Final = 100
_ECHO_CHARS_MAX: Final = 1024
#: Some members have a pattern but no greatest length. What is longer than any such thing of AWS fits no pattern;
#: this bounds the time that a hostile text can take.
_PATTERN_CHARS_MAX: Final = 16_384
_NOT_NULL: Final = "Member must not be null"
_LENGTHS: Final = ("string", "blob", "list", "map")
_NUMBERS: Final = ("integer", "long", "float", "double", "short", "byte")


def validate(params: dict[str, Any], shape: Shape) -> None:
    """Raise ValidationError unless `params` satisfies the structure `shape`."""
    violations: list[str] = []
    try:
        _structure(params, shape, "", violations)
    except RecursionError:
        raise SerializationError("The request body is nested too deeply") from None
    if violations:
        count = len(violations)
        noun = "validation error" if count == 1 else "validation errors"
        raise ValidationError(f"{count} {noun} detected: {'; '.join(violations)}")


def _structure(values: dict[str, Any], shape: Shape, path: str, violations: list[str]) -> None:
    for name in shape.required:
        if values.get(name) is None and name in shape.members:
            where = _join(path, name)
            _report(violations, f"Value null at '{where}' failed to satisfy constraint: {_NOT_NULL}")
    members = shape.members
    for name, value in values.items():
        member = members.get(name)
        if member is not None and value is not None:
            _value(value, member.shape, _join(path, name), violations)


def _value(value: Any, shape: Shape, path: str, violations: list[str]) -> None:
    """Report what is wrong with a value that is not null, and with what it contains."""
    for constraint in broken(value, shape):
        subject = _subject(value, shape)
        _report(violations, f"{subject} at '{path}' failed to satisfy constraint: {constraint}")
    if shape.kind == "structure":
        _structure(value, shape, path, violations)
    elif shape.kind == "list":
        _list(value, shape, path, violations)
    elif shape.kind == "map":
        _map(value, shape, path, violations)


def _list(value: list[Any], shape: Shape, path: str, violations: list[str]) -> None:
    element = shape.element.shape
    if element.kind in ("structure", "list", "map"):
        for index, item in enumerate(value, 1):
            where = f"{path}.{index}.member"
            if item is None:
                _report(violations, f"Value null at '{where}' failed to satisfy constraint: {_NOT_NULL}")
            else:
                _value(item, element, where, violations)
    elif any(item is None or broken(item, element) for item in value):
        _report(
            violations,
            f"{_subject(value, shape)} at '{path}' failed to satisfy constraint: "
            f"Member must satisfy constraint: [{_all_constraints(element)}]",
        )


def _map(value: dict[str, Any], shape: Shape, path: str, violations: list[str]) -> None:
    key, inner = shape.key.shape, shape.value.shape
    subject = f"{_subject(value, shape)} at '{path}' failed to satisfy constraint:"
    if any(broken(name, key) for name in value):
        _report(violations, f"{subject} Map keys must satisfy constraint: [{_all_constraints(key)}]")
    if inner.kind in ("structure", "list", "map"):
        for name, item in value.items():
            where = f"{path}.{name}.member"
            if item is None:
                _report(violations, f"Value null at '{where}' failed to satisfy constraint: {_NOT_NULL}")
            else:
                _value(item, inner, where, violations)
    elif any(item is None or broken(item, inner) for item in value.values()):
        _report(violations, f"{subject} Map value must satisfy constraint: [{_all_constraints(inner)}]")


def _report(violations: list[str], text: str) -> None:
    if len(violations) < _VIOLATIONS_MAX:
        violations.append(text)


def broken(value: Any, shape: Shape) -> list[str]:
    """The constraints that `value` itself does not satisfy, as AWS words them."""
    found: list[str] = []
    kind = shape.kind
    if kind in _LENGTHS:
        if shape.max is not None and len(value) > shape.max:
            found.append(_length_at_most(shape.max))
        if shape.min is not None and len(value) < shape.min:
            found.append(_length_at_least(shape.min))
    elif kind in _NUMBERS:
        if shape.max is not None and value > shape.max:
            found.append(_value_at_most(shape.max))
        if shape.min is not None and value < shape.min:
            found.append(_value_at_least(shape.min))
    if kind == "string":
        if shape.enum is not None and value not in shape.enum:
            found.append(_one_of(shape.enum))
        if shape.pattern is not None and not _fits(value, shape.pattern):
            found.append(_matching(shape.pattern))
    return found


def _all_constraints(shape: Shape) -> str:
    """Everything that the model demands of an element, in AWS's order."""
    texts: list[str] = []
    if shape.kind in _LENGTHS:
        texts += [_length_at_most(shape.max)] if shape.max is not None else []
        texts += [_length_at_least(shape.min)] if shape.min is not None else []
    elif shape.kind in _NUMBERS:
        texts += [_value_at_most(shape.max)] if shape.max is not None else []
        texts += [_value_at_least(shape.min)] if shape.min is not None else []
    texts += [_matching(shape.pattern)] if shape.pattern is not None else []
    texts += [_one_of(shape.enum)] if shape.enum is not None else []
    return ", ".join([*texts, _NOT_NULL])


def _length_at_most(bound: float) -> str:
    return f"Member must have length less than or equal to {_number(bound)}"


def _length_at_least(bound: float) -> str:
    return f"Member must have length greater than or equal to {_number(bound)}"


def _value_at_most(bound: float) -> str:
    return f"Member must have value less than or equal to {_number(bound)}"


def _value_at_least(bound: float) -> str:
    return f"Member must have value greater than or equal to {_number(bound)}"


def _one_of(values: tuple[str, ...]) -> str:
    return f"Member must satisfy enum value set: [{', '.join(values)}]"


def _matching(pattern: str) -> str:
    return f"Member must satisfy regular expression pattern: {pattern}"


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


# -- paths and values as AWS prints them


def _join(path: str, name: str) -> str:
    lowered = name[:1].lower() + name[1:]
    return f"{path}.{lowered}" if path else lowered


def _subject(value: Any, shape: Shape) -> str:
    if _is_sensitive(shape, ()):
        return "Value"
    text = _echo(value)
    if len(text) > _ECHO_CHARS_MAX:
        text = text[:_ECHO_CHARS_MAX] + "..."
    return f"Value '{text}'"


@functools.cache
def _is_sensitive(shape: Shape, seen: tuple[str, ...]) -> bool:
    """Whether a value of this shape is secret or holds something secret."""
    if shape.sensitive:
        return True
    if shape.name in seen:
        return False
    seen = (*seen, shape.name)
    if shape.kind == "structure":
        return any(_is_sensitive(member.shape, seen) for member in shape.members.values())
    if shape.kind == "list":
        return _is_sensitive(shape.element.shape, seen)
    if shape.kind == "map":
        return _is_sensitive(shape.key.shape, seen) or _is_sensitive(shape.value.shape, seen)
    return False


def _echo(value: Any, budget: int = _ECHO_CHARS_MAX) -> str:
    """`value` as Java's toString would show it, no longer than about `budget` characters."""
    if isinstance(value, str):
        return value[: budget + 1]
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"java.nio.HeapByteBuffer[pos=0 lim={len(value)} cap={len(value)}]"
    if isinstance(value, list | dict):
        parts: list[str] = []
        items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        for key, item in items:
            text = _echo(item, budget)
            parts.append(text if key is None else f"{key}={text}")
            budget -= len(parts[-1])
            if budget < 0:
                break
        body = ", ".join(parts)
        return "{" + body + "}" if isinstance(value, dict) else f"[{body}]"
    return str(value)


# -- patterns


def _fits(text: str, pattern: str) -> bool:
    compiled = compile_pattern(pattern)
    if compiled is None:
        return True
    return len(text) <= _PATTERN_CHARS_MAX and compiled.fullmatch(text) is not None


#: What Java's regular expressions have and Python's have not, inside a character class. \w stands for letters
#: and digits of every script; models use \p{L} and \p{N} only together with `_`, which \w also holds.
_JAVA_CLASSES: Final = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\d",
    r"\p{Z}": r"\x20\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
}


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """A model's pattern (Java's dialect) for Python, or None when there is no such thing."""
    unicode = r"\p{" in pattern
    text = pattern
    for java, python in _JAVA_CLASSES.items():
        text = text.replace(java, python)
    text = re.sub(r"(\\[wds])-(?!\])", r"\1\\-", text)  # Java takes the `-` in [\w-_] as itself
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set": meant as written
            return re.compile(text, 0 if unicode else re.ASCII)
    except (re.error, OverflowError, RecursionError):
        return None
