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
from collections.abc import Callable
from typing import Any, Protocol

from lambent.core.events import (
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    InvocationEnded,
    Invoke,
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
from lambent.model.errors import ApiError, ResourceNotFound, ServiceUnavailable, TooManyRequests
from lambent.model.function import VersionSpec
from lambent.model.invocation import Outcome
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

    __slots__ = ("answered", "caller", "counted", "dispatched", "invocation", "metrics", "result", "version")

    def __init__(self, invocation: Invocation, target: Target, caller: Caller) -> None:
        self.invocation = invocation
        self.version = target.version
        self.metrics = target.metrics
        self.caller = caller
        self.result: InvocationResult | None = None
        self.answered = self.counted = self.dispatched = False


class DataPlane:
    """Owns the scheduler and drives the worker. All methods run on the event-loop thread."""

    def __init__(self, scheduler: Scheduler, recorder: Recorder | None = None) -> None:
        self.scheduler = scheduler
        self.worker: Worker
        self._loop = asyncio.get_running_loop()
        self._recorder = recorder
        self._flights: dict[int, _Flight] = {}
        self._specs: dict[int, VersionSpec] = {}
        self._requests = itertools.count(1)
        self._queue: collections.deque[AnyEvent] = collections.deque(maxlen=_QUEUE_MAX)
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = 0
        self._drained: asyncio.Future[None] | None = None
        self._carry: dict[type, Callable[[Any], None]] = {
            Start: self._start,
            Dispatch: self._dispatch,
            Complete: self._complete,
            Throttle: self._throttle,
            Reject: self._reject,
            Reset: self._reset,
            Stop: self._stop,
        }

    def attach(self, worker: Worker, memory_mib: int, environments_max: int) -> None:
        """The worker is there; `memory_mib` is what may be promised on it."""
        self.worker = worker
        self.tell(WorkerJoined(LOCAL_WORKER, memory_mib, environments_max))

    # --- requests ---------------------------------------------------------------------------------------

    def invoke(self, target: Target, invocation: Invocation, caller: Caller, asynchronous: bool) -> None:
        """Run it. `invocation.request` is set here."""
        number = next(self._requests)
        invocation.request = number
        flight = self._flights[number] = _Flight(invocation, target, caller)
        self.tell(Invoke(number, target.version.id, asynchronous))
        if not flight.counted and number in self._flights:  # admitted: neither throttled nor rejected
            flight.counted = True
            flight.metrics.started()

    def keep_spec(self, version: int, spec: VersionSpec) -> None:
        """What to start when the scheduler names this version; call before VersionSet."""
        self._specs[version] = spec

    def drop_spec(self, version: int) -> None:
        """After VersionRetired: the scheduler starts nothing of it any more."""
        self._specs.pop(version, None)

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

    # --- commands ---------------------------------------------------------------------------------------

    def _start(self, command: Start) -> None:
        self.worker.start(command.environment, self._specs[command.version])

    def _dispatch(self, command: Dispatch) -> None:
        flight = self._flights[command.request]
        flight.dispatched = True
        self.worker.dispatch(command.environment, flight.invocation, command.deadline_ns, command.cold, command.reinit)

    def _complete(self, command: Complete) -> None:
        flight = self._flights.pop(command.request)
        self._count_end(flight, command.outcome)
        if command.outcome is Outcome.TIMEOUT:
            result = self.worker.expire(command.environment, flight.invocation.request_id, flight.version.timeout_s)
            if not flight.answered:
                flight.caller.on_result(result)
        elif flight.answered:
            pass
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

    def _count_end(self, flight: _Flight, outcome: Outcome) -> None:
        if not flight.counted:
            flight.metrics.started()
        if not flight.dispatched:
            flight.metrics.abandoned()
            return
        result = flight.result
        duration_ms = flight.version.timeout_s * 1e3 if result is None else result.duration_ns / 1e6
        flight.metrics.ended(duration_ms, outcome is not Outcome.SUCCESS)

    def _throttle(self, command: Throttle) -> None:
        flight = self._flights.pop(command.request)
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
        flight = self._flights.pop(command.request)
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
        self.worker.stop(command.environment)

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
