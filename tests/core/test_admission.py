"""Who is let in: drain, versions, concurrency, request rate, scaling rate, and counts that follow reservations."""

from __future__ import annotations

import pytest

from lambent.core.events import (
    AccountSet,
    Complete,
    Dispatch,
    Drain,
    EnvironmentDied,
    EnvironmentReady,
    FunctionRemoved,
    FunctionSet,
    Reject,
    RejectReason,
    Start,
    Throttle,
    VersionRetired,
    VersionSet,
    WorkerJoined,
)
from lambent.core.scheduler import ScalingProfile
from lambent.model.invocation import Outcome, ThrottleReason
from lambent.model.limits import SCALING_BURST_ENVIRONMENTS, SCALING_ENVIRONMENTS_PER_S

from .helpers import ACCOUNT, FUNCTION, INIT_TIMEOUT_NS, TIMEOUT_NS, VERSION, WORKER, Bench, S

OTHER, OTHER_VERSION = 11, 101


def with_other(bench: Bench, reserved: int | None = None) -> Bench:
    bench.tell(FunctionSet(OTHER, ACCOUNT, reserved))
    bench.tell(VersionSet(OTHER_VERSION, OTHER, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    return bench


def test_draining_comes_before_everything() -> None:
    bench = Bench(concurrency=0)
    bench.tell(Drain())
    assert bench.invoke() == [Reject(1, RejectReason.DRAINING)]
    assert bench.invoke(version=999) == [Reject(2, RejectReason.DRAINING)]


def test_unknown_and_retired_versions() -> None:
    bench = Bench()
    assert bench.invoke(version=999) == [Reject(1, RejectReason.UNKNOWN_VERSION)]
    bench.tell(VersionRetired(VERSION))
    assert bench.invoke() == [Reject(2, RejectReason.UNKNOWN_VERSION)]


def test_account_limit_counts_from_admission_to_complete() -> None:
    bench = Bench(concurrency=2)
    first, second = bench.start(), bench.start()
    refused = Throttle(3, ThrottleReason.CONCURRENCY)
    assert bench.invoke() == [refused]
    dispatched = bench.one(EnvironmentReady(first.environment))
    assert isinstance(dispatched, Dispatch)
    assert bench.invoke() == [Throttle(4, ThrottleReason.CONCURRENCY)]
    bench.end(dispatched)
    assert isinstance(bench.one_invoke(), Dispatch)
    assert second.environment != first.environment
    assert bench.in_flight() == 2


def test_reserved_is_a_ceiling_of_its_own() -> None:
    bench = with_other(Bench(concurrency=10, reserved=1))
    bench.start()
    assert bench.invoke() == [Throttle(2, ThrottleReason.RESERVED_CONCURRENCY)]
    for _ in range(9):
        bench.start(OTHER_VERSION)
    assert bench.invoke(OTHER_VERSION) == [Throttle(12, ThrottleReason.CONCURRENCY)]


def test_reserved_is_a_floor() -> None:
    bench = with_other(Bench(concurrency=3), reserved=2)
    bench.start()
    assert bench.invoke() == [Throttle(2, ThrottleReason.CONCURRENCY)]
    bench.start(OTHER_VERSION)
    bench.start(OTHER_VERSION)
    assert bench.in_flight() == 3


def test_reserved_zero_stops_all() -> None:
    assert Bench(reserved=0).invoke() == [Throttle(1, ThrottleReason.RESERVED_CONCURRENCY)]


def test_limit_lowered_below_what_runs_cuts_nothing_off() -> None:
    bench = Bench(concurrency=5)
    running = [bench.dispatch() for _ in range(4)]
    bench.tell(AccountSet(ACCOUNT, 2))
    assert bench.invoke() == [Throttle(5, ThrottleReason.CONCURRENCY)]
    for dispatch in running[:2]:
        bench.end(dispatch)
    assert bench.invoke() == [Throttle(6, ThrottleReason.CONCURRENCY)]
    bench.end(running[2])
    assert isinstance(bench.one_invoke(), Dispatch)


def test_lowered_below_what_is_reserved() -> None:
    bench = with_other(Bench(concurrency=5, reserved=4))
    bench.tell(AccountSet(ACCOUNT, 3))
    assert bench.invoke(OTHER_VERSION) == [Throttle(1, ThrottleReason.CONCURRENCY)]
    assert isinstance(bench.one_invoke(), Start)


@pytest.mark.parametrize("before", [None, 0, 1, 5])
@pytest.mark.parametrize("after", [None, 0, 1, 5])
def test_requests_in_flight_move_with_their_function(before: int | None, after: int | None) -> None:
    bench = with_other(Bench(concurrency=50))
    running = [bench.dispatch() for _ in range(3)]
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, before))
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, after))
    bench.start(OTHER_VERSION)
    account = bench.scheduler.statistics().accounts[0]
    assert account.in_flight == 4
    assert account.reserved == (after or 0)
    assert account.unreserved_in_flight == (4 if after is None else 1)
    refused = after is not None and after <= 3
    assert isinstance(bench.one_invoke(), Throttle if refused else Start)
    for dispatch in running:
        bench.end(dispatch)
    assert bench.scheduler.statistics().accounts[0].in_flight == (1 if refused else 2)


