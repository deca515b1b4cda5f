"""The simulator in CI: fixed seeds, fresh ones under a time budget, and broken schedulers to be caught."""

from __future__ import annotations

import functools
import os
import time

import pytest

from lambent.core.admission import Function, Scope, Version
from lambent.core.engine import Commands
from lambent.core.environment import Environment, EnvironmentState
from lambent.core.events import (
    Complete,
    EnvironmentReady,
    InvocationEnded,
    ProvisionedReason,
    ProvisionedState,
    StopReason,
)
from lambent.core.placement import Worker
from lambent.core.provisioned import Allocation, Pool
from lambent.core.scheduler import Scheduler
from lambent.core.sharing import Rooms, Shared
from lambent.model.invocation import Outcome, ThrottleReason

from .simulator import Result, SchedulerMaker, SeedFailed, run

FIXED_SEEDS = range(150)
FRESH_SEEDS = 50
FRESH_BUDGET_S = 10.0
#: A broken scheduler must be caught within this many seeds; what it took is far less.
CATCH_SEEDS = 200


@functools.cache
def fixed(seed: int) -> Result:
    """Two tests look at each of these."""
    return run(seed)


@pytest.mark.parametrize("first", FIXED_SEEDS[::10])
def test_fixed_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        fixed(seed)


def test_fresh_seeds() -> None:
    """Another part of the world on every run; a failure names its seed."""
    first = int.from_bytes(os.urandom(6), "big")
    begin = time.monotonic()
    for seed in range(first, first + FRESH_SEEDS):
        run(seed)
        if time.monotonic() - begin > FRESH_BUDGET_S:
            break


def test_the_same_seed_is_the_same_run() -> None:
    assert run(7) == run(7)


def test_the_seeds_go_everywhere() -> None:
    """Each kind of answer and end occurs in the fixed seeds: the simulator does not look away."""
    seen: set[str] = set()
    for seed in FIXED_SEEDS:
        seen |= fixed(seed).seen.keys()
    expected = {f"complete {outcome}" for outcome in Outcome} | {f"stop {reason}" for reason in StopReason}
    expected |= {
        ThrottleReason.CONCURRENCY,
        f"{ThrottleReason.CONCURRENCY}-capacity",
        ThrottleReason.RESERVED_CONCURRENCY,
        ThrottleReason.RATE,
        ThrottleReason.RESERVED_RATE,
    }
    expected |= {f"status {state}" for state in (ProvisionedState.IN_PROGRESS, ProvisionedState.READY)}
    expected |= {f"status {ProvisionedState.IN_PROGRESS} {reason}" for reason in ProvisionedReason}
    expected |= {f"status {ProvisionedState.FAILED} {ProvisionedReason.INIT_FAILED}", "converged"}
    expected |= {f"dispatch {how}" for how in ("provisioned", "spillover", "cold", "tenant", "beside others")}
    expected.add("debugged")
    assert expected <= seen, expected - seen


def first_failure(make: SchedulerMaker) -> str | None:
    for seed in range(CATCH_SEEDS):
        try:
            run(seed, make)
        except SeedFailed as failure:
            return str(failure)
    return None


# --- broken on purpose ----------------------------------------------------------------------------------


class LeaksSlotsOnDeath(Scheduler):
    __slots__ = ()

    def _complete(self, environment: Environment, outcome: Outcome, commands: Commands) -> None:
        if outcome is not Outcome.ENVIRONMENT_LOST:
            super()._complete(environment, outcome, commands)
            return
        assert environment.request is not None
        commands.append(Complete(environment.request, environment.id, outcome))
        environment.request = None


class TakesTheOldest(Scheduler):
    __slots__ = ()

    def _most_recent(self, version: Version) -> Environment:
        identity, environment = version.idle.popitem(last=False)
        del environment.worker.idle[identity]
        return environment


class ForgetsToPlaceAgain(Scheduler):
    __slots__ = ()

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        pass


