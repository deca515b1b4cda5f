"""What the data plane asks of a worker, and what a worker reports back: in-process now, over the network later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from lambent.core.events import AnyEvent
from lambent.model.function import DebugSpec, VersionSpec
from lambent.model.invocation import InitializationType, Outcome
from lambent.model.names import FunctionKey


class StreamSource(Protocol):
    """Where a streamed response comes from. A paused source stops reading from the runtime, which then blocks."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class StreamSink(Protocol):
    """Takes a response chunk by chunk; called on the event-loop thread. `on_start` comes once, before the first chunk
    and only when the runtime answers in streaming mode; the end is the caller's `on_result` with `streamed` set."""

    def on_start(self, content_type: str, source: StreamSource) -> None: ...

    def on_chunk(self, data: bytes) -> None: ...


@dataclasses.dataclass(slots=True, eq=False)
class Invocation:
    """One request on its way through an environment. `request` is the scheduler's id, `request_id` the UUID.

    With a `sink` a streamed response is handed on as it comes; without one it is gathered into the result.
    """

    request: int
    request_id: str
    payload: bytes
    arn: str
    trace_id: str = ""
    client_context: str = ""
    cognito_identity: str = ""
    tenant_id: str = ""
    wants_tail: bool = False
    sink: StreamSink | None = None


@dataclasses.dataclass(slots=True, eq=False)
class InvocationResult:
    """What the runtime answered, or the platform in its place. `payload` is the body as the client gets it.

    `streamed`: the body went through the sink; `payload` is then empty, or the error's JSON when the stream broke off.
    """

    payload: bytes
    is_function_error: bool = False
    log_tail: bytes | None = None
    content_type: str = "application/json"
    streamed: bool = False
    #: As in REPORT.
    duration_ns: int = 0
    #: The function has not run because its environment could not be restored (SnapStartException); `payload` is empty.
    not_restored: bool = False


class SnapshotFailed(Exception):
    """Init of a SnapStart version failed. `reason_code`: StateReasonCode of the version."""

    def __init__(self, message: str, reason_code: str) -> None:
        super().__init__(message)
        self.reason_code = reason_code


@dataclasses.dataclass(slots=True, frozen=True)
class EnvironmentInfo:
    """What only the worker knows about a live environment."""

    log_group: str
    log_stream: str
    memory_peak_bytes: int
    frozen: bool = False


class WorkerListener(Protocol):
    """The data plane, as a worker sees it. Called on the event-loop thread, also from inside a command: it queues."""

    def on_fact(self, event: AnyEvent) -> None: ...

    def on_response(self, environment: int, request: int, result: InvocationResult) -> None:
        """The runtime has answered, and something in the environment (an extension) is still busy with the request: the
        client may have its answer, `on_ended` follows."""

    def on_ended(self, environment: int, request: int, outcome: Outcome, result: InvocationResult) -> None: ...

    def on_all_ended(self, environment: int, outcome: Outcome, results: Sequence[tuple[int, InvocationResult]]) -> None:
        """The runtime of an environment with several requests is gone, and so are these; at least one."""


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

    def layers_folder(self, layers: tuple[str, ...]) -> str:
        """Name, beside the unpacked code, of the folder that these layers make together."""

    async def ensure_layers(self, layers: tuple[str, ...]) -> object: ...

    def image_folder(self, digest: str) -> str:
        """Name, beside the unpacked code, of an image's root file system."""

    async def ensure_image(self, digest: str) -> object: ...


class Worker(Protocol):
    def start(self, environment: int, spec: VersionSpec, initialization_type: InitializationType) -> None:
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

    async def snapshot(self, spec: VersionSpec) -> None:
        """Run Init and keep it as the template that environments of this version are restored from. Where that can not
        be done the function's log says why, and environments start in the ordinary way. Raises SnapshotFailed when
        Init fails."""

    def has_snapshot(self, spec: VersionSpec) -> bool:
        """Whether environments of this version that start now are restored."""

    def drop_snapshot(self, spec: VersionSpec) -> None:
        """The version is gone; environments that run go on."""

    def on_snapshot_lost(self, told: Callable[[VersionSpec], None]) -> None:
        """Have `told` called when a template has ended by itself."""

    def debug(self, key: FunctionKey, setting: DebugSpec | None) -> None:
        """From now on a debugger can attach to one environment of the function's $LATEST at a time; None: to none."""

    def info(self, environment: int) -> EnvironmentInfo | None: ...
