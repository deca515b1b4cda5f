"""Provisioned concurrency: allocating, serving, counting, replacing, moving, failing."""

from __future__ import annotations

import pytest

from lambent.core.events import (
    AnyCommand,
    AnyEvent,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDied,
    EnvironmentReady,
    EnvironmentStarted,
    FunctionRemoved,
    FunctionSet,
    InitFailed,
    ProvisionedReason,
    ProvisionedSet,
    ProvisionedState,
    ProvisionedStatus,
    Reset,
    ResetDone,
    Start,
    Stop,
    StopReason,
    Throttle,
    VersionRetired,
    VersionSet,
    WorkerJoined,
    WorkerLost,
)
from lambent.core.provisioner import BACK_OFF_MAX_NS, BACK_OFF_NS, FAILURES_MAX, ROOM_RETRY_NS
from lambent.core.scheduler import START_LIMIT_NS
from lambent.core.statistics import ProvisionedStatistics
from lambent.model.invocation import InitializationType, Outcome, ThrottleReason

from .helpers import ACCOUNT, FUNCTION, IDLE_NS, INIT_TIMEOUT_NS, TIMEOUT_NS, VERSION, WORKER, Bench, S

NEXT, ALIAS = 101, 7
IN_PROGRESS, READY, FAILED = ProvisionedState.IN_PROGRESS, ProvisionedState.READY, ProvisionedState.FAILED
PROVISIONED = InitializationType.PROVISIONED_CONCURRENCY


def asks(count: int, version: int = VERSION) -> ProvisionedSet:
    return ProvisionedSet(ALIAS, ((version, count),))


def started(commands: list[AnyCommand]) -> list[int]:
    starts = [command for command in commands if isinstance(command, Start)]
    assert all(start.initialization_type is PROVISIONED for start in starts)
    return [start.environment for start in starts]


def stopped(commands: list[AnyCommand]) -> list[int]:
    return [command.environment for command in commands if isinstance(command, Stop)]


def status(commands: list[AnyCommand]) -> tuple[int, int, ProvisionedState]:
    (told,) = [command for command in commands if isinstance(command, ProvisionedStatus)]
    return told.allocated, told.available, told.state


def provisioned(count: int, **limits: int) -> Bench:
    """So many, all idle."""
    bench = Bench(**limits)
    come_up(bench, bench.tell(asks(count)))
    return bench


def come_up(bench: Bench, commands: list[AnyCommand]) -> list[AnyCommand]:
    """Everything that is being started is ready, and what is started then."""
    told = list(commands)
    while starts := started(commands):
        commands = [more for environment in starts for more in bench.tell(EnvironmentReady(environment))]
        told += commands
    return told


def books(bench: Bench, version: int = VERSION) -> ProvisionedStatistics:
    (shown,) = [line for line in bench.scheduler.statistics().versions if line.version == version]
    assert shown.provisioned is not None
    return shown.provisioned


# --- allocating -----------------------------------------------------------------------------------------


def test_environments_are_started_ahead_and_serve_when_all_are_there() -> None:
    """ "You can't access any of those environments until Lambda completely finishes allocating them." """
    bench = Bench()
    commands = bench.tell(asks(2))
    assert commands == [Start(1, WORKER, VERSION, PROVISIONED), Start(2, WORKER, VERSION, PROVISIONED)]
    assert bench.tell(EnvironmentReady(1)) == [ProvisionedStatus(ALIAS, 1, 0, IN_PROGRESS)]
    assert bench.start().initialization_type is InitializationType.ON_DEMAND
    assert bench.tell(EnvironmentReady(2)) == [ProvisionedStatus(ALIAS, 2, 2, READY)]
    dispatch = bench.dispatch()
    assert dispatch == Dispatch(2, 2, bench.now_ns + TIMEOUT_NS, cold=False, reinit=False, provisioned=True)
    assert bench.end(dispatch) == [Complete(2, 2, Outcome.SUCCESS)]
    assert bench.dispatch().environment == 2  # the most recently used


def test_asking_for_the_same_again_tells_nothing() -> None:
    assert provisioned(2).tell(asks(2)) == []


