"""CloudWatch Logs as its clients see it: boto3 and the `aws` command against the service behind a bare listener."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.services.base import ModelService
from lambent.services.logs import make_logs_service
from lambent.telemetry.log_store import LogGroupKey, LogStore
from lambent.wire.http import Request
from lambent.wire.service_model import load

ACCOUNT, REGION = "000000000000", "eu-west-1"
GROUP = "/aws/lambda/f"
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}


class Server:
    """An event loop in a thread with the store, the service and an HTTP listener for one client at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.store = self.call(self._open, directory)
        self._service: ModelService = make_logs_service(self.store)
        self._server = self.call(asyncio.start_server, self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _open(self, directory: pathlib.Path) -> LogStore:
        store = LogStore(directory)
        await store.start()
        return store

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Await `function(...)` on the server's loop."""

        async def work() -> Any:
            return await function(*arguments)

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    def log(self, stream: str, *events: tuple[int, str]) -> None:
        """Write as an environment does."""

        async def work() -> None:
            self.store.stream(LogGroupKey(ACCOUNT, REGION, GROUP), stream).write_many(list(events))

        self.call(work)

    def close(self) -> None:
        async def work() -> None:
            self._server.close()
            await self.store.close()

        self.call(work)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        request = Request(method, path, query, headers, body, ACCOUNT, REGION, "logs", str(uuid.uuid4()))
        response = await self._service.handle(request)
        lines = [f"HTTP/1.1 {response.status} X", f"Content-Length: {len(response.body)}", "Connection: close"]
        lines += [f"{name}: {text}" for name, text in response.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + response.body)
        await writer.drain()
        writer.close()


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    server = Server(tmp_path / "logs")
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Any:
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    return boto3.client("logs", endpoint_url=server.url, config=config, **CREDENTIALS)


def aws(server: Server, *arguments: str) -> Any:
    """Run the real command and return its JSON."""
    command = [str(pathlib.Path(sys.executable).with_name("aws")), "logs", *arguments]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_DEFAULT_OUTPUT": "json",
        "AWS_MAX_ATTEMPTS": "1",
    }
    done = subprocess.run(
        [*command, "--endpoint-url", server.url], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def refused(code: str, message: str, call: Callable[..., Any], **params: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**params)
    error = caught.value.response["Error"]
    assert error["Code"] == code
    assert message in error["Message"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_the_life_of_a_group(client: Any) -> None:
    client.create_log_group(logGroupName=GROUP, tags={"a": "1", "b": "2"})
    refused(
        "ResourceAlreadyExistsException",
        "The specified log group already exists",
        client.create_log_group,
        logGroupName=GROUP,
    )
    (group,) = client.describe_log_groups(logGroupNamePrefix="/aws/")["logGroups"]
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{GROUP}"
    assert group["arn"] == arn + ":*"
    assert group["logGroupArn"] == arn
    assert group["logGroupClass"] == "STANDARD"
    assert abs(group["creationTime"] - now_ms()) < 60_000
    assert "retentionInDays" not in group
    client.put_retention_policy(logGroupName=GROUP, retentionInDays=14)
    assert client.describe_log_groups()["logGroups"][0]["retentionInDays"] == 14
    client.delete_retention_policy(logGroupName=GROUP)
    assert "retentionInDays" not in client.describe_log_groups()["logGroups"][0]
    client.tag_resource(resourceArn=arn, tags={"c": "3"})
    client.untag_resource(resourceArn=arn, tagKeys=["a"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == {"b": "2", "c": "3"}
    client.tag_log_group(logGroupName=GROUP, tags={"d": "4"})
    client.untag_log_group(logGroupName=GROUP, tags=["b", "c"])
    assert client.list_tags_log_group(logGroupName=GROUP)["tags"] == {"d": "4"}
    client.put_log_group_deletion_protection(logGroupIdentifier=arn, deletionProtectionEnabled=True)
    refused("ValidationException", "deletion protection", client.delete_log_group, logGroupName=GROUP)
    client.put_log_group_deletion_protection(logGroupIdentifier=arn, deletionProtectionEnabled=False)
    client.delete_log_group(logGroupName=GROUP)
    assert client.describe_log_groups()["logGroups"] == []
    refused(
        "ResourceNotFoundException",
        "The specified log group does not exist.",
        client.delete_log_group,
        logGroupName=GROUP,
    )


def test_events_put_are_events_got(client: Any) -> None:
    client.create_log_group(logGroupName=GROUP)
    client.create_log_stream(logGroupName=GROUP, logStreamName="2026/01/01/[$LATEST]ab")
    refused(
        "ResourceAlreadyExistsException",
        "The specified log stream already exists",
        client.create_log_stream,
        logGroupName=GROUP,
        logStreamName="2026/01/01/[$LATEST]ab",
    )
    start = now_ms() - 1000
    events = [{"timestamp": start + number, "message": f"line {number}\tü"} for number in range(25)]
    where = {"logGroupName": GROUP, "logStreamName": "2026/01/01/[$LATEST]ab"}
    answer = client.put_log_events(**where, logEvents=events)
    assert "rejectedLogEventsInfo" not in answer
    got = client.get_log_events(**where, startFromHead=True)["events"]
    assert [{key: one[key] for key in ("timestamp", "message")} for one in got] == events
    assert all(one["ingestionTime"] >= start for one in got)
    pages = client.get_paginator("filter_log_events").paginate(logGroupName=GROUP, PaginationConfig={"PageSize": 10})
    found = [one for page in pages for one in page["events"]]
    assert [one["message"] for one in found] == [one["message"] for one in events]
    assert len({one["eventId"] for one in found}) == 25
    (stream,) = client.describe_log_streams(logGroupIdentifier=GROUP)["logStreams"]
    assert stream["firstEventTimestamp"] == start
    assert stream["lastEventTimestamp"] == start + 24
    client.delete_log_stream(**where)
    refused("ResourceNotFoundException", "The specified log stream does not exist.", client.get_log_events, **where)


def test_what_put_log_events_refuses(client: Any) -> None:
    where = {"logGroupName": GROUP, "logStreamName": "s"}
    day = 24 * 60 * 60 * 1000
    now = now_ms()

    def put(*stamps: int, message: str = "x") -> Any:
        return client.put_log_events(**where, logEvents=[{"timestamp": stamp, "message": message} for stamp in stamps])

    missing = [{"timestamp": now, "message": "x"}]
    refused(
        "ResourceNotFoundException",
        "The specified log group does not exist.",
        client.put_log_events,
        **where,
        logEvents=missing,
    )
    client.create_log_group(logGroupName=GROUP)
    refused(
        "ResourceNotFoundException",
        "The specified log stream does not exist.",
        client.put_log_events,
        **where,
        logEvents=missing,
    )
    client.create_log_stream(**where)
    answer = put(now - 20 * day, now - 15 * day, now, now + 1000, now + day)
    assert answer["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 4}
    assert len(client.get_log_events(**where)["events"]) == 2
    for message, stamps in (("chronological", (now, now - 1)), ("24 hours", (now - 2 * day, now))):
        refused("InvalidParameterException", message, lambda stamps=stamps: put(*stamps))
    refused("InvalidParameterException", "exceeds limit of 1048576", lambda: put(now, message="x" * 1048576))
    refused("InvalidParameterException", "at 'logEvents'", lambda: put())


def test_mistakes_are_told_in_aws_s_words(client: Any) -> None:
    client.create_log_group(logGroupName=GROUP)
    for call, params, code, message in [
        (client.create_log_group, {"logGroupName": "a b"}, "InvalidParameterException", "1 validation error"),
        (client.create_log_group, {"logGroupName": "aws/x"}, "InvalidParameterException", "reserved"),
        (client.create_log_group, {}, "InvalidParameterException", "Value null at 'logGroupName'"),
        (client.filter_log_events, {}, "InvalidParameterException", "logGroupIdentifier"),
        (
            client.filter_log_events,
            {"logGroupName": GROUP, "filterPattern": "{ $.a"},
            "InvalidParameterException",
            "Invalid filter pattern",
        ),
        (
            client.filter_log_events,
            {"logGroupName": GROUP, "nextToken": "x"},
            "InvalidParameterException",
            "The specified nextToken is invalid.",
        ),
        (
            client.filter_log_events,
            {"logGroupName": GROUP, "logStreamNames": ["no"]},
            "ResourceNotFoundException",
            "The specified log stream does not exist.",
        ),
        (
            client.describe_log_streams,
            {"logGroupName": GROUP, "orderBy": "LastEventTime", "logStreamNamePrefix": "a"},
            "InvalidParameterException",
            "Cannot order by LastEventTime with a logStreamNamePrefix.",
        ),
        (
            client.put_retention_policy,
            {"logGroupName": GROUP, "retentionInDays": 2},
            "InvalidParameterException",
            "Value '2' at 'retentionInDays'",
        ),
        (
            client.list_tags_for_resource,
            {"resourceArn": f"arn:aws:logs:{REGION}:111111111111:log-group:{GROUP}"},
            "ResourceNotFoundException",
            "The specified log group does not exist.",
        ),
    ]:
        refused(code, message, call, **params)
    with pytest.raises(ClientError, match="does not implement StartQuery") as caught:
        client.start_query(logGroupName=GROUP, startTime=0, endTime=1, queryString="fields @message")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


def test_a_follower_sees_each_line_once_and_in_order(server: Server, client: Any) -> None:
    """What `aws logs tail --follow` does: ask from the last time on, and pass over known ids."""
    start = now_ms()
    seen: dict[str, str] = {}
    since = start
    for turn in range(5):
        for stream in ("a", "b"):
            server.log(stream, (start + turn, f"{turn}{stream}"))
        for event in client.filter_log_events(logGroupName=GROUP, startTime=since, interleaved=True)["events"]:
            if event["eventId"] not in seen:
                seen[event["eventId"]] = event["message"]
                since = event["timestamp"]
    assert list(seen.values()) == [f"{turn}{stream}" for turn in range(5) for stream in ("a", "b")]


def test_the_aws_command(server: Server) -> None:
    start = now_ms() - 5000
    server.log("2026/01/01/[$LATEST]ab", (start, "START RequestId: 1"), (start + 1, '{"level": "ERROR", "n": 7}'))
    server.log("2026/01/01/[1]cd", (start + 2, "ERROR in plain text\n"))
    found = aws(server, "filter-log-events", "--log-group-name", GROUP, "--filter-pattern", "ERROR")
    assert [event["message"] for event in found["events"]] == ['{"level": "ERROR", "n": 7}', "ERROR in plain text\n"]
    found = aws(
        server,
        *("filter-log-events", "--log-group-name", GROUP, "--start-time", str(start)),
        *("--filter-pattern", '{ $.level = "ERROR" && $.n > 5 }', "--log-stream-name-prefix", "2026/01/01/[$"),
    )
    assert [event["timestamp"] for event in found["events"]] == [start + 1]
    stream = "2026/01/01/[$LATEST]ab"
    got = aws(server, "get-log-events", "--log-group-name", GROUP, "--log-stream-name", stream, "--limit", "1")
    assert [event["message"] for event in got["events"]] == ['{"level": "ERROR", "n": 7}']
    assert got["nextForwardToken"].startswith("f/")
    listed = aws(server, "describe-log-groups", "--log-group-name-pattern", "LAMBDA")
    assert [group["logGroupName"] for group in listed["logGroups"]] == [GROUP]
    assert listed["logGroups"][0]["storedBytes"] > 0
    streams = aws(
        server,
        *("describe-log-streams", "--log-group-name", GROUP, "--order-by", "LastEventTime", "--descending"),
    )
    assert [one["logStreamName"] for one in streams["logStreams"]] == ["2026/01/01/[1]cd", stream]
    assert aws(server, "delete-log-group", "--log-group-name", GROUP) is None


VALUES = (
    st.none() | st.booleans() | st.integers(-2, 2**63) | st.sampled_from([GROUP, "s", "", "f/" + "9" * 56, "[", "{"])
)
ANYTHING = VALUES | st.text(max_size=8) | st.lists(VALUES, max_size=2) | st.dictionaries(st.text(max_size=3), VALUES)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_makes_it_answer_500(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    model = load("logs")

    async def body() -> None:
        store = LogStore(tmp_path)
        await store.start()
        service = make_logs_service(store)
        store.stream(LogGroupKey(ACCOUNT, REGION, GROUP), "s").write(1, "x")
        for operation in data.draw(st.lists(st.sampled_from(sorted(service.handlers)), max_size=8)):
            shape = model.operation(operation).input
            assert shape is not None
            likely = {"logGroupName": GROUP, "logStreamName": "s", "logEvents": [{"timestamp": 1, "message": "m"}]}
            params = {name: value for name, value in likely.items() if name in shape.members}
            params |= data.draw(st.dictionaries(st.sampled_from(sorted(shape.members)), ANYTHING, max_size=3))
            headers = {"x-amz-target": f"Logs_20140328.{operation}"}
            text = json.dumps(params).encode()
            request = Request("POST", "/", "", headers, text, ACCOUNT, REGION, "logs", "id")
            response = await service.handle(request)
            assert response.status in (200, 400), (operation, params, response.body)
        await store.close()

    asyncio.run(body())
