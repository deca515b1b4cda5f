"""How calls fail: the payload, the log and the environment afterwards, to the letter of the fact sheet (5.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from .harness import Function, Reply, Server

Deploy = Callable[..., Function]


def failed(function: Function, payload: Any = None) -> Reply:
    reply = function.invoke(payload)
    assert reply.status == 200
    assert reply.error == "Unhandled", reply.raw
    assert reply.version == "$LATEST"
    return reply


def platform_error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}, separators=(",", ":")).encode()


def exited(reply: Reply, words: str) -> bytes:
    return platform_error("Runtime.ExitError", f"RequestId: {reply.request_id} Error: {words}")


def test_exception(deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    raise ValueError('bad ' + event)\n")
    reply = failed(function, "luck")
    assert list(reply.value.items()) == [
        ("errorMessage", "bad luck"),
        ("errorType", "ValueError"),
        ("requestId", reply.request_id),
        (
            "stackTrace",
            ["  File \"/var/task/m.py\", line 2, in handler\n    raise ValueError('bad ' + event)\n"],
        ),
    ]
    lines = reply.log.splitlines()
    assert lines[1] == "[ERROR] ValueError: bad luck"
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[3] == '\u00a0\u00a0File "/var/task/m.py", line 2, in handler'
    assert "Status" not in reply.report
    messages = function.log_of(reply)
    (event,) = [message for message in messages if message.startswith("[ERROR]")]
    assert event.count("\n") >= 3  # one event for the whole traceback
    again = failed(function, "day")
    assert "Init Duration" in reply.report
    assert "Init Duration" not in again.report  # the environment lives on


@pytest.mark.parametrize(
    ("source", "handler", "message", "kind"),
    [
        ("x = 1", "n.handler", "Unable to import module 'n': No module named 'n'", "Runtime.ImportModuleError"),
        (
            "import no_such_thing",
            "m.handler",
            "Unable to import module 'm': No module named 'no_such_thing'",
            "Runtime.ImportModuleError",
        ),
        ("x = 1", "m.handler", "Handler 'handler' missing on module 'm'", "Runtime.HandlerNotFound"),
        (
            "x = 1",
            "m",
            "Bad handler 'm': not enough values to unpack (expected 2, got 1)",
            "Runtime.MalformedHandlerName",
        ),
    ],
    ids=["no module", "no import", "no handler", "no dot"],
)
def test_what_can_not_be_loaded(deploy: Deploy, source: str, handler: str, message: str, kind: str) -> None:
    reply = failed(deploy(source, Handler=handler))
    assert reply.value == {"errorMessage": message, "errorType": kind, "requestId": "", "stackTrace": []}
    assert list(reply.value) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert (reply.report["Status"], reply.report["Error Type"]) == ("error", kind)


def test_syntax_error(deploy: Deploy) -> None:
    reply = failed(deploy("def handler(event, context):\n    return (\n"))
    found = reply.value
    assert found["errorMessage"] == "Syntax error in module 'm': '(' was never closed (m.py, line 2)"
    assert found["errorType"] == "Runtime.UserCodeSyntaxError"
    assert found["stackTrace"] == ['  File "/var/task/m.py" Line 2\n        return (\n']


def test_module_level_exception_runs_user_code_twice(deploy: Deploy) -> None:
    function = deploy("print('module runs')\nraise Exception('Runtime startup fails')\n")
    reply = failed(function)
    assert reply.value["errorMessage"] == "Runtime startup fails"
    assert reply.value["errorType"] == "Exception"
    assert reply.value["requestId"] == ""
    assert reply.value["stackTrace"]
    messages = function.log_of(reply)
    assert messages.count("module runs\n") == 2
    reports = [message for message in messages if message.startswith("INIT_REPORT")]
    assert [re.sub(r"[\d.]+ ms", "N ms", report) for report in reports] == [
        "INIT_REPORT Init Duration: N ms\tPhase: init\tStatus: error\tError Type: Runtime.Unknown\n",
        "INIT_REPORT Init Duration: N ms\tPhase: invoke\tStatus: error\tError Type: Runtime.Unknown\n",
    ]
    assert messages.index(reports[1]) < next(n for n, text in enumerate(messages) if text.startswith("START"))
    assert "Init Duration" not in reply.report


def test_init_that_fails_once_succeeds_inside_the_invoke(deploy: Deploy) -> None:
    function = deploy(
        """
        import os

        if not os.path.exists("/tmp/tried"):
            open("/tmp/tried", "w").close()
            raise RuntimeError("first time")

        def handler(event, context):
            return "second time"
        """
    )
    reply = function.invoke()
    assert (reply.error, reply.value) == (None, "second time")
    assert "Init Duration" not in reply.report
    messages = function.log_of(reply)
    assert sum(message.startswith("INIT_REPORT") and "Phase: init" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("result", "kind"),
    [("{1, 2}", "set"), ("object()", "object"), ("open('/dev/null')", "TextIOWrapper")],
)
def test_results_that_are_not_json(deploy: Deploy, result: str, kind: str) -> None:
    reply = failed(deploy(f"def handler(event, context):\n    return {result}\n"))
    assert reply.value == {
        "errorMessage": f"Unable to marshal response: Object of type {kind} is not JSON serializable",
        "errorType": "Runtime.MarshalError",
        "requestId": reply.request_id,
        "stackTrace": [],
    }


def test_bytes_pass_as_they_are(deploy: Deploy) -> None:
    """AWS's runtime client sends them as application/unknown, untouched."""
    reply = deploy("def handler(event, context):\n    return bytes(range(256))\n").invoke()
    assert (reply.error, reply.raw) == (None, bytes(range(256)))


