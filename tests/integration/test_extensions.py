"""Extensions: processes of a layer's /opt/extensions, and internal ones, on the real APIs of a real environment."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from .harness import Function, Server, make_zip, serving, wait_until

Deploy = Callable[..., Function]
Layer = Callable[[dict[str, bytes | str]], str]

#: Registers, then writes down all that it is told, and what of the platform's variables it sees.
WITNESS = """
    #!/usr/bin/env python3
    import http.client, json, os, signal, sys, time

    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    name = os.path.basename(sys.argv[0])

    def call(method, path, body=None, **headers):
        api.request(method, path, body, headers)
        answer = api.getresponse()
        return answer, answer.read()

    events = os.environ.get("EVENTS", "INVOKE,SHUTDOWN").split(",")
    headers = {"Lambda-Extension-Name": name, "Lambda-Extension-Accept-Feature": "accountId"}
    api.request("POST", "/2020-01-01/extension/register", json.dumps({"events": events}), headers)
    answer = api.getresponse()
    identifier = answer.getheader("Lambda-Extension-Identifier")
    print("witness registered", answer.status, answer.read().decode(), flush=True)
    print("witness sees", " ".join(sorted(os.environ)), flush=True)
    if os.environ.get("FAIL") == "init":
        sys.exit(3)
    me = {"Lambda-Extension-Identifier": identifier}
    while True:
        api.request("GET", "/2020-01-01/extension/event/next", headers=me)
        answer = api.getresponse()
        event = json.loads(answer.read())
        print("witness told", json.dumps(event), flush=True)
        if event["eventType"] == "SHUTDOWN":
            sys.exit(0)
        if os.environ.get("FAIL") == "invoke":
            sys.exit(4)
        time.sleep(float(os.environ.get("BUSY", "0")))
"""

#: The same with curl.
SHELL = r"""
    #!/bin/bash
    url="http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension"
    id=$(curl -sS -D - -o /dev/null -X POST -H "Lambda-Extension-Name: shell.sh" -d '{"events":["INVOKE","SHUTDOWN"]}' \
      "$url/register" | tr -d '\r' | grep -i '^lambda-extension-identifier:' | cut -d' ' -f2)
    while event=$(curl -sS -H "Lambda-Extension-Identifier: $id" "$url/event/next"); do
      echo "shell told $event"
      case "$event" in *SHUTDOWN*) exit 0 ;; esac
    done
"""

SUBSCRIBER = """
    #!/usr/bin/env python3
    import http.client, http.server, json, os, sys, threading

    class Sink(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            batch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open("/tmp/telemetry", "a") as file:
                for each in batch:
                    file.write(json.dumps(each) + "\\n")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("sandbox.localdomain", 4243), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request("POST", "/2020-01-01/extension/register", '{"events":["INVOKE","SHUTDOWN"]}',
                {"Lambda-Extension-Name": os.path.basename(sys.argv[0])})
    answer = api.getresponse()
    answer.read()
    me = {"Lambda-Extension-Identifier": answer.getheader("Lambda-Extension-Identifier")}
    api.request("PUT", "/2022-07-01/telemetry", json.dumps({
        "schemaVersion": "2022-12-13",
        "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:4243"},
        "types": ["platform", "function", "extension"],
        "buffering": {"maxItems": 1000, "maxBytes": 262144, "timeoutMs": 25},
    }), me)
    answer = api.getresponse()
    print("subscription", answer.status, answer.read().decode(), flush=True)
    while True:
        api.request("GET", "/2020-01-01/extension/event/next", headers=me)
        event = json.loads(api.getresponse().read())
        if event["eventType"] == "SHUTDOWN":
            sys.exit(0)
"""

HANDLER = """
    import os, time
    count = 0
    def handler(event, context):
        global count
        count += 1
        if event == "exit":
            os._exit(9)
        if event == "telemetry":
            return open("/tmp/telemetry").read() if os.path.exists("/tmp/telemetry") else ""
        print("the handler runs")
        time.sleep(event or 0)
        return count
