"""The simulator: against hand-made cases, and against a slow model of the same rules that shares no code with it."""

from __future__ import annotations

import io
import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.model.invocation import ThrottleReason
from lambent.model.limits import NS_PER_S
from lambent.plan.profiles import AWS, CLASSIC, CURRENT, Profile
from lambent.plan.simulator import Simulation
from lambent.plan.workload import Arrival, PlannedFunction, constant, generated, steady

S = NS_PER_S


def play(
    arrivals: list[tuple[float, float, float]],
    profile: Profile = CURRENT,
    function: PlannedFunction | None = None,
    account: int = 1_000,
) -> tuple[Simulation, list[tuple[str, str]]]:
    """Arrival, duration, Init in seconds; back come the simulation and (environment, cold) of each request."""
    out = io.StringIO()
    simulation = Simulation([function or PlannedFunction("f")], profile, account_concurrency=account, assignments=out)
    simulation.run((int(a * S), int(d * S), int(i * S), 0) for a, d, i in arrivals)
    lines = [line.split(",") for line in out.getvalue().splitlines()]
    return simulation, [(environment, cold) for _, environment, cold in lines]


def test_requests_apart_share_an_environment_and_together_do_not() -> None:
    simulation, served = play([(0, 1, 0), (2, 1, 0), (2.5, 1, 0), (10, 1, 0)])
    assert served == [("1", "1"), ("1", "0"), ("2", "1"), ("2", "0")]
    assert simulation.environments_started == simulation.cold_starts == 2
    assert simulation.busy_measured.peak == 2
    # 4 s of work between 0 and 11 s.
    assert simulation.busy_measured.mean() == pytest.approx(4 / 11)


def test_an_environment_that_ends_serves_who_arrives_at_that_instant() -> None:
    _, served = play([(0, 1, 0), (1, 1, 0)])
    assert served == [("1", "1"), ("1", "0")]


def test_init_is_part_of_a_cold_start() -> None:
    simulation, served = play([(0, 1, 0.5), (1.25, 1, 0.5), (9, 1, 0.5)])
    assert served == [("1", "1"), ("2", "1"), ("2", "0")]
    assert simulation.latency.high == 1.5 * S
    assert simulation.counts[0].billed_ms == 4_000
    assert simulation.counts[0].init_billed_ms == 1_000


def test_idle_environments_end_at_their_time() -> None:
    simulation, served = play([(0, 1, 0), (600.9, 1, 0), (1_201.9, 1, 0)])
    assert [cold for _, cold in served] == ["1", "0", "1"]
    # The first one lived until 1201.9, the moment when the second was needed.
    assert simulation.environments_measured.peak == 1
    assert simulation.environments_measured.mean() == pytest.approx(1)


def test_a_timeout_cuts_off_and_the_next_request_pays_for_init() -> None:
    function = PlannedFunction("f", timeout_ns=3 * S)
    simulation, served = play([(0, 100, 0.5), (5, 1, 0.5), (10, 1, 0.5)], function=function)
    assert simulation.timeouts == 1
    assert [environment for environment, _ in served] == ["1", "1", "1"]
    assert simulation.environments_started == simulation.cold_starts == 1
    assert simulation.latency.high == 3.5 * S
    # Init and 3 s; Init again and 1 s; 1 s.
    assert simulation.busy_measured.integral() == (3.5 + 1.5 + 1) * S


def test_an_init_that_is_too_long_is_tried_again_inside_the_invoke() -> None:
    simulation, _ = play([(0, 1, 11)])
    assert simulation.latency.high == (10 + 11 + 1) * S
    assert simulation.cold_starts == 1
    assert simulation.timeouts == 0


def test_reserved_concurrency_throttles() -> None:
    simulation, served = play([(0, 1, 0), (0.1, 1, 0), (0.2, 1, 0)], function=PlannedFunction("f", reserved=2))
    assert served == [("1", "1"), ("2", "1"), ("", "0")]
    assert simulation.throttles == {ThrottleReason.RESERVED_CONCURRENCY: 1}
    assert simulation.invocations == 3


def test_scaling_rates() -> None:
    burst = [(0.0, 5.0, 0.0)] * 4_000
    now, _ = play(burst, account=10_000)
    assert now.environments_started == 1_000
    classic, _ = play(burst, CLASSIC, account=10_000)
    assert classic.environments_started == 3_000


