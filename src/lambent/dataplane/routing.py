"""From a name to what runs: functions, their versions and aliases, in memory, for the hot path.

The Lambda service is the master of these records (it keeps them in the store) and tells every change here. Looking up
is a few dictionary reads; an alias with weights draws one random number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from lambent.model.errors import ApiError, ResourceConflict, ResourceNotFound
from lambent.model.function import VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.names import LATEST, FunctionKey, FunctionRef
from lambent.telemetry.lambda_metrics import FunctionHandle, LambdaMetrics


class VersionEntry:
    """A runnable version: `id` is the scheduler's. A new deployment of $LATEST is a new entry."""

    __slots__ = ("function", "handles", "id", "provisioned", "spec", "timeout_s")

    def __init__(self, number: int, function: FunctionEntry, spec: VersionSpec) -> None:
        self.id = number
        self.function = function
        self.spec = spec
        self.timeout_s = spec.timeout_s
        #: Metrics, by the qualifier that was called.
        self.handles: dict[str | None, FunctionHandle] = {}
        #: Provisioned concurrency that is ready.
        self.provisioned = 0


class AliasEntry(NamedTuple):
    """`additional`: other versions and the share of requests that each gets."""

    version: str
    additional: tuple[tuple[str, float], ...]


class FunctionEntry:
    __slots__ = ("aliases", "id", "key", "pending", "reserved", "versions")

    def __init__(self, number: int, key: FunctionKey) -> None:
        self.id = number
        self.key = key
        self.versions: dict[str, VersionEntry] = {}
        self.aliases: dict[str, AliasEntry] = {}
        #: "Pending" or "Failed" while the function can not be invoked.
        self.pending: str | None = None
        self.reserved: int | None = None


class Target(NamedTuple):
    """Where an invoke goes. `arn` is as the client named it; `version` says what really runs, `metrics` counts it."""

    version: VersionEntry
    arn: str
    metrics: FunctionHandle


class UrlEntry(NamedTuple):
    """A function URL. `permits`: whether the function's resource policy lets an account call it, or anybody ("*")."""

    spec: UrlSpec
    permits: Callable[[str], bool]


class RoutingTable:
    """All functions of this server by key, and their URLs by id."""

    def __init__(self, chance: random.Random, metrics: LambdaMetrics) -> None:
        self._metrics = metrics
        self.functions: dict[FunctionKey, FunctionEntry] = {}
        self.urls: dict[str, UrlEntry] = {}
        self._chance = chance

    def resolve(self, ref: FunctionRef) -> Target:
        """Raises ResourceNotFound for what does not exist, ResourceConflict for what can not run yet."""
        entry = self.functions.get(ref.key)
        qualifier = ref.qualifier
        if entry is None:
            raise _not_found(ref)
        if entry.pending is not None and qualifier in (None, LATEST):
            raise ResourceConflict(
                "The operation cannot be performed at this time. The function is currently in the following state: "
                f"{entry.pending}"
            )
        if qualifier is None:
            version = entry.versions.get(LATEST)
        else:
            version = entry.versions.get(qualifier)
            if version is None:
                alias = entry.aliases.get(qualifier)
                if alias is not None:
                    version = entry.versions.get(self._draw(alias))
        if version is None:
            raise _not_found(ref)
        handle = version.handles.get(qualifier)
        if handle is None:
            handle = self._metrics.function_handle(ref.key, version.spec.version, qualifier)
            handle.allocated = version.provisioned
            version.handles[qualifier] = handle
        return Target(version, ref.key.arn(qualifier), handle)

    def _draw(self, alias: AliasEntry) -> str:
        if alias.additional:
            point = self._chance.random()
            for version, weight in alias.additional:
                if point < weight:
                    return version
                point -= weight
        return alias.version


def _not_found(ref: FunctionRef) -> ApiError:
    return ResourceNotFound(f"Function not found: {ref.key.arn(ref.qualifier or LATEST)}")
