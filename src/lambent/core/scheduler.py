"""The scheduler: facts in, commands out.

For: every decision about requests and environments, live and simulated. It must not know a clock, chance,
I/O or asyncio: the driver tells it the time, which never goes back. Outcomes: `handle()` returns the
commands that follow from a fact, in the order in which they must be carried out; exactly one Complete,
Throttle or Reject for each Invoke, sooner or later, provided that the driver comes back (with a Tick or
anything else) when `next_deadline()` has passed.

Theory of operation. *A request* is admitted (admission.py) and then bound to one
environment until its Complete: an idle one of its version, the most recently used, or else a new one
(placement.py). Requests do not queue: who is not placed at once is throttled, and a refusal uses up neither
tokens nor slots. The only waiting is for the environment that was started for the request, or for one of its
version that is being reset: as on AWS, the request after a timeout finds the same environment again.

*Facts* may be late, doubled or lost. Each handler asks first whether the fact still fits the state, and
otherwise drops it; request ids keep an old answer from ending a newer request. Environment ids are never
used twice. A request id must not be in use when an Invoke brings it, and facts about configuration must
come in order.

*More than the plain case.* Versions with provisioned concurrency (provisioner.py, numbers in provisioned.py), with
several requests to an environment (sharer.py, books in sharing.py) or with tenants take the road of
`_invoke_special`; a flag of the version keeps them out of the warm path of all others. A request of a version with
provisioned concurrency takes an idle provisioned environment, else an idle one on demand, else a provisioned one that
is being reset, else one on demand as ever. With tenants, environments are looked for among those of the tenant.
SnapStart is a start with another name and another limit; a restore beyond its limit is not tried again inside the
invocation, but ends it.

A *debugged* environment has no deadlines but those of its making and its end, and is preferred among the idle ones.

*Lost environments.* A request that was handed over may have had effects: it ends with ENVIRONMENT_LOST. One
that still waited for its environment is placed again, without a scaling token, on an idle environment if
there is one by now; after `attempts_max` environments, or if there is no room, or its version is retired,
it ends with ENVIRONMENT_LOST as well. So no environment is ever started for a version that was retired.

*Timers.* Every state but IDLE has a deadline, so that all ends even if facts get lost. The heap holds
hints: an environment owns at most one entry that counts, at or before its deadline, and looks at the
deadline when the entry comes up. A warm invocation finds the entry of an earlier one still there and pushes
nothing. Entries replaced by an earlier one stay until they come up and are dropped then; only starts,
resets and stops leave such. Idle time is watched with one entry for each version, for its oldest idle
environment: the order in which they became idle is the order in which they are too old.

*Being late is safe.* Due timers are looked at before each fact, not only on Tick. A fact that arrives at or
after the deadline it should have met is late, whoever's fault it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lambent.core.admission import Account, Function, ScalingProfile, Version
from lambent.core.engine import (
    ATTEMPTS_MAX,
    RESET_LIMIT_NS,
    SHUTDOWN_LIMIT_NS,
    START_LIMIT_NS,
    Commands,
)
from lambent.core.environment import (
    NEVER_NS,
    EnvironmentState,
    EnvironmentView,
    Trigger,
    apply_transition,
    view,
)
from lambent.core.events import (
    AccountSet,
    AnyCommand,
    AnyEvent,
    Drain,
    EnvironmentDebugged,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    Event,
    FunctionRemoved,
    FunctionSet,
    InitFailed,
    InvocationEnded,
    Invoke,
    ProvisionedReason,
    ProvisionedSet,
    Reject,
    RejectReason,
    ResetDone,
    StopReason,
    Tick,
    VersionRetired,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.core.placement import Worker
from lambent.core.provisioner import PROVISIONED_STARTING_MAX, Provisioner
from lambent.core.statistics import (
    SchedulerStatistics,
    VersionLevels,
    account_statistics,
    function_statistics,
    version_levels,
    version_statistics,
    worker_statistics,
)
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason
from lambent.model.limits import IDLE_RECLAIM_S, NS_PER_S

__all__ = [
    "ATTEMPTS_MAX",
    "PROVISIONED_STARTING_MAX",
    "RESET_LIMIT_NS",
    "SHUTDOWN_LIMIT_NS",
    "START_LIMIT_NS",
    "ScalingProfile",
    "Scheduler",
]

_STARTING, _INIT, _IDLE = EnvironmentState.STARTING, EnvironmentState.INIT, EnvironmentState.IDLE
_BUSY, _RESETTING = EnvironmentState.BUSY, EnvironmentState.RESETTING
_SHUTTING_DOWN = EnvironmentState.SHUTTING_DOWN
#: Before the first request can be handed over.
_COMING: Final = (_STARTING, _INIT, EnvironmentState.RESTORING)
#: InvocationEnded with one of these: the runtime process lives on. The other two: it is gone.
_RUNTIME_LIVES: Final = (Outcome.SUCCESS, Outcome.ERROR)
_RUNTIME_GONE: Final = (Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR)


class Scheduler(Provisioner):
    """See the head of this module."""

    __slots__ = ("_handlers",)

    def __init__(
        self,
        profile: ScalingProfile = ScalingProfile.CURRENT,
        idle_reclaim_ns: int = IDLE_RECLAIM_S * NS_PER_S,
        *,
        start_limit_ns: int = START_LIMIT_NS,
        reset_limit_ns: int = RESET_LIMIT_NS,
        shutdown_limit_ns: int = SHUTDOWN_LIMIT_NS,
        attempts_max: int = ATTEMPTS_MAX,
        provisioned_starting_max: int = PROVISIONED_STARTING_MAX,
    ) -> None:
        super().__init__(
            profile,
            idle_reclaim_ns,
            start_limit_ns,
            reset_limit_ns,
            shutdown_limit_ns,
            attempts_max,
            provisioned_starting_max,
        )
        # An event's own class picks the handler, which takes exactly that class.
        self._handlers: dict[type[Event], Callable[[int, Any, Commands], None]] = {
            Invoke: self._invoke,
            InvocationEnded: self._invocation_ended,
            Tick: self._tick,
            EnvironmentStarted: self._environment_started,
            EnvironmentReady: self._environment_ready,
            EnvironmentDebugged: self._environment_debugged,
            InitFailed: self._init_failed,
            ResetDone: self._reset_done,
            EnvironmentDied: self._environment_died,
            AccountSet: self._account_set,
            FunctionSet: self._function_set,
            FunctionRemoved: self._function_removed,
            VersionSet: self._version_set,
            VersionRetired: self._version_retired,
            ProvisionedSet: self._provisioned_set,
            WorkerJoined: self._worker_joined,
            WorkerLost: self._worker_lost,
            Drain: self._drain,
        }

    # --- the outside --------------------------------------------------------------------------------

    def handle(self, now_ns: int, event: AnyEvent) -> list[AnyCommand]:
        """Take in a fact. The commands must be carried out in their order."""
        assert now_ns >= self._now_ns, f"time went back from {self._now_ns} to {now_ns}"
        self._now_ns = now_ns
        commands: Commands = []
        timers = self._timers
        if timers and timers[0][0] <= now_ns:
            self._run_timers(now_ns, commands)
            if self._dirty:
                self._settle(now_ns, commands)
        self._handlers[type(event)](now_ns, event, commands)
        if self._dirty:
            assert type(event) is not Invoke, "the answer to a request is the last command"
            self._settle(now_ns, commands)
        return commands

    def next_deadline(self) -> int | None:
        """When to come back with a Tick at the latest. May be earlier than anything happens."""
        return self._timers[0][0] if self._timers else None

    def statistics(self) -> SchedulerStatistics:
        environments = self._environments.values()
        states: dict[EnvironmentState, int] = {}
        for environment in environments:
            states[environment.state] = states.get(environment.state, 0) + 1
        accounts = [account_statistics(account) for account in self._accounts.values()]
        in_flight = sum(account.in_flight for account in accounts)
        assert in_flight == sum(environment.requests() for environment in environments)
        assert EnvironmentState.DEAD not in states
        return SchedulerStatistics(
            now_ns=self._now_ns,
            draining=self._draining,
            in_flight=in_flight,
            environments=states,
            timers=len(self._timers),
            accounts=accounts,
            functions=[function_statistics(function) for function in self._functions.values()],
            versions=version_statistics(self._versions.values(), environments),
            workers=[worker_statistics(worker) for worker in self._workers.values()],
        )

    def environments(self) -> list[EnvironmentView]:
        """All that are not gone, oldest first."""
        return [view(environment) for environment in self._environments.values()]

    def levels(self, version: int) -> VersionLevels | None:
        """What metrics want to know beside each invocation; None for a version that is gone. No scan."""
        known = self._versions.get(version)
        return None if known is None else version_levels(known)

    # --- requests -----------------------------------------------------------------------------------

    def _invoke(self, now_ns: int, event: Invoke, commands: Commands) -> None:
        if self._draining:
            commands.append(Reject(event.request, RejectReason.DRAINING))
            return
        version = self._versions.get(event.version)
        if version is None:
            commands.append(Reject(event.request, RejectReason.UNKNOWN_VERSION))
            return
        if not version.plain:
            self._invoke_special(now_ns, version, event, commands)
            return
        function = version.function
        scope = function.scope
        reason = scope.refusal(now_ns, event.asynchronous)
        if reason is not None:
            self._throttle(version, event.request, reason, commands)
            return
        if version.idle:
            self._dispatch(now_ns, self._most_recent(version), event.request, 1, commands)
        elif version.resetting:
            self._await_reset(version, event.request)
        elif not function.scaling.available(now_ns):
            self._throttle(version, event.request, ThrottleReason.CONCURRENCY, commands)
            return
        elif self._start(now_ns, version, event.request, 1, commands):
            function.scaling.take(now_ns)
        else:
            self._throttle(version, event.request, ThrottleReason.CONCURRENCY, commands, capacity=True)
            return
        function.in_flight += 1
        scope.in_flight += 1
        assert function.in_flight <= scope.in_flight
        assert scope.in_flight <= scope.limit
        if not event.asynchronous:
            scope.rate.take(now_ns)

    def _invoke_special(self, now_ns: int, version: Version, event: Invoke, commands: Commands) -> None:
        """The same where a version has provisioned concurrency, tenants, or several requests to an environment."""
        function = version.function
        scope = function.scope
        pool = version.pool
        request, asynchronous = event.request, event.asynchronous
        tenant = event.tenant if version.tenancy else 0
        provisioned = pool is not None and pool.usable(now_ns, asynchronous)
        if provisioned and pool is not None and pool.idle:
            self._dispatch_provisioned(now_ns, pool, request, 1, commands)
            pool.take(now_ns, asynchronous)
            return
        reason = scope.refusal(now_ns, asynchronous)
        spilled = pool is not None and pool.online > 0
        if version.concurrency > 1:
            placed = reason is None and self._join(now_ns, version, tenant, request, 1, commands)
        else:
            environment = self._idle_for(version, tenant) if reason is None else None
            placed = environment is not None
            if environment is not None:
                version.spillovers += spilled
                self._dispatch(now_ns, environment, request, 1, commands, spilled)
        if not placed and provisioned and pool is not None:
            self._await_reset_provisioned(pool, request)
            pool.take(now_ns, asynchronous)
            return
        if reason is not None:
            self._throttle(version, request, reason, commands)
            return
        if not placed and (version.concurrency > 1 or not self._await_reset(version, request, tenant, spilled)):
            if not function.scaling.available(now_ns):
                self._throttle(version, request, ThrottleReason.CONCURRENCY, commands)
                return
            if version.concurrency > 1:
                started = self._start_shared(now_ns, version, tenant, request, 1, commands)
            else:
                started = self._start(now_ns, version, request, 1, commands, tenant, spilled)
            if not started:
                self._throttle(version, request, ThrottleReason.CONCURRENCY, commands, capacity=True)
                return
            function.scaling.take(now_ns)
        function.in_flight += 1
        scope.in_flight += 1
        assert function.in_flight <= scope.in_flight
        assert scope.in_flight <= scope.limit
        if not asynchronous:
            scope.rate.take(now_ns)

    def _invocation_ended(self, now_ns: int, event: InvocationEnded, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state is not _BUSY or environment.request != event.request:
            if environment is not None and environment.shared is not None:
                self._shared_ended(now_ns, environment, environment.shared, event, commands)
            return
        outcome = event.outcome
        environment.needs_init = outcome not in _RUNTIME_LIVES
        assert not environment.needs_init or outcome in _RUNTIME_GONE, f"a worker cannot tell {outcome}"
        self._complete(environment, outcome, commands)
        self._rest(now_ns, environment, Trigger.ENDED, commands)

    # --- environments -------------------------------------------------------------------------------

    def _environment_started(self, now_ns: int, event: EnvironmentStarted, _: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state is not _STARTING:
            return
        assert not environment.needs_init
        version = environment.version
        limit_ns = version.init_timeout_ns
        if environment.initialization_type is InitializationType.SNAP_START:
            apply_transition(environment, Trigger.RESTORING, now_ns)
            limit_ns = version.restore_timeout_ns
        else:
            apply_transition(environment, Trigger.STARTED, now_ns)
            assert environment.state is _INIT
            if environment.pool is not None:
                limit_ns = environment.pool.init_timeout_ns()
        self._set_deadline(environment, NEVER_NS if environment.debugged else now_ns + limit_ns)

    def _environment_debugged(self, now_ns: int, event: EnvironmentDebugged, _: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state not in _COMING or environment.version.debugged is not None:
            return
        environment.debugged = True
        environment.version.debugged = environment
        environment.version.settle()
        if environment.state is not _STARTING:
            self._set_deadline(environment, NEVER_NS)

    def _environment_ready(self, now_ns: int, event: EnvironmentReady, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state not in _COMING:
            return
        assert not environment.needs_init
        assert environment.invocations == 0
        if environment.request is not None or environment.shared is not None:
            self._dispatch_bound(now_ns, environment, commands)
        else:
            if environment.pool is not None:
                self._came_up(environment.pool, environment)
            self._rest(now_ns, environment, Trigger.READY, commands)

    def _init_failed(self, now_ns: int, event: InitFailed, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state not in _COMING:
            return
        assert not environment.needs_init
        assert environment.invocations == 0
        environment.needs_init = True
        if environment.request is not None or environment.shared is not None:
            self._dispatch_bound(now_ns, environment, commands)
        else:
            if environment.pool is not None:
                self._start_failed(now_ns, environment.pool, ProvisionedReason.INIT_FAILED)
            self._stop(now_ns, environment, StopReason.FAILED, commands)

    def _reset_done(self, now_ns: int, event: ResetDone, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None or environment.state is not _RESETTING:
            return
        assert environment.needs_init
        if environment.request is not None or environment.shared is not None:
            self._dispatch_bound(now_ns, environment, commands)
        else:
            del (environment.pool or environment.version).resetting[environment.id]
            self._rest(now_ns, environment, Trigger.RESET_DONE, commands)

    def _environment_died(self, now_ns: int, event: EnvironmentDied, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is None:
            return
        if environment.pool is not None and environment.invocations == 0 and environment.state is not _SHUTTING_DOWN:
            # Before its first request: to start another one at once could go on like this for ever.
            self._start_failed(now_ns, environment.pool, ProvisionedReason.ENVIRONMENT_LOST)
        self._lose(now_ns, [environment], commands)

    # --- time ---------------------------------------------------------------------------------------

    def _tick(self, now_ns: int, _event: Tick, _: Commands) -> None:
        """handle() has looked at the timers already."""
        assert not self._timers or self._timers[0][0] > now_ns

    # --- configuration ------------------------------------------------------------------------------

    def _account_set(self, now_ns: int, event: AccountSet, _: Commands) -> None:
        account = self._accounts.get(event.account)
        if account is None:
            self._accounts[event.account] = Account(event.account, now_ns, event.concurrency_max, event.classic_burst)
        else:
            account.resize(now_ns, event.concurrency_max, event.classic_burst)

    def _function_set(self, now_ns: int, event: FunctionSet, _: Commands) -> None:
        function = self._functions.get(event.function)
        if function is None:
            assert event.account in self._accounts, "accounts come before their functions and never go"
            account = self._accounts[event.account]
            function = Function(event.function, account, self._profile, now_ns)
            self._functions[event.function] = account.functions[event.function] = function
        assert function.account.id == event.account, "a function does not move to another account"
        function.set_reserved(now_ns, event.reserved)

    def _function_removed(self, now_ns: int, event: FunctionRemoved, commands: Commands) -> None:
        function = self._functions.pop(event.function, None)
        if function is None:
            return
        del function.account.functions[function.id]
        for version in list(function.versions.values()):
            self._retire(now_ns, version, commands)
        function.set_reserved(now_ns, None)
        assert not function.versions
        assert function.scope is function.account.unreserved

    def _version_set(self, _now_ns: int, event: VersionSet, _: Commands) -> None:
        function = self._functions.get(event.function)
        if function is None or event.version in self._versions:
            return
        version = Version(
            event.version,
            function,
            event.memory_mib,
            event.timeout_ns,
            event.init_timeout_ns,
            event.snap_start,
            event.restore_timeout_ns,
            event.tenancy,
            event.concurrency_per_environment,
        )
        self._versions[event.version] = function.versions[event.version] = version

    def _version_retired(self, now_ns: int, event: VersionRetired, commands: Commands) -> None:
        version = self._versions.get(event.version)
        if version is not None:
            self._retire(now_ns, version, commands)

    def _retire(self, now_ns: int, version: Version, commands: Commands) -> None:
        assert not version.retired
        assert self._versions[version.id] is version
        version.retired = True
        del self._versions[version.id]
        del version.function.versions[version.id]
        if version.pool is not None:
            self._drop_pool(now_ns, version.pool, commands)
        self._stop_idle(now_ns, version, commands)

    def _stop_idle(self, now_ns: int, version: Version, commands: Commands) -> None:
        assert not self._wanted(version)
        for environment in list(version.idle.values()):
            self._stop(now_ns, environment, self._unwanted_reason(), commands)
        assert not version.idle

    def _drain(self, now_ns: int, _event: Drain, commands: Commands) -> None:
        self._draining = True
        self._drop_allocations(now_ns, commands)
        for version in self._versions.values():
            self._stop_idle(now_ns, version, commands)

    def _worker_joined(self, _now_ns: int, event: WorkerJoined, _: Commands) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            worker = Worker(event.worker, event.memory_mib, event.environments_max)
            self._workers[event.worker] = worker
        # Joined already: its room has changed. Less room than is used cuts nothing off.
        worker.memory_mib = event.memory_mib
        worker.environments_max = event.environments_max
        self._try_again()

    def _worker_lost(self, now_ns: int, event: WorkerLost, commands: Commands) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        self._lose(now_ns, list(worker.environments.values()), commands)
        assert not worker.environments
        assert worker.memory_used_mib == 0
