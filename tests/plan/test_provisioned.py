"""Provisioned concurrency, SnapStart and the room of workers in a plan."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.model.invocation import ThrottleReason
from lambent.model.limits import NS_PER_S
from lambent.plan.formulas import erlang_b
from lambent.plan.planner import Request, simulate
from lambent.plan.profiles import AWS, CURRENT, Profile
from lambent.plan.provisioning import DAY_S, Provisioning, Tracker, parse_schedule
from lambent.plan.simulator import Simulation
from lambent.plan.workload import PlannedFunction, constant, generated, steady

S = NS_PER_S


def play(
    arrivals: list[tuple[float, float, float]], profile: Profile = CURRENT, account: int = 1_000, **function: object
) -> tuple[Simulation, list[tuple[str, str]]]:
    out = io.StringIO()
    planned = PlannedFunction("f", **function)  # type: ignore[arg-type]
    simulation = Simulation([planned], profile, account_concurrency=account, assignments=out)
    simulation.run((int(a * S), int(d * S), int(i * S), 0) for a, d, i in arrivals)
    return simulation, [
        (environment, cold) for _, environment, cold in (line.split(",") for line in out.getvalue().splitlines())
    ]


@pytest.mark.parametrize("profile", [CURRENT, AWS])
def test_it_is_there_before_the_first_request_and_the_rest_spills_over(profile: Profile) -> None:
    arrivals = [(0.0, 1.0, 0.5), (0.1, 1.0, 0.5), (0.2, 1.0, 0.5), (5.0, 1.0, 0.5)]
    simulation, served = play(arrivals, profile, provisioning=Provisioning(2), init_ns=S // 2)
    assert [cold for _, cold in served] == ["0", "0", "1", "0"]
    assert {served[0][0], served[1][0]} == {"1", "2"}
    assert served[2][0] == "3"
    assert simulation.environments_started == 3
    assert simulation.cold_starts == 1
    counts = simulation.counts[0]
    assert (counts.provisioned, counts.spillovers) == (3, 1)
    # Both Inits and three requests of a second; the one on demand with its Init.
    assert counts.provisioned_billed_ms == 2 * 500 + 3_000
    assert counts.billed_ms == 1_500
    assert counts.wanted_ns == 2 * 6 * S
    assert simulation.latency.high == 1.5 * S
    assert simulation.measured.provisioned.mean() == pytest.approx(2)
    assert simulation.measured.provisioned_busy.integral() == 3 * S


def test_five_thousand_are_there_too() -> None:
    """More than may come up at once, and more than a recursion could carry."""
    simulation, served = play([(0, 1, 0)], account=10_000, provisioning=Provisioning(5_000))
    assert served[0][1] == "0"
    assert simulation.environments_started == 5_000


def test_it_is_taken_out_of_the_account() -> None:
    simulation, _ = play([(0.0, 1.0, 0.0)] * 12, account=10, provisioning=Provisioning(4))
    assert simulation.busy_measured.peak == 10
    assert simulation.throttles == {ThrottleReason.CONCURRENCY: 2}


def test_spillovers_are_erlangs() -> None:
    """An environment on demand never lacks here, so the share that finds all provisioned ones busy is Erlang B."""
    shares, expected = [], erlang_b(10, 8)
    for seed in range(6):
        summary = simulate(Request(rate=20, duration_s=0.5, provisioned=("8",), seconds=1_500, seed=seed))
        assert summary.provisioned is not None
        shares.append(summary.provisioned.spillover_rate)
        assert summary.provisioned.utilisation == pytest.approx(10 * (1 - expected) / 8, rel=0.03)
    assert sum(shares) / 6 == pytest.approx(expected, rel=0.03)


def test_a_schedule() -> None:
    schedule = parse_schedule("20:00=5, 08:00=50")
    assert schedule == ((28_800, 50), (72_000, 5))
    plan = Provisioning(None, schedule)
    # Before the first entry of the day, the last one of the day before holds.
    assert [plan.wanted(second) for second in (0, 28_799, 28_800, 72_000, DAY_S + 28_800)] == [5, 5, 50, 5, 50]
    assert Provisioning(2, schedule).wanted(0) == 2
    assert Provisioning(2, schedule).wanted(DAY_S) == 5
    assert [plan.next_change_s(second) for second in (0, 28_800, 72_000)] == [28_800, 72_000, DAY_S + 28_800]
    for bad in ("8=1", "24:00=1", "08:00=1,08:00=2", "", "08:00=-1"):
        with pytest.raises(ValueError):
            parse_schedule(bad)


def test_a_schedule_in_a_plan() -> None:
    request = Request(rate=1, duration_s=1, seconds=3_600, provisioned_schedule="00:10=10,00:40=0", provisioned=("2",))
    summary = simulate(request)
    found = summary.provisioned
    assert found is not None
    assert found.peak == 10
    assert found.mean == pytest.approx((600 * 2 + 1_800 * 10) / 3_600)
    assert found.kept_gb_s == pytest.approx((600 * 2 + 1_800 * 10) / 8)
    by_time = {point["start_s"]: point["provisioned_wanted"] for point in summary.timeline}
    assert (by_time[0], by_time[1_200], by_time[3_000]) == (2, 10, 0)


def test_target_tracking_follows_the_load_and_comes_back() -> None:
    request = Request(
        rate=5, rate_to=40, shape="spike", spike_at_s=600, spike_s=1_200, duration_s=1, seconds=5_400,
        provisioned_target=0.7, provisioned_min=2, provisioned_max=100,
    )  # fmt: skip
    summary = simulate(request)
    assert summary.provisioned is not None
    points = summary.timeline
    wanted = {
        second: next(p["provisioned_wanted"] for p in points if p["end_s"] > second) for second in (590, 1_200, 5_390)
    }
    # Some minutes later there is enough for 40 in flight at 70 %; a quarter of an hour after the end it is given back.
    assert wanted[590] < 15
    assert 50 <= wanted[1_200] <= 75
    assert wanted[5_390] < 15
    assert summary.provisioned.peak <= 75


def test_no_traffic_scales_nothing_in() -> None:
    tracker = Tracker(Provisioning(target=0.5, minimum=1, maximum=10))
    minutes = [0.1] * 14 + [None] + [0.1] * 14
    current = 8
    for number, utilisation in enumerate(minutes):
        current = tracker.minute(60 * number, current, 0, utilisation)
    assert current == 8
    assert tracker.minute(60 * len(minutes), current, 0, 0.1) == 2
    assert tracker.minute(60 * len(minutes) + 60, 2, 5, None) == 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.floats(0, 3), max_size=80), st.integers(0, 5), st.integers(5, 50))
def test_target_tracking_stays_within_its_bounds(minutes: list[float | None], low: int, high: int) -> None:
    tracker = Tracker(Provisioning(target=0.7, minimum=low, maximum=high))
    current = low
    for number, utilisation in enumerate(minutes):
        current = tracker.minute(60 * number, current, low, utilisation)
        assert low <= current <= high


def test_snap_start() -> None:
    simulation, served = play([(0, 1, 5), (3, 1, 5)], snap_start=True, restore_ns=S // 4)
    assert [cold for _, cold in served] == ["1", "0"]
    assert simulation.latency.high == 1.25 * S
    assert simulation.counts[0].restores == 1
    late, _ = play([(0, 1, 0), (20, 1, 0)], snap_start=True, restore_ns=11 * S)
    assert late.restore_timeouts == 2
    assert late.cold_starts == 0
    summary = simulate(Request(rate=1, duration_s=1, snap_start=True, restore_s=0.2, init_s=3, memory_mib=1_024))
    assert summary.cost.snap_start_restore_usd == pytest.approx(summary.environments_started * 0.0001397998)
    assert summary.latency_ms["max"] == pytest.approx(1_200)


def test_workers_with_an_end() -> None:
    """Room for 4 of 512 MB: a fifth at once is refused, and another function's idle ones go for it."""
    functions = [PlannedFunction("a", 512), PlannedFunction("b", 512)]
    simulation = Simulation(functions, memory_mib=2_048)
    at_once = [(0, S, 0, 0)] * 5
    simulation.run(iter([*at_once, *[(2 * S, S, 0, 1)] * 3]))
    assert simulation.throttles == {ThrottleReason.CONCURRENCY: 1}
    assert simulation.throttles_no_room == 1
    assert simulation.evictions == 3
    assert simulation.environments_measured.peak == 4
    summary = simulate(Request(rate=50, duration_s=1, memory_mib=1_024, worker_memory_mib=5_120, memory_overcommit=2))
    assert summary.peak_concurrency == 10
    assert summary.throttles_no_room == summary.throttles > 0


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, S // 7, S, 40 * S, 70 * S, 301 * S, 641 * S]),
            st.sampled_from([0, 1, S // 3, 2 * S, 3 * S, 10 * S]),
            st.sampled_from([0, 1, S // 2, 9 * S, 10 * S]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([AWS, CURRENT, CURRENT.with_idle(1)]),
    st.sampled_from([4, 9, 100]),
    st.sampled_from([1 << 40, 1_024]),
)
def test_whatever_happens_the_sums_are_right(
    steps: list[tuple[int, int, int, int]], profile: Profile, account: int, memory_mib: int
) -> None:
    now_ns, arrivals = 0, []
    for gap_ns, duration_ns, init_ns, index in steps:
        now_ns += gap_ns
        arrivals.append((now_ns, duration_ns, init_ns, index))
    functions = [
        PlannedFunction("a", timeout_ns=3 * S, provisioning=Provisioning(2), init_ns=S),
        PlannedFunction("b", reserved=3, timeout_ns=3 * S, provisioning=Provisioning(1, ((60, 3), (300, 0)))),
        PlannedFunction("c", timeout_ns=3 * S, provisioning=Provisioning(target=0.5, minimum=1, maximum=3)),
        PlannedFunction("d", timeout_ns=3 * S, snap_start=True, restore_ns=S // 3),
    ]
    simulation = Simulation(functions, profile, account_concurrency=account, memory_mib=memory_mib)
    simulation.run(iter(arrivals))
    assert simulation.invocations == len(arrivals) == sum(counts.requests for counts in simulation.counts)
    assert simulation.latency.count == simulation.invocations - simulation.throttled
    assert simulation.busy_measured.integral() == sum(total for _, total in simulation.latency.cells.values())
    assert simulation.busy.level == simulation.initialising.level == simulation.provisioned_busy.level == 0
    assert all(counts.provisioned_busy == 0 for counts in simulation.counts)
    measured = simulation.measured
    assert measured.provisioned_busy.integral() <= measured.provisioned.integral()
    assert measured.provisioned.integral() <= measured.environments.integral()
    assert simulation.busy_measured.peak <= account
    bins = simulation.timeline_measured.bins
    assert sum(each.requests for each in bins) == len(arrivals)
    assert sum(each.spillovers for each in bins) == sum(counts.spillovers for counts in simulation.counts)
    for name in ("busy", "environments", "provisioned", "provisioned_busy", "wanted"):
        assert sum(getattr(each, f"{name}_ns") for each in bins) == getattr(measured, name).integral()
    assert measured.wanted.integral() == sum(counts.wanted_ns for counts in simulation.counts)


def test_the_horizon_leaves_nothing_open() -> None:
    simulation = Simulation([PlannedFunction("f", provisioning=Provisioning(5))])
    stream = generated(steady(20), 60, constant(0.4), 0, poisson=True, rng=random.Random(2))
    simulation.run(stream, 60 * S)
    assert simulation.end_ns - simulation.start_ns == 60 * S
    assert simulation.counts[0].wanted_ns == 5 * 60 * S
