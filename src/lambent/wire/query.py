"""AWS's query protocol (CloudWatch of old, RDS, SNS, STS, IAM): a form in the body or the query string, XML back.

    Action=PutMetricData&Version=2010-08-01&Namespace=Shop&MetricData.member.1.MetricName=Orders&...

Members are joined by dots, elements of lists are numbered from 1 (gaps do not matter), maps are lists of key and
value. The answer carries its request id in the body; the codec leaves an empty element for it, and
`with_request_id` fills it in.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Any, Final
from xml.sax.saxutils import escape

from lambent.model.errors import ApiError, SerializationError
from lambent.wire import json_values
from lambent.wire.codec import BoundCall
from lambent.wire.http import Request, Response
from lambent.wire.service_model import Member, ServiceModel, Shape

_CONTENT_TYPE: Final = ("Content-Type", "text/xml")
_FIELDS_MAX: Final = 400_000  # 1,000 data with 150 values and counts each
_PARTS_MAX: Final = 32
_REQUEST_ID: Final = b"<RequestId></RequestId>"
#: What XML 1.0 can not hold, not even as a reference.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: A field's value, or the fields below it by name.
_Node = dict[str, Any]
_OWN: Final = ""


class InvalidAction(ApiError):
    code, status, message_key, typed = "InvalidAction", 400, "message", False


class MalformedQuery(ApiError):
    code, status, message_key, typed = "MalformedQueryString", 400, "message", False


class QueryCodec:
    """The codec of one service whose model speaks `query`."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model
        self._xmlns = escape(model.xml_namespace, {'"': "&quot;"})

    # -- requests

    def bind(self, request: Request) -> BoundCall:
        fields = _parse(request)
        action = fields.pop("Action", "")
        if action not in self.model:
            raise InvalidAction(f"The action {action} is not valid for this web service."[:1024])
        shape = self.model.operation(action).input
        if shape is None:
            return BoundCall(action, {})
        return BoundCall(action, _read_structure(_tree(fields), shape, ""))

    # -- responses

    def serialize(self, operation: str, result: dict[str, Any]) -> Response:
        described = self.model.operation(operation)
        parts = [f'<{operation}Response xmlns="{self._xmlns}">']
        if described.output is not None:
            wrapper = described.result_wrapper
            parts.append(f"<{wrapper}>" if wrapper else "")
            _write_structure(result, described.output, parts)
            parts.append(f"</{wrapper}>" if wrapper else "")
        parts.append(f"<ResponseMetadata>{_REQUEST_ID.decode()}</ResponseMetadata></{operation}Response>")
        return Response(200, _bytes(parts), [_CONTENT_TYPE])

    def error(self, error: ApiError) -> Response:
        kind = "Sender" if error.status < 500 else "Receiver"
        code = self.model.query_error_code(error.code)
        parts = [f'<ErrorResponse xmlns="{self._xmlns}"><Error><Type>{kind}</Type><Code>{code}</Code>']
        parts.append(f"<Message>{_text(error.message)}</Message>")
        shape = self.model.error_shape(error.code)
        for name, value in error.members.items():
            member = shape.members.get(name) if shape else None
            if value is not None and member is not None:
                _write(value, member, parts)
        parts.append(f"</Error>{_REQUEST_ID.decode()}</ErrorResponse>")
        return Response(error.status, _bytes(parts), [_CONTENT_TYPE, *error.headers.items()])


def with_request_id(response: Response, request_id: str) -> Response:
    """Fill the id into the element that the codec left for it: the last of its kind (text is escaped, so no
    value can look like it)."""
    head, found, tail = response.body.rpartition(_REQUEST_ID)
    if found:
        response.body = b"%b<RequestId>%b</RequestId>%b" % (head, request_id.encode(), tail)
    return response


