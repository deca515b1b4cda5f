"""CreateFunction to ListFunctions: the function itself, its code and its configuration.

Every change follows the same order: look and check under the function's lock, take the code in, commit all
rows at once, then let the life cycle prepare what was committed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue, ResourceConflict
from lambent.model.names import LATEST, FunctionKey
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import images, paging
from lambent.services.lambda_.attached_layers import check_unzipped_size, find_layers
from lambent.services.lambda_.code_source import CodeSource
from lambent.services.lambda_.configuration import (
    changed,
    described,
    described_unqualified,
    listed,
    new_record,
)
from lambent.services.lambda_.control import Control, resolve
from lambent.services.lambda_.images import TakenCode
from lambent.services.lambda_.lifecycle import Lifecycle, begin_change, copy_of, require_changeable
from lambent.services.lambda_.managed_instances import check_change, check_managed, managed_config
from lambent.services.lambda_.messages import (
    function_exists,
    function_not_found,
    stale_revision,
)
from lambent.services.lambda_.snap_start import check_snap_start
from lambent.services.lambda_.validation import (
    check_environment,
    check_runtime,
    check_sizes,
    check_tags,
    refuse_unsupported,
)
from lambent.services.lambda_.versions import Published, next_version, publish_latest, require_storage
from lambent.store.functions import FunctionRows
from lambent.store.records import FunctionRecord, LayerUse, VersionRecord, ordinal_of

Answer = dict[str, Any]


class Functions:
    """Handlers of the operations on functions."""

    def __init__(self, control: Control, lifecycle: Lifecycle, source: CodeSource, runtimes: Iterable[str]) -> None:
        self._control = control
        self._lifecycle = lifecycle
        self._source = source
        self._runtimes = tuple(runtimes)

    def handlers(self) -> dict[str, Handler]:
        return {
            "CreateFunction": self.create,
            "GetFunction": self.get,
            "GetFunctionConfiguration": self.get_configuration,
            "UpdateFunctionCode": self.update_code,
            "UpdateFunctionConfiguration": self.update_configuration,
            "DeleteFunction": self.delete,
            "ListFunctions": self.list_functions,
        }

    # --- create ------------------------------------------------------------------------------------------

    async def create(self, context: CallContext, params: Answer) -> Answer:
        control = self._control
        key = control.named_function(context, params, "CreateFunction")
        refuse_unsupported({**params, **params["Code"]})
        images.check_new(params)
        self._check_configuration(params, managed_config(params) is not None)
        check_tags(params.get("Tags", {}))
        async with control.exclusive(key):
            if await control.rows(lambda rows: rows.function(key)) is not None:
                raise function_exists(key)
            layers = await self._layers(context, params)
            async with self._taken(context, params["Code"], _is_image(params), _architecture(params)) as code:
                await check_unzipped_size(control.code, code.sha256, layers)
                made = await control.rows(lambda rows: self._insert(rows, key, params, code, layers))
            for record in made:
                self._lifecycle.begin(record)
        # With Publish the answer is version 1, but under the function's own ARN.
        return described_unqualified(made[-1])

    def _insert(
        self, rows: FunctionRows, key: FunctionKey, params: Answer, code: TakenCode, layers: tuple[LayerUse, ...]
    ) -> list[VersionRecord]:
        """$LATEST and, if asked for, version 1; in one transaction with the function."""
        latest = new_record(
            key,
            params,
            code_sha256=code.sha256,
            code_size=code.size,
            image=code.image,
            revision_id=self._control.new_revision(),
            now=self._control.timestamp(),
        )
        latest.layers = layers
        check_snap_start(latest)
        check_managed(rows, latest)
        function = FunctionRecord(key=key, tags=params.get("Tags", {}))
        made = [latest]
        if params.get("Publish"):
            made.append(next_version(function, latest, self._control.new_revision()))
        require_storage(rows, key, len(made) * code.size)
        rows.save_function(function)
        for record in made:
            rows.save_version(record)
        return made

    @contextlib.asynccontextmanager
    async def _taken(
        self, context: CallContext, code: Answer, is_image: bool, architecture: str
    ) -> AsyncIterator[TakenCode]:
        """The code that a request brings or names, a zip or an image; it stays for the length of the block."""
        if is_image:
            async with images.taken(self._control.code, code["ImageUri"], architecture) as taken:
                yield taken
        else:
            async with self._source.taken(context, code) as ref:
                yield TakenCode(ref.sha256, ref.size)

    async def _layers(self, context: CallContext, params: Answer) -> tuple[LayerUse, ...]:
        """What the request's `Layers` names."""
        arns = params.get("Layers", [])
        return await self._control.rows(lambda rows: find_layers(rows, context, arns)) if arns else ()

    def _check_configuration(self, params: Answer, may_be_managed: bool) -> None:
        if "Runtime" in params:
            check_runtime(params["Runtime"], self._runtimes)
        check_sizes(params, limits.MANAGED_MEMORY_MAX_MIB if may_be_managed else limits.MEMORY_MAX_MIB)
        check_environment(params.get("Environment", {}).get("Variables", {}))

    # --- read --------------------------------------------------------------------------------------------

    async def get(self, context: CallContext, params: Answer) -> Answer:
        ref = self._control.named(context, params, "GetFunction")

        def read(rows: FunctionRows) -> tuple[VersionRecord, str, FunctionRecord]:
            found = resolve(rows, ref)
            function = rows.function(ref.key)
            assert function is not None, "versions belong to a function"
            return found.record, found.arn, function

        record, arn, function = await self._control.rows(read)
        answer: Answer = {"Configuration": described(record, arn=arn), "Code": self._code_location(context, record)}
        if function.tags:
            answer["Tags"] = function.tags
        if function.reserved is not None:
            answer["Concurrency"] = {"ReservedConcurrentExecutions": function.reserved}
        return answer

    def _code_location(self, context: CallContext, record: VersionRecord) -> Answer:
        if record.image is None:
            return {"RepositoryType": "S3", "Location": self._source.link(context, record.code_sha256)}
        uris = {"ImageUri": record.image.uri, "ResolvedImageUri": record.image.resolved_uri}
        return {"RepositoryType": "ECR", **uris}

    async def get_configuration(self, context: CallContext, params: Answer) -> Answer:
        ref = self._control.named(context, params, "GetFunctionConfiguration")
        found = await self._control.rows(lambda rows: resolve(rows, ref))
        return described(found.record, arn=found.arn)

    async def list_functions(self, context: CallContext, params: Answer) -> Answer:
        every = params.get("FunctionVersion") == "ALL"
        size = paging.page_size(params)
        start = paging.after(params, paging.VersionMarker, paging.VersionMarker("", -1))
        found = await self._control.rows(
            lambda rows: rows.list_versions(
                context.account, context.region, every=every, after=(start.name, start.ordinal), limit=size + 1
            )
        )
        records, marker = paging.page(found, size, paging.version_marker)
        # One list item per function is its $LATEST under the plain ARN; with ALL each version is itself.
        functions = [listed(each, arn=None if every else each.key.arn()) for each in records]
        return {"Functions": functions, "NextMarker": marker}

    # --- update ------------------------------------------------------------------------------------------

    async def update_code(self, context: CallContext, params: Answer) -> Answer:
        control = self._control
        key = control.named_function(context, params, "UpdateFunctionCode")
        refuse_unsupported(params)
        async with control.exclusive(key):
            before = await control.rows(lambda rows: _changeable(rows, key, params))
            images.check_new_code(before, params)
            architecture = _architecture(params, before.architecture)
            async with self._taken(context, params, before.image is not None, architecture) as code:
                await check_unzipped_size(control.code, code.sha256, before.layers)
                after = copy_of(before)
                after.code_sha256, after.code_size, after.image = code
                after.architecture = architecture
                if params.get("DryRun"):
                    return described_unqualified(after)
                self._stamp(before, after)
                publish = bool(params.get("Publish"))
                published = await control.rows(lambda rows: self._save_update(rows, before, after, publish))
            self._lifecycle.begin(after)
            if published is None:
                return described_unqualified(after)
            if published.is_new:
                self._lifecycle.begin(published.record)
        return described(published.record)

    async def update_configuration(self, context: CallContext, params: Answer) -> Answer:
        control = self._control
        key = control.named_function(context, params, "UpdateFunctionConfiguration")
        refuse_unsupported(params)
        self._check_configuration(params, True)
        async with control.exclusive(key):
            before = await control.rows(lambda rows: _changeable(rows, key, params))
            images.check_new_configuration(before, params)
            check_change(before, params)
            after = changed(before, params)
            check_snap_start(after)
            await control.rows(lambda rows: check_managed(rows, after))
            if "Layers" in params:
                after.layers = await self._layers(context, params)
                await check_unzipped_size(control.code, after.code_sha256, after.layers)
            self._stamp(before, after)
            await control.rows(lambda rows: self._save_update(rows, before, after, False))
            self._lifecycle.begin(after)
        return described_unqualified(after)

    def _stamp(self, before: VersionRecord, after: VersionRecord) -> None:
        begin_change(before, after)
        after.revision_id = self._control.new_revision()
        after.last_modified = self._control.timestamp()

    def _save_update(
        self, rows: FunctionRows, before: VersionRecord, after: VersionRecord, publish: bool
    ) -> Published | None:
        """Replace $LATEST and, if asked for, publish what it has become."""
        require_storage(rows, after.key, after.code_size * (1 + publish) - before.code_size)
        rows.save_version(after)
        if not publish:
            return None
        return publish_latest(rows, after, self._control.new_revision())

    # --- delete ------------------------------------------------------------------------------------------

    async def delete(self, context: CallContext, params: Answer) -> Answer:
        control = self._control
        key, qualifier = control.named(context, params, "DeleteFunction")
        async with control.exclusive(key):
            deleted = await control.rows(lambda rows: _delete(rows, key, qualifier))
            if qualifier is None:
                control.deployments.remove_function(key)
            elif deleted:
                control.deployments.retire_version(key, qualifier)
        return {"StatusCode": 204}