"""


@pytest.fixture
def layer(server: Server) -> Layer:
    return lambda files: publish(server, files)


def publish(server: Server, files: dict[str, bytes | str]) -> str:
    made = server.lambda_.publish_layer_version(
        LayerName=f"l-{uuid.uuid4().hex[:8]}", Content={"ZipFile": make_zip(files)}
    )
    arn: str = made["LayerVersionArn"]
    return arn


def told(lines: list[str], who: str = "witness") -> list[Any]:
    return [json.loads(line.partition(" told ")[2]) for line in lines if line.startswith(f"{who} told ")]


def with_extension(deploy: Deploy, layers: list[str], **variables: str) -> Function:
    return deploy(HANDLER, "extended", Layers=layers, Timeout=3, Environment={"Variables": variables or {"A1": "1"}})


def test_an_external_extension_is_told_of_every_invocation(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/witness": WITNESS})])
    replies = [function.invoke(0) for _ in range(3)]
    assert [reply.value for reply in replies] == [1, 2, 3], "one environment served them all"
    lines = function.events(lambda found: sum("witness told" in event["message"] for event in found) >= 3)
    messages = [event["message"] for event in lines]
    events = told(messages)
    assert [event["requestId"] for event in events] == [reply.request_id for reply in replies]
    assert {event["eventType"] for event in events} == {"INVOKE"}
    assert events[0]["invokedFunctionArn"].endswith(f":function:{function.name}")
    assert events[0]["tracing"]["type"] == "X-Amzn-Trace-Id"
    registered = next(line for line in messages if line.startswith("witness registered 200"))
    assert json.loads(registered.split(" ", 3)[3]) == {
        "functionName": function.name,
        "functionVersion": "$LATEST",
        "handler": "m.handler",
        "accountId": "000000000000",
    }
    seen = next(line for line in messages if line.startswith("witness sees")).split()
    assert "AWS_LAMBDA_FUNCTION_NAME" in seen
    assert not {"LAMBDA_TASK_ROOT", "AWS_EXECUTION_ENV", "_HANDLER", "AWS_LAMBDA_LOG_GROUP_NAME"} & set(seen)
    assert any(re.match(r"EXTENSION\tName: witness\tState: Ready\tEvents: \[INVOKE, SHUTDOWN\]", m) for m in messages)


def test_an_extension_in_shell(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/shell.sh": SHELL})])
    reply = function.invoke(0)
    lines = function.events(lambda found: any("shell told" in event["message"] for event in found))
    assert told([event["message"] for event in lines], "shell")[0]["requestId"] == reply.request_id


def test_the_client_does_not_wait_for_a_slow_extension(deploy: Deploy, layer: Layer) -> None:
    """The answer leaves when the runtime gives it; the environment is free when the extension is."""
    function = with_extension(deploy, [layer({"extensions/witness": WITNESS})], BUSY="0.5")
    first = function.invoke(0, LogType="None")
    second = function.invoke(0, LogType="None")
    assert (first.value, second.value) == (1, 1), "the first environment was still busy: another one was started"
    lines = function.log_of(first)
    report = next(line for line in lines if line.startswith("REPORT") and first.request_id in line)
    duration = re.search(r"\tDuration: ([\d.]+) ms", report)
    assert duration is not None
    assert float(duration[1]) >= 500


def test_shutdown_reasons(tmp_path: Any) -> None:
    with serving(tmp_path / "data") as server:
        made = publish(server, {"extensions/witness": WITNESS})
        function = server.deploy(HANDLER, "ended", Layers=[made], Timeout=1)
        assert function.invoke(30).value["errorType"] == "Sandbox.Timedout"
        assert function.call(0) == 1
        reasons = lambda: [  # noqa: E731
            event["shutdownReason"]
            for event in told([each["message"] for each in server.log_events(function.group)])
            if event["eventType"] == "SHUTDOWN"
        ]
        wait_until(lambda: reasons() == ["timeout"], "told of the timeout")
        failed = function.invoke("exit")
        assert failed.value["errorType"] == "Runtime.ExitError"
        wait_until(lambda: reasons() == ["timeout", "failure"], "told of the failure")
        function.call(0)
        server.lambda_.update_function_configuration(FunctionName=function.name, Description="new")
        wait_until(lambda: reasons() == ["timeout", "failure", "spindown"], "told of the end")


def test_an_extension_that_exits_in_init(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/witness": WITNESS})], FAIL="init")
    reply = function.invoke(0)
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == "Extension.Crash"
    assert any("INIT_REPORT" in line and "Extension.Crash" in line for line in function.log_of(reply))


def test_an_extension_that_exits_in_an_invocation(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/witness": WITNESS})], FAIL="invoke")
    reply = function.invoke(1)
    assert reply.value["errorType"] == "Extension.Crash"
    assert reply.report["Status"] == "error"


def test_what_is_no_extension_is_ignored(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/readme.txt": "not executable", "extensions/dir/x": SHELL})])
    assert function.call(0) == 1


def test_telemetry_of_everything(deploy: Deploy, layer: Layer) -> None:
    function = with_extension(deploy, [layer({"extensions/subscriber": SUBSCRIBER})])
    reply = function.invoke(0)
    assert reply.value == 1

    def records() -> list[Any]:
        return [json.loads(line) for line in function.call("telemetry").splitlines()]

    def has_report() -> Any:
        found = records()
        return found if any(each["type"] == "platform.report" for each in found) else None

    found = wait_until(has_report, "the report of the first invocation is delivered")
    kinds = [each["type"] for each in found]
    wanted = ["platform.initStart", "platform.initReport", "platform.start", "function", "platform.runtimeDone"]
    assert [kind for kind in wanted if kind not in kinds] == []
    assert kinds.index("platform.initStart") < kinds.index("platform.start") < kinds.index("platform.report")
    start = next(each["record"] for each in found if each["type"] == "platform.start")
    assert start["requestId"] == reply.request_id
    printed = next(each["record"] for each in found if each["type"] == "function")
    assert printed.strip() == "the handler runs"
    report = next(each["record"] for each in found if each["type"] == "platform.report")
    assert report["metrics"]["memorySizeMB"] == 128
    assert report["status"] == "success"


def test_telemetry_is_not_delivered_to_others_on_the_host(server: Server, deploy: Deploy, layer: Layer) -> None:
    """The server connects in the extension's name: only to what the environment's own processes listen on."""
    if server.page("health")["sandbox"] != "namespace":
        pytest.skip("only the namespace sandbox tells environments apart")
    if server.page("health")["rootless"]:
        pytest.skip("the test has the environment's user id without root")
    with socket.create_server(("0.0.0.0", 0)) as somebody:
        source = SUBSCRIBER.replace("sandbox.localdomain:4243", f"sandbox.localdomain:{somebody.getsockname()[1]}")
        function = with_extension(deploy, [layer({"extensions/subscriber": source})])
        function.call(0)
        function.wait_log("subscription 200")
        somebody.settimeout(1.0)
        with pytest.raises(TimeoutError):
            somebody.accept()


def test_an_internal_extension(deploy: Deploy) -> None:
    source = """
        import http.client, json, os, threading

        events = []

        def run():
            api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            api.request("POST", "/2020-01-01/extension/register", '{"events":["INVOKE"]}',
                        {"Lambda-Extension-Name": "inside"})
            answer = api.getresponse()
            answer.read()
            identifier = answer.getheader("Lambda-Extension-Identifier")
            registered.set()
            while True:
                api.request("GET", "/2020-01-01/extension/event/next",
                            headers={"Lambda-Extension-Identifier": identifier})
                events.append(json.loads(api.getresponse().read())["requestId"])

        registered = threading.Event()
        threading.Thread(target=run, daemon=True).start()
        registered.wait(5)

        def handler(event, context):
            return [context.aws_request_id, list(events)]
    """
    function = deploy(source, "internal")
    first, _ = function.call()
    second, seen = function.call()
    assert first in seen
    assert second != first


def test_one_environment_can_not_take_anothers_events(server: Server, deploy: Deploy) -> None:
    if server.page("health")["sandbox"] != "namespace":
        pytest.skip("only the namespace sandbox tells environments apart")
    victim = deploy(
        "import os\ndef handler(event, context): return os.environ['AWS_LAMBDA_RUNTIME_API']", "victim", Timeout=10
    )
    thief = deploy(
        """
        import http.client

        def handler(event, context):
            found = []
            for method, path, body in (
                ("GET", "/2018-06-01/runtime/invocation/next", None),
                ("GET", "/2018-06-01/ping", None),
                ("POST", "/2020-01-01/extension/register", '{"events":["INVOKE"]}'),
            ):
                try:
                    api = http.client.HTTPConnection(event, timeout=3)
                    api.request(method, path, body, {"Lambda-Extension-Name": "thief"})
                    found.append(api.getresponse().status)
                except Exception as error:
                    found.append(type(error).__name__)
            return found
        """,
        "thief",
        Timeout=10,
    )
    address = victim.call()
    stolen = thief.call(address)
    assert not [each for each in stolen if isinstance(each, int)], f"{address} answered another environment: {stolen}"
    assert victim.call() == address, "the victim never noticed"


def test_the_runtime_gets_sigterm_when_there_are_extensions(tmp_path: Any) -> None:
    source = """
        import signal, sys

        def leave(*_):
            print("[runtime] told to end", flush=True)
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)

        def handler(event, context):
            return 1
    """
    with serving(tmp_path / "data") as server:
        layer = publish(server, {"extensions/witness": WITNESS})
        told_to_end = server.deploy(source, "with", Layers=[layer])
        killed = server.deploy(source, "without")
        for function in (told_to_end, killed):
            function.call()
            server.lambda_.update_function_configuration(FunctionName=function.name, Description="new")
        told_to_end.wait_log(r"\[runtime\] told to end")
        assert not [e for e in server.log_events(killed.group) if "told to end" in e["message"]]
