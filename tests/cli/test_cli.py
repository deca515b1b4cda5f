"""The `lambent` command as people type it: what it prints, where, and its exit status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness import Server, wait_until
from lambent.cli.deploying import bundle
from lambent.cli.recognising import recognise

HELLO = "def lambda_handler(event, context):\n    print('hello', event)\n    return {'got': event}\n"


def lambent(*arguments: str, stdin: str | None = None, endpoint: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LAMBENT_", "AWS_"))}
    environ |= {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    if endpoint is not None:
        environ["LAMBENT_ENDPOINT"] = endpoint
    return subprocess.run(
        [sys.executable, "-m", "lambent", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environ, input=stdin,
    )  # fmt: skip


@pytest.fixture
def names(server: Server) -> Iterator[Any]:
    made: list[str] = []

    def name() -> str:
        made.append(f"cli-{uuid.uuid4().hex[:8]}")
        return made[-1]

    yield name
    for each in made:
        with contextlib.suppress(server.lambda_.exceptions.ResourceNotFoundException):
            server.lambda_.delete_function(FunctionName=each)


@pytest.fixture(scope="module")
def hello(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = f"cli-hello-{uuid.uuid4().hex[:8]}"
    path = tmp_path_factory.mktemp("hello") / f"{name}.py"
    path.write_text(HELLO + "def fail(event, context):\n    raise ValueError('no')\n")
    done = lambent("deploy", str(path), endpoint=server.url)
    assert done.returncode == 0, done.stderr
    return name


def test_deploy_a_file_a_folder_and_a_zip(server: Server, tmp_path: Path, names: Any) -> None:
    file = tmp_path / "one.py"
    file.write_text(HELLO)
    folder = tmp_path / "two"
    (folder / "lib").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    (folder / "lib" / "__init__.py").write_text("WORD = 'folder'\n")
    (folder / "app.py").write_text("from lib import WORD\nasync_ = 1\nhandler = lambda event, context: WORD\n")
    zipped = tmp_path / "three.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("main.py", "import os\ndef handler(event, context):\n    return os.environ['COLOUR']\n")
    for path, options, handler, result in (
        (file, (), "one.lambda_handler", {"got": {}}),
        (folder, (), "app.handler", "folder"),
        (zipped, ("--env", "COLOUR=blue=green", "--memory", "256", "--timeout", "9"), "main.handler", "blue=green"),
    ):
        name = names()
        done = lambent("deploy", str(path), "--name", name, *options, endpoint=server.url)
        assert done.returncode == 0, done.stderr
        arn = f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
        assert re.fullmatch(
            rf"created {arn} \(python3\.\d+, {handler}, \d+ MB, [\d,]+ bytes\) in [\d.]+ s\n", done.stdout
        )
        answer = lambent("invoke", name, endpoint=server.url)
        assert (answer.returncode, json.loads(answer.stdout)) == (0, result), answer.stderr
        configuration = server.lambda_.get_function_configuration(FunctionName=name)
        assert configuration["Handler"] == handler
    assert (configuration["MemorySize"], configuration["Timeout"]) == (256, 9)


def test_deploy_again_updates(server: Server, tmp_path: Path, names: Any) -> None:
    path, name = tmp_path / "f.py", names()
    path.write_text("def handler(event, context):\n    return 1\n")
    assert lambent("deploy", str(path), "--name", name, endpoint=server.url).stdout.startswith("created ")
    path.write_text("def handler(event, context):\n    return 2\ndef other(event, context):\n    return 3\n")
    done = lambent("deploy", str(path), "--name", name, "--json", endpoint=server.url)
    assert json.loads(done.stdout)["LastUpdateStatus"] == "Successful"
    assert lambent("invoke", name, endpoint=server.url).stdout == "2\n"
    done = lambent("deploy", str(path), "--name", name, "--handler", "f.other", endpoint=server.url)
    assert done.stdout.startswith("updated ")
    assert lambent("invoke", name, endpoint=server.url).stdout == "3\n"


def test_deploy_what_can_not_be(server: Server, tmp_path: Path, names: Any) -> None:
    done = lambent("deploy", str(tmp_path / "missing"), endpoint=server.url)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    done = lambent("deploy", str(empty), "--name", names(), endpoint=server.url)
    assert (done.returncode, done.stderr) == (
        2,
        "lambent: no handler found at the top of the code; give --handler module.function\n",
    )
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"not a zip")
    for options in ((), ("--handler", "m.h")):
        done = lambent("deploy", str(broken), "--name", names(), *options, endpoint=server.url)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("lambent: ")


def test_invoke(server: Server, hello: str, tmp_path: Path) -> None:
    done = lambent("invoke", hello, "--payload", '{"a": 1}', endpoint=server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"got": {"a": 1}}\n', "")
    file = tmp_path / "event.json"
    file.write_text("[1]")
    assert lambent("invoke", hello, "--payload", f"@{file}", endpoint=server.url).stdout == '{"got": [1]}\n'
    assert lambent("invoke", hello, "--payload", "-", stdin="7", endpoint=server.url).stdout == '{"got": 7}\n'
    done = lambent("invoke", hello, "--tail", "--endpoint", server.url)
    assert done.stdout == '{"got": {}}\n'
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["START", "hello", "END", "REPORT"]
    done = lambent("invoke", hello, "--json", "--tail", endpoint=server.url)
    told = json.loads(done.stdout)
    assert (told["status"], told["payload"], told["function_error"]) == (200, {"got": {}}, None)
    assert told["executed_version"] == "$LATEST"
    assert f"START RequestId: {told['request_id']}" in told["log"]
    done = lambent("invoke", hello, "--async", endpoint=server.url)
    assert (done.returncode, done.stdout) == (0, "")


def test_invoke_that_fails(server: Server, hello: str) -> None:
    server.lambda_.update_function_configuration(FunctionName=hello, Handler=f"{hello}.fail")
    try:
        wait_until(
            lambda: server.lambda_.get_function_configuration(FunctionName=hello)["LastUpdateStatus"] == "Successful",
            "the handler is changed",
        )
        done = lambent("invoke", hello, endpoint=server.url)
        assert done.returncode == 1
        assert json.loads(done.stdout)["errorType"] == "ValueError"
        done = lambent("invoke", hello, "--json", endpoint=server.url)
        assert (done.returncode, json.loads(done.stdout)["function_error"]) == (1, "Unhandled")
    finally:
        server.lambda_.update_function_configuration(FunctionName=hello, Handler=f"{hello}.lambda_handler")
    done = lambent("invoke", "nobody", endpoint=server.url)
    arn = "arn:aws:lambda:us-east-1:000000000000:function:nobody:$LATEST"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"lambent: ResourceNotFoundException: Function not found: {arn}\n"
    done = lambent("invoke", hello, "--payload", "{", endpoint=server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("lambent: InvalidRequestContentException: ")
    done = lambent("invoke", hello, "--payload", "@/nonexistent/file", endpoint=server.url)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_logs(server: Server, hello: str) -> None:
    lambent("invoke", hello, "--payload", '"for the log"', endpoint=server.url)
    done = wait_until(
        lambda: (found := lambent("logs", hello, endpoint=server.url)).stdout.count("for the log") and found, "the log"
    )
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} hello for the log$", done.stdout, re.MULTILINE)
    done = lambent("logs", f"/aws/lambda/{hello}", "--json", "--filter", '"for the log"', endpoint=server.url)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["message"] for event in events] == ["hello for the log\n"]
    done = lambent("logs", "nobody", endpoint=server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("lambent: ResourceNotFoundException: ")
    assert lambent("logs", hello, "--since", "soon", endpoint=server.url).returncode == 2


def test_logs_follow(server: Server, hello: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lambent", "logs", hello, "--follow", "--endpoint", server.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            for marker in ("first-marker", "second-marker"):
                answer = server.lambda_.invoke(FunctionName=hello, Payload=json.dumps(marker).encode())
                assert answer["StatusCode"] == 200
                seen = []
                for line in process.stdout:
                    seen.append(line)
                    if f"hello {marker}" in line:
                        break
                assert sum(f"hello {marker}" in line for line in seen) == 1
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
            assert "Traceback" not in errors
        finally:
            process.kill()


def test_functions_and_environments(server: Server, hello: str) -> None:
    lambent("invoke", hello, endpoint=server.url)
    listed = json.loads(lambent("functions", "--json", endpoint=server.url).stdout)
    assert hello in {function["FunctionName"] for function in listed}
    assert hello in lambent("functions", endpoint=server.url).stdout
    rows = json.loads(lambent("environments", "--json", endpoint=server.url).stdout)
    row = next(row for row in rows if row["function"] == hello)
    assert (row["version"], row["state"]) == ("$LATEST", "idle")
    assert row["invocations"] >= 1
    assert row["age_s"] >= 0
    assert re.search(r"id +function +version +state", lambent("environments", endpoint=server.url).stdout)


def test_doctor(server: Server) -> None:
    done = lambent("doctor", "--json", endpoint=server.url)
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    findings = {finding["what"]: finding for finding in told["findings"]}
    assert {"namespaces", "cgroups", "seccomp", "open files", "memory", *(f"python3.{n}" for n in range(9, 15))} <= set(
        findings
    )
    assert all(finding["level"] in {"ok", "warn"} for finding in findings.values())
    assert all(finding["advice"] for finding in findings.values() if finding["level"] == "warn")
    assert findings[f"python3.{sys.version_info[1]}"]["level"] == "ok"
    assert told["server"]["endpoint"] == server.url
    assert "namespaces" in lambent("doctor", endpoint="http://127.0.0.1:9").stdout


@pytest.mark.parametrize("command", [("invoke", "f"), ("logs", "f"), ("functions",), ("environments",)])
def test_no_server(command: tuple[str, ...]) -> None:
    done = lambent(*command, endpoint="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr == (
        "lambent: no server answers at http://127.0.0.1:9. Start one with `lambent up`, or give --endpoint.\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "99999"), "less than or equal to 65535"),
        (("--port", "x"), "valid integer"),
        (("--sandbox", "vm"), "'vm' is not a valid SandboxChoice"),
        (("--profile", "future"), "'future' is not a valid Profile"),
        (("--cpu", "lots"), "'lots' is not a valid CpuLimit"),
        (("--account-concurrency", "5"), "greater than or equal to 100"),
        (("--idle-seconds", "0"), "0.1"),
        (("--nonsense",), "No such option"),
        (("--sandbox", "oci"), "--sandbox oci is not there yet"),
        (("--host", "0.0.0.0"), "is not a loopback address"),
        (("--host", "192.0.2.1"), "is not a loopback address"),
        (("--host", "192.0.2.1", "--insecure"), "192.0.2.1:0"),
        (("--host", "no.such.host.invalid", "--insecure"), "no.such.host.invalid"),
        (("--data", "/proc/nowhere"), "/proc/nowhere"),
        (("--record", "/proc/nowhere/record"), "/proc/nowhere/record"),
        (("--upstream", "not a url"), "not a url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_up_with_options_that_can_not_be(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = lambent("up", *(("--port", "0") if "--port" not in options else ()), *(
        ("--data", str(tmp_path / "data")) if "--data" not in options else ()), *options)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_insecure_allows_other_addresses(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lambent", "up", "--port", "0", "--data", str(tmp_path / "d"), "--host", "0.0.0.0",
         "--insecure"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert re.fullmatch(r"Lambent ready on http://\S+:\d+\n", process.stdout.readline())
        process.terminate()
        assert process.wait(20) == 0


def test_help_and_version() -> None:
    done = lambent("--help")
    assert done.returncode == 0
    for command in ("up", "deploy", "invoke", "logs", "functions", "environments", "doctor"):
        assert command in done.stdout
    assert re.fullmatch(r"lambent \d+\.\d+\.\d+\S*\n", lambent("--version").stdout)


def zipped(**modules: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in modules.items():
            archive.writestr(f"{name}.py", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("modules", "handler"),
    [
        ({"lambda_function": "def lambda_handler(e, c): pass"}, "lambda_function.lambda_handler"),
        ({"other": "def handler(e, c): pass", "app": "def main(e, c): pass"}, "app.main"),
        ({"zoo": "handler = print"}, "zoo.handler"),
        ({"app": "def helper(): pass", "zoo": "def handler(e, c): pass"}, "zoo.handler"),
        ({"app": "def broken(", "zoo": "async def handler(e, c): pass"}, "zoo.handler"),
        ({"app": "def handler(e, c): pass\ndef lambda_handler(e, c): pass"}, "app.lambda_handler"),
        ({"app": "def helper(): pass"}, None),
        ({}, None),
    ],
)
def test_find_handler(modules: dict[str, str], handler: str | None) -> None:
    found = recognise(zipped(**modules))
    assert (found.handler if found else None) == handler


@pytest.mark.parametrize(
    ("files", "runtime", "handler"),
    [
        ({"bootstrap": "#!/bin/sh"}, "provided.al2023", "bootstrap"),
        ({"index.mjs": "export const handler = async () => 1"}, "nodejs", "index.handler"),
        ({"app.js": "exports.handler = () => 1", "lib/x.js": ""}, "nodejs", "app.handler"),
        (
            {"index.js": "module.exports.handler = () => 1", "app.py": "def handler(e, c): ..."},
            "python3.",
            "app.handler",
        ),
    ],
)
def test_the_runtime_is_found_from_the_code(files: dict[str, str], runtime: str, handler: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    found = recognise(buffer.getvalue())
    assert found is not None
    assert found.runtime.startswith(runtime)
    assert found.handler == handler


def test_bundle_leaves_caches_out(tmp_path: Path) -> None:
    for name in (
        "app.py",
        "lib/x.py",
        ".git/config",
        "__pycache__/app.pyc",
        "lib/__pycache__/x.pyc",
        ".venv/bin/python",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with zipfile.ZipFile(io.BytesIO(bundle(tmp_path, False))) as archive:
        assert sorted(archive.namelist()) == ["app.py", "lib/x.py"]
