"""The query protocol and RPC v2 CBOR, with botocore as the client: what it sends we bind, what we answer it parses."""

from __future__ import annotations

import datetime as dt
import urllib.parse
from collections.abc import Callable
from typing import Any

import botocore.awsrequest
import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.model.errors import ApiError
from lambent.wire.codec import Codec
from lambent.wire.http import Request, Response
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.query import QueryCodec, with_request_id
from lambent.wire.rpc_v2_cbor import RpcV2CborCodec
from lambent.wire.service_model import ServiceModel, load

LOADER = botocore.loaders.Loader()
CODECS: dict[str, Callable[[ServiceModel], Codec]] = {
    "query": QueryCodec,
    "smithy-rpc-v2-cbor": RpcV2CborCodec,
    "json": JsonRpcCodec,
}
#: All of CloudWatch's operations in each of its protocols, and a choice of what other services make of `query`.
CASES = [
    *(("cloudwatch", protocol, operation) for protocol in CODECS for operation in load("cloudwatch").operation_names),
    *(("rds", "query", f"{verb}DBProxy{noun}") for verb in ("Create", "Modify") for noun in ("", "Endpoint")),
    ("rds", "query", "DescribeDBProxyTargets"),
    ("rds", "query", "RegisterDBProxyTargets"),
    ("rds", "query", "DescribeDBInstances"),
    ("sns", "query", "Publish"),
    ("sns", "query", "GetTopicAttributes"),
    ("sts", "query", "AssumeRole"),
    ("iam", "query", "GetRole"),
    ("application-autoscaling", "json", "PutScalingPolicy"),
]

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12)
MOMENT = st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2090, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=dt.UTC)
)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXT,
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "double": st.floats(allow_nan=False),
    "float": st.floats(allow_nan=False, width=32),
    "timestamp": MOMENT,
    "blob": st.binary(max_size=20),
}


@st.composite
def values(draw: st.DrawFn, shape: botocore.model.Shape, depth: int = 0) -> Any:
    """Something of the type of `shape`. A structure is never empty: a form has no way to say so."""
    if shape.type_name == "structure":
        names = sorted(name for name, member in shape.members.items() if getattr(member, "members", True))
        if getattr(shape, "is_tagged_union", False):
            chosen = [draw(st.sampled_from(names))]
        elif depth:
            first = draw(st.sampled_from(names)) if names else None
            chosen = [name for name in names if name == first or (depth < 4 and draw(st.booleans()))]
        else:
            chosen = [name for name in names if draw(st.booleans())]
        return {name: draw(values(shape.members[name], depth + 1)) for name in chosen}
    if shape.type_name == "list":
        return [draw(values(shape.member, depth + 1)) for _ in range(draw(st.integers(1, 2)))]
    if shape.type_name == "map":
        keys = draw(st.lists(TEXT.filter(bool), min_size=1, max_size=2, unique=True))
        return {key: draw(values(shape.value, depth + 1)) for key in keys}
    return draw(SCALARS[shape.type_name])


def oracle(service: str) -> botocore.model.ServiceModel:
    return botocore.model.ServiceModel(LOADER.load_service_model(service, "service-2"), service_name=service)


ORACLES = {service: oracle(service) for service, _, _ in CASES}


def to_request(service: str, protocol: str, operation: str, params: dict[str, Any]) -> Request:
    """The request that botocore would send."""
    model = ORACLES[service].operation_model(operation)
    serialized = botocore.serialize.create_serializer(protocol, False).serialize_to_request(params, model)
    serialized["context"] = {}
    botocore.awsrequest.prepare_request_dict(serialized, "http://127.0.0.1:9400", {}, "test")
    prepared = botocore.awsrequest.create_request_object(serialized).prepare()
    url = urllib.parse.urlsplit(prepared.url)
    headers = {name.lower(): str(value) for name, value in prepared.headers.items()}
    body = prepared.body or b""
    if isinstance(body, str):
        body = body.encode()
    return Request(prepared.method, url.path, url.query, headers, body, "0", "us-east-1", service, "id")


def parse(service: str, protocol: str, operation: str, response: Response) -> dict[str, Any]:
    model = ORACLES[service].operation_model(operation)
    headers = botocore.awsrequest.HeadersDict(response.headers)
    raw = {"status_code": response.status, "headers": headers, "body": response.body}
    return dict(botocore.parsers.create_parser(protocol).parse(raw, model.output_shape))


