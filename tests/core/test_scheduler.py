"""The life of environments and requests: starts, resets, stops, deaths, timers, late and doubled facts."""

from __future__ import annotations

import pytest

from lambent.core.environment import EnvironmentState
from lambent.core.events import (
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionRemoved,
    InitFailed,
    InvocationEnded,
    Reset,
    ResetDone,
    Start,
    Stop,
    StopReason,
    VersionRetired,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.core.scheduler import RESET_LIMIT_NS, SHUTDOWN_LIMIT_NS, START_LIMIT_NS, Scheduler
from lambent.model.invocation import Outcome

from .helpers import FUNCTION, IDLE_NS, INIT_TIMEOUT_NS, MS, TIMEOUT_NS, VERSION, WORKER, Bench, S

# --- the ordinary life ----------------------------------------------------------------------------------


def test_a_cold_and_a_warm_invocation() -> None:
    bench = Bench()
    assert bench.invoke() == [Start(1, WORKER, VERSION)]
    assert bench.tell(EnvironmentStarted(1), 5 * MS) == []
    cold = bench.one(EnvironmentReady(1), 50 * MS)
    assert cold == Dispatch(1, 1, bench.now_ns + TIMEOUT_NS, cold=True, reinit=False)
    assert bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS), MS) == [Complete(1, 1, Outcome.SUCCESS)]
    assert bench.states() == {1: "idle"}
    warm = bench.one_invoke()
    assert warm == Dispatch(1, 2, bench.now_ns + TIMEOUT_NS, cold=False, reinit=False)
    assert bench.tell(InvocationEnded(1, 2, Outcome.ERROR)) == [Complete(2, 1, Outcome.ERROR)]
    view = bench.scheduler.environments()[0]
    assert (view.invocations, view.request, view.created_ns, view.since_ns) == (2, None, 0, bench.now_ns)


def test_ready_may_overtake_started() -> None:
    bench = Bench()
    bench.start()
    assert isinstance(bench.one(EnvironmentReady(1)), Dispatch)
    assert bench.tell(EnvironmentStarted(1)) == []
    assert bench.states() == {1: "busy"}


@pytest.mark.parametrize("outcome", [Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR])
def test_after_the_runtime_is_gone_the_next_request_starts_one(outcome: Outcome) -> None:
    bench = Bench()
    assert bench.end(bench.dispatch(), outcome) == [Complete(1, 1, outcome)]
    again = bench.dispatch()
    assert (again.environment, again.cold, again.reinit) == (1, False, True)
    bench.end(again)
    assert not bench.dispatch().reinit


# --- timeouts and resets --------------------------------------------------------------------------------


def test_function_timeout() -> None:
    bench = Bench()
    dispatch = bench.dispatch()
    assert bench.tick(TIMEOUT_NS - 1) == []
    assert bench.tick(1) == [Complete(1, 1, Outcome.TIMEOUT), Reset(1)]
    assert bench.in_flight() == 0
    assert bench.end(dispatch) == []
    assert bench.tell(ResetDone(1)) == []
    again = bench.dispatch()
    assert (again.environment, again.cold, again.reinit) == (1, False, True)


def test_the_request_after_a_timeout_waits_for_the_same_environment() -> None:
    bench = Bench()
    bench.dispatch()
    bench.tick(TIMEOUT_NS)
    assert bench.invoke() == []  # it waits for the reset
    assert bench.in_flight() == 1
    assert isinstance(bench.start(), Start)  # the next one needs an environment of its own
    again = bench.one(ResetDone(1))
    assert isinstance(again, Dispatch)
    assert (again.environment, again.cold, again.reinit) == (1, False, True)


def test_an_answer_at_the_deadline_is_too_late_even_without_a_tick() -> None:
    bench = Bench()
    dispatch = bench.dispatch()
    bench.now_ns += TIMEOUT_NS
    assert bench.end(dispatch) == [Complete(1, 1, Outcome.TIMEOUT), Reset(1)]


