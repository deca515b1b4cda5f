"""Tenant isolation: environments that are never shared, in real sandboxes; what clients are told; logs and limits."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .harness import Function, Server, serving, wait_until

Deploy = Callable[..., Function]
PER_TENANT = {"TenancyConfig": {"TenantIsolationMode": "PER_TENANT"}}
MISSING = (
    "The invoked function is enabled with tenancy configuration. Add a valid tenant ID in your request and try again."
)
NEEDLESS = (
    "The invoked function is not enabled with tenancy configuration. Remove the tenant ID from your request and try "
    "again."
)
PATTERN = r"[a-zA-Z0-9\._:\/=+\-@ ]+"

#: Keeps whom it has served, in memory and in /tmp, and can wait until as many as it is told are there.
SOURCE = """
    import os, time, uuid
    here, served = uuid.uuid4().hex, []

    def handler(event, context):
        served.append(context.tenant_id)
        with open("/tmp/served", "a") as file:
            print(context.tenant_id, file=file)
        time.sleep((event or {}).get("sleep", 0))
        if (event or {}).get("exit"):
            os._exit(1)
        return {"here": here, "served": served, "written": open("/tmp/served").read().splitlines()}
"""


@pytest.fixture
def isolated(deploy: Deploy) -> Function:
    return deploy(SOURCE, "isolated", **PER_TENANT)


def refusal(call: Callable[..., Any], *values: Any, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(*values, **arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def test_environments_are_used_again_by_their_tenant_and_by_nobody_else(server: Server, isolated: Function) -> None:
    first = {name: isolated.call(TenantId=name) for name in ("blue", "green")}
    assert first["blue"]["here"] != first["green"]["here"]
    for name in ("green", "blue", "blue"):
        found = isolated.call(TenantId=name)
        assert found["here"] == first[name]["here"]
        assert set(found["served"]) == set(found["written"]) == {name}
    assert isolated.call(TenantId="a.b_c:d/e=f+g-h@i j")["served"] == ["a.b_c:d/e=f+g-h@i j"]
    rows = {row["tenant"]: row["invocations"] for row in server.environments(isolated)}
    assert rows == {"blue": 3, "green": 2, "a.b_c:d/e=f+g-h@i j": 1}


def test_two_hundred_requests_of_ten_tenants_at_once(isolated: Function) -> None:
    names = [f"tenant-{number % 10}" for number in range(200)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: (name, isolated.call({"sleep": 0.005}, TenantId=name)), names))
    owners: dict[str, str] = {}
    for name, answer in answers:
        assert set(answer["served"]) == set(answer["written"]) == {name}
        assert owners.setdefault(answer["here"], name) == name
    assert set(owners.values()) == set(names)
    assert len(owners) < 100, "environments are used again"


def test_after_a_crash_the_environment_stays_its_tenants(isolated: Function) -> None:
    assert isolated.invoke({"exit": True}, TenantId="blue").error is not None
    assert isolated.call(TenantId="green")["written"] == ["green"]
    after = isolated.call(TenantId="blue")
    assert after["served"] == ["blue"]
    assert set(after["written"]) == {"blue"}


def test_versions_and_aliases(server: Server, isolated: Function) -> None:
    client = server.lambda_
    version = client.publish_version(FunctionName=isolated.name)["Version"]
    client.create_alias(FunctionName=isolated.name, Name="live", FunctionVersion=version)
    found = {
        (qualifier, name): isolated.call(Qualifier=qualifier, TenantId=name)["here"]
        for qualifier in ("$LATEST", "live")
        for name in ("blue", "green")
    }
    assert len(set(found.values())) == 4, "an environment is of one version and one tenant"
    assert isolated.call(Qualifier=version, TenantId="blue")["here"] == found["live", "blue"]
    isolated.update(SOURCE + "\n    two = 2\n")
    assert isolated.call(TenantId="blue")["served"] == ["blue"]
    assert isolated.call(Qualifier="live", TenantId="green")["here"] == found["live", "green"]
    for qualifier in ("$LATEST", version, "live"):
        arguments = {"FunctionName": isolated.name, "Qualifier": qualifier}
        assert refusal(client.invoke, **arguments) == ("InvalidParameterValueException", MISSING)


@pytest.mark.parametrize("kind", ["RequestResponse", "Event", "DryRun"])
def test_a_missing_tenant(server: Server, isolated: Function, deploy: Deploy, kind: str) -> None:
    invoke = server.lambda_.invoke
    assert refusal(invoke, FunctionName=isolated.name, InvocationType=kind) == (
        "InvalidParameterValueException",
        MISSING,
    )
    plain = deploy("def handler(event, context):\n    return context.tenant_id\n")
    assert refusal(invoke, FunctionName=plain.name, InvocationType=kind, TenantId="blue") == (
        "InvalidParameterValueException",
        NEEDLESS,
    )
    assert plain.call() is None
    assert server.environments(isolated) == []


def test_streams_and_the_older_operation(server: Server, isolated: Function) -> None:
    client = server.lambda_
    stream = client.invoke_with_response_stream
    assert refusal(stream, FunctionName=isolated.name) == ("InvalidParameterValueException", MISSING)
    events = stream(FunctionName=isolated.name, TenantId="blue")["EventStream"]
    payload = b"".join(event["PayloadChunk"]["Payload"] for event in events if "PayloadChunk" in event)
    assert json.loads(payload)["served"] == ["blue"]
    assert refusal(client.invoke_async, FunctionName=isolated.name, InvokeArgs=b"{}") == (
        "InvalidParameterValueException",
        MISSING,
    )


@pytest.mark.parametrize(
    ("given", "constraints"),
    [
        ("a" * 257, ["have length less than or equal to 256"]),
        ("blue,green", [f"satisfy regular expression pattern: {PATTERN}"]),
        ("a" * 257 + "#", ["have length less than or equal to 256", f"satisfy regular expression pattern: {PATTERN}"]),
        ("", ["have length greater than or equal to 1", f"satisfy regular expression pattern: {PATTERN}"]),
    ],
)
def test_what_is_no_tenant(server: Server, isolated: Function, given: str, constraints: list[str]) -> None:
    # As bare bytes: SDKs leave an empty header out.
    request = urllib.request.Request(
        f"{server.url}/2015-03-31/functions/{isolated.name}/invocations", b"{}", {"X-Amz-Tenant-Id": given}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.code == 400
        assert answer.headers["x-amzn-ErrorType"] == "ValidationException"
        text = json.load(answer)["message"]
    noun = "validation error" if len(constraints) == 1 else "validation errors"
    broken = "; ".join(
        f"Value '{given}' at 'tenantId' failed to satisfy constraint: Member must {each}" for each in constraints
    )
    assert text == f"{len(constraints)} {noun} detected: {broken}"


def test_events_carry_their_tenant(isolated: Function) -> None:
    function = isolated
    here = function.call(TenantId="blue")["here"]
    for name in ("blue", "green", "blue"):
        answer = function.server.lambda_.invoke(FunctionName=function.name, InvocationType="Event", TenantId=name)
        assert answer["StatusCode"] == 202
    rows = wait_until(
        lambda: (
            (found := {row["tenant"]: row["invocations"] for row in function.server.environments(function)})
            and sum(found.values()) >= 4
            and found
        ),
        "the events have run",
    )
    assert set(rows) == {"blue", "green"}
    after = function.call(TenantId="green")
    assert set(after["served"]) == {"green"}
    assert here != after["here"]


def test_the_concurrency_of_all_tenants_is_one(server: Server, isolated: Function) -> None:
    server.lambda_.put_function_concurrency(FunctionName=isolated.name, ReservedConcurrentExecutions=2)
    for name in ("blue", "green"):
        isolated.call(TenantId=name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(isolated.call, {"sleep": 2}, TenantId=name) for name in ("blue", "green")]
        wait_until(lambda: [row["state"] for row in server.environments(isolated)] == ["busy", "busy"], "both are busy")
        with pytest.raises(ClientError) as caught:
            isolated.call(TenantId="red")
        assert caught.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
        assert [future.result()["served"] for future in busy] == [["blue"] * 2, ["green"] * 2]


def test_so_many_environments_and_no_more(server: Server, isolated: Function) -> None:
    """2,500 for every 1,000 concurrent executions: two for one."""
    server.lambda_.put_function_concurrency(FunctionName=isolated.name, ReservedConcurrentExecutions=1)
    for name in ("blue", "green"):
        isolated.call(TenantId=name)
    with pytest.raises(ClientError) as caught:
        isolated.call(TenantId="red")
    answer = caught.value.response
    assert answer["Error"] == {"Code": "TooManyRequestsException", "Message": "Rate Exceeded."}
    assert answer["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert isolated.call(TenantId="blue")["served"] == ["blue"] * 2
    server.lambda_.put_function_concurrency(FunctionName=isolated.name, ReservedConcurrentExecutions=2)
    assert isolated.call(TenantId="red")["served"] == ["red"]


def test_logs_in_json_name_the_tenant(deploy: Deploy) -> None:
    function = deploy(
        """
        import logging
        logging.getLogger().setLevel("INFO")

        def handler(event, context):
            logging.info("hello")
        """,
        LoggingConfig={"LogFormat": "JSON"},
        **PER_TENANT,
    )
    reply = function.invoke(TenantId="blue")
    lines = [json.loads(line) for line in function.log_of(reply, "platform.report")]
    records = {line["type"]: line["record"] for line in lines if "type" in line}
    assert records["platform.start"]["tenantId"] == "blue"
    assert records["platform.report"]["tenantId"] == "blue"
    (hello,) = [line for line in lines if line.get("message") == "hello"]
    assert hello["tenantId"] == "blue"


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")
def test_node(deploy: Deploy) -> None:
    function = deploy(
        {
            "index.js": """
            const served = []
            exports.handler = async (event, context) => { served.push(context.tenantId); return served }
            """
        },
        Runtime="nodejs20.x",
        Handler="index.handler",
        **PER_TENANT,
    )
    assert function.call(TenantId="blue") == ["blue"]
    assert function.call(TenantId="green") == ["green"]
    assert function.call(TenantId="blue") == ["blue"] * 2


def test_it_is_known_after_a_restart(tmp_path: Any) -> None:
    with serving(tmp_path / "data") as server:
        function = server.deploy(SOURCE, **PER_TENANT)
        assert function.call(TenantId="blue")["served"] == ["blue"]
    with serving(tmp_path / "data") as server:
        function = Function(server, function.name)
        assert refusal(function.call) == ("InvalidParameterValueException", MISSING)
        assert function.call(TenantId="green")["written"] == ["green"]
