"""The live driver of the scheduler: tells it what happens and when, and does what it says.

One invocation is: `invoke` → Invoke → Dispatch → worker → on_ended → InvocationEnded → Complete → the caller's
`on_result`, all on the event-loop thread and, when an environment is idle, without a task, a thread or a query.

Facts that arrive while commands are being carried out wait in a queue, so the scheduler is never entered twice.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lambent.core.events import (
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDied,
    InvocationEnded,
    Invoke,
    ProvisionedStatus,
    Reject,
    RejectReason,
    Reset,
    Start,
    Stop,
    Throttle,
    Tick,
    WorkerJoined,
)
from lambent.core.scheduler import Scheduler
from lambent.dataplane.routing import Target
from lambent.dataplane.tenants import Tenant, Tenants, require_tenant
from lambent.model.errors import (
    ApiError,
    ResourceNotFound,
    ServiceUnavailable,
    SnapStartFailed,
    SnapStartTimeout,
    TooManyRequests,
)
from lambent.model.function import VersionSpec
from lambent.model.invocation import Outcome, ThrottleReason
from lambent.worker.interface import Invocation, InvocationResult, Worker

_log = logging.getLogger("lambent.dataplane")
#: Facts waiting while commands are carried out: at most a few per live environment.
_QUEUE_MAX = 1_000_000
LOCAL_WORKER = 1


class Caller(Protocol):
    """Whoever waits for an invocation; exactly one of the two is called, once."""

    def on_result(self, result: InvocationResult) -> None: ...

    def on_refused(self, error: ApiError) -> None: ...


class Recorder(Protocol):
    def record(self, now_ns: int, event: AnyEvent, commands: list[AnyCommand]) -> None: ...


class _Flight:
    """A request between `invoke` and its answer."""

    __slots__ = (
        "answered",
        "caller",
        "counted",
        "dispatched",
        "invocation",
        "metrics",
        "provisioned",
        "result",
        "tenant",
        "version",
    )

    def __init__(self, invocation: Invocation, target: Target, caller: Caller) -> None:
        self.invocation = invocation
        self.version = target.version
        self.metrics = target.metrics
        self.caller = caller
        self.result: InvocationResult | None = None
        self.tenant: Tenant | None = None
        self.answered = self.counted = self.dispatched = self.provisioned = False


class DataPlane:
    """Owns the scheduler and drives the worker. All methods run on the event-loop thread."""

    def __init__(self, scheduler: Scheduler, recorder: Recorder | None = None) -> None:
        self.scheduler = scheduler
        self.worker: Worker
        self._loop = asyncio.get_running_loop()
        self._recorder = recorder
        self._flights: dict[int, _Flight] = {}
        self._specs: dict[int, VersionSpec] = {}
        #: Versions of which the scheduler does not know (yet), and what their callers are told.
        self._refused: dict[int, ApiError] = {}
        self.tenants = Tenants()
        self._requests = itertools.count(1)
        self._queue: collections.deque[AnyEvent] = collections.deque(maxlen=_QUEUE_MAX)
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = 0
        self._drained: asyncio.Future[None] | None = None
        #: Told of what becomes of provisioned concurrency.
        self.on_provisioned: Callable[[ProvisionedStatus], None] = lambda _: None
        self._carry: dict[type, Callable[[Any], None]] = {
            Start: self._start,
            Dispatch: self._dispatch,
            Complete: self._complete,
            Throttle: self._throttle,
            Reject: self._reject,
            Reset: self._reset,
            Stop: self._stop,
            ProvisionedStatus: self._provisioned,
        }

    def attach(self, worker: Worker, memory_mib: int, environments_max: int) -> None:
        """The worker is there; `memory_mib` is what may be promised on it."""
        self.worker = worker
        self.tell(WorkerJoined(LOCAL_WORKER, memory_mib, environments_max))

    # --- requests ---------------------------------------------------------------------------------------

    def invoke(self, target: Target, invocation: Invocation, caller: Caller, asynchronous: bool) -> None:
        """Run it. `invocation.request` is set here."""
        if self._refused:
            refusal = self._refused.get(target.version.id)
            if refusal is not None:
                caller.on_refused(refusal)
                return
        flight = _Flight(invocation, target, caller)
        tenant = 0
        if invocation.tenant_id or target.version.spec.tenancy:
            try:
                tenant = self._enter(flight)
            except ApiError as error:
                caller.on_refused(error)
                return
        number = next(self._requests)
        invocation.request = number
        self._flights[number] = flight
        self.tell(Invoke(number, target.version.id, asynchronous, tenant))
        if not flight.counted and number in self._flights:  # admitted: neither throttled nor rejected
            flight.counted = True
            flight.metrics.started(flight.provisioned)

    def _enter(self, flight: _Flight) -> int:
        """The number of the request's tenant. Raises ApiError where that is not as the function wants it, or where the
        function has all the environments that tenants may have."""
        version = flight.version
        require_tenant(version.spec, flight.invocation.tenant_id)
        flight.tenant = self.tenants.enter(version, flight.invocation.tenant_id)
        if flight.tenant is None:
            is_reserved = version.function.reserved is not None
            reason = ThrottleReason.RESERVED_CONCURRENCY if is_reserved else ThrottleReason.CONCURRENCY
            flight.metrics.throttled(reason.value)
            raise TooManyRequests("Rate Exceeded.", headers={"Retry-After": "1"}, Reason=reason.value)
        return flight.tenant.number

    def keep_spec(self, version: int, spec: VersionSpec) -> None:
        """What to start when the scheduler names this version; call before VersionSet."""
        self._specs[version] = spec

    def drop_spec(self, version: int) -> None:
        """After VersionRetired: the scheduler starts nothing of it any more."""
        self._specs.pop(version, None)
        self._refused.pop(version, None)

    def refuse(self, version: int, error: ApiError) -> None:
        """Answer requests for this version with `error`, until drop_spec."""
        self._refused[version] = error

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    # --- the scheduler ----------------------------------------------------------------------------------

    def tell(self, event: AnyEvent) -> None:
        """Give a fact to the scheduler and carry out what follows."""
        if self._running:
            self._queue.append(event)
            return
        self._running = True
        try:
            self._handle(event)
            while self._queue:
                self._handle(self._queue.popleft())
        finally:
            self._running = False
        self._arm()

    def _handle(self, event: AnyEvent) -> None:
        now_ns = time.monotonic_ns()
        commands = self.scheduler.handle(now_ns, event)
        if self._recorder is not None:
            self._recorder.record(now_ns, event, commands)
        carry = self._carry
        for command in commands:
            carry[type(command)](command)

    def _arm(self) -> None:
        """Have the timer fire no later than the scheduler's next deadline."""
        deadline_ns = self.scheduler.next_deadline()
        if deadline_ns is None or (self._timer is not None and self._timer_at_ns <= deadline_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_ns = deadline_ns
        self._timer = self._loop.call_later(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(Tick())

    # --- facts of the worker ----------------------------------------------------------------------------

    def on_fact(self, event: AnyEvent) -> None:
        if type(event) is EnvironmentDied:
            self.tenants.died(event.environment)
        self.tell(event)

    def on_response(self, environment: int, request: int, result: InvocationResult) -> None:
        flight = self._flights.get(request)
        if flight is not None and not flight.answered:
            flight.answered = True
            flight.caller.on_result(result)

    def on_ended(self, environment: int, request: int, outcome: Outcome, result: InvocationResult) -> None:
        flight = self._flights.get(request)
        if flight is not None:
            flight.result = result
        self.tell(InvocationEnded(environment, request, outcome))

    def on_all_ended(self, environment: int, outcome: Outcome, results: Sequence[tuple[int, InvocationResult]]) -> None:
        for request, result in results:
            flight = self._flights.get(request)
            if flight is not None:
                flight.result = result
        # The first one ends them all.
        self.tell(InvocationEnded(environment, results[0][0], outcome))

    # --- commands ---------------------------------------------------------------------------------------

    def _start(self, command: Start) -> None:
        if command.tenant:
            self.tenants.started(command.environment, command.tenant)
        self.worker.start(command.environment, self._specs[command.version], command.initialization_type)

    def _dispatch(self, command: Dispatch) -> None:
        flight = self._flights[command.request]
        flight.dispatched = True
        if command.provisioned:
            flight.provisioned = True
            if flight.counted:  # it has waited for a reset, and was counted when it was admitted
                flight.metrics.abandoned()
                flight.metrics.started(True)
        self.worker.dispatch(command.environment, flight.invocation, command.deadline_ns, command.cold, command.reinit)

    def _complete(self, command: Complete) -> None:
        flight = self._land(command.request)
        self._count_end(flight, command.outcome)
        if command.outcome is Outcome.TIMEOUT:
            result = self.worker.expire(command.environment, flight.invocation.request_id, flight.version.timeout_s)
            if not flight.answered:
                flight.caller.on_result(result)
        elif flight.answered:
            pass
        elif command.outcome is Outcome.RESTORE_TIMEOUT:
            flight.caller.on_refused(SnapStartTimeout("Lambda couldn't restore the snapshot within the timeout limit."))
        elif flight.result is not None and flight.result.not_restored:
            flight.caller.on_refused(
                SnapStartFailed(
                    "The afterRestore() runtime hook encountered an error. For more information, check the Amazon "
                    "CloudWatch logs."
                )
            )
        elif flight.result is not None:
            flight.caller.on_result(flight.result)
        else:
            flight.caller.on_refused(
                ServiceUnavailable(
                    f"No execution environment could be started for {flight.version.spec.arn}; the server's log and "
                    "`lambent doctor` say why. The request has not run."
                )
            )
        self._check_drained()

    def _land(self, request: int) -> _Flight:
        flight = self._flights.pop(request)
        if flight.tenant is not None:
            self.tenants.leave(flight.tenant)
        return flight

    def _count_end(self, flight: _Flight, outcome: Outcome) -> None:
        if not flight.counted:
            flight.metrics.started(flight.provisioned)
        if not flight.dispatched:
            flight.metrics.abandoned()
            return
        result = flight.result
        duration_ms = flight.version.timeout_s * 1e3 if result is None else result.duration_ns / 1e6
        flight.metrics.ended(duration_ms, outcome is not Outcome.SUCCESS, flight.provisioned)

    def _throttle(self, command: Throttle) -> None:
        flight = self._land(command.request)
        if flight.counted:
            flight.metrics.abandoned()
        flight.metrics.throttled(command.reason.value)
        spec = flight.version.spec
        message = "Rate Exceeded."
        if command.capacity:
            message = (
                f"Rate Exceeded. No worker has room for another environment of {spec.memory_mib} MB; "
                "see `lambent environments` and --memory-overcommit."
            )
        flight.caller.on_refused(TooManyRequests(message, headers={"Retry-After": "1"}, Reason=command.reason.value))
        self._check_drained()

    def _reject(self, command: Reject) -> None:
        flight = self._land(command.request)
        if flight.counted:
            flight.metrics.abandoned()
        if command.reason is RejectReason.DRAINING:
            flight.caller.on_refused(ServiceUnavailable("The server is shutting down; send the request elsewhere."))
        else:
            flight.caller.on_refused(ResourceNotFound(f"Function not found: {flight.version.spec.arn}"))
        self._check_drained()

    def _reset(self, command: Reset) -> None:
        self.worker.reset(command.environment)

    def _stop(self, command: Stop) -> None:
        self.tenants.stopping(command.environment)
        self.worker.stop(command.environment)

    def _provisioned(self, command: ProvisionedStatus) -> None:
        self.on_provisioned(command)

    # --- draining ---------------------------------------------------------------------------------------

    async def drain(self, patience_s: float) -> int:
        """No new requests; wait for the running ones. Returns how many were cut off after `patience_s`."""
        self.tell(Drain())
        if self._flights:
            self._drained = self._loop.create_future()
            try:
                await asyncio.wait_for(self._drained, patience_s)
            except TimeoutError:
                _log.warning("%d requests did not finish within %s s", len(self._flights), patience_s)
        if self._timer is not None:
            self._timer.cancel()
        return len(self._flights)

    def _check_drained(self) -> None:
        if self._drained is not None and not self._flights and not self._drained.done():
            self._drained.set_result(None)
