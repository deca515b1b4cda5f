"""PublishVersion and ListVersionsByFunction: what is published never changes.

A version is a copy of $LATEST under the next number; numbers are never given twice. Publishing again without
a change of code or configuration gives the version that is there already.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from lambent.model import limits
from lambent.model.errors import CodeStorageExceeded, InvalidParameterValue
from lambent.model.names import FunctionKey
from lambent.services.base import CallContext, Handler
from lambent.services.lambda_ import paging
from lambent.services.lambda_.configuration import code_sha256_of, described, fingerprint, listed
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.lifecycle import Event, Lifecycle, advance, require_changeable
from lambent.services.lambda_.messages import function_not_found, stale_revision, wrong_state
from lambent.services.lambda_.validation import refuse_unsupported
from lambent.store.functions import FunctionRows
from lambent.store.records import FunctionRecord, LayerKey, Phase, VersionRecord


class Published(NamedTuple):
    record: VersionRecord
    #: False: nothing had changed, and this is the version from last time.
    is_new: bool


def next_version(function: FunctionRecord, latest: VersionRecord, revision_id: str) -> VersionRecord:
    """Copy $LATEST under the function's next number, still to be prepared."""
    function.last_version += 1
    return msgspec.structs.replace(
        latest,
        version=str(function.last_version),
        revision_id=revision_id,
        phase=Phase.CREATING,
        reason="",
        reason_code="",
        serving=None,
        published_from=fingerprint(latest),
    )


def publish_latest(
    rows: FunctionRows, latest: VersionRecord, revision_id: str, description: str | None = None
) -> Published:
    """Publish $LATEST as it is stored in this transaction. The version is still to be prepared."""
    function = rows.function(latest.key)
    assert function is not None, "versions belong to a function"
    newest = rows.version(latest.key, str(function.last_version))
    if newest is not None and newest.published_from == fingerprint(latest):
        return Published(newest, False)
    record = next_version(function, latest, revision_id)
    if description is not None:
        record.description = description
    rows.save_function(function)
    rows.save_version(record)
    return Published(record, True)


def require_storage(rows: FunctionRows, key: FunctionKey | LayerKey, more_bytes: int) -> None:
    """Raise CodeStorageExceeded when an account's region would hold more code than it may."""
    used = rows.code_bytes_total(key.account, key.region)
    if used + more_bytes > limits.CODE_STORAGE_MAX_BYTES:
        raise CodeStorageExceeded(
            f"Code storage limit exceeded: {used + more_bytes} bytes, {limits.CODE_STORAGE_MAX_BYTES} allowed."
        )


class Versions:
    """Handlers of the operations on versions."""

    def __init__(self, control: Control, lifecycle: Lifecycle) -> None:
        self._control = control
        self._lifecycle = lifecycle

    def handlers(self) -> dict[str, Handler]:
        return {"PublishVersion": self.publish, "ListVersionsByFunction": self.list_versions}

    async def publish(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        control = self._control
        key = control.named_function(context, params, "PublishVersion")
        refuse_unsupported(params)
        async with control.exclusive(key):
            published = await control.rows(lambda rows: self._publish(rows, key, params))
            if published.is_new:
                self._lifecycle.begin_or_activate(published.record)
        return described(published.record)

    def _publish(self, rows: FunctionRows, key: FunctionKey, params: dict[str, Any]) -> Published:
        latest = rows.version(key)
        if latest is None:
            raise function_not_found(key.arn())
        require_changeable(latest)
        if latest.phase is Phase.CREATE_FAILED:
            raise wrong_state("Failed")
        if params.get("RevisionId", latest.revision_id) != latest.revision_id:
            raise stale_revision()
        current, wanted = code_sha256_of(latest), params.get("CodeSha256")
        if wanted and wanted != current:
            raise InvalidParameterValue(
                f"CodeSHA256 ({wanted}) is different from current CodeSHA256 in $LATEST ({current}). "
                "Please try again with the CodeSHA256 in $LATEST."
            )
        published = publish_latest(rows, latest, self._control.new_revision(), params.get("Description"))
        if published.is_new:
            require_storage(rows, key, 0)  # it is in the sum already
            if latest.phase is Phase.READY and not latest.snap_start:
                # What runs as $LATEST needs no further preparation to run under a number.
                advance(published.record, Event.PREPARED)
                rows.save_version(published.record)
            latest.revision_id = self._control.new_revision()
            rows.save_version(latest)
        return published

    async def list_versions(self, context: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        key = self._control.named(context, params, "ListVersionsByFunction").key
        size = paging.page_size(params)
        start = paging.after(params, paging.VersionMarker, paging.VersionMarker(key.name, -1))

        def read(rows: FunctionRows) -> list[VersionRecord]:
            if rows.function(key) is None:
                raise function_not_found(key.arn())
            return rows.versions(key, after=start.ordinal, limit=size + 1)

        records, marker = paging.page(await self._control.rows(read), size, paging.version_marker)
        return {"Versions": [listed(each) for each in records], "NextMarker": marker}
