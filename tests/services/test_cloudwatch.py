"""CloudWatch's metrics as their clients see them: boto3 in each protocol, and the `aws` command, against the service
behind a bare listener."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import botocore.loaders
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.services.cloudwatch import expressions, make_cloudwatch_service, statistics
from lambent.services.cloudwatch.service import CloudWatchService
from lambent.telemetry.metric_files import SeriesKey
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import MetricStore
from lambent.wire.http import Request

ACCOUNT, REGION = "000000000000", "eu-west-1"
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}
PROTOCOLS = ("json", "smithy-rpc-v2-cbor", "query")


class Server:
    """An event loop in a thread with the store, the service and an HTTP listener for one request a connection."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        #: A minute that is over by half, so that no test sees the next one.
        self.now_s = time.time() // 60 * 60 + 30
        self.store: MetricStore = self.call(self._open, directory)
        self._service: CloudWatchService = make_cloudwatch_service(self.store)
        self._server = self.call(asyncio.start_server, self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        #: Content-Type and Content-Encoding of the requests that came.
        self.forms: list[tuple[str, str]] = []

    async def _open(self, directory: pathlib.Path) -> MetricStore:
        store = MetricStore(directory / "metrics.db", clock_s=lambda: self.now_s)
        await store.start()
        return store

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def work() -> Any:
            return await function(*arguments)

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(30)

    def record(self, name: str, at_s: float, *values: float, unit: str = "Count", **dimensions: str) -> None:
        """Record as the data plane does."""
        key = SeriesKey(ACCOUNT, REGION, "AWS/Lambda", name, tuple(sorted(dimensions.items())), unit)

        async def work() -> None:
            for value in values:
                self.store.add(key, at_s, Point(1, value, value, value))

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
        self.forms.append((headers.get("content-type", ""), headers.get("content-encoding", "")))
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        request = Request(method, path, query, headers, body, ACCOUNT, REGION, "monitoring", str(uuid.uuid4()))
        response = await self._service.handle(request)
        lines = [f"HTTP/1.1 {response.status} X", f"Content-Length: {len(response.body)}", "Connection: close"]
        lines += [f"{name}: {text}" for name, text in response.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + response.body)
        await writer.drain()
        writer.close()


class OneProtocol(botocore.loaders.Loader):
    """Models as botocore has them, with the choice of protocol made."""

    protocol = ""

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        model = super().load_service_model(service_name, type_name, api_version)
        if type_name == "service-2":
            model = {**model, "metadata": {**model["metadata"], "protocols": [self.protocol]}}
        return model


def client_of(server: Server, protocol: str) -> Any:
    session = botocore.session.get_session()
    loader = OneProtocol(botocore.loaders.create_loader().search_paths)
    loader.protocol = protocol
    session.register_component("data_loader", loader)
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    maker = boto3.Session(botocore_session=session)
    return maker.client("cloudwatch", endpoint_url=server.url, config=config, **CREDENTIALS)


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Any:
    """What boto3 speaks by itself."""
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    return boto3.client("cloudwatch", endpoint_url=server.url, config=config, **CREDENTIALS)


@pytest.fixture(params=PROTOCOLS)
def any_client(request: pytest.FixtureRequest, server: Server) -> Any:
    return client_of(server, request.param)


def aws(server: Server, *arguments: str) -> Any:
    """Run the real command and return its JSON."""
    command = [str(pathlib.Path(sys.executable).with_name("aws")), "cloudwatch", *arguments]
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


def moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def refused(code: str, message: str, call: Callable[..., Any], **params: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**params)
    error = caught.value.response["Error"]
    assert error["Code"] == code
    assert message in error["Message"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def stat(name: str, statistic: str = "Sum", period: int = 60, **dimensions: str) -> dict[str, Any]:
    pairs = [{"Name": key, "Value": value} for key, value in dimensions.items()]
    metric = {"Namespace": "AWS/Lambda", "MetricName": name, "Dimensions": pairs}
    return {"Metric": metric, "Period": period, "Stat": statistic}


def data(client: Any, server: Server, *queries: dict[str, Any], minutes: int = 10, **more: Any) -> Any:
    end_s = server.now_s + 30
    return client.get_metric_data(
        MetricDataQueries=list(queries), StartTime=moment(end_s - 60 * minutes), EndTime=moment(end_s), **more
    )


# -- every protocol


def test_publishing_listing_and_reading(server: Server, any_client: Any) -> None:
    dimensions = [{"Name": "Käse", "Value": "<Brie> & Co"}, {"Name": "A", "Value": "1"}]
    at = moment(server.now_s // 60 * 60 - 60)
    any_client.put_metric_data(
        Namespace="Shop",
        MetricData=[
            {"MetricName": "Orders", "Dimensions": dimensions, "Value": 2.5, "Unit": "Count", "Timestamp": at},
            {"MetricName": "Orders", "Dimensions": dimensions, "Values": [1, 4], "Counts": [3, 1], "Unit": "Count"},
            {
                "MetricName": "Summary",
                "StatisticValues": {"SampleCount": 4, "Sum": 10, "Minimum": 1, "Maximum": 4},
                "StorageResolution": 1,
            },
        ],
    )
    listed = any_client.list_metrics(Namespace="Shop", Dimensions=[{"Name": "Käse"}])
    assert listed["Metrics"] == [
        {"Namespace": "Shop", "MetricName": "Orders", "Dimensions": sorted(dimensions, key=lambda pair: pair["Name"])}
    ]
    assert "NextToken" not in listed
    assert listed["ResponseMetadata"]["HTTPStatusCode"] == 200
    asked = {"Namespace": "Shop", "StartTime": moment(server.now_s - 600), "EndTime": moment(server.now_s + 60)}
    answer = any_client.get_metric_statistics(
        **asked,
        MetricName="Orders",
        Dimensions=dimensions,
        Period=60,
        Statistics=["SampleCount", "Average", "Sum", "Minimum", "Maximum"],
        ExtendedStatistics=["p50", "TM(:80%)"],
    )
    assert answer["Label"] == "Orders"
    first, second = sorted(answer["Datapoints"], key=lambda point: point["Timestamp"])
    assert first["ExtendedStatistics"]["p50"] == 2.5
    assert first["Timestamp"] == at
    extended = second.pop("ExtendedStatistics")
    assert extended == {"p50": pytest.approx(1, rel=0.01), "TM(:80%)": pytest.approx(1.1875, rel=0.01)}
    assert second == {
        "Timestamp": at + dt.timedelta(minutes=1),
        "Unit": "Count",
        "SampleCount": 4,
        "Average": 1.75,
        "Sum": 7,
        "Minimum": 1,
        "Maximum": 4,
    }
    summary = any_client.get_metric_statistics(
        **asked, MetricName="Summary", Period=1, Statistics=["Average"], ExtendedStatistics=["p99"]
    )
    (point,) = summary["Datapoints"]
    assert (point["Average"], point["Unit"], point["Timestamp"]) == (2.5, "None", moment(server.now_s))
    assert point.get("ExtendedStatistics", {}) == {}


def test_metric_data_with_math(server: Server, any_client: Any) -> None:
    base_s = server.now_s - 30
    for minute in range(5):
        server.record("Invocations", base_s - 60 * minute, *[1.0] * (10 + minute), FunctionName="f")
        server.record("Errors", base_s - 60 * minute, *[1.0] * minute, FunctionName="f")
    answer = data(
        any_client,
        server,
        {"Id": "calls", "MetricStat": stat("Invocations", FunctionName="f"), "ReturnData": False},
        {"Id": "errors", "MetricStat": stat("Errors", FunctionName="f")},
        {"Id": "rate", "Expression": "100 * errors / calls", "Label": "Error rate"},
        {"Id": "filled", "Expression": "FILL(errors, 0) + 1"},
        {"Id": "nothing", "MetricStat": stat("Invocations", FunctionName="g")},
        ScanBy="TimestampAscending",
        MaxDatapoints=1000,
    )
    assert answer["Messages"] == []
    results = {result["Id"]: result for result in answer["MetricDataResults"]}
    assert list(results) == ["errors", "rate", "filled", "nothing"]
    assert results["errors"]["Values"] == [4, 3, 2, 1]
    assert results["errors"]["Timestamps"] == [moment(base_s - 60 * minute) for minute in (4, 3, 2, 1)]
    assert results["errors"]["Label"] == "Errors"
    assert results["rate"]["Values"] == pytest.approx([400 / 14, 300 / 13, 200 / 12, 100 / 11])
    assert results["rate"]["Label"] == "Error rate"
    assert results["filled"]["Values"] == [1, 1, 1, 1, 1, 5, 4, 3, 2, 1]
    assert results["nothing"]["Values"] == []
    assert {result["StatusCode"] for result in answer["MetricDataResults"]} == {"Complete"}


def test_errors_reach_every_client(server: Server, any_client: Any) -> None:
    put, read = any_client.put_metric_data, any_client.get_metric_statistics
    missing = "The parameter MetricData.member.2.MetricName is required."
    data = [{"MetricName": "A", "Value": 1}, {"Value": 1}]
    refused("MissingParameter", missing, put, Namespace="Shop", MetricData=data)
    refused(
        "InvalidParameterValue",
        "The value AWS/Lambda for parameter Namespace is invalid.",
        put,
        Namespace="AWS/Lambda",
        MetricData=data[:1],
    )
    now = moment(server.now_s)
    asked = {"Namespace": "Shop", "MetricName": "A", "StartTime": now - dt.timedelta(days=1), "EndTime": now}
    refused(
        "InvalidParameterCombination",
        "You have requested up to 86400 datapoints, which exceeds the limit of 1440. You may reduce the datapoints "
        "requested by increasing Period, or decreasing the time range.",
        read,
        **asked,
        Period=1,
        Statistics=["Sum"],
    )
    with pytest.raises(any_client.exceptions.InvalidParameterValueException):
        read(**asked, Period=7, Statistics=["Sum"])
    with pytest.raises(ClientError) as caught:
        any_client.describe_alarms()
    assert "does not implement DescribeAlarms" in caught.value.response["Error"]["Message"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert caught.value.response["Error"]["Code"] == "NotImplementedException"


# -- what is refused


@pytest.mark.parametrize(
    ("datum", "code", "message"),
    [
        ({"Value": 1, "Unit": "Euro"}, "InvalidParameterValue", "MetricData.member.1.Unit must be a value in the set"),
        ({"Value": math.nan}, "InvalidParameterValue", "The value NaN for parameter MetricData.member.1.Value"),
        ({"Value": 1e200}, "InvalidParameterValue", "MetricData.member.1.Value is invalid"),
        ({}, "MissingParameter", "At least one of the parameters MetricData.member.1.Value"),
        (
            {"Value": 1, "Values": [1]},
            "InvalidParameterCombination",
            "The parameters MetricData.member.1.Value and MetricData.member.1.Values are mutually exclusive and you "
            "have specified both.",
        ),
        (
            {"Values": [1.0] * 151},
            "InvalidParameterValue",
            "The collection MetricData.member.1.Values must not have a size greater than 150.",
        ),
        ({"Values": [1, 2], "Counts": [1]}, "InvalidParameterValue", "lists of the same length"),
        ({"Values": [1], "Counts": [-1]}, "InvalidParameterValue", "MetricData.member.1.Counts.member.1 is invalid"),
        ({"Value": 1, "Counts": [1]}, "InvalidParameterCombination", "must be used with"),
        (
            {"StatisticValues": {"SampleCount": 1, "Sum": 1, "Minimum": 2, "Maximum": 1}},
            "InvalidParameterValue",
            "MetricData.member.1.StatisticValues.Maximum must be greater than",
        ),
        (
            {"StatisticValues": {"SampleCount": 1, "Sum": 1, "Minimum": 2}},
            "MissingParameter",
            "The parameter MetricData.member.1.StatisticValues.Maximum is required.",
        ),
        (
            {"Value": 1, "Timestamp": moment(time.time() - 15 * 86400)},
            "InvalidParameterValue",
            "The parameter MetricData.member.1.Timestamp must specify a time within the past two weeks.",
        ),
        (
            {"Value": 1, "Timestamp": moment(time.time() + 3 * 3600)},
            "InvalidParameterValue",
            "no more than two hours in the future",
        ),
        ({"Value": 1, "StorageResolution": 30}, "InvalidParameterValue", "StorageResolution must be"),
        (
            {"Value": 1, "Dimensions": [{"Name": "A", "Value": ""}]},
            "InvalidParameterValue",
            "Dimensions.member.1.Value",
        ),
        ({"Value": 1, "Dimensions": [{"Name": "A", "Value": "1"}] * 2}, "InvalidParameterValue", "twice"),
        (
            {"Value": 1, "Dimensions": [{"Name": str(n), "Value": "1"} for n in range(31)]},
            "InvalidParameterValue",
            "The collection MetricData.member.1.Dimensions must not have a size greater than 30.",
        ),
    ],
)
def test_refused_data(client: Any, datum: dict[str, Any], code: str, message: str) -> None:
    refused(code, message, client.put_metric_data, Namespace="Shop", MetricData=[{"MetricName": "M"} | datum])
    assert client.list_metrics()["Metrics"] == []


def test_other_refusals(server: Server, client: Any) -> None:
    put = client.put_metric_data
    refused("MissingParameter", "The parameter Namespace is required.", put, MetricData=[])
    refused("MissingParameter", "The parameter MetricData is required.", put, Namespace="Shop")
    refused("InvalidParameterValue", "parameter Namespace is invalid", put, Namespace=":a", MetricData=[])
    many = [{"MetricName": "M", "Value": 1}] * 1001
    refused("InvalidParameterValue", "must not have a size greater than 1000.", put, Namespace="S", MetricData=many)
    read = client.get_metric_statistics
    now = moment(server.now_s)
    asked = {"Namespace": "Shop", "MetricName": "A", "StartTime": now - dt.timedelta(hours=1), "EndTime": now}
    refused("InvalidParameterCombination", "Statistics and ExtendedStatistics", read, **asked, Period=60)
    wrong = "The parameter Statistics.member.1 must be a value in the set"
    refused("InvalidParameterValue", wrong, read, **asked, Period=60, Statistics=["p99"])
    wrong = "ExtendedStatistics.member.1 is not a valid statistic."
    refused("InvalidParameterValue", wrong, read, **asked, Period=60, ExtendedStatistics=["p101"])
    backwards = {**asked, "EndTime": asked["StartTime"]}
    refused("InvalidParameterCombination", "must be less than", read, **backwards, Period=60, Statistics=["Sum"])
    refused("InvalidParameterValue", "NextToken is invalid", client.list_metrics, NextToken="x")


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (
            [{"Id": "A", "MetricStat": stat("M")}],
            "The value A for parameter MetricDataQueries.member.1.Id is not matching the expected pattern "
            "^[a-z][a-zA-Z0-9_]*$.",
        ),
        (
            [{"Id": "a", "MetricStat": stat("M", "p200")}],
            "The value for parameter MetricDataQueries.member.1.MetricStat.Stat is not a valid statistic.",
        ),
        (
            [{"Id": "a", "MetricStat": stat("M")}] * 2,
            "The values for parameter id in MetricDataQueries are not unique.",
        ),
        ([{"Id": "a"}], "must be specified"),
        ([{"Id": "a", "Expression": "1", "MetricStat": stat("M")}], "mutually exclusive"),
        ([{"Id": "a", "Expression": "b + 1"}], "no query has the id b"),
        ([{"Id": "a", "Expression": "a + 1"}], "a refers to itself"),
        ([{"Id": "a", "Expression": "1 + 1"}], "it must give a time series"),
        ([{"Id": "a", "Expression": "SEARCH('{AWS/Lambda}', 'Sum', 60)"}], "SEARCH is not a function"),
        ([{"Id": "a", "Expression": "(1"}], "')' expected"),
        ([{"Id": "a", "MetricStat": stat("M", period=45)}], "Period must be"),
        ([{"Id": "a", "MetricStat": stat("M"), "ReturnData": False}], "ReturnData"),
        ([], "MetricDataQueries must not have a size less than 1"),
        ([{"Id": "a", "MetricStat": {"Metric": {}, "Period": 60, "Stat": "Sum"}}], "Metric.MetricName is required"),
    ],
)
def test_refused_queries(server: Server, client: Any, queries: list[Any], message: str) -> None:
    refused(
        "ValidationError",
        message,
        client.get_metric_data,
        MetricDataQueries=queries,
        StartTime=moment(server.now_s - 60),
        EndTime=moment(server.now_s),
    )


# -- reading


def test_units_labels_and_periods(server: Server, client: Any) -> None:
    for unit, value in (("Seconds", 1.0), ("Milliseconds", 60_000.0)):
        server.record("M", server.now_s, value, unit=unit)
    server.record("M", server.now_s - 60, 2.0, unit="Seconds")
    (result,) = data(client, server, {"Id": "m1", "MetricStat": stat("M")})["MetricDataResults"]
    assert result["Values"] == [60_000]
    text = "Multiple units returned: '[Milliseconds, Seconds]'"
    assert result["Messages"] == [{"Code": "MultipleUnits", "Value": text}]
    only = {"Id": "m1", "MetricStat": stat("M") | {"Unit": "Seconds"}}
    (result,) = data(client, server, only)["MetricDataResults"]
    assert (result["Values"], result["Label"]) == ([1, 2], "M")
    answer = data(
        client,
        server,
        {"Id": "a", "MetricStat": stat("M", "Sum", 60)},
        {"Id": "b", "MetricStat": stat("M", "p50", 300) | {"Unit": "Seconds"}},
    )
    assert [result["Label"] for result in answer["MetricDataResults"]] == ["M Sum 60", "M p50 300"]
    assert answer["MetricDataResults"][1]["Values"] == [pytest.approx(1, rel=0.01)]
    by_unit = client.get_metric_statistics(
        Namespace="AWS/Lambda",
        MetricName="M",
        StartTime=moment(server.now_s - 30),
        EndTime=moment(server.now_s + 30),
        Period=60,
        Statistics=["Sum"],
    )
    assert {point["Unit"]: point["Sum"] for point in by_unit["Datapoints"]} == {"Seconds": 1, "Milliseconds": 60_000}


def test_periods_begin_at_the_start_that_was_asked_for(server: Server, client: Any) -> None:
    base_s = server.now_s - 30
    for minute in range(10):
        server.record("M", base_s - 60 * minute, 1.0)
    answer = client.get_metric_statistics(
        Namespace="AWS/Lambda",
        MetricName="M",
        StartTime=moment(base_s - 420 + 17),
        EndTime=moment(base_s),
        Period=300,
        Statistics=["Sum"],
    )
    points = {point["Timestamp"]: point["Sum"] for point in answer["Datapoints"]}
    assert points == {moment(base_s - 420): 5, moment(base_s - 120): 2}


def test_metric_data_comes_in_pages(server: Server, client: Any) -> None:
    for minute in range(9):
        server.record("M", server.now_s - 60 * minute, float(minute))
        server.record("N", server.now_s - 60 * minute, 10.0 + minute)
    queries = [{"Id": "m", "MetricStat": stat("M")}, {"Id": "n", "MetricStat": stat("N")}]
    found: dict[str, list[float]] = {"m": [], "n": []}
    codes = []
    token: dict[str, str] = {}
    while True:
        answer = data(client, server, *queries, MaxDatapoints=5, **token)
        for result in answer["MetricDataResults"]:
            found[result["Id"]] += result["Values"]
        codes.append([result["StatusCode"] for result in answer["MetricDataResults"]])
        if "NextToken" not in answer:
            break
        token = {"NextToken": answer["NextToken"]}
    assert found == {"m": [float(n) for n in range(9)], "n": [10.0 + n for n in range(9)]}
    assert codes == [
        ["PartialData", "PartialData"],
        ["Complete", "PartialData"],
        ["Complete", "PartialData"],
        ["Complete", "Complete"],
    ]
    with pytest.raises(client.exceptions.InvalidNextToken):
        data(client, server, *queries, NextToken="bm8=")


def test_metrics_are_listed_in_pages_and_only_of_the_last_two_weeks(server: Server, client: Any) -> None:
    for number in range(0, 1201, 400):
        batch = [{"MetricName": f"m{n:04}", "Value": 1} for n in range(number, min(number + 400, 1201))]
        client.put_metric_data(Namespace="Shop", MetricData=batch)
    server.record("Old", server.now_s - 4 * 3600, 1.0)
    server.record("Gone", server.now_s - 15 * 86400, 1.0)
    pages = list(client.get_paginator("list_metrics").paginate(Namespace="Shop"))
    assert [len(page["Metrics"]) for page in pages] == [500, 500, 201]
    assert [metric["MetricName"] for page in pages for metric in page["Metrics"]] == [f"m{n:04}" for n in range(1201)]
    assert [metric["MetricName"] for metric in client.list_metrics(Namespace="AWS/Lambda")["Metrics"]] == ["Old"]
    assert client.list_metrics(Namespace="AWS/Lambda", RecentlyActive="PT3H")["Metrics"] == []
    linked = client.list_metrics(Namespace="AWS/Lambda", IncludeLinkedAccounts=True)
    assert linked["OwningAccounts"] == [ACCOUNT]


def test_large_data_come_compressed(server: Server, client: Any) -> None:
    values = [float(n) for n in range(150)]
    client.put_metric_data(Namespace="Shop", MetricData=[{"MetricName": "M", "Values": values}] * 20)
    assert server.forms[-1] == ("application/x-amz-json-1.0", "gzip")
    end = moment(server.now_s + 60)
    start = moment(server.now_s - 60)
    asked = {"Namespace": "Shop", "MetricName": "M", "StartTime": start, "EndTime": end, "Period": 60}
    (point,) = client.get_metric_statistics(**asked, Statistics=["SampleCount"])["Datapoints"]
    assert point["SampleCount"] == 3000


def test_bodies_that_are_not_what_they_say(server: Server) -> None:
    for body, encoding, status in ((b"junk", "gzip", 400), (b"x" * 1_100_000, "", 413)):
        request = urllib.request.Request(server.url, body, {"Content-Encoding": encoding} if encoding else {})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == status
        assert b"<ErrorResponse" in caught.value.read()


def test_data_survive_a_restart(tmp_path: pathlib.Path) -> None:
    for expected in (1, 2):
        server = Server(tmp_path)
        client = client_of(server, "json")
        client.put_metric_data(Namespace="Shop", MetricData=[{"MetricName": "M", "Value": 1}])
        asked = {"StartTime": moment(server.now_s - 600), "EndTime": moment(server.now_s + 600), "Period": 1200}
        answer = client.get_metric_statistics(Namespace="Shop", MetricName="M", Statistics=["Sum"], **asked)
        assert [point["Sum"] for point in answer["Datapoints"]] == [expected]
        server.close()


def test_the_aws_command(server: Server) -> None:
    aws(server, "put-metric-data", "--namespace", "Shop", "--metric-name", "Orders", "--value", "3", "--unit", "Count")
    assert aws(server, "list-metrics", "--namespace", "Shop") == {
        "Metrics": [{"Namespace": "Shop", "MetricName": "Orders", "Dimensions": []}]
    }
    start, end = (moment(server.now_s + shift).isoformat() for shift in (-600, 60))
    times = ("--start-time", start, "--end-time", end)
    one = ("--namespace", "Shop", "--metric-name", "Orders", "--period", "60", "--statistics", "Sum", "Maximum")
    (point,) = aws(server, "get-metric-statistics", *one, *times)["Datapoints"]
    assert (point["Sum"], point["Maximum"], point["Unit"]) == (3, 3, "Count")
    metric = {"Namespace": "Shop", "MetricName": "Orders"}
    queries = [
        {"Id": "m1", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "p99"}},
        {"Id": "e1", "Expression": "m1 * 2"},
    ]
    answer = aws(server, "get-metric-data", "--metric-data-queries", json.dumps(queries), *times)
    assert [result["Values"] for result in answer["MetricDataResults"]] == [[3], [6]]


# -- statistics


def test_statistics_of_a_range() -> None:
    point = Point()
    for value in range(1, 101):
        point.add(float(value))
    expected = {
        "SampleCount": 100,
        "Average": 50.5,
        "p90": 90,
        "p99.9": 99,
        "tm90": 45.5,
        "TM(10%:90%)": 50.5,
        "IQM": 50.5,
        "TM(20:30)": 25.5,
        "tc90": 90,
        "TC(:50)": 50,
        "ts10": 55,
        "TS(90:)": 955,
        "WM(10%:90%)": 50.5,
        "wm98": 50.47,
        "PR(:25)": 25,
        "PR(25:75)": 50,
    }
    for name, value in expected.items():
        found = statistics.parse(name)(point)
        # A value as bound may fall into the middle of a bucket: one value more or less.
        slack = {"TC(:50)": 1, "PR(:25)": 1, "PR(25:75)": 1, "TS(90:)": 92}.get(name, 0)
        assert found == pytest.approx(value, rel=0.03, abs=slack), name
    for name in ("average", "p", "p101", "TM()", "TM(:)", "TM(5:10%)", "TM(9:3)", "PR(1%:2%)", "x99", "TM(%:5)"):
        with pytest.raises(statistics.UnknownStatistic):
            statistics.parse(name)
    summary = Point(4, 10, 1, 4)
    assert statistics.parse("tm90")(summary) is None


# -- metric math

SCOPE_VALUES: dict[str, expressions.Value] = {
    "a": expressions.Series({0: 1.0, 60: 2.0, 180: 4.0}, 60),
    "b": expressions.Series({60: 10.0, 120: 0.0, 180: 20.0}, 60),
    "n": 3.0,
}


def compute(text: str) -> Any:
    series = [value for value in SCOPE_VALUES.values() if isinstance(value, expressions.Series)]
    scope = expressions.Scope(SCOPE_VALUES.__getitem__, lambda part: series if not part else series[:1], 0, 300)
    node, ids = expressions.parse(text)
    if not ids <= SCOPE_VALUES.keys():
        raise expressions.BadExpression("unknown id")  # reading.py refuses it before it is computed
    value = node(scope)
    if isinstance(value, list):
        return [dict(series.values) for series in value]
    return dict(value.values) if isinstance(value, expressions.Series) else value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 4 / 8", 6.5),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("(1 + 2) * 3", 9),
        ("1.5e2 + .5", 150.5),
        ("1 < 2 && 2 >= 3 || n == 3", 1),
        ("2 AND 0", 0),
        ("a + b", {60: 12, 180: 24}),
        ("10 / b", {60: 1, 180: 0.5}),
        ("b * n", {60: 30, 120: 0, 180: 60}),
        ("SUM([a, b])", {0: 1, 60: 12, 120: 0, 180: 24}),
        ("AVG(METRICS())", {0: 1, 60: 6, 120: 0, 180: 12}),
        ("MAX([a, b])", {0: 1, 60: 10, 120: 0, 180: 20}),
        ("MIN(METRICS('a')) + 1", {0: 2, 60: 3, 180: 5}),
        ("METRICS() * 2", [{0: 2, 60: 4, 180: 8}, {60: 20, 120: 0, 180: 40}]),
        ("SUM(a)", 7),
        ("a / SUM(a) * 7", {0: 1, 60: 2, 180: 4}),
        ("METRIC_COUNT(METRICS())", 2),
        ("RATE(a)", {60: 1 / 60, 180: 2 / 120}),
        ("DIFF(a)", {60: 1, 180: 2}),
        ("DIFF_TIME(a)", {60: 60, 180: 120}),
        ("RUNNING_SUM(a)", {0: 1, 60: 3, 180: 7}),
        ("a * PERIOD(a)", {0: 60, 60: 120, 180: 240}),
        ("FILL(a, 0)", {0: 1, 60: 2, 120: 0, 180: 4, 240: 0}),
        ("FILL(a, REPEAT)", {0: 1, 60: 2, 120: 2, 180: 4, 240: 4}),
        ("FILL(b, LINEAR)", {60: 10, 120: 0, 180: 20}),
        ("FILL(a, LINEAR)", {0: 1, 60: 2, 120: 3, 180: 4}),
        ("FILL(a, b)", {0: 1, 60: 2, 120: 0, 180: 4}),
        ("IF(b > 5, a, 99)", {60: 2, 120: 99, 180: 4}),
        ("IF(b > 5, a)", {60: 2, 180: 4}),
        ("ABS(0 - a)", {0: 1, 60: 2, 180: 4}),
        ("CEIL(a / 3) + FLOOR(a / 3)", {0: 1, 60: 1, 180: 3}),
        ("LOG10(b)", {60: 1, 180: math.log10(20)}),
        ("STDDEV(a - a)", 0),
        (" + ".join(["a"] * 500), {0: 500, 60: 1000, 180: 2000}),
    ],
)
def test_metric_math(text: str, expected: Any) -> None:
    assert compute(text) == pytest.approx(expected) if not isinstance(expected, list) else compute(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "a b", "SUM()", "SUM(a, b)", "NOPE(a)", "Upper", "a $ b", "(" * 900, "-" * 2000 + "1", "[a, 1]",
     "FILL(a)", "FILL(1, 2)", "RATE(1)", "a + [a, b] + [a]", "METRICS(a)", "IF(0, a)", "a[0]", "'text'"],
)  # fmt: skip
def test_bad_expressions(text: str) -> None:
    with pytest.raises(expressions.BadExpression):
        compute(text)


@settings(max_examples=300)
@given(st.text(alphabet="ab1.+-*/^()[],<>=&|'\" SUMFILRT", max_size=40))
def test_any_text_is_computed_or_refused(text: str) -> None:
    try:
        compute(text)
    except (expressions.BadExpression, OverflowError):
        pass