def test_the_aws_profile() -> None:
    """Lone environments go after 640 s, spare ones live on, and none gets older than 7,380 s."""
    _, served = play([(0, 1, 0), (640.5, 1, 0), (1_282, 1, 0)], AWS)
    assert [cold for _, cold in served] == ["1", "0", "1"]
    # Two at once, then one at a time: after 900 s the spare one is still there when two are needed again.
    pair = [(0.0, 1.0, 0.0), (0.5, 1.0, 0.0)]
    one = [(float(t), 1.0, 0.0) for t in range(300, 900, 300)]
    _, served = play([*pair, *one, (900.0, 1.0, 0.0), (900.5, 1.0, 0.0)], AWS)
    assert [cold for _, cold in served] == ["1", "1", "0", "0", "0", "0"]
    _, served = play([(float(t), 1.0, 0.0) for t in range(0, 7_500, 100)], AWS)
    assert [cold for _, cold in served].count("1") == 2
    assert served[74] == ("2", "1")


def test_the_aws_profile_ends_a_busy_environment_after_its_request() -> None:
    simulation, served = play(
        [*[(float(t), 1.0, 0.0) for t in range(0, 7_300, 100)], (7_379.5, 1, 0), (7_390, 1, 0)], AWS
    )
    assert served[-2:] == [("1", "0"), ("2", "1")]
    assert simulation.environments_measured.peak == 1


def test_time_stands_still_at_the_horizon() -> None:
    simulation = Simulation([PlannedFunction("f")])
    simulation.run(iter([(0, 10 * S, 0, 0), (2 * S, 100 * S, 0, 0)]), 4 * S)
    assert simulation.busy_measured.mean() == pytest.approx(1.5)
    assert simulation.end_ns == 4 * S
    # Both ran to their ends all the same.
    assert simulation.latency.count == 2
    assert simulation.busy.level == 0


def test_the_timeline_adds_up() -> None:
    arrivals = list(generated(steady(50), 200, constant(0.3), 0, poisson=True, rng=random.Random(3)))
    simulation = Simulation([PlannedFunction("f", reserved=18)])
    simulation.run(iter(arrivals), 200 * S)
    bins = simulation.timeline_measured.bins
    assert sum(each.requests for each in bins) == simulation.invocations == len(arrivals)
    assert sum(each.throttled for each in bins) == simulation.throttled > 0
    assert sum(each.cold for each in bins) == simulation.cold_starts
    assert sum(each.busy_ns for each in bins) == simulation.busy_measured.integral()
    assert sum(each.environments_ns for each in bins) == simulation.environments_measured.integral()
    assert max(each.busy_peak for each in bins) == simulation.busy_measured.peak == 18


def test_memory_does_not_grow_with_the_number_of_invocations() -> None:
    def peak_bytes(seconds: int) -> int:
        simulation = Simulation([PlannedFunction("f")])
        stream = generated(steady(200), seconds, constant(0.05), 0, poisson=True, rng=random.Random(5))
        tracemalloc.start()
        simulation.run(stream, seconds * S)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak_bytes(400) < peak_bytes(40) + 65_536


def test_speed() -> None:
    """150,000 invocations a second are promised; a machine that is busy with other tests may do a third."""
    simulation = Simulation([PlannedFunction("f")])
    stream = generated(steady(500), 200, constant(0.1), 0, poisson=True, rng=random.Random(5))
    begun_s = time.process_time()
    simulation.run(stream, 200 * S)
    assert simulation.invocations / (time.process_time() - begun_s) > 50_000


# --- the slow model -------------------------------------------------------------------------------------


