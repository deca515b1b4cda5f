"""The moves that environments and requests make, and the timers behind them.

For: scheduler.py, which is built on this class (by way of sharer.py and provisioner.py, which add their kinds of
environments) and decides on each fact which move to make; its head tells the theory of operation. It must not be
used alone. Outcomes: each move leaves every count right and appends its commands.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final

from lambent.core.admission import Account, Function, ScalingProfile, Version
from lambent.core.environment import NEVER_NS, Environment, EnvironmentState, Trigger, apply_transition
from lambent.core.events import AnyCommand, Complete, Dispatch, Reset, Start, Stop, StopReason, Throttle
from lambent.core.placement import Worker, find_site
from lambent.core.provisioned import Allocation, Pool
from lambent.core.sharing import Rooms, Shared
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason
from lambent.model.limits import NS_PER_S

#: Lambent's own guards against lost facts. Making a sandbox takes milliseconds; 30 s is a machine in deep
#: trouble.
START_LIMIT_NS: Final = 30 * NS_PER_S
#: A reset is a SIGKILL, after the extensions had AWS's 2 s for their SHUTDOWN.
RESET_LIMIT_NS: Final = 10 * NS_PER_S
#: The same for a stop. Afterwards the environment is forgotten; the worker answers for the rest.
SHUTDOWN_LIMIT_NS: Final = 10 * NS_PER_S
#: Environments that a request is given, at most, when they vanish before they have taken it.
ATTEMPTS_MAX: Final = 3

_INIT, _IDLE = EnvironmentState.INIT, EnvironmentState.IDLE
_BUSY, _RESETTING = EnvironmentState.BUSY, EnvironmentState.RESETTING
_SHUTTING_DOWN, _RESTORING = EnvironmentState.SHUTTING_DOWN, EnvironmentState.RESTORING

Commands = list[AnyCommand]


class Engine:
    """What is there, and how it moves. Only Scheduler uses it."""

    __slots__ = (
        "_accounts",
        "_attempts_max",
        "_dirty",
        "_draining",
        "_environment_id",
        "_environments",
        "_functions",
        "_idle_reclaim_ns",
        "_now_ns",
        "_profile",
        "_reset_limit_ns",
        "_shutdown_limit_ns",
        "_start_limit_ns",
        "_timer_serial",
        "_timers",
        "_versions",
        "_workers",
    )

    def __init__(
        self,
        profile: ScalingProfile,
        idle_reclaim_ns: int,
        start_limit_ns: int,
        reset_limit_ns: int,
        shutdown_limit_ns: int,
        attempts_max: int,
    ) -> None:
        assert idle_reclaim_ns >= 0
        assert min(start_limit_ns, reset_limit_ns, shutdown_limit_ns) > 0
        assert attempts_max >= 1
        self._profile = profile
        self._idle_reclaim_ns = idle_reclaim_ns
        self._start_limit_ns = start_limit_ns
        self._reset_limit_ns = reset_limit_ns
        self._shutdown_limit_ns = shutdown_limit_ns
        self._attempts_max = attempts_max
        self._now_ns = 0
        self._draining = False
        self._environment_id = 0
        self._accounts: dict[int, Account] = {}
        self._functions: dict[int, Function] = {}
        #: Those that may be invoked. Retired ones live on in their environments.
        self._versions: dict[int, Version] = {}
        self._workers: dict[int, Worker] = {}
        #: All that are not DEAD.
        self._environments: dict[int, Environment] = {}
        #: (hint, serial, owner): see "Timers" in scheduler.py. The serial keeps owners from being compared.
        self._timers: list[tuple[int, int, Environment | Version | Pool]] = []
        self._timer_serial = 0
        #: Allocations whose numbers have moved: provisioner.py looks at them when the fact has been dealt with.
        self._dirty: dict[Allocation, None] = {}

    # --- requests -----------------------------------------------------------------------------------

    def _dispatch(
        self,
        now_ns: int,
        environment: Environment,
        request: int,
        attempt: int,
        commands: Commands,
        spillover: bool = False,
    ) -> None:
        """Hand the request over; its time runs from now. The caller counts spillovers."""
        assert environment.request is None or environment.request == request
        assert 1 <= attempt <= self._attempts_max
        reinit = environment.needs_init
        provisioned = environment.pool is not None
        cold = environment.invocations == 0 and not reinit and not provisioned
        apply_transition(environment, Trigger.DISPATCH, now_ns)
        environment.request = request
        environment.attempt = attempt
        environment.invocations += 1
        deadline_ns = NEVER_NS if environment.debugged else now_ns + environment.version.timeout_ns
        environment.deadline_ns = deadline_ns
        if deadline_ns < environment.hint_ns:
            self._push_timer(environment, deadline_ns)
        commands.append(Dispatch(environment.id, request, deadline_ns, cold, reinit, provisioned, spillover))

    def _dispatch_bound(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        """Hand over the request that the environment was started for."""
        request = environment.request
        assert request is not None
        assert environment.state is not _IDLE
        spilled, environment.spilled = environment.spilled, False
        version = environment.version
        if environment.pool is None and environment.invocations == 0 and not environment.needs_init:
            version.cold_starts += 1
        version.spillovers += spilled
        self._dispatch(now_ns, environment, request, environment.attempt, commands, spilled)

    def _most_recent(self, version: Version) -> Environment:
        identity, environment = version.idle.popitem()
        assert environment.state is _IDLE
        del environment.worker.idle[identity]
        return environment

    def _idle_for(self, version: Version, tenant: int) -> Environment | None:
        """The idle environment with a debugger, or the most recently used one, of this tenant where there are tenants;
        no longer listed as idle."""
        debugged = version.debugged
        if debugged is not None and debugged.id in version.idle and debugged.tenant == tenant:
            self._unlist_idle(debugged)
            return debugged
        if not version.tenancy:
            return self._most_recent(version) if version.idle else None
        idle = version.tenants.get(tenant)
        if idle is None:
            return None
        environment = idle[next(reversed(idle))]
        assert environment.tenant == tenant
        self._unlist_idle(environment)
        return environment

    def _await_reset(self, version: Version, request: int, tenant: int = 0, spilled: bool = False) -> bool:
        """Bind the request to the environment whose reset began last; it is handed over on ResetDone. False: there
        is none."""
        for environment in reversed(version.resetting.values()):
            if environment.tenant == tenant:
                self._bind_reset(version.resetting, environment, request)
                environment.spilled = spilled
                return True
        return False

    def _bind_reset(self, listed: OrderedDict[int, Environment], environment: Environment, request: int) -> None:
        del listed[environment.id]
        assert environment.state is _RESETTING
        assert environment.request is None
        environment.request = request
        environment.attempt = 1

    def _start(
        self,
        now_ns: int,
        version: Version,
        request: int,
        attempt: int,
        commands: Commands,
        tenant: int = 0,
        spilled: bool = False,
    ) -> bool:
        """Start an environment for the request; False: no worker has room, and nothing has changed."""
        assert not version.idle or version.tenancy
        assert version.concurrency == 1
        kind = InitializationType.SNAP_START if version.snap_start else InitializationType.ON_DEMAND
        environment = self._launch(now_ns, version, kind, tenant, commands)
        if environment is None:
            return False
        environment.request = request
        environment.attempt = attempt
        environment.spilled = spilled
        return True

    def _launch(
        self, now_ns: int, version: Version, kind: InitializationType, tenant: int, commands: Commands
    ) -> Environment | None:
        """A new environment, for nobody yet; None: no worker has room, and nothing has changed."""
        assert self._wanted(version)
        site = find_site(self._workers, version.memory_mib)
        if site is None:
            return None
        for victim in site.victims:
            assert victim.pool is None
            self._stop(now_ns, victim, StopReason.ROOM, commands)
        self._environment_id += 1
        environment = Environment(self._environment_id, version, site.worker, now_ns)
        environment.initialization_type = kind
        environment.tenant = tenant
        site.worker.occupy(environment)
        self._environments[environment.id] = environment
        self._set_deadline(environment, now_ns + self._start_limit_ns)
        commands.append(Start(environment.id, site.worker.id, version.id, kind, tenant))
        return environment

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        """The request, still counted as in flight, had not been handed over when its environment was lost."""
        assert lost.request is None
        assert attempt >= 1
        version = lost.version
        if attempt < self._attempts_max and self._wanted(version):
            environment = self._idle_for(version, lost.tenant)
            if environment is not None:
                version.spillovers += lost.spilled
                self._dispatch(now_ns, environment, request, attempt + 1, commands, lost.spilled)
                return
            if self._start(now_ns, version, request, attempt + 1, commands, lost.tenant, lost.spilled):
                return
        version.function.release()
        commands.append(Complete(request, lost.id, Outcome.ENVIRONMENT_LOST))

    def _complete(self, environment: Environment, outcome: Outcome, commands: Commands) -> None:
        request = environment.request
        assert request is not None
        assert environment.state is not _IDLE
        environment.request = None
        if environment.pool is None:
            environment.version.function.release()
        else:
            environment.pool.release(self._now_ns)
        commands.append(Complete(request, environment.id, outcome))

    def _complete_shared(
        self, environment: Environment, shared: Shared, request: int, outcome: Outcome, commands: Commands
    ) -> None:
        """The same for one of several requests that were handed over."""
        del shared.live[request]
        assert environment.shared is shared
        assert environment.pool is None
        environment.version.function.release()
        commands.append(Complete(request, environment.id, outcome))

    def _throttle(
        self, version: Version, request: int, reason: ThrottleReason, commands: Commands, capacity: bool = False
    ) -> None:
        for throttles in (version.throttles, version.function.throttles):
            throttles[reason] = throttles.get(reason, 0) + 1
        assert not capacity or reason is ThrottleReason.CONCURRENCY
        commands.append(Throttle(request, reason, capacity))

    # --- environments -------------------------------------------------------------------------------

    def _wanted(self, version: Version) -> bool:
        """May environments of this version go on without a request?"""
        return not (self._draining or version.retired)

    def _unwanted_reason(self) -> StopReason:
        return StopReason.DRAIN if self._draining else StopReason.RETIRED

    def _rest(self, now_ns: int, environment: Environment, trigger: Trigger, commands: Commands) -> None:
        """No request is left: become idle, or stop if the version is over."""
        assert environment.request is None
        version = environment.version
        if version.retired or self._draining:
            self._stop(now_ns, environment, self._unwanted_reason(), commands)
            return
        pool = environment.pool
        if pool is not None and pool.living > pool.goal:
            self._stop(now_ns, environment, StopReason.UNPROVISIONED, commands)
            return
        apply_transition(environment, trigger, now_ns)
        assert environment.state is _IDLE
        environment.deadline_ns = NEVER_NS
        if pool is not None:
            # Neither given up for room nor reclaimed.
            pool.idle[environment.id] = environment
            return
        version.idle[environment.id] = environment
        environment.worker.idle[environment.id] = environment
        if not version.plain:
            if version.tenancy:
                version.tenants.setdefault(environment.tenant, OrderedDict())[environment.id] = environment
            if environment.shared is not None:
                self._room(environment)
        if version.hint_ns == NEVER_NS:
            self._push_timer(version, now_ns + self._idle_reclaim_ns)

    def _stop(self, now_ns: int, environment: Environment, reason: StopReason, commands: Commands) -> None:
        """Its room is free from now on. The caller has taken care of the request."""
        assert environment.request is None
        self._unlist(environment)
        apply_transition(environment, Trigger.STOP, now_ns)
        assert environment.id not in environment.worker.idle
        environment.worker.vacate(environment)
        self._set_deadline(environment, now_ns + self._shutdown_limit_ns)
        commands.append(Stop(environment.id, reason))

    def _reset(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        assert environment.deadline_ns <= now_ns
        apply_transition(environment, Trigger.RESET, now_ns)
        assert environment.state is _RESETTING
        environment.needs_init = True
        self._set_deadline(environment, now_ns + self._reset_limit_ns)
        if environment.request is None and environment.shared is None:
            owner = environment.pool or environment.version
            owner.resetting[environment.id] = environment
        commands.append(Reset(environment.id))

    def _unlist_idle(self, environment: Environment) -> None:
        assert environment.state is _IDLE
        assert environment.request is None
        if environment.pool is not None:
            del environment.pool.idle[environment.id]
            return
        version = environment.version
        del version.idle[environment.id]
        del environment.worker.idle[environment.id]
        if version.tenancy:
            idle = version.tenants[environment.tenant]
            del idle[environment.id]
            if not idle:
                del version.tenants[environment.tenant]

    def _unlist(self, environment: Environment) -> None:
        """It is told to stop, or has died without: nobody finds it any more."""
        assert environment.state is not _SHUTTING_DOWN
        pool = environment.pool
        if environment.state is _IDLE:
            self._unlist_idle(environment)
        elif environment.state is _RESETTING:
            (pool or environment.version).resetting.pop(environment.id, None)
        if environment.debugged:
            environment.version.debugged = None
            environment.version.settle()
        if pool is not None:
            pool.left(environment)
            self._dirty[pool.allocation] = None
        if environment.shared is not None:
            assert not environment.shared.live
            rooms = environment.version.rooms.get(environment.tenant)
            if rooms is not None:
                rooms.remove(environment)
                if not rooms:
                    del environment.version.rooms[environment.tenant]

    def _room(self, environment: Environment) -> None:
        """How many requests it has, or its state, has changed."""
        assert environment.shared is not None
        assert environment.state is not _SHUTTING_DOWN
        environment.version.rooms.setdefault(environment.tenant, Rooms()).put(environment)

    def _bury(self, now_ns: int, environment: Environment) -> None:
        """It is gone. The caller has taken care of the request."""
        assert environment.request is None
        if environment.state is not _SHUTTING_DOWN:
            self._unlist(environment)
            environment.worker.vacate(environment)
        apply_transition(environment, Trigger.DIED, now_ns)
        assert environment.state is EnvironmentState.DEAD
        environment.deadline_ns = NEVER_NS
        del environment.worker.environments[environment.id]
        del self._environments[environment.id]

    def _lose(self, now_ns: int, environments: list[Environment], commands: Commands) -> None:
        """These are gone, all at once: their waiting requests are placed elsewhere."""
        waiting: list[tuple[Environment, int, int]] = []
        for environment in environments:
            shared = environment.shared
            if shared is not None:
                for request in list(shared.live):
                    self._complete_shared(environment, shared, request, Outcome.ENVIRONMENT_LOST, commands)
                waiting += [(environment, request, attempt) for request, attempt in shared.bound.items()]
                shared.bound.clear()
            elif environment.state is _BUSY:
                self._complete(environment, Outcome.ENVIRONMENT_LOST, commands)
            elif environment.request is not None:
                waiting.append((environment, environment.request, environment.attempt))
                environment.request = None
            self._bury(now_ns, environment)
        for environment, request, attempt in waiting:
            assert environment.state is EnvironmentState.DEAD
            self._place_again(now_ns, environment, request, attempt, commands)

    # --- timers -------------------------------------------------------------------------------------

    def _set_deadline(self, environment: Environment, deadline_ns: int) -> None:
        assert deadline_ns > environment.since_ns
        environment.deadline_ns = deadline_ns
        if deadline_ns < environment.hint_ns:
            self._push_timer(environment, deadline_ns)

    def _push_timer(self, owner: Environment | Version | Pool, hint_ns: int) -> None:
        assert hint_ns < owner.hint_ns
        owner.hint_ns = hint_ns
        self._timer_serial += 1
        heapq.heappush(self._timers, (hint_ns, self._timer_serial, owner))

    def _run_timers(self, now_ns: int, commands: Commands) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now_ns:
            hint_ns, _, owner = heapq.heappop(timers)
            if hint_ns != owner.hint_ns:
                continue  # an earlier entry took its place
            owner.hint_ns = NEVER_NS
            if isinstance(owner, Version):
                self._reclaim_oldest(now_ns, hint_ns, owner, commands)
            elif isinstance(owner, Pool):
                self._dirty[owner.allocation] = None
            elif owner.deadline_ns <= now_ns:
                self._expire(now_ns, owner, commands)
            elif owner.deadline_ns != NEVER_NS:
                self._push_timer(owner, owner.deadline_ns)

    def _reclaim_oldest(self, now_ns: int, hint_ns: int, version: Version, commands: Commands) -> None:
        """One at a time, each at its own due time, so that the heap orders those of all versions."""
        assert version.hint_ns == NEVER_NS
        assert hint_ns <= now_ns
        idle = version.idle
        if idle:
            oldest = next(iter(idle.values()))
            if oldest.since_ns + self._idle_reclaim_ns <= hint_ns:
                self._stop(now_ns, oldest, StopReason.IDLE, commands)
        if idle:
            oldest = next(iter(idle.values()))
            self._push_timer(version, oldest.since_ns + self._idle_reclaim_ns)

    def _expire(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        """The deadline of its state has passed."""
        state = environment.state
        assert environment.deadline_ns <= now_ns
        assert state is not _IDLE
        if state is _BUSY:
            self._complete(environment, Outcome.TIMEOUT, commands)
            if self._wanted(environment.version):
                self._reset(now_ns, environment, commands)
            else:
                self._stop(now_ns, environment, self._unwanted_reason(), commands)
        elif state is _SHUTTING_DOWN:
            self._bury(now_ns, environment)
        elif state is _INIT and environment.request is not None:
            self._reset(now_ns, environment, commands)
        elif state is _RESTORING and environment.request is not None:
            self._complete(environment, Outcome.RESTORE_TIMEOUT, commands)
            self._stop(now_ns, environment, StopReason.FAILED, commands)
        else:
            request, environment.request = environment.request, None
            self._stop(now_ns, environment, StopReason.FAILED, commands)
            if request is not None:
                self._place_again(now_ns, environment, request, environment.attempt, commands)
