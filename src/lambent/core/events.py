"""Facts that a driver tells the scheduler, and commands that the scheduler gives back.

All ids are integers that the driver chose, except environment ids, which the scheduler counts up from 1.
Times are nanoseconds on the driver's clock. Facts may come late, twice or for things already gone: the
scheduler then answers with nothing. A refusal is a command (Throttle, Reject), never an exception.

Structs are tagged so that a recorded run can be written down and replayed (see recording.py). New fields come
last and have a default, so that older recordings can still be read.
"""

from __future__ import annotations

import enum

import msgspec

from lambent.model.invocation import InitializationType, Outcome, ThrottleReason
from lambent.model.limits import NS_PER_S, RESTORE_TIMEOUT_S


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
    """A runnable version exists. It never changes: an update is a new version id and a VersionRetired.

    `snap_start`: environments are restored from a template (the driver's) instead of initialised, within
    `restore_timeout_ns`. `tenancy`: an environment serves one tenant only. `concurrency_per_environment`: so many
    requests at once in one environment (managed instances); 1 is ordinary Lambda.
    """

    version: int
    function: int
    memory_mib: int
    timeout_ns: int
    init_timeout_ns: int
    snap_start: bool = False
    restore_timeout_ns: int = RESTORE_TIMEOUT_S * NS_PER_S
    tenancy: bool = False
    concurrency_per_environment: int = 1


class VersionRetired(Event, frozen=True):
    """Replaced or deleted: no new requests, idle environments stop now, busy ones after their request."""

    version: int


class ProvisionedSet(Event, frozen=True):
    """All that a provisioned concurrency configuration asks for now: pairs of version and count; () removes it.

    `allocation` stands for the configuration of one version or alias; an alias with weights has two pairs, and one
    that moves is told again with the new version. Versions that are asked for less, or no longer, keep what they
    have until the others are complete (or there is no room for both). All are versions of one function; a version
    belongs to the allocation that named it last. Versions that are unknown, restored, shared or per tenant can not
    be provisioned: such pairs are dropped.
    """

    allocation: int
    versions: tuple[tuple[int, int], ...] = ()


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
    """A request for a version arrived. Asynchronous ones are not held to the request-rate limit. `tenant` counts only
    for versions with tenancy."""

    request: int
    version: int
    asynchronous: bool = False
    tenant: int = 0


class EnvironmentStarted(Event, frozen=True):
    """The sandbox stands and Init, or the restore, has begun: its limit counts from now."""

    environment: int


class EnvironmentReady(Event, frozen=True):
    """Init, or the restore, is done: the runtime asks for its first request."""

    environment: int


class EnvironmentDebugged(Event, frozen=True):
    """A debugger may stop it at any moment: its Init, restore and requests have no time limit, and of the idle ones of
    its version it is taken first. Told before its first request is handed over; later, nothing follows."""

    environment: int


class InitFailed(Event, frozen=True):
    """Init ended with an error or the runtime's exit; the runtime process is gone, the sandbox stands."""

    environment: int


class InvocationEnded(Event, frozen=True):
    """The runtime answered (SUCCESS, ERROR), or went away during the invoke (RUNTIME_EXIT, INIT_ERROR).

    With several requests at once: an answer after the timeout is told too, it frees the place; and when the runtime
    goes away, the first of these facts ends all requests of the environment.
    """

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
    #: Less provisioned concurrency is asked for.
    UNPROVISIONED = "unprovisioned"


class Start(Command, frozen=True):
    """Make a sandbox for this version on this worker and begin Init (SNAP_START: restore it from the template).

    PROVISIONED_CONCURRENCY: no request waits for it. `tenant`: the only one whose requests it will get, 0 for none.
    """

    environment: int
    worker: int
    version: int
    initialization_type: InitializationType = InitializationType.ON_DEMAND
    tenant: int = 0


class Dispatch(Command, frozen=True):
    """Give the request to the environment. `cold`: first one after its Init or restore, whose duration REPORT shows;
    never for provisioned ones. `reinit`: there is no runtime process; start one first, inside the invoke and its
    deadline (of several requests at once, all that come before the first answer say so: start one process).
    `provisioned`: the environment is; `spillover`: it is not, though the version has provisioned ones."""

    environment: int
    request: int
    deadline_ns: int
    cold: bool
    reinit: bool
    provisioned: bool = False
    spillover: bool = False


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


class ProvisionedState(enum.StrEnum):
    """`Status` of a provisioned concurrency configuration."""

    IN_PROGRESS = "IN_PROGRESS"
    #: All that was asked for has been there once; what is lost since is being replaced.
    READY = "READY"
    FAILED = "FAILED"


class ProvisionedReason(enum.StrEnum):
    """Why an allocation is not complete."""

    #: Init failed or took too long (FUNCTION_ERROR_INIT_FAILURE).
    INIT_FAILED = "init-failed"
    #: The environment vanished before its first request.
    ENVIRONMENT_LOST = "environment-lost"
    #: No worker has room; it is tried again, and what there is serves.
    NO_ROOM = "no-room"


class ProvisionedStatus(Command, frozen=True):
    """The numbers of an allocation have changed. `allocated`: environments whose Init is done, of the versions that
    are asked for; `available`: how many requests at once they serve (0 until all are allocated)."""

    allocation: int
    allocated: int
    available: int
    state: ProvisionedState
    reason: ProvisionedReason | None = None


AnyEvent = (
    AccountSet
    | FunctionSet
    | FunctionRemoved
    | VersionSet
    | VersionRetired
    | ProvisionedSet
    | WorkerJoined
    | WorkerLost
    | Drain
    | Invoke
    | EnvironmentStarted
    | EnvironmentReady
    | EnvironmentDebugged
    | InitFailed
    | InvocationEnded
    | ResetDone
    | EnvironmentDied
    | Tick
)
AnyCommand = Start | Dispatch | Complete | Throttle | Reject | Reset | Stop | ProvisionedStatus
