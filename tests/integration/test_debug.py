"""Debuggers: a real client on the port of one environment, while others of the same function run on."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .harness import Function, Server, serving, wait_until

PATIENCE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(server: Server, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    """POST to /_lambent/debug: status and answer."""
    request = urllib.request.Request(
        f"{server.url}/_lambent/debug",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def debug(function: Function, port: int | None, wait: bool = False) -> None:
    arn = function.server.lambda_.get_function_configuration(FunctionName=function.name)["FunctionArn"]
    status, answer = ask(function.server, {"function": arn, "port": port, "wait": wait})
    assert status == 200, answer


def connected(port: int) -> socket.socket:
    def attempt() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        except ConnectionRefusedError:
            return None

    found: socket.socket = wait_until(attempt, f"something listens on {port}")
    return found


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass
    return True


class DebugAdapter:
    """A client of the Debug Adapter Protocol."""

    def __init__(self, port: int) -> None:
        self.socket = connected(port)
        self.file = self.socket.makefile("rb")
        self.sequence = 0
        self.waiting: list[dict[str, Any]] = []

    def send(self, command: str, **arguments: Any) -> int:
        self.sequence += 1
        message = {"seq": self.sequence, "type": "request", "command": command, "arguments": arguments}
        raw = json.dumps(message).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))
        return self.sequence

    def request(self, command: str, **arguments: Any) -> Any:
        sequence = self.send(command, **arguments)
        answer = self.expect(lambda message: message.get("request_seq") == sequence)
        assert answer["success"], answer
        return answer.get("body")

    def event(self, name: str) -> Any:
        return self.expect(lambda message: message.get("event") == name).get("body")

    def expect(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for message in self.waiting:
            if holds(message):
                self.waiting.remove(message)
                return message
        while not holds(message := self._read()):
            self.waiting.append(message)
        return message

    def _read(self) -> dict[str, Any]:
        length = 0
        while line := self.file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the debugger closed the connection"
        found: dict[str, Any] = json.loads(self.file.read(length))
        return found

    def attach(self, path: str, line: int) -> None:
        self.request("initialize", adapterID="test", clientID="test", pathFormat="path", linesStartAt1=True)
        attach = self.send("attach", justMyCode=True)
        self.event("initialized")
        answer = self.request("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}])
        assert [each["verified"] for each in answer["breakpoints"]] == [True]
        self.request("configurationDone")
        assert self.expect(lambda message: message.get("request_seq") == attach)["success"]

    def stopped(self) -> tuple[int, int]:
        """Wait for a breakpoint: thread and frame."""
        thread = self.event("stopped")["threadId"]
        return thread, self.request("stackTrace", threadId=thread)["stackFrames"][0]["id"]

    def evaluate(self, expression: str, frame: int) -> str:
        return str(self.request("evaluate", expression=expression, frameId=frame)["result"])

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Inspector:
    """A client of Node.js's inspector: the Chrome DevTools Protocol on a WebSocket."""

    def __init__(self, port: int) -> None:
        connected(port).close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE_S) as answer:
            path = json.load(answer)[0]["webSocketDebuggerUrl"].partition(f":{port}")[2]
        self.socket = connected(port)
        self.file = self.socket.makefile("rb")
        self.number = 0
        self.waiting: list[dict[str, Any]] = []
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        raw = json.dumps({"id": self.number, "method": method, "params": parameters}).encode()
        head = b"\x81" + (bytes([0x80 | len(raw)]) if len(raw) < 126 else b"\xfe" + struct.pack(">H", len(raw)))
        self.socket.sendall(head + b"\0\0\0\0" + raw)  # masked with zeros
        number = self.number
        answer = self.expect(lambda message: message.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def event(self, method: str) -> Any:
        return self.expect(lambda message: message.get("method") == method)["params"]

    def expect(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for message in self.waiting:
            if holds(message):
                self.waiting.remove(message)
                return message
        while not holds(message := self._read()):
            self.waiting.append(message)
        return message

    def _read(self) -> dict[str, Any]:
        _, length = self.file.read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self.file.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.file.read(8))
        found: dict[str, Any] = json.loads(self.file.read(length))
        return found

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def calls() -> Iterator[Callable[..., concurrent.futures.Future[Any]]]:
    """Invoke beside the test."""
    pool = concurrent.futures.ThreadPoolExecutor(4)
    yield lambda function, payload: pool.submit(function.call, payload)
    pool.shutdown(wait=False, cancel_futures=True)


def task_root(function: Function) -> str:
    """Where the debugger finds the code."""
    return str(function.call({"root": True}))


PYTHON = """\
import os
def handler(event, context):
    if event.get("root"):
        return os.environ["LAMBDA_TASK_ROOT"]
    doubled = event["n"] * 2
    left = context.get_remaining_time_in_millis()
    return [doubled, os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], left > 3_600_000]
"""


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_breakpoint_in_python(
    deploy: Callable[..., Function], calls: Callable[..., concurrent.futures.Future[Any]], wrapped: bool
) -> None:
    files: dict[str, bytes | str] = {"m.py": PYTHON}
    configuration: dict[str, Any] = {"Timeout": 1}
    if wrapped:
        files["wrap"] = '#!/bin/sh\nexec "$@"\n'
        configuration["Environment"] = {"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrap"}}
    function = deploy(files, "debugged", **configuration)
    port = free_port()
    debug(function, port)
    path = f"{task_root(function)}/m.py"
    client = DebugAdapter(port)
    with contextlib.closing(client):
        client.attach(path, 6)
        paused = calls(function, {"n": 21})
        thread, frame = client.stopped()
        assert client.evaluate("doubled", frame) == "42"
        doubled, other, _ = function.call({"n": 1})
        assert doubled == 2, "another environment answers meanwhile"
        second = function.invoke({"n": 2})
        assert second.value == [4, other, False], "the others have their timeout"
        client.evaluate("__import__('time').sleep(1.2)", frame)  # longer than the timeout
        client.evaluate("doubled := 43", frame)
        assert not paused.done()
        client.request("continue", threadId=thread)
        value, stream, has_time = paused.result(PATIENCE_S)
        assert (value in (42, 43), stream != other, has_time) == (True, True, True)
        assert not any(row["frozen"] for row in function.server.environments(function) if row["log_stream"] == stream)
        again = calls(function, {"n": 3})
        thread, frame = client.stopped()  # it is preferred, although the other one has served too
        assert client.evaluate("event['n']", frame) == "3"
        client.request("continue", threadId=thread)
        assert again.result(PATIENCE_S)[1] == stream
        abandoned = calls(function, {"n": 5})
        client.stopped()
    assert abandoned.result(PATIENCE_S)[0] == 10, "without its debugger it goes on"
    assert any("Debugger listening on" in message for message in function.wait_log("Debugger listening"))


