"""Scheduled actions: other bounds at a given time, once or again and again. `scaler` carries them out."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any, Final

from lambent.model.errors import ValidationError
from lambent.services.autoscaling import schedule
from lambent.services.autoscaling.errors import LimitExceeded, not_found, not_registered
from lambent.services.autoscaling.names import DIMENSION, NAMESPACE, action_arn, target_key
from lambent.services.autoscaling.room import Room, matches, moment, page
from lambent.services.autoscaling.targets import check_bounds
from lambent.services.base import CallContext, Handler
from lambent.store.scaling import ActionRecord, ScalingRows, TargetKey

Params = dict[str, Any]
_ACTIONS_MAX: Final = 200


class Actions:
    """Handlers of the operations on scheduled actions."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def handlers(self) -> dict[str, Handler]:
        return {
            "PutScheduledAction": self.put,
            "DescribeScheduledActions": self.describe,
            "DeleteScheduledAction": self.delete,
        }

    async def put(self, context: CallContext, params: Params) -> Params:
        """Make an action, or change what the request names of one."""
        key = target_key(context.account, context.region, params)

        def work(rows: ScalingRows) -> None:
            if rows.target(key) is None:
                raise not_registered(key)
            record = rows.action(key, params["ScheduledActionName"])
            if record is None:
                record = self._new(rows, key, params)
            self._change(record, params)
            rows.save_action(record)

        async with self._room.changing:
            await self._room.rows(work)
        self._room.wake()
        return {}

    def _new(self, rows: ScalingRows, key: TargetKey, params: Params) -> ActionRecord:
        if "Schedule" not in params or "ScalableTargetAction" not in params:
            raise ValidationError("Schedule and ScalableTargetAction are required for a new scheduled action")
        if sum(each.key == key for each in rows.actions(key.account, key.region)) >= _ACTIONS_MAX:
            raise LimitExceeded(f"A scalable target can have {_ACTIONS_MAX} scheduled actions at most")
        return ActionRecord(
            key=key,
            name=params["ScheduledActionName"],
            id=str(uuid.uuid4()),
            created_s=self._room.clock_s(),
            schedule=params["Schedule"],
        )

    def _change(self, record: ActionRecord, params: Params) -> None:
        record.schedule = params.get("Schedule", record.schedule)
        record.timezone = params.get("Timezone", record.timezone)
        record.start_s = _seconds(params.get("StartTime"), record.start_s)
        record.end_s = _seconds(params.get("EndTime"), record.end_s)
        if record.start_s is not None and record.end_s is not None and record.end_s <= record.start_s:
            raise ValidationError("EndTime must be later than StartTime")
        action = params.get("ScalableTargetAction")
        if action is not None:
            if "MinCapacity" not in action and "MaxCapacity" not in action:
                raise ValidationError("ScalableTargetAction must have MinCapacity, MaxCapacity or both")
            record.minimum, record.maximum = action.get("MinCapacity"), action.get("MaxCapacity")
            low, high = record.minimum, record.maximum
            check_bounds(low or 0, max(low or 0, 0) if high is None else high)
        record.next_s = next_due_s(record, self._room.clock_s())
        if record.next_s is None and record.schedule.startswith("at("):
            raise ValidationError(f"The time of the schedule has passed: {record.schedule}")

    async def describe(self, context: CallContext, params: Params) -> Params:
        if params["ServiceNamespace"] != NAMESPACE or params.get("ScalableDimension", DIMENSION) != DIMENSION:
            return {"ScheduledActions": []}
        names = params.get("ScheduledActionNames") or None

        def read(rows: ScalingRows) -> tuple[list[ActionRecord], str | None]:
            return page(
                params,
                lambda after: rows.actions(context.account, context.region, after=after),
                lambda record: (record.key.resource, record.name),
                ("", ""),
                lambda record: matches(record.key, params) and (names is None or record.name in names),
            )

        records, token = await self._room.rows(read)
        return {"ScheduledActions": [_document(each) for each in records], "NextToken": token}

    async def delete(self, context: CallContext, params: Params) -> Params:
        key = target_key(context.account, context.region, params)
        name = params["ScheduledActionName"]
        async with self._room.changing:
            if not await self._room.rows(lambda rows: rows.delete_action(key, name)):
                raise not_found("scheduled action", key, f"scheduled action name: {name}")
        return {}


def next_due_s(record: ActionRecord, after_s: float) -> float | None:
    """The next time within StartTime and EndTime. Raises ValidationError for a schedule that is none."""
    anchor_s = record.created_s if record.start_s is None else record.start_s
    try:
        found = schedule.parse(record.schedule, record.timezone, anchor_s)
    except schedule.BadSchedule as error:
        raise ValidationError(f"The schedule is not valid: {error}") from None
    if record.start_s is not None and after_s < record.start_s:
        # What falls on StartTime itself counts.
        after_s = record.start_s - 0.001
    due_s = found.next_after(after_s)
    return None if due_s is None or (record.end_s is not None and due_s > record.end_s) else due_s


def _seconds(value: dt.datetime | None, otherwise: float | None) -> float | None:
    return otherwise if value is None else value.timestamp()


def _document(record: ActionRecord) -> Params:
    action = {"MinCapacity": record.minimum, "MaxCapacity": record.maximum}
    answer: Params = {
        "ScheduledActionName": record.name,
        "ScheduledActionARN": action_arn(record.key, record.id, record.name),
        "ServiceNamespace": NAMESPACE,
        "ResourceId": record.key.resource,
        "ScalableDimension": DIMENSION,
        "Schedule": record.schedule,
        "ScalableTargetAction": {name: value for name, value in action.items() if value is not None},
        "CreationTime": moment(record.created_s),
    }
    if record.timezone:
        answer["Timezone"] = record.timezone
    if record.start_s is not None:
        answer["StartTime"] = moment(record.start_s)
    if record.end_s is not None:
        answer["EndTime"] = moment(record.end_s)
    return answer
