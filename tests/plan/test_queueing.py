"""The simulation against queueing theory, within the sampling error of the runs themselves."""

from __future__ import annotations

import math
import statistics

import pytest

from lambent.plan.formulas import erlang_b
from lambent.plan.planner import Request, simulate
from lambent.plan.summary import Summary

RUNS = 8
#: Two-sided quantile of Student's t for 7 degrees of freedom, one false alarm in 2,000.
STUDENT_T = 5.9


def after_filling(summary: Summary, fill_s: float) -> float:
    """Share of throttled requests, without the first seconds, when nobody was there yet."""
    points = [point for point in summary.timeline if point["start_s"] >= fill_s]
    return sum(point["throttles"] for point in points) / sum(point["requests"] for point in points)


def error_of_mean(values: list[float]) -> float:
    return STUDENT_T * statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("rate", "duration_s", "servers", "seconds", "variation"),
    [
        (10, 1, 10, 1_500, 0),
        (10, 1, 10, 1_500, 2),  # the shape of durations does not matter
        (50, 2, 110, 1_200, 0.5),
        (1_000, 2.016, 1_000, 80, 1),
        (0.9, 2.016, 5, 20_000, 1),
    ],
)
def test_erlang_b(rate: float, duration_s: float, servers: int, seconds: float, variation: float) -> None:
    shares = [
        after_filling(
            simulate(
                Request(
                    rate=rate, duration_s=duration_s, reserved=(str(servers),), seconds=seconds, seed=seed,
                    variation=variation, account_concurrency=2_000,
                )
            ),
            10 * duration_s,
        )
        for seed in range(RUNS)
    ]  # fmt: skip
    expected = erlang_b(rate * duration_s, servers)
    assert abs(statistics.mean(shares) - expected) <= error_of_mean(shares), (shares, expected)
    # And the error is small enough for this to say something.
    assert error_of_mean(shares) < 0.3 * expected


def test_littles_law() -> None:
    means = [
        simulate(Request(rate=20, duration_s=0.1, seconds=2_000, seed=seed)).mean_concurrency for seed in range(RUNS)
    ]
    assert abs(statistics.mean(means) - 2) <= error_of_mean(means)
    assert error_of_mean(means) < 0.05


def test_warm_environments_as_simfaas_found_them() -> None:
    """PEASS '21: 0.9 requests a second, 1.991 s warm, 2.244 s cold, idle for 600 s: 7.66 and 7.69 environments (their
    own half-width over 10 runs is 0.54 %), 0.14 % and 0.13 % cold. They pick the newest environment, the scheduler
    the most recently used one."""
    runs = [
        simulate(Request(rate=0.9, duration_s=1.991, variation=1, init_s=0.253, seconds=40_000, seed=seed))
        for seed in range(RUNS)
    ]
    environments = [run.mean_environments for run in runs]
    cold = [run.cold_start_rate for run in runs]
    assert abs(statistics.mean(environments) - 7.676) <= error_of_mean(environments) + 0.0054 * 7.676
    assert abs(statistics.mean(cold) - 0.00135) <= error_of_mean(cold) + 0.00005
    assert error_of_mean(environments) < 0.5
