"""An execution environment: its states, its one transition table, its one door.

For: what the scheduler knows about one environment. It must not decide anything: scheduler.py decides, and
moves an environment only through `apply_transition`. Outcomes: the new state, or an AssertionError, which
is always a bug of ours: facts that are late or doubled are filtered out before they come here.

Theory of operation. An environment is started for one request, which is *bound* to it (`request`) from the
Start command until its Complete; it is never bound to a second one before that. Only in BUSY has the
request been handed over (Dispatch); in STARTING, INIT and RESETTING a bound request still waits for its
environment and can be moved to another one without anybody noticing. `needs_init` says that the sandbox
stands without a runtime process, so that the next Dispatch must start one inside the invocation.

    STARTING --started--> INIT --dispatch--> BUSY --ended--> IDLE --dispatch--> BUSY ...
        |                   |                  |
        |                   +------reset-------+--> RESETTING --reset done--> IDLE, or --dispatch--> BUSY
        +--restoring--> RESTORING, which goes on like INIT but is never reset (SnapStart)
    any but the last two --stop--> SHUTTING_DOWN --died--> DEAD

INIT --ready--> IDLE is the road of environments that no request has asked for (provisioned concurrency).

An environment of a version that takes several requests at once has its requests in `shared` (sharing.py) and
`request` is None all along; it is BUSY as long as one of them has been handed over and has not ended.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from lambent.model.invocation import InitializationType

if TYPE_CHECKING:
    from lambent.core.admission import Version
    from lambent.core.placement import Worker
    from lambent.core.provisioned import Pool
    from lambent.core.sharing import Shared

#: Later than every time: no deadline, no timer. About 292 years in nanoseconds.
NEVER_NS: Final = 1 << 63


class EnvironmentState(enum.StrEnum):
    #: Start was commanded; the sandbox is being made.
    STARTING = "starting"
    #: The runtime process runs its Init.
    INIT = "init"
    #: The runtime process is being restored from the version's template (SnapStart).
    RESTORING = "restoring"
    #: Waits for a request; the only state in which it may be given one that it was not started for.
    IDLE = "idle"
    #: A request was handed over and has not ended (one of them at least, where there may be several).
    BUSY = "busy"
    #: Reset was commanded: the runtime process is being killed, the sandbox stays.
    RESETTING = "resetting"
    #: Stop was commanded. Holds no request, and its room already counts as free.
    SHUTTING_DOWN = "shutting-down"
    #: Gone, and forgotten by the scheduler.
    DEAD = "dead"


class Trigger(enum.StrEnum):
    STARTED = "started"
    RESTORING = "restoring"
    READY = "ready"
    DISPATCH = "dispatch"
    ENDED = "ended"
    RESET = "reset"
    RESET_DONE = "reset-done"
    STOP = "stop"
    DIED = "died"


_S, _T = EnvironmentState, Trigger

#: The whole table; what is not in it is illegal. STARTING takes part in all that INIT does but a reset,
#: because the fact "started" may be overtaken by the one that follows it.
TRANSITIONS: Final[dict[tuple[EnvironmentState, Trigger], EnvironmentState]] = {
    (_S.STARTING, _T.STARTED): _S.INIT,
    (_S.STARTING, _T.RESTORING): _S.RESTORING,
    (_S.STARTING, _T.READY): _S.IDLE,
    (_S.STARTING, _T.DISPATCH): _S.BUSY,
    (_S.STARTING, _T.STOP): _S.SHUTTING_DOWN,
    (_S.STARTING, _T.DIED): _S.DEAD,
    (_S.INIT, _T.READY): _S.IDLE,
    (_S.INIT, _T.DISPATCH): _S.BUSY,
    (_S.INIT, _T.RESET): _S.RESETTING,
    (_S.INIT, _T.STOP): _S.SHUTTING_DOWN,
    (_S.INIT, _T.DIED): _S.DEAD,
    (_S.RESTORING, _T.READY): _S.IDLE,
    (_S.RESTORING, _T.DISPATCH): _S.BUSY,
    (_S.RESTORING, _T.STOP): _S.SHUTTING_DOWN,
    (_S.RESTORING, _T.DIED): _S.DEAD,
    (_S.IDLE, _T.DISPATCH): _S.BUSY,
    (_S.IDLE, _T.STOP): _S.SHUTTING_DOWN,
    (_S.IDLE, _T.DIED): _S.DEAD,
    (_S.BUSY, _T.ENDED): _S.IDLE,
    (_S.BUSY, _T.RESET): _S.RESETTING,
    (_S.BUSY, _T.STOP): _S.SHUTTING_DOWN,
    (_S.BUSY, _T.DIED): _S.DEAD,
    (_S.RESETTING, _T.RESET_DONE): _S.IDLE,
    (_S.RESETTING, _T.DISPATCH): _S.BUSY,
    (_S.RESETTING, _T.STOP): _S.SHUTTING_DOWN,
    (_S.RESETTING, _T.DIED): _S.DEAD,
    (_S.SHUTTING_DOWN, _T.DIED): _S.DEAD,
}


class Environment:
    """What the scheduler knows about one environment."""

    __slots__ = (
        "attempt",
        "created_ns",
        "deadline_ns",
        "debugged",
        "hint_ns",
        "id",
        "initialization_type",
        "invocations",
        "needs_init",
        "pool",
        "request",
        "shared",
        "since_ns",
        "spilled",
        "state",
        "tenant",
        "version",
        "worker",
    )

    def __init__(self, identity: int, version: Version, worker: Worker, now_ns: int) -> None:
        assert identity > 0
        assert now_ns >= 0
        self.id = identity
        self.version = version
        self.worker = worker
        self.state = EnvironmentState.STARTING
        self.initialization_type = InitializationType.ON_DEMAND
        self.created_ns = now_ns
        #: When it came into its state.
        self.since_ns = now_ns
        #: When its state ends by force. NEVER_NS in IDLE: idle time is watched for each version, see
        #: scheduler.py.
        self.deadline_ns = NEVER_NS
        #: Time of its entry in the timer heap that counts; never later than deadline_ns.
        self.hint_ns = NEVER_NS
        #: The bound request, from Start or Dispatch until Complete. None in IDLE and SHUTTING_DOWN.
        self.request: int | None = None
        #: How many environments the bound request has been given, this one included.
        self.attempt = 0
        #: No runtime process lives in the sandbox.
        self.needs_init = False
        #: Requests handed over so far.
        self.invocations = 0
        #: The provisioned concurrency that it is part of.
        self.pool: Pool | None = None
        #: Its requests, if it takes several at once.
        self.shared: Shared | None = None
        #: The only tenant that it serves; 0 where versions have no tenancy.
        self.tenant = 0
        #: A debugger may stop it: Init and requests have no deadline.
        self.debugged = False
        #: The request that it was started for, or that waits for its reset, found no provisioned one.
        self.spilled = False

    def requests(self) -> int:
        """How many are bound to it."""
        if self.shared is not None:
            assert self.request is None
            return len(self.shared.live) + len(self.shared.bound)
        return 0 if self.request is None else 1


def apply_transition(environment: Environment, trigger: Trigger, now_ns: int) -> None:
    """The door: the only place that changes `state`."""
    state = TRANSITIONS.get((environment.state, trigger))
    assert state is not None, f"environment {environment.id}: {trigger} in {environment.state}"
    assert now_ns >= environment.since_ns
    environment.state = state
    environment.since_ns = now_ns


class EnvironmentView(msgspec.Struct, frozen=True):
    """One line of `lambent environments`."""

    environment: int
    version: int
    function: int
    worker: int
    state: EnvironmentState
    initialization_type: InitializationType
    #: When it came into `state`.
    since_ns: int
    created_ns: int
    #: Requests handed over so far.
    invocations: int
    #: The request that it works on or was started for.
    request: int | None
    #: The next request will have to start the runtime process first.
    needs_init: bool
    tenant: int = 0
    #: How many requests it has; more than one only where several are allowed, and `request` is None there.
    requests: int = 0


def view(environment: Environment) -> EnvironmentView:
    return EnvironmentView(
        environment=environment.id,
        version=environment.version.id,
        function=environment.version.function.id,
        worker=environment.worker.id,
        state=environment.state,
        initialization_type=environment.initialization_type,
        since_ns=environment.since_ns,
        created_ns=environment.created_ns,
        invocations=environment.invocations,
        request=environment.request,
        needs_init=environment.needs_init,
        tenant=environment.tenant,
        requests=environment.requests(),
    )
