"""Scalable targets: which resources may be scaled, and between which capacities."""

from __future__ import annotations

import secrets
from typing import Any

from lambent.model.errors import ApiError, ValidationError
from lambent.services.autoscaling.errors import ResourceNotFound, TooManyTags, not_found
from lambent.services.autoscaling.names import DIMENSION, NAMESPACE, service_role, target_arn, target_key
from lambent.services.autoscaling.room import Room, matches, moment, page
from lambent.services.base import CallContext, Handler
from lambent.store.scaling import ActivityRecord, ScalingRows, TargetKey, TargetRecord

Params = dict[str, Any]
_TAGS_MAX = 50


class Targets:
    """Handlers of the operations on targets, on their tags, and on what was done to them."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def handlers(self) -> dict[str, Handler]:
        return {
            "RegisterScalableTarget": self.register,
            "DescribeScalableTargets": self.describe,
            "DeregisterScalableTarget": self.deregister,
            "DescribeScalingActivities": self.activities,
            "ListTagsForResource": self.list_tags,
            "TagResource": self.tag,
            "UntagResource": self.untag,
        }

    async def register(self, context: CallContext, params: Params) -> Params:
        """Make a target, or change what the request names of one."""
        key = target_key(context.account, context.region, params)
        room = self._room
        async with room.changing:
            try:
                await room.level(key)
            except ApiError as error:
                raise ValidationError(
                    f"Validation failed for resource: {key.resource}, scalable dimension: {DIMENSION}. "
                    f"Reason: {error.message}"
                ) from None
            record = await room.rows(lambda rows: self._save(rows, key, params))
            await room.into_bounds(record)
        return {"ScalableTargetARN": target_arn(key, record.id)}

    def _save(self, rows: ScalingRows, key: TargetKey, params: Params) -> TargetRecord:
        record = rows.target(key)
        if record is None:
            if "MinCapacity" not in params or "MaxCapacity" not in params:
                raise ValidationError("MinCapacity and MaxCapacity are required when a scalable target is registered")
            record = TargetRecord(
                key=key,
                id=secrets.token_hex(10),
                minimum=0,
                maximum=0,
                role_arn=service_role(key.account),
                created_s=self._room.clock_s(),
            )
            _check_tags(params.get("Tags", {}))
            record.tags = params.get("Tags", {})
        elif params.get("Tags"):
            raise ValidationError("Tags of a scalable target that is registered are changed by TagResource")
        record.minimum = params.get("MinCapacity", record.minimum)
        record.maximum = params.get("MaxCapacity", record.maximum)
        check_bounds(record.minimum, record.maximum)
        record.suspended = {**record.suspended, **params.get("SuspendedState", {})}
        rows.save_target(record)
        return record

    async def describe(self, context: CallContext, params: Params) -> Params:
        if not _is_ours(params):
            return {"ScalableTargets": []}
        wanted = params.get("ResourceIds") or None

        def read(rows: ScalingRows) -> tuple[list[TargetRecord], str | None]:
            return page(
                params,
                lambda after: rows.targets(context.account, context.region, after=after),
                lambda record: record.key.resource,
                "",
                lambda record: wanted is None or record.key.resource in wanted,
            )

        records, token = await self._room.rows(read)
        return {"ScalableTargets": [_target_document(each) for each in records], "NextToken": token}

    async def deregister(self, context: CallContext, params: Params) -> Params:
        key = target_key(context.account, context.region, params)
        async with self._room.changing:
            if not await self._room.rows(lambda rows: rows.delete_target(key)):
                raise not_found("scalable target", key)
        return {}

    async def activities(self, context: CallContext, params: Params) -> Params:
        if not _is_ours(params):
            return {"ScalingActivities": []}

        def read(rows: ScalingRows) -> tuple[list[tuple[int, ActivityRecord]], str | None]:
            return page(
                params,
                lambda before: rows.activities(context.account, context.region, before=before),
                lambda row: row[0],
                None,
                lambda row: matches(row[1].key, params),
            )

        found, token = await self._room.rows(read)
        return {"ScalingActivities": [_activity_document(each) for _, each in found], "NextToken": token}

    # --- tags --------------------------------------------------------------------------------------------

    async def list_tags(self, context: CallContext, params: Params) -> Params:
        record = await self._room.rows(lambda rows: _by_arn(rows, context, params))
        return {"Tags": record.tags}

    async def tag(self, context: CallContext, params: Params) -> Params:
        def work(rows: ScalingRows) -> None:
            record = _by_arn(rows, context, params)
            record.tags = {**record.tags, **params["Tags"]}
            _check_tags(record.tags)
            rows.save_target(record)

        async with self._room.changing:
            await self._room.rows(work)
        return {}

    async def untag(self, context: CallContext, params: Params) -> Params:
        def work(rows: ScalingRows) -> None:
            record = _by_arn(rows, context, params)
            record.tags = {name: value for name, value in record.tags.items() if name not in params["TagKeys"]}
            rows.save_target(record)

        async with self._room.changing:
            await self._room.rows(work)
        return {}


def check_bounds(minimum: int, maximum: int) -> None:
    if minimum < 0 or maximum < 0:
        raise ValidationError("Capacities can not be negative")
    if maximum < minimum:
        raise ValidationError("Maximum capacity cannot be less than minimum capacity")


def _check_tags(tags: dict[str, str]) -> None:
    if len(tags) > _TAGS_MAX:
        raise TooManyTags(f"A resource can have {_TAGS_MAX} tags at most")


def _is_ours(params: Params) -> bool:
    """Whether a list may have something in it. There is but one kind of target here."""
    return bool(params["ServiceNamespace"] == NAMESPACE and params.get("ScalableDimension", DIMENSION) == DIMENSION)


def _by_arn(rows: ScalingRows, context: CallContext, params: Params) -> TargetRecord:
    arn = params["ResourceARN"]
    for record in rows.targets(context.account, context.region):
        if target_arn(record.key, record.id) == arn:
            return record
    raise ResourceNotFound(f"The scalable target {arn} doesn't exist.", ResourceName=arn)


def _target_document(record: TargetRecord) -> Params:
    names = ("DynamicScalingInSuspended", "DynamicScalingOutSuspended", "ScheduledScalingSuspended")
    return {
        "ServiceNamespace": NAMESPACE,
        "ResourceId": record.key.resource,
        "ScalableDimension": DIMENSION,
        "MinCapacity": record.minimum,
        "MaxCapacity": record.maximum,
        "RoleARN": record.role_arn,
        "CreationTime": moment(record.created_s),
        "SuspendedState": {name: record.suspended.get(name, False) for name in names},
        "ScalableTargetARN": target_arn(record.key, record.id),
    }


def _activity_document(record: ActivityRecord) -> Params:
    answer: Params = {
        "ActivityId": record.id,
        "ServiceNamespace": NAMESPACE,
        "ResourceId": record.key.resource,
        "ScalableDimension": DIMENSION,
        "Description": record.description,
        "Cause": record.cause,
        "StartTime": moment(record.started_s),
        "StatusCode": record.status,
        "StatusMessage": record.message,
    }
    if record.ended_s is not None:
        answer["EndTime"] = moment(record.ended_s)
    return answer