def test_init_over_its_limit_is_done_again_inside_the_invocation() -> None:
    bench = Bench()
    bench.start()
    bench.tell(EnvironmentStarted(1), S)
    assert bench.tick(INIT_TIMEOUT_NS - 1) == []
    assert bench.tick(1) == [Reset(1)]
    assert bench.in_flight() == 1
    assert bench.tell(EnvironmentReady(1)) == []  # it was on its way
    again = bench.one(ResetDone(1), 7)
    assert again == Dispatch(1, 1, bench.now_ns + TIMEOUT_NS, cold=False, reinit=True)
    assert bench.tick(TIMEOUT_NS) == [Complete(1, 1, Outcome.TIMEOUT), Reset(1)]


@pytest.mark.parametrize("started", [True, False])
def test_init_failed_is_done_again_inside_the_invocation(started: bool) -> None:
    bench = Bench()
    bench.start()
    if started:
        bench.tell(EnvironmentStarted(1))
    again = bench.one(InitFailed(1))
    assert again == Dispatch(1, 1, bench.now_ns + TIMEOUT_NS, cold=False, reinit=True)
    assert bench.end(again, Outcome.INIT_ERROR) == [Complete(1, 1, Outcome.INIT_ERROR)]  # type: ignore[arg-type]
    assert bench.states() == {1: "idle"}


def unbind(bench: Bench, environment: int) -> None:
    """As provisioned concurrency will start them: for no request."""
    inside = bench.scheduler._environments[environment]
    inside.request = None
    inside.version.function.release()


def test_an_environment_for_no_request_becomes_idle() -> None:
    bench = Bench()
    bench.start()
    unbind(bench, 1)
    bench.tell(EnvironmentStarted(1))
    assert bench.tell(EnvironmentReady(1)) == []
    assert bench.states() == {1: "idle"}
    dispatch = bench.dispatch()
    assert (dispatch.environment, dispatch.cold) == (1, True)


def test_an_environment_for_no_request_that_fails_is_stopped() -> None:
    bench = Bench()
    bench.start()
    bench.start()
    bench.start()
    for environment in (1, 2, 3):
        unbind(bench, environment)
    bench.tell(EnvironmentStarted(2))
    assert bench.tell(InitFailed(1)) == [Stop(1, StopReason.FAILED)]
    assert bench.tick(INIT_TIMEOUT_NS) == [Stop(2, StopReason.FAILED)]
    assert bench.tick(START_LIMIT_NS) == [Stop(3, StopReason.FAILED)]


# --- deaths ---------------------------------------------------------------------------------------------


def test_a_request_that_was_handed_over_is_lost_with_its_environment() -> None:
    bench = Bench()
    bench.dispatch()
    assert bench.tell(EnvironmentDied(1)) == [Complete(1, 1, Outcome.ENVIRONMENT_LOST)]
    assert bench.in_flight() == 0
    assert bench.states() == {}
    assert bench.tell(EnvironmentDied(1)) == []


def test_a_request_that_waits_gets_another_environment_three_in_all() -> None:
    bench = Bench()
    bench.start()
    assert bench.tell(EnvironmentDied(1)) == [Start(2, WORKER, VERSION)]
    bench.tell(EnvironmentStarted(2))
    assert bench.tell(EnvironmentDied(2)) == [Start(3, WORKER, VERSION)]
    assert bench.in_flight() == 1
    assert bench.tell(EnvironmentDied(3)) == [Complete(1, 3, Outcome.ENVIRONMENT_LOST)]
    assert bench.in_flight() == 0


def test_a_request_that_waits_for_a_reset_is_placed_again() -> None:
    bench = Bench()
    bench.start()
    bench.tell(EnvironmentStarted(1))
    assert bench.tick(INIT_TIMEOUT_NS) == [Reset(1)]
    assert bench.tell(EnvironmentDied(1)) == [Start(2, WORKER, VERSION)]


def test_placed_again_on_an_idle_one_if_there_is_one() -> None:
    bench = Bench()
    first = bench.dispatch()
    bench.start()
    bench.end(first)
    assert bench.one(EnvironmentDied(2)) == Dispatch(1, 2, bench.now_ns + TIMEOUT_NS, False, False)


