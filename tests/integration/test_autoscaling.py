"""Application Auto Scaling of provisioned concurrency: its API, and that it acts."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .harness import Function, Server, client, serving, wait_until
from .test_provisioned import SOURCE, get, numbers, put, version_of

Deploy = Callable[..., Function]
DIMENSION = "lambda:function:ProvisionedConcurrency"
UTILIZATION = {"PredefinedMetricType": "LambdaProvisionedConcurrencyUtilization"}


class Target:
    """A function's alias `live` as a scalable target."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.api = client("application-autoscaling", function.server.url)
        self.resource = f"function:{function.name}:live"
        function.server.lambda_.create_alias(
            FunctionName=function.name, Name="live", FunctionVersion=version_of(function)
        )

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        names = {"ServiceNamespace": "lambda", "ResourceId": self.resource, "ScalableDimension": DIMENSION}
        answer: dict[str, Any] = getattr(self.api, operation)(**{**names, **params})
        return answer

    def register(self, minimum: int, maximum: int, **params: Any) -> str:
        answer = self.call("register_scalable_target", MinCapacity=minimum, MaxCapacity=maximum, **params)
        return str(answer["ScalableTargetARN"])

    def described(self) -> dict[str, Any]:
        (found,) = self.api.describe_scalable_targets(ServiceNamespace="lambda", ResourceIds=[self.resource])[
            "ScalableTargets"
        ]
        return dict(found)

    def track(self, target: float, name: str = "track", **params: Any) -> dict[str, Any]:
        configuration = {"TargetValue": target, "PredefinedMetricSpecification": UTILIZATION, **params}
        return self.call(
            "put_scaling_policy",
            PolicyName=name,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=configuration,
        )

    def activities(self) -> list[dict[str, Any]]:
        return list(self.call("describe_scaling_activities")["ScalingActivities"])

    @property
    def capacity(self) -> int:
        try:
            return numbers(get(self.function, "live"))[0]
        except ClientError:
            return 0

    def refusal(self, operation: str, **params: Any) -> tuple[str, str]:
        with pytest.raises(ClientError) as caught:
            self.call(operation, **params)
        error = caught.value.response["Error"]
        return error["Code"], error["Message"]


@pytest.fixture
def target(deploy: Deploy) -> Target:
    return Target(deploy(SOURCE, "scaled"))


def test_a_target_keeps_the_capacity_within_its_bounds(target: Target) -> None:
    arn = target.register(2, 5, Tags={"team": "a"})
    assert arn.startswith("arn:aws:application-autoscaling:us-east-1:000000000000:scalable-target/")
    assert target.capacity == 2
    (activity,) = target.activities()
    assert activity["Description"] == "Setting desired capacity to 2."
    assert activity["Cause"] == "minimum capacity was set to 2"
    assert activity["StatusCode"] == "Successful"
    found = target.described()
    assert (found["MinCapacity"], found["MaxCapacity"], found["ScalableTargetARN"]) == (2, 5, arn)
    assert found["RoleARN"].endswith("/AWSServiceRoleForApplicationAutoScaling_LambdaConcurrency")
    assert target.call("register_scalable_target", MaxCapacity=3)["ScalableTargetARN"] == arn
    put(target.function, "live", 3)
    target.register(0, 1)
    assert target.capacity == 1
    target.register(0, 0)
    assert target.capacity == 0

    tags = target.api.list_tags_for_resource(ResourceARN=arn)["Tags"]
    assert tags == {"team": "a"}
    target.api.tag_resource(ResourceARN=arn, Tags={"stage": "b"})
    target.api.untag_resource(ResourceARN=arn, TagKeys=["team"])
    assert target.api.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"stage": "b"}
    with pytest.raises(target.api.exceptions.ResourceNotFoundException) as caught:
        target.api.list_tags_for_resource(ResourceARN=arn + "0")
    assert caught.value.response["ResourceName"] == arn + "0"

    target.call("deregister_scalable_target")
    code, message = target.refusal("deregister_scalable_target")
    assert code == "ObjectNotFoundException"
    assert message == (
        f"No scalable target found for service namespace: lambda, resource ID: {target.resource}, scalable dimension: "
        f"{DIMENSION}"
    )


