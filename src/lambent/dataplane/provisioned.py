"""Provisioned concurrency between the Lambda API and the scheduler: which versions a configuration stands for now.

The API's configuration belongs to a version or to an alias; the scheduler's *allocation* is pairs of version and
count. So an alias that moves, or whose weights change, is told again under the same number, and so is whatever waits
for a version that becomes runnable. What the scheduler answers is kept for the API, and for the metrics: how much each
version has ready.
"""

from __future__ import annotations

import itertools

from lambent.core.events import ProvisionedSet, ProvisionedState, ProvisionedStatus
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import AliasEntry, RoutingTable
from lambent.model.names import FunctionKey

Place = tuple[FunctionKey, str]


class _Allocation:
    __slots__ = ("pairs", "requested", "status")

    def __init__(self, number: int) -> None:
        self.requested = 0
        #: As told last.
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.status = ProvisionedStatus(number, 0, 0, ProvisionedState.IN_PROGRESS)


class Provisioned:
    """All configurations of this server. `set` and the like take effect at once."""

    def __init__(self, plane: DataPlane, routing: RoutingTable) -> None:
        self._plane = plane
        self._routing = routing
        self._numbers = itertools.count(1)
        self._allocations: dict[Place, _Allocation] = {}
        self._places: dict[int, Place] = {}
        plane.on_provisioned = self._on_status

    def set(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        """Ask for so many; once more for what has failed."""
        allocation = self._allocations.get((key, qualifier))
        if allocation is None:
            number = next(self._numbers)
            allocation = self._allocations[key, qualifier] = _Allocation(number)
            self._places[number] = (key, qualifier)
        allocation.requested = requested
        self._tell(key, qualifier, allocation)

    def remove(self, key: FunctionKey, qualifier: str) -> None:
        """Let its environments end, if it has any."""
        allocation = self._allocations.pop((key, qualifier), None)
        if allocation is not None:
            number = allocation.status.allocation
            del self._places[number]
            self._plane.tell(ProvisionedSet(number))
            self._count_ready(key)

    def follow(self, key: FunctionKey) -> None:
        """Aliases or versions of the function have changed: tell what this changes."""
        function = self._routing.functions.get(key)
        if function is None or not self._allocations:
            return
        for qualifier in (*function.versions, *function.aliases):
            allocation = self._allocations.get((key, qualifier))
            if allocation is not None and self._pairs(key, qualifier, allocation.requested) != allocation.pairs:
                self._tell(key, qualifier, allocation)

    def forget(self, key: FunctionKey) -> None:
        """The function is gone, and with it all that it had."""
        for place in [place for place in self._allocations if place[0] == key]:
            del self._places[self._allocations.pop(place).status.allocation]

    def status(self, key: FunctionKey, qualifier: str) -> ProvisionedStatus | None:
        """What has become of a configuration so far; None: there is none."""
        allocation = self._allocations.get((key, qualifier))
        return None if allocation is None else allocation.status

    def _tell(self, key: FunctionKey, qualifier: str, allocation: _Allocation) -> None:
        pairs = self._pairs(key, qualifier, allocation.requested)
        if pairs is not None:
            allocation.pairs = pairs
            self._plane.tell(ProvisionedSet(allocation.status.allocation, pairs))
            self._count_ready(key)

    def _pairs(self, key: FunctionKey, qualifier: str, requested: int) -> tuple[tuple[int, int], ...] | None:
        """None: a version is still being prepared, and what there was goes on until it is ready."""
        function = self._routing.functions.get(key)
        if function is None:
            return None
        alias = function.aliases.get(qualifier)
        shares = [(qualifier, requested)] if alias is None else split(alias, requested)
        pairs = []
        for label, count in shares:
            version = function.versions.get(label)
            if version is None:
                return None
            if count:
                pairs.append((version.id, count))
        return tuple(pairs)

    def _on_status(self, status: ProvisionedStatus) -> None:
        place = self._places.get(status.allocation)
        if place is not None:
            self._allocations[place].status = status
            self._count_ready(place[0])

    def _count_ready(self, key: FunctionKey) -> None:
        """For the metrics."""
        function = self._routing.functions.get(key)
        for version in function.versions.values() if function is not None else ():
            levels = self._plane.scheduler.levels(version.id)
            version.provisioned = 0 if levels is None else levels.provisioned_available
            for handle in version.handles.values():
                handle.allocated = version.provisioned


def split(alias: AliasEntry, requested: int) -> list[tuple[str, int]]:
    """The versions of an alias and what each gets of its provisioned concurrency: by weight, rounded; the main version
    has the rest."""
    shares, left = [], requested
    for version, weight in alias.additional:
        share = min(left, int(requested * weight + 0.5))
        left -= share
        shares.append((version, share))
    return [*shares, (alias.version, left)]
