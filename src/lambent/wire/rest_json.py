"""AWS's rest-json protocol (Lambda): method and path name the operation, members travel in path, query,
headers, body.

Routing: literal query parts of the model (`?List=ALL`) take precedence over the same path without; literal
path segments over labels; a trailing slash is ignored, because clients send `/2015-03-31/functions/`. Labels
are decoded after the path has been split, so that `%2F` stays part of a label.

A result's blob or event-stream payload is passed through as bytes.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Any, NamedTuple

from lambent.model.errors import ApiError, SerializationError, UnknownOperation
from lambent.wire import json_values
from lambent.wire.codec import BoundCall
from lambent.wire.http import Request, Response
from lambent.wire.service_model import Member, ServiceModel, Shape

_CONTENT_TYPE = ("Content-Type", "application/json")
_QUERY_FIELDS_MAX = 1000


class _Route(NamedTuple):
    operation: str
    #: Literal text, or None for a label, for each segment; the last one may be greedy.
    literals: tuple[str | None, ...]
    #: Wire names of the labels by segment.
    labels: dict[int, str]
    greedy: bool
    query: tuple[tuple[str, str], ...]

    def rank(self) -> tuple[int, tuple[bool, ...]]:
        """Smaller is more specific."""
        return -len(self.query), tuple(literal is None for literal in self.literals)


def _parse_route(template: str, operation: str) -> _Route:
    path, _, query = template.partition("?")
    literals: list[str | None] = []
    labels: dict[int, str] = {}
    greedy = False
    for index, segment in enumerate(_split(path)):
        label = re.fullmatch(r"\{(\w+)(\+?)\}", segment)
        literals.append(None if label else segment)
        if label:
            labels[index] = label[1]
            greedy = greedy or bool(label[2])
    pairs = tuple(urllib.parse.parse_qsl(query, keep_blank_values=True))
    return _Route(operation, tuple(literals), labels, greedy, pairs)


def _split(path: str) -> list[str]:
    segments = path.split("/")[1:]
    while segments and not segments[-1]:
        segments.pop()
    return segments


class RestJsonCodec:
    """The codec of one service whose model speaks rest-json."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model
        self._by_length: dict[tuple[str, int], list[_Route]] = {}
        self._greedy: dict[str, list[_Route]] = {}
        for method, template, operation in model.routes():
            route = _parse_route(template, operation)
            if route.greedy:
                self._greedy.setdefault(method, []).append(route)
            else:
                self._by_length.setdefault((method, len(route.literals)), []).append(route)
        for routes in (*self._by_length.values(), *self._greedy.values()):
            routes.sort(key=_Route.rank)

    # -- requests

    def bind(self, request: Request) -> BoundCall:
        query = _parse_query(request.query)
        operation, labels = self._route(request.method, request.path, query)
        shape = self.model.operation(operation).input
        if shape is None:
            return BoundCall(operation, {})
        params: dict[str, Any] = {}
        for member in shape.members.values():
            if member.location is not None:
                value = _read_located(member, labels, query, request.headers)
                if value is not None:
                    params[member.name] = value
        if shape.payload is not None:
            payload = _read_payload(shape.members[shape.payload], request.body)
            if payload is not None:
                params[shape.payload] = payload
        elif shape.body_members:
            params |= json_values.read_object(request.body, shape)
        return BoundCall(operation, params)

    def _route(self, method: str, path: str, query: dict[str, list[str]]) -> tuple[str, dict[str, str]]:
        segments = _split(path)
        for route in self._by_length.get((method, len(segments)), ()):
            if _matches_path(route, segments) and _matches_query(route, query):
                return route.operation, {
                    name: urllib.parse.unquote(segments[index]) for index, name in route.labels.items()
                }
        for route in self._greedy.get(method, ()):
            found = _match_greedy(route, path, query)
            if found is not None:
                return route.operation, found
        raise UnknownOperation(f"No operation of {self.model.service} matches {method} {path}"[:1024])

    # -- responses

    def serialize(self, operation: str, result: dict[str, Any]) -> Response:
        described = self.model.operation(operation)
        response = Response(described.response_code)
        shape = described.output
        if shape is None:
            return response
        json_values.check_members(result, shape)
        for member in shape.members.values():
            value = result.get(member.name)
            if value is None or member.location is None:
                continue
            if member.location == "statusCode":
                response.status = int(value)
            elif member.location == "headers":
                response.headers += [(member.wire_name + key, str(item)) for key, item in value.items()]
            else:
                response.headers.append((member.wire_name, json_values.write_text(value, member)))
        if response.status not in (204, 304):
            response.body = _write_body(shape, result)
        if response.body and not any(name.lower() == "content-type" for name, _ in response.headers):
            response.headers.append(_CONTENT_TYPE)
        return response

    def error(self, error: ApiError) -> Response:
        body: dict[str, Any] = {}
        headers = [_CONTENT_TYPE, ("x-amzn-ErrorType", error.code)]
        shape = self.model.error_shape(error.code)
        for name, value in error.members.items():
            member = shape.members.get(name) if shape else None
            if value is None:
                continue
            if member is not None and member.location == "header":
                headers.append((member.wire_name, json_values.write_text(value, member)))
            else:
                body[name] = value
        if error.with_type:
            body["Type"] = error.fault
        body[error.message_key] = error.message
        return Response(error.status, json_values.encode(body), [*headers, *error.headers.items()])


