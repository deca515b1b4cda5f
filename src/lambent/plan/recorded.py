"""A recording of a live server (`lambent up --record`) as a workload.

For: `--recording FILE`. It must not replay the scheduler's decisions: core/recording.py does that; here the facts
say what came and how long it took, and the plan decides anew. Outcomes: a `Recorded`, with the settings that the
server had, and what the server itself did, to be compared with; WorkloadError with one line.

A request that was throttled has no duration: it gets the mean of its function. Warm requests do not say how long an
Init takes: they get the mean of their function's cold ones. The last settings of each function hold for the whole
time. Asynchronous requests are simulated like the others. The recording is held in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lambent.core.events import (
    AccountSet,
    Complete,
    Dispatch,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionSet,
    InvocationEnded,
    Invoke,
    ProvisionedSet,
    Reject,
    Start,
    Throttle,
    VersionSet,
    WorkerJoined,
)
from lambent.core.recording import Record, decode
from lambent.model.invocation import InitializationType, Outcome
from lambent.model.limits import ACCOUNT_CONCURRENCY_DEFAULT
from lambent.plan.provisioning import Provisioning
from lambent.plan.workload import Arrival, PlannedFunction, WorkloadError

_CHUNK_BYTES: Final = 1 << 20


@dataclasses.dataclass
class Actual:
    """What the server did, counted from its commands."""

    invocations: int = 0
    cold_starts: int = 0
    environments_started: int = 0
    throttles: int = 0
    throttles_by_reason: dict[str, int] = dataclasses.field(default_factory=dict)
    peak_concurrency: int = 0
    spillovers: int = 0


@dataclasses.dataclass
class Recorded:
    functions: list[PlannedFunction]
    arrivals: list[Arrival]
    account_concurrency: int
    memory_mib: int | None
    actual: Actual


@dataclasses.dataclass
class _Request:
    arrived_ns: int
    version: int
    dispatched_ns: int | None = None
    ended_ns: int | None = None
    init_ns: int = 0


def is_recording(path: Path) -> bool:
    """Does it begin like one? (Text does not begin with a byte 0.)"""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\0"
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from error


def read(path: Path) -> Recorded:
    reader = _Reader()
    try:
        for record in decode(_chunks(path)):
            reader.take(record)
    except (OSError, ValueError) as error:
        raise WorkloadError(f"{path}: is no recording of a server: {error}") from error
    if not reader.requests:
        raise WorkloadError(f"{path}: no request was recorded")
    return reader.result()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class _Reader:
    def __init__(self) -> None:
        self.requests: dict[int, _Request] = {}
        self._function_of: dict[int, int] = {}
        self._functions: dict[int, PlannedFunction] = {}
        self._kinds: dict[int, InitializationType] = {}
        self._version_of: dict[int, int] = {}
        self._begun_ns: dict[int, int] = {}
        self._init_ns: dict[int, int] = {}
        #: For each function: Init of environments that no request waited for.
        self._provisioned_inits: dict[int, list[int]] = {}
        self._account_concurrency = ACCOUNT_CONCURRENCY_DEFAULT
        self._memory_mib: int | None = None
        self._in_flight = 0
        self._actual = Actual()

    def take(self, record: Record) -> None:
        now_ns, event = record.now_ns, record.event
        if isinstance(event, Invoke):
            self._invoked(now_ns, event)
        elif isinstance(event, EnvironmentStarted):
            self._begun_ns[event.environment] = now_ns
        elif isinstance(event, EnvironmentReady):
            self._ready(now_ns, event.environment)
        elif not isinstance(event, InvocationEnded):
            self._configured(event)
        for command in record.commands:
            if isinstance(command, Start):
                self._actual.environments_started += 1
                self._kinds[command.environment] = command.initialization_type
                self._version_of[command.environment] = command.version
                self._begun_ns[command.environment] = now_ns
            elif isinstance(command, Dispatch):
                self._dispatched(now_ns, command)
            elif isinstance(command, Complete):
                self._in_flight -= 1
                request = self.requests.get(command.request)
                if request is not None:
                    request.ended_ns = None if command.outcome is Outcome.ENVIRONMENT_LOST else now_ns
            elif isinstance(command, Throttle):
                self._in_flight -= 1
                actual, reason = self._actual, command.reason.value
                actual.throttles += 1
                actual.throttles_by_reason[reason] = actual.throttles_by_reason.get(reason, 0) + 1
            elif isinstance(command, Reject):
                self._in_flight -= 1
                self._actual.invocations -= 1
                self.requests.pop(command.request, None)
        self._actual.peak_concurrency = max(self._actual.peak_concurrency, self._in_flight)

    def _invoked(self, now_ns: int, event: Invoke) -> None:
        self._in_flight += 1
        self._actual.invocations += 1
        self.requests[event.request] = _Request(now_ns, event.version)

    def _ready(self, now_ns: int, environment: int) -> None:
        if environment not in self._begun_ns:
            return
        init_ns = self._init_ns[environment] = now_ns - self._begun_ns.pop(environment)
        if self._kinds[environment] is InitializationType.PROVISIONED_CONCURRENCY:
            function = self._function_of[self._version_of[environment]]
            self._provisioned_inits.setdefault(function, []).append(init_ns)

    def _dispatched(self, now_ns: int, command: Dispatch) -> None:
        request = self.requests.get(command.request)
        if request is None:
            return
        request.dispatched_ns = now_ns
        self._actual.spillovers += command.spillover
        if command.cold or (command.reinit and now_ns > request.arrived_ns):
            self._actual.cold_starts += 1
            # All the time until it could begin, the making of the sandbox too.
            request.init_ns = now_ns - request.arrived_ns

    def _configured(self, event: object) -> None:
        if isinstance(event, AccountSet):
            self._account_concurrency = event.concurrency_max
        elif isinstance(event, WorkerJoined):
            self._memory_mib = event.memory_mib
        elif isinstance(event, FunctionSet):
            function = self._functions.setdefault(event.function, PlannedFunction(f"function-{event.function}"))
            function.reserved = event.reserved
        elif isinstance(event, VersionSet) and event.function in self._functions:
            self._function_of[event.version] = event.function
            function = self._functions[event.function]
            function.memory_mib, function.timeout_ns = event.memory_mib, event.timeout_ns
            function.snap_start = event.snap_start
        elif isinstance(event, ProvisionedSet) and event.versions:
            count = sum(count for _, count in event.versions)
            version = event.versions[0][0]
            if version in self._function_of and count:
                self._functions[self._function_of[version]].provisioning = Provisioning(count)

    def result(self) -> Recorded:
        """Functions that were never called are left out."""
        known = [r for r in self.requests.values() if r.version in self._function_of]
        used = dict.fromkeys(self._function_of[request.version] for request in known)
        index_of = {function: index for index, function in enumerate(used)}
        durations: dict[int, list[int]] = {function: [] for function in used}
        inits: dict[int, list[int]] = {function: [] for function in used}
        for request in known:
            function = self._function_of[request.version]
            if request.dispatched_ns is not None and request.ended_ns is not None:
                durations[function].append(request.ended_ns - request.dispatched_ns)
            if request.init_ns:
                inits[function].append(request.init_ns)
        mean_ns = {function: _mean(durations[function]) for function in used}
        init_ns = {function: _mean(inits[function]) for function in used}
        first_ns = min((request.arrived_ns for request in known), default=0)
        arrivals: list[Arrival] = []
        for request in known:
            function = self._function_of[request.version]
            if request.dispatched_ns is not None and request.ended_ns is not None:
                took_ns = request.ended_ns - request.dispatched_ns
            else:
                took_ns = mean_ns[function]
            arrivals.append(
                (request.arrived_ns - first_ns, took_ns, request.init_ns or init_ns[function], index_of[function])
            )
        functions = [self._functions[function] for function in used]
        for function, index in index_of.items():
            functions[index].init_ns = _mean(self._provisioned_inits.get(function, [])) or init_ns[function]
            functions[index].restore_ns = init_ns[function] if functions[index].snap_start else 0
        return Recorded(functions, arrivals, self._account_concurrency, self._memory_mib, self._actual)


def _mean(values: list[int]) -> int:
    return sum(values) // len(values) if values else 0
