"""What functions did, read back from CloudWatch and by Prometheus's way."""

from __future__ import annotations

import datetime as dt
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from .harness import Function, Server, client

SOURCE = """
def handler(event, context):
    if event.get("fail"):
        raise ValueError("as told")
    return 1
"""


def point(cloudwatch: Any, name: str, **dimensions: str) -> dict[str, Any]:
    """The last ten minutes as one point."""
    now = dt.datetime.now(dt.UTC)
    (found,) = cloudwatch.get_metric_statistics(
        Namespace="AWS/Lambda",
        MetricName=name,
        Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
        StartTime=now - dt.timedelta(minutes=10),
        EndTime=now + dt.timedelta(minutes=1),
        Period=1200,
        Statistics=["Sum", "SampleCount", "Maximum"],
    )["Datapoints"]
    return dict(found)


def test_what_happened_is_in_the_metrics(server: Server, deploy: Callable[..., Function]) -> None:
    function = deploy(SOURCE, "metrics")
    name = function.name
    server.lambda_.publish_version(FunctionName=name)
    server.lambda_.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    for fail in (False, False, True):
        function.invoke({"fail": fail})
    server.lambda_.invoke(FunctionName=name, Qualifier="live", Payload=b"{}")
    server.lambda_.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with pytest.raises(server.lambda_.exceptions.TooManyRequestsException):
        function.invoke({})

    cloudwatch = client("cloudwatch", server.url)
    assert point(cloudwatch, "Invocations", FunctionName=name)["Sum"] == 4
    assert point(cloudwatch, "Errors", FunctionName=name)["Sum"] == 1
    assert point(cloudwatch, "Throttles", FunctionName=name)["Sum"] == 1
    assert point(cloudwatch, "ConcurrentExecutions", FunctionName=name)["Maximum"] == 1
    live = {"FunctionName": name, "Resource": f"{name}:live", "ExecutedVersion": "1"}
    assert point(cloudwatch, "Duration", **live)["SampleCount"] == 1

    page = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    assert f'lambent_errors_total{{account="000000000000",function="{name}"' in page
