"""Streamed answers end to end: a custom runtime that streams through the Runtime API, InvokeWithResponseStream by
boto3, and function URLs in both invoke modes."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from integration.harness import PATIENCE_S, Function, Server

Deploy = Callable[..., Function]
MIB = 1_048_576
PRELUDE = "application/vnd.awslambda.http-integration-response"

#: A runtime of its own in one file. What it does is in the event, or in the query of a function URL.
BOOTSTRAP = r"""#!/usr/bin/env python3
import base64, http.client, json, os, time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
BASE = "/2018-06-01/runtime/invocation/"
PRELUDE = "application/vnd.awslambda.http-integration-response"


def stream(request_id, plan):
    connection = http.client.HTTPConnection(API)
    connection.putrequest("POST", BASE + request_id + "/response")
    connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.putheader("Content-Type", PRELUDE if plan.get("prelude") else "application/octet-stream")
    if plan.get("fail"):
        connection.putheader("Trailer", "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body")
    connection.endheaders()

    def send(data):
        connection.send(b"%x\r\n" % len(data) + data + b"\r\n")

    if plan.get("prelude"):
        send(json.dumps(plan["prelude"]).encode()[:5])
        send(json.dumps(plan["prelude"]).encode()[5:] + bytes(8))
    for piece in plan.get("pieces", []):
        send(piece.encode())
        time.sleep(plan.get("pause", 0))
    for _ in range(plan.get("mib", 0)):
        send(b"m" * 1048576)
    if plan.get("fail"):
        body = base64.b64encode(json.dumps({"errorType": "Streamed", "errorMessage": "broke"}).encode()).decode()
        connection.send(
            b"0\r\nLambda-Runtime-Function-Error-Type: Streamed\r\n"
            + ("Lambda-Runtime-Function-Error-Body: " + body + "\r\n\r\n").encode()
        )
    else:
        connection.send(b"0\r\n\r\n")
    connection.getresponse().read()
    connection.close()


def buffered(request_id, plan, what="/response"):
    connection = http.client.HTTPConnection(API)
    connection.request("POST", BASE + request_id + what, json.dumps(plan))
    connection.getresponse().read()
    connection.close()


while True:
    connection = http.client.HTTPConnection(API)
    connection.request("GET", BASE + "next")
    answer = connection.getresponse()
    request_id = answer.getheader("Lambda-Runtime-Aws-Request-Id")
    event = json.loads(answer.read())
    connection.close()
    plan = json.loads(base64.b64decode(event["headers"]["x-plan"])) if "headers" in event else event
    print("ran", request_id, flush=True)
    if plan.get("buffered"):
        buffered(request_id, plan)
    elif plan.get("error"):
        buffered(request_id, {"errorType": "E", "errorMessage": "m"}, "/error")
    else:
        stream(request_id, plan)
