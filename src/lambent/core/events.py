"""Facts that a driver tells the scheduler, and commands that the scheduler gives back.

All ids are integers that the driver chose, except environment ids, which the scheduler counts up from 1.
Times are nanoseconds on the driver's clock. Facts may come late, twice or for things already gone: the
scheduler then answers with nothing. A refusal is a command (Throttle, Reject), never an exception.

Structs are tagged so that a recorded run can be written down and replayed (see recording.py).
"""

from __future__ import annotations

import enum

import msgspec

from lambent.model.invocation import Outcome, ThrottleReason


class Event(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all facts."""


class Command(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all commands."""


# --- facts about configuration --------------------------------------------------------------------------


class AccountSet(Event, frozen=True):
    """An account in a region exists, or its limit changed. `classic_burst` is for the older scaling rule."""

    account: int
    concurrency_max: int
    classic_burst: int = 3_000


class FunctionSet(Event, frozen=True):
    """A function exists, or its reserved concurrency changed (None: it shares the unreserved pool)."""

    function: int
    account: int
    reserved: int | None = None


class FunctionRemoved(Event, frozen=True):
    """The function is deleted: its versions are retired; requests in flight may end."""

    function: int


class VersionSet(Event, frozen=True):
    """A runnable version exists. It never changes: an update is a new version id and a VersionRetired."""

    version: int
    function: int
    memory_mib: int
    timeout_ns: int
    init_timeout_ns: int


class VersionRetired(Event, frozen=True):
    """Replaced or deleted: no new requests, idle environments stop now, busy ones after their request."""

    version: int


# --- facts about workers --------------------------------------------------------------------------------


class WorkerJoined(Event, frozen=True):
    """A host that can run environments; `memory_mib` is what may be promised on it (overcommit included)."""

    worker: int
    memory_mib: int
    environments_max: int


class WorkerLost(Event, frozen=True):
    """The host and every environment on it are gone."""

    worker: int


class Drain(Event, frozen=True):
    """The driver is stopping: no new requests, idle environments stop, busy ones after their request."""


# --- facts about requests and environments --------------------------------------------------------------


class Invoke(Event, frozen=True):
    """A request for a version arrived. Asynchronous ones are not held to the request-rate limit."""

    request: int
    version: int
    asynchronous: bool = False


class EnvironmentStarted(Event, frozen=True):
    """The sandbox stands and the runtime process has begun Init: the 10 s limit counts from now."""

    environment: int


class EnvironmentReady(Event, frozen=True):
    """Init is done: the runtime asks for its first request."""

    environment: int


class InitFailed(Event, frozen=True):
    """Init ended with an error or the runtime's exit; the runtime process is gone, the sandbox stands."""

    environment: int


class InvocationEnded(Event, frozen=True):
    """The runtime answered (SUCCESS, ERROR), or went away during the invoke (RUNTIME_EXIT, INIT_ERROR)."""

    environment: int
    request: int
    outcome: Outcome


class ResetDone(Event, frozen=True):
    """After a Reset: the runtime process is gone, the sandbox (with /tmp) stands."""

    environment: int


class EnvironmentDied(Event, frozen=True):
    """The sandbox is gone, whether it was told to stop or not."""

    environment: int


class Tick(Event, frozen=True):
    """Time has passed: the driver's timer for next_deadline() fired."""


# --- commands -------------------------------------------------------------------------------------------


class StopReason(enum.StrEnum):
    IDLE = "idle"
    RETIRED = "retired"
    ROOM = "room"
    DRAIN = "drain"
    FAILED = "failed"


class Start(Command, frozen=True):
    """Make a sandbox for this version on this worker and begin Init."""

    environment: int
    worker: int
    version: int


class Dispatch(Command, frozen=True):
    """Give the request to the environment. `cold`: first one after its Init, whose duration REPORT shows.
    `reinit`: there is no runtime process; start one first, inside the invoke and its deadline."""

    environment: int
    request: int
    deadline_ns: int
    cold: bool
    reinit: bool


class Complete(Command, frozen=True):
    """The request has ended; answer whoever waits. Exactly one Complete, Throttle or Reject per Invoke."""

    request: int
    environment: int
    outcome: Outcome


class Throttle(Command, frozen=True):
    """Refused by a limit: 429 with this reason. `capacity`: no worker had room (no AWS limit was reached)."""

    request: int
    reason: ThrottleReason
    capacity: bool = False


class RejectReason(enum.StrEnum):
    UNKNOWN_VERSION = "unknown-version"
    DRAINING = "draining"


class Reject(Command, frozen=True):
    """Refused because the version is gone or the driver drains."""

    request: int
    reason: RejectReason


class Reset(Command, frozen=True):
    """Kill the runtime process and whatever it started; keep the sandbox and /tmp. Answer with ResetDone."""

    environment: int


class Stop(Command, frozen=True):
    """End the environment. Answer with EnvironmentDied."""

    environment: int
    reason: StopReason


AnyEvent = (
    AccountSet
    | FunctionSet
    | FunctionRemoved
    | VersionSet
    | VersionRetired
    | WorkerJoined
    | WorkerLost
    | Drain
    | Invoke
    | EnvironmentStarted
    | EnvironmentReady
    | InitFailed
    | InvocationEnded
    | ResetDone
    | EnvironmentDied
    | Tick
)
AnyCommand = Start | Dispatch | Complete | Throttle | Reject | Reset | Stop
