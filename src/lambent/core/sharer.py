"""The moves of environments that take several requests at once (Lambda Managed Instances).

For: scheduler.py, by way of provisioner.py. It must not touch other environments: for those it hands on to engine.py.
Outcomes: as in engine.py.

Theory of operation. A request joins the fullest environment that has room (sharing.py says why), one that is still
starting included: it waits for Init with the request that had it started. Concurrency counts requests; memory and
the scaling rate count environments. A timeout ends its request and nothing else. When the runtime goes away during a
request, all requests of the environment end in the same way and the environment is replaced (stopped; the next
request that finds no room starts another one). Init that fails or takes too long is done again inside the requests,
as on demand.

Managed instances grow and shrink asynchronously, by CPU and saturation, and never to zero; this is on-demand scaling
with room for more than one request, and it is what one host can do.
"""

from __future__ import annotations

from typing import Final

from lambent.core.admission import Version
from lambent.core.engine import Commands, Engine
from lambent.core.environment import NEVER_NS, Environment, EnvironmentState, Trigger, apply_transition
from lambent.core.events import Complete, Dispatch, InvocationEnded, StopReason
from lambent.core.sharing import Shared
from lambent.model.invocation import InitializationType, Outcome

_IDLE, _BUSY = EnvironmentState.IDLE, EnvironmentState.BUSY
_INIT, _SHUTTING_DOWN = EnvironmentState.INIT, EnvironmentState.SHUTTING_DOWN
_RUNTIME_LIVES: Final = (Outcome.SUCCESS, Outcome.ERROR)
_RUNTIME_GONE: Final = (Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR)


