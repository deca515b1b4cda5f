"""Application Auto Scaling on a clock of the test's: minutes, cooldowns and schedules as they are, in no time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.model.names import FunctionKey
from lambent.services.autoscaling import Room, Scaler, make_autoscaling_service
from lambent.services.autoscaling.names import DIMENSION
from lambent.services.autoscaling.policies import utilization_of
from lambent.store.database import Database
from lambent.store.scaling import ACTIVITIES_MAX, TargetKey
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import MetricStore
from lambent.wire.http import Request
from lambent.wire.service_model import load

ACCOUNT, REGION = "000000000000", "eu-west-1"
RESOURCE = "function:f:live"
NAMES = {"ServiceNamespace": "lambda", "ResourceId": RESOURCE, "ScalableDimension": DIMENSION}
UTILIZATION = {"PredefinedMetricSpecification": {"PredefinedMetricType": "LambdaProvisionedConcurrencyUtilization"}}
START_S = dt.datetime(2026, 11, 23, 9, 0, 30, tzinfo=dt.UTC).timestamp()


class _Level(NamedTuple):
    requested: int
    settled: bool


class Capacities:
    """Provisioned concurrency as numbers. A Provisioning."""

    def __init__(self) -> None:
        self.requested: dict[str, int] = {"live": 0, "1": 0}
        self.settled = True
        self.most = 1_000

    async def level(self, key: FunctionKey, qualifier: str) -> _Level:
        if key.name != "f" or qualifier not in self.requested:
            raise ResourceNotFound(f"Cannot find alias arn: {key.arn(qualifier)}")
        return _Level(self.requested[qualifier], self.settled)

    async def scale(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        await self.level(key, qualifier)
        if requested > self.most:
            raise InvalidParameterValue("too many")
        self.requested[qualifier] = requested


class Rig:
    def __init__(self, database: Database, metrics: MetricStore) -> None:
        self.now_s = START_S
        self.capacities = Capacities()
        self.room = Room(database, self.capacities, clock_s=lambda: self.now_s)
        self.metrics = metrics
        self.scaler = Scaler(self.room, metrics)
        self.service = make_autoscaling_service(self.room)

    @property
    def capacity(self) -> int:
        return self.capacities.requested["live"]

    async def call(self, operation: str, **params: Any) -> Any:
        named = load("application-autoscaling").operation(operation).input
        assert named is not None
        body = json.dumps({name: value for name, value in NAMES.items() if name in named.members} | params).encode()
        headers = {"x-amz-target": f"AnyScaleFrontendService.{operation}"}
        response = await self.service.handle(
            Request("POST", "/", "", headers, body, ACCOUNT, REGION, "application-autoscaling", "id")
        )
        answer = json.loads(response.body)
        assert response.status == 200, answer
        return answer

    async def track(self, target: float, name: str = "p", **more: Any) -> None:
        configuration = {"TargetValue": target, **UTILIZATION, **more}
        await self.call(
            "PutScalingPolicy",
            PolicyName=name,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=configuration,
        )

    async def minutes(self, *values: float | None) -> None:
        """Let so many minutes pass, each with this utilisation (None: no requests), and look after each."""
        series = utilization_of(TargetKey(ACCOUNT, REGION, RESOURCE))._replace(unit="None")
        for value in values:
            if value is not None:
                self.metrics.add(series, self.now_s, Point(1, value, value, value))
            self.now_s += 60
            await self.scaler.run_due()
            await self.scaler.evaluate()

    async def activities(self) -> list[tuple[str, str]]:
        found = (await self.call("DescribeScalingActivities"))["ScalingActivities"]
        return [(each["Description"], each["StatusCode"]) for each in found]


@contextlib.asynccontextmanager
async def rigged(folder: pathlib.Path) -> AsyncIterator[Rig]:
    database = await Database.open(folder / "state.db")
    metrics = MetricStore(folder / "metrics.db", clock_s=lambda: START_S)
    await metrics.start()
    try:
        yield Rig(database, metrics)
    finally:
        await metrics.close()
        await database.close()


def test_tracking_by_the_minute(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            await rig.call("RegisterScalableTarget", MinCapacity=2, MaxCapacity=20)
            assert rig.capacity == 2
            await rig.track(0.5)
            await rig.minutes(0.9, 0.9)
            assert rig.capacity == 2
            await rig.minutes(0.9)
            assert rig.capacity == 4
            await rig.minutes(1.0)  # the alarm is still on
            assert rig.capacity == 8
            rig.capacities.settled = False
            await rig.minutes(1.0)  # not all of them are there yet
            assert rig.capacity == 8
            rig.capacities.settled = True
            await rig.minutes(1.0, 1.0)
            assert rig.capacity == 20
            await rig.minutes(0.4, *[0.3] * 13)
            assert rig.capacity == 20
            await rig.minutes(0.3)
            assert rig.capacity == 16
            await rig.minutes(*[0.3] * 14)
            assert rig.capacity == 16
            await rig.minutes(0.3)
            assert rig.capacity == 10
            await rig.minutes(None, *[0.1] * 14, None)
            assert rig.capacity == 10
            found = await rig.activities()
            assert found[0] == ("Setting desired capacity to 10.", "Successful")
            assert found[-1] == ("Setting desired capacity to 2.", "Successful")
            assert len(found) == 7

    asyncio.run(body())


def test_cooldowns_suspensions_and_scale_in_that_is_off(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            await rig.call("RegisterScalableTarget", MinCapacity=1, MaxCapacity=100)
            rig.capacities.requested["live"] = 10
            await rig.track(0.5, ScaleOutCooldown=300, DisableScaleIn=True)
            await rig.minutes(0.8, 0.8, 0.8)
            assert rig.capacity == 16
            await rig.minutes(0.8, 0.8)  # what was added has to show first
            assert rig.capacity == 16
            await rig.minutes(1.0)  # even more is asked for
            assert rig.capacity == 20
            await rig.minutes(*[0.1] * 20)
            assert rig.capacity == 20
            await rig.track(0.5)
            suspended = {"DynamicScalingInSuspended": True}
            await rig.call("RegisterScalableTarget", SuspendedState=suspended)
            await rig.minutes(0.1)
            assert rig.capacity == 20
            await rig.call("RegisterScalableTarget", SuspendedState={"DynamicScalingInSuspended": False})
            await rig.minutes(0.1)
            assert rig.capacity == 4

    asyncio.run(body())


def test_two_policies_and_a_metric_of_ones_own(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            await rig.call("RegisterScalableTarget", MinCapacity=1, MaxCapacity=100)
            rig.capacities.requested["live"] = 10
            await rig.track(0.5)
            own = {
                "MetricName": "ProvisionedConcurrencyUtilization",
                "Namespace": "AWS/Lambda",
                "Dimensions": [{"Name": "Resource", "Value": "f:live"}, {"Name": "FunctionName", "Value": "f"}],
                "Statistic": "Maximum",
            }
            await rig.call(
                "PutScalingPolicy",
                PolicyName="peaks",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration={"TargetValue": 0.25, "CustomizedMetricSpecification": own},
            )
            await rig.minutes(0.6, 0.6, 0.6)
            assert rig.capacity == 24  # the larger of 12 and 24
            # Low for one, right for the other: nobody scales in.
            await rig.minutes(*[0.24] * 16)
            assert rig.capacity == 24

    asyncio.run(body())


def test_what_lambda_refuses_is_written_down(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            rig.capacities.most = 5
            await rig.call("RegisterScalableTarget", MinCapacity=6, MaxCapacity=9)
            (activity,) = (await rig.call("DescribeScalingActivities"))["ScalingActivities"]
            assert activity["StatusCode"] == "Failed"
            assert activity["StatusMessage"] == "Failed to set desired capacity to 6. Reason: too many"
            for _ in range(ACTIVITIES_MAX + 5):
                await rig.call("RegisterScalableTarget", MinCapacity=6)
            page = await rig.call("DescribeScalingActivities")
            count = len(page["ScalingActivities"])
            while "NextToken" in page:
                page = await rig.call("DescribeScalingActivities", NextToken=page["NextToken"])
                count += len(page["ScalingActivities"])
            assert count == ACTIVITIES_MAX
            # The alias goes; its target stays, and does nothing.
            await rig.track(0.5)
            del rig.capacities.requested["live"]
            await rig.minutes(1.0, 1.0, 1.0)
            assert len((await rig.call("DescribeScalableTargets"))["ScalableTargets"]) == 1

    asyncio.run(body())


def test_schedules(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            await rig.call("RegisterScalableTarget", MinCapacity=0, MaxCapacity=10)
            for name, schedule, action in (
                ("up", "cron(2 9 * * ? *)", {"MinCapacity": 5}),
                ("down", "at(2026-11-23T09:04:00)", {"MinCapacity": 0, "MaxCapacity": 2}),
                ("late", "rate(1 hour)", {"MinCapacity": 12}),
            ):
                await rig.call(
                    "PutScheduledAction", ScheduledActionName=name, Schedule=schedule, ScalableTargetAction=action
                )
            await rig.minutes(None)
            assert rig.capacity == 0
            await rig.minutes(None)
            assert rig.capacity == 5
            await rig.minutes(None, None)
            assert rig.capacity == 2
            await rig.call("RegisterScalableTarget", SuspendedState={"ScheduledScalingSuspended": True})
            rig.now_s += 24 * 3600
            await rig.minutes(None)
            assert rig.capacity == 2
            await rig.call("RegisterScalableTarget", SuspendedState={"ScheduledScalingSuspended": False})
            await rig.call("DeleteScheduledAction", ScheduledActionName="up")
            # However long nobody looked: once.
            rig.now_s += 24 * 3600
            await rig.minutes(None)
            (target,) = (await rig.call("DescribeScalableTargets"))["ScalableTargets"]
            assert (rig.capacity, target["MinCapacity"], target["MaxCapacity"]) == (12, 12, 12)
            before = await rig.activities()
            await rig.minutes(None)
            assert await rig.activities() == before
            await rig.call("DeregisterScalableTarget")
            assert (await rig.call("DescribeScheduledActions"))["ScheduledActions"] == []

    asyncio.run(body())


def test_the_task_sleeps_until_something_is_due(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with rigged(tmp_path) as rig:
            await rig.call("RegisterScalableTarget", MinCapacity=0, MaxCapacity=10)
            rig.scaler.start()
            action = {"MinCapacity": 3, "MaxCapacity": 3}
            await rig.call(
                "PutScheduledAction",
                ScheduledActionName="now",
                Schedule="at(2026-11-23T09:00:31)",
                ScalableTargetAction=action,
            )
            rig.now_s += 1
            rig.room.wake()
            async with asyncio.timeout(10):
                while rig.capacity != 3:
                    await asyncio.sleep(0.01)
            await rig.scaler.close()

    asyncio.run(body())


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**63)
    | st.floats()
    | st.sampled_from([RESOURCE, "lambda", DIMENSION, "", "p", "rate(1 day)", "cron(* * ? * L *)", "Europe/Berlin"])
)
ANYTHING = VALUES | st.text(max_size=8) | st.lists(VALUES, max_size=2) | st.dictionaries(st.text(max_size=3), VALUES)
LIKELY = {
    **NAMES,
    "MinCapacity": 1,
    "MaxCapacity": 3,
    "PolicyName": "p",
    "PolicyType": "TargetTrackingScaling",
    "TargetTrackingScalingPolicyConfiguration": {"TargetValue": 0.5, **UTILIZATION},
    "ScheduledActionName": "a",
    "Schedule": "rate(1 day)",
    "ScalableTargetAction": {"MinCapacity": 1},
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_makes_it_answer_500(tmp_path: pathlib.Path, data: st.DataObject) -> None:
    model = load("application-autoscaling")

    async def body() -> None:
        async with rigged(tmp_path) as rig:
            for operation in data.draw(st.lists(st.sampled_from(sorted(rig.service.handlers)), max_size=12)):
                shape = model.operation(operation).input
                assert shape is not None
                params = {name: value for name, value in LIKELY.items() if name in shape.members}
                params |= data.draw(st.dictionaries(st.sampled_from(sorted(shape.members)), ANYTHING, max_size=2))
                headers = {"x-amz-target": f"AnyScaleFrontendService.{operation}"}
                text = json.dumps(params).encode()
                request = Request("POST", "/", "", headers, text, ACCOUNT, REGION, "application-autoscaling", "id")
                response = await rig.service.handle(request)
                assert response.status in (200, 400), (operation, params, response.body)

    asyncio.run(body())
