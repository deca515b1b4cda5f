"""Requests as hostile or clumsy clients send them: every outcome is a bound call or an ApiError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambent.model.errors import ApiError, SerializationError, UnknownOperation
from lambent.wire.http import Request
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load
from lambent.wire.validation import validate

LAMBDA = RestJsonCodec(load("lambda"))
LOGS = JsonRpcCodec(load("logs"))
FUNCTIONS = "/2015-03-31/functions"


def request(method: str, target: str, body: Any = b"", **headers: str) -> Request:
    path, _, query = target.partition("?")
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return Request(method, path, query, names, body, "000000000000", "us-east-1", "lambda", "id")


def bind(method: str, target: str, body: Any = b"", **headers: str) -> tuple[str, dict[str, Any]]:
    call = LAMBDA.bind(request(method, target, body, **headers))
    return call.operation, call.params


@pytest.mark.parametrize(
    ("method", "target", "operation", "params"),
    [
        ("GET", FUNCTIONS, "ListFunctions", {}),
        ("GET", FUNCTIONS + "/", "ListFunctions", {}),
        ("GET", FUNCTIONS + "/?MaxItems=5&Marker=", "ListFunctions", {"MaxItems": 5, "Marker": ""}),
        ("GET", FUNCTIONS + "/a%3Ab%2Fc", "GetFunction", {"FunctionName": "a:b/c"}),
        ("GET", FUNCTIONS + "/f/?Qualifier=1", "GetFunction", {"FunctionName": "f", "Qualifier": "1"}),
        ("GET", "/2018-10-31/layers", "ListLayers", {}),
        ("GET", "/2018-10-31/layers?find=LayerVersion&Arn=a%20b", "GetLayerVersionByArn", {"Arn": "a b"}),
        (
            "GET",
            "/2019-09-30/functions/f/provisioned-concurrency?List=ALL",
            "ListProvisionedConcurrencyConfigs",
            {"FunctionName": "f"},
        ),
        (
            "GET",
            "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=live",
            "GetProvisionedConcurrencyConfig",
            {"FunctionName": "f", "Qualifier": "live"},
        ),
        (
            "DELETE",
            "/2017-03-31/tags/arn?tagKeys=a&tagKeys=b",
            "UntagResource",
            {"Resource": "arn", "TagKeys": ["a", "b"]},
        ),
    ],
)
def test_routes(method: str, target: str, operation: str, params: dict[str, Any]) -> None:
    assert bind(method, target) == (operation, params)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PATCH", FUNCTIONS),
        ("GET", "/"),
        ("GET", ""),
        ("GET", "/2015-03-31"),
        ("POST", FUNCTIONS + "//invocations"),
        ("GET", FUNCTIONS + "/f/nothing"),
    ],
)
def test_what_is_no_route_is_an_unknown_operation(method: str, target: str) -> None:
    with pytest.raises(UnknownOperation):
        bind(method, target)


def test_a_blob_payload_passes_through_untouched() -> None:
    operation, params = bind("POST", FUNCTIONS + "/f/invocations", b"\xff\x00", X_Amz_Log_Type="Tail")
    assert operation == "Invoke"
    assert params == {"FunctionName": "f", "LogType": "Tail", "Payload": b"\xff\x00"}


def test_null_is_absent_and_unknown_members_are_ignored() -> None:
    body = {"FunctionName": "f", "Description": None, "Nonsense": {"a": 1}, "Code": {"ZipFile": "AAE="}}
    assert bind("POST", FUNCTIONS, body) == (
        "CreateFunction",
        {"FunctionName": "f", "Code": {"ZipFile": b"\x00\x01"}},
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "Could not parse request body into json"),
        (b"\xff", "Could not parse request body into json"),
        (b"[]", "Start of list found where not expected"),
        (b"1", "NUMBER_VALUE found where a structure or map was expected"),
        (b'{"Timeout": "x"}', "STRING_VALUE can not be converted to an Integer"),
        (b'{"Timeout": true}', "TRUE_VALUE can not be converted to an Integer"),
        (b'{"Timeout": 1e400}', ""),
        (b'{"Timeout": 3000000000}', "Numeric value (3000000000) out of range of integer"),
        (b'{"FunctionName": 1}', "NUMBER_VALUE can not be converted to a String"),
        (b'{"FunctionName": {}}', "Start of structure or map found where not expected."),
        (b'{"Publish": "true"}', "STRING_VALUE can not be converted to a Boolean"),
        (b'{"Layers": "a"}', "STRING_VALUE found where a list was expected"),
        (b'{"Environment": 5}', "NUMBER_VALUE found where a structure or map was expected"),
        (b'{"Code": {"ZipFile": "%%%"}}', "STRING_VALUE can not be converted to a ByteBuffer"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_wrong_json_is_a_serialization_error(body: bytes, message: str) -> None:
    with pytest.raises(SerializationError) as caught:
        bind("POST", FUNCTIONS, body)
    assert message in caught.value.message
    assert LAMBDA.error(caught.value).status == 400


def test_the_target_header_names_the_operation() -> None:
    call = LOGS.bind(request("POST", "/", {"limit": 3}, X_Amz_Target="Logs_20140328.DescribeLogGroups"))
    assert (call.operation, call.params) == ("DescribeLogGroups", {"limit": 3})
    for target in ("", "Logs_20140328.Nothing", "Other.DescribeLogGroups", "DescribeLogGroups"):
        with pytest.raises(UnknownOperation):
            LOGS.bind(request("POST", "/", {}, X_Amz_Target=target))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def bodies(draw: st.DrawFn, model_name: str, operation: str) -> bytes:
    """Bytes, JSON, or JSON that has the operation's own members with anything for values."""
    shape = load(model_name).operation(operation).input
    names = sorted(shape.members) if shape else []
    if not names:
        return draw(st.binary(max_size=30))
    aimed = st.dictionaries(st.sampled_from(names), JSON, max_size=4)
    return draw(st.binary(max_size=30) | (JSON | aimed).map(lambda value: json.dumps(value).encode()))


