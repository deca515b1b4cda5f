"""Prices, rounding and the steps for large amounts."""

from __future__ import annotations

import pytest

from lambent.plan.cost import MONTH_S, USD_PER_GB_S, Usage, cost, duration_usd


def test_a_million_requests_of_100_ms_with_1_gb() -> None:
    found = cost(Usage(1_000_000, 100_000, 5_000), MONTH_S)
    assert found.requests_usd == pytest.approx(0.20)
    assert found.duration_usd == pytest.approx(1.66667)
    assert found.init_usd == pytest.approx(1.66667 / 20)
    assert found.total_usd == pytest.approx(1.86667)
    assert found.month_usd == pytest.approx(found.total_usd)


def test_arm_is_a_fifth_cheaper() -> None:
    assert cost(Usage(gb_s=1e6), 1, "arm64").duration_usd == pytest.approx(13.3334)


def test_large_amounts_have_their_own_price() -> None:
    assert duration_usd(6e9) == pytest.approx(6e9 * 0.0000166667)
    assert duration_usd(16e9) == pytest.approx(6e9 * 0.0000166667 + 9e9 * 0.000015 + 1e9 * 0.0000133334)
    for steps in USD_PER_GB_S.values():
        assert [price for _, price in steps] == sorted((price for _, price in steps), reverse=True)


def test_nothing_costs_nothing() -> None:
    assert cost(Usage(), 0).month_usd == 0


def test_provisioned_concurrency() -> None:
    """AWS's own example: 100 environments of 1,536 MB for 2 hours, 1.2 million requests of 1 s."""
    found = cost(Usage(1_200_000, provisioned_kept_gb_s=1_080_000, provisioned_used_gb_s=1_800_000), 7_200)
    assert found.provisioned_kept_usd == pytest.approx(4.50, abs=0.005)
    assert found.provisioned_used_usd == pytest.approx(17.50, abs=0.005)
    assert found.duration_usd == 0
    assert found.total_usd == pytest.approx(4.50 + 17.50 + 0.24, abs=0.01)
    assert found.month_usd == pytest.approx(found.total_usd * 360)


def test_snap_start_keeps_its_cache_for_three_hours() -> None:
    found = cost(Usage(snap_start_gb=1, restored_gb=2_000), 60)
    assert found.snap_start_cache_usd == pytest.approx(3 * 3_600 * 0.0000015046)
    assert found.snap_start_restore_usd == pytest.approx(0.2795996)
    assert cost(Usage(snap_start_gb=1), 60).month_usd == pytest.approx(MONTH_S * 0.0000015046)