def test_init_waits_for_the_debugger_and_the_next_environment_takes_over(
    deploy: Callable[..., Function], calls: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    source = PYTHON + "    \nif True:\n    top = 'of the module'\n"
    function = deploy(source, "waits", Timeout=2)
    port = free_port()
    debug(function, port, wait=True)
    root = "/var/task" if function.server.page("health")["sandbox"] == "namespace" else None
    for number in (1, 2):
        call = calls(function, {"n": number})
        if root is None:
            pytest.skip("code has no path that is known beforehand")
        with contextlib.closing(DebugAdapter(port)) as client:
            client.attach(f"{root}/m.py", 10)
            thread, frame = client.stopped()
            assert client.evaluate("__name__", frame) == "'m'"
            client.request("continue", threadId=thread)
            assert call.result(PATIENCE_S)[0] == 2 * number
        function.update(source.replace("of the module", f"number {number}"))  # the environment ends
        wait_until(lambda: not listens(port), "its processes are gone")
    debug(function, None)
    wait_until(lambda: not function.server.environments(function), "the debugged environment ends")
    assert function.call({"n": 5})[2] is False


def test_a_reset_environment_listens_again(
    deploy: Callable[..., Function], calls: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    source = PYTHON.replace("    doubled", "    if event.get('exit'):\n        os._exit(3)\n    doubled", 1)
    function = deploy(source, "exits")
    port = free_port()
    debug(function, port)
    path = f"{task_root(function)}/m.py"
    assert function.invoke({"exit": True}).error is not None
    stream = function.call({"n": 1})[1]
    with contextlib.closing(DebugAdapter(port)) as client:
        client.attach(path, 8)
        call = calls(function, {"n": 4})
        thread, frame = client.stopped()
        assert client.evaluate("doubled", frame) == "8"
        client.request("continue", threadId=thread)
        assert call.result(PATIENCE_S)[1] == stream


def test_idle_environments_give_way(deploy: Callable[..., Function]) -> None:
    """What runs already when debugging begins does not swallow the breakpoints."""
    function = deploy(PYTHON, "warm")
    before = function.call({"n": 1})[1]
    port = free_port()
    debug(function, port)
    wait_until(lambda: not function.server.environments(function), "the idle environment ends")
    assert function.call({"n": 1})[1] != before
    connected(port).close()


def test_a_port_in_use(deploy: Callable[..., Function]) -> None:
    function = deploy(PYTHON, "taken")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        debug(function, port)
        assert function.call({"n": 1})[0] == 2
        function.wait_log(f"LAMBENT_WARNING: port {port} is in use; this environment runs without a debugger")
        debug(function, None)


NODE = """\
exports.handler = async (event, context) => {
  const doubled = event.n * 2;
  return [doubled, context.logStreamName];
};
"""


def test_a_breakpoint_in_node(
    deploy: Callable[..., Function], calls: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    function = deploy({"index.js": NODE}, "node", Runtime="nodejs20.x", Handler="index.handler", Timeout=1)
    port = free_port()
    debug(function, port)
    stream = function.call({"n": 1})[1]
    with contextlib.closing(Inspector(port)) as client:
        client.call("Runtime.enable")
        client.call("Debugger.enable")
        client.call("Debugger.setBreakpointByUrl", lineNumber=2, urlRegex=r".*index\.js")
        paused = calls(function, {"n": 21})
        frame = client.event("Debugger.paused")["callFrames"][0]["callFrameId"]
        result = client.call("Debugger.evaluateOnCallFrame", callFrameId=frame, expression="doubled")
        assert result["result"]["value"] == 42
        value, other = function.call({"n": 2})
        assert (value, other != stream) == (4, True), "another environment answers meanwhile"
        busy = "const end = Date.now() + 1200; while (Date.now() < end);"
        client.call("Debugger.evaluateOnCallFrame", callFrameId=frame, expression=busy)
        assert not paused.done()
        client.call("Debugger.resume")
        assert paused.result(PATIENCE_S) == [42, stream]


def test_node_waits_for_the_debugger(
    deploy: Callable[..., Function], calls: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    function = deploy({"index.js": NODE}, "node", Runtime="nodejs20.x", Handler="index.handler", Timeout=1)
    port = free_port()
    debug(function, port, wait=True)
    call = calls(function, {"n": 4})
    with contextlib.closing(Inspector(port)) as client:
        client.call("Debugger.enable")
        client.call("Debugger.setBreakpointByUrl", lineNumber=1, urlRegex=r".*index\.js")
        client.call("Runtime.runIfWaitingForDebugger")
        while True:
            stopped = client.event("Debugger.paused")
            client.call("Debugger.resume")
            if stopped["hitBreakpoints"]:
                break
        assert call.result(PATIENCE_S)[0] == 8


def test_what_is_refused(server: Server, deploy: Callable[..., Function]) -> None:
    function, other = deploy(PYTHON, "one"), deploy(PYTHON, "two")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:"
    port = free_port()
    debug(function, port)
    assert ask(server, {"function": arn + other.name, "port": port}) == (
        409,
        {"message": f"Port {port} is where {arn}{function.name} is debugged."},
    )
    debug(function, None)
    assert ask(server, {"function": arn + "missing", "port": port})[0] == 404
    assert ask(server, {"function": arn + other.name, "port": server.port})[0] == 400
    assert ask(server, {"function": arn + other.name, "port": 0})[0] == 400
    assert ask(server, {"function": arn + other.name, "port": "x"})[0] == 400
    assert ask(server, {"function": "?", "port": port})[0] == 400
    assert ask(server, {"function": arn + other.name, "port": port}, Content_Type="text/plain")[0] == 415
    assert ask(server, {"function": arn + other.name, "port": port}, Host="evil.example")[0] == 403
    with urllib.request.urlopen(f"{server.url}/_lambent/debug", timeout=PATIENCE_S) as answer:
        assert json.load(answer) == {"functions": [], "debugpy": True}


def test_refused_where_others_could_reach_it(tmp_path: Any) -> None:
    with serving(tmp_path / "data", "--host", "0.0.0.0", "--insecure", "--parked", "0") as open_server:
        open_server.url = f"http://127.0.0.1:{open_server.port}"
        status, answer = ask(open_server, {"function": "f", "port": 5678})
        assert (status, answer["message"]) == (
            403,
            "The server listens on 0.0.0.0: functions are debugged only where it is a loopback address.",
        )