def test_placed_again_without_room() -> None:
    bench = Bench(environments_max=1)
    bench.start()
    bench.tell(WorkerJoined(WORKER, 0, 0))
    assert bench.tell(EnvironmentDied(1)) == [Complete(1, 1, Outcome.ENVIRONMENT_LOST)]
    assert bench.in_flight() == 0


@pytest.mark.parametrize("event", [VersionRetired(VERSION), FunctionRemoved(FUNCTION), Drain()])
def test_not_placed_again_when_the_version_is_over(event: AnyEvent) -> None:
    bench = Bench()
    bench.start()
    assert bench.tell(event) == []
    assert bench.tell(EnvironmentDied(1)) == [Complete(1, 1, Outcome.ENVIRONMENT_LOST)]


def test_a_lost_worker_takes_all_with_it() -> None:
    bench = Bench()
    first, second, third = bench.dispatch(), bench.dispatch(), bench.start()
    bench.end(first)
    bench.tell(WorkerJoined(2, 1_000, 10))
    # The idle one died with the worker: the waiting request does not go there.
    assert bench.tell(WorkerLost(WORKER)) == [
        Complete(second.request, second.environment, Outcome.ENVIRONMENT_LOST),
        Start(4, 2, VERSION),
    ]
    assert bench.tell(EnvironmentReady(third.environment)) == []
    assert bench.states() == {4: "starting"}


# --- lost facts -----------------------------------------------------------------------------------------


def test_a_start_that_is_never_heard_of() -> None:
    bench = Bench()
    bench.start()
    assert bench.tick(START_LIMIT_NS - 1) == []
    assert bench.tick(1) == [Stop(1, StopReason.FAILED), Start(2, WORKER, VERSION)]
    assert bench.tell(EnvironmentStarted(1)) == bench.tell(EnvironmentReady(1)) == []
    assert bench.tick(START_LIMIT_NS) == [Stop(2, StopReason.FAILED), Start(3, WORKER, VERSION)]
    lost = Complete(1, 3, Outcome.ENVIRONMENT_LOST)
    assert bench.tick(START_LIMIT_NS) == [Stop(3, StopReason.FAILED), lost]


@pytest.mark.parametrize("bound", [True, False])
def test_a_reset_that_is_never_heard_of(bound: bool) -> None:
    bench = Bench()
    if bound:
        bench.start()
        bench.tell(EnvironmentStarted(1))
        assert bench.tick(INIT_TIMEOUT_NS) == [Reset(1)]
    else:
        bench.dispatch()
        assert bench.tick(TIMEOUT_NS)[-1] == Reset(1)
    assert bench.tick(RESET_LIMIT_NS - 1) == []
    commands = bench.tick(1)
    assert commands == [Stop(1, StopReason.FAILED)] + [Start(2, WORKER, VERSION)] * bound


def test_a_stop_that_is_never_heard_of() -> None:
    bench = Bench()
    bench.idle(1)
    assert bench.tell(VersionRetired(VERSION)) == [Stop(1, StopReason.RETIRED)]
    assert bench.states() == {1: "shutting-down"}
    assert bench.tick(SHUTDOWN_LIMIT_NS) == []
    assert bench.states() == {}
    assert bench.tell(EnvironmentDied(1)) == []


def test_facts_that_do_not_fit_change_nothing() -> None:
    """Every fact about an environment in every state where it is late: no command, and the same view after it."""
    for state in EnvironmentState:
        bench = Bench()
        fitting = drive_to(bench, state)
        before = bench.scheduler.environments(), bench.scheduler.statistics()
        for event in (
            EnvironmentStarted(1),
            EnvironmentReady(1),
            InitFailed(1),
            ResetDone(1),
            InvocationEnded(1, 1, Outcome.SUCCESS),
            InvocationEnded(1, 99, Outcome.SUCCESS),
            InvocationEnded(99, 1, Outcome.SUCCESS),
            EnvironmentDied(99),
            WorkerLost(99),
            VersionRetired(99),
            FunctionRemoved(99),
            VersionSet(5, 99, 128, 1, 1),
        ):
            if event not in fitting:
                assert bench.tell(event) == [], (state, event)
        assert (bench.scheduler.environments(), bench.scheduler.statistics()) == before, state


