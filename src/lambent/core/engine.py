"""The moves that environments and requests make, and the timers behind them.

For: scheduler.py, which is built on this class and decides on each fact which move to make; its head tells
the theory of operation. It must not be used alone. Outcomes: each move leaves every count right and appends
its commands.
"""

from __future__ import annotations

import heapq
from typing import Final

from lambent.core.admission import Account, Function, ScalingProfile, Version
from lambent.core.environment import NEVER_NS, Environment, EnvironmentState, Trigger, apply_transition
from lambent.core.events import AnyCommand, Complete, Dispatch, Reset, Start, Stop, StopReason
from lambent.core.placement import Worker, find_site
from lambent.model.invocation import Outcome
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
_SHUTTING_DOWN = EnvironmentState.SHUTTING_DOWN

Commands = list[AnyCommand]


class Engine:
    """What is there, and how it moves. Only Scheduler uses it."""

    __slots__ = (
        "_accounts",
        "_attempts_max",
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
        self._timers: list[tuple[int, int, Environment | Version]] = []
        self._timer_serial = 0

    # --- requests -----------------------------------------------------------------------------------

    def _dispatch(self, now_ns: int, environment: Environment, request: int, attempt: int, commands: Commands) -> None:
        """Hand the request over; its time runs from now."""
        assert environment.request is None or environment.request == request
        assert 1 <= attempt <= self._attempts_max
        reinit = environment.needs_init
        cold = environment.invocations == 0 and not reinit
        apply_transition(environment, Trigger.DISPATCH, now_ns)
        environment.request = request
        environment.attempt = attempt
        environment.invocations += 1
        deadline_ns = now_ns + environment.version.timeout_ns
        environment.deadline_ns = deadline_ns
        if deadline_ns < environment.hint_ns:
            self._push_timer(environment, deadline_ns)
        commands.append(Dispatch(environment.id, request, deadline_ns, cold, reinit))

    def _dispatch_bound(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        """Hand over the request that the environment was started for."""
        request = environment.request
        assert request is not None
        assert environment.state is not _IDLE
        self._dispatch(now_ns, environment, request, environment.attempt, commands)

    def _most_recent(self, version: Version) -> Environment:
        identity, environment = version.idle.popitem()
        assert environment.state is _IDLE
        del environment.worker.idle[identity]
        return environment

    def _await_reset(self, version: Version, request: int) -> None:
        """Bind the request to the environment whose reset began last; it is handed over on ResetDone."""
        _, environment = version.resetting.popitem()
        assert environment.state is _RESETTING
        assert environment.request is None
        environment.request = request
        environment.attempt = 1

    def _start(self, now_ns: int, version: Version, request: int, attempt: int, commands: Commands) -> bool:
        """Start an environment for the request; False: no worker has room, and nothing has changed."""
        assert not version.idle
        assert not version.retired
        site = find_site(self._workers, version.memory_mib)
        if site is None:
            return False
        for victim in site.victims:
            self._stop(now_ns, victim, StopReason.ROOM, commands)
        self._environment_id += 1
        environment = Environment(self._environment_id, version, site.worker, now_ns)
        environment.request = request
        environment.attempt = attempt
        site.worker.occupy(environment)
        self._environments[environment.id] = environment
        self._set_deadline(environment, now_ns + self._start_limit_ns)
        commands.append(Start(environment.id, site.worker.id, version.id))
        return True

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        """The request, still counted as in flight, had not been handed over when its environment was lost."""
        assert lost.request is None
        assert attempt >= 1
        version = lost.version
        if attempt < self._attempts_max and self._wanted(version):
            if version.idle:
                self._dispatch(now_ns, self._most_recent(version), request, attempt + 1, commands)
                return
            if self._start(now_ns, version, request, attempt + 1, commands):
                return
        version.function.release()
        commands.append(Complete(request, lost.id, Outcome.ENVIRONMENT_LOST))

    def _complete(self, environment: Environment, outcome: Outcome, commands: Commands) -> None:
        request = environment.request
        assert request is not None
        assert environment.state is not _IDLE
        environment.request = None
        environment.version.function.release()
        commands.append(Complete(request, environment.id, outcome))

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
        apply_transition(environment, trigger, now_ns)
        assert environment.state is _IDLE
        environment.deadline_ns = NEVER_NS
        version.idle[environment.id] = environment
        environment.worker.idle[environment.id] = environment
        if version.hint_ns == NEVER_NS:
            self._push_timer(version, now_ns + self._idle_reclaim_ns)

    def _stop(self, now_ns: int, environment: Environment, reason: StopReason, commands: Commands) -> None:
        """Its room is free from now on. The caller has taken care of the request."""
        assert environment.request is None
        if environment.state is _IDLE:
            self._unlist_idle(environment)
        elif environment.state is _RESETTING:
            environment.version.resetting.pop(environment.id, None)
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
        if environment.request is None:
            environment.version.resetting[environment.id] = environment
        commands.append(Reset(environment.id))

    def _unlist_idle(self, environment: Environment) -> None:
        assert environment.state is _IDLE
        assert environment.request is None
        del environment.version.idle[environment.id]
        del environment.worker.idle[environment.id]

    def _bury(self, now_ns: int, environment: Environment) -> None:
        """It is gone. The caller has taken care of the request."""
        assert environment.request is None
        if environment.state is _IDLE:
            self._unlist_idle(environment)
        elif environment.state is _RESETTING:
            environment.version.resetting.pop(environment.id, None)
        if environment.state is not _SHUTTING_DOWN:
            environment.worker.vacate(environment)
        apply_transition(environment, Trigger.DIED, now_ns)
        assert environment.state is EnvironmentState.DEAD
        environment.deadline_ns = NEVER_NS
        del environment.worker.environments[environment.id]
        del self._environments[environment.id]

    def _lose(self, now_ns: int, environments: list[Environment], commands: Commands) -> None:
        """These are gone, all at once: their waiting requests are placed elsewhere."""
        waiting: list[tuple[Environment, int]] = []
        for environment in environments:
            if environment.state is _BUSY:
                self._complete(environment, Outcome.ENVIRONMENT_LOST, commands)
            elif environment.request is not None:
                waiting.append((environment, environment.request))
                environment.request = None
            self._bury(now_ns, environment)
        for environment, request in waiting:
            assert environment.state is EnvironmentState.DEAD
            self._place_again(now_ns, environment, request, environment.attempt, commands)

    # --- timers -------------------------------------------------------------------------------------

    def _set_deadline(self, environment: Environment, deadline_ns: int) -> None:
        assert deadline_ns > environment.since_ns
        environment.deadline_ns = deadline_ns
        if deadline_ns < environment.hint_ns:
            self._push_timer(environment, deadline_ns)

    def _push_timer(self, owner: Environment | Version, hint_ns: int) -> None:
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
        else:
            request, environment.request = environment.request, None
            self._stop(now_ns, environment, StopReason.FAILED, commands)
            if request is not None:
                self._place_again(now_ns, environment, request, environment.attempt, commands)
