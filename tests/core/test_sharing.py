"""Several requests to an environment, tenants, SnapStart."""

from __future__ import annotations

import pytest

from lambent.core.events import (
    AnyCommand,
    Complete,
    Dispatch,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    InitFailed,
    InvocationEnded,
    Invoke,
    Reset,
    ResetDone,
    Start,
    Stop,
    StopReason,
    Throttle,
    VersionRetired,
    VersionSet,
    WorkerLost,
)
from lambent.core.scheduler import START_LIMIT_NS
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason

from .helpers import FUNCTION, IDLE_NS, INIT_TIMEOUT_NS, TIMEOUT_NS, WORKER, Bench, S

SHARED, TENANTS, RESTORED = 301, 302, 303


def make(version: int = SHARED, slots: int = 3, **limits: int) -> Bench:
    bench = Bench(**limits)
    kinds = {"snap_start": version == RESTORED, "tenancy": version == TENANTS}
    bench.tell(
        VersionSet(version, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS, **kinds, concurrency_per_environment=slots)
    )
    return bench


def dispatched(commands: list[AnyCommand]) -> list[tuple[int, int]]:
    return [(command.environment, command.request) for command in commands if isinstance(command, Dispatch)]


# --- several requests -----------------------------------------------------------------------------------


def test_requests_wait_for_the_same_start_and_are_handed_over_together() -> None:
    bench = make()
    assert bench.invoke(SHARED) == [Start(1, WORKER, SHARED, InitializationType.MANAGED_INSTANCES)]
    assert bench.invoke(SHARED) == []
    assert bench.invoke(SHARED) == []
    assert isinstance(bench.invoke(SHARED)[-1], Start)  # none has room
    assert bench.in_flight() == 4
    commands = bench.tell(EnvironmentReady(1))
    assert dispatched(commands) == [(1, 1), (1, 2), (1, 3)]
    assert [command.cold for command in commands if isinstance(command, Dispatch)] == [True, False, False]
    assert bench.tell(InvocationEnded(1, 2, Outcome.SUCCESS)) == [Complete(2, 1, Outcome.SUCCESS)]
    (shown, _) = bench.scheduler.environments()
    assert (shown.request, shown.requests, shown.state.value) == (None, 2, "busy")


def test_the_fullest_one_that_is_up_takes_the_next() -> None:
    bench = make()
    for _ in range(7):
        bench.invoke(SHARED)
    for environment in (1, 2):
        bench.tell(EnvironmentReady(environment))
    bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS))
    bench.tell(InvocationEnded(1, 2, Outcome.SUCCESS))
    bench.tell(InvocationEnded(2, 4, Outcome.SUCCESS))
    assert dispatched(bench.invoke(SHARED)) == [(2, 8)]
    assert dispatched(bench.invoke(SHARED)) == [(1, 9)]  # and not the third, which is still starting
    assert dispatched(bench.invoke(SHARED)) == [(1, 10)]
    assert bench.invoke(SHARED) == []


def test_concurrency_counts_requests() -> None:
    bench = make(concurrency=2)
    bench.invoke(SHARED)
    bench.invoke(SHARED)
    assert bench.invoke(SHARED) == [Throttle(3, ThrottleReason.CONCURRENCY)]
    worker = bench.scheduler.statistics().workers[0]
    assert (worker.environments, worker.memory_used_mib) == (1, 128)


def up(slots: int, requests: int) -> Bench:
    bench = make(slots=slots)
    for _ in range(requests):
        bench.invoke(SHARED)
    bench.tell(EnvironmentReady(1))
    return bench


