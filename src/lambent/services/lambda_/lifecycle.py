"""The life of a version: from the answer "Pending" or "InProgress" to the state that it ends in.

A handler commits a record in a phase that waits and calls `begin`; a task of this room prepares the version
in the data plane, commits the outcome and lets the data plane route to it. Killing the process in between
loses nothing: the phase is in the store, and `load` begins again where it stands.

The transitions are one table and `advance` is the one door: what is not in the table is a bug.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec

from lambent.model.errors import ApiError, InvalidParameterValue
from lambent.model.function import VersionSpec
from lambent.services.lambda_.configuration import is_latest, spec_of
from lambent.services.lambda_.control import Control
from lambent.services.lambda_.messages import update_in_progress, wrong_state
from lambent.store.functions import FunctionRows
from lambent.store.images.errors import ImageProblem
from lambent.store.records import Phase, VersionRecord

_log = logging.getLogger("lambent.services.lambda")

#: Preparations at a time. More would only make each other slow; a restart may find hundreds.
_PREPARING_MAX = 8
#: Snapshots at a time: each runs a function's Init, which may take minutes.
_SNAPSHOTS_MAX = 4


class Event(enum.Enum):
    """What can happen to a version."""

    CHANGED = enum.auto()
    PREPARED = enum.auto()
    NOT_PREPARED = enum.auto()


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.CREATING, Event.PREPARED): Phase.READY,
    (Phase.CREATING, Event.NOT_PREPARED): Phase.CREATE_FAILED,
    (Phase.READY, Event.CHANGED): Phase.UPDATING,
    (Phase.UPDATING, Event.PREPARED): Phase.READY,
    (Phase.UPDATING, Event.NOT_PREPARED): Phase.UPDATE_FAILED,
    (Phase.UPDATE_FAILED, Event.CHANGED): Phase.UPDATING,
    (Phase.CREATE_FAILED, Event.CHANGED): Phase.REPAIRING,
    (Phase.REPAIRING, Event.PREPARED): Phase.READY,
    (Phase.REPAIRING, Event.NOT_PREPARED): Phase.CREATE_FAILED,
}

#: Phases that a preparation ends.
WAITING = frozenset({Phase.CREATING, Phase.UPDATING, Phase.REPAIRING})

#: What invokes of $LATEST are told in the phases in which nothing can answer them.
_NOT_INVOKABLE = {
    Phase.CREATING: "Pending",
    Phase.REPAIRING: "Pending",
    Phase.CREATE_FAILED: "Failed",
}


def advance(record: VersionRecord, event: Event, *, reason: str = "", reason_code: str = "") -> None:
    """The one place that changes `phase`."""
    record.phase = TRANSITIONS[record.phase, event]
    record.reason, record.reason_code = reason, reason_code
    if record.phase is Phase.READY:
        record.serving = None


def begin_change(before: VersionRecord, after: VersionRecord) -> None:
    """Turn `after`, a changed copy of `before`, into an update in progress; `before` goes on answering."""
    if before.phase is Phase.READY:
        after.serving = spec_of(before)
    advance(after, Event.CHANGED)


def require_changeable(record: VersionRecord) -> None:
    """Raise the 409 for a function that is still busy with its creation or its last change."""
    if record.phase is Phase.UPDATING:
        raise update_in_progress(record.key)
    if record.phase in WAITING:
        raise wrong_state("Pending")


class Lifecycle:
    """Runs preparations and tells the data plane."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_PREPARING_MAX)
        self._snapshots = asyncio.Semaphore(_SNAPSHOTS_MAX)

    def begin(self, record: VersionRecord) -> None:
        """Prepare a committed version that waits. The caller holds the function's lock."""
        assert record.phase in WAITING
        self._tell_pending(record)
        self._begin_task(self._prepare(record), f"prepare {record.key.arn(record.version)}")

    def _begin_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def begin_or_activate(self, record: VersionRecord) -> None:
        """As `begin`, for a committed version that may be ready already."""
        if record.phase is Phase.READY:
            self._control.deployments.activate(spec_of(record))
        else:
            self.begin(record)

    async def close(self) -> None:
        """Give up what is in progress; the next `load` takes it up again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def load(self) -> None:
        """Tell the data plane everything that is stored; begin what was left unfinished. Starts no
        runtimes."""
        control = self._control

        functions, versions, aliases = await control.rows(
            lambda rows: (list(rows.all_functions()), list(rows.all_versions()), list(rows.all_aliases()))
        )
        for function in functions:
            if function.reserved is not None:
                control.deployments.set_reserved(function.key, function.reserved)
        for record in versions:
            if record.serving is not None:
                control.deployments.activate(record.serving)
            elif record.phase is Phase.READY:
                control.deployments.activate(spec_of(record))
            self._tell_pending(record)
        for alias in aliases:
            control.deployments.set_alias(alias.key, alias.alias, alias.version, dict(alias.additional))
        for record in versions:
            if record.phase in WAITING:
                self.begin(record)
            elif record.phase is Phase.READY and spec_of(record).snap_start:
                self._begin_task(self._snapshot_again(record), f"snapshot {record.key.arn(record.version)}")

    async def _prepare(self, record: VersionRecord) -> None:
        spec = spec_of(record)
        reason = reason_code = ""
        event = Event.PREPARED
        try:
            async with self._snapshots if spec.snap_start else self._slots:
                await self._control.deployments.prepare(spec)
        except ApiError as error:
            event, reason = Event.NOT_PREPARED, error.message
            invalid = isinstance(error, InvalidParameterValue)
            reason_code = getattr(error, "reason_code", "InvalidConfiguration" if invalid else "InternalError")
            if isinstance(error, ImageProblem):
                reason_code = error.reason_code
        except Exception:
            _log.exception("could not prepare %s", spec.arn)
            event, reason_code = Event.NOT_PREPARED, "InternalError"
            reason = "Lambent failed to prepare the function; its log has the details."
        async with self._control.exclusive(record.key):
            await self._settle(record, spec, event, reason, reason_code)

    async def _settle(
        self, record: VersionRecord, spec: VersionSpec, event: Event, reason: str, reason_code: str
    ) -> None:
        """Commit the outcome of a preparation, unless the version was deleted or made anew meanwhile."""

        def settle(rows: FunctionRows) -> VersionRecord | None:
            stored = rows.version(record.key, record.version)
            if stored is None or stored.revision_id != record.revision_id:
                return None
            advance(stored, event, reason=reason, reason_code=reason_code)
            stored.revision_id = self._control.new_revision()
            rows.save_version(stored)
            return stored

        settled = await self._control.rows(settle)
        if settled is None:
            if spec.snap_start:
                self._control.deployments.hold(spec, None)
            return
        if settled.phase is Phase.READY:
            self._control.deployments.activate(spec)
        self._tell_pending(settled)

    def _tell_pending(self, record: VersionRecord) -> None:
        # The data plane keeps one such state for the whole function; $LATEST is what it is about.
        if is_latest(record):
            self._control.deployments.set_pending(record.key, _NOT_INVOKABLE.get(record.phase))
        elif record.snap_start and record.phase in _NOT_INVOKABLE:
            self._control.deployments.hold(spec_of(record), _NOT_INVOKABLE[record.phase])

    async def _snapshot_again(self, record: VersionRecord) -> None:
        """After a restart: until there is a snapshot, environments of the version have an Init each."""
        spec = spec_of(record)
        try:
            async with self._snapshots:
                await self._control.deployments.prepare(spec)
        except ApiError as error:
            _log.warning("the snapshot of %s could not be made again: %s", spec.arn, error.message)
            return
        async with self._control.exclusive(record.key):
            stored = await self._control.rows(lambda rows: rows.version(record.key, record.version))
            if stored is not None and stored.revision_id == record.revision_id:
                self._control.deployments.activate(spec)
            else:
                self._control.deployments.hold(spec, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s ended with a bug of Lambent", task.get_name(), exc_info=task.exception())


def copy_of(record: VersionRecord) -> VersionRecord:
    """A record that can be changed without changing the other one."""
    return msgspec.structs.replace(record)
