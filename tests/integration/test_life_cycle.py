"""Create, call, change and delete a function with boto3; versions, aliases and the three kinds of invocation."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError

from .harness import ROLE, RUNTIME, Function, Server, make_zip, wait_until

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
Deploy = Callable[..., Function]

ECHO = """
count = 0

def handler(event, context):
    global count
    count += 1
    print("called", count)
    return {"event": event, "count": count}
"""


def code(value: str) -> str:
    return f"def handler(event, context):\n    return {value!r}\n"


def test_create_call_change_delete(server: Server) -> None:
    lambda_, name = server.lambda_, "life-cycle"
    zipped = make_zip({"m.py": code("one")})
    created = lambda_.create_function(
        FunctionName=name, Runtime=RUNTIME, Role=ROLE, Handler="m.handler", Code={"ZipFile": zipped}
    )
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert created["FunctionArn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    assert created["CodeSha256"] == base64.b64encode(hashlib.sha256(zipped).digest()).decode()
    assert (created["MemorySize"], created["Timeout"], created["Version"]) == (128, 3, "$LATEST")
    function = Function(server, name)
    assert function.wait_active()["State"] == "Active"
    assert function.call() == "one"

    with pytest.raises(lambda_.exceptions.ResourceConflictException, match="Function already exist: life-cycle"):
        lambda_.create_function(
            FunctionName=name, Runtime=RUNTIME, Role=ROLE, Handler="m.handler", Code={"ZipFile": zipped}
        )

    before = lambda_.get_function_configuration(FunctionName=name)
    function.update(code("two"))
    after = lambda_.get_function_configuration(FunctionName=name)
    assert after["RevisionId"] != before["RevisionId"]
    assert after["CodeSha256"] != before["CodeSha256"]
    assert function.call() == "two"

    function.configure(Timeout=7, MemorySize=256, Environment={"Variables": {"COLOUR": "blue"}})
    found = lambda_.get_function(FunctionName=name)
    assert found["Configuration"]["Timeout"] == 7
    assert found["Code"]["RepositoryType"] == "S3"
    assert found["Configuration"]["Environment"] == {"Variables": {"COLOUR": "blue"}}
    assert function.invoke().report["Memory Size"] == "256 MB"
    assert name in {entry["FunctionName"] for entry in _all_functions(server)}

    assert lambda_.delete_function(FunctionName=name)["ResponseMetadata"]["HTTPStatusCode"] == 204
    with pytest.raises(lambda_.exceptions.ResourceNotFoundException):
        function.invoke()
    wait_until(lambda: server.environments(function) == [], "its environments are gone")


def _all_functions(server: Server) -> list[dict[str, str]]:
    pages = server.lambda_.get_paginator("list_functions").paginate()
    return [function for page in pages for function in page["Functions"]]


def test_headers_and_body_of_a_synchronous_call(server: Server, deploy: Deploy) -> None:
    function = deploy(ECHO)
    reply = function.invoke({"a": [1, None]})
    assert (reply.status, reply.error, reply.version) == (200, None, "$LATEST")
    assert reply.raw == json.dumps({"event": {"a": [1, None]}, "count": 1}).encode()
    headers = reply.headers
    assert set(headers) == {
        "date", "content-type", "content-length", "connection", "x-amzn-requestid", "x-amzn-remapped-content-length",
        "x-amz-executed-version", "x-amz-log-result", "x-amzn-trace-id",
    }  # fmt: skip
    assert headers["content-type"] == "application/json"
    assert headers["x-amzn-remapped-content-length"] == "0"
    assert headers["connection"] == "keep-alive"
    assert re.fullmatch(UUID, headers["x-amzn-requestid"])
    trace = r"root=1-[0-9a-f]{8}-[0-9a-f]{24};parent=[0-9a-f]{16};sampled=[01]"
    assert re.fullmatch(trace, headers["x-amzn-trace-id"])
    assert "x-amz-log-result" not in function.invoke(LogType="None").headers


def test_no_payload_is_an_empty_object_and_none_is_null(deploy: Deploy, server: Server) -> None:
    function = deploy(ECHO)
    answer = server.lambda_.invoke(FunctionName=function.name)
    assert json.loads(answer["Payload"].read())["event"] == {}
    nothing = deploy("def handler(event, context):\n    pass\n")
    assert nothing.invoke().raw == b"null"


def test_log_tail_of_a_cold_and_a_warm_call(deploy: Deploy) -> None:
    function = deploy(ECHO)
    cold, warm = function.invoke(), function.invoke()
    for reply, count in ((cold, 1), (warm, 2)):
        start, called, end, report = reply.log.splitlines()
        assert start == f"START RequestId: {reply.request_id} Version: $LATEST"
        assert called == f"called {count}"
        assert end == f"END RequestId: {reply.request_id}"
        assert report.startswith(f"REPORT RequestId: {reply.request_id}\tDuration: ")
    number = r"\d+\.\d\d ms"
    common = (
        rf"REPORT RequestId: {UUID}\tDuration: {number}\tBilled Duration: \d+ ms\tMemory Size: 128 MB\t"
        rf"Max Memory Used: \d+ MB\t"
    )
    assert re.fullmatch(rf"{common}Init Duration: {number}\t", cold.log.splitlines()[-1])
    assert re.fullmatch(common, warm.log.splitlines()[-1])
    duration, init = (float(cold.report[key].split()[0]) for key in ("Duration", "Init Duration"))
    assert abs(int(cold.report["Billed Duration"].split()[0]) - (duration + init)) <= 1.01


def test_log_tail_is_the_last_4_kib(deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    for n in range(500):\n        print('line', n, 'x' * 20)\n")
    reply = function.invoke()
    assert len(reply.log.encode()) == 4_096
    assert reply.log.splitlines()[-1].startswith("REPORT RequestId: ")
    assert f"line 499 {'x' * 20}" in reply.log.splitlines()


def test_event_is_accepted_and_runs(deploy: Deploy) -> None:
    function = deploy("import json\ndef handler(event, context):\n    print('got ' + json.dumps(event))\n")
    reply = function.invoke({"k": 1}, InvocationType="Event")
    assert (reply.status, reply.raw, reply.version) == (202, b"", None)
    messages = function.log_of(reply)
    assert 'got {"k": 1}\n' in messages


def test_dry_run_runs_nothing(server: Server, deploy: Deploy) -> None:
    function = deploy(ECHO)
    reply = function.invoke(InvocationType="DryRun")
    assert (reply.status, reply.raw) == (204, b"")
    assert server.environments(function) == []
    with pytest.raises(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.invoke(FunctionName="nobody", InvocationType="DryRun")


def test_invoke_async_of_2014(deploy: Deploy, server: Server) -> None:
    function = deploy("def handler(event, context):\n    print('event', event)\n")
    answer = server.lambda_.invoke_async(FunctionName=function.name, InvokeArgs=b'{"old": true}')
    assert answer["Status"] == 202
    function.wait_log("event {'old': True}")


def test_versions_keep_their_code(server: Server, deploy: Deploy) -> None:
    function = deploy(code("first"))
    lambda_, name = server.lambda_, function.name
    one = lambda_.publish_version(FunctionName=name)
    assert one["Version"] == "1"
    assert lambda_.publish_version(FunctionName=name)["Version"] == "1"  # nothing changed
    function.update(code("second"))
    assert lambda_.publish_version(FunctionName=name)["Version"] == "2"
    function.update(code("third"))
    for qualifier, value in (("1", "first"), ("2", "second"), ("$LATEST", "third")):
        reply = function.invoke(Qualifier=qualifier)
        assert (reply.value, reply.version) == (value, qualifier)
        assert f"Version: {qualifier}\n" in reply.log
    versions = lambda_.list_versions_by_function(FunctionName=name)["Versions"]
    assert [version["Version"] for version in versions] == ["$LATEST", "1", "2"]
    with pytest.raises(lambda_.exceptions.ResourceNotFoundException) as caught:
        function.invoke(Qualifier="3")
    assert caught.value.response["Error"]["Message"] == (
        f"Function not found: arn:aws:lambda:us-east-1:000000000000:function:{name}:3"
    )


def test_alias_weights_route(server: Server, deploy: Deploy) -> None:
    function = deploy(code("old"))
    lambda_, name = server.lambda_, function.name
    lambda_.publish_version(FunctionName=name)
    function.update(code("new"))
    lambda_.publish_version(FunctionName=name)
    lambda_.create_alias(
        FunctionName=name, Name="live", FunctionVersion="1", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}}
    )
    replies = [function.invoke(Qualifier="live") for _ in range(60)]
    seen = Counter((reply.value, reply.version) for reply in replies)
    assert set(seen) == {("old", "1"), ("new", "2")}
    assert min(seen.values()) >= 10  # by chance less once in ten million
    lambda_.update_alias(FunctionName=name, Name="live", FunctionVersion="2", RoutingConfig={})
    assert {function.invoke(Qualifier="live").version for _ in range(10)} == {"2"}
    lambda_.delete_alias(FunctionName=name, Name="live")
    with pytest.raises(lambda_.exceptions.ResourceNotFoundException, match=r":live$"):
        function.invoke(Qualifier="live")


def test_forms_of_the_name(server: Server, deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    return context.invoked_function_arn\n")
    server.lambda_.publish_version(FunctionName=function.name)
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    for form, invoked in (
        (function.name, arn),
        (arn, arn),
        (f"000000000000:function:{function.name}", arn),
        (f"{function.name}:1", f"{arn}:1"),
        (f"{arn}:$LATEST", f"{arn}:$LATEST"),
    ):
        assert Function(server, form).call() == invoked
    with pytest.raises(ClientError, match="does not match the specified qualifier"):
        Function(server, f"{function.name}:1").invoke(Qualifier="$LATEST")


def test_a_running_call_finishes_on_the_old_code(deploy: Deploy) -> None:
    source = "import time\ndef handler(event, context):\n    print('began')\n    time.sleep(event)\n    return {0!r}\n"
    function = deploy(source.format("old"))
    results: list[str] = []
    long = threading.Thread(target=lambda: results.append(function.call(1.5)))
    long.start()
    function.wait_log("began")
    function.update(source.format("new"))
    assert function.call(0) == "new"
    assert results == []
    long.join()
    assert results == ["old"]
    assert function.call(0) == "new"
    wait_until(lambda: len(function.server.environments(function)) == 1, "the old environment has ended")
