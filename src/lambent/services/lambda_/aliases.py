"""Aliases: names for one version, or for two with weights.

`RoutingConfig.AdditionalVersionWeights` has at most one entry: the other version, and its share of the
requests.
"""

from __future__ import annotations

import itertools
from typing import Any

from lambent.model.errors import InvalidParameterValue, ResourceConflict, ResourceNotFound
from lambent.model.names import LATEST, FunctionKey
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import broken_constraint, function_not_found, stale_revision
from lambent.services.lambda_.provisioned import require_alias_may_move
from lambent.store.functions import FunctionRows
from lambent.store.records import AliasRecord

#: ListAliases takes the MaxItems that its model allows.
_PAGE_MAX = 10_000


class Aliases:
    """Handlers of the operations on aliases."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "CreateAlias": self.create,
            "GetAlias": self.get,
            "UpdateAlias": self.update,
            "DeleteAlias": self.delete,
            "ListAliases": self.list_aliases,
        }

    async def create(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "CreateAlias")
        record = AliasRecord(
            key=key,
            alias=params["Name"],
            version=params["FunctionVersion"],
            description=params.get("Description", ""),
            additional=_weights(params) or {},
            revision_id=self._control.new_revision(),
        )

        def work(rows: FunctionRows) -> None:
            _require_function(rows, key)
            _check_target(rows, record)
            if rows.alias(key, record.alias) is not None:
                raise ResourceConflict(f"Alias already exists: {key.arn(record.alias)}")
            rows.save_alias(record)

        async with self._control.exclusive(key):
            await self._control.rows(work)
            self._tell(record)
        return _described(record)

    async def get(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "GetAlias")
        name = params["Name"]

        def read(rows: FunctionRows) -> AliasRecord:
            record = rows.alias(key, name)
            if record is None:
                _require_function(rows, key)
                raise ResourceNotFound(f"Cannot find alias arn: {key.arn(name)}")
            return record

        return _described(await self._control.rows(read))

    async def update(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "UpdateAlias")
        name = params["Name"]

        def work(rows: FunctionRows) -> AliasRecord:
            record = rows.alias(key, name)
            if record is None:
                _require_function(rows, key)
                raise ResourceNotFound(f"Alias not found: {key.arn(name)}")
            if params.get("RevisionId", record.revision_id) != record.revision_id:
                raise stale_revision()
            record.version = params.get("FunctionVersion", record.version)
            record.description = params.get("Description", record.description)
            weights = _weights(params)
            if weights is not None:
                record.additional = weights
            _check_target(rows, record)
            require_alias_may_move(rows, record)
            record.revision_id = self._control.new_revision()
            rows.save_alias(record)
            return record

        async with self._control.exclusive(key):
            record = await self._control.rows(work)
            self._tell(record)
        return _described(record)

    async def delete(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "DeleteAlias")
        name = params["Name"]

        def work(rows: FunctionRows) -> bool:
            _require_function(rows, key)
            return rows.delete_alias(key, name)

        async with self._control.exclusive(key):
            # An alias that is not there is what was wanted.
            if await self._control.rows(work):
                self._control.deployments.remove_alias(key, name)
        return {}

    async def list_aliases(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named_function(context, params, "ListAliases")
        size = paging.page_size(params, _PAGE_MAX)
        start = paging.after(params, paging.NameMarker, paging.NameMarker(""))
        version = params.get("FunctionVersion")

        def read(rows: FunctionRows) -> list[AliasRecord]:
            _require_function(rows, key)
            wanted = (
                each
                for each in rows.aliases(key, after=start.name)
                if version is None or version == each.version or version in each.additional
            )
            return list(itertools.islice(wanted, size + 1))

        found = await self._control.rows(read)
        records, marker = paging.page(found, size, lambda record: paging.NameMarker(record.alias))
        return {"Aliases": [_described(each) for each in records], "NextMarker": marker}

    def _tell(self, record: AliasRecord) -> None:
        self._control.deployments.set_alias(record.key, record.alias, record.version, dict(record.additional))


def _require_function(rows: FunctionRows, key: FunctionKey) -> None:
    if rows.function(key) is None:
        raise function_not_found(key.arn())


def _weights(params: dict[str, Any]) -> dict[str, float] | None:
    """The request's weights; None when it does not speak of routing."""
    if "RoutingConfig" not in params:
        return None
    weights = {version: float(share) for version, share in _additional(params).items()}
    if len(weights) > 1:
        raise InvalidParameterValue("Number of items in AdditionalVersionWeights cannot be greater than 1")
    for share in weights.values():
        # The comparison is also false for a NaN, which JSON readers let through.
        if not 0.0 <= share <= 1.0:
            raise broken_constraint(
                share,
                "routingConfig.additionalVersionWeights",
                "Map value must satisfy constraint: [Member must have value less than or equal to 1.0, "
                "Member must have value greater than or equal to 0.0]",
            )
    return weights


def _additional(params: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = params["RoutingConfig"].get("AdditionalVersionWeights", {})
    return found


def _check_target(rows: FunctionRows, record: AliasRecord) -> None:
    """The versions that an alias points to must exist and may share its requests."""
    main = rows.version(record.key, record.version)
    if record.additional and record.version == LATEST:
        raise InvalidParameterValue(
            "$LATEST is not supported for an alias pointing to more than 1 version", with_type=False
        )
    if main is None:
        raise function_not_found(record.key.arn(record.version))
    for version in record.additional:
        if version == record.version:
            raise InvalidParameterValue(
                f"Invalid function version {version}. Function version {version} is already included in "
                "routing configuration."
            )
        other = rows.version(record.key, version)
        if other is None or version == LATEST:
            raise function_not_found(record.key.arn(version))
        if other.role != main.role:
            raise InvalidParameterValue(
                f"Versions {record.version} and {version} cannot share an alias: they have different roles."
            )


def _described(record: AliasRecord) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "AliasArn": record.key.arn(record.alias),
        "Name": record.alias,
        "FunctionVersion": record.version,
        "Description": record.description,
        "RevisionId": record.revision_id,
    }
    if record.additional:
        answer["RoutingConfig"] = {"AdditionalVersionWeights": record.additional}
    return answer