def drive_to(bench: Bench, state: EnvironmentState) -> list[AnyEvent]:
    """Environment 1 in this state; returns the facts that fit it."""
    bench.start()
    if state is EnvironmentState.STARTING:
        return [EnvironmentStarted(1), EnvironmentReady(1), InitFailed(1)]
    bench.tell(EnvironmentStarted(1))
    if state is EnvironmentState.INIT:
        return [EnvironmentReady(1), InitFailed(1)]
    bench.tell(EnvironmentReady(1))
    if state is EnvironmentState.BUSY:
        return [InvocationEnded(1, 1, Outcome.SUCCESS)]
    if state is EnvironmentState.RESETTING:
        bench.tick(TIMEOUT_NS)
        return [ResetDone(1)]
    bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS))
    if state is not EnvironmentState.IDLE:
        bench.tell(VersionRetired(VERSION))
    if state is EnvironmentState.DEAD:
        bench.tell(EnvironmentDied(1))
    return []


def test_an_idle_one_may_die_or_be_dead_already() -> None:
    bench = Bench()
    first, second = bench.idle(2)
    assert bench.tell(EnvironmentDied(second)) == []
    assert bench.dispatch().environment == first


def test_an_old_answer_does_not_end_a_newer_request() -> None:
    bench = Bench()
    bench.end(bench.dispatch())
    bench.dispatch()
    assert bench.tell(InvocationEnded(1, 1, Outcome.SUCCESS)) == []
    assert bench.in_flight() == 1


# --- the end of versions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (VersionRetired(VERSION), StopReason.RETIRED),
        (FunctionRemoved(FUNCTION), StopReason.RETIRED),
        (Drain(), StopReason.DRAIN),
    ],
)
def test_idle_ones_stop_now_and_the_others_after_their_request(event: AnyEvent, reason: StopReason) -> None:
    bench = Bench()
    busy, idle, slow = bench.dispatch(), bench.dispatch(), bench.dispatch()
    starting, resetting = bench.start().environment, bench.start().environment
    bench.tell(EnvironmentStarted(resetting))
    bench.end(idle)
    assert bench.tell(event) == [Stop(idle.environment, reason)]
    ended = Complete(busy.request, busy.environment, Outcome.SUCCESS)
    assert bench.end(busy) == [ended, Stop(busy.environment, reason)]
    late = bench.one(EnvironmentReady(starting))
    assert isinstance(late, Dispatch)
    assert bench.end(late)[-1] == Stop(starting, reason)
    timed_out = Complete(slow.request, slow.environment, Outcome.TIMEOUT)
    assert bench.tick(TIMEOUT_NS) == [timed_out, Stop(slow.environment, reason)]
    assert bench.tick(INIT_TIMEOUT_NS - TIMEOUT_NS) == [Reset(resetting)]
    again = bench.one(ResetDone(resetting))
    assert isinstance(again, Dispatch)
    assert bench.end(again, Outcome.RUNTIME_EXIT)[-1] == Stop(resetting, reason)
    bench.tick(SHUTDOWN_LIMIT_NS)
    assert bench.states() == {}
    assert bench.in_flight() == 0


def test_a_reset_of_a_version_that_is_retired_meanwhile() -> None:
    bench = Bench()
    bench.dispatch()
    bench.tick(TIMEOUT_NS)
    assert bench.tell(VersionRetired(VERSION)) == []
    assert bench.tell(ResetDone(1)) == [Stop(1, StopReason.RETIRED)]


def test_a_version_is_set_once() -> None:
    bench = Bench()
    bench.idle(1)
    assert bench.tell(VersionSet(VERSION, FUNCTION, 999, 1, 1)) == []
    assert bench.dispatch().deadline_ns == bench.now_ns + TIMEOUT_NS


def test_retired_versions_are_shown_as_long_as_they_have_environments() -> None:
    bench = Bench()
    running = bench.dispatch()
    bench.tell(VersionRetired(VERSION))
    (version,) = bench.scheduler.statistics().versions
    assert (version.version, version.retired, version.in_flight) == (VERSION, True, 1)
    assert version.environments == {EnvironmentState.BUSY: 1}
    bench.end(running)
    bench.tell(EnvironmentDied(1))
    assert bench.scheduler.statistics().versions == []


