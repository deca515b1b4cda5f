"""Target tracking policies: which metric is to be kept at which value. `scaler` carries them out."""

from __future__ import annotations

import uuid
from typing import Any, Final

from lambent.core.tracking import Rule
from lambent.model.errors import ValidationError
from lambent.services.autoscaling.errors import LimitExceeded, not_found, not_registered
from lambent.services.autoscaling.names import (
    DIMENSION,
    NAMESPACE,
    alarm_document,
    function_of,
    policy_arn,
    target_key,
)
from lambent.services.autoscaling.room import Room, matches, moment, page
from lambent.services.base import CallContext, Handler
from lambent.store.scaling import PolicyRecord, ScalingRows, TargetKey
from lambent.telemetry.metric_files import SeriesKey

Params = dict[str, Any]

_TYPE: Final = "TargetTrackingScaling"
_PREDEFINED: Final = "LambdaProvisionedConcurrencyUtilization"
#: The guide: between 10 % and 90 %.
_TARGET_MIN, _TARGET_MAX = 0.1, 0.9
_POLICIES_MAX: Final = 50


class Policies:
    """Handlers of the operations on scaling policies."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def handlers(self) -> dict[str, Handler]:
        return {
            "PutScalingPolicy": self.put,
            "DescribeScalingPolicies": self.describe,
            "DeleteScalingPolicy": self.delete,
        }

    async def put(self, context: CallContext, params: Params) -> Params:
        key = target_key(context.account, context.region, params)
        name = params["PolicyName"]

        def work(rows: ScalingRows) -> PolicyRecord:
            if rows.target(key) is None:
                raise not_registered(key)
            existing = rows.policies_of(key)
            record = next((each for each in existing if each.name == name), None)
            kind = params.get("PolicyType", "StepScaling" if record is None else _TYPE)
            if kind != _TYPE:
                raise ValidationError(
                    f"The policy type {kind} is not supported for the scalable dimension {DIMENSION}: "
                    f"it must be {_TYPE}."
                )
            configuration = params.get("TargetTrackingScalingPolicyConfiguration")
            if configuration is None:
                configuration = {} if record is None else record.configuration
            check_configuration(configuration)
            others = [each for each in existing if each.name != name]
            if any(_metric(each.configuration) == _metric(configuration) for each in others):
                raise ValidationError(
                    "Only one TargetTrackingScaling policy for a given metric specification is allowed."
                )
            if record is None:
                if len(existing) >= _POLICIES_MAX:
                    raise LimitExceeded(f"A scalable target can have {_POLICIES_MAX} policies at most")
                record = PolicyRecord(
                    key=key,
                    name=name,
                    id=str(uuid.uuid4()),
                    created_s=self._room.clock_s(),
                    configuration=configuration,
                    alarm_high=str(uuid.uuid4()),
                    alarm_low=str(uuid.uuid4()),
                )
            record.configuration = configuration
            rows.save_policy(record)
            return record

        async with self._room.changing:
            record = await self._room.rows(work)
        return {"PolicyARN": policy_arn(key, record.id, name), "Alarms": _alarms(record)}

    async def describe(self, context: CallContext, params: Params) -> Params:
        if params["ServiceNamespace"] != NAMESPACE or params.get("ScalableDimension", DIMENSION) != DIMENSION:
            return {"ScalingPolicies": []}
        names = params.get("PolicyNames") or None

        def read(rows: ScalingRows) -> tuple[list[PolicyRecord], str | None]:
            return page(
                params,
                lambda after: rows.policies(context.account, context.region, after=after),
                lambda record: (record.key.resource, record.name),
                ("", ""),
                lambda record: matches(record.key, params) and (names is None or record.name in names),
            )

        records, token = await self._room.rows(read)
        return {"ScalingPolicies": [_document(each) for each in records], "NextToken": token}

    async def delete(self, context: CallContext, params: Params) -> Params:
        key = target_key(context.account, context.region, params)
        name = params["PolicyName"]
        async with self._room.changing:
            if not await self._room.rows(lambda rows: rows.delete_policy(key, name)):
                raise not_found("scaling policy", key, f"policy name: {name}")
        return {}


def check_configuration(configuration: Params) -> None:
    """Raise ValidationError for what can not be carried out."""
    predefined = configuration.get("PredefinedMetricSpecification")
    customized = configuration.get("CustomizedMetricSpecification")
    if "TargetValue" not in configuration or (predefined is None) == (customized is None):
        raise ValidationError(
            "TargetTrackingScalingPolicyConfiguration must have a TargetValue and either a "
            "PredefinedMetricSpecification or a CustomizedMetricSpecification."
        )
    target = configuration["TargetValue"]
    if predefined is not None:
        kind = predefined["PredefinedMetricType"]
        if kind != _PREDEFINED:
            raise ValidationError(
                f"The predefined metric type {kind} is not supported for the scalable dimension {DIMENSION}: it must "
                f"be {_PREDEFINED}."
            )
        if not _TARGET_MIN <= target <= _TARGET_MAX:
            raise ValidationError(f"TargetValue must be from {_TARGET_MIN} to {_TARGET_MAX} for {_PREDEFINED}.")
    else:
        assert customized is not None
        if customized.get("Metrics"):
            raise ValidationError("Lambent does not support metric math in CustomizedMetricSpecification.")
        if any(name not in customized for name in ("MetricName", "Namespace", "Statistic")):
            raise ValidationError("CustomizedMetricSpecification must have MetricName, Namespace and Statistic.")
        if not target > 0:
            raise ValidationError("TargetValue must be greater than zero.")
    for name in ("ScaleOutCooldown", "ScaleInCooldown"):
        if configuration.get(name, 0) < 0:
            raise ValidationError(f"{name} must not be negative.")


def rule_of(record: PolicyRecord) -> Rule:
    configuration = record.configuration
    return Rule(
        target=configuration["TargetValue"],
        # For this dimension the default is none (the guide's table of default cooldowns).
        scale_out_cooldown_s=configuration.get("ScaleOutCooldown", 0),
        scale_in_cooldown_s=configuration.get("ScaleInCooldown", 0),
        scale_in=not configuration.get("DisableScaleIn", False),
    )


def metric_of(record: PolicyRecord) -> tuple[SeriesKey, str]:
    """The series that a policy tracks, and the statistic of its points."""
    key, configuration = record.key, record.configuration
    customized = configuration.get("CustomizedMetricSpecification")
    if customized is None:
        return utilization_of(key), "Average"
    dimensions = tuple(sorted((each["Name"], each["Value"]) for each in customized.get("Dimensions", [])))
    place = (key.account, key.region, customized["Namespace"], customized["MetricName"])
    return SeriesKey(*place, dimensions, customized.get("Unit", "")), customized["Statistic"]


def utilization_of(key: TargetKey) -> SeriesKey:
    function, qualifier = function_of(key)
    dimensions = (("FunctionName", function.name), ("Resource", f"{function.name}:{qualifier}"))
    return SeriesKey(key.account, key.region, "AWS/Lambda", "ProvisionedConcurrencyUtilization", dimensions, "")


def _metric(configuration: Params) -> Any:
    return configuration.get("PredefinedMetricSpecification") or configuration.get("CustomizedMetricSpecification")


def _alarms(record: PolicyRecord) -> list[dict[str, str]]:
    return [
        alarm_document(record.key, "High", record.alarm_high),
        alarm_document(record.key, "Low", record.alarm_low),
    ]


def _document(record: PolicyRecord) -> Params:
    return {
        "PolicyARN": policy_arn(record.key, record.id, record.name),
        "PolicyName": record.name,
        "ServiceNamespace": NAMESPACE,
        "ResourceId": record.key.resource,
        "ScalableDimension": DIMENSION,
        "PolicyType": _TYPE,
        "TargetTrackingScalingPolicyConfiguration": record.configuration,
        "Alarms": _alarms(record),
        "CreationTime": moment(record.created_s),
    }
