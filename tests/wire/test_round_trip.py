"""Every operation of the models, with botocore as the client: what it sends we bind, what we answer it parses."""

from __future__ import annotations

import datetime as dt
import json
import string
import urllib.parse
from typing import Any

import botocore.awsrequest
import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.model.errors import ResourceNotFound, TooManyRequests, ValidationError
from lambent.wire.codec import Codec
from lambent.wire.http import Request, Response
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load

LOADER = botocore.loaders.Loader()
ORACLES = {
    name: botocore.model.ServiceModel(LOADER.load_service_model(name, "service-2"), service_name=name)
    for name in ("lambda", "logs")
}
CODECS: dict[str, Codec] = {"lambda": RestJsonCodec(load("lambda")), "logs": JsonRpcCodec(load("logs"))}
OPERATIONS = [(service, name) for service, oracle in ORACLES.items() for name in oracle.operation_names]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LABEL = TEXT.filter(bool)
HEADER = st.text(string.ascii_letters + string.digits + "/+=:-", min_size=1, max_size=12)
MOMENT = st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2090, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=dt.UTC)
)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXT,
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "timestamp": MOMENT,
    "blob": st.binary(max_size=20),
}


@st.composite
def values(draw: st.DrawFn, shape: botocore.model.Shape, depth: int = 0) -> Any:
    """Something of the type of `shape`, without regard for constraints."""
    if shape.type_name == "structure":
        if getattr(shape, "is_document_type", False):
            return {}
        return draw(structures(shape, depth + 1))
    if shape.type_name == "list":
        size = 0 if depth > 4 else draw(st.integers(0, 2))
        return [draw(values(shape.member, depth + 1)) for _ in range(size)]
    if shape.type_name == "map":
        keys = [] if depth > 4 else draw(st.lists(TEXT, max_size=2, unique=True))
        return {key: draw(values(shape.value, depth + 1)) for key in keys}
    return draw(SCALARS[shape.type_name])


@st.composite
def structures(draw: st.DrawFn, shape: botocore.model.Shape, depth: int = 0) -> dict[str, Any]:
    if getattr(shape, "is_tagged_union", False):
        name = draw(st.sampled_from(sorted(shape.members)))
        return {name: draw(values(shape.members[name], depth))}
    chosen: dict[str, Any] = {}
    for name, member in shape.members.items():
        location = member.serialization.get("location")
        if member.serialization.get("eventstream") or (location != "uri" and (depth > 4 or not draw(st.booleans()))):
            continue
        if location == "uri":
            chosen[name] = draw(LABEL if member.type_name == "string" else values(member))
        elif location in ("header", "headers"):
            chosen[name] = draw(HEADER if member.type_name == "string" else values(member))
        elif location == "statusCode":
            chosen[name] = draw(st.integers(200, 203))
        else:
            chosen[name] = draw(values(member, depth))
    return chosen


def to_request(service: str, operation: str, params: dict[str, Any]) -> Request:
    """The request that botocore would send."""
    model = ORACLES[service].operation_model(operation)
    serializer = botocore.serialize.create_serializer(model.service_model.protocol, include_validation=False)
    serialized = serializer.serialize_to_request(params, model)
    serialized["context"] = {}
    botocore.awsrequest.prepare_request_dict(serialized, "http://127.0.0.1:9400", {}, "test")
    prepared = botocore.awsrequest.create_request_object(serialized).prepare()
    url = urllib.parse.urlsplit(prepared.url)
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in prepared.headers.items()
    }
    body = prepared.body or b""
    if isinstance(body, str):
        body = body.encode()
    return Request(prepared.method, url.path, url.query, headers, body, "0", "us-east-1", service, "id")


def parse(service: str, operation: str, response: Response) -> dict[str, Any]:
    model = ORACLES[service].operation_model(operation)
    parser = botocore.parsers.create_parser(model.service_model.protocol)
    headers = botocore.awsrequest.HeadersDict(response.headers)
    raw = {"status_code": response.status, "headers": headers, "body": response.body}
    return dict(parser.parse(raw, model.output_shape))


def without_empty_located(params: dict[str, Any], shape: botocore.model.Shape) -> dict[str, Any]:
    """What remains when botocore has left out empty lists of the query and an empty body."""
    payload = shape.serialization.get("payload")
    return {
        name: value
        for name, value in params.items()
        if value not in ([], b"", {}) or (name != payload and shape.members[name].serialization.get("location") is None)
    }


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_botocore_sends_is_bound(service: str, operation: str, data: st.DataObject) -> None:
    shape = ORACLES[service].operation_model(operation).input_shape
    params = data.draw(structures(shape)) if shape else {}
    call = CODECS[service].bind(to_request(service, operation, params))
    assert call.operation == operation
    expected = without_empty_located(params, shape) if shape else {}
    payload = shape.serialization.get("payload") if shape else None
    if payload in expected and isinstance(expected[payload], dict):
        expected[payload] = {k: v for k, v in expected[payload].items() if v is not None}
    if payload in call.params and payload not in expected:
        assert not call.params.pop(payload)
    assert call.params == expected


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_we_answer_botocore_parses(service: str, operation: str, data: st.DataObject) -> None:
    model = ORACLES[service].operation_model(operation)
    if model.has_event_stream_output:
        return
    result = data.draw(structures(model.output_shape)) if model.output_shape else {}
    response = CODECS[service].serialize(operation, result)
    if service == "lambda" and "StatusCode" not in result and "Status" not in result:
        assert response.status == model.http["responseCode"]
    if response.status == 204:
        assert response.body == b""
        return
    payload = model.output_shape.serialization.get("payload") if model.output_shape else None
    if payload and model.output_shape.members[payload].type_name == "blob":
        # The parser alone takes these bytes for text; a client reads them as a stream.
        assert response.body == result.pop(payload, b"")
        response.body = b""
    parsed = parse(service, operation, response)
    parsed.pop("ResponseMetadata")
    parsed.pop(payload, None)
    for name, member in (model.output_shape.members if model.output_shape else {}).items():
        if member.serialization.get("location") == "statusCode":
            assert parsed.pop(name) == response.status
            result.pop(name, None)
    assert parsed == result


def test_errors_reach_the_client_with_code_message_and_members() -> None:
    throttled = TooManyRequests("Rate Exceeded.", Reason="CallerRateLimitExceeded", retryAfterSeconds="1")
    response = CODECS["lambda"].error(throttled)
    parsed = parse("lambda", "Invoke", response)
    assert parsed["Error"] == {"Code": "TooManyRequestsException", "Message": "Rate Exceeded."}
    assert parsed["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert json.loads(response.body) == {
        "Reason": "CallerRateLimitExceeded",
        "Type": "User",
        "message": "Rate Exceeded.",
    }
    assert ("Retry-After", "1") in response.headers

    plain = CODECS["lambda"].error(ValidationError("no"))
    assert plain.body == b'{"message":"no"}'

    missing = CODECS["logs"].error(ResourceNotFound("gone"))
    assert missing.status == 400
    assert parse("logs", "GetLogEvents", missing)["Error"] == {
        "Code": "ResourceNotFoundException",
        "Message": "gone",
    }