def test_a_timeout_ends_its_request_only_and_its_place_stays_taken() -> None:
    """ "Timeouts are per request and do not kill code"."""
    bench = up(2, 1)
    bench.now_ns += S
    bench.invoke(SHARED)
    assert bench.tick(TIMEOUT_NS - S) == [Complete(1, 1, Outcome.TIMEOUT)]
    assert isinstance(bench.invoke(SHARED)[-1], Start)
    assert bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS)) == []  # late, but it frees the place
    assert dispatched(bench.invoke(SHARED)) == [(1, 4)]
    assert bench.tick(S) == [Complete(2, 1, Outcome.TIMEOUT)]


def test_an_environment_whose_places_are_all_stuck_is_stopped() -> None:
    bench = up(2, 2)
    ended = [Complete(1, 1, Outcome.TIMEOUT), Complete(2, 1, Outcome.TIMEOUT)]
    assert bench.tick(TIMEOUT_NS) == [*ended, Stop(1, StopReason.FAILED)]
    assert bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS)) == []


@pytest.mark.parametrize("outcome", [Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR])
def test_a_crash_loses_all_of_its_requests(outcome: Outcome) -> None:
    """ "A crash, extension crash or unhealthy state replaces the environment"."""
    bench = up(3, 2)
    ended = [Complete(1, 1, outcome), Complete(2, 1, outcome)]
    assert bench.tell(InvocationEnded(1, 2, outcome)) == [*ended, Stop(1, StopReason.FAILED)]
    assert bench.tell(InvocationEnded(1, 1, outcome)) == []
    assert isinstance(bench.invoke(SHARED)[-1], Start)


def test_a_crash_of_what_lingers() -> None:
    bench = up(2, 1)
    bench.tick(TIMEOUT_NS)
    assert bench.tell(InvocationEnded(1, 1, Outcome.RUNTIME_EXIT)) == [Stop(1, StopReason.FAILED)]


@pytest.mark.parametrize("failed", [True, False])
def test_init_is_done_again_inside_the_requests(failed: bool) -> None:
    bench = make()
    bench.invoke(SHARED)
    bench.invoke(SHARED)
    bench.tell(EnvironmentStarted(1))
    if failed:
        commands = bench.tell(InitFailed(1))
    else:
        assert bench.tick(INIT_TIMEOUT_NS) == [Reset(1)]
        assert bench.invoke(SHARED) == []
        commands = bench.tell(ResetDone(1))
    assert all(isinstance(command, Dispatch) and command.reinit for command in commands)
    bench.tell(InvocationEnded(1, 1, Outcome.ERROR))
    (after,) = bench.invoke(SHARED)
    assert isinstance(after, Dispatch)
    assert not after.reinit


def test_one_that_never_came_up_is_stopped() -> None:
    bench = make()
    bench.invoke(SHARED)
    bench.tell(InitFailed(1))
    assert bench.tick(TIMEOUT_NS) == [Complete(1, 1, Outcome.TIMEOUT), Stop(1, StopReason.FAILED)]


def test_waiting_requests_are_placed_again_together_and_others_are_lost() -> None:
    bench = make(slots=2)
    bench.invoke(SHARED)
    bench.invoke(SHARED)
    start = Start(2, WORKER, SHARED, InitializationType.MANAGED_INSTANCES)
    assert bench.tell(EnvironmentDied(1)) == [start]
    assert bench.tick(START_LIMIT_NS)[0] == Stop(2, StopReason.FAILED)
    assert dispatched(bench.tell(EnvironmentReady(3))) == [(3, 1), (3, 2)]
    lost = [Complete(1, 3, Outcome.ENVIRONMENT_LOST), Complete(2, 3, Outcome.ENVIRONMENT_LOST)]
    assert bench.tell(WorkerLost(WORKER)) == lost
    assert bench.in_flight() == 0


def test_three_environments_in_all() -> None:
    bench = make()
    bench.invoke(SHARED)
    for environment in (1, 2):
        assert isinstance(bench.one(EnvironmentDied(environment)), Start)
    assert bench.tell(EnvironmentDied(3)) == [Complete(1, 3, Outcome.ENVIRONMENT_LOST)]


