"""Execution environments: one request at a time, reuse, what a function finds in them."""

from __future__ import annotations

import base64
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lambent.sandbox import interpreters

from .harness import ROLE, RUNTIME, Function, Server, make_zip, serving, wait_until

Deploy = Callable[..., Function]

COUNTER = """
import time, uuid

mark = uuid.uuid4().hex
count = 0

def handler(event, context):
    global count
    count += 1
    time.sleep(event or 0)
    return [mark, count, context.log_stream_name]
"""


def together(function: Function, count: int, payload: object) -> list[tuple[str, int, str]]:
    with ThreadPoolExecutor(count) as pool:
        return [tuple(found) for found in pool.map(lambda _: function.call(payload), range(count))]


def test_calls_after_each_other_share_one_environment(server: Server, deploy: Deploy) -> None:
    function = deploy(COUNTER)
    results = [function.call() for _ in range(10)]
    assert {mark for mark, _, _ in results} == {results[0][0]}
    assert [count for _, count, _ in results] == list(range(1, 11))
    ((environment),) = server.environments(function)
    assert (environment["invocations"], environment["state"], environment["version"]) == (10, "idle", "$LATEST")
    assert environment["log_stream"] == results[0][2]


def test_calls_at_once_start_an_environment_each(server: Server, deploy: Deploy) -> None:
    function = deploy(COUNTER)
    results = together(function, 10, 0.5)
    assert len({mark for mark, _, _ in results}) == 10
    assert {count for _, count, _ in results} == {1}
    assert len({stream for _, _, stream in results}) == 10
    again = together(function, 10, 0.5)
    assert {mark for mark, _, _ in again} == {mark for mark, _, _ in results}
    assert len(server.environments(function)) == 10


def test_the_most_recently_used_environment_is_taken(deploy: Deploy) -> None:
    function = deploy(COUNTER)
    with ThreadPoolExecutor(3) as pool:  # they end one after the other: 0.3, 0.5, 0.7 s
        ended = list(pool.map(function.call, (0.3, 0.5, 0.7)))
    last = ended[-1][0]
    assert {function.call()[0] for _ in range(10)} == {last}


