"""`lambent invoke` and `lambent logs`."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import typer

from lambent.cli.client import client, print_json, told_errors

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_POLL_S = 0.25


def invoke(endpoint: str, name: str, payload: str | None, asynchronous: bool, tail: bool, as_json: bool) -> None:
    """Prints the result on stdout and the log tail on stderr; exit status 1 on a function error."""
    if payload == "-":
        body = sys.stdin.buffer.read()
    elif payload and payload.startswith("@"):
        try:
            body = Path(payload[1:]).read_bytes()
        except OSError as error:
            raise typer.BadParameter(f"--payload {payload}: {error.strerror}") from error
    else:
        body = (payload or "{}").encode()
    with told_errors(endpoint):
        answer = client("lambda", endpoint).invoke(
            FunctionName=name,
            Payload=body,
            InvocationType="Event" if asynchronous else "RequestResponse",
            **({"LogType": "Tail"} if tail and not asynchronous else {}),
        )
        result = answer["Payload"].read()
    failed = "FunctionError" in answer
    log = base64.b64decode(answer.get("LogResult", "")).decode("utf-8", "replace")
    if as_json:
        print_json(
            {
                "status": answer["StatusCode"],
                "function_error": answer.get("FunctionError"),
                "executed_version": answer.get("ExecutedVersion"),
                "request_id": answer["ResponseMetadata"].get("RequestId"),
                "payload": _parsed(result),
                "log": log or None,
            }
        )
    else:
        if log:
            sys.stderr.write(log)
        sys.stdout.write(result.decode("utf-8", "replace") + ("\n" if result else ""))
    if failed:
        raise typer.Exit(1)


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode("utf-8", "replace")


def logs(endpoint: str, name: str, follow: bool, since: str, pattern: str | None, as_json: bool) -> None:
    match = re.fullmatch(r"(\d+)([smhd])", since)
    if match is None:
        raise typer.BadParameter(f"--since {since}: a number and one of s, m, h, d, such as 10m")
    start_ms = int((time.time() - int(match[1]) * _UNITS[match[2]]) * 1000)
    group = name if name.startswith("/") else f"/aws/lambda/{name}"
    seen: set[str] = set()
    with told_errors(endpoint):
        reader = client("logs", endpoint)
        while True:
            newest_ms = start_ms
            for event in _events(reader, group, start_ms, pattern, follow):
                if event["eventId"] in seen:
                    continue
                seen.add(event["eventId"])
                newest_ms = max(newest_ms, event["timestamp"])
                _print_event(event, as_json)
            sys.stdout.flush()
            if not follow:
                return
            # Streams are written side by side: look back a little, and skip what was shown.
            start_ms = max(start_ms, newest_ms - 10_000)
            time.sleep(_POLL_S)


def _events(reader: Any, group: str, start_ms: int, pattern: str | None, patient: bool) -> Any:
    arguments: dict[str, Any] = {"logGroupName": group, "startTime": start_ms}
    if pattern:
        arguments["filterPattern"] = pattern
    while True:
        try:
            page = reader.filter_log_events(**arguments)
        except reader.exceptions.ResourceNotFoundException:
            if patient:
                return  # the group comes with the first invocation
            raise
        yield from page["events"]
        if "nextToken" not in page:
            return
        arguments["nextToken"] = page["nextToken"]


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(event) + "\n")
        return
    moment = time.strftime("%H:%M:%S", time.localtime(event["timestamp"] / 1000))
    sys.stdout.write(f"{moment}.{event['timestamp'] % 1000:03d} {event['message'].rstrip(chr(10))}\n")