def test_so_many_at_once_and_6000_a_minute() -> None:
    """ "Up to 6,000 environments a minute for each function"."""
    bench = Bench(concurrency=5_000, provisioned_starting_max=5_000)
    assert len(started(bench.tell(asks(1_500)))) == 1_000
    assert len(started(bench.tick(S))) == 100
    assert len(started(bench.tick(S // 100))) == 1
    bench = Bench(provisioned_starting_max=3)
    assert started(bench.tell(asks(5))) == [1, 2, 3]
    assert started(bench.tell(EnvironmentReady(2))) == [4]


def test_more_are_held_back_until_they_are_complete() -> None:
    bench = provisioned(2)
    commands = bench.tell(asks(4))
    assert status(commands) == (2, 2, IN_PROGRESS)
    third, fourth = started(commands)
    assert status(bench.tell(EnvironmentReady(third))) == (3, 2, IN_PROGRESS)
    assert status(bench.tell(EnvironmentReady(fourth))) == (4, 4, READY)


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(3, 130), (300, 300), (5_400, 900)])
def test_init_may_take_130_s_or_the_timeout_up_to_15_minutes(timeout_s: int, limit_s: int) -> None:
    """ "PC init limit: max(130 s, function timeout), up to 900 s"."""
    bench = Bench()
    bench.tell(VersionSet(NEXT, FUNCTION, 128, timeout_s * S, INIT_TIMEOUT_NS))
    bench.tell(asks(1, NEXT))
    bench.tell(EnvironmentStarted(1))
    assert bench.tick(limit_s * S - 1) == []
    assert bench.tick(1)[0] == Stop(1, StopReason.FAILED)


def test_what_can_not_be_provisioned_is_not() -> None:
    bench = Bench()
    bench.tell(VersionSet(201, FUNCTION, 128, S, S, snap_start=True))
    bench.tell(VersionSet(202, FUNCTION, 128, S, S, tenancy=True))
    bench.tell(VersionSet(203, FUNCTION, 128, S, S, concurrency_per_environment=2))
    for version in (201, 202, 203, 999):
        assert bench.tell(asks(1, version)) == []
    assert bench.tell(ProvisionedSet(ALIAS)) == []


# --- serving and counting -------------------------------------------------------------------------------


def test_busy_ones_spill_over_to_idle_and_new_on_demand_ones() -> None:
    bench = provisioned(1)
    first = bench.dispatch()
    spilled = bench.dispatch()
    assert (spilled.provisioned, spilled.spillover, spilled.cold) == (False, True, True)
    bench.end(spilled)
    assert bench.dispatch().environment == spilled.environment
    bench.end(first)
    assert bench.dispatch().environment == first.environment
    (shown,) = bench.scheduler.statistics().versions
    assert (shown.provisioned_invocations, shown.spillovers, shown.cold_starts) == (2, 2, 1)
    assert books(bench).utilization() == 1.0


def test_ten_requests_a_second_for_each_then_spillover() -> None:
    """ "PC=10 serving a 20 ms function spills at 100 rps although only 2 are busy"."""
    bench = provisioned(10)
    for _ in range(100):
        dispatch = bench.dispatch()
        assert dispatch.provisioned
        bench.end(dispatch)
    assert isinstance(bench.invoke()[-1], Start)
    assert isinstance(bench.invoke(asynchronous=True)[-1], Dispatch)
    bench.now_ns += S // 100
    assert bench.dispatch().provisioned


def test_all_that_is_reserved_may_be_provisioned() -> None:
    """ "If sum(PC) == reserved, $LATEST and unprovisioned versions are throttled" with the reserved reason."""
    bench = Bench(reserved=2)
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    starts = bench.tell(asks(2))
    bench.end(bench.dispatch(NEXT))  # until all of it is allocated nothing is taken away
    come_up(bench, starts)
    assert bench.invoke(NEXT) == [Throttle(2, ThrottleReason.RESERVED_CONCURRENCY)]
    assert bench.dispatch().provisioned
    assert bench.dispatch().provisioned
    assert bench.invoke() == [Throttle(5, ThrottleReason.RESERVED_CONCURRENCY)]
    (function,) = bench.scheduler.statistics().functions
    assert (function.in_flight, function.provisioned) == (2, 2)
    assert function.throttles == {ThrottleReason.RESERVED_CONCURRENCY: 2}


def test_a_reservation_stays_a_ceiling() -> None:
    bench = Bench(reserved=2)
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    running = [bench.dispatch(NEXT), bench.dispatch(NEXT)]
    come_up(bench, bench.tell(asks(2)))
    assert bench.invoke() == [Throttle(3, ThrottleReason.RESERVED_CONCURRENCY)]
    bench.end(running[0])
    assert bench.dispatch().provisioned


def test_allocated_counts_against_the_account_even_when_idle() -> None:
    """ "Allocated PC counts against the account limit even when idle"."""
    bench = provisioned(3, concurrency=5)
    bench.tell(FunctionSet(11, ACCOUNT))
    bench.tell(VersionSet(111, 11, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    bench.start(111)
    bench.start(111)
    assert bench.invoke(111) == [Throttle(3, ThrottleReason.CONCURRENCY)]
    (account,) = bench.scheduler.statistics().accounts
    assert (account.claimed, account.provisioned, account.unreserved_max) == (5, 3, 2)
    levels = bench.scheduler.levels(VERSION)
    assert levels is not None
    assert (levels.account_claimed, levels.provisioned_available, levels.allocation) == (5, 3, ALIAS)
    assert bench.scheduler.levels(999) is None


def test_claims_move_with_the_reservation_and_last_as_long_as_requests() -> None:
    bench = provisioned(3, concurrency=10)
    running = [bench.dispatch() for _ in range(3)]

    def account() -> tuple[int, int, int]:
        shown = bench.scheduler.statistics().accounts[0]
        return shown.reserved, shown.provisioned, shown.unreserved_max

    assert account() == (0, 3, 7)
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, 5))
    assert account() == (5, 0, 5)
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, None))
    assert account() == (0, 3, 7)
    assert bench.tell(asks(1)) == [ProvisionedStatus(ALIAS, 1, 1, READY)]
    assert account() == (0, 3, 7)
    assert stopped(bench.end(running[0])) == [running[0].environment]
    assert account() == (0, 2, 8)
    bench.tell(FunctionRemoved(FUNCTION))
    bench.end(running[1])
    assert account() == (0, 1, 9)
    bench.end(running[2])
    assert account() == (0, 0, 10)


