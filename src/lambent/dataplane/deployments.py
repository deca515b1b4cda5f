"""What the Lambda service tells the data plane: versions to run, aliases, reserved concurrency.

Numbers functions, versions and accounts for the scheduler, and keeps the routing table. Every method but `prepare`
takes effect at once and can not fail.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from lambent.core.events import (
    AccountSet,
    FunctionRemoved,
    FunctionSet,
    ProvisionedStatus,
    VersionRetired,
    VersionSet,
)
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.provisioned import Provisioned
from lambent.dataplane.routing import AliasEntry, FunctionEntry, RoutingTable, UrlEntry, VersionEntry
from lambent.model.errors import (
    ApiError,
    InvalidParameterValue,
    ResourceConflict,
    ServiceUnavailable,
    SnapStartNotReady,
)
from lambent.model.function import VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.limits import (
    CLASSIC_BURST_BY_REGION,
    CLASSIC_BURST_SMALL,
    INIT_TIMEOUT_S,
    LONG_INIT_TIMEOUT_MAX_S,
    LONG_INIT_TIMEOUT_MIN_S,
    NS_PER_S,
)
from lambent.model.names import FunctionKey
from lambent.telemetry.lambda_metrics import AccountConcurrency
from lambent.worker.interface import SnapshotFailed
from lambent.worker.launcher import SandboxUnavailable

_log = logging.getLogger("lambent.dataplane")
#: Before a lost snapshot is made again, and the longest that this pause may grow to.
_SNAPSHOT_PAUSE_S, _SNAPSHOT_PAUSE_MAX_S = 1.0, 300.0


class SnapshotRefused(InvalidParameterValue):
    """Init of a SnapStart version failed. `reason_code`: the version's StateReasonCode."""

    def __init__(self, message: str, reason_code: str) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class Deployments:
    """Implements services.lambda_.ports.Deployments."""

    def __init__(self, plane: DataPlane, routing: RoutingTable, account_concurrency: int) -> None:
        self._plane = plane
        self._routing = routing
        self._account_concurrency = account_concurrency
        plane.tenants.account_concurrency = account_concurrency
        self._accounts: dict[tuple[str, str], int] = {}
        self._numbers = itertools.count(1)
        self._provisioned = Provisioned(plane, routing)
        self._snapshots: set[asyncio.Task[None]] = set()

    async def prepare(self, spec: VersionSpec) -> None:
        """Unpack the code and have a runtime ready; with SnapStart, take the snapshot. Raises an ApiError that says why
        it can not run here; SnapshotRefused when the function's Init failed."""
        worker = self._plane.worker
        try:
            await worker.prepare(spec)
            if spec.snap_start:
                worker.on_snapshot_lost(self._snapshot_lost)
                await worker.snapshot(spec)
        except SandboxUnavailable as error:
            raise ServiceUnavailable(str(error)) from error
        except SnapshotFailed as error:
            raise SnapshotRefused(str(error), error.reason_code) from error

    def _snapshot_lost(self, spec: VersionSpec) -> None:
        """Until it is made again, environments start with an Init of their own."""
        if self._is_active(spec):
            self.activate(spec)
            task = asyncio.create_task(self._remake(spec), name=f"snapshot {spec.arn}")
            self._snapshots.add(task)
            task.add_done_callback(self._snapshots.discard)

    async def _remake(self, spec: VersionSpec) -> None:
        pause_s = _SNAPSHOT_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            if not self._is_active(spec):
                return
            try:
                await self.prepare(spec)
            except ApiError as error:
                _log.warning("the snapshot of %s could not be made again: %s", spec.arn, error.message)
                pause_s = min(2 * pause_s, _SNAPSHOT_PAUSE_MAX_S)
                continue
            if self._is_active(spec):
                self.activate(spec)
            else:
                self._plane.worker.drop_snapshot(spec)
            return

    def _is_active(self, spec: VersionSpec) -> bool:
        function = self._routing.functions.get(spec.key)
        entry = function.versions.get(spec.version) if function is not None else None
        return entry is not None and entry.spec == spec

    def activate(self, spec: VersionSpec) -> None:
        """New requests for this version label run this; what ran under the label before drains."""
        function = self._function(spec.key)
        entry = VersionEntry(next(self._numbers), function, spec)
        previous = function.versions.get(spec.version)
        self._plane.keep_spec(entry.id, spec)
        self._plane.tell(
            VersionSet(
                entry.id,
                function.id,
                spec.memory_mib,
                spec.timeout_s * NS_PER_S,
                _init_timeout_s(spec) * NS_PER_S,
                snap_start=spec.snap_start and self._plane.worker.has_snapshot(spec),
                tenancy=spec.tenancy,
                concurrency_per_environment=max(1, spec.concurrency_per_environment),
            )
        )
        function.versions[spec.version] = entry
        self._provisioned.follow(spec.key)
        if previous is not None:
            self._retire(previous)
            if previous.spec.snap_start and previous.spec != spec:
                self._plane.worker.drop_snapshot(previous.spec)

    def hold(self, spec: VersionSpec, state: str | None) -> None:
        """A version that can not be invoked yet ("Pending") or at all ("Failed"); None: it is gone. `activate` ends
        it."""
        self.retire_version(spec.key, spec.version)
        if state is None:
            return
        function = self._function(spec.key)
        entry = function.versions[spec.version] = VersionEntry(next(self._numbers), function, spec)
        self._plane.keep_spec(entry.id, spec)
        if state == "Pending":
            refusal: ApiError = SnapStartNotReady(
                "Lambda is initializing your function. It will be ready to invoke once your function state becomes "
                "ACTIVE."
            )
        else:
            refusal = ResourceConflict(
                "The operation cannot be performed at this time. The function is currently in the following state: "
                f"{state}"
            )
        self._plane.refuse(entry.id, refusal)

    def _retire(self, entry: VersionEntry) -> None:
        self._plane.tell(VersionRetired(entry.id))
        self._plane.drop_spec(entry.id)

    def _function(self, key: FunctionKey) -> FunctionEntry:
        entry = self._routing.functions.get(key)
        if entry is None:
            entry = FunctionEntry(next(self._numbers), key)
            self._routing.functions[key] = entry
            self._plane.tell(FunctionSet(entry.id, self._account(key), None))
        return entry

    def _account(self, key: FunctionKey) -> int:
        scope = (key.account, key.region)
        number = self._accounts.get(scope)
        if number is None:
            number = self._accounts[scope] = next(self._numbers)
            burst = CLASSIC_BURST_BY_REGION.get(key.region, CLASSIC_BURST_SMALL)
            self._plane.tell(AccountSet(number, self._account_concurrency, burst))
        return number

    def retire_version(self, key: FunctionKey, version: str) -> None:
        self._provisioned.remove(key, version)
        entry = self._routing.functions.get(key)
        retired = entry.versions.pop(version, None) if entry is not None else None
        if retired is not None:
            self._retire(retired)
            if retired.spec.snap_start:
                self._plane.worker.drop_snapshot(retired.spec)

    def set_pending(self, key: FunctionKey, state: str | None) -> None:
        self._function(key).pending = state

    def remove_function(self, key: FunctionKey) -> None:
        entry = self._routing.functions.pop(key, None)
        if entry is not None:
            self._plane.tell(FunctionRemoved(entry.id))
            self._provisioned.forget(key)
            for version in entry.versions.values():
                self._plane.drop_spec(version.id)
                if version.spec.snap_start:
                    self._plane.worker.drop_snapshot(version.spec)
        for url_id in [each for each, url in self._routing.urls.items() if url.spec.key == key]:
            self.remove_url(url_id)

    def set_alias(self, key: FunctionKey, alias: str, version: str, additional: dict[str, float]) -> None:
        self._function(key).aliases[alias] = AliasEntry(version, tuple(additional.items()))
        self._provisioned.follow(key)

    def remove_alias(self, key: FunctionKey, alias: str) -> None:
        entry = self._routing.functions.get(key)
        if entry is not None:
            self._provisioned.remove(key, alias)
            entry.aliases.pop(alias, None)

    def set_url(self, spec: UrlSpec, permits: Callable[[str], bool]) -> None:
        self._routing.urls[spec.id] = UrlEntry(spec, permits)

    def remove_url(self, url_id: str) -> None:
        self._routing.urls.pop(url_id, None)

    def set_reserved(self, key: FunctionKey, reserved: int | None) -> None:
        entry = self._function(key)
        entry.reserved = reserved
        self._plane.tell(FunctionSet(entry.id, self._account(key), reserved))

    def set_provisioned(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        self._provisioned.set(key, qualifier, requested)

    def remove_provisioned(self, key: FunctionKey, qualifier: str) -> None:
        self._provisioned.remove(key, qualifier)

    def provisioned_status(self, key: FunctionKey, qualifier: str) -> ProvisionedStatus | None:
        return self._provisioned.status(key, qualifier)

    def account_concurrency(self) -> list[AccountConcurrency]:
        """For the metrics: each account's levels now, as one of its versions tells them."""
        found: dict[tuple[str, str], AccountConcurrency] = {}
        for function in self._routing.functions.values():
            scope = (function.key.account, function.key.region)
            if scope in found:
                continue
            for version in function.versions.values():
                levels = self._plane.scheduler.levels(version.id)
                if levels is not None:
                    unreserved, claimed = levels.account_in_flight_unreserved, levels.account_claimed
                    found[scope] = AccountConcurrency(*scope, unreserved, claimed)
                    break
            if len(found) == len(self._accounts):
                break
        return list(found.values())


def _init_timeout_s(spec: VersionSpec) -> int:
    if not spec.is_managed:
        return INIT_TIMEOUT_S
    return min(max(LONG_INIT_TIMEOUT_MIN_S, spec.timeout_s), LONG_INIT_TIMEOUT_MAX_S)
