"""What functions write, read back with the clients that people use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .harness import Function, Reply, Server

Deploy = Callable[..., Function]
AWS = Path(sys.executable).parent / "aws"
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def between(messages: list[str], reply: Reply) -> list[str]:
    """What stands between START and END of one invocation."""
    start = next(n for n, text in enumerate(messages) if text.startswith(f"START RequestId: {reply.request_id}"))
    end = next(n for n, text in enumerate(messages) if text.startswith(f"END RequestId: {reply.request_id}"))
    return messages[start + 1 : end]


def aws(server: Server, *arguments: str) -> Any:
    environ = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "anything",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_PAGER": "",
    }
    done = subprocess.run(
        [str(AWS), "--endpoint-url", server.url, "--output", "json", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def test_output_keeps_its_order(deploy: Deploy) -> None:
    function = deploy(
        """
        import os, subprocess, sys
        print("at init")

        def handler(event, context):
            print("one")
            print("two", file=sys.stderr)
            os.write(1, b"three\\n")
            subprocess.run(["/bin/sh", "-c", "echo four; echo five >&2"], check=True)
            print("six\\rseven")
            print("ünï ☃")
            os.write(1, b"caf\\xe9\\n")
            print()
            sys.stdout.write("no newline")
        """
    )
    reply = function.invoke()
    messages = function.log_of(reply)
    assert messages[1] == "at init\n"
    assert between(messages, reply) == [
        "one\n", "two\n", "three\n", "four\n", "five\n", "six\rseven\n", "ünï ☃\n", "caf\ufffd\n", "\n", "no newline",
    ]  # fmt: skip


def test_text_logging(deploy: Deploy) -> None:
    function = deploy(
        """
        import logging
        logger = logging.getLogger()
        logger.setLevel("INFO")

        def handler(event, context):
            logger.debug("not shown")
            logger.info("first\\nsecond")
            logging.getLogger("named").error("failed: %s", 7)
        """
    )
    reply = function.invoke()
    first, second = between(function.log_of(reply), reply)
    assert re.fullmatch(rf"\[INFO\]\t{STAMP}\t{reply.request_id}\tfirst\nsecond\n", first)
    assert re.fullmatch(rf"\[ERROR\]\t{STAMP}\t{reply.request_id}\tfailed: 7\n", second)


def test_json_logging(deploy: Deploy) -> None:
    function = deploy(
        """
        import logging
        logger = logging.getLogger()

        def handler(event, context):
            print("plain")
            logger.info("hello %s", "you", extra={"order": 5})
            logger.debug("hidden")
            if event:
                raise KeyError("k")
        """,
        LoggingConfig={"LogFormat": "JSON"},
    )
    reply = function.invoke()
    messages = function.log_of(reply, '"platform.report"')
    assert "plain\n" in messages
    records = [json.loads(message) for message in messages if message.startswith("{")]
    platform = {record["type"]: record for record in records if "type" in record}
    assert list(platform) == ["platform.initStart", "platform.start", "platform.report"]
    assert all(re.fullmatch(STAMP, record["time"]) for record in platform.values())
    started = platform["platform.initStart"]["record"]
    assert (started["functionName"], started["functionVersion"]) == (function.name, "$LATEST")
    assert (started["initializationType"], started["phase"]) == ("on-demand", "init")
    assert platform["platform.start"]["record"] == {"requestId": reply.request_id, "version": "$LATEST"}
    report = platform["platform.report"]["record"]
    assert (report["requestId"], report["status"]) == (reply.request_id, "success")
    assert set(report["metrics"]) == {
        "durationMs", "billedDurationMs", "memorySizeMB", "maxMemoryUsedMB", "initDurationMs",
    }  # fmt: skip
    assert report["metrics"]["memorySizeMB"] == 128
    (record,) = [record for record in records if "message" in record]
    assert record.pop("timestamp")
    assert record == {
        "level": "INFO", "message": "hello you", "logger": "root", "requestId": reply.request_id, "order": 5,
    }  # fmt: skip

    broken = function.invoke("boom")
    assert broken.error == "Unhandled"
    messages = function.log_of(broken, '"platform.report"')
    (error,) = [json.loads(message) for message in messages if '"stackTrace"' in message]
    assert (error["level"], error["errorType"], error["requestId"]) == ("ERROR", "KeyError", broken.request_id)


def test_json_levels(deploy: Deploy) -> None:
    levels = {"LogFormat": "JSON", "ApplicationLogLevel": "ERROR", "SystemLogLevel": "WARN"}
    function = deploy(
        """
        import logging

        def handler(event, context):
            logging.getLogger().warning("hidden")
            logging.getLogger().error("shown")
            print("raw")
        """,
        LoggingConfig=levels,
    )
    function.invoke()
    messages = function.wait_log("raw")
    assert [json.loads(message)["message"] for message in messages if message.startswith("{")] == ["shown"]


def test_output_after_the_answer_comes_with_the_next_invocation(deploy: Deploy) -> None:
    """The environment is frozen in between; its threads go on in the next request's time."""
    function = deploy(
        """
        import threading, time

        def later():
            time.sleep(0.1)
            print("from the thread")

        def handler(event, context):
            threading.Thread(target=later).start()
            time.sleep(event)
        """
    )
    function.invoke(0)
    second = function.invoke(0.3)
    lines = function.log_of(second)
    begun = lines.index(f"START RequestId: {second.request_id} Version: $LATEST\n")
    assert lines.index("from the thread\n") > begun


def test_aws_command_line(server: Server, deploy: Deploy, tmp_path: Path) -> None:
    function = deploy("def handler(event, context):\n    print('hello', event['name'])\n    return {'ok': True}\n")
    out = tmp_path / "out.json"
    told = aws(
        server, "lambda", "invoke", "--function-name", function.name, "--payload", '{"name": "cli"}',
        "--log-type", "Tail", str(out),
    )  # fmt: skip
    assert (told["StatusCode"], told["ExecutedVersion"]) == (200, "$LATEST")
    assert json.loads(out.read_text()) == {"ok": True}
    function.wait_log("REPORT")

    groups = aws(server, "logs", "describe-log-groups", "--log-group-name-prefix", function.group)["logGroups"]
    assert [group["logGroupName"] for group in groups] == [function.group]
    streams = aws(
        server, "logs", "describe-log-streams", "--log-group-name", function.group, "--order-by", "LastEventTime",
        "--descending",
    )["logStreams"]  # fmt: skip
    (stream,) = [stream["logStreamName"] for stream in streams]
    read = aws(
        server, "logs", "get-log-events", "--log-group-name", function.group, "--log-stream-name", stream,
        "--start-from-head",
    )  # fmt: skip
    kinds = [event["message"].split(" ")[0] for event in read["events"]]
    assert kinds == ["INIT_START", "START", "hello", "END", "REPORT"]
    found = aws(
        server, "logs", "filter-log-events", "--log-group-name", function.group, "--filter-pattern", "hello"
    )  # fmt: skip
    assert [event["message"] for event in found["events"]] == ["hello cli\n"]
