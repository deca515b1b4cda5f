"""Carries out policies and scheduled actions: one task that looks at the metrics once a period, and at what is due.

A scheduled action that fell due while the server was stopped is carried out once when it is up again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from lambent.core.tracking import LOW_DATAPOINTS, Capacity, Past, combine, decide
from lambent.model.errors import ApiError
from lambent.services.autoscaling.actions import next_due_s
from lambent.services.autoscaling.names import alarm_document
from lambent.services.autoscaling.policies import metric_of, rule_of
from lambent.services.autoscaling.room import Room
from lambent.store.scaling import ActionRecord, PolicyRecord, ScalingRows, TargetKey, TargetRecord
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import Metric, MetricStore

_log = logging.getLogger("lambent.autoscaling")
#: AWS's alarms look at points of one minute.
PERIOD_S: Final = 60
#: After a failure of our own.
_PAUSE_S: Final = 5.0


class Scaler:
    """See the module's head. `period_s`: length of a period, whole seconds."""

    def __init__(self, room: Room, metrics: MetricStore, period_s: int = PERIOD_S) -> None:
        assert period_s >= 1
        self._room = room
        self._metrics = metrics
        self._period_s = period_s
        self._changed = asyncio.Event()
        #: Capacities of the last round: whoever changes one, it is noticed.
        self._seen: dict[TargetKey, int] = {}
        self._task: asyncio.Task[None] | None = None
        room.wake = self._changed.set

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="autoscaling")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        clock_s = self._room.clock_s
        evaluate_s = self._next_period_s()
        while True:
            try:
                self._changed.clear()
                due_s = await self._room.rows(ScalingRows.next_due_s)
                wake_s = evaluate_s if due_s is None else min(evaluate_s, due_s)
                try:
                    await asyncio.wait_for(self._changed.wait(), max(0.0, wake_s - clock_s()))
                except TimeoutError:
                    pass
                await self.run_due()
                if clock_s() >= evaluate_s:
                    evaluate_s = self._next_period_s()
                    await self.evaluate()
            except Exception:
                _log.exception("bug in Lambent: a round of auto scaling failed")
                await asyncio.sleep(_PAUSE_S)

    def _next_period_s(self) -> int:
        return (int(self._room.clock_s()) // self._period_s + 1) * self._period_s

    # --- scheduled actions -------------------------------------------------------------------------------

    async def run_due(self) -> None:
        """Carry out every scheduled action whose time has come."""
        for action in await self._room.rows(lambda rows: rows.due_actions(self._room.clock_s())):
            async with self._room.changing:
                await self._act(action)

    async def _act(self, action: ActionRecord) -> None:
        room = self._room

        def work(rows: ScalingRows) -> TargetRecord | None:
            current = rows.action(action.key, action.name)
            if current is None or current.next_s != action.next_s:
                return None  # deleted or changed a moment ago
            current.next_s = next_due_s(current, room.clock_s())
            rows.save_action(current)
            target = rows.target(action.key)
            if target is None or target.suspended.get("ScheduledScalingSuspended", False):
                return None
            # One of the two alone takes the other along where they would cross.
            if action.minimum is not None:
                target.minimum = action.minimum
                target.maximum = max(target.maximum, target.minimum)
            if action.maximum is not None:
                target.maximum = action.maximum
                target.minimum = min(target.minimum, target.maximum)
            rows.save_target(target)
            return target

        target = await room.rows(work)
        if target is None:
            return
        try:
            await room.into_bounds(target, f"scheduled action name {action.name} was triggered: ")
        except ApiError as error:
            _log.warning("scheduled action %s of %s: %s", action.name, action.key.resource, error.message)

    # --- policies ----------------------------------------------------------------------------------------

    async def evaluate(self) -> None:
        """Look at the periods that have ended, and scale what must be."""
        for target, policies in await self._room.rows(ScalingRows.tracked):
            async with self._room.changing:
                await self._track(target, policies)

    async def _track(self, target: TargetRecord, policies: list[PolicyRecord]) -> None:
        room, now_s = self._room, self._room.clock_s()
        try:
            level = await room.level(target.key)
        except ApiError:
            return  # the function is gone
        if not level.settled or self._seen.get(target.key, level.requested) != level.requested:
            room.changed_s[target.key] = now_s
        self._seen[target.key] = level.requested
        if not level.settled:
            return
        capacity = Capacity(level.requested, target.minimum, target.maximum, room.changed_s.get(target.key))
        datapoints = await self._datapoints(policies, now_s)
        decisions = []
        for policy, values in zip(policies, datapoints, strict=True):
            past = Past(policy.scaled_out_s, policy.scaled_out_from, policy.scaled_in_s)
            rule = rule_of(policy)
            decisions.append((rule, decide(rule, past, capacity, values, now_s, self._period_s)))
        wanted = combine(capacity.current, decisions)
        if wanted is None:
            return
        out = wanted > capacity.current
        if target.suspended.get(f"DynamicScaling{'Out' if out else 'In'}Suspended", False):
            return
        policy = next(policy for policy, (_, each) in zip(policies, decisions, strict=True) if each == wanted)
        side, identity = ("High", policy.alarm_high) if out else ("Low", policy.alarm_low)
        alarm = alarm_document(policy.key, side, identity)["AlarmName"]
        cause = f"monitor alarm {alarm} in state ALARM triggered policy {policy.name}"
        if not await room.scale(target.key, wanted, cause):
            return
        self._seen[target.key] = wanted
        if out:
            policy.scaled_out_s, policy.scaled_out_from, policy.scaled_out_to = now_s, capacity.current, wanted
        else:
            policy.scaled_in_s = now_s
        await room.rows(lambda rows: rows.save_policy(policy))

    async def _datapoints(self, policies: list[PolicyRecord], now_s: float) -> list[list[float | None]]:
        """For each policy the values of the last periods that have ended, newest last."""
        end_s = int(now_s) // self._period_s * self._period_s
        start_s = end_s - LOW_DATAPOINTS * self._period_s
        wanted = [metric_of(policy) for policy in policies]
        found = await self._metrics.points([Metric(series, self._period_s) for series, _ in wanted], start_s, end_s)
        starts = range(start_s, end_s, self._period_s)
        answer = []
        for (_, statistic), units in zip(wanted, found, strict=True):
            points = next(iter(units.values()), {})
            answer.append([_value(points.get(start), statistic) for start in starts])
        return answer


def _value(point: Point | None, statistic: str) -> float | None:
    if point is None or not point.count:
        return None
    if statistic == "Average":
        return point.average
    return {
        "Minimum": point.minimum,
        "Maximum": point.maximum,
        "SampleCount": point.count,
        "Sum": point.sum,
    }[statistic]