def test_what_can_not_be_a_target(target: Target) -> None:
    unsupported = ("ValidationException", "Unsupported service namespace, resource type or scalable dimension")
    bounds = {"MinCapacity": 1, "MaxCapacity": 2}
    operation = "register_scalable_target"
    assert target.refusal(operation, **bounds, ResourceId="table/t") == unsupported
    assert target.refusal(operation, **bounds, ScalableDimension="ecs:service:DesiredCount") == unsupported
    name = target.function.name
    assert target.refusal(operation, **bounds, ResourceId=f"function:{name}:$LATEST") == unsupported
    code, message = target.refusal(operation, **bounds, ResourceId=f"function:{name}:none")
    assert code == "ValidationException"
    assert message == (
        f"Validation failed for resource: function:{name}:none, scalable dimension: {DIMENSION}. Reason: Cannot find "
        f"alias arn: arn:aws:lambda:us-east-1:000000000000:function:{name}:none"
    )
    assert target.refusal(operation, MinCapacity=3, MaxCapacity=2) == (
        "ValidationException",
        "Maximum capacity cannot be less than minimum capacity",
    )
    assert target.refusal(operation, MinCapacity=3)[0] == "ValidationException"
    code, message = target.refusal(operation, **bounds, ServiceNamespace="lambada")
    assert code == "ValidationException"
    assert "failed to satisfy constraint: Member must satisfy enum value set" in message


