"""Provisioned concurrency: environments of a version or an alias that are initialised ahead of requests.

What is asked for is in the store; what there is of it, the data plane knows. Who may have how much is one rule:
out of the function's reserved concurrency where it has some, else out of the account's unreserved pool, which keeps
its minimum. A version's environments belong to one configuration, so a version and an alias, or two aliases, can not
both have one for the same version.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lambent.core.events import ProvisionedReason, ProvisionedState, ProvisionedStatus
from lambent.model import limits
from lambent.model.errors import (
    InvalidParameterValue,
    ProvisionedConcurrencyConfigNotFound,
    ResourceConflict,
    ResourceNotFound,
)
from lambent.model.names import LATEST, FunctionKey, FunctionRef
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import function_not_found, not_per_tenant, wrong_state
from lambent.store.functions import FunctionRows
from lambent.store.records import AliasRecord, Phase, ProvisionedRecord, VersionRecord, ordinal_of

_UNPUBLISHED = "Provisioned Concurrency Configs cannot be applied to unpublished function versions."
#: StatusReason. The first is AWS's; AWS has no case of the others.
_REASONS = {
    ProvisionedReason.INIT_FAILED: "FUNCTION_ERROR_INIT_FAILURE",
    ProvisionedReason.ENVIRONMENT_LOST: "Execution environments ended before their first request; the server's log and "
    "`lambent doctor` say why.",
    ProvisionedReason.NO_ROOM: "No worker has room for all of the execution environments; it is tried again. See "
    "`lambent environments` and --memory-overcommit.",
}


class Level(NamedTuple):
    """For Application Auto Scaling: what a resource was given, and whether that has settled."""

    requested: int
    settled: bool


class ProvisionedConcurrency:
    """Handlers of the operations on provisioned concurrency, and the same for Application Auto Scaling."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "PutProvisionedConcurrencyConfig": self.put,
            "GetProvisionedConcurrencyConfig": self.get,
            "DeleteProvisionedConcurrencyConfig": self.delete,
            "ListProvisionedConcurrencyConfigs": self.list_configs,
        }

    # --- handlers ----------------------------------------------------------------------------------------

    async def put(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._control.named(context, params, "PutProvisionedConcurrencyConfig")
        if ref.qualifier in (None, LATEST):
            raise InvalidParameterValue(_UNPUBLISHED)
        record = await self._set(ref, params["ProvisionedConcurrentExecutions"])
        answer = self._described(record)
        # Even where nothing changes, AWS answers before it has looked.
        answer["Status"] = ProvisionedState.IN_PROGRESS.value
        answer.pop("StatusReason", None)
        return answer

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._qualified(context, params, "GetProvisionedConcurrencyConfig")
        assert ref.qualifier is not None
        qualifier = ref.qualifier

        def read(rows: FunctionRows) -> ProvisionedRecord:
            _find(rows, ref)
            record = rows.provisioned.config(ref.key, qualifier)
            if record is None:
                raise ProvisionedConcurrencyConfigNotFound("No Provisioned Concurrency Config found for this function")
            return record

        return self._described(await self._control.rows(read))

    async def delete(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        await self._remove(self._qualified(context, params, "DeleteProvisionedConcurrencyConfig"))
        return {}

    async def list_configs(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "ListProvisionedConcurrencyConfigs")
        size = paging.page_size(params)
        start = paging.after(params, paging.NameMarker, paging.NameMarker(""))

        def read(rows: FunctionRows) -> list[ProvisionedRecord]:
            if rows.function(key) is None:
                raise function_not_found(key.arn(LATEST))
            return rows.provisioned.configs(key, after=start.name, limit=size + 1)

        found = await self._control.rows(read)
        records, marker = paging.page(found, size, lambda record: paging.NameMarker(record.qualifier))
        configs = [{"FunctionArn": key.arn(each.qualifier), **self._described(each)} for each in records]
        return {"ProvisionedConcurrencyConfigs": configs, "NextMarker": marker}

    # --- for Application Auto Scaling ---------------------------------------------------------------------

    async def level(self, key: FunctionKey, qualifier: str) -> Level:
        """Zero where there is no configuration. Raises ApiError for what does not exist or can not have one."""

        def read(rows: FunctionRows) -> ProvisionedRecord | None:
            _require_published(_find(rows, FunctionRef(key, qualifier)))
            return rows.provisioned.config(key, qualifier)

        record = await self._control.rows(read)
        if record is None:
            return Level(0, True)
        status = self._control.deployments.provisioned_status(key, qualifier)
        return Level(record.requested, status is not None and status.state is not ProvisionedState.IN_PROGRESS)

    async def scale(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        """As Put, and with 0 as Delete. Raises ApiError."""
        ref = FunctionRef(key, qualifier)
        if requested:
            await self._set(ref, requested)
        else:
            await self._remove(ref)

    # --- both --------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Ask the data plane for all that is stored; it knows the versions and aliases already."""
        records = await self._control.rows(lambda rows: list(rows.provisioned.all_configs()))
        for record in records:
            self._control.deployments.set_provisioned(record.key, record.qualifier, record.requested)

    async def _set(self, ref: FunctionRef, requested: int) -> ProvisionedRecord:
        assert ref.qualifier is not None
        record = ProvisionedRecord(
            key=ref.key,
            qualifier=ref.qualifier,
            requested=requested,
            last_modified=self._control.timestamp(),
        )

        def work(rows: FunctionRows) -> None:
            found = _find(rows, ref)
            _require_published(found)
            for version in found.versions:
                require_unshared(rows, ref.key, ref.qualifier, version, found.alias is not None)
            _require_runnable(rows, ref.key, found)
            _require_room(rows, record, self._control.settings.account_concurrency)
            rows.provisioned.save(record)

        async with self._control.exclusive(ref.key):
            await self._control.rows(work)
            self._control.deployments.set_provisioned(ref.key, ref.qualifier, requested)
        return record

    async def _remove(self, ref: FunctionRef) -> None:
        assert ref.qualifier is not None
        qualifier = ref.qualifier

        def work(rows: FunctionRows) -> None:
            _find(rows, ref)
            rows.provisioned.delete(ref.key, qualifier)

        async with self._control.exclusive(ref.key):
            await self._control.rows(work)
            self._control.deployments.remove_provisioned(ref.key, qualifier)

    def _qualified(self, context: CallContext, params: dict[str, Any], operation: str) -> FunctionRef:
        ref = self._control.named(context, params, operation)
        if ref.qualifier in (None, LATEST):
            raise InvalidParameterValue("The function resource provided must be an alias or a published version.")
        return ref

    def _described(self, record: ProvisionedRecord) -> dict[str, Any]:
        status = self._control.deployments.provisioned_status(record.key, record.qualifier)
        status = status or ProvisionedStatus(0, 0, 0, ProvisionedState.IN_PROGRESS)
        answer: dict[str, Any] = {
            "RequestedProvisionedConcurrentExecutions": record.requested,
            "AvailableProvisionedConcurrentExecutions": status.available,
            "AllocatedProvisionedConcurrentExecutions": status.allocated,
            "Status": status.state.value,
            "LastModified": record.last_modified,
        }
        if status.reason is not None:
            answer["StatusReason"] = _REASONS[status.reason]
        return answer


class _Found(NamedTuple):
    """What a configuration is for: an alias and its versions, or one version."""

    alias: AliasRecord | None
    versions: tuple[str, ...]


def _find(rows: FunctionRows, ref: FunctionRef) -> _Found:
    """Raises ResourceNotFound."""
    qualifier = ref.qualifier
    assert qualifier is not None
    if ordinal_of(qualifier) < 0:
        alias = rows.alias(ref.key, qualifier)
        if alias is None:
            raise ResourceNotFound(f"Cannot find alias arn: {ref.arn}")
        return _Found(alias, (alias.version, *alias.additional))
    if rows.version(ref.key, qualifier) is None:
        raise function_not_found(ref.arn)
    return _Found(None, (qualifier,))


def _require_published(found: _Found) -> None:
    if LATEST in found.versions:
        raise InvalidParameterValue(_UNPUBLISHED)


def require_unshared(rows: FunctionRows, key: FunctionKey, qualifier: str | None, version: str, is_alias: bool) -> None:
    """Refuse a configuration of `qualifier` for a version that is another one's already."""
    for config in rows.provisioned.configs(key):
        if config.qualifier == qualifier:
            continue
        other = rows.alias(key, config.qualifier)
        taken = {config.qualifier} if other is None else {other.version, *other.additional}
        if version in taken and is_alias:
            raise ResourceConflict(
                "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
            )
        if version in taken:
            raise ResourceConflict("Version is pointed by a Provisioned Concurrency alias")


def require_alias_may_move(rows: FunctionRows, alias: AliasRecord) -> None:
    """Refuse to point an alias that has provisioned concurrency at a version that can not have it."""
    if rows.provisioned.config(alias.key, alias.alias) is None:
        return
    found = _Found(alias, (alias.version, *alias.additional))
    _require_published(found)
    for version in found.versions:
        require_unshared(rows, alias.key, alias.alias, version, True)
        record = rows.version(alias.key, version)
        if record is not None:
            _require_suitable(record)


def _require_runnable(rows: FunctionRows, key: FunctionKey, found: _Found) -> None:
    for version in found.versions:
        record = rows.version(key, version)
        assert record is not None, "aliases point to versions that exist"
        _require_suitable(record)
        if record.phase is not Phase.READY:
            raise wrong_state("Failed" if record.phase is Phase.CREATE_FAILED else "Pending")


def _require_suitable(record: VersionRecord) -> None:
    if record.snap_start:
        raise InvalidParameterValue("Provisioned Concurrency is not supported for functions with SnapStart enabled.")
    if record.tenancy:
        raise not_per_tenant("Provisioned Concurrency")
    if record.capacity_provider:
        raise InvalidParameterValue("Provisioned Concurrency is not supported for functions with a capacity provider.")


def _require_room(rows: FunctionRows, record: ProvisionedRecord, account_limit: int) -> None:
    """Refuse more than there is of reserved, or else of unreserved, concurrency."""
    key, requested = record.key, record.requested
    function = rows.function(key)
    assert function is not None, "versions belong to a function"
    others = provisioned_total(rows, key, without=record.qualifier)
    if function.reserved is not None:
        if others + requested > function.reserved:
            raise InvalidParameterValue(
                "Requested Provisioned Concurrency should not be greater than the "
                "reservedConcurrentExecution for function"
            )
        return
    unreserved = unreserved_of(rows, key.account, key.region, account_limit, without=key) - others
    if requested > unreserved:
        raise InvalidParameterValue(
            "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency "
            f"[{unreserved}].",
            with_type=False,
        )
    if unreserved - requested < limits.UNRESERVED_CONCURRENCY_MIN:
        raise InvalidParameterValue(
            "Specified ConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its "
            f"minimum value of [{limits.UNRESERVED_CONCURRENCY_MIN}].",
            with_type=False,
        )


def provisioned_total(rows: FunctionRows, key: FunctionKey, *, without: str | None = None) -> int:
    """All that a function's versions and aliases were given, leaving out one."""
    return sum(each.requested for each in rows.provisioned.configs(key) if each.qualifier != without)


def unreserved_of(
    rows: FunctionRows, account: str, region: str, account_limit: int, *, without: FunctionKey | None = None
) -> int:
    """What is left of the account's limit when all that is reserved, and the provisioned concurrency of functions
    without a reservation, are taken off; of all functions but one."""
    reserved = rows.reserved_total(account, region, without=without)
    return account_limit - reserved - rows.provisioned.unreserved_total(account, region, without=without)
