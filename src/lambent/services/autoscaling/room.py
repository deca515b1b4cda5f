"""What all of Application Auto Scaling shares: the tables, the clock, and the one way to change a capacity.

Whoever changes anything holds `changing`, so that what is decided is decided about what there is.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lambent.model.errors import ApiError, ValidationError
from lambent.services.autoscaling.errors import InvalidNextToken
from lambent.services.autoscaling.names import function_of, read_token, write_token
from lambent.services.autoscaling.ports import Level, Provisioning
from lambent.store.database import Database
from lambent.store.scaling import ActivityRecord, ScalingRows, TargetKey, TargetRecord

T = TypeVar("T")
_PAGE_MAX = 50


class Room:
    """See the module's head. `wake` is called when something may be due earlier than it was."""

    def __init__(
        self, database: Database, provisioning: Provisioning, *, clock_s: Callable[[], float] = time.time
    ) -> None:
        self.clock_s = clock_s
        self.changing = asyncio.Lock()
        self.wake: Callable[[], None] = lambda: None
        #: When the capacity of a target last became what it is, as far as this process knows.
        self.changed_s: dict[TargetKey, float] = {}
        self._database = database
        self._provisioning = provisioning

    async def rows(self, work: Callable[[ScalingRows], T]) -> T:
        """Run `work` on the tables in one transaction."""
        return await self._database.run(lambda connection: work(ScalingRows(connection)))

    async def level(self, key: TargetKey) -> Level:
        """Raises ApiError when there is no such version or alias."""
        return await self._provisioning.level(*function_of(key))

    async def into_bounds(self, target: TargetRecord, trigger: str = "") -> None:
        """Move the capacity between the target's bounds if it is not there. Raises ApiError as `level`."""
        current = (await self.level(target.key)).requested
        wanted = max(target.minimum, min(current, target.maximum))
        if wanted != current:
            side = "minimum" if wanted > current else "maximum"
            await self.scale(target.key, wanted, f"{trigger}{side} capacity was set to {wanted}")

    async def scale(self, key: TargetKey, wanted: int, cause: str) -> bool:
        """Set the capacity and keep a record of it; whether that worked."""
        activity = ActivityRecord(
            key=key,
            id=str(uuid.uuid4()),
            started_s=self.clock_s(),
            description=f"Setting desired capacity to {wanted}.",
            cause=cause,
            status="Successful",
            message=f"Successfully set desired capacity to {wanted}. Change successfully fulfilled by lambda.",
        )
        try:
            await self._provisioning.scale(*function_of(key), wanted)
        except ApiError as error:
            activity.status = "Failed"
            activity.message = f"Failed to set desired capacity to {wanted}. Reason: {error.message}"
        activity.ended_s = self.clock_s()
        self.changed_s[key] = activity.ended_s
        await self.rows(lambda rows: rows.add_activity(activity))
        return activity.status == "Successful"


def moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def page(
    params: dict[str, Any],
    read: Callable[[Any], Iterable[T]],
    place: Callable[[T], object],
    first: Any,
    keep: Callable[[T], bool],
) -> tuple[list[T], str | None]:
    """One page of a list: `read` gives the rows past a place, `place` a row's. Raises ValidationError,
    InvalidNextToken."""
    size = params.get("MaxResults", _PAGE_MAX)
    if not 1 <= size <= _PAGE_MAX:
        raise ValidationError(f"MaxResults must be between 1 and {_PAGE_MAX}, inclusive")
    after = first
    token = params.get("NextToken")
    if token is not None:
        try:
            after = read_token(token)
            if isinstance(first, tuple):
                after = (str(after[0]), str(after[1]))
            elif not isinstance(after, int if first is None else type(first)):
                raise ValueError(token)
        except (ValueError, TypeError, IndexError, KeyError):
            raise InvalidNextToken("The specified next token is not valid.") from None
    found: list[T] = []
    for row in read(after):
        if not keep(row):
            continue
        if len(found) == size:
            return found, write_token(place(found[-1]))
        found.append(row)
    return found, None


def matches(key: TargetKey, params: dict[str, Any]) -> bool:
    """Whether a row is of the resource that a request asks for, if it asks for one."""
    return bool(params.get("ResourceId", key.resource) == key.resource)
