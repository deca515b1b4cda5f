"""Asynchronous invocations, in memory: run once accepted, and again while limits refuse them.

A later step gives this a durable queue, retries of failed functions and destinations; today an event that was
accepted is lost when the server stops (README, limits). Throttled events are tried again with growing pauses for up
to six hours, as AWS does.
"""

from __future__ import annotations

import asyncio
import logging
import time

from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.dataplane.tenants import require_tenant
from lambent.model.errors import ApiError, TooManyRequests
from lambent.model.invocation import ThrottleReason
from lambent.model.names import FunctionRef
from lambent.worker.interface import Invocation, InvocationResult

_log = logging.getLogger("lambent.events")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_AGE_MAX_S = 6 * 3600.0
#: Events waiting at one time; one more is refused with 429 rather than kept without bound.
PENDING_MAX = 100_000


class AsynchronousInvoker:
    """Accepts events and sees them through."""

    def __init__(self, plane: DataPlane, routing: RoutingTable, pending_max: int = PENDING_MAX) -> None:
        self._plane = plane
        self._routing = routing
        self._pending_max = pending_max
        self._pending: set[_Event] = set()

    def accept(self, ref: FunctionRef, invocation: Invocation) -> None:
        """Start it now. Raises ApiError when the function can not be invoked at all, or too many events wait."""
        require_tenant(self._routing.resolve(ref).version.spec, invocation.tenant_id)
        if len(self._pending) >= self._pending_max:
            raise TooManyRequests(
                f"Rate Exceeded. {self._pending_max} asynchronous events wait already; send this one again later.",
                headers={"Retry-After": "1"},
                Reason=ThrottleReason.CALLER_RATE.value,
            )
        event = _Event(self, ref, invocation)
        self._pending.add(event)
        event.attempt()

    def close(self) -> None:
        if self._pending:
            _log.warning("%d accepted events have not run and are lost", len(self._pending))
        for event in self._pending:
            event.cancel()
        self._pending.clear()


class _Event:
    """One accepted event; a Caller of the data plane."""

    __slots__ = ("_accepted_at", "_invocation", "_invoker", "_pause_s", "_ref", "_timer")

    def __init__(self, invoker: AsynchronousInvoker, ref: FunctionRef, invocation: Invocation) -> None:
        self._invoker = invoker
        self._ref = ref
        self._invocation = invocation
        self._accepted_at = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S
        self._timer: asyncio.TimerHandle | None = None

    def attempt(self) -> None:
        self._timer = None
        try:
            target = self._invoker._routing.resolve(self._ref)
        except ApiError as error:
            _log.warning("event %s for %s: %s", self._invocation.request_id, self._ref.arn, error.message)
            self._done()
            return
        self._invoker._plane.invoke(target, self._invocation, self, asynchronous=True)

    def on_result(self, result: InvocationResult) -> None:
        self._done()

    def on_refused(self, error: ApiError) -> None:
        if error.status in (429, 503) and time.monotonic() - self._accepted_at < _AGE_MAX_S:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self.attempt)
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
            return
        _log.warning("event %s for %s did not run: %s", self._invocation.request_id, self._ref.arn, error.message)
        self._done()

    def _done(self) -> None:
        self._invoker._pending.discard(self)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
