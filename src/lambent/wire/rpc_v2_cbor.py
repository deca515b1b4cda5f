"""Smithy's RPC v2 with CBOR bodies (CloudWatch, from the newer SDKs): `POST /service/NAME/operation/OPERATION` with
the header `smithy-protocol: rpc-v2-cbor`.

Unlike JSON, the body has types of its own: blobs are bytes, moments are tagged. What is not of the modelled type is
a SerializationError in AWS's words; a float without a fraction passes for an integer, and an integer for a float.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

from lambent.model.errors import ApiError, SerializationError, UnknownOperation
from lambent.wire import cbor, json_values
from lambent.wire.codec import BoundCall
from lambent.wire.http import Request, Response
from lambent.wire.service_model import Member, ServiceModel, Shape

_PATH = re.compile(r"(?:/[^?]*)?/service/(?P<service>[A-Za-z0-9_]+)/operation/(?P<operation>[A-Za-z0-9_]+)")
_HEADERS: Final = [("Content-Type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")]
_INTEGERS: Final = ("byte", "short", "integer", "long")


def service_of(path: str) -> str | None:
    """The service that a path of this protocol names, or None for any other path."""
    match = _PATH.fullmatch(path)
    return match["service"] if match else None


class RpcV2CborCodec:
    """The codec of one service whose model speaks smithy-rpc-v2-cbor."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model

    def bind(self, request: Request) -> BoundCall:
        match = _PATH.fullmatch(request.path)
        operation = match["operation"] if match else ""
        if request.method != "POST" or not match or match["service"] != self.model.target_prefix:
            raise UnknownOperation(f"No operation of {self.model.service} is at {request.path}"[:1024])
        if operation not in self.model:
            raise UnknownOperation(f"{self.model.service} has no operation {operation!r}"[:1024])
        shape = self.model.operation(operation).input
        if shape is None or not request.body:
            return BoundCall(operation, {})
        try:
            document = cbor.decode(request.body)
        except cbor.CborError as problem:
            raise SerializationError(f"Could not parse request body into cbor: {problem}") from None
        if not isinstance(document, dict):
            raise SerializationError("The request body is not a structure")
        return BoundCall(operation, _read_structure(document, shape))

    def serialize(self, operation: str, result: dict[str, Any]) -> Response:
        shape = self.model.operation(operation).output
        if shape is None:
            return Response(200, b"", [_HEADERS[1]])
        return Response(200, cbor.encode(_write_structure(result, shape)), list(_HEADERS))

    def error(self, error: ApiError) -> Response:
        headers = [*_HEADERS, *error.headers.items()]
        if self.model.query_compatible:
            fault = "Sender" if error.status < 500 else "Receiver"
            headers.append(("x-amzn-query-error", f"{self.model.query_error_code(error.code)};{fault}"))
        body: dict[str, Any] = {"__type": error.code, "message": error.message}
        shape = self.model.error_shape(error.code)
        for name, value in error.members.items():
            member = shape.members.get(name) if shape else None
            if value is not None:
                body[name] = _write(value, member) if member else value
        return Response(error.status, cbor.encode(body), headers)


def _read_structure(document: dict[str, Any], shape: Shape) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member in shape.members.values():
        value = document.get(member.wire_name)
        if value is not None:
            values[member.name] = _read(value, member)
    return values


def _read(value: Any, place: Member) -> Any:
    shape = place.shape
    kind = shape.kind
    if kind == "structure" and isinstance(value, dict):
        return _read_structure(value, shape)
    if kind == "list" and isinstance(value, list):
        element = shape.element
        return [None if item is None else _read(item, element) for item in value]
    if kind == "map" and isinstance(value, dict):
        inner = shape.value
        return {key: None if item is None else _read(item, inner) for key, item in value.items()}
    if (kind == "timestamp" and isinstance(value, dt.datetime)) or (kind == "blob" and isinstance(value, bytes)):
        return value
    if isinstance(value, dt.datetime | bytes) or kind in ("timestamp", "blob"):
        raise SerializationError(f"{place.name} is not a {kind}")
    # The rest is what JSON has too; there the words for each mismatch are found.
    return json_values.read_value(value, place)


def _write_structure(values: dict[str, Any], shape: Shape) -> dict[str, Any]:
    json_values.check_members(values, shape)
    document: dict[str, Any] = {}
    for member in shape.members.values():
        value = values.get(member.name)
        if value is not None:
            document[member.wire_name] = _write(value, member)
    return document


def _write(value: Any, place: Member) -> Any:
    shape = place.shape
    kind = shape.kind
    if kind == "structure":
        return _write_structure(value, shape)
    if kind == "list":
        element = shape.element
        return [None if item is None else _write(item, element) for item in value]
    if kind == "map":
        inner = shape.value
        return {key: None if item is None else _write(item, inner) for key, item in value.items()}
    if kind == "timestamp":
        return json_values.to_moment(value)
    if kind == "blob":
        return value.encode() if isinstance(value, str) else value
    if kind in ("float", "double"):
        return float(value)
    if kind in _INTEGERS:
        return int(value)
    return value
