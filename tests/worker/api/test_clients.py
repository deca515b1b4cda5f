"""The clients that people run: AWS's Python runtime client, and the shell and curl of AWS's own tutorial."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.worker.api.rig import ARN, REQUEST_ID, Rig, invocation

#: The tutorial's bootstrap, with its handler in the same file.
BOOTSTRAP = """
set -eu
headers=$(mktemp)
while true; do
  event=$(curl -sS -LD "$headers" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next") || exit 0
  id=$(grep -Fi Lambda-Runtime-Aws-Request-Id "$headers" | tr -d '[:space:]' | cut -d: -f2)
  curl -sS -X POST "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response" \\
    -d "echo $event" > /dev/null
done
"""
HANDLER = """
def handle(event, context):
    if event == "fail":
        raise ValueError("no")
    return {"event": event, "id": context.aws_request_id, "arn": context.invoked_function_arn}
"""


def invoke(rig: Rig, payload: bytes) -> tuple[str, ...]:
    rig.do(rig.api.invoke, invocation(payload), 4_000_000_000_000)
    outcome: tuple[str, ...] = rig.owner.take()
    assert rig.owner.take() == ("settled",)
    return outcome


@pytest.fixture
def started(rig: Rig) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this host")
def test_shell_and_curl(rig: Rig, started: list[subprocess.Popen[bytes]]) -> None:
    environment = {"AWS_LAMBDA_RUNTIME_API": rig.api.address, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    started.append(subprocess.Popen(["sh", "-c", BOOTSTRAP], env=environment))
    assert rig.owner.take() == ("settled",)
    for payload in (b"one", b"two", b"x" * 100_000):
        name, body, content_type = invoke(rig, payload)
        assert (name, body) == ("response", b"echo " + payload)
        assert content_type == "application/x-www-form-urlencoded"


def test_awslambdaric(rig: Rig, started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HANDLER)
    environment = {
        "AWS_LAMBDA_RUNTIME_API": rig.api.address,
        "LAMBDA_TASK_ROOT": str(tmp_path),
        "_HANDLER": "app.handle",
        "AWS_LAMBDA_FUNCTION_NAME": "orders",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_LOG_GROUP_NAME": "g",
        "AWS_LAMBDA_LOG_STREAM_NAME": "s",
    }
    command = [sys.executable, "-m", "awslambdaric", "app.handle"]
    started.append(
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    assert rig.owner.calls.get(timeout=20) == ("settled",)
    for number in range(3):
        name, body, content_type = invoke(rig, json.dumps({"n": number}).encode())
        assert (name, content_type) == ("response", "application/json")
        assert json.loads(body) == {"event": {"n": number}, "id": REQUEST_ID, "arn": ARN}
    name, error_type, body = invoke(rig, b'"fail"')
    assert (name, error_type) == ("error", "Runtime.Unknown")  # it says ValueError, which is not of AWS's form
    assert json.loads(body)["errorType"] == "ValueError"
    cause = rig.do(lambda: rig.api.last_error_cause)
    assert json.loads(cause)["exceptions"][0]["type"] == "ValueError"