def _is_image(params: Answer) -> bool:
    return params.get("PackageType") == "Image"


def _architecture(params: Answer, default: str = "x86_64") -> str:
    architectures: list[str] = params.get("Architectures", [default])
    return architectures[0]


def _changeable(rows: FunctionRows, key: FunctionKey, params: Answer) -> VersionRecord:
    """$LATEST, if it may be changed now by a caller who has seen `RevisionId`."""
    latest = rows.version(key)
    if latest is None:
        raise function_not_found(key.arn())
    require_changeable(latest)
    if params.get("RevisionId", latest.revision_id) != latest.revision_id:
        raise stale_revision()
    return latest


def _delete(rows: FunctionRows, key: FunctionKey, qualifier: str | None) -> bool:
    """Delete a function or one version; whether it was there."""
    if rows.function(key) is None:
        raise function_not_found(key.arn())
    if qualifier is None:
        return rows.delete_function(key)
    if qualifier == LATEST:
        raise InvalidParameterValue("$LATEST version cannot be deleted without deleting the function.")
    if ordinal_of(qualifier) < 0:
        raise InvalidParameterValue("Deletion of aliases is not currently supported.")
    users = [each.alias for each in rows.aliases(key) if qualifier == each.version or qualifier in each.additional]
    if users:
        raise ResourceConflict(
            "Unable to delete version because the following aliases reference it: " + f"[{', '.join(users)}]"
        )
    # A version that is not there is what was wanted.
    return rows.delete_version(key, qualifier)