def _parse(request: Request) -> dict[str, str]:
    try:
        form = request.body.decode() if request.method == "POST" else ""
        pairs = urllib.parse.parse_qsl(request.query, True, max_num_fields=_FIELDS_MAX)
        pairs += urllib.parse.parse_qsl(form, True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise MalformedQuery("The query string or the form can not be parsed.") from None
    return dict(pairs)


def _tree(fields: dict[str, str]) -> _Node:
    """`{"A.member.1": "x"}` as `{"A": {"member": {"1": {"": "x"}}}}`."""
    root: _Node = {}
    for name, value in fields.items():
        parts = name.split(".", _PARTS_MAX)
        if len(parts) > _PARTS_MAX:
            raise MalformedQuery(f"The name of the field {name[:100]} has too many parts.")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
        node[_OWN] = value
    return root


def _read_structure(node: _Node, shape: Shape, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member in shape.members.values():
        found = node.get(_outer_name(member))
        if found is not None:
            values[member.name] = _read(found, member, f"{path}{member.wire_name}")
    return values


def _outer_name(member: Member) -> str:
    """A flattened list whose elements have a name goes by that name."""
    shape = member.shape
    if member.flattened and shape.kind == "list" and shape.element.wire_name != "member":
        return shape.element.wire_name
    return member.wire_name


def _read(node: _Node, place: Member, path: str) -> Any:
    shape = place.shape
    if shape.kind == "structure":
        return _read_structure(node, shape, f"{path}.")
    if shape.kind == "list":
        name = "" if place.flattened else f".{shape.element.wire_name}"
        numbered = node if place.flattened else node.get(shape.element.wire_name, {})
        return [_read(item, shape.element, f"{path}{name}.{n}") for n, item in _in_order(numbered, path)]
    if shape.kind == "map":
        numbered = node if place.flattened else node.get("entry", {})
        entries: dict[str, Any] = {}
        for number, item in _in_order(numbered, path):
            key, value = item.get(shape.key.wire_name), item.get(shape.value.wire_name)
            if key is None or value is None:
                raise MalformedQuery(f"The entry {number} of {path} needs both a key and a value.")
            where = f"{path}.entry.{number}"
            entries[str(_read(key, shape.key, where))] = _read(value, shape.value, where)
        return entries
    text = node.get(_OWN)
    if text is None:
        raise SerializationError(f"{path} is a {shape.kind}, not a structure or a list")
    return json_values.read_text(text, place)


def _in_order(node: _Node, path: str) -> list[tuple[int, _Node]]:
    """Numbered children; an empty list is sent as the list's name with no value."""
    items: list[tuple[int, _Node]] = []
    for number, item in node.items():
        if number == _OWN:
            continue
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise MalformedQuery(f"{path} is a list: {number[:100]!r} is not the number of an element.")
        items.append((int(number), item))
    items.sort(key=lambda pair: pair[0])
    return items


# -- XML


def _bytes(parts: list[str]) -> bytes:
    return "".join(parts).encode()


def _text(value: str) -> str:
    if not value.isprintable():
        value = _NOT_XML.sub("\ufffd", value)
    return escape(value, {"\r": "&#13;"})


def _write_structure(values: dict[str, Any], shape: Shape, parts: list[str]) -> None:
    json_values.check_members(values, shape)
    for member in shape.members.values():
        value = values.get(member.name)
        if value is not None:
            _write(value, member, parts)


def _write(value: Any, place: Member, parts: list[str], name: str | None = None) -> None:
    """One element, or for a flattened container several."""
    shape = place.shape
    name = name or place.wire_name
    if shape.kind == "list":
        inner = _outer_name(place) if place.flattened else shape.element.wire_name
        elements = [item for item in value if item is not None]
        if not place.flattened:
            parts.append(f"<{name}>")
        for item in elements:
            _write(item, shape.element, parts, inner)
        if not place.flattened:
            parts.append(f"</{name}>")
    elif shape.kind == "map":
        entry = name if place.flattened else "entry"
        if not place.flattened:
            parts.append(f"<{name}>")
        for key, item in value.items():
            parts.append(f"<{entry}>")
            _write(key, shape.key, parts)
            _write(item, shape.value, parts)
            parts.append(f"</{entry}>")
        if not place.flattened:
            parts.append(f"</{name}>")
    elif shape.kind == "structure":
        parts.append(f"<{name}>")
        _write_structure(value, shape, parts)
        parts.append(f"</{name}>")
    else:
        parts.append(f"<{name}>{_text(_scalar(value, place))}</{name}>")


def _scalar(value: Any, place: Member) -> str:
    kind = place.shape.kind
    if kind == "timestamp":
        return str(json_values.write_timestamp(value, place.timestamp_format or "iso8601"))
    if kind in ("float", "double"):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(float(value)), str(float(value)))
    return json_values.write_text(value, place)