"""


@pytest.fixture
def streamer(deploy: Deploy) -> Function:
    return deploy(
        {"bootstrap": BOOTSTRAP}, "stream", Runtime="provided.al2023", Handler="unused", Timeout=20, MemorySize=512
    )


def stream(function: Function, plan: dict[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    answer = function.server.lambda_.invoke_with_response_stream(
        FunctionName=function.name, Payload=json.dumps(plan).encode(), **arguments
    )
    return list(answer["EventStream"])


def body_of(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event["PayloadChunk"]["Payload"] for event in events if "PayloadChunk" in event)


def open_url(function: Function, mode: str) -> str:
    client = function.server.lambda_
    made = client.create_function_url_config(FunctionName=function.name, AuthType="NONE", InvokeMode=mode)
    common = {"FunctionName": function.name, "Principal": "*"}
    client.add_permission(**common, StatementId="a", Action="lambda:InvokeFunctionUrl", FunctionUrlAuthType="NONE")
    client.add_permission(**common, StatementId="b", Action="lambda:InvokeFunction", InvokedViaFunctionUrl=True)
    host: str = urlsplit(made["FunctionUrl"]).netloc
    return host


def get(server: Server, host: str, plan: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request(
        "GET", "/", headers={"Host": host, "X-Plan": base64.b64encode(json.dumps(plan).encode()).decode()}
    )
    return connection.getresponse()


def test_chunks_come_while_the_function_runs(streamer: Function) -> None:
    stream(streamer, {"pieces": ["warm"]})
    answer = streamer.server.lambda_.invoke_with_response_stream(
        FunctionName=streamer.name,
        Payload=json.dumps({"pieces": ["a", "b", "c"], "pause": 0.5}).encode(),
        LogType="Tail",
    )
    events = iter(answer["EventStream"])
    assert next(events) == {"PayloadChunk": {"Payload": b"a"}}
    first_seen = time.monotonic()
    *rest, last = list(events)
    assert body_of(rest) == b"bc"
    assert time.monotonic() - first_seen > 0.5, "of the 1.5 s for which the function still ran"
    log = base64.b64decode(last["InvokeComplete"]["LogResult"]).decode()
    assert log.startswith("START RequestId: ")
    assert "REPORT RequestId: " in log


def test_plain_invoke_gathers_a_stream(streamer: Function) -> None:
    assert streamer.invoke({"pieces": ['{"a":', "1}"]}).value == {"a": 1}


def test_a_buffered_answer_and_errors(streamer: Function) -> None:
    plan = {"buffered": True}
    assert json.loads(body_of(stream(streamer, plan))) == plan
    (complete,) = stream(streamer, {"error": True})
    assert complete["InvokeComplete"]["ErrorCode"] == "Unhandled"
    assert json.loads(complete["InvokeComplete"]["ErrorDetails"])["errorType"] == "E"
    chunk, complete = stream(streamer, {"pieces": ["half"], "fail": True})
    assert chunk == {"PayloadChunk": {"Payload": b"half"}}
    assert json.loads(complete["InvokeComplete"]["ErrorDetails"])["errorType"] == "Streamed"
    # and the runtime is well
    assert body_of(stream(streamer, {"pieces": ["x"]})) == b"x"


def test_more_than_a_buffered_answer_may_have(streamer: Function) -> None:
    events = stream(streamer, {"mib": 20})
    assert body_of(events) == b"m" * 20 * MIB
    assert "ErrorCode" not in events[-1]["InvokeComplete"]
    assert streamer.invoke({"mib": 20}).error == "Unhandled"


def test_a_url_that_streams(streamer: Function) -> None:
    server = streamer.server
    host = open_url(streamer, "RESPONSE_STREAM")
    get(server, host, {"pieces": ["warm"]}).read()
    plan = {
        "prelude": {"statusCode": 202, "headers": {"Content-Type": "text/event-stream"}, "cookies": ["a=b"]},
        "pieces": ["data: 1\n\n", "data: 2\n\n"],
        "pause": 0.5,
    }
    answer = get(server, host, plan)
    assert (answer.status, answer.getheader("Content-Type")) == (202, "text/event-stream")
    assert answer.getheader("Set-Cookie") == "a=b"
    assert answer.read1() == b"data: 1\n\n"
    first_seen = time.monotonic()
    assert answer.read() == b"data: 2\n\n"
    assert time.monotonic() - first_seen > 0.3, "of the 1 s for which the function still ran"
    bare = get(server, host, {"pieces": ["x"]})
    assert (bare.status, bare.getheader("Content-Type"), bare.read()) == (200, "application/octet-stream", b"x")
    with pytest.raises(http.client.IncompleteRead):
        get(server, host, {"pieces": ["half"], "fail": True}).read()


def test_a_url_that_buffers_a_stream(streamer: Function) -> None:
    server = streamer.server
    host = open_url(streamer, "BUFFERED")
    answer = get(server, host, {"prelude": {"statusCode": 203, "headers": {"x-a": "b"}}, "pieces": ["one", "two"]})
    assert (answer.status, answer.getheader("x-a"), answer.read()) == (203, "b", b"onetwo")
    assert answer.getheader("Content-Length") == "6"
    inferred = get(server, host, {"pieces": ['{"statusCode":204}']})
    assert inferred.status == 204
    assert get(server, host, {"error": True}).status == 502


def test_a_client_that_leaves_does_not_stop_the_function(streamer: Function) -> None:
    answer = streamer.server.lambda_.invoke_with_response_stream(
        FunctionName=streamer.name, Payload=json.dumps({"pieces": ["a"], "pause": 0.1, "mib": 16}).encode()
    )
    request_id = answer["ResponseMetadata"]["RequestId"]
    next(iter(answer["EventStream"]))
    answer["EventStream"].close()
    streamer.wait_log(f"REPORT RequestId: {request_id}")
    assert body_of(stream(streamer, {"pieces": ["well"]})) == b"well"
    assert len(streamer.server.environments(streamer)) == 1