class BelievesOldAnswers(Scheduler):
    """Takes an InvocationEnded for whatever request is there now."""

    __slots__ = ()

    def _invocation_ended(self, now_ns: int, event: InvocationEnded, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is not None and environment.request is not None:
            event = InvocationEnded(event.environment, environment.request, event.outcome)
        super()._invocation_ended(now_ns, event, commands)


class KeepsRetiredVersions(Scheduler):
    __slots__ = ()

    def _stop_idle(self, now_ns: int, version: Version, commands: Commands) -> None:
        pass


class TicksOnlyOnce(Scheduler):
    """Drops the timer of an environment whose deadline has moved on."""

    __slots__ = ()

    def _run_timers(self, now_ns: int, commands: Commands) -> None:
        while self._timers and self._timers[0][0] <= now_ns:
            hint_ns, serial, owner = self._timers[0]
            if isinstance(owner, Environment) and owner.deadline_ns > now_ns:
                self._timers.remove((hint_ns, serial, owner))
                self._timers.sort()
                continue
            super()._run_timers(now_ns, commands)
            break


class DispatchesOnLateReady(Scheduler):
    """A doubled EnvironmentReady makes a busy environment idle."""

    __slots__ = ()

    def _environment_ready(self, now_ns: int, event: EnvironmentReady, commands: Commands) -> None:
        environment = self._environments.get(event.environment)
        if environment is not None and environment.state is EnvironmentState.BUSY:
            environment.version.idle[environment.id] = environment
            environment.worker.idle[environment.id] = environment
            environment.state = EnvironmentState.IDLE
            return
        super()._environment_ready(now_ns, event, commands)


class ForgetsToFreeRoom(Scheduler):
    __slots__ = ()

    def _stop(self, now_ns: int, environment: Environment, reason: StopReason, commands: Commands) -> None:
        super()._stop(now_ns, environment, reason, commands)
        if reason is StopReason.IDLE:
            environment.worker.occupied += 1


class SharesTenants(Scheduler):
    """Any idle environment will do."""

    __slots__ = ()

    def _idle_for(self, version: Version, tenant: int) -> Environment | None:
        if not version.idle:
            return None
        environment = version.idle[next(reversed(version.idle))]
        self._unlist_idle(environment)
        return environment


class KeepsWhatIsProvisioned(Scheduler):
    __slots__ = ()

    def _trim(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        pass


class NeverReplaces(Scheduler):
    """What was complete once stays as it is."""

    __slots__ = ()

    def _fill(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        if not pool.allocation.complete:
            super()._fill(now_ns, pool, commands)


class ServesTooEarly(Scheduler):
    """From the first environment on, not from the last."""

    __slots__ = ()

    def _served(self, allocation: Allocation) -> bool:
        return True


class TakesTheOldestProvisioned(Scheduler):
    __slots__ = ()

    def _dispatch_provisioned(self, now_ns: int, pool: Pool, request: int, attempt: int, commands: Commands) -> None:
        pool.idle.move_to_end(next(iter(pool.idle)))
        super()._dispatch_provisioned(now_ns, pool, request, attempt, commands)


class StartsAllAtOnce(Scheduler):
    __slots__ = ()

    def _fill(self, now_ns: int, pool: Pool, commands: Commands) -> None:
        before, self._provisioned_starting_max = self._provisioned_starting_max, 1_000
        super()._fill(now_ns, pool, commands)
        self._provisioned_starting_max = before


class LeavesCountsInThePool(Scheduler):
    """A request that is placed again on demand goes on counting as provisioned."""

    __slots__ = ()

    def _place_again(self, now_ns: int, lost: Environment, request: int, attempt: int, commands: Commands) -> None:
        pool, lost.pool = lost.pool, None
        super()._place_again(now_ns, lost, request, attempt, commands)
        lost.pool = pool


class TimesOutNeighbours(Scheduler):
    """A timeout ends all requests of the environment."""

    __slots__ = ()

    def _time_out(self, now_ns: int, environment: Environment, shared: Shared, commands: Commands) -> None:
        shared.live = dict.fromkeys(shared.live, now_ns)
        super()._time_out(now_ns, environment, shared, commands)


class ForgetsWhatLingers(Scheduler):
    """A request that timed out leaves its place at once, though its code still runs."""

    __slots__ = ()

    def _time_out(self, now_ns: int, environment: Environment, shared: Shared, commands: Commands) -> None:
        super()._time_out(now_ns, environment, shared, commands)
        shared.lingering.clear()
        if environment.state in (EnvironmentState.IDLE, EnvironmentState.BUSY):
            self._room(environment)


class CrashEndsOne(Scheduler):
    """The others of a crashed environment are left to their timeouts."""

    __slots__ = ()

    def _shared_ended(
        self, now_ns: int, environment: Environment, shared: Shared, event: InvocationEnded, commands: Commands
    ) -> None:
        if event.request in shared.live and len(shared.live) > 1:
            self._complete_shared(environment, shared, event.request, event.outcome, commands)
            self._go_on(now_ns, environment, shared, commands)
            return
        super()._shared_ended(now_ns, environment, shared, event, commands)


@pytest.mark.parametrize(
    "broken",
    [
        SharesTenants,
        KeepsWhatIsProvisioned,
        NeverReplaces,
        ServesTooEarly,
        TakesTheOldestProvisioned,
        StartsAllAtOnce,
        LeavesCountsInThePool,
        TimesOutNeighbours,
        ForgetsWhatLingers,
        CrashEndsOne,
        LeaksSlotsOnDeath,
        TakesTheOldest,
        ForgetsToPlaceAgain,
        BelievesOldAnswers,
        KeepsRetiredVersions,
        TicksOnlyOnce,
        DispatchesOnLateReady,
        ForgetsToFreeRoom,
    ],
)
def test_a_broken_scheduler_is_caught(broken: type[Scheduler]) -> None:
    failure = first_failure(broken)
    assert failure is not None, f"{broken.__name__} was not caught in {CATCH_SEEDS} seeds"
    assert "python -m tests.simulation.simulator --seed " in failure


def _limitless(scope: Scope, now_ns: int, asynchronous: bool) -> ThrottleReason | None:
    scope.limit += 1
    reason = original_refusal(scope, now_ns, asynchronous)
    scope.limit -= 1
    return reason


def _never_moves(function: Function, now_ns: int, reserved: int | None) -> None:
    before = function.in_flight
    function.in_flight = 0
    original_set_reserved(function, now_ns, reserved)
    function.in_flight = before


def _always_room(worker: Worker, memory_mib: int) -> bool:
    return worker.memory_used_mib <= worker.memory_mib


def _claims_nothing(function: Function, now_ns: int, difference: int) -> None:
    function.provisioned += difference


def _no_rate(pool: Pool, now_ns: int, asynchronous: bool) -> bool:
    return original_usable(pool, now_ns, True) and (asynchronous or pool.rate.available(now_ns) or _refilled(pool))


def _refilled(pool: Pool) -> bool:
    pool.rate._level = pool.rate._full
    return True


def _beyond_the_reservation(function: Function) -> bool:
    return False


def _emptiest(rooms: Rooms) -> Environment | None:
    for levels in reversed(rooms._levels):
        if levels:
            return next(iter(levels[min(levels)].values()))
    return None


original_refusal, original_set_reserved = Scope.refusal, Function.set_reserved
original_usable = Pool.usable


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Scope, "refusal", _limitless),
        (Function, "set_reserved", _never_moves),
        (Worker, "has_room", _always_room),
        (Function, "claim", _claims_nothing),
        (Function, "full", _beyond_the_reservation),
        (Pool, "usable", _no_rate),
        (Rooms, "fullest", _emptiest),
    ],
    ids=[
        "one request too many",
        "reserved leaves requests behind",
        "one environment too many",
        "provisioned is not taken out of the scope",
        "provisioned passes the reservation",
        "provisioned has no rate",
        "load is spread",
    ],
)
def test_a_broken_limit_is_caught(owner: type, name: str, broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert first_failure(Scheduler) is not None