def slow_model(arrivals: list[Arrival], idle_ns: int, limit: int) -> list[tuple[str, str]]:
    """Most recently used first, one request at a time, idle for idle_ns at most, `limit` in flight: by brute force."""
    ends: dict[int, int] = {}  # environment: when its last request ended, or will
    served = []
    started = 0
    for now_ns, duration_ns, init_ns, _ in arrivals:
        if sum(end > now_ns for end in ends.values()) >= limit:
            served.append(("", "0"))
            continue
        idle = [(end, number) for number, end in ends.items() if end <= now_ns < end + idle_ns]
        if idle:
            last = max(end for end, _ in idle)
            chosen, cold_ns = max(number for end, number in idle if end == last), 0
            served.append((str(chosen), "0"))
        else:
            started += 1
            chosen, cold_ns = started, init_ns
            served.append((str(chosen), "1"))
        ends[chosen] = now_ns + cold_ns + duration_ns
    return served


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4 * S), st.integers(1, 5 * S), st.integers(0, 2 * S)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(1, 8),
)
def test_agrees_with_the_slow_model(gaps: list[tuple[int, int, int]], idle_s: int, limit: int) -> None:
    now_ns, arrivals = 0, []
    for number, (gap_ns, duration_ns, init_ns) in enumerate(gaps):
        # Ends of two requests never fall on one nanosecond, where the order is nobody's promise.
        now_ns += gap_ns // 1_000 * 1_000
        arrivals.append((now_ns, duration_ns // 1_000 * 1_000 + number + 1, init_ns // 1_000 * 1_000, 0))
    out = io.StringIO()
    simulation = Simulation([PlannedFunction("f", reserved=limit)], CURRENT.with_idle(idle_s * S), assignments=out)
    simulation.run(iter(arrivals))
    lines = [line.split(",") for line in out.getvalue().splitlines()]
    served = [(environment, cold) for _, environment, cold in lines]
    assert served == slow_model(arrivals, idle_s * S, limit)
    assert simulation.cold_starts == sum(cold == "1" for _, cold in served)
    assert simulation.throttled == sum(environment == "" for environment, _ in served)
    worked_ns = sum(
        duration_ns + (init_ns if cold == "1" else 0)
        for (_, duration_ns, init_ns, _), (environment, cold) in zip(arrivals, served, strict=True)
        if environment
    )
    assert simulation.busy_measured.integral() == worked_ns


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, S // 7, S, 40 * S, 300 * S, 641 * S, 1_001 * S, 7_400 * S]),
            st.sampled_from([0, 1, S // 3, 2 * S, 3 * S, 10 * S, 900 * S, 5_000 * S]),
            st.sampled_from([0, 1, S // 2, 9 * S, 10 * S, 30 * S]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=80,
    ),
    st.sampled_from([AWS, CURRENT, CLASSIC, AWS.with_idle(0), CURRENT.with_idle(0), CURRENT.with_idle(1)]),
    st.sampled_from([S, 3 * S, 900 * S]),
    st.sampled_from([1, 3, 100]),
)
def test_whatever_happens_the_sums_are_right(
    steps: list[tuple[int, int, int, int]], profile: Profile, timeout_ns: int, account: int
) -> None:
    """Timeouts, Inits beyond their limit, lifetimes and limits, at round times so that they fall together."""
    now_ns, arrivals = 0, []
    for gap_ns, duration_ns, init_ns, index in steps:
        now_ns += gap_ns
        arrivals.append((now_ns, duration_ns, init_ns, index))
    functions = [
        PlannedFunction(name, reserved=reserved, timeout_ns=timeout_ns)
        for name, reserved in zip("abc", (None, 1, 0), strict=True)
    ]
    out = io.StringIO()
    simulation = Simulation(functions, profile, account_concurrency=account, assignments=out)
    simulation.run(iter(arrivals))
    lines = [line.split(",") for line in out.getvalue().splitlines()]
    assert [round(float(line[0]) * S) for line in lines] == [arrival[0] for arrival in arrivals]
    assert simulation.invocations == len(arrivals)
    assert simulation.throttled == sum(line[1] == "" for line in lines)
    assert simulation.cold_starts == simulation.environments_started == sum(line[2] == "1" for line in lines)
    assert simulation.latency.count == simulation.invocations - simulation.throttled
    assert simulation.busy_measured.peak <= account
    # All time in flight is somebody's latency.
    assert simulation.busy_measured.integral() == sum(total for _, total in simulation.latency.cells.values())
    assert simulation.busy_measured.integral() <= simulation.environments_measured.integral()
    assert simulation.busy.level == 0
    assert simulation.timeouts <= simulation.latency.count
    assert sum(each.requests for each in simulation.timeline_measured.bins) == len(arrivals)