def test_policies(target: Target) -> None:
    configuration = {"TargetValue": 0.7, "PredefinedMetricSpecification": UTILIZATION}
    code, message = target.refusal(
        "put_scaling_policy",
        PolicyName="p",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=configuration,
    )
    assert code == "ObjectNotFoundException"
    assert message.startswith("No scalable target registered for service namespace: lambda, resource ID: function:")
    target.register(0, 5)
    answer = target.track(0.7, ScaleInCooldown=60)
    prefix = f"TargetTracking-{target.resource}-Alarm"
    assert [each["AlarmName"][: len(prefix) + 1] for each in answer["Alarms"]] == [prefix + "H", prefix + "L"]
    assert target.track(0.6)["PolicyARN"] == answer["PolicyARN"]
    (found,) = target.call("describe_scaling_policies", PolicyNames=["track"])["ScalingPolicies"]
    assert found["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 0.6
    assert found["Alarms"] == answer["Alarms"]

    code, message = target.refusal("put_scaling_policy", PolicyName="steps", PolicyType="StepScaling")
    assert code == "ValidationException"
    assert "StepScaling is not supported" in message
    for wrong in (
        {"TargetValue": 0.95, "PredefinedMetricSpecification": UTILIZATION},
        {"TargetValue": 0.5},
        {
            "TargetValue": 0.5,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"},
        },
        {"TargetValue": 0.5, "PredefinedMetricSpecification": UTILIZATION, "ScaleInCooldown": -1},
    ):
        code, _ = target.refusal(
            "put_scaling_policy",
            PolicyName="wrong",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=wrong,
        )
        assert code == "ValidationException"
    with pytest.raises(target.api.exceptions.ValidationException) as caught:
        target.track(0.5, "another")
    assert "Only one TargetTrackingScaling policy" in str(caught.value)
    target.call("delete_scaling_policy", PolicyName="track")
    code, message = target.refusal("delete_scaling_policy", PolicyName="track")
    assert code == "ObjectNotFoundException"
    assert message.endswith(f"scalable dimension: {DIMENSION}, policy name: track")


def test_scheduled_actions_in_pages(target: Target) -> None:
    target.register(0, 5)
    action = {"MinCapacity": 1, "MaxCapacity": 2}
    for name in ("a", "b", "c"):
        target.call(
            "put_scheduled_action",
            ScheduledActionName=name,
            Schedule="cron(0 9 ? * MON-FRI *)",
            Timezone="Europe/Berlin",
            ScalableTargetAction=action,
        )
    first = target.call("describe_scheduled_actions", MaxResults=2)
    second = target.call("describe_scheduled_actions", MaxResults=2, NextToken=first["NextToken"])
    found = [*first["ScheduledActions"], *second["ScheduledActions"]]
    assert [each["ScheduledActionName"] for each in found] == ["a", "b", "c"]
    assert "NextToken" not in second
    assert (found[0]["Timezone"], found[0]["ScalableTargetAction"]) == ("Europe/Berlin", action)
    for wrong in ("cron(0 9 * * * *)", "rate(1 minutes)", "every day", "at(2020-01-01T00:00:00)"):
        code, _ = target.refusal(
            "put_scheduled_action", ScheduledActionName="w", Schedule=wrong, ScalableTargetAction=action
        )
        assert code == "ValidationException"
    assert target.refusal("describe_scheduled_actions", NextToken="x")[0] == "InvalidNextTokenException"
    target.call("delete_scheduled_action", ScheduledActionName="a")
    assert target.refusal("delete_scheduled_action", ScheduledActionName="a")[0] == "ObjectNotFoundException"


@contextlib.contextmanager
def load(function: Function, callers: int) -> Iterator[None]:
    """So many callers that never pause."""
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            function.invoke(0.05, Qualifier="live")

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


FAST = {"LAMBENT_AUTOSCALING_PERIOD_SECONDS": "1"}


def test_it_scales_out_with_the_load_and_by_the_clock(tmp_path: Path) -> None:
    with serving(tmp_path / "data", environ=FAST) as server:
        target = Target(server.deploy(SOURCE, "tracked"))
        target.register(1, 10)
        target.track(0.5)
        with load(target.function, 2):
            wait_until(lambda: target.capacity == 4, "twice as much as there are callers")
        wait_until(lambda: numbers(get(target.function, "live")) == (4, 4, 4), "all of them are there")
        newest = target.activities()[0]
        assert newest["Description"] == "Setting desired capacity to 4."
        assert newest["Cause"].startswith(f"monitor alarm TargetTracking-{target.resource}-AlarmHigh-")
        assert newest["Cause"].endswith("in state ALARM triggered policy track")

        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        target.call(
            "put_scheduled_action",
            ScheduledActionName="night",
            Schedule=f"at({soon:%Y-%m-%dT%H:%M:%S})",
            ScalableTargetAction={"MinCapacity": 0, "MaxCapacity": 3},
        )
        wait_until(lambda: target.capacity == 3, "the night has come")
        assert target.activities()[0]["Cause"].startswith("scheduled action name night was triggered")
        assert (target.described()["MinCapacity"], target.described()["MaxCapacity"]) == (0, 3)
    with serving(tmp_path / "data", environ=FAST) as server:
        api = client("application-autoscaling", server.url)
        (policy,) = api.describe_scaling_policies(ServiceNamespace="lambda")["ScalingPolicies"]
        assert policy["PolicyName"] == "track"
        assert len(api.describe_scaling_activities(ServiceNamespace="lambda")["ScalingActivities"]) >= 3


@pytest.mark.long
def test_it_scales_in_when_the_load_stays_low(tmp_path: Path) -> None:
    with serving(tmp_path / "data", environ=FAST) as server:
        target = Target(server.deploy(SOURCE, "tracked"))
        target.register(4, 4)
        wait_until(lambda: numbers(get(target.function, "live")) == (4, 4, 4), "all of them are there")
        target.register(1, 4)
        target.track(0.5)
        started = time.monotonic()
        with load(target.function, 1):
            wait_until(lambda: target.capacity == 2, "half of them do", 60)
        assert time.monotonic() - started > 13
        # Without traffic there is no data, and nothing is scaled in.
        time.sleep(20)
        assert target.capacity == 2


def test_a_wrong_period_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not a whole number from 1 to 60"):
        Server(tmp_path / "data", environ={"LAMBENT_AUTOSCALING_PERIOD_SECONDS": "0"})
