"""What the data plane asks of a worker, and what a worker reports back: in-process now, over the network later."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from lambent.core.events import AnyEvent
from lambent.model.function import VersionSpec
from lambent.model.invocation import Outcome


@dataclasses.dataclass(slots=True, eq=False)
class Invocation:
    """One request on its way through an environment. `request` is the scheduler's id, `request_id` the UUID."""

    request: int
    request_id: str
    payload: bytes
    arn: str
    trace_id: str = ""
    client_context: str = ""
    cognito_identity: str = ""
    tenant_id: str = ""
    wants_tail: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class InvocationResult:
    """What the runtime answered, or the platform in its place. `payload` is the body as the client gets it."""

    payload: bytes
    is_function_error: bool = False
    log_tail: bytes | None = None


@dataclasses.dataclass(slots=True, frozen=True)
class EnvironmentInfo:
    """What only the worker knows about a live environment."""

    log_group: str
    log_stream: str
    memory_peak_bytes: int


class WorkerListener(Protocol):
    """The data plane, as a worker sees it. Called on the event-loop thread, also from inside a command: it queues."""

    def on_fact(self, event: AnyEvent) -> None: ...

    def on_ended(self, environment: int, request: int, outcome: Outcome, result: InvocationResult) -> None: ...


class LogSink(Protocol):
    """A log stream to write to: telemetry's LogStream."""

    def write(self, timestamp_ms: int, message: str) -> None: ...


class LogStreams(Protocol):
    """Opens the log stream of an environment: telemetry's LogStore behind a small adapter."""

    def open(self, spec: VersionSpec, stream_name: str) -> LogSink: ...


class CodeFolders(Protocol):
    """Where unpacked code lies: store's CodeStore."""

    def unpacked_path(self, sha256: str) -> object: ...

    async def ensure_unpacked(self, sha256: str) -> object: ...


class Worker(Protocol):
    def start(self, environment: int, spec: VersionSpec) -> None:
        """Make a sandbox and begin Init. Facts: EnvironmentStarted, then EnvironmentReady or InitFailed."""

    def dispatch(self, environment: int, invocation: Invocation, deadline_ns: int, cold: bool, reinit: bool) -> None:
        """Give the request to the environment; ends in on_ended. Never raises."""

    def expire(self, environment: int, request_id: str, timeout_s: float) -> InvocationResult:
        """The function timeout passed: write the log lines of it and make the answer."""

    def reset(self, environment: int) -> None:
        """Kill the runtime process and its children; keep the sandbox. Fact: ResetDone."""

    def stop(self, environment: int) -> None:
        """End the environment. Fact: EnvironmentDied."""

    async def prepare(self, spec: VersionSpec) -> None:
        """Have everything at hand that a start of this version needs. Raises an error that says what is missing."""

    def info(self, environment: int) -> EnvironmentInfo | None: ...
