"""Prices, rounding and the steps for large amounts."""

from __future__ import annotations

import pytest

from lambent.plan.cost import MONTH_S, USD_PER_GB_S, cost, duration_usd


def test_a_million_requests_of_100_ms_with_1_gb() -> None:
    found = cost(1_000_000, 100_000, 5_000, MONTH_S)
    assert found.requests_usd == pytest.approx(0.20)
    assert found.duration_usd == pytest.approx(1.66667)
    assert found.init_usd == pytest.approx(1.66667 / 20)
    assert found.total_usd == pytest.approx(1.86667)
    assert found.month_usd == pytest.approx(found.total_usd)


def test_arm_is_a_fifth_cheaper() -> None:
    assert cost(0, 1e6, 0, 1, "arm64").duration_usd == pytest.approx(13.3334)


def test_large_amounts_have_their_own_price() -> None:
    assert duration_usd(6e9) == pytest.approx(6e9 * 0.0000166667)
    assert duration_usd(16e9) == pytest.approx(6e9 * 0.0000166667 + 9e9 * 0.000015 + 1e9 * 0.0000133334)
    for steps in USD_PER_GB_S.values():
        assert [price for _, price in steps] == sorted((price for _, price in steps), reverse=True)


def test_nothing_costs_nothing() -> None:
    assert cost(0, 0, 0, 0).month_usd == 0