class Sharer(Engine):
    """See the head of this module."""

    __slots__ = ()

    # --- requests -----------------------------------------------------------------------------------

    def _join(self, now_ns: int, version: Version, tenant: int, request: int, attempt: int, commands: Commands) -> bool:
        """Give the request to an environment that has room, or let it wait for one; False: none has room."""
        rooms = version.rooms.get(tenant)
        environment = rooms.fullest() if rooms is not None else None
        if environment is None:
            return False
        shared = environment.shared
        assert shared is not None
        assert environment.tenant == tenant
        assert environment.version is version
        if environment.state is _IDLE or environment.state is _BUSY:
            self._dispatch_shared(now_ns, environment, shared, request, commands)
        else:
            shared.bound[request] = attempt
        self._room(environment)
        return True

    def _start_shared(
        self, now_ns: int, version: Version, tenant: int, request: int, attempt: int, commands: Commands
    ) -> bool:
        """As _start()."""
        assert version.concurrency > 1
        kind = InitializationType.SNAP_START if version.snap_start else InitializationType.MANAGED_INSTANCES
        environment = self._launch(now_ns, version, kind, tenant, commands)
        if environment is None:
            return False
        environment.shared = Shared()
        environment.shared.bound[request] = attempt
        self._room(environment)
        assert environment.request is None
        return True

    def _dispatch_shared(
        self, now_ns: int, environment: Environment, shared: Shared, request: int, commands: Commands
    ) -> None:
        """Hand one more request over. The caller calls _room()."""
        assert shared.load() < environment.version.concurrency
        reinit = environment.needs_init
        cold = environment.invocations == 0 and not reinit
        if environment.state is not _BUSY:
            if environment.state is _IDLE:
                self._unlist_idle(environment)
            apply_transition(environment, Trigger.DISPATCH, now_ns)
        assert environment.state is _BUSY
        environment.invocations += 1
        if cold:
            environment.version.cold_starts += 1
        deadline_ns = NEVER_NS if environment.debugged else now_ns + environment.version.timeout_ns
        shared.live[request] = deadline_ns
        if len(shared.live) == 1:
            self._set_deadline(environment, deadline_ns)
        commands.append(Dispatch(environment.id, request, deadline_ns, cold, reinit))

    def _dispatch_bound(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        shared = environment.shared
        if shared is None:
            super()._dispatch_bound(now_ns, environment, commands)
            return
        bound, shared.bound = shared.bound, {}
        assert bound, "it was started for a request, which stays with it"
        for request in bound:
            self._dispatch_shared(now_ns, environment, shared, request, commands)
        self._room(environment)

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        if lost.shared is None:
            super()._place_again(now_ns, lost, request, attempt, commands)
            return
        version = lost.version
        assert attempt >= 1
        assert request not in lost.shared.bound
        if attempt < self._attempts_max and self._wanted(version):
            place = now_ns, version, lost.tenant, request, attempt + 1, commands
            if self._join(*place) or self._start_shared(*place):
                return
        version.function.release()
        commands.append(Complete(request, lost.id, Outcome.ENVIRONMENT_LOST))

    # --- ends ---------------------------------------------------------------------------------------

    def _shared_ended(
        self, now_ns: int, environment: Environment, shared: Shared, event: InvocationEnded, commands: Commands
    ) -> None:
        request, outcome = event.request, event.outcome
        if request not in shared.live and request not in shared.lingering:
            return
        if environment.state is _SHUTTING_DOWN:
            return
        if outcome in _RUNTIME_GONE:
            for other in list(shared.live):
                self._complete_shared(environment, shared, other, outcome, commands)
            self._stop(now_ns, environment, StopReason.FAILED, commands)
            return
        assert outcome in _RUNTIME_LIVES, f"a worker cannot tell {outcome}"
        environment.needs_init = False
        if request in shared.live:
            self._complete_shared(environment, shared, request, outcome, commands)
            self._go_on(now_ns, environment, shared, commands)
        else:
            shared.lingering.discard(request)
            self._room(environment)

    def _go_on(self, now_ns: int, environment: Environment, shared: Shared, commands: Commands) -> None:
        """Some of its requests have ended."""
        assert environment.state is _BUSY
        if not shared.live:
            self._rest(now_ns, environment, Trigger.ENDED, commands)
            return
        deadline_ns = next(iter(shared.live.values()))
        assert deadline_ns >= environment.deadline_ns
        environment.deadline_ns = deadline_ns
        self._room(environment)

    def _expire(self, now_ns: int, environment: Environment, commands: Commands) -> None:
        shared = environment.shared
        if shared is None or environment.state is _SHUTTING_DOWN:
            super()._expire(now_ns, environment, commands)
        elif environment.state is _BUSY:
            self._time_out(now_ns, environment, shared, commands)
        elif environment.state is _INIT:
            self._reset(now_ns, environment, commands)
        else:
            bound, shared.bound = shared.bound, {}
            restoring = environment.state is EnvironmentState.RESTORING
            self._stop(now_ns, environment, StopReason.FAILED, commands)
            for request, attempt in bound.items():
                if restoring:
                    environment.version.function.release()
                    commands.append(Complete(request, environment.id, Outcome.RESTORE_TIMEOUT))
                else:
                    self._place_again(now_ns, environment, request, attempt, commands)

    def _time_out(self, now_ns: int, environment: Environment, shared: Shared, commands: Commands) -> None:
        """The first of its requests, and maybe more, are over their time."""
        assert shared.live
        assert environment.deadline_ns <= now_ns
        for request, deadline_ns in list(shared.live.items()):
            if deadline_ns <= now_ns:
                shared.lingering.add(request)
                self._complete_shared(environment, shared, request, Outcome.TIMEOUT, commands)
        stuck = len(shared.lingering) == environment.version.concurrency
        never_up = environment.needs_init and not shared.live
        if stuck or never_up:
            self._stop(now_ns, environment, StopReason.FAILED, commands)
            return
        self._go_on(now_ns, environment, shared, commands)
        if shared.live:
            # The entry in the heap has just been used up.
            self._set_deadline(environment, environment.deadline_ns)
