"""Requests to a function URL over a real socket; the test plays the function."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from frontend.harness import HOST, KEY, PATIENCE_S, URL_ID, Frontend, Producer
from lambent.model.errors import ServiceUnavailable, TooManyRequests
from lambent.model.function_url import Cors, InvokeMode, UrlAuthType
from lambent.model.limits import SYNC_PAYLOAD_MAX_BYTES

FORBIDDEN = (
    b'{"Message":"Forbidden. For troubleshooting Function URL authorization issues, see: '
    b'https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"}'
)
PRELUDE = "application/vnd.awslambda.http-integration-response"
MIB = 1_048_576


def event_of(frontend: Frontend, *arguments: Any, **named: Any) -> Any:
    connection = frontend.send(*arguments, **named)
    call = frontend.next_call()
    call.end(b"1")
    assert connection.getresponse().read() == b"1"
    connection.close()
    return call.event


def answer_to(frontend: Frontend, payload: bytes, method: str = "GET", **members: Any) -> http.client.HTTPResponse:
    connection = frontend.send(method)
    frontend.next_call().end(payload, **members)
    return connection.getresponse()


def refusal(frontend: Frontend, *arguments: Any, **named: Any) -> tuple[int, bytes, str | None]:
    answer = frontend.send(*arguments, **named).getresponse()
    assert frontend.calls.empty()
    return answer.status, answer.read(), answer.getheader("x-amzn-ErrorType")


# --- the event ----------------------------------------------------------------------------------------------


def test_the_event(frontend: Frontend) -> None:
    frontend.set_url()
    connection = frontend.send(
        "POST",
        "/pa2%Fth/1?a=1&a=2&b=%C3%A9+x&empty=",
        b'{"k":"\xc3\xa9"}',
        {"Content-Type": "application/json; charset=utf-8", "Cookie": "a=b; c=d", "X-Two": "1", "User-Agent": "me"},
    )
    call = frontend.next_call()
    call.end(b"{}")
    answer = connection.getresponse()
    event = call.event
    headers = event.pop("headers")
    context = event.pop("requestContext")
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/pa2%Fth/1",
        "rawQueryString": "a=1&a=2&b=%C3%A9+x&empty=",
        "queryStringParameters": {"a": "1,2", "b": "é x", "empty": ""},
        "cookies": ["a=b", "c=d"],
        "body": '{"k":"é"}',
        "isBase64Encoded": False,
    }
    assert headers["cookie"] == "a=b; c=d"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert (headers["x-forwarded-proto"], headers["x-forwarded-port"]) == ("http", str(frontend.port))
    assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};.*", headers["x-amzn-trace-id"])
    assert headers["x-amzn-trace-id"] == call.invocation.trace_id
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", context.pop("time"))
    assert isinstance(context.pop("timeEpoch"), int)
    assert context == {
        "accountId": "anonymous",
        "apiId": URL_ID,
        "domainName": HOST,
        "domainPrefix": URL_ID,
        "http": {
            "method": "POST",
            "path": "/pa2%Fth/1",
            "protocol": "HTTP/1.1",
            "sourceIp": "127.0.0.1",
            "userAgent": "me",
        },
        "requestId": call.invocation.request_id,
        "routeKey": "$default",
        "stage": "$default",
    }
    assert answer.getheader("x-amzn-RequestId") == call.invocation.request_id


def test_what_has_no_value_is_left_out(frontend: Frontend) -> None:
    frontend.set_url()
    event = event_of(frontend)
    assert not {"body", "cookies", "queryStringParameters", "pathParameters"} & set(event)
    assert event["rawQueryString"] == ""


@pytest.mark.parametrize(
    ("content_type", "body", "encoding", "text"),
    [
        ("text/plain", b"x", None, True),
        ("Application/JSON", b"{}", None, True),
        ("application/vnd.api+json", b"{}", None, True),
        ("application/x-www-form-urlencoded", b"a=b", None, True),
        ("application/xml", b"<a/>", None, True),
        ("application/javascript", b"a", None, True),
        ("image/svg+xml", b"<a/>", None, False),
        ("multipart/form-data; boundary=x", b"--x--", None, False),
        ("application/octet-stream", b"\xff", None, False),
        (None, b"x", None, False),
        ("application/json", b"\x1f\x8b", "gzip", False),
        ("text/plain", b"\xff\xfe", None, False),
    ],
)
def test_bodies(frontend: Frontend, content_type: str | None, body: bytes, encoding: str | None, text: bool) -> None:
    frontend.set_url()
    headers = {"Content-Type": content_type, "Content-Encoding": encoding}
    event = event_of(frontend, "PUT", "/", body, {name: value for name, value in headers.items() if value is not None})
    assert event["isBase64Encoded"] is not text
    assert event["body"] == (body.decode() if text else base64.b64encode(body).decode())


def test_repeated_headers_are_joined(frontend: Frontend) -> None:
    frontend.set_url()
    with socket.create_connection(("127.0.0.1", frontend.port), PATIENCE_S) as sock:
        sock.sendall(
            f"GET / HTTP/1.1\r\nHost: {HOST.upper()}:80\r\nX-A: 1\r\nx-a: 2\r\nCookie: a=1\r\nCookie: b=2\r\n"
            "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Amzn-Trace-Id: Root=1-2-3\r\n\r\n".encode()
        )
        call = frontend.next_call()
        call.end(b"1")
        assert sock.recv(65_536)
    headers = call.event["headers"]
    assert (headers["x-a"], headers["cookie"]) == ("1,2", "a=1; b=2")
    assert call.event["cookies"] == ["a=1", "b=2"]
    assert headers["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-amzn-trace-id"] == "Root=1-2-3"
    assert call.event["requestContext"]["domainName"] == HOST


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_every_method(frontend: Frontend, method: str) -> None:
    frontend.set_url()
    connection = frontend.send(method)
    call = frontend.next_call()
    assert call.event["requestContext"]["http"]["method"] == method
    call.end(b'{"statusCode":200,"body":"four"}')
    answer = connection.getresponse()
    assert answer.getheader("Content-Length") == "4"
    assert answer.read() == (b"" if method == "HEAD" else b"four")
    connection.request("GET", "/again", headers={"Host": HOST})  # the connection is still in step
    frontend.next_call().end(b"2")
    assert connection.getresponse().read() == b"2"
    connection.close()


def test_the_host_decides_whatever_the_path(frontend: Frontend) -> None:
    frontend.set_url()
    event = event_of(frontend, "POST", "/2015-03-31/functions/f/invocations", b"{}")
    assert event["rawPath"] == "/2015-03-31/functions/f/invocations"
    assert event_of(frontend, "GET", "/_lambent/health")["rawPath"] == "/_lambent/health"


# --- answers ------------------------------------------------------------------------------------------------


def test_answers(frontend: Frontend) -> None:
    frontend.set_url()
    answer = answer_to(frontend, b'{"statusCode":418,"headers":{"X-A":"b"},"cookies":["a=1","b=2"],"body":"tea"}')
    assert (answer.status, answer.read(), answer.getheader("X-A")) == (418, b"tea", "b")
    assert answer.msg.get_all("Set-Cookie") == ["a=1", "b=2"]
    plain = answer_to(frontend, b'"hello"')
    assert (plain.status, plain.getheader("Content-Type"), plain.read()) == (200, "application/json", b"hello")
    assert (plain.getheader("X-Amzn-Trace-Id") or "").startswith("Root=1-")


def test_502(frontend: Frontend) -> None:
    frontend.set_url()
    for payload, failed in ((b'{"statusCode":"x"}', False), (b"no json", False), (b'{"errorType":"E"}', True)):
        answer = answer_to(frontend, payload, is_function_error=failed)
        assert (answer.status, answer.read()) == (502, b"Internal Server Error")


def test_refusals_of_the_platform(frontend: Frontend) -> None:
    frontend.set_url()
    connection = frontend.send()
    frontend.next_call().refuse(TooManyRequests("Rate Exceeded.", Reason="ConcurrentInvocationLimitExceeded"))
    answer = connection.getresponse()
    assert answer.status == 429
    assert json.loads(answer.read())["Reason"] == "ConcurrentInvocationLimitExceeded"
    connection = frontend.send()
    frontend.next_call().refuse(ServiceUnavailable("lost"))
    assert connection.getresponse().status == 503


def test_413(frontend: Frontend) -> None:
    frontend.set_url()
    status, _, kind = refusal(frontend, "POST", "/", bytes(SYNC_PAYLOAD_MAX_BYTES + 1))
    assert (status, kind) == (413, "RequestEntityTooLargeException")
    # As base64 inside the event it is larger than as it came.
    assert refusal(frontend, "POST", "/", bytes(5 * MIB))[0] == 413
    event = event_of(frontend, "POST", "/", b"x" * 5 * MIB, {"Content-Type": "text/plain"})
    assert len(event["body"]) == 5 * MIB


def test_403(frontend: Frontend) -> None:
    assert refusal(frontend) == (403, b'{"Message":null}', "AccessDeniedException")
    frontend.set_url()
    elsewhere = {"Host": HOST.replace("us-east-1", "eu-west-1")}
    assert refusal(frontend, headers=elsewhere) == (403, b'{"Message":null}', "AccessDeniedException")
    frontend.set_url(permits=lambda caller: caller != "*")
    assert refusal(frontend) == (403, FORBIDDEN, "AccessDeniedException")
    frontend.set_url(qualifier="gone")
    assert refusal(frontend) == (403, FORBIDDEN, "AccessDeniedException")


# --- CORS ---------------------------------------------------------------------------------------------------

CORS = Cors(True, ("x-a", "x-b"), ("GET", "PUT"), ("https://a.example",), ("x-seen",), 60)
ORIGIN = {"Origin": "https://a.example"}
ASKS = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-a"}


def preflight(frontend: Frontend, headers: dict[str, str]) -> dict[str, str]:
    answer = frontend.send("OPTIONS", "/", headers={**headers, **ASKS}).getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert frontend.calls.empty()
    return {name.lower(): value for name, value in answer.getheaders() if name.lower().startswith("access-control")}


def test_a_preflight_is_answered_without_the_function(frontend: Frontend) -> None:
    frontend.set_url(cors=CORS, auth=UrlAuthType.AWS_IAM)
    assert preflight(frontend, ORIGIN) == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET,PUT",
        "access-control-allow-headers": "x-a,x-b",
        "access-control-max-age": "60",
    }
    assert preflight(frontend, {"Origin": "https://evil.example"}) == {}
    frontend.set_url(cors=Cors(None, ("*",), ("*",), ("*",)))
    assert preflight(frontend, ORIGIN) == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "*",
        "access-control-allow-headers": "*",
    }
    frontend.set_url(cors=Cors(True, ("*",), ("*",), ("*",)))
    assert preflight(frontend, ORIGIN) == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "PUT",
        "access-control-allow-headers": "x-a",
    }


def test_without_a_configuration_the_function_answers_preflights(frontend: Frontend) -> None:
    frontend.set_url()
    connection = frontend.send("OPTIONS", "/", headers={**ORIGIN, **ASKS})
    frontend.next_call().end(b'{"statusCode":204,"headers":{"Access-Control-Allow-Origin":"mine"}}')
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (204, "mine")


def test_the_configuration_wins_over_the_function(frontend: Frontend) -> None:
    frontend.set_url(cors=CORS)
    own = b'{"statusCode":200,"headers":{"Access-Control-Allow-Origin":"*","access-control-x":"y","x-a":"b"}}'
    connection = frontend.send("GET", "/", headers=ORIGIN)
    frontend.next_call().end(own)
    answer = connection.getresponse()
    assert answer.msg.get_all("Access-Control-Allow-Origin") == ["https://a.example"]
    assert answer.getheader("Access-Control-Expose-Headers") == "x-seen"
    assert answer.getheader("Vary") == "Origin"
    assert (answer.getheader("x-a"), answer.getheader("access-control-x")) == ("b", None)
    connection = frontend.send("GET", "/", headers={"Origin": "https://evil.example"})
    frontend.next_call().end(own)
    assert connection.getresponse().getheader("Access-Control-Allow-Origin") is None
    connection = frontend.send("GET", "/", headers=ORIGIN)
    frontend.next_call().end(b"", is_function_error=True)
    assert connection.getresponse().getheader("Access-Control-Allow-Origin") == "https://a.example"


# --- AWS_IAM ------------------------------------------------------------------------------------------------


def signed_headers(
    frontend: Frontend, key: str, secret: str, body: bytes = b"", service: str = "lambda", region: str = "us-east-1"
) -> dict[str, str]:
    request: Any = AWSRequest("POST", f"http://{HOST}/p?b=2&a=1", data=body)
    botocore.auth.SigV4Auth(Credentials(key, secret), service, region).add_auth(request)
    return dict(request.headers.items())


def test_signatures_are_verified_where_the_secret_is_known(frontend: Frontend) -> None:
    frontend.set_url(auth=UrlAuthType.AWS_IAM, permits=lambda _: False)
    frontend.secrets["AKID"] = "right"
    target = "/p?b=2&a=1"
    event = event_of(frontend, "POST", target, b"x", signed_headers(frontend, "AKID", "right", b"x"))
    context = event["requestContext"]
    assert context["accountId"] == KEY.account
    assert context["authorizer"]["iam"] == {
        "accessKey": "AKID",
        "accountId": KEY.account,
        "callerId": "AKID",
        "cognitoIdentity": None,
        "principalOrgId": None,
        "userArn": f"arn:aws:iam::{KEY.account}:root",
        "userId": "AKID",
    }
    wrong = signed_headers(frontend, "AKID", "wrong", b"x")
    status, body, kind = refusal(frontend, "POST", target, b"x", wrong)
    assert (status, kind) == (403, "InvalidSignatureException")
    assert b"does not match the signature you provided" in body
    assert refusal(frontend, "POST", target, b"y", signed_headers(frontend, "AKID", "right", b"x"))[0] == 403


def test_signatures_by_unknown_keys_must_be_well_formed(frontend: Frontend) -> None:
    frontend.set_url(auth=UrlAuthType.AWS_IAM, permits=lambda caller: caller == "222222222222")
    assert refusal(frontend, "POST", "/") == (403, FORBIDDEN, "AccessDeniedException")
    assert refusal(frontend, "POST", "/", None, {"Authorization": "Bearer x"})[2] == "IncompleteSignatureException"
    event_of(frontend, "POST", "/p?b=2&a=1", b"", signed_headers(frontend, "ANY", "thing"))
    for service, region in (("s3", "us-east-1"), ("lambda", "eu-west-1")):
        headers = signed_headers(frontend, "ANY", "thing", b"", service, region)
        assert refusal(frontend, "POST", "/p?b=2&a=1", b"", headers)[2] == "InvalidSignatureException"
    # Another account needs the resource policy.
    event = event_of(frontend, "POST", "/p?b=2&a=1", b"", signed_headers(frontend, "222222222222", "x"))
    assert event["requestContext"]["accountId"] == "222222222222"
    headers = signed_headers(frontend, "333333333333", "x")
    assert refusal(frontend, "POST", "/p?b=2&a=1", b"", headers) == (403, FORBIDDEN, "AccessDeniedException")


# --- RESPONSE_STREAM ----------------------------------------------------------------------------------------


def test_a_stream_with_a_prelude(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM, cors=Cors(allow_origins=("*",)))
    connection = frontend.send()
    call = frontend.next_call()
    call.start(PRELUDE)
    head = b'{"statusCode":201,"headers":{"Content-Type":"text/plain","X-A":"b"},"cookies":["c=d"]}' + bytes(8)
    for at in range(0, len(head), 7):
        call.chunk(head[at : at + 7])
    answer = connection.getresponse()  # before the first byte of the body
    assert (answer.status, answer.getheader("X-A"), answer.getheader("Set-Cookie")) == (201, "b", "c=d")
    assert answer.getheader("Transfer-Encoding") == "chunked"
    assert answer.getheader("Access-Control-Allow-Origin") == "*"
    for piece in (b"one", b"two"):
        call.chunk(piece)
        assert answer.read1() == piece
    call.end_stream()
    assert answer.read() == b""
    connection.close()


def test_a_stream_without_a_prelude(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    connection = frontend.send()
    call = frontend.next_call()
    call.start("application/octet-stream")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "application/octet-stream")
    call.chunk(b'{"statusCode":500}')
    call.end_stream()
    assert answer.read() == b'{"statusCode":500}'
    # and one that ends before it began
    connection = frontend.send()
    frontend.next_call().end_stream(content_type="")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")


def test_a_runtime_that_does_not_stream(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    answer = answer_to(frontend, b'{"statusCode":500}')
    assert (answer.status, answer.read()) == (200, b'{"statusCode":500}')
    assert answer_to(frontend, b"{}", is_function_error=True).status == 502


def test_a_gathered_stream_in_buffered_mode(frontend: Frontend) -> None:
    frontend.set_url()
    connection = frontend.send()
    call = frontend.next_call()
    assert call.invocation.sink is None
    call.end(b'{"statusCode":202}' + bytes(8) + b"body", content_type=PRELUDE)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (202, b"body")


def test_a_prelude_that_is_none(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    for head in (b"no json" + bytes(8), b" " * 70_000):
        connection = frontend.send()
        call = frontend.next_call()
        call.start(PRELUDE)
        call.chunk(head)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (502, b"Internal Server Error")
        call.chunk(b"ignored")
        call.end_stream()
    connection = frontend.send()
    call = frontend.next_call()
    call.start(PRELUDE)
    call.chunk(b'{"statusCode":200}')
    call.end_stream()
    assert connection.getresponse().status == 502


def test_a_stream_that_breaks_off_stays_incomplete(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    connection = frontend.send()
    call = frontend.next_call()
    call.start()
    call.chunk(b"half")
    answer = connection.getresponse()
    call.end(b"{}", is_function_error=True, streamed=True)
    with pytest.raises(http.client.IncompleteRead):
        answer.read()


def test_head_of_a_stream_has_no_body(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    connection = frontend.send("HEAD")
    call = frontend.next_call()
    call.start()
    call.chunk(b"dropped")
    call.end_stream()
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.request("GET", "/", headers={"Host": HOST})
    frontend.next_call().end(b"2")
    assert connection.getresponse().read() == b"2"


def test_a_slow_reader_of_a_url_pauses_the_source(frontend: Frontend) -> None:
    frontend.set_url(InvokeMode.RESPONSE_STREAM)
    connection = frontend.send()
    call = frontend.next_call()
    producer = Producer(frontend, call, 64 * MIB)
    producer.run()
    assert producer.paused.wait(PATIENCE_S)
    assert len(connection.getresponse().read()) == 64 * MIB
    assert producer.ended.wait(PATIENCE_S)
