"""JSON values to and from the types of a service model, for both of AWS's JSON protocols.

Outcomes of reading: a value of the modelled type, or SerializationError in the words of AWS's front end. AWS
ignores members that it does not know and takes null for absent, and so do we. Nesting is bounded: by the
model where it is finite, by the interpreter's limit where it recurses, which surfaces as SerializationError
as well.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import email.utils
import math
from typing import Any, Final

import msgspec

from lambent.model.errors import SerializationError
from lambent.wire.service_model import Member, Shape

UTC = dt.UTC
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
_RANGES: Final = {
    "byte": (-(2**7), 2**7 - 1),
    "short": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
}
_ARTICLES: Final = {
    "string": "a String",
    "integer": "an Integer",
    "long": "a Long",
    "float": "a Float",
    "double": "a Double",
    "boolean": "a Boolean",
    "timestamp": "a Timestamp",
    "blob": "a ByteBuffer",
}


def _refusal(token: str, kind: str) -> SerializationError:
    return SerializationError(f"{token} can not be converted to {_ARTICLES.get(kind, f'a {kind}')}")


def _mismatch(value: Any, kind: str) -> SerializationError:
    if isinstance(value, dict):
        return SerializationError("Start of structure or map found where not expected.")
    if isinstance(value, list):
        return SerializationError("Start of list found where not expected")
    if isinstance(value, bool):
        token = "TRUE_VALUE" if value else "FALSE_VALUE"
    elif value is None:
        token = "NULL_VALUE"
    else:
        token = "STRING_VALUE" if isinstance(value, str) else "NUMBER_VALUE"
    if kind in ("structure", "map"):
        return SerializationError(f"{token} found where a structure or map was expected")
    if kind == "list":
        return SerializationError(f"{token} found where a list was expected")
    return _refusal(token, kind)


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty body and `null` are the empty object."""
    if not body:
        return {}
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise SerializationError("The request body is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise SerializationError(f"Could not parse request body into json: {problem}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _mismatch(value, "structure")
    return value


def read_object(body: bytes, shape: Shape) -> dict[str, Any]:
    """Decode a body and give its members the types of the structure `shape`."""
    document = decode_object(body)
    try:
        return read_structure(document, shape)
    except RecursionError:
        raise SerializationError("The request body is nested too deeply") from None


def read_structure(document: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The body members of the structure `shape` that `document` has."""
    values: dict[str, Any] = {}
    for member in shape.body_members:
        value = document.get(member.wire_name)
        if value is not None:
            values[member.name] = _read(value, member)
    return values


def read_value(value: Any, place: Member) -> Any:
    """A value that is not null, of the type that `place` wants."""
    return _read(value, place)


def _read(value: Any, place: Member) -> Any:
    shape = place.shape
    kind = shape.kind
    if kind == "string":
        if not isinstance(value, str):
            raise _mismatch(value, kind)
        return value
    if kind == "structure":
        if not isinstance(value, dict):
            raise _mismatch(value, kind)
        return read_structure(value, shape)
    if kind == "list":
        if not isinstance(value, list):
            raise _mismatch(value, kind)
        element = shape.element
        return [None if item is None else _read(item, element) for item in value]
    if kind == "map":
        if not isinstance(value, dict):
            raise _mismatch(value, kind)
        inner = shape.value
        return {key: None if item is None else _read(item, inner) for key, item in value.items()}
    if kind in _RANGES:
        return _read_integer(value, kind)
    if kind == "boolean":
        if not isinstance(value, bool):
            raise _mismatch(value, kind)
        return value
    if kind in ("float", "double"):
        return _read_float(value, kind)
    if kind == "timestamp":
        return _read_timestamp(value, place.timestamp_format)
    if kind == "blob":
        return read_blob(value)
    return value  # a document: any JSON


def _read_integer(value: Any, kind: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise _mismatch(value, kind)
    number = int(value)  # AWS truncates fractions too
    low, high = _RANGES[kind]
    if not low <= number <= high:
        raise SerializationError(f"Numeric value ({number}) out of range of {kind} ({low} - {high})")
    return number


def _read_float(value: Any, kind: str) -> float:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, kind)
    try:
        return float(value)
    except OverflowError:
        raise _mismatch(value, kind) from None


def read_blob(value: Any) -> bytes:
    """Bytes from base64 text."""
    if not isinstance(value, str):
        raise _mismatch(value, "blob")
    try:
        return binascii.a2b_base64(value.encode(), strict_mode=True)
    except (binascii.Error, ValueError):
        raise _refusal("STRING_VALUE", "blob") from None


def _read_timestamp(value: Any, form: str | None) -> dt.datetime:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _mismatch(value, "timestamp")
    if isinstance(value, str):
        return parse_timestamp(value)
    return _from_epoch(value, form or "unixTimestamp")


def _from_epoch(seconds: float, form: str) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise SerializationError(f"Timestamp out of range for {form}: {seconds}") from None


def parse_timestamp(text: str) -> dt.datetime:
    """A moment from any of the three forms: ISO 8601, RFC 822, seconds since 1970."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return _from_epoch(seconds, "unixTimestamp")
    for parse in (dt.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    raise _refusal("STRING_VALUE", "timestamp")


def read_text(text: str, place: Member) -> Any:
    """A value that came as text in the path, the query or a header."""
    kind = place.shape.kind
    if kind == "string":
        return text
    if kind in _RANGES:
        # int() would take '1_000', blanks and other scripts' digits.
        digits = text[1:] if text[:1] in "+-" else text
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise _refusal("STRING_VALUE", kind)
        return _read_integer(int(text), kind)
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise _refusal("STRING_VALUE", kind)
        return text.lower() == "true"
    if kind in ("float", "double"):
        try:
            return float(text)
        except ValueError:
            raise _refusal("STRING_VALUE", kind) from None
    if kind == "timestamp":
        return parse_timestamp(text)
    if kind == "blob":
        return read_blob(text)
    raise _refusal("STRING_VALUE", kind)


def write_structure(values: dict[str, Any], members: tuple[Member, ...]) -> dict[str, Any]:
    """The JSON object of those `members` that have a value."""
    document: dict[str, Any] = {}
    for member in members:
        value = values.get(member.name)
        if value is not None:
            document[member.wire_name] = _write(value, member)
    return document


def check_members(values: dict[str, Any], shape: Shape) -> None:
    """Refuse names that the model does not have: a typing error of ours would otherwise vanish silently."""
    unknown = values.keys() - shape.members.keys()
    if unknown:
        raise TypeError(f"{shape.name} has no member {', '.join(sorted(unknown))}")


def _write(value: Any, place: Member) -> Any:
    shape = place.shape
    kind = shape.kind
    if kind == "structure":
        check_members(value, shape)
        return write_structure(value, tuple(shape.members.values()))
    if kind == "list":
        element = shape.element
        return [None if item is None else _write(item, element) for item in value]
    if kind == "map":
        inner = shape.value
        return {key: None if item is None else _write(item, inner) for key, item in value.items()}
    if kind == "blob":
        return base64.b64encode(value.encode() if isinstance(value, str) else value).decode("ascii")
    if kind == "timestamp":
        return write_timestamp(value, place.timestamp_format or "unixTimestamp")
    if kind in ("float", "double") and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_timestamp(value: Any, form: str) -> float | str:
    """A moment (datetime, or seconds since 1970; text is taken as written) in one of the model's formats."""
    if isinstance(value, str):
        return value
    moment = to_moment(value)
    if form == "unixTimestamp":
        seconds = round((moment - _EPOCH).total_seconds(), 3)
        return int(seconds) if seconds == int(seconds) else seconds
    if form == "rfc822":
        return email.utils.format_datetime(moment, usegmt=True)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_moment(value: dt.datetime | float) -> dt.datetime:
    """An aware datetime in UTC, from one of any zone (none means UTC) or seconds since 1970."""
    moment = value if isinstance(value, dt.datetime) else _EPOCH + dt.timedelta(seconds=value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC)


def write_text(value: Any, place: Member) -> str:
    """A value for a header."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if place.shape.kind == "timestamp":
        return str(write_timestamp(value, place.timestamp_format or "rfc822"))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def encode(document: Any) -> bytes:
    """JSON bytes. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    try:
        return msgspec.json.encode(document, enc_hook=str)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_surrogates(document), enc_hook=str)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
