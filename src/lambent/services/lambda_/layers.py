"""Layers: PublishLayerVersion to DeleteLayerVersion.

A layer has no row of its own in any answer: it is there as long as it has versions. Deleting a version takes it from
lists and from new functions; functions that have it keep it, because their record holds the zip's digest
(`attached_layers`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging
from lambent.services.lambda_.code_source import CodeSource
from lambent.services.lambda_.configuration import sha256_base64
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.layer_access import readable_version, require_owner
from lambent.services.lambda_.layer_names import LayerRef, parse_layer, parse_layer_version
from lambent.services.lambda_.validation import refuse_unsupported
from lambent.services.lambda_.versions import require_storage
from lambent.store.code import CodeRef
from lambent.store.functions import FunctionRows
from lambent.store.records import ORDINAL_MAX, LayerKey, LayerVersionRecord

Answer = dict[str, Any]


class Layers:
    """Handlers of the operations on layers and their versions."""

    def __init__(self, control: Control, source: CodeSource) -> None:
        self._control = control
        self._source = source

    def handlers(self) -> dict[str, Handler]:
        return {
            "PublishLayerVersion": self.publish,
            "ListLayers": self.list_layers,
            "ListLayerVersions": self.list_versions,
            "GetLayerVersion": self.get,
            "GetLayerVersionByArn": self.get_by_arn,
            "DeleteLayerVersion": self.delete,
        }

    async def publish(self, context: CallContext, params: Answer) -> Answer:
        key = named_layer(context, params, "PublishLayerVersion")
        refuse_unsupported(params["Content"])
        async with self._source.taken(context, params["Content"]) as code:
            record = await self._control.rows(lambda rows: self._insert(rows, key, params, code))
        return self._with_content(context, record)

    def _insert(self, rows: FunctionRows, key: LayerKey, params: Answer, code: CodeRef) -> LayerVersionRecord:
        require_storage(rows, key, code.size)
        record = LayerVersionRecord(
            key=key,
            version=rows.layers.next_version(key),
            created=self._control.timestamp(),
            code_sha256=code.sha256,
            code_size=code.size,
            description=params.get("Description", ""),
            license_info=params.get("LicenseInfo"),
            runtimes=_tuple(params.get("CompatibleRuntimes")),
            architectures=_tuple(params.get("CompatibleArchitectures")),
        )
        rows.layers.insert_version(record)
        return record

    async def get(self, context: CallContext, params: Answer) -> Answer:
        return await self._get(context, named_version(context, params))

    async def get_by_arn(self, context: CallContext, params: Answer) -> Answer:
        ref = parse_layer_version(params["Arn"])
        if ref is None:
            raise no_such_layer()
        _check_number(ref.version)
        return await self._get(context, ref)

    async def _get(self, context: CallContext, ref: LayerRef) -> Answer:
        record = await self._control.rows(lambda rows: readable_version(rows, ref, context.account))
        if record is None or ref.key.region != context.region:
            raise no_such_layer()
        return self._with_content(context, record)

    async def delete(self, context: CallContext, params: Answer) -> Answer:
        ref = named_version(context, params)
        require_owner(ref.key, context.account, "lambda:DeleteLayerVersion", ref.arn)
        # A version that is not there is what was wanted.
        await self._control.rows(lambda rows: rows.layers.delete_version(ref.key, ref.version))
        return {}

    async def list_versions(self, context: CallContext, params: Answer) -> Answer:
        key = named_layer(context, params, "ListLayerVersions")
        size = paging.page_size(params)
        start = paging.after(params, paging.VersionMarker, paging.VersionMarker(key.name, ORDINAL_MAX))

        def read(rows: FunctionRows) -> list[LayerVersionRecord]:
            wanted = _matching(rows.layers.versions(key, before=start.ordinal), params)
            return list(itertools.islice(wanted, size + 1))

        found = await self._control.rows(read)
        records, marker = paging.page(found, size, lambda each: paging.VersionMarker(key.name, each.version))
        return {"LayerVersions": [_listed(each) for each in records], "NextMarker": marker}

    async def list_layers(self, context: CallContext, params: Answer) -> Answer:
        size = paging.page_size(params)
        start = paging.after(params, paging.NameMarker, paging.NameMarker(""))

        def read(rows: FunctionRows) -> list[LayerVersionRecord]:
            every = rows.layers.in_region(context.account, context.region, after=start.name)
            newest = (next(versions) for _, versions in itertools.groupby(_matching(every, params), _name))
            return list(itertools.islice(newest, size + 1))

        found = await self._control.rows(read)
        records, marker = paging.page(found, size, lambda each: paging.NameMarker(each.key.name))
        layers = [
            {"LayerName": each.key.name, "LayerArn": each.key.arn(), "LatestMatchingVersion": _listed(each)}
            for each in records
        ]
        return {"Layers": layers, "NextMarker": marker}

    def _with_content(self, context: CallContext, record: LayerVersionRecord) -> Answer:
        """As PublishLayerVersion and GetLayerVersion answer."""
        content = {
            "Location": self._source.link(context, record.code_sha256),
            "CodeSha256": sha256_base64(record.code_sha256),
            "CodeSize": record.code_size,
        }
        return {"Content": content, "LayerArn": record.key.arn(), **_listed(record)}


def named_layer(context: CallContext, params: Answer, operation: str) -> LayerKey:
    """The layer that a request is about; one of the caller's own."""
    key = parse_layer(params["LayerName"], context.account, context.region)
    require_owner(key, context.account, f"lambda:{operation}", key.arn())
    if key.region != context.region:
        raise no_such_layer()
    return key


def named_version(context: CallContext, params: Answer) -> LayerRef:
    """The layer version that a request is about, of whichever account."""
    ref = LayerRef(parse_layer(params["LayerName"], context.account, context.region), params["VersionNumber"])
    _check_number(ref.version)
    if ref.key.region != context.region:
        raise no_such_layer()
    return ref


def no_such_layer() -> ResourceNotFound:
    return ResourceNotFound("The resource you requested does not exist.")


def _check_number(version: int) -> None:
    if version < 1:
        raise InvalidParameterValue("Layer Version Cannot be less than 1")
    if version > ORDINAL_MAX:
        raise no_such_layer()


def _matching(records: Iterator[LayerVersionRecord], params: Answer) -> Iterator[LayerVersionRecord]:
    """Those that say that they go with the runtime and architecture asked for."""
    runtime, architecture = params.get("CompatibleRuntime"), params.get("CompatibleArchitecture")
    for each in records:
        if (runtime is None or runtime in (each.runtimes or ())) and (
            architecture is None or architecture in (each.architectures or ())
        ):
            yield each


def _listed(record: LayerVersionRecord) -> Answer:
    answer: Answer = {
        "LayerVersionArn": record.arn,
        "Version": record.version,
        "Description": record.description,
        "CreatedDate": record.created,
    }
    if record.runtimes is not None:
        answer["CompatibleRuntimes"] = list(record.runtimes)
    if record.architectures is not None:
        answer["CompatibleArchitectures"] = list(record.architectures)
    if record.license_info is not None:
        answer["LicenseInfo"] = record.license_info
    return answer


def _name(record: LayerVersionRecord) -> str:
    return record.key.name


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