def test_idle_environments_end(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--idle-seconds", "0.5") as server:
        function = server.deploy(COUNTER)
        mark = function.call()[0]
        assert function.call()[0] == mark
        wait_until(lambda: server.environments(function) == [], "the idle environment has ended")
        assert function.call()[0] != mark


def test_log_streams_and_init_lines(deploy: Deploy) -> None:
    function = deploy(COUNTER)
    first = function.invoke()
    function.log_of(function.invoke())
    events = function.server.log_events(function.group)
    (stream,) = {event["logStreamName"] for event in events}
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", stream)
    assert stream == first.value[2]
    starts = [event["message"] for event in events if event["message"].startswith("INIT_START")]
    major, minor, patch = sys.version_info[:3]
    version = rf"INIT_START Runtime Version: python:{major}\.{minor}\.v{patch}"
    (line,) = starts
    assert re.fullmatch(rf"{version}\tRuntime Version ARN: arn:aws:lambda:us-east-1::runtime:[0-9a-f]{{64}}\n", line)
    assert events[0]["message"] == line
    assert Counter(event["message"].split(" ")[0] for event in events) == {
        "INIT_START": 1, "START": 2, "END": 2, "REPORT": 2,
    }  # fmt: skip
    assert sum("Init Duration" in event["message"] for event in events) == 1


def test_a_log_group_of_ones_own(server: Server, deploy: Deploy) -> None:
    function = deploy(COUNTER, LoggingConfig={"LogGroup": "/mine/all"})
    function.group = "/mine/all"
    stream = function.call()[2]
    assert re.fullmatch(rf"\d{{4}}/\d\d/\d\d/{function.name}\[\$LATEST\][0-9a-f]{{32}}", stream)
    function.events(lambda events: any("REPORT" in event["message"] for event in events), logStreamNames=[stream])


def test_context_object(deploy: Deploy) -> None:
    function = deploy(
        """
        import time

        def handler(event, context):
            left = context.get_remaining_time_in_millis()
            time.sleep(0.02)
            client = context.client_context
            return {
                "function_name": context.function_name,
                "function_version": context.function_version,
                "invoked_function_arn": context.invoked_function_arn,
                "memory_limit_in_mb": context.memory_limit_in_mb,
                "aws_request_id": context.aws_request_id,
                "log_group_name": context.log_group_name,
                "log_stream_name": context.log_stream_name,
                "left": left,
                "later": context.get_remaining_time_in_millis(),
                "client": client and {"title": client.client.app_title, "custom": client.custom, "env": client.env},
            }
        """,
        MemorySize=192,
        Timeout=8,
    )
    context = '{"client": {"app_title": "t\\u00e4st"}, "custom": {"k": "v"}, "env": {"e": "1"}}'

    reply = function.invoke(ClientContext=base64.b64encode(context.encode()).decode())
    found = reply.value
    assert found["function_name"] == function.name
    assert found["function_version"] == "$LATEST"
    assert found["invoked_function_arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    assert found["memory_limit_in_mb"] == "192"
    assert found["aws_request_id"] == reply.request_id
    assert found["log_group_name"] == function.group
    assert 7_000 < found["later"] < found["left"] <= 8_000
    assert found["client"] == {"title": "täst", "custom": {"k": "v"}, "env": {"e": "1"}}
    assert function.call()["client"] is None


def test_environment_variables(server: Server, deploy: Deploy) -> None:
    function = deploy(
        "import os\ndef handler(event, context):\n    return [dict(os.environ), os.getcwd()]\n",
        Environment={"Variables": {"COLOUR": "blue", "PYTHONPATH": "/var/mine", "TZ": "Europe/Berlin"}},
        MemorySize=256,
    )
    found, folder = function.call()
    stream = found.pop("AWS_LAMBDA_LOG_STREAM_NAME")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", stream)
    assert re.fullmatch(r"127\.\d+\.\d+\.\d+:9001", found.pop("AWS_LAMBDA_RUNTIME_API"))
    assert found.pop("_X_AMZN_TRACE_ID").startswith("Root=1-")
    found.pop("_LAMBDA_TELEMETRY_LOG_FD", None)
    assert folder == "/var/task"
    assert found == {
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_LOG_GROUP_NAME": function.group,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{RUNTIME}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "000000000000",
        "AWS_SECRET_ACCESS_KEY": "lambent",
        "AWS_SESSION_TOKEN": "lambent",
        "AWS_ENDPOINT_URL": server.url,
        "_HANDLER": "m.handler",
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "PWD": "/var/task",
        "TZ": "Europe/Berlin",
        "LANG": "en_US.UTF-8",
        "LC_CTYPE": "C.UTF-8",
        "SHLVL": "0",
        "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
        "LD_LIBRARY_PATH": (
            "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"
        ),
        "PYTHONPATH": "/var/mine",
        "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
        "_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1",
        "_AWS_XRAY_DAEMON_PORT": "2000",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "COLOUR": "blue",
    }


def test_trace_header_reaches_the_function(server: Server, deploy: Deploy) -> None:
    function = deploy("import os\ndef handler(event, context):\n    return os.environ['_X_AMZN_TRACE_ID']\n")
    trace = "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"

    def add(request: object, **_: object) -> None:
        request.headers["X-Amzn-Trace-Id"] = trace  # type: ignore[attr-defined]

    server.lambda_.meta.events.register("before-sign.lambda.Invoke", add)
    try:
        assert function.call() == trace
    finally:
        server.lambda_.meta.events.unregister("before-sign.lambda.Invoke", add)
    assert function.call() != trace


def test_boto3_is_there_and_talks_to_this_server(deploy: Deploy) -> None:
    function = deploy(
        """
        import boto3

        def handler(event, context):
            if event == "who":
                return context.function_name
            answer = boto3.client("lambda").invoke(FunctionName=context.function_name, Payload=b'"who"')
            return [answer["Payload"].read().decode(), boto3.__file__]
        """,
        MemorySize=256,
    )
    name, path = function.call("ask")
    assert name == f'"{function.name}"'
    assert path.startswith("/var/runtime/boto3/")


def test_a_packages_own_copy_wins(deploy: Deploy) -> None:
    function = deploy(
        {
            "m.py": """
                import six, urllib3, urllib3.util, sys

                def handler(event, context):
                    return [six.OWN, urllib3.OWN, urllib3.util.OWN, "botocore" in sys.modules]
            """,
            "six.py": "OWN = 'my six'\n",
            "urllib3/__init__.py": "OWN = 'my urllib3'\n",
            "urllib3/util.py": "OWN = 'my util'\n",
        }
    )
    assert function.call()[:3] == ["my six", "my urllib3", "my util"]


def test_packages_and_handlers_in_folders(deploy: Deploy) -> None:
    function = deploy(
        {
            "app/__init__.py": "",
            "app/web/__init__.py": "",
            "app/web/entry.py": "from app import data\ndef main(event, context):\n    return data.VALUE\n",
            "app/data.py": "VALUE = 42\n",
        },
        Handler="app.web.entry.main",
    )
    assert function.call() == 42
    slashed = deploy({"app/entry.py": "def main(event, context):\n    return 1\n"}, Handler="app/entry.main")
    assert slashed.call() == 1


def test_memory_is_measured(deploy: Deploy) -> None:
    function = deploy(
        """
        def handler(event, context):
            kept = bytearray(event << 20)
            kept[::4096] = b"x" * len(kept[::4096])
        """,
        MemorySize=256,
    )
    small = int(function.invoke(1).report["Max Memory Used"].split()[0])
    large = int(function.invoke(120).report["Max Memory Used"].split()[0])
    assert 110 <= large - small <= 135
    assert large < 256
    function.wait_log("REPORT")


def test_files_in_tmp_do_not_use_up_the_memory(deploy: Deploy) -> None:
    function = deploy(
        """
        def handler(event, context):
            with open("/tmp/large", "wb") as file:
                for _ in range(400):
                    file.write(b"x" * (1 << 20))
            kept = bytearray(60 << 20)
            kept[::4096] = b"x" * len(kept[::4096])
            return len(kept)
        """,
        Timeout=30,
    )
    assert function.call() == 60 << 20


@pytest.mark.parametrize("runtime", [f"python3.{minor}" for minor in range(9, 15)])
def test_runtimes(deploy: Deploy, runtime: str) -> None:
    """Each interpreter of this machine serves the runtime of its name; for others the nearest, with a warning."""
    installed = interpreters.find()
    minor = int(runtime.partition(".")[2])
    function = deploy(
        """
        import sys, logging

        def handler(event, context):
            logging.getLogger().warning("careful")
            return list(sys.version_info[:2])
        """,
        Runtime=runtime,
    )
    reply = function.invoke()
    assert reply.error is None, reply.raw
    messages = function.log_of(reply)
    warnings = [message for message in messages if message.startswith("LAMBENT_WARNING")]
    if minor == 9 and minor in installed:
        assert warnings.pop().startswith("LAMBENT_WARNING: this interpreter can not import boto3")
    if minor in installed:
        assert reply.value == [3, minor]
        assert warnings == []
    else:
        choice = interpreters.choose(runtime, installed)
        assert choice is not None
        assert reply.value == [3, choice.interpreter.minor]
        assert warnings == [f"{choice.warning}\n"]
    assert any(message.startswith("[WARNING]\t") and message.endswith("\tcareful\n") for message in messages)


@pytest.mark.parametrize("minor", sorted(interpreters.find()))
def test_boto3_in_every_runtime(deploy: Deploy, minor: int) -> None:
    if minor < 10:
        pytest.xfail("the SDK that Lambent carries (boto3 1.44, urllib3 2.8) needs Python 3.10")
    function = deploy(
        "import boto3\ndef handler(event, context):\n    return boto3.client('lambda').meta.region_name\n",
        Runtime=f"python3.{minor}",
        MemorySize=256,
    )
    assert function.call() == "us-east-1"


def test_strict_runtimes_refuse_what_is_not_installed(tmp_path: Path) -> None:
    missing = sorted({*range(9, 15)} - set(interpreters.find()))
    if not missing:
        pytest.skip("every Python from 3.9 to 3.14 is installed here")
    with serving(tmp_path / "data", "--strict-runtimes") as server:
        assert server.deploy(COUNTER).call()[1] == 1
        refused, runtime = "strict", f"python3.{missing[0]}"
        server.lambda_.create_function(
            FunctionName=refused,
            Runtime=runtime,
            Role=ROLE,
            Handler="m.handler",
            Code={"ZipFile": make_zip({"m.py": ""})},
        )
        found = Function(server, refused).wait_active()
        assert found["State"] == "Failed"
        assert (
            f"The runtime {runtime} is not installed on this host and --strict-runtimes is on" in found["StateReason"]
        )
        with pytest.raises(
            server.lambda_.exceptions.ResourceConflictException, match="currently in the following state"
        ):
            Function(server, refused).invoke()


def test_time_between_calls_does_not_count(deploy: Deploy) -> None:
    function = deploy("import time\ndef handler(event, context):\n    time.sleep(event)\n")
    function.call(0)
    time.sleep(0.1)
    assert float(function.invoke(0.05).report["Duration"].split()[0]) == pytest.approx(50, abs=40)
