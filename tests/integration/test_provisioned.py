"""Provisioned concurrency for real: environments that are there before the first request."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .harness import PATIENCE_S, Function, Server, client, serving, wait_until

Deploy = Callable[..., Function]
SOURCE = """
import os, time
KIND = os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]
MADE = time.time_ns()

def handler(event, context):
    time.sleep(event or 0)
    return {"kind": KIND, "made": MADE, "pid": os.getpid(), "version": context.function_version}
"""
BROKEN = "raise ValueError('no such luck')\n"


def version_of(function: Function) -> str:
    return str(function.server.lambda_.publish_version(FunctionName=function.name)["Version"])


def put(function: Function, qualifier: str, count: int) -> dict[str, Any]:
    answer: dict[str, Any] = function.server.lambda_.put_provisioned_concurrency_config(
        FunctionName=function.name, Qualifier=qualifier, ProvisionedConcurrentExecutions=count
    )
    return answer


def get(function: Function, qualifier: str) -> dict[str, Any]:
    answer: dict[str, Any] = function.server.lambda_.get_provisioned_concurrency_config(
        FunctionName=function.name, Qualifier=qualifier
    )
    return answer


def wait_ready(function: Function, qualifier: str) -> dict[str, Any]:
    def settled() -> dict[str, Any] | None:
        found = get(function, qualifier)
        return found if found["Status"] != "IN_PROGRESS" else None

    found: dict[str, Any] = wait_until(settled, f"{function.name}:{qualifier} is provisioned", PATIENCE_S * 2)
    return found


def numbers(config: dict[str, Any]) -> tuple[int, int, int]:
    return (
        config["RequestedProvisionedConcurrentExecutions"],
        config["AllocatedProvisionedConcurrentExecutions"],
        config["AvailableProvisionedConcurrentExecutions"],
    )


def metric(server: Server, name: str, **dimensions: str) -> dict[str, Any] | None:
    """The last minutes as one point."""
    now = dt.datetime.now(dt.UTC)
    points = client("cloudwatch", server.url).get_metric_statistics(
        Namespace="AWS/Lambda",
        MetricName=name,
        Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
        StartTime=now - dt.timedelta(minutes=10),
        EndTime=now + dt.timedelta(minutes=1),
        Period=1200,
        Statistics=["Sum", "Maximum"],
    )["Datapoints"]
    return dict(points[0]) if points else None


def test_environments_are_there_before_the_first_request(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "provisioned")
    version = version_of(function)
    answer = put(function, version, 2)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert (answer["Status"], numbers(answer)) == ("IN_PROGRESS", (2, 0, 0))
    ready = wait_ready(function, version)
    assert (ready["Status"], numbers(ready)) == ("READY", (2, 2, 2))
    assert ready["LastModified"] == answer["LastModified"]
    assert len(server.environments(function)) == 2

    first = function.invoke(0, Qualifier=version)
    assert first.value["kind"] == "provisioned-concurrency"
    assert "Init Duration" not in first.report
    assert function.invoke(0).value["kind"] == "on-demand"
    function.wait_log("INIT_REPORT Init Duration: .* ms\tPhase: init\tStatus: success")

    # Three at once: two where they are awaited, one elsewhere, with an Init.
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: function.invoke(0.5, Qualifier=version), range(3)))
    assert sorted(reply.value["kind"] for reply in replies) == ["on-demand", *["provisioned-concurrency"] * 2]
    spilled = next(reply for reply in replies if reply.value["kind"] == "on-demand")
    assert "Init Duration" in spilled.report

    resource = {"FunctionName": function.name, "Resource": f"{function.name}:{version}"}
    for name, statistic, value in (
        ("ProvisionedConcurrencyInvocations", "Sum", 3),
        ("ProvisionedConcurrencySpilloverInvocations", "Sum", 1),
        ("ProvisionedConcurrentExecutions", "Maximum", 2),
        ("ProvisionedConcurrencyUtilization", "Maximum", 1.0),
    ):
        found = metric(server, name, **resource)
        assert found is not None, name
        assert found[statistic] == value, name
    claimed = metric(server, "ClaimedAccountConcurrency")
    assert claimed is not None
    assert claimed["Maximum"] >= 2

    server.lambda_.delete_provisioned_concurrency_config(FunctionName=function.name, Qualifier=version)
    with pytest.raises(server.lambda_.exceptions.ProvisionedConcurrencyConfigNotFoundException) as caught:
        get(function, version)
    assert caught.value.response["Error"]["Message"] == "No Provisioned Concurrency Config found for this function"
    wait_until(lambda: len(server.environments(function)) == 2, "only those on demand are left")
    assert function.invoke(0, Qualifier=version).value["kind"] == "on-demand"


def test_a_killed_environment_is_replaced(server: Server, deploy: Deploy) -> None:
    marker = f"# {uuid.uuid4().hex}"
    function = deploy(SOURCE + marker, "killed")
    version = version_of(function)
    put(function, version, 1)
    assert wait_ready(function, version)["Status"] == "READY"
    before = function.call(0, Qualifier=version)
    # While it works: the kernel keeps even SIGKILL from a frozen process (cgroup version 1) until it thaws.
    running = threading.Thread(target=function.invoke, args=(5,), kwargs={"Qualifier": version})
    running.start()
    wait_until(lambda: any(row["state"] == "busy" for row in server.environments(function)), "it runs")
    victims = [pid for pid in server.family() if _runs(pid, marker)]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    running.join()

    def replaced() -> bool:
        rows = [row for row in server.environments(function) if row["state"] == "idle" and row["invocations"] == 0]
        return numbers(get(function, version)) == (1, 1, 1) and len(rows) == 1

    wait_until(replaced, "another environment stands in")
    after = function.invoke(0, Qualifier=version)
    assert after.value["kind"] == "provisioned-concurrency"
    assert after.value["made"] != before["made"]
    assert "Init Duration" not in after.report


def _runs(pid: int, marker: str) -> bool:
    """Whether the process sees code with this in it."""
    try:
        return marker in Path(f"/proc/{pid}/root/var/task/m.py").read_text()
    except OSError:
        return False


def test_a_broken_init_fails_the_configuration(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "broken")
    function.update(BROKEN)
    version = version_of(function)
    put(function, version, 1)
    failed = wait_ready(function, version)
    assert failed["Status"] == "FAILED"
    assert failed["StatusReason"] == "FUNCTION_ERROR_INIT_FAILURE"
    assert numbers(failed) == (1, 0, 0)


def test_nothing_is_cold_within_the_allocation(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "steady")
    version = version_of(function)
    put(function, version, 4)
    wait_ready(function, version)

    def caller(_: int) -> list[Any]:
        return [function.invoke(0.06, Qualifier=version) for _ in range(8)]

    with ThreadPoolExecutor(4) as pool:
        replies = [reply for replies in pool.map(caller, range(4)) for reply in replies]
    assert {reply.value["kind"] for reply in replies} == {"provisioned-concurrency"}
    assert not [reply for reply in replies if "Init Duration" in reply.report]
    assert len(server.environments(function)) == 4


def test_an_alias_takes_its_environments_along(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "moving")
    first = version_of(function)
    server.lambda_.create_alias(FunctionName=function.name, Name="live", FunctionVersion=first)
    put(function, "live", 2)
    wait_ready(function, "live")
    assert function.call(0, Qualifier="live")["version"] == first
    function.update(SOURCE + "# changed\n")
    second = version_of(function)
    server.lambda_.update_alias(FunctionName=function.name, Name="live", FunctionVersion=second)
    wait_until(lambda: numbers(get(function, "live")) == (2, 2, 2), "the new version's are there")
    reply = function.call(0, Qualifier="live")
    assert (reply["version"], reply["kind"]) == (second, "provisioned-concurrency")
    wait_until(
        lambda: {row["version"] for row in server.environments(function)} == {second}, "those of the old one have ended"
    )
    # Half of them for each.
    weights = {"AdditionalVersionWeights": {first: 0.5}}
    server.lambda_.update_alias(FunctionName=function.name, Name="live", RoutingConfig=weights)
    wait_until(
        lambda: sorted(row["version"] for row in server.environments(function)) == [first, second], "one of each"
    )
    assert wait_ready(function, "live")["Status"] == "READY"
    server.lambda_.delete_alias(FunctionName=function.name, Name="live")
    wait_until(lambda: server.environments(function) == [], "nothing is left of it")


def test_it_is_there_again_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        function = server.deploy(SOURCE, "lasting")
        version = version_of(function)
        put(function, version, 1)
        assert wait_ready(function, version)["Status"] == "READY"
    with serving(tmp_path / "data") as server:
        again = Function(server, function.name)
        assert wait_ready(again, version)["Status"] == "READY"
        reply = again.invoke(0, Qualifier=version)
        assert reply.value["kind"] == "provisioned-concurrency"
        assert "Init Duration" not in reply.report


def throttled(function: Function, payload: Any, **arguments: Any) -> dict[str, Any] | None:
    """The whole error, or None when it ran."""
    try:
        function.invoke(payload, **arguments)
    except ClientError as error:
        return dict(error.response)
    return None


def test_reserved_and_provisioned_share_one_pot(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "shared-pot")
    version = version_of(function)
    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=1)
    put(function, version, 1)
    wait_ready(function, version)
    # All that is reserved is provisioned: nothing is left for $LATEST.
    error = throttled(function, 0)
    assert error is not None
    assert error["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert error["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"
    assert error["Error"]["Message"] == "Rate Exceeded."
    assert throttled(function, 0, Qualifier=version) is None
    running = threading.Thread(target=function.invoke, args=(0.5,), kwargs={"Qualifier": version})
    running.start()
    wait_until(lambda: any(row["state"] == "busy" for row in server.environments(function)), "it runs")
    error = throttled(function, 0, Qualifier=version)  # nowhere to spill to
    running.join()
    assert error is not None
    assert error["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"


def test_ten_requests_a_second_for_each_unit_of_the_account(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--account-concurrency", "100") as server:
        function = server.deploy("def handler(event, context):\n    return 1\n", "account-rate")
        refused = []

        def call(_: int) -> None:
            """Many requests on one connection, without waiting for the answers."""
            path = f"/2015-03-31/functions/{function.name}/invocations"
            request = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n1".encode()
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
                sender = threading.Thread(target=connection.sendall, args=(request * 1_000,))
                sender.start()
                answers = b""
                while answers.count(b"HTTP/1.1 ") < 1_000 or not answers.endswith((b"1", b"}")):
                    answers += connection.recv(1 << 20)
                sender.join()
            refused.extend(answers.split(b"HTTP/1.1 429 ")[1:])

        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(call, range(4)))
        if not refused and time.monotonic() - began > 2.5:
            pytest.skip("this machine does not get to 1,000 requests a second")
        head, _, body = refused[0].partition(b"\r\n\r\n")
        assert b"Retry-After: 1" in head
        assert b"x-amzn-ErrorType: TooManyRequestsException" in head
        assert json.loads(body.partition(b"HTTP/1.1")[0]) == {
            "Reason": "FunctionInvocationRateLimitExceeded",
            "Type": "User",
            "message": "Rate Exceeded.",
        }


def test_ten_requests_a_second_for_each_unit(server: Server, deploy: Deploy) -> None:
    function = deploy(SOURCE, "rate")
    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=1)
    function.call(0)
    error = None
    for _ in range(100):
        error = error or throttled(function, 0)
    assert error is not None
    assert error["Reason"] == "ReservedFunctionInvocationRateLimitExceeded"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert error["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"
    assert function.invoke(0, InvocationType="Event").status == 202