# --- keeping the count ----------------------------------------------------------------------------------


def test_never_reclaimed_and_never_given_up_for_room() -> None:
    bench = provisioned(2, environments_max=2)
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    assert bench.tick(10 * IDLE_NS) == []
    assert bench.invoke(NEXT) == [Throttle(1, ThrottleReason.CONCURRENCY, capacity=True)]


def test_a_dead_one_is_replaced_and_meanwhile_claims_nothing() -> None:
    bench = provisioned(2)
    bench.end(bench.dispatch())
    commands = bench.tell(EnvironmentDied(2))
    assert status(commands) == (1, 1, READY)
    assert bench.scheduler.statistics().accounts[0].unreserved_max == 999
    assert status(come_up(bench, commands)[2:]) == (2, 2, READY)


def test_a_lost_worker_is_no_failure() -> None:
    bench = provisioned(2)
    bench.tell(WorkerJoined(2, 1_000, 10))
    commands = bench.tell(WorkerLost(WORKER))
    assert started(commands) == [3, 4]
    assert status(commands) == (0, 0, READY)


def test_after_a_timeout_the_next_request_waits_for_the_reset() -> None:
    bench = provisioned(1, concurrency=1)
    bench.dispatch()
    assert bench.tick(TIMEOUT_NS) == [Complete(1, 1, Outcome.TIMEOUT), Reset(1)]
    assert bench.invoke() == []
    again = bench.one(ResetDone(1))
    assert isinstance(again, Dispatch)
    assert (again.environment, again.cold, again.reinit, again.provisioned) == (1, False, True, True)


