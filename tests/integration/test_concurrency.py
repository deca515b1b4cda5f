"""Limits on the wire: reserved concurrency, the unreserved minimum, the account's limit."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .harness import Function, Server, serving

Deploy = Callable[..., Function]
SLEEPER = (
    "import time\ndef handler(event, context):\n    print('began')\n    time.sleep(event or 0)\n    return 'done'\n"
)
RESERVED = "ReservedFunctionConcurrentInvocationLimitExceeded"


def refusal(function: Function) -> dict[str, Any]:
    """The whole answer to an invoke that is throttled."""
    request = urllib.request.Request(
        f"{function.server.url}/2015-03-31/functions/{function.name}/invocations", b"0", method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        return {"status": answer.code, "headers": dict(answer.headers), "body": json.load(answer)}


def test_reserved_concurrency_of_one(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER)
    answer = server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=1)
    assert answer["ReservedConcurrentExecutions"] == 1
    running = threading.Thread(target=function.call, args=(1.0,))
    running.start()
    function.wait_log("began")
    answer = refusal(function)
    running.join()
    assert answer["status"] == 429
    assert answer["body"] == {"Reason": RESERVED, "Type": "User", "message": "Rate Exceeded."}
    assert answer["headers"]["x-amzn-ErrorType"] == "TooManyRequestsException"
    assert answer["headers"]["Retry-After"] == "1"
    assert function.call(0) == "done"
    server.lambda_.delete_function_concurrency(FunctionName=function.name)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(function.call, (0.3, 0.3))) == ["done", "done"]


def test_reserved_concurrency_of_zero_stops_a_function(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER)
    assert function.call(0) == "done"
    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=0)
    for _ in range(3):
        with pytest.raises(server.lambda_.exceptions.TooManyRequestsException) as caught:
            function.invoke(0)
        assert caught.value.response["Reason"] == RESERVED
    assert function.invoke(0, InvocationType="Event").status == 202
    server.lambda_.delete_function_concurrency(FunctionName=function.name)
    assert function.call(0) == "done"


def test_a_throttled_event_runs_when_it_may(server: Server, deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    print('ran', event)\n")
    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=0)
    assert function.invoke("waiting", InvocationType="Event").status == 202
    assert server.log_events(function.group) == []
    server.lambda_.delete_function_concurrency(FunctionName=function.name)
    function.wait_log("ran waiting")


def test_one_hundred_stay_unreserved(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER)
    with pytest.raises(server.lambda_.exceptions.InvalidParameterValueException) as caught:
        server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=901)
    assert caught.value.response["Error"]["Message"] == (
        "Specified ReservedConcurrentExecutions for function decreases account's "
        "UnreservedConcurrentExecution below its minimum value of [100]."
    )
    assert "ReservedConcurrentExecutions" not in server.lambda_.get_function_concurrency(FunctionName=function.name)


def test_the_accounts_limit(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--account-concurrency", "102") as server:
        greedy, reserved = server.deploy(SLEEPER, "greedy"), server.deploy(SLEEPER, "reserved")
        server.lambda_.put_function_concurrency(FunctionName=reserved.name, ReservedConcurrentExecutions=2)
        settings = server.lambda_.get_account_settings()["AccountLimit"]
        assert (settings["ConcurrentExecutions"], settings["UnreservedConcurrentExecutions"]) == (102, 100)
        reasons = []

        def call(_: int) -> str:
            try:
                return str(greedy.call(2.0))
            except ClientError as error:
                reasons.append(error.response["Reason"])
                return "throttled"

        with ThreadPoolExecutor(110) as pool:
            results = list(pool.map(call, range(110)))
        assert sorted(set(results)) == ["done", "throttled"]
        assert results.count("done") >= 100
        assert set(reasons) == {"ConcurrentInvocationLimitExceeded"}
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(reserved.call, (0.2, 0.2))) == ["done", "done"]
