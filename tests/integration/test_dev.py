"""`lambent dev` as people use it: save a file, and the new code answers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from .harness import Function, Server, wait_until
from .test_debug import DebugAdapter, free_port

PATIENCE_S = 20.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("LAMBENT_", "AWS_"))}
SOURCE = "print('loading {0}')\n\ndef handler(event, context):\n    print('called', event)\n    return '{0}'\n"


class Dev:
    """`lambent dev --json` and the events that it prints."""

    def __init__(self, path: Path, *options: str, endpoint: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lambent", "dev", str(path), "--json", "--endpoint", endpoint, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRON, "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"},
        )
        self.buffer = b""
        self.told: list[dict[str, Any]] = []

    def until(self, event: str, holds: Callable[[dict[str, Any]], Any] = lambda _: True) -> dict[str, Any]:
        """The next event of this kind of which `holds` is true."""
        end = time.monotonic() + PATIENCE_S
        while True:
            told = self._next(end)
            if told["event"] == event and holds(told):
                return told

    def _next(self, end: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
            piece = os.read(descriptor, 65_536) if ready else b""
            if not piece:
                raise AssertionError(f"not told; {self.told}\n{self.end()}")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.told.append(json.loads(line))
        return self.told[-1]

    def end(self) -> str:
        """What it says on standard error, after Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
        self.buffer += out
        return err.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        errors = self.end()
        assert (self.process.returncode, errors) == (0, "")


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    made = f"dev-{uuid.uuid4().hex[:8]}"
    yield made
    with contextlib.suppress(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.delete_function(FunctionName=made)


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    (path / "app.py").write_text(SOURCE.format("one"))
    return path


def test_from_saving_to_the_new_answer(server: Server, folder: Path, name: str) -> None:
    function = Function(server, name)
    app = folder / "app.py"
    with Dev(folder, endpoint=server.url) as dev:
        created = dev.until("created")
        assert (created["function"], created["arn"].rpartition(":")[2]) == (name, name)
        call = dev.until("call")["url"]
        with urllib.request.urlopen(call, b"{}", timeout=PATIENCE_S) as answer:
            assert json.load(answer) == "one"
        dev.until("watching")
        took_s = []
        for number in range(5):
            began = time.monotonic()
            app.write_text(SOURCE.format(f"number {number}"))
            while function.call({"n": number}) != f"number {number}":
                assert time.monotonic() < began + PATIENCE_S
            took_s.append(time.monotonic() - began)
            assert dev.until("redeployed")["changed"] == ["app.py"]
        assert min(took_s) < 0.3, took_s
        told = dev.until("log", lambda event: event["message"] == "called {'n': 4}\n".strip())
        assert "[$LATEST]" in told["stream"]
        messages = [each["message"].strip() for each in dev.told if each["event"] == "log"]
        assert "loading one" in messages
        assert any(message.startswith("START RequestId: ") for message in messages)
        app.write_text(app.read_text())  # saved, and the same
        (folder / "more.py").write_text("x = 1\n")
        assert dev.until("redeployed")["changed"] in (["more.py"], ["app.py", "more.py"])
    with pytest.raises(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.get_function(FunctionName=name)
    assert server.log_events(f"/aws/lambda/{name}") == []


def test_a_syntax_error_is_told_and_the_last_good_code_answers(server: Server, folder: Path, name: str) -> None:
    function = Function(server, name)
    app = folder / "app.py"
    with Dev(folder, endpoint=server.url) as dev:
        dev.until("watching")
        app.write_text("def handler(event, context:\n    pass\n")
        assert dev.until("error")["message"].startswith("app.py:1: SyntaxError: '(' was never closed")
        (folder / "other.py").write_text("x = 1\n")
        assert "SyntaxError" in dev.until("error")["message"]
        assert function.call({}) == "one"
        app.write_text(SOURCE.format("mended"))
        dev.until("redeployed")
        assert function.call({}) == "mended"


def test_from_nothing_to_a_function(server: Server, folder: Path, name: str) -> None:
    """What is wrong at the start can be mended too."""
    app = folder / "app.py"
    app.write_text("def handler(\n")
    with Dev(folder, endpoint=server.url) as dev:
        assert "SyntaxError" in dev.until("error")["message"]
        dev.until("watching")
        app.write_text("x = 1\n")
        assert dev.until("error")["message"].startswith("no handler found at the top of the code")
        app.write_text(SOURCE.format("there"))
        dev.until("created")
        assert Function(server, name).call({}) == "there"


def test_how_editors_save(server: Server, folder: Path, name: str) -> None:
    function = Function(server, name)
    app = folder / "app.py"
    with Dev(folder, endpoint=server.url) as dev:
        dev.until("watching")
        (folder / ".app.py.swp").write_text("editor")
        new = folder / "app.py~"
        new.write_text(SOURCE.format("renamed"))
        new.rename(app)
        assert dev.until("redeployed")["changed"] == ["app.py"]
        assert function.call({}) == "renamed"
        (folder / "lib").mkdir()
        (folder / "lib" / "__init__.py").write_text("WORD = 'library'\n")
        app.write_text("from lib import WORD\n\ndef handler(event, context):\n    return WORD\n")
        wait_until(lambda: function.invoke({}).raw == b'"library"', "the new folder is there")
        for number in range(30):
            (folder / "lib" / "__init__.py").write_text(f"WORD = {number}\n")
        wait_until(lambda: function.invoke({}).raw == b"29", "the last save answers")
    deployments = [each for each in dev.told if each["event"] == "redeployed"]
    assert len(deployments) < 10


def test_invoke_url_and_configuration(server: Server, folder: Path, name: str, tmp_path: Path) -> None:
    (folder / "app.py").write_text(
        "import os\ndef handler(event, context):\n    return [event, os.environ['WORD'], context.memory_limit_in_mb]\n"
    )
    event = tmp_path / "event.json"
    event.write_text('{"a": 1}')
    options = ("--invoke", str(event), "--url", "--env", "WORD=x=y", "--memory", "256", "--timeout", "7")
    with Dev(folder, *options, endpoint=server.url) as dev:
        url = dev.until("url")["url"]
        invoked = dev.until("invoked")
        assert (invoked["payload"], invoked["function_error"]) == ([{"a": 1}, "x=y", "256"], None)
        host = url.removeprefix("http://").rstrip("/")
        request = urllib.request.Request(server.url, headers={"Host": host})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert json.load(answer)[1] == "x=y"
        assert server.lambda_.get_function_configuration(FunctionName=name)["Timeout"] == 7
        (folder / "app.py").write_text("def handler(event, context):\n    raise KeyError(event['a'])\n")
        invoked = dev.until("invoked")
        assert (invoked["payload"]["errorType"], invoked["function_error"]) == ("KeyError", "Unhandled")


def test_a_function_that_was_there_stays(server: Server, folder: Path, deploy: Callable[..., Function]) -> None:
    function = deploy({"app.py": SOURCE.format("before")}, Handler="app.handler")
    with Dev(folder, "--name", function.name, "--timeout", "9", "--url", endpoint=server.url) as dev:
        dev.until("updated")
        dev.until("watching")
        assert function.call({}) == "one"
    assert server.lambda_.get_function_configuration(FunctionName=function.name)["Timeout"] == 9
    assert function.call({}) == "one"
    with pytest.raises(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.get_function_url_config(FunctionName=function.name)


def test_kept(server: Server, folder: Path, name: str) -> None:
    with Dev(folder, "--keep", endpoint=server.url) as dev:
        dev.until("watching")
    assert Function(server, name).call({}) == "one"


def test_limits_in_awss_words(server: Server, folder: Path, name: str) -> None:
    with Dev(folder, "--memory", "20000", endpoint=server.url) as dev:
        message = dev.until("error")["message"]
    assert message == (
        "ValidationException: 1 validation error detected: Value '20000' at 'memorySize' failed to satisfy constraint: "
        "Member must have value less than or equal to 10240"
    )


def test_node(server: Server, folder: Path, name: str) -> None:
    (folder / "app.py").unlink()
    module = folder / "node_modules" / "word"
    module.mkdir(parents=True)
    (module / "index.js").write_text("module.exports = 'from a module';\n")
    index = folder / "index.js"
    index.write_text("exports.handler = async () => require('word');\n")
    with Dev(folder, endpoint=server.url) as dev:
        assert dev.until("created")["function"] == name
        dev.until("watching")
        assert Function(server, name).call({}) == "from a module"
        index.write_text("exports.handler = async ( => 1;\n")
        assert "SyntaxError: Unexpected token '=>'" in dev.until("error")["message"]
        index.write_text("exports.handler = async () => 2;\n")
        dev.until("redeployed")
        assert Function(server, name).call({}) == 2


def test_without_a_server_it_brings_one(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Dev(folder, endpoint=nobody) as dev:
            endpoint = dev.until("server")["endpoint"]
            call = dev.until("call")["url"]
            with urllib.request.urlopen(call, b"{}", timeout=PATIENCE_S) as answer:
                assert json.load(answer) == "one"
            with urllib.request.urlopen(f"{endpoint}/_lambent/health", timeout=PATIENCE_S) as answer:
                health = json.load(answer)
            data = Path(health["data_dir"])
            assert data.is_dir()
            dev.until("watching")
        assert not data.exists()
        assert not Path(f"/proc/{health['pid']}").exists()


def test_killed_it_leaves_nothing(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dev = Dev(folder, endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        endpoint = dev.until("server")["endpoint"]
        dev.until("watching")
        with urllib.request.urlopen(f"{endpoint}/_lambent/health", timeout=PATIENCE_S) as answer:
            health = json.load(answer)
        dev.process.kill()
        dev.process.communicate()
    wait_until(lambda: not Path(f"/proc/{health['pid']}").exists(), "the server ends")
    wait_until(lambda: not Path(health["data_dir"]).exists(), "its folder is removed")


def test_elsewhere_nobody_starts_one(folder: Path) -> None:
    dev = Dev(folder, endpoint="http://lambent.invalid:9400")
    dev.process.wait(PATIENCE_S)
    assert "no server answers at http://lambent.invalid:9400" in dev.end()
    assert dev.process.returncode == 1


def test_for_people_in_a_pipe(server: Server, folder: Path, name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lambent", "dev", str(folder), "--endpoint", server.url],
        stdout=subprocess.PIPE,
        env=ENVIRON,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("created in ")
    assert f"  {name}: python3." in lines[0]
    assert lines[2] == f"watching {folder}; Ctrl-C ends\n"
    assert "\x1b" not in "".join(lines)
    process.stdout.close()  # who reads has gone
    (folder / "app.py").write_text(SOURCE.format("two"))
    assert process.wait(PATIENCE_S) == 0
    with pytest.raises(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.get_function(FunctionName=name)


def test_debugging(server: Server, folder: Path, name: str, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text('{"a": 1}')
    port = free_port()
    options = ("--invoke", str(event), "--debug-port", str(port), "--wait-for-debugger", "--timeout", "1")
    with Dev(folder, *options, endpoint=server.url) as dev:
        told = dev.until("debugger")
        assert told["port"] == port
        root = told["code"].partition(" (")[0]
        dev.until("log", lambda event: "Waiting for a debugger" in event["message"])
        with contextlib.closing(DebugAdapter(port)) as client:
            client.attach(f"{root}/app.py", 5)
            thread, frame = client.stopped()
            assert client.evaluate("event", frame) == "{'a': 1}"
            client.request("continue", threadId=thread)
            assert dev.until("invoked")["payload"] == "one"
    assert server.page("debug")["functions"] == []


def test_debugging_what_can_not_be(server: Server, folder: Path, name: str) -> None:
    with Dev(folder, "--debug-port", str(server.port), endpoint=server.url) as dev:
        message = f"--debug-port: {server.port} is not a port that a debugger can have."
        assert dev.until("error")["message"] == message