def outcome(codec: RestJsonCodec | JsonRpcCodec, made: Request) -> None:
    """Bind and check; an ApiError must be one of a client's, with an answer to it."""
    status = 400
    try:
        call = codec.bind(made)
        shape = codec.model.operation(call.operation).input
        if shape is not None:
            validate(call.params, shape)
    except ApiError as error:
        status = codec.error(error).status
    assert status in (400, 404)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), query=st.text(max_size=20), label=st.text(max_size=6))
def test_no_rest_request_raises_anything_but_an_api_error(data: st.DataObject, query: str, label: str) -> None:
    method, template, operation = data.draw(st.sampled_from(sorted(load("lambda").routes())))
    path, _, literal = template.partition("?")
    shape = load("lambda").operation(operation).input
    located = [m.wire_name for m in shape.members.values() if m.location == "querystring"] if shape else []
    for member in shape.members.values() if shape else ():
        if member.location == "uri":
            path = path.replace("{" + member.wire_name + "}", label)
    if located:
        literal += f"&{data.draw(st.sampled_from(located))}={query}"
    made = request(method, f"{path}?{literal}&{query}", data.draw(bodies("lambda", operation)))
    made.headers |= data.draw(
        st.dictionaries(st.sampled_from(["x-amz-log-type", "if-match", "content-type"]), st.text(max_size=5))
    )
    outcome(LAMBDA, made)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_rpc_request_raises_anything_but_an_api_error(data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(LOGS.model.operation_names))
    body = data.draw(bodies("logs", operation))
    outcome(LOGS, request("POST", "/", body, X_Amz_Target=f"Logs_20140328.{operation}"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.floats().map(str) | st.datetimes().map(str))
@example("Mon, 99 Foo 99999 99:99:99 +9999")
@example("9999-12-31T23:59:59-14:00")
@example("1e300")
@example("nan")
def test_timestamps_of_the_query_are_moments_or_serialization_errors(text: str) -> None:
    made = request("GET", "/2025-12-01/functions/f/durable-executions")
    from urllib.parse import quote

    made.query = "StartedAfter=" + quote(text)
    outcome(LAMBDA, made)