def test_response_sizes(deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    return 'x' * event\n")
    most = 6_291_556 - 2  # the quotes
    assert len(function.call(most)) == most
    reply = failed(function, most + 1)
    assert reply.raw == (
        b'{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).",'
        b'"errorType":"Function.ResponseSizeTooLarge"}'
    )
    assert reply.report["Error Type"] == "Function.ResponseSizeTooLarge"
    assert len(function.call(10)) == 10


def test_timeout_resets_the_environment_and_keeps_its_tmp(server: Server, deploy: Deploy) -> None:
    function = deploy(
        """
        import os, time

        count = 0

        def handler(event, context):
            global count
            count += 1
            kept = os.path.exists("/tmp/kept")
            open("/tmp/kept", "w").close()
            if event == "hang":
                print("hanging")
                time.sleep(30)
            return [count, kept, context.log_stream_name]
        """,
        Timeout=1,
    )
    first = function.call()
    assert first[:2] == [1, False]
    reply = failed(function, "hang")
    assert reply.raw == platform_error(
        "Sandbox.Timedout", f"RequestId: {reply.request_id} Error: Task timed out after 1.00 seconds"
    )
    assert reply.log.splitlines()[1] == "hanging"
    assert reply.report["Duration"] == "1000.00 ms"
    assert reply.report["Billed Duration"] == "1000 ms"
    assert reply.log.endswith("\tStatus: timeout\n")
    after = function.invoke()
    assert after.value == [1, True, first[2]]
    assert "Init Duration" not in after.report
    assert function.call() == [2, True, first[2]]
    assert len(server.environments(function)) == 1


def test_timeout_of_a_cold_call_bills_its_init(deploy: Deploy) -> None:
    function = deploy("import time\ntime.sleep(0.3)\ndef handler(event, context):\n    time.sleep(30)\n", Timeout=1)
    report = failed(function).report
    assert report["Duration"] == "1000.00 ms"
    assert 300 <= float(report["Init Duration"].split()[0]) < 900
    assert 1_300 <= int(report["Billed Duration"].split()[0]) < 1_900
    assert report["Status"] == "timeout"


EXITS = {
    "sys.exit()": "Runtime exited without providing a reason",
    "sys.exit(0)": "Runtime exited without providing a reason",
    "sys.exit(7)": "Runtime exited with error: exit status 7",
    "sys.exit('reason')": "Runtime exited with error: exit status 1",
    "os._exit(0)": "Runtime exited without providing a reason",
    "os._exit(3)": "Runtime exited with error: exit status 3",
    "os.kill(os.getpid(), signal.SIGKILL)": "Runtime exited with error: signal: killed",
    "os.kill(os.getpid(), signal.SIGTERM)": "Runtime exited with error: signal: terminated",
    "os.kill(os.getpid(), 40)": "Runtime exited with error: signal: signal 40",
    "os.abort()": "Runtime exited with error: signal: aborted",
    "ctypes.string_at(0)": "Runtime exited with error: signal: segmentation fault",
}


@pytest.fixture(scope="module")
def exiting(server: Server) -> Function:
    return server.deploy(
        """
        import ctypes, os, signal, sys

        count = 0

        def handler(event, context):
            global count
            count += 1
            if event:
                eval(event)
            return [count, context.log_stream_name]
        """,
        "exiting",
    )


@pytest.mark.parametrize("expression", EXITS)
def test_process_exits(exiting: Function, expression: str) -> None:
    stream = exiting.call()[1]
    reply = failed(exiting, expression)
    assert reply.raw == exited(reply, EXITS[expression])
    assert reply.log.endswith("\tStatus: error\tError Type: Runtime.ExitError\n")
    assert f"END RequestId: {reply.request_id}\n" in reply.log
    assert exiting.call() == [1, stream]  # the same environment, begun anew


def test_exit_during_init(deploy: Deploy) -> None:
    reply = failed(deploy("import sys\nsys.exit(0)\n"))
    assert reply.value["errorType"] == "Runtime.ExitError"
    assert reply.raw == exited(reply, "Runtime exited without providing a reason")
    reply = failed(deploy("import os\nos._exit(5)\n"))
    assert reply.raw == exited(reply, "Runtime exited with error: exit status 5")


def test_out_of_memory(deploy: Deploy) -> None:
    function = deploy(
        """
        def handler(event, context):
            kept = bytearray(event << 20)
            kept[::4096] = b"x" * len(kept[::4096])
            return len(kept) >> 20
        """
    )
    assert function.call(60) == 60
    reply = failed(function, 200)
    assert reply.raw == platform_error(
        "Runtime.OutOfMemory", f"RequestId: {reply.request_id} Error: Runtime exited with error: signal: killed"
    )
    assert reply.report["Max Memory Used"] == reply.report["Memory Size"] == "128 MB"
    assert reply.log.endswith("\tStatus: error\tError Type: Runtime.OutOfMemory\n")
    assert function.call(60) == 60
    # Killed by itself is no lack of memory, also after there was one.
    reply = failed(function, -1)
    assert reply.value["errorType"] == "ValueError"


def test_out_of_memory_in_a_child_is_the_childs(deploy: Deploy) -> None:
    function = deploy(
        """
        import subprocess, sys

        def handler(event, context):
            code = "x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096])"
            return subprocess.run([sys.executable, "-c", code]).returncode
        """,
        MemorySize=256,
    )
    reply = function.invoke()
    assert reply.error is None or reply.value["errorType"] == "Runtime.OutOfMemory"


def test_init_over_ten_seconds_is_tried_again_in_the_invoke(deploy: Deploy) -> None:
    function = deploy(
        """
        import os, time

        if not os.path.exists("/tmp/tried"):
            open("/tmp/tried", "w").close()
            time.sleep(20)

        def handler(event, context):
            return "late"
        """,
        Timeout=5,
    )
    reply = function.invoke()
    assert (reply.error, reply.value) == (None, "late")
    messages = function.log_of(reply)
    (report,) = [message for message in messages if message.startswith("INIT_REPORT")]
    match = re.fullmatch(r"INIT_REPORT Init Duration: ([\d.]+) ms\tPhase: init\tStatus: timeout\n", report)
    assert match is not None
    assert 10_000 <= float(match[1]) < 10_600


def test_second_init_is_bounded_by_the_function_timeout(deploy: Deploy) -> None:
    function = deploy(
        """
        import os, time

        if os.path.exists("/tmp/tried"):
            time.sleep(20)
        open("/tmp/tried", "w").close()
        raise Exception("first")
        """,
        Timeout=1,
    )
    reply = failed(function)
    assert reply.value["errorType"] == "Sandbox.Timedout"
    messages = function.log_of(reply)
    assert any("Phase: invoke\tStatus: timeout" in message for message in messages)


def test_recursion_and_deep_results(deploy: Deploy) -> None:
    function = deploy(
        """
        def handler(event, context):
            if event == "deep":
                found = []
                for _ in range(100_000):
                    found = [found]
                return found
            return handler(event, context)
        """
    )
    assert failed(function, "recurse").value["errorType"] == "RecursionError"
    assert failed(function, "deep").value["errorType"] in {"Runtime.MarshalError", "RecursionError"}


def test_errors_with_odd_texts(deploy: Deploy) -> None:
    function = deploy("def handler(event, context):\n    raise type(event['kind'], (Exception,), {})(event['text'])\n")
    for kind, text in (("Größe", "naïve ☃ \u0000 \n line"), ("K" * 300, "x" * 100_000), ("E", "")):
        reply = failed(function, {"kind": kind, "text": text})
        assert (reply.value["errorType"], reply.value["errorMessage"]) == (kind, text)


def test_what_a_function_left_running_ends_with_its_runtime_process(deploy: Deploy) -> None:
    """A reset leaves nothing of the old runtime process, though the sandbox and /tmp live on."""
    function = deploy(
        """
        import os, subprocess

        def handler(event, context):
            if event == "leave":
                subprocess.Popen(["/bin/sleep", "4243"], start_new_session=True)
                open("/tmp/left", "w").close()
                os._exit(7)
            running = []
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    with open(f"/proc/{pid}/cmdline") as file:
                        running.append(file.read())
            return [os.path.exists("/tmp/left"), sum("4243" in command for command in running)]
        """
    )
    assert function.invoke("leave").error == "Unhandled"
    assert function.call("look") == [True, 0]
