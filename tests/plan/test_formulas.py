"""The formulas against values that others published."""

from __future__ import annotations

import math

import pytest

from lambent.plan.formulas import busy_percentile, concurrency, erlang_b, erlang_c, warm_pool


def test_rate_times_duration() -> None:
    assert concurrency(20, 0.1) == 2


@pytest.mark.parametrize(
    ("load", "servers", "blocked"),
    [
        (10, 10, 0.214582),
        (100, 110, 0.027463),
        (2016, 1000, 0.504455),
        (1000, 1000, 0.02481),
        (900, 1000, 5.92986e-05),
        (1.8144, 5, 0.026990),
    ],
)
def test_erlang_b_published(load: float, servers: int, blocked: float) -> None:
    assert erlang_b(load, servers) == pytest.approx(blocked, rel=1e-4)


def test_erlang_b_is_its_definition() -> None:
    for load in (0.1, 1.0, 7.5):
        for servers in range(12):
            terms = [load**k / math.factorial(k) for k in range(servers + 1)]
            assert erlang_b(load, servers) == pytest.approx(terms[-1] / sum(terms), rel=1e-12)


def test_erlang_b_edges() -> None:
    assert erlang_b(0, 5) == 0
    assert erlang_b(0, 0) == 1
    assert erlang_b(5, 0) == 1
    assert erlang_b(1, 100_000) == 0


def test_erlang_c_published() -> None:
    assert erlang_c(8, 10) == pytest.approx(0.40918, abs=5e-6)
    assert erlang_c(90, 100) == pytest.approx(0.21694, abs=5e-6)
    assert erlang_c(10, 10) == 1


def test_warm_pool_published() -> None:
    """The example in the README of the authors' own program."""
    pool = warm_pool(100, 2, 25, 600)
    assert pool.environments == pytest.approx(251.043927, abs=1e-6)
    assert pool.busy == pytest.approx(200.148828, abs=1e-6)
    assert pool.idle == pytest.approx(51.056869, abs=1e-6)
    assert pool.cold_share == pytest.approx(6.5e-05, abs=5e-7)
    assert pool.utilisation == pytest.approx(0.796622, abs=1e-6)
    assert pool.response_s == pytest.approx(2.001488, abs=1e-6)
    small = warm_pool(0.9, 1.991, 2.244, 600)
    assert small.environments == pytest.approx(7.60307, abs=1e-5)
    assert small.busy == pytest.approx(1.79217, abs=1e-5)
    assert small.cold_share == pytest.approx(0.00119, abs=5e-6)


def test_warm_pool_with_a_busy_function() -> None:
    """Where no environment ever dies the sums must not overflow."""
    pool = warm_pool(1_000, 1, 1.5, 3_600, 3_000)
    assert 1_000 < pool.environments < 1_300
    assert pool.cold_share < 1e-4


@pytest.mark.parametrize("load", [0.0, 0.3, 2.0, 57.5, 900.0])
def test_busy_percentile_is_the_poisson_quantile(load: float) -> None:
    for percent in (1, 50, 95, 99, 99.9):
        level = busy_percentile(load, percent)

        def below(top: int) -> float:
            return sum(
                math.exp(k * math.log(load) - load - math.lgamma(k + 1)) if load else float(k == 0)
                for k in range(top + 1)
            )

        assert below(level) >= percent / 100 - 1e-12
        assert level == 0 or below(level - 1) < percent / 100