def test_what_waits_for_a_reset_that_fails_is_placed_on_demand() -> None:
    bench = provisioned(1, concurrency=2)
    bench.dispatch()
    bench.tick(TIMEOUT_NS)
    bench.invoke()
    on_demand, replacement, _ = bench.tell(EnvironmentDied(1))
    assert on_demand == Start(2, WORKER, VERSION)
    assert started([replacement]) == [3]
    dispatch = bench.one(EnvironmentReady(2))
    assert isinstance(dispatch, Dispatch)
    assert dispatch.spillover
    assert bench.scheduler.statistics().accounts[0].unreserved_in_flight == 1


def test_what_waits_is_lost_where_nothing_more_may_run_on_demand() -> None:
    bench = provisioned(1, reserved=1)
    bench.dispatch()
    bench.tick(TIMEOUT_NS)
    bench.invoke()
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, 0))
    assert Complete(2, 1, Outcome.ENVIRONMENT_LOST) in bench.tell(EnvironmentDied(1))
    assert bench.in_flight() == 0


# --- less, elsewhere, nowhere ---------------------------------------------------------------------------


def test_starting_ones_go_first_then_idle_ones_then_busy_ones_after_their_request() -> None:
    bench = provisioned(3)
    busy = [bench.dispatch(), bench.dispatch()]
    starting = started(bench.tell(asks(4)))
    commands = bench.tell(asks(1))
    assert stopped(commands) == [*starting, 1]
    assert status(commands) == (1, 1, READY)
    assert stopped(bench.end(busy[0])) == [busy[0].environment]
    assert stopped(bench.end(busy[1])) == []
    assert (books(bench).idle, books(bench).allocated) == (1, 1)


def test_a_surplus_one_that_times_out_is_not_reset() -> None:
    bench = provisioned(1)
    bench.dispatch()
    assert bench.tell(ProvisionedSet(ALIAS)) == []
    assert bench.tick(TIMEOUT_NS) == [Complete(1, 1, Outcome.TIMEOUT), Stop(1, StopReason.UNPROVISIONED)]


def test_an_alias_moves_the_old_ones_stop_when_the_new_ones_are_ready() -> None:
    """ "Alias PC follows the alias when it moves (new environments initialised for the new version)"."""
    bench = provisioned(2)
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    commands = bench.tell(asks(2, NEXT))
    assert status(commands) == (0, 0, IN_PROGRESS)
    third, fourth = started(commands)
    bench.tell(EnvironmentReady(third))
    assert bench.dispatch().provisioned  # of the version that the alias has left
    assert not bench.dispatch(NEXT).provisioned
    commands = bench.tell(EnvironmentReady(fourth))
    assert status(commands) == (2, 2, READY)
    assert stopped(commands) == [1]
    assert bench.dispatch(NEXT).provisioned
    assert bench.scheduler.statistics().accounts[0].provisioned == 3  # one is still busy on the old version


def test_the_old_ones_go_at_once_if_there_is_no_room_for_both() -> None:
    bench = provisioned(2, environments_max=3)
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    commands = bench.tell(asks(2, NEXT))
    assert started(commands) == [3, 4]
    assert stopped(commands) == [1, 2]


def test_a_weighted_alias_shifts() -> None:
    bench = Bench()
    bench.tell(VersionSet(NEXT, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    come_up(bench, bench.tell(ProvisionedSet(ALIAS, ((VERSION, 3), (NEXT, 1)))))
    assert (books(bench).available, books(bench, NEXT).available) == (3, 1)
    commands = bench.tell(ProvisionedSet(ALIAS, ((VERSION, 1), (NEXT, 3))))
    assert stopped(commands) == []
    come_up(bench, commands)
    assert (books(bench).allocated, books(bench, NEXT).allocated) == (1, 3)


def test_another_allocation_takes_a_version_over_with_its_environments() -> None:
    bench = provisioned(2)
    assert bench.tell(ProvisionedSet(8, ((VERSION, 2),))) == [ProvisionedStatus(8, 2, 2, READY)]
    assert bench.tell(ProvisionedSet(ALIAS)) == []
    assert stopped(bench.tell(ProvisionedSet(8))) == [1, 2]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (ProvisionedSet(ALIAS), StopReason.UNPROVISIONED),
        (VersionRetired(VERSION), StopReason.RETIRED),
        (FunctionRemoved(FUNCTION), StopReason.RETIRED),
        (Drain(), StopReason.DRAIN),
    ],
)
def test_the_end(event: AnyEvent, reason: StopReason) -> None:
    bench = provisioned(2)
    starting = started(bench.tell(asks(3)))[0]
    busy = bench.dispatch()
    assert bench.tell(event) == [Stop(starting, reason), Stop(1, reason)]
    assert bench.end(busy) == [Complete(1, 2, Outcome.SUCCESS), Stop(2, reason)]
    assert bench.tell(asks(0)) == []
    assert bench.scheduler.statistics().accounts[0].provisioned == 0


