"""Application Auto Scaling in the tables: scalable targets, their policies and scheduled actions, and what was done.

Records and their repository, for one open transaction. A target owns its policies and actions: they go with it. The
record of what was done stays, `ACTIVITIES_MAX` entries for each target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, update

from lambent.store.schema import SCALABLE_TARGETS, SCALING_ACTIVITIES, SCALING_POLICIES, SCHEDULED_ACTIONS

_encode = msgspec.msgpack.Encoder().encode
ACTIVITIES_MAX = 200


class TargetKey(NamedTuple):
    """What identifies a scalable target; its dimension is always the provisioned concurrency of a function."""

    account: str
    region: str
    #: `function:NAME:QUALIFIER`.
    resource: str


class TargetRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Between which capacities a resource may be scaled."""

    key: TargetKey
    id: str
    minimum: int
    maximum: int
    role_arn: str
    created_s: float
    #: DynamicScalingInSuspended and the like, as they were sent.
    suspended: dict[str, bool] = {}
    tags: dict[str, str] = {}


class PolicyRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A target tracking policy, and what it did last, which its cooldowns count from."""

    key: TargetKey
    name: str
    id: str
    created_s: float
    #: TargetTrackingScalingPolicyConfiguration as it was sent.
    configuration: dict[str, Any]
    #: Ids of the two alarms.
    alarm_high: str
    alarm_low: str
    scaled_out_s: float | None = None
    #: Capacity before and after the last scaling out.
    scaled_out_from: int = 0
    scaled_out_to: int = 0
    scaled_in_s: float | None = None


class ActionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A scheduled action. `next_s`: when it is due; None: never again."""

    key: TargetKey
    name: str
    id: str
    created_s: float
    schedule: str
    timezone: str = ""
    start_s: float | None = None
    end_s: float | None = None
    minimum: int | None = None
    maximum: int | None = None
    next_s: float | None = None


class ActivityRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One change of capacity that was made, or could not be."""

    key: TargetKey
    id: str
    started_s: float
    ended_s: float | None = None
    description: str
    cause: str
    status: str
    message: str = ""


_TARGET = msgspec.msgpack.Decoder(TargetRecord)
_POLICY = msgspec.msgpack.Decoder(PolicyRecord)
_ACTION = msgspec.msgpack.Decoder(ActionRecord)
_ACTIVITY = msgspec.msgpack.Decoder(ActivityRecord)


class ScalingRows:
    """The rows of the four tables, in one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- targets -----------------------------------------------------------------------------------------

    def target(self, key: TargetKey) -> TargetRecord | None:
        document = self._connection.scalar(select(SCALABLE_TARGETS.c.document).where(_of(SCALABLE_TARGETS, key)))
        return None if document is None else _TARGET.decode(document)

    def save_target(self, record: TargetRecord) -> None:
        """Insert or replace."""
        self._save(SCALABLE_TARGETS, record.key._asdict(), {"document": _encode(record)})

    def delete_target(self, key: TargetKey) -> bool:
        """With its policies and scheduled actions; whether it was there."""
        return self._connection.execute(delete(SCALABLE_TARGETS).where(_of(SCALABLE_TARGETS, key))).rowcount > 0

    def targets(self, account: str, region: str, *, after: str = "") -> Iterator[TargetRecord]:
        """By resource, those past the resource `after`."""
        columns = SCALABLE_TARGETS.c
        where = and_(columns.account == account, columns.region == region, columns.resource > after)
        for row in self._connection.execute(select(columns.document).where(where).order_by(columns.resource)):
            yield _TARGET.decode(row[0])

    # --- policies ----------------------------------------------------------------------------------------

    def save_policy(self, record: PolicyRecord) -> None:
        """Insert or replace. The target must be there first."""
        self._save(SCALING_POLICIES, {**record.key._asdict(), "policy": record.name}, {"document": _encode(record)})

    def delete_policy(self, key: TargetKey, name: str) -> bool:
        where = and_(_of(SCALING_POLICIES, key), SCALING_POLICIES.c.policy == name)
        return self._connection.execute(delete(SCALING_POLICIES).where(where)).rowcount > 0

    def policies(self, account: str, region: str, *, after: tuple[str, str] = ("", "")) -> Iterator[PolicyRecord]:
        """By resource and name, those past `after`."""
        for row in self._listed(SCALING_POLICIES, "policy", account, region, after):
            yield _POLICY.decode(row)

    def policies_of(self, key: TargetKey) -> list[PolicyRecord]:
        query = select(SCALING_POLICIES.c.document).where(_of(SCALING_POLICIES, key))
        return [_POLICY.decode(row[0]) for row in self._connection.execute(query.order_by(SCALING_POLICIES.c.policy))]

    def tracked(self) -> list[tuple[TargetRecord, list[PolicyRecord]]]:
        """All targets that have policies, with these."""
        found: dict[TargetKey, list[PolicyRecord]] = {}
        columns = SCALING_POLICIES.c
        query = select(columns.document).order_by(columns.account, columns.region, columns.resource, columns.policy)
        for row in self._connection.execute(query):
            record = _POLICY.decode(row[0])
            found.setdefault(record.key, []).append(record)
        pairs = ((self.target(key), policies) for key, policies in found.items())
        return [(target, policies) for target, policies in pairs if target is not None]

    # --- scheduled actions -------------------------------------------------------------------------------

    def save_action(self, record: ActionRecord) -> None:
        """Insert or replace. The target must be there first."""
        values = {"next_s": record.next_s, "document": _encode(record)}
        self._save(SCHEDULED_ACTIONS, {**record.key._asdict(), "action": record.name}, values)

    def delete_action(self, key: TargetKey, name: str) -> bool:
        where = and_(_of(SCHEDULED_ACTIONS, key), SCHEDULED_ACTIONS.c.action == name)
        return self._connection.execute(delete(SCHEDULED_ACTIONS).where(where)).rowcount > 0

    def action(self, key: TargetKey, name: str) -> ActionRecord | None:
        where = and_(_of(SCHEDULED_ACTIONS, key), SCHEDULED_ACTIONS.c.action == name)
        document = self._connection.scalar(select(SCHEDULED_ACTIONS.c.document).where(where))
        return None if document is None else _ACTION.decode(document)

    def actions(self, account: str, region: str, *, after: tuple[str, str] = ("", "")) -> Iterator[ActionRecord]:
        """By resource and name, those past `after`."""
        for row in self._listed(SCHEDULED_ACTIONS, "action", account, region, after):
            yield _ACTION.decode(row)

    def due_actions(self, now_s: float) -> list[ActionRecord]:
        """In the order in which they are due."""
        columns = SCHEDULED_ACTIONS.c
        query = select(columns.document).where(columns.next_s <= now_s).order_by(columns.next_s)
        return [_ACTION.decode(row[0]) for row in self._connection.execute(query)]

    def next_due_s(self) -> float | None:
        """When the next action of all is due."""
        found: float | None = self._connection.scalar(select(func.min(SCHEDULED_ACTIONS.c.next_s)))
        return found

    # --- activities --------------------------------------------------------------------------------------

    def add_activity(self, record: ActivityRecord) -> None:
        """Keep it, and forget the oldest of its target where there are too many."""
        columns = SCALING_ACTIVITIES.c
        region = and_(columns.account == record.key.account, columns.region == record.key.region)
        number = (self._connection.scalar(select(func.max(columns.number)).where(region)) or 0) + 1
        values = {**record.key._asdict(), "number": number, "document": _encode(record)}
        self._connection.execute(insert(SCALING_ACTIVITIES).values(values))
        mine = _of(SCALING_ACTIVITIES, record.key)
        oldest = select(columns.number).where(mine).order_by(columns.number.desc()).offset(ACTIVITIES_MAX).limit(1)
        last = self._connection.scalar(oldest)
        if last is not None:
            self._connection.execute(delete(SCALING_ACTIVITIES).where(and_(mine, columns.number <= last)))

    def activities(
        self, account: str, region: str, *, before: int | None = None
    ) -> Iterator[tuple[int, ActivityRecord]]:
        """The newest first, with their places in that order; those past the place `before`."""
        columns = SCALING_ACTIVITIES.c
        where = and_(columns.account == account, columns.region == region)
        if before is not None:
            where = and_(where, columns.number < before)
        query = select(columns.number, columns.document).where(where).order_by(columns.number.desc())
        for row in self._connection.execute(query):
            yield row[0], _ACTIVITY.decode(row[1])

    # --- helpers -----------------------------------------------------------------------------------------

    def _listed(self, table: Table, name: str, account: str, region: str, after: tuple[str, str]) -> Iterator[bytes]:
        columns = table.c
        past = (columns.resource > after[0]) | and_(columns.resource == after[0], columns[name] > after[1])
        where = and_(columns.account == account, columns.region == region, past)
        query = select(columns.document).where(where).order_by(columns.resource, columns[name])
        for row in self._connection.execute(query):
            yield row[0]

    def _save(self, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
        where = and_(*(table.c[column] == value for column, value in key.items()))
        if self._connection.execute(update(table).where(where).values(values)).rowcount == 0:
            self._connection.execute(insert(table).values({**key, **values}))


def _of(table: Table, key: TargetKey) -> ColumnElement[bool]:
    return and_(*(table.c[name] == value for name, value in key._asdict().items()))
