"""Several requests at once in one environment, for real: Python workers, a custom runtime, timeouts and crashes."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .harness import ROLE, Function, Server, make_zip, serving, wait_until

Deploy = Callable[..., Function]
SOURCE = """
    import logging, os, pathlib, time

    def handler(event, context):
        pathlib.Path("/tmp/began-" + event.get("mark", "x")).touch()
        if "wait_for" in event:
            while not all(os.path.exists("/tmp/began-" + each) for each in event["wait_for"]):
                time.sleep(0.005)
        logging.getLogger().warning("logged " + event.get("mark", ""))
        if "exit" in event:
            os._exit(event["exit"])
        if "raise" in event:
            raise ValueError(event["raise"])
        if event.get("long"):
            print(event["mark"] * 30_000)
        time.sleep(event.get("sleep", 0))
        print("printed " + event.get("mark", ""), end="")
        return {
            "pid": os.getpid(),
            "stream": context.log_stream_name,
            "left_ms": context.get_remaining_time_in_millis(),
            "concurrency": os.environ["AWS_LAMBDA_MAX_CONCURRENCY"],
            "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        }
"""


@contextlib.contextmanager
def provided(server: Server) -> Iterator[str]:
    """A capacity provider."""
    name = f"pool-{uuid.uuid4().hex[:8]}"
    made = server.lambda_.create_capacity_provider(
        CapacityProviderName=name,
        VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": []},
        PermissionsConfig={"CapacityProviderOperatorRoleArn": ROLE},
    )
    yield made["CapacityProvider"]["CapacityProviderArn"]
    server.lambda_.delete_capacity_provider(CapacityProviderName=name)


@pytest.fixture(scope="module")
def provider(server: Server) -> Iterator[str]:
    with provided(server) as arn:
        yield arn


def config(provider: str, concurrency: int) -> dict[str, Any]:
    inner = {"CapacityProviderArn": provider, "PerExecutionEnvironmentMaxConcurrency": concurrency}
    return {"LambdaManagedInstancesCapacityProviderConfig": inner}


def together(function: Function, events: list[dict[str, Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(events)) as pool:
        return list(pool.map(function.invoke, events))


def test_several_requests_run_at_once_in_one_environment(deploy: Deploy, provider: str, server: Server) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 4))
    marks = ["a", "b", "c", "d"]
    # Each waits until all have begun: one after the other they would never end.
    replies = together(function, [{"mark": mark, "wait_for": marks} for mark in marks])
    values = [reply.value for reply in replies]
    assert len({value["pid"] for value in values}) == 4
    assert len({value["stream"] for value in values}) == 1
    assert {value["concurrency"] for value in values} == {"4"}
    assert {value["type"] for value in values} == {"lambda-managed-instances"}
    assert all(0 < value["left_ms"] <= 10_000 for value in values)
    (row,) = server.environments(function)
    assert (row["invocations"], row["frozen"]) == (4, False)
    for mark, reply in zip(marks, replies, strict=True):
        messages = function.log_of(reply, "platform.report")
        assert messages.count(f"printed {mark}\n") + messages.count(f"printed {mark}") == 1
        events = [json.loads(each) for each in messages if reply.request_id in each]
        assert [each.get("type", each.get("message")) for each in events] == [
            "platform.start",
            f"logged {mark}",
            "platform.report",
        ]
        report = events[-1]["record"]
        assert report["status"] == "success"
        assert set(report["metrics"]) == {"durationMs"}
        assert [span["name"] for span in report["spans"]] == ["responseLatency", "responseDuration"]
        others = [each.request_id for each in replies if each is not reply]
        assert reply.request_id in reply.log
        assert not any(other in reply.log for other in others)
    types = [json.loads(each)["type"] for each in messages if '"platform.' in each]
    assert Counter(types) == {
        "platform.initStart": 1,
        "platform.initReport": 1,
        "platform.start": 4,
        "platform.report": 4,
    }


def test_one_more_than_there_is_room_for_gets_an_environment_of_its_own(deploy: Deploy, provider: str) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 2))
    replies = together(function, [{"sleep": 1.0}] * 3)
    streams = Counter(reply.value["stream"] for reply in replies)
    assert sorted(streams.values()) == [1, 2]


def test_a_timeout_ends_one_request_and_no_code(deploy: Deploy, provider: str, server: Server) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 3), Timeout=2)
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(function.invoke, {"mark": "late", "sleep": 2.4})
        function.wait_log("platform.start")
        threading.Event().wait(0.8)  # so much later is the other one's timeout
        other = pool.submit(function.invoke, {"mark": "other", "wait_for": ["go"]})
        slow = late.result()
        quick = function.invoke({"mark": "go"})
        running = other.result()
    assert slow.error == "Unhandled"
    assert slow.value == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {slow.request_id} Error: Task timed out after 2.00 seconds",
    }
    assert running.error is quick.error is None
    messages = function.log_of(slow, "platform.report")
    (report,) = [json.loads(each)["record"] for each in messages if slow.request_id in each and ".report" in each]
    assert (report["status"], report["metrics"]) == ("timeout", {"durationMs": 2_000.0})
    # The worker that was late takes requests again, in the same environment.
    pids = {quick.value["pid"], running.value["pid"]}
    wait_until(lambda: pids.add(function.call({})["pid"]) or len(pids) == 3, "all three workers are used")
    (row,) = server.environments(function)
    assert row["log_stream"] == quick.value["stream"] == running.value["stream"]


def test_a_crash_ends_all_and_the_environment_is_replaced(deploy: Deploy, provider: str) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 3))
    stream = function.call({"mark": "first"})["stream"]
    marks = ["a", "b", "c"]
    replies = together(
        function,
        [{"mark": "a", "sleep": 8}, {"mark": "b", "sleep": 8}, {"mark": "c", "wait_for": marks, "exit": 7}],
    )
    for reply in replies:
        assert reply.error == "Unhandled"
        assert reply.value == {
            "errorType": "Runtime.ExitError",
            "errorMessage": f"RequestId: {reply.request_id} Error: Runtime exited with error: exit status 7",
        }
        (report,) = [
            json.loads(each)["record"]
            for each in function.log_of(reply, "platform.report")
            if reply.request_id in each and ".report" in each
        ]
        assert (report["status"], report["errorType"]) == ("error", "Runtime.ExitError")
    assert function.call({})["stream"] != stream


def test_an_exception_is_of_its_request_alone(deploy: Deploy, provider: str) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 2))
    bad, good = together(function, [{"raise": "oh"}, {"sleep": 0.2}])
    assert bad.value["errorType"] == "ValueError"
    assert good.error is None
    assert function.call({})["stream"] == good.value["stream"]


def test_long_lines_of_several_workers_stay_whole(deploy: Deploy, provider: str) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 4))
    marks = ["a", "b", "c", "d"]
    for _ in range(2):
        together(function, [{"mark": mark, "wait_for": marks, "long": True} for mark in marks])
    events = function.events(lambda found: sum(len(event["message"]) > 20_000 for event in found) >= 8)
    long = Counter(event["message"].strip() for event in events if len(event["message"]) > 20_000)
    assert long == {mark * 30_000: 2 for mark in marks}


def test_init_that_fails_is_told_to_all(deploy: Deploy, provider: str) -> None:
    function = deploy("raise KeyError('none')\n", CapacityProviderConfig=config(provider, 2))
    for reply in together(function, [{}, {}]):
        assert reply.error == "Unhandled"
        assert reply.value["errorType"] == "KeyError"
    function.update(SOURCE)
    assert function.call({})["concurrency"] == "2"


def test_a_custom_runtime_with_threads(deploy: Deploy, provider: str) -> None:
    bootstrap = """
        #!/usr/bin/env python3
        import http.client, os, threading
        both = threading.Barrier(int(os.environ["AWS_LAMBDA_MAX_CONCURRENCY"]))
        def work():
            api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            while True:
                api.request("GET", "/2018-06-01/runtime/invocation/next")
                answer = api.getresponse()
                answer.read()
                both.wait()
                name = answer.headers["Lambda-Runtime-Aws-Request-Id"]
                api.request("POST", "/2018-06-01/runtime/invocation/" + name + "/response", '"' + name + '"')
                api.getresponse().read()
        for _ in range(2):
            threading.Thread(target=work).start()
    """
    function = deploy({"bootstrap": bootstrap}, Runtime="provided.al2023", CapacityProviderConfig=config(provider, 2))
    replies = together(function, [{}, {}])
    assert [reply.value for reply in replies] == [reply.request_id for reply in replies]


def test_out_of_memory_ends_all(deploy: Deploy, provider: str) -> None:
    source = """
        import time
        def handler(event, context):
            if event["big"]:
                time.sleep(0.3)
                return len(bytearray(b"x") * 2_500_000_000)
            time.sleep(8)
    """
    function = deploy(source, CapacityProviderConfig=config(provider, 2))
    for reply in together(function, [{"big": False}, {"big": True}]):
        assert reply.value == {
            "errorType": "Runtime.OutOfMemory",
            "errorMessage": f"RequestId: {reply.request_id} Error: Runtime exited with error: signal: killed",
        }


EXTENSION = """
    #!/usr/bin/env python3
    import http.client, json, os
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    name = {"Lambda-Extension-Name": "watcher"}
    api.request("POST", "/2020-01-01/extension/register", json.dumps({"events": ["SHUTDOWN"]}), name)
    answer = api.getresponse()
    answer.read()
    identifier = {"Lambda-Extension-Identifier": answer.headers["Lambda-Extension-Identifier"]}
    api.request("GET", "/2020-01-01/extension/event/next", headers=identifier)
    print("watcher got " + json.loads(api.getresponse().read())["shutdownReason"], flush=True)
"""


def test_an_extension_hears_of_the_end(deploy: Deploy, provider: str, server: Server) -> None:
    code = {"ZipFile": make_zip({"extensions/watcher": EXTENSION})}
    layer = server.lambda_.publish_layer_version(LayerName=f"w-{uuid.uuid4().hex[:8]}", Content=code)
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 2), Layers=[layer["LayerVersionArn"]])
    events = [{"mark": "a", "sleep": 8}, {"mark": "b", "wait_for": ["a", "b"], "exit": 1}]
    assert [reply.value["errorType"] for reply in together(function, events)] == ["Runtime.ExitError"] * 2
    function.wait_log("watcher got failure")
    assert function.call({})["concurrency"] == "2"


def test_without_namespaces(tmp_path: Path) -> None:
    source = """
        import os, time
        def handler(event, context):
            time.sleep(0.5)
            return os.getpid(), context.log_stream_name
    """
    with serving(tmp_path / "data", "--sandbox", "process") as server, provided(server) as provider:
        function = server.deploy(source, CapacityProviderConfig=config(provider, 2))
        (one, stream), (other, same) = [reply.value for reply in together(function, [{}, {}])]
        assert one != other
        assert stream == same
        server.lambda_.delete_function(FunctionName=function.name)


def test_deleting_a_function_waits_for_nobody(deploy: Deploy, provider: str, server: Server) -> None:
    function = deploy(SOURCE, CapacityProviderConfig=config(provider, 2))
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(function.call({"mark": "r", "sleep": 1.0})))
    running.start()
    wait_until(lambda: any(row["state"] == "busy" for row in server.environments(function)), "it runs")
    server.lambda_.delete_function(FunctionName=function.name)
    running.join()
    assert answers[0]["concurrency"] == "2"
    wait_until(lambda: not server.environments(function), "its environment is gone")