@pytest.mark.parametrize(("service", "protocol", "operation"), CASES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_botocore_sends_is_bound(service: str, protocol: str, operation: str, data: st.DataObject) -> None:
    shape = ORACLES[service].operation_model(operation).input_shape
    params = data.draw(values(shape)) if shape else {}
    call = CODECS[protocol](load(service)).bind(to_request(service, protocol, operation, params))
    assert call.operation == operation
    assert call.params == params


@pytest.mark.parametrize(("service", "protocol", "operation"), CASES)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_we_answer_botocore_parses(service: str, protocol: str, operation: str, data: st.DataObject) -> None:
    shape = ORACLES[service].operation_model(operation).output_shape
    result = data.draw(values(shape)) if shape else {}
    response = CODECS[protocol](load(service)).serialize(operation, result)
    parsed = parse(service, protocol, operation, with_request_id(response, "one"))
    metadata = parsed.pop("ResponseMetadata")
    if protocol == "query":
        assert metadata["RequestId"] == "one"
    assert parsed == result


def test_text_that_looks_like_markup_comes_through() -> None:
    result = {"Metrics": [{"MetricName": "<RequestId></RequestId>&\r\n\t]]>", "Dimensions": []}], "NextToken": " "}
    response = with_request_id(QueryCodec(load("cloudwatch")).serialize("ListMetrics", result), "one")
    parsed = parse("cloudwatch", "query", "ListMetrics", response)
    assert parsed.pop("ResponseMetadata")["RequestId"] == "one"
    assert parsed == result


def test_what_xml_can_not_hold_is_replaced() -> None:
    response = QueryCodec(load("cloudwatch")).serialize("ListMetrics", {"NextToken": "a\x00b\x1b\ud800c"})
    assert parse("cloudwatch", "query", "ListMetrics", response)["NextToken"] == "a\ufffdb\ufffd\ufffdc"


class Missing(ApiError):
    code, status, message_key = "MissingRequiredParameterException", 400, "message"


@pytest.mark.parametrize("protocol", CODECS)
def test_an_error_has_its_old_code_in_every_protocol(protocol: str) -> None:
    response = CODECS[protocol](load("cloudwatch")).error(Missing("The parameter <X> is required."))
    parsed = parse("cloudwatch", protocol, "PutMetricData", response)
    assert parsed["Error"]["Code"] == "MissingParameter"
    assert parsed["Error"]["Message"] == "The parameter <X> is required."
    assert parsed["ResponseMetadata"]["HTTPStatusCode"] == 400
    if protocol != "query":
        assert parsed["Error"]["QueryErrorCode"] == "MissingRequiredParameterException"


def get(query: str) -> Request:
    return Request("GET", "/", query, {}, b"", "0", "us-east-1", "monitoring", "id")


def test_a_form_may_stand_in_the_url_and_number_its_elements_with_gaps() -> None:
    call = QueryCodec(load("cloudwatch")).bind(
        get("Action=ListMetrics&Dimensions.member.30.Name=b&Dimensions.member.7.Name=a&Version=2010-08-01&Other=1")
    )
    assert call.params == {"Dimensions": [{"Name": "a"}, {"Name": "b"}]}
    assert QueryCodec(load("cloudwatch")).bind(get("Action=ListMetrics&Dimensions=")).params == {"Dimensions": []}


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "InvalidAction"),
        ("Action=Nothing", "InvalidAction"),
        ("Action=ListMetrics&Dimensions.member.x.Name=a", "MalformedQueryString"),
        ("Action=ListMetrics&Dimensions.member.1=a", None),
        ("Action=ListMetrics&Namespace.deep=a", "SerializationException"),
        ("Action=GetMetricStatistics&Period=six", "SerializationException"),
        ("Action=GetMetricStatistics&StartTime=soon", "SerializationException"),
        ("Action=ListMetrics&" + "a." * 100 + "b=1", "MalformedQueryString"),
    ],
)
def test_hostile_forms(query: str, code: str | None) -> None:
    codec = QueryCodec(load("cloudwatch"))
    if code is None:
        codec.bind(get(query))
        return
    with pytest.raises(ApiError) as caught:
        codec.bind(get(query))
    assert caught.value.code == code


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_make_a_codec_raise_anything_but_api_errors(body: bytes) -> None:
    path = "/service/GraniteServiceVersion20100801/operation/PutMetricData"
    for codec in (QueryCodec(load("cloudwatch")), RpcV2CborCodec(load("cloudwatch"))):
        try:
            codec.bind(Request("POST", path, "Action=PutMetricData", {}, body, "0", "us-east-1", "monitoring", "id"))
        except ApiError:
            pass