def _parse_query(text: str) -> dict[str, list[str]]:
    if not text:
        return {}
    try:
        return urllib.parse.parse_qs(text, keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError:
        raise SerializationError(f"The query string has more than {_QUERY_FIELDS_MAX} fields") from None


def _matches_query(route: _Route, query: dict[str, list[str]]) -> bool:
    return all(value in query.get(name, ()) for name, value in route.query)


def _matches_path(route: _Route, segments: list[str]) -> bool:
    return all(
        bool(segment) if literal is None else literal == segment
        for literal, segment in zip(route.literals, segments, strict=True)
    )


def _match_greedy(route: _Route, path: str, query: dict[str, list[str]]) -> dict[str, str] | None:
    """Match a route whose one greedy label takes all that the other segments leave."""
    segments = path.split("/")[1:]
    extra = len(segments) - len(route.literals)
    if extra < 0 or not _matches_query(route, query):
        return None
    start = max(route.labels)  # a model has at most one greedy label, and no label behind it
    stop = start + extra + 1
    joined = [*segments[:start], "/".join(segments[start:stop]), *segments[stop:]]
    if not _matches_path(route, joined):
        return None
    return {name: urllib.parse.unquote(joined[index]) for index, name in route.labels.items()}


def _read_located(member: Member, labels: dict[str, str], query: dict[str, list[str]], headers: dict[str, str]) -> Any:
    """A member's value from path, query or headers, or None."""
    kind = member.shape.kind
    if member.location == "uri":
        text = labels.get(member.wire_name)
        return None if text is None else json_values.read_text(text, member)
    if member.location == "querystring":
        if kind == "map":
            return {name: values[0] for name, values in query.items()} or None
        values = query.get(member.wire_name)
        if values is None:
            return None
        if kind == "list":
            return [json_values.read_text(value, member.shape.element) for value in values]
        return json_values.read_text(values[0], member)
    if member.location == "header":
        text = headers.get(member.wire_name.lower())
        if text is None:
            return None
        if kind == "list":
            return [json_values.read_text(part.strip(), member.shape.element) for part in text.split(",")]
        return json_values.read_text(text, member)
    if member.location == "headers":
        prefix = member.wire_name.lower()
        found = {name[len(prefix) :]: text for name, text in headers.items() if name.startswith(prefix)}
        return found or None
    return None


def _read_payload(member: Member, body: bytes) -> Any:
    """The member that is the whole body, or None when there is no body."""
    if not body:
        return None
    if member.shape.kind == "blob":
        return body
    if member.shape.kind == "string":
        try:
            return body.decode()
        except UnicodeDecodeError as problem:
            raise SerializationError(f"The request body is not UTF-8: {problem}") from None
    return json_values.read_object(body, member.shape)


def _write_body(shape: Shape, result: dict[str, Any]) -> bytes:
    if shape.payload is not None:
        member = shape.members[shape.payload]
        value = result.get(shape.payload)
        if value is None:
            return b""
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        json_values.check_members(value, member.shape)
        return json_values.encode(json_values.write_structure(value, tuple(member.shape.members.values())))
    if not shape.body_members and shape.members:
        return b""
    return json_values.encode(json_values.write_structure(result, shape.body_members))
