"""Requests that are wrong, wicked or slow: AWS's error, never a 5xx, never a hang, and nothing half-created."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .harness import ROLE, RUNTIME, Function, Server, make_zip, wait_until

Deploy = Callable[..., Function]
JsonValue = Any
GOOD_ZIP = base64.b64encode(make_zip({"m.py": "def handler(event, context):\n    return event\n"})).decode()


@pytest.fixture(scope="module")
def echo(server: Server) -> Function:
    return server.deploy("def handler(event, context):\n    return event\n", "echo")


@pytest.fixture(autouse=True)
def _still_answering(server: Server, echo: Function) -> Iterator[None]:
    yield
    assert echo.call({"still": "here"}) == {"still": "here"}
    wait_until(lambda: server.page("health")["in_flight"] == 0, "nothing runs any more")


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: Server, method: str, target: str, body: bytes | str = b"", headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        with connection.getresponse() as response:
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())


def invoke(function: Function, body: bytes, **headers: str) -> Answer:
    target = f"/2015-03-31/functions/{function.name}/invocations"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(function.server, "POST", target, body, named)


def test_unknown_function(server: Server) -> None:
    answer = ask(server, "POST", "/2015-03-31/functions/nobody/invocations", b"{}")
    assert answer.status == 404
    assert answer.headers["x-amzn-errortype"] == "ResourceNotFoundException"
    assert answer.json == {
        "Type": "User",
        "Message": "Function not found: arn:aws:lambda:us-east-1:000000000000:function:nobody:$LATEST",
    }


def test_unknown_qualifier(echo: Function) -> None:
    with pytest.raises(ClientError) as caught:
        echo.invoke(Qualifier="nowhere")
    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    assert caught.value.response["Error"]["Message"].endswith(f"function:{echo.name}:nowhere")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"hello",
        b"{'a': 1}",
        b"\x87",
        b'"\xff\xfe"',
        b"[1,]",
        b"nan",
        b"{} {}",
        b'"\x00"',
        b"[" * 100_000,
        b"\x1f\x8b\x08\x00",
    ],
)
@pytest.mark.parametrize("kind", ["RequestResponse", "Event"])
def test_payload_that_is_not_json(echo: Function, body: bytes, kind: str) -> None:
    answer = invoke(echo, body, X_Amz_Invocation_Type=kind)
    assert answer.status == 400
    assert answer.headers["x-amzn-errortype"] == "InvalidRequestContentException"
    assert answer.json["Type"] == "User"
    assert answer.json["message"].startswith(
        "Could not parse request body into json: Could not parse payload into json: "
    )


@pytest.mark.parametrize(
    "body", [b'"\xf0\x9f\x98\x80"', b" \n{}\n ", b"1e400", b"-0", b'"\\ud83d\\ude00"', b"[" * 200 + b"]" * 200]
)
def test_odd_but_good_payloads(echo: Function, body: bytes) -> None:
    answer = invoke(echo, body)
    assert answer.status == 200
    assert "x-amz-function-error" not in answer.headers


def test_payload_sizes(echo: Function) -> None:
    most = 6_291_456
    body = b'"' + b"x" * (most - 2) + b'"'
    answer = invoke(echo, body)
    assert (answer.status, answer.body == body) == (200, True)
    answer = invoke(echo, body + b" ")
    assert answer.status == 413
    assert answer.headers["x-amzn-errortype"] == "RequestEntityTooLargeException"
    assert answer.json == {
        "Message": f"{most + 1} byte payload is too large for the RequestResponse invocation type (limit {most} bytes)"
    }
    answer = invoke(echo, b"x" * 30_000_000)
    assert answer.json["Message"].startswith("30000000 byte payload is too large")
    answer = invoke(echo, b'"' + b"x" * 1_048_575 + b'"', X_Amz_Invocation_Type="Event")
    assert answer.status == 413
    assert answer.json["Message"] == (
        "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)"
    )


@pytest.mark.parametrize("kind", ["requestresponse", "Sync", "", "Event,DryRun", "\xe9"])
def test_wrong_invocation_type(echo: Function, kind: str) -> None:
    answer = invoke(echo, b"{}", X_Amz_Invocation_Type=kind)
    assert answer.status == 400
    assert answer.headers["x-amzn-errortype"] == "ValidationException"
    assert "Member must satisfy enum value set: [Event, RequestResponse, DryRun]" in answer.json["message"]


def test_client_context_that_is_none(echo: Function) -> None:
    for value in ("not base64!", base64.b64encode(b"{").decode(), base64.b64encode(b"\xff").decode()):
        answer = invoke(echo, b"{}", X_Amz_Client_Context=value)
        assert (answer.status, answer.headers["x-amzn-errortype"]) == (400, "InvalidRequestContentException")
    answer = invoke(echo, b"{}", X_Amz_Client_Context=base64.b64encode(b'"' + b"x" * 3_000 + b'"').decode())
    assert answer.status == 400


@pytest.mark.parametrize(
    "name", ["a%20b", "%2e%2e%2fetc", "x" * 65, "x" * 200, "%00", "%ff", "a:b:c:d", "arn:aws:s3:::x", "%F0%9F%98%80"]
)
def test_wrong_names(server: Server, name: str) -> None:
    for method, target in (
        ("POST", f"/2015-03-31/functions/{name}/invocations"),
        ("GET", f"/2015-03-31/functions/{name}"),
        ("DELETE", f"/2015-03-31/functions/{name}"),
        ("GET", f"/2015-03-31/functions/{name}/configuration"),
    ):
        answer = ask(server, method, target)
        assert 400 <= answer.status < 500, (method, target, answer.body)
        assert answer.headers["x-amzn-errortype"].endswith("Exception")


def test_odd_trace_headers(echo: Function) -> None:
    for trace in ("", "Root=x", "\xff" * 20_000, "x" * 60_000):
        answer = invoke(echo, b"{}", X_Amzn_Trace_Id=trace)
        assert answer.status in (200, 400)
        assert "x-amz-function-error" not in answer.headers, answer.body


def create(server: Server, name: str, **changes: JsonValue) -> Answer:
    body: dict[str, JsonValue] = {
        "FunctionName": name,
        "Runtime": RUNTIME,
        "Role": ROLE,
        "Handler": "m.handler",
        "Code": {"ZipFile": GOOD_ZIP},
    }
    for key, value in changes.items():
        if value is None:
            del body[key]
        else:
            body[key] = value
    return ask(server, "POST", "/2015-03-31/functions", json.dumps(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"Runtime": "python2.7"},
        {"Runtime": 3},
        {"Runtime": None},
        {"Handler": None},
        {"Handler": "has a blank"},
        {"Handler": "h" * 129},
        {"Role": "somebody"},
        {"Role": None},
        {"MemorySize": 64},
        {"MemorySize": 20_000},
        {"MemorySize": "128"},
        {"MemorySize": 1.5},
        {"Timeout": 0},
        {"Timeout": 901},
        {"EphemeralStorage": {"Size": 100}},
        {"EphemeralStorage": {}},
        {"Environment": {"Variables": {"AWS_REGION": "x"}}},
        {"Environment": {"Variables": {"1X": "y"}}},
        {"Environment": {"Variables": {"BIG": "x" * 5_000}}},
        {"Environment": {"Variables": ["a"]}},
        {"Environment": []},
        {"Code": None},
        {"Code": {}},
        {"Code": {"ZipFile": ""}},
        {"Code": {"ZipFile": "not base64"}},
        {"Code": {"ZipFile": base64.b64encode(b"not a zip").decode()}},
        {"Code": {"ZipFile": GOOD_ZIP[: len(GOOD_ZIP) // 2 // 4 * 4]}},
        {"Code": {"ZipFile": 7}},
        {"Code": {"S3Bucket": "b", "S3Key": "k"}},
        {"PackageType": "Image"},
        {"PackageType": "Wheel"},
        {"Architectures": ["z80"]},
        {"Tags": {"k": "v" * 300}},
        {"LoggingConfig": {"LogFormat": "YAML"}},
        {"LoggingConfig": {"LogGroup": "has a blank"}},
        {"Layers": ["not an arn"]},
        {"FunctionName": "has a blank"},
        {"FunctionName": ""},
        {"FunctionName": 5},
        {"FunctionName": None},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_malformed_creation(server: Server, changes: dict[str, JsonValue]) -> None:
    name = "malformed"
    answer = create(server, name, **changes)
    assert 400 <= answer.status < 500, answer.body
    assert answer.headers["x-amzn-errortype"]
    assert answer.json.get("message") or answer.json.get("Message")
    assert ask(server, "GET", f"/2015-03-31/functions/{name}").status == 404  # nothing half-created


def wicked_zip(name: str, mode: int, data: bytes) -> str:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, data)
        archive.writestr("m.py", "def handler(event, context): return 1")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("name", "mode", "data"),
    [
        ("../../escape.py", 0o100644, b"x"),
        ("/tmp/absolute.py", 0o100644, b"x"),
        ("link", 0o120777, b"/etc/passwd"),
        ("link", 0o120777, b"../../../etc"),
        ("device", 0o020644, b""),
    ],
)
def test_zips_that_reach_out(server: Server, name: str, mode: int, data: bytes) -> None:
    answer = create(server, "reaching", Code={"ZipFile": wicked_zip(name, mode, data)})
    assert answer.status in (201, 400), answer.body
    if answer.status == 201:  # AWS leaves such entries out or takes them as they are; they must lead nowhere
        function = Function(server, "reaching")
        function.wait_active()
        assert function.invoke().error in (None, "Unhandled")
        server.lambda_.delete_function(FunctionName="reaching")
    assert not (server.data / "escape.py").exists()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}" * 2, b"[" * 50_000, b'{"FunctionName": {}}']
)
def test_bodies_that_are_no_request(server: Server, body: bytes) -> None:
    for method, target in (
        ("POST", "/2015-03-31/functions"),
        ("PUT", "/2015-03-31/functions/f/code"),
        ("PUT", "/2015-03-31/functions/f/configuration"),
        ("PUT", "/2017-10-31/functions/f/concurrency"),
        ("POST", "/2015-03-31/functions/f/versions"),
        ("POST", "/2015-03-31/functions/f/aliases"),
    ):
        answer = ask(server, method, target, body)
        assert 400 <= answer.status < 500, (method, target, answer.body)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/2015-03-31"),
        ("GET", "/2015-03-31/nothing"),
        ("PATCH", "/2015-03-31/functions"),
        ("GET", "/2015-03-31/functions/x/invocations"),
        ("POST", "/2015-03-31/functions//invocations"),
        ("POST", "/2015-03-31/functions/invocations"),
        ("POST", "//2015-03-31/functions/x/invocations"),
        ("GET", "/2015-03-31/functions/?MaxItems=x"),
        ("GET", "/2015-03-31/functions/?MaxItems=0"),
        ("GET", "/2015-03-31/functions/?Marker=!!!"),
        ("GET", "/2015-03-31/functions/?MaxItems=99999999999999999999"),
        ("OPTIONS", "*"),
        ("DELETE", "/%"),
        ("GET", "/_lambent/nothing"),
        ("GET", "/_lambent/code/../../etc/passwd"),
    ],
)
def test_paths_that_lead_nowhere(server: Server, method: str, target: str) -> None:
    answer = ask(server, method, target)
    assert answer.status < 500 or answer.status == 501, answer.body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]),
    path=st.lists(
        st.sampled_from(["2015-03-31", "functions", "2017-10-31", "aliases", "versions", "f", "$LATEST", "code",
                         "configuration", "invocations", "concurrency", "", "%00", "..", "2014-11-13", "invoke-async",
                         "tags", "account-settings", "2016-08-19", "2020-06-30"]),
        max_size=6,
    ),
    query=st.sampled_from(["", "?Qualifier=", "?Qualifier=%ff", "?MaxItems=-1", "?Marker=%00", "?=&&=",
                           "?MaxItems=1&MaxItems=2"]),
    body=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["FunctionName", "Code", "ZipFile", "Name", "FunctionVersion", "RoutingConfig",
                                 "ReservedConcurrentExecutions", "MemorySize", "Environment", "Variables"]),
                inner, max_size=4,
            ),
            max_leaves=10,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    target=st.sampled_from(
        [None, "Logs_20140328.FilterLogEvents", "Logs_20140328.GetLogEvents", "Logs_20140328.X", "X.Y"]
    ),
)  # fmt: skip
def test_random_requests(
    server: Server, method: str, path: list[str], query: str, body: bytes, target: str | None
) -> None:
    headers = {} if target is None else {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}
    answer = ask(server, method, "/" + "/".join(path) + query, body, headers)
    assert answer.status < 500 or answer.status == 501, answer.body


def test_body_cut_off(server: Server, echo: Function) -> None:
    target = f"/2015-03-31/functions/{echo.name}/invocations"
    for length, sent in ((100, b'{"a"'), (5, b"")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + sent)
            client.shutdown(socket.SHUT_WR)
            assert b" 200 " not in client.recv(65_536)


def test_a_slow_client_is_served_and_holds_up_nobody(server: Server, echo: Function) -> None:
    request = (
        f"POST /2015-03-31/functions/{echo.name}/invocations HTTP/1.1\r\nHost: x\r\n"
        'Connection: close\r\nContent-Length: 11\r\n\r\n{"slow": 1}'
    ).encode()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(20)]
    began = time.monotonic()
    for byte in request:
        for client in clients:
            client.sendall(bytes([byte]))
        if byte == ord("\n"):
            assert echo.call(1) == 1
    for client in clients:
        with client, client.makefile("rb") as stream:
            assert stream.read().endswith(b'{"slow": 1}')
    assert time.monotonic() - began < 15


def test_a_client_that_does_not_read(server: Server, deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    return 'x' * 6_000_000\n")
    request = f"POST /2015-03-31/functions/{function.name}/invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request.encode() * 3)
        assert function.call() == "x" * 6_000_000


def test_a_client_that_leaves_while_its_function_runs(server: Server, deploy: Deploy) -> None:
    function = deploy("import time\ndef handler(event, context):\n    time.sleep(0.3)\n    print('ran to its end')\n")
    request = f"POST /2015-03-31/functions/{function.name}/invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request.encode())
    function.wait_log("ran to its end")
    function.wait_log("REPORT")


def test_code_that_unpacks_to_too_much(server: Server) -> None:
    zipped = base64.b64encode(make_zip({"zeros": bytes(262_144_001)})).decode()
    answer = create(server, "bomb", Code={"ZipFile": zipped})
    assert answer.status == 400
    assert "Unzipped size must be smaller than 262144000 bytes" in answer.json["message"]
    assert ask(server, "GET", "/2015-03-31/functions/bomb").status == 404
