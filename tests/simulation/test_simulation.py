"""The simulator in CI: fixed seeds, fresh ones under a time budget, and broken schedulers to be caught."""

from __future__ import annotations

import os
import time

import pytest

from lambent.core.admission import Function, Scope, Version
from lambent.core.engine import Commands
from lambent.core.environment import Environment, EnvironmentState
from lambent.core.events import Complete, EnvironmentReady, InvocationEnded, StopReason
from lambent.core.placement import Worker
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import Outcome, ThrottleReason

from .simulator import SchedulerMaker, SeedFailed, run

FIXED_SEEDS = range(150)
FRESH_SEEDS = 50
FRESH_BUDGET_S = 10.0
#: A broken scheduler must be caught within this many seeds; what it took is far less.
CATCH_SEEDS = 200


@pytest.mark.parametrize("first", FIXED_SEEDS[::10])
def test_fixed_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        run(seed)


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
        seen |= run(seed).seen.keys()
    expected = {f"complete {outcome}" for outcome in Outcome} | {f"stop {reason}" for reason in StopReason}
    expected |= {
        ThrottleReason.CONCURRENCY,
        f"{ThrottleReason.CONCURRENCY}-capacity",
        ThrottleReason.RESERVED_CONCURRENCY,
        ThrottleReason.RATE,
        ThrottleReason.RESERVED_RATE,
    }
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


@pytest.mark.parametrize(
    "broken",
    [
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


original_refusal, original_set_reserved = Scope.refusal, Function.set_reserved


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Scope, "refusal", _limitless),
        (Function, "set_reserved", _never_moves),
        (Worker, "has_room", _always_room),
    ],
    ids=["one request too many", "reserved leaves requests behind", "one environment too many"],
)
def test_a_broken_limit_is_caught(owner: type, name: str, broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert first_failure(Scheduler) is not None