# --- timers ---------------------------------------------------------------------------------------------


def test_idle_ones_are_reclaimed_oldest_first_across_versions() -> None:
    bench = Bench()
    bench.tell(VersionSet(200, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    running = [bench.dispatch(version) for version in (VERSION, 200, VERSION, 200)]
    for position in (1, 2, 3, 0):
        bench.now_ns += MS
        bench.end(running[position])
    order = [running[position].environment for position in (1, 2, 3, 0)]
    assert bench.tick(IDLE_NS - 3 * MS - 1) == []
    assert bench.tick(1) == [Stop(order[0], StopReason.IDLE)]
    assert bench.tick(3 * MS) == [Stop(environment, StopReason.IDLE) for environment in order[1:]]


def test_use_puts_reclaiming_off() -> None:
    bench = Bench()
    bench.idle(1)
    bench.now_ns += IDLE_NS - 1
    bench.end(bench.dispatch())
    assert bench.tick(IDLE_NS - 1) == []
    assert bench.tick(1) == [Stop(1, StopReason.IDLE)]


def test_no_idle_time_at_all() -> None:
    bench = Bench(idle_reclaim_ns=0)
    bench.idle(1)
    assert bench.scheduler.next_deadline() == bench.now_ns
    assert bench.tick() == [Stop(1, StopReason.IDLE)]


def test_next_deadline() -> None:
    bench = Bench()
    assert bench.scheduler.next_deadline() is None
    bench.start()
    assert bench.scheduler.next_deadline() == START_LIMIT_NS
    bench.tell(EnvironmentStarted(1))
    assert bench.scheduler.next_deadline() == INIT_TIMEOUT_NS
    bench.tell(EnvironmentReady(1))
    assert bench.scheduler.next_deadline() == TIMEOUT_NS


def test_following_next_deadline_leads_to_quiet() -> None:
    """Nothing is heard from the worker; the driver only obeys next_deadline()."""
    bench = Bench(environments_max=20)
    bench.idle(3)
    bench.dispatch()
    for _ in range(4):
        bench.invoke()
    for _ in range(500):
        deadline_ns = bench.scheduler.next_deadline()
        if deadline_ns is None:
            break
        bench.now_ns = max(bench.now_ns, deadline_ns)
        bench.tick()
    assert bench.scheduler.next_deadline() is None
    assert bench.states() == {}
    assert bench.in_flight() == 0


def test_the_warm_path_leaves_the_heap_alone() -> None:
    """30 s of invocations, 100 environments: at most one entry for each, and one for the version."""
    bench = Bench()
    bench.idle(100)
    # The starts have left their entries; they come up and go.
    for _ in range(3_000):
        bench.now_ns += 10 * MS
        for dispatch in [bench.dispatch() for _ in range(5)]:
            bench.end(dispatch)
    bench.now_ns += START_LIMIT_NS
    serial = bench.scheduler._timer_serial
    for _ in range(1_000):
        bench.now_ns += MS
        for dispatch in [bench.dispatch() for _ in range(5)]:
            bench.end(dispatch)
    assert bench.scheduler.statistics().timers <= 101
    assert bench.scheduler._timer_serial - serial <= 5


def test_time_does_not_go_back() -> None:
    bench = Bench()
    bench.tick(5)
    with pytest.raises(AssertionError, match="time went back"):
        bench.tick(-1)


def test_outcomes_that_are_not_the_workers_to_tell() -> None:
    bench = Bench()
    dispatch = bench.dispatch()
    with pytest.raises(AssertionError, match="cannot tell"):
        bench.end(dispatch, Outcome.TIMEOUT)


def test_a_fresh_scheduler_is_empty() -> None:
    scheduler = Scheduler()
    assert scheduler.environments() == []
    statistics = scheduler.statistics()
    assert (statistics.in_flight, statistics.timers, statistics.draining) == (0, 0, False)
    assert statistics.accounts == statistics.functions == statistics.versions == statistics.workers == []