def test_idle_ones_are_reclaimed_and_retired_ones_finish() -> None:
    bench = up(2, 1)
    bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS))
    assert bench.tick(IDLE_NS)[-1] == Stop(1, StopReason.IDLE)
    bench = up(2, 2)
    assert bench.tell(VersionRetired(SHARED)) == []
    bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS))
    assert bench.tell(InvocationEnded(1, 2, Outcome.SUCCESS))[-1] == Stop(1, StopReason.RETIRED)


# --- tenants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
def test_an_environment_serves_one_tenant(slots: int) -> None:
    """ "Each environment serves one tenant id of one version"."""
    bench = make(TENANTS, slots)
    for request, tenant in ((1, 5), (2, 6)):
        (start,) = bench.tell(Invoke(request, TENANTS, tenant=tenant))
        assert isinstance(start, Start)
        assert start.tenant == tenant
        bench.tell(EnvironmentReady(start.environment))
        bench.tell(InvocationEnded(start.environment, request, Outcome.SUCCESS))
    assert dispatched(bench.tell(Invoke(3, TENANTS, tenant=5))) == [(1, 3)]
    assert dispatched(bench.tell(Invoke(4, TENANTS, tenant=6))) == [(2, 4)]
    (start,) = bench.tell(Invoke(5, TENANTS, tenant=7))
    assert isinstance(start, Start)
    assert [view.tenant for view in bench.scheduler.environments()] == [5, 6, 7]


def test_a_tenant_waits_for_its_own_reset_and_is_placed_again_on_its_own() -> None:
    bench = make(TENANTS, 1)
    for request, tenant in ((1, 5), (2, 6)):
        bench.tell(Invoke(request, TENANTS, tenant=tenant))
        bench.tell(EnvironmentReady(request))
    bench.tick(TIMEOUT_NS)
    assert bench.tell(Invoke(3, TENANTS, tenant=5)) == []
    bench.tell(ResetDone(2))
    (start,) = bench.tell(EnvironmentDied(1))  # the idle one is not its own
    assert isinstance(start, Start)
    assert start.tenant == 5
    assert dispatched(bench.tell(EnvironmentReady(start.environment))) == [(3, 3)]


def test_tenants_of_a_version_without_tenancy_are_not_looked_at() -> None:
    bench = make(SHARED)
    bench.tell(Invoke(1, SHARED, tenant=5))
    assert bench.tell(Invoke(2, SHARED, tenant=6)) == []


# --- SnapStart ------------------------------------------------------------------------------------------


def test_a_restore_counts_as_the_cold_start() -> None:
    bench = make(RESTORED, 1)
    assert bench.invoke(RESTORED) == [Start(1, WORKER, RESTORED, InitializationType.SNAP_START)]
    bench.tell(EnvironmentStarted(1))
    assert bench.states() == {1: "restoring"}
    (dispatch,) = bench.tell(EnvironmentReady(1))
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.cold, dispatch.reinit) == (True, False)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_restore_beyond_its_limit_ends_the_request(slots: int) -> None:
    """ "After-restore hooks must end within 10 s, else Invoke fails 408 SnapStartTimeoutException"."""
    bench = make(RESTORED, slots)
    bench.invoke(RESTORED)
    bench.tell(EnvironmentStarted(1))
    assert bench.tick(10 * S - 1) == []
    commands = bench.tick(1)
    assert set(map(str, commands)) == set(
        map(str, [Complete(1, 1, Outcome.RESTORE_TIMEOUT), Stop(1, StopReason.FAILED)])
    )
    assert bench.in_flight() == 0


def test_a_restore_that_fails_is_an_init_inside_the_invocation() -> None:
    bench = make(RESTORED, 1)
    bench.invoke(RESTORED)
    bench.tell(EnvironmentStarted(1))
    (dispatch,) = bench.tell(InitFailed(1))
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.cold, dispatch.reinit) == (False, True)
