"""Capacity providers: records that functions name, and what runs on them.

This host is the capacity: no instance is started, so a provider is Active at once, and its network, role, instance
types and scaling are kept and answered and nothing more.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lambent.model.errors import InvalidParameterValue, ResourceConflict, ResourceNotFound
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging
from lambent.services.lambda_.configuration import described
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.validation import check_tags
from lambent.store.functions import FunctionRows
from lambent.store.records import CapacityKey, CapacityRecord, VersionRecord

Answer = dict[str, Any]
_ARN = re.compile(r"arn:[^:]+:lambda:(?P<region>[^:]+):(?P<account>\d{12}):capacity-provider:(?P<name>[a-zA-Z0-9-_]+)")
#: Members that are kept as they were sent.
_KEPT = (
    *("VpcConfig", "PermissionsConfig", "InstanceRequirements", "CapacityProviderScalingConfig", "KmsKeyArn"),
    *("PropagateTags", "TelemetryConfig"),
)
_CHANGEABLE = ("CapacityProviderScalingConfig", "PropagateTags", "TelemetryConfig")
_VERSIONS_READ = 200


def capacity_not_found(arn: str) -> ResourceNotFound:
    return ResourceNotFound(f"Capacity provider not found: {arn}")


def parse_capacity(name: str, account: str, region: str) -> CapacityKey:
    """The provider that a name or an ARN names. Raises ResourceNotFound for one of another account or region."""
    match = _ARN.fullmatch(name)
    if match is None:
        return CapacityKey(account, region, name)
    if (match["account"], match["region"]) != (account, region):
        raise capacity_not_found(name)
    return CapacityKey(account, region, match["name"])


def require_capacity(rows: FunctionRows, key: CapacityKey) -> CapacityRecord:
    record = rows.capacity.provider(key)
    if record is None:
        raise capacity_not_found(key.arn)
    return record


class CapacityProviders:
    """Handlers of the operations on capacity providers."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        return {
            "CreateCapacityProvider": self.create,
            "GetCapacityProvider": self.get,
            "UpdateCapacityProvider": self.update,
            "DeleteCapacityProvider": self.delete,
            "ListCapacityProviders": self.list_providers,
            "ListFunctionVersionsByCapacityProvider": self.list_versions,
        }

    async def create(self, context: CallContext, params: Answer) -> Answer:
        key = _key(context, params)
        check_tags(params.get("Tags", {}))
        _check_scaling(params)
        kept = {name: params[name] for name in _KEPT if name in params}
        record = CapacityRecord(key=key, members=kept, modified=self._control.timestamp(), tags=params.get("Tags", {}))

        def insert(rows: FunctionRows) -> None:
            if rows.capacity.provider(key) is not None:
                raise ResourceConflict(f"Capacity provider already exists: {key.arn}")
            rows.capacity.save(record)

        await self._control.rows(insert)
        return {"CapacityProvider": _described(record)}

    async def get(self, context: CallContext, params: Answer) -> Answer:
        key = _key(context, params)
        return {"CapacityProvider": _described(await self._control.rows(lambda rows: require_capacity(rows, key)))}

    async def update(self, context: CallContext, params: Answer) -> Answer:
        key = _key(context, params)
        _check_scaling(params)

        def change(rows: FunctionRows) -> CapacityRecord:
            before = require_capacity(rows, key)
            members = {**before.members, **{name: params[name] for name in _CHANGEABLE if name in params}}
            after = msgspec.structs.replace(before, members=members, modified=self._control.timestamp())
            rows.capacity.save(after)
            return after

        return {"CapacityProvider": _described(await self._control.rows(change))}

    async def delete(self, context: CallContext, params: Answer) -> Answer:
        key = _key(context, params)

        def remove(rows: FunctionRows) -> CapacityRecord:
            record = require_capacity(rows, key)
            if _first_users(rows, key, ("", -1), 1):
                raise ResourceConflict(
                    f"The capacity provider {key.arn} can not be deleted because function versions use it."
                )
            rows.capacity.delete(key)
            return record

        return {"CapacityProvider": _described(await self._control.rows(remove), "Deleting")}

    async def list_providers(self, context: CallContext, params: Answer) -> Answer:
        size = paging.page_size(params)
        if params.get("State", "Active") != "Active":
            return {"CapacityProviders": []}
        start = paging.after(params, paging.NameMarker, paging.NameMarker(""))
        found = await self._control.rows(
            lambda rows: rows.capacity.providers(context.account, context.region, after=start.name, limit=size + 1)
        )
        records, marker = paging.page(found, size, lambda record: paging.NameMarker(record.key.name))
        return {"CapacityProviders": [_described(each) for each in records], "NextMarker": marker}

    async def list_versions(self, context: CallContext, params: Answer) -> Answer:
        key = _key(context, params)
        size = paging.page_size(params)
        start = paging.after(params, paging.VersionMarker, paging.VersionMarker("", -1))

        def read(rows: FunctionRows) -> list[VersionRecord]:
            require_capacity(rows, key)
            return _first_users(rows, key, (start.name, start.ordinal), size + 1)

        records, marker = paging.page(await self._control.rows(read), size, paging.version_marker)
        versions = [{"FunctionArn": each.key.arn(each.version), "State": described(each)["State"]} for each in records]
        return {"CapacityProviderArn": key.arn, "FunctionVersions": versions, "NextMarker": marker}


def _key(context: CallContext, params: Answer) -> CapacityKey:
    return parse_capacity(params["CapacityProviderName"], context.account, context.region)


def _check_scaling(params: Answer) -> None:
    scaling = params.get("CapacityProviderScalingConfig", {})
    if scaling.get("ScalingMode") == "Manual" and not scaling.get("ScalingPolicies"):
        raise InvalidParameterValue("ScalingPolicies are required when ScalingMode is Manual.")


def _described(record: CapacityRecord, state: str = "Active") -> Answer:
    answer = {"CapacityProviderArn": record.key.arn, "State": state, "LastModified": record.modified}
    return {**answer, **record.members}


def _first_users(rows: FunctionRows, key: CapacityKey, after: tuple[str, int], count: int) -> list[VersionRecord]:
    """The first versions past `after` that run on a provider."""
    found: list[VersionRecord] = []
    while len(found) < count:
        read = rows.list_versions(key.account, key.region, every=True, after=after, limit=_VERSIONS_READ)
        found += [each for each in read if each.capacity_provider == key.arn]
        if len(read) < _VERSIONS_READ:
            break
        after = (read[-1].key.name, read[-1].ordinal)
    return found[:count]