# --- failures -------------------------------------------------------------------------------------------


def test_three_rounds_of_failing_init_and_it_gives_up_until_set_again() -> None:
    """ "init failing -> Status FAILED, FUNCTION_ERROR_INIT_FAILURE, counts 0"."""
    bench = Bench()
    starts = started(bench.tell(asks(2)))
    failed = ProvisionedReason.INIT_FAILED
    for number in range(1, FAILURES_MAX):
        # Both fail: one round.
        assert bench.tell(InitFailed(starts[0]))[0] == Stop(starts[0], StopReason.FAILED)
        assert started(bench.tell(InitFailed(starts[1]))) == []
        assert bench.tick((BACK_OFF_NS << (number - 1)) - 1) == []
        starts = started(bench.tick(1))
        assert len(starts) == 2
    assert bench.tell(InitFailed(starts[0])) == [
        Stop(starts[0], StopReason.FAILED),
        Stop(starts[1], StopReason.FAILED),
        ProvisionedStatus(ALIAS, 0, 0, FAILED, failed),
    ]
    assert started(bench.tick(10 * BACK_OFF_MAX_NS)) == []
    assert status(come_up(bench, bench.tell(asks(1)))[-1:]) == (1, 1, READY)


def test_what_has_been_ready_is_tried_for_ever() -> None:
    bench = provisioned(1)
    bench.end(bench.dispatch())
    (start,) = started(bench.tell(EnvironmentDied(1)))
    commands: list[AnyCommand] = []
    for _ in range(10):
        commands += bench.tell(InitFailed(start))
        (start,) = started(bench.tick(BACK_OFF_MAX_NS))
    states = [command.state for command in commands if isinstance(command, ProvisionedStatus)]
    assert states == [READY, FAILED]
    assert status(bench.tell(EnvironmentReady(start))) == (1, 1, READY)


@pytest.mark.parametrize("heard", [True, False])
def test_a_start_that_dies_or_is_never_heard_of_backs_off(heard: bool) -> None:
    bench = Bench()
    bench.tell(asks(1))
    commands = bench.tell(EnvironmentDied(1)) if heard else bench.tick(START_LIMIT_NS)
    reason = ProvisionedReason.ENVIRONMENT_LOST if heard else ProvisionedReason.INIT_FAILED
    assert commands[-1] == ProvisionedStatus(ALIAS, 0, 0, IN_PROGRESS, reason)
    assert started(commands) == []
    assert started(bench.tick(BACK_OFF_NS)) == [2]


def test_without_room_what_there_is_serves_and_it_is_tried_again() -> None:
    bench = Bench(environments_max=2)
    commands = come_up(bench, bench.tell(asks(3)))
    assert commands[-1] == ProvisionedStatus(ALIAS, 2, 2, IN_PROGRESS, ProvisionedReason.NO_ROOM)
    assert bench.tick(ROOM_RETRY_NS) == []
    assert status(come_up(bench, bench.tell(WorkerJoined(WORKER, 1_000, 3)))[-1:]) == (3, 3, READY)


def test_idle_on_demand_ones_make_room() -> None:
    bench = Bench(environments_max=1)
    bench.idle(1)
    assert bench.tell(asks(1)) == [Stop(1, StopReason.ROOM), Start(2, WORKER, VERSION, PROVISIONED)]