def test_removed_function_gives_its_reservation_back_and_counts_as_unreserved() -> None:
    bench = with_other(Bench(concurrency=3, reserved=2))
    running = bench.dispatch()
    bench.tell(FunctionRemoved(FUNCTION))
    account = bench.scheduler.statistics().accounts[0]
    assert (account.reserved, account.in_flight, account.unreserved_in_flight) == (0, 1, 1)
    assert bench.invoke() == [Reject(2, RejectReason.UNKNOWN_VERSION)]
    bench.start(OTHER_VERSION)
    bench.start(OTHER_VERSION)
    assert bench.invoke(OTHER_VERSION) == [Throttle(5, ThrottleReason.CONCURRENCY)]
    bench.end(running)
    bench.start(OTHER_VERSION)
    assert bench.tell(FunctionRemoved(FUNCTION)) == []


def test_a_function_id_may_come_back() -> None:
    bench = Bench(concurrency=10, reserved=2)
    running = bench.dispatch()
    bench.tell(FunctionRemoved(FUNCTION))
    bench.tell(FunctionSet(FUNCTION, ACCOUNT, 1))
    bench.tell(VersionSet(VERSION, FUNCTION, 128, TIMEOUT_NS, INIT_TIMEOUT_NS))
    bench.start()
    assert bench.invoke() == [Throttle(3, ThrottleReason.RESERVED_CONCURRENCY)]
    bench.end(running)
    assert bench.scheduler.statistics().accounts[0].unreserved_in_flight == 0


# --- request rate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reserved", "reason"), [(None, ThrottleReason.RATE), (2, ThrottleReason.RESERVED_RATE)])
def test_ten_requests_a_second_for_each_unit(reserved: int | None, reason: ThrottleReason) -> None:
    bench = Bench(concurrency=2 if reserved is None else 100, reserved=reserved)
    for _ in range(20):
        bench.end(bench.dispatch())
    assert bench.one_invoke() == Throttle(21, reason)
    bench.now_ns += S // 20 - 1
    assert bench.one_invoke() == Throttle(22, reason)
    bench.now_ns += 1
    bench.end(bench.dispatch())
    assert bench.one_invoke() == Throttle(24, reason)


def test_asynchronous_requests_have_no_rate() -> None:
    bench = Bench(concurrency=1)
    for _ in range(50):
        command = bench.invoke(asynchronous=True)[-1]
        if isinstance(command, Start):
            command = bench.one(EnvironmentReady(command.environment))
        assert isinstance(command, Dispatch)
        bench.end(command)
    bench.dispatch()  # and they have used up nothing
    assert bench.invoke(asynchronous=True) == [Throttle(52, ThrottleReason.CONCURRENCY)]


def test_refusals_use_up_no_rate_tokens() -> None:
    bench = Bench(concurrency=1)
    running = bench.dispatch()
    for _ in range(100):
        assert isinstance(bench.one_invoke(), Throttle)
    bench.end(running)
    for _ in range(9):
        bench.end(bench.dispatch())
    assert bench.invoke()[0] == Throttle(111, ThrottleReason.RATE)


# --- scaling rate ---------------------------------------------------------------------------------------


def test_current_profile_scales_each_function_by_itself() -> None:
    bench = with_other(Bench(concurrency=10_000))
    for _ in range(SCALING_BURST_ENVIRONMENTS):
        bench.start()
    refused = bench.one_invoke()
    assert refused == Throttle(bench.requests, ThrottleReason.CONCURRENCY)
    bench.start(OTHER_VERSION)
    bench.now_ns += S // SCALING_ENVIRONMENTS_PER_S
    bench.start()
    assert isinstance(bench.one_invoke(), Throttle)


def test_classic_profile_scales_the_region() -> None:
    bench = with_other(Bench(concurrency=10_000, profile=ScalingProfile.CLASSIC, classic_burst=3))
    for version in (VERSION, OTHER_VERSION, VERSION):
        bench.start(version)
    for version in (VERSION, OTHER_VERSION):
        assert bench.invoke(version) == [Throttle(bench.requests, ThrottleReason.CONCURRENCY)]
    bench.now_ns += 60 * S // 500
    bench.start(OTHER_VERSION)
    assert isinstance(bench.one_invoke(), Throttle)


def test_idle_environments_need_no_scaling_token() -> None:
    bench = Bench(profile=ScalingProfile.CLASSIC, classic_burst=1)
    for _ in range(20):
        bench.end(bench.dispatch())


def test_no_room_uses_up_no_tokens() -> None:
    bench = Bench(concurrency=10, environments_max=0, profile=ScalingProfile.CLASSIC, classic_burst=1)
    for _ in range(200):
        refused = Throttle(bench.requests + 1, ThrottleReason.CONCURRENCY, capacity=True)
        assert bench.invoke() == [refused]
    bench.tell(WorkerJoined(WORKER, 1_000, 10))
    assert bench.in_flight() == 0
    bench.start()


def test_placing_again_needs_no_scaling_token() -> None:
    bench = Bench(profile=ScalingProfile.CLASSIC, classic_burst=1)
    first = bench.start()
    again = bench.one(EnvironmentDied(first.environment))
    assert isinstance(again, Start)
    assert isinstance(bench.one_invoke(), Throttle)
    dispatch = bench.one(EnvironmentReady(again.environment))
    assert isinstance(dispatch, Dispatch)
    assert bench.end(dispatch) == [Complete(1, again.environment, Outcome.SUCCESS)]
