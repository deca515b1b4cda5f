"""The Azure Functions 2019 sample as one account: 500 functions, 3,037,902 invocations in 8 hours."""

from __future__ import annotations

import time

import pytest

from lambent.plan.page import page
from lambent.plan.planner import Request, simulate
from plan.shared import AZURE, needs_azure

pytestmark = needs_azure


def test_half_an_hour() -> None:
    summary = simulate(Request(azure=AZURE, seconds=1_800, init_s=0.25))
    assert summary.functions_count == 500
    assert 130_000 < summary.invocations < 250_000
    assert summary.throttles == 0
    # Durations through seven percentiles keep the load: 53.2 in flight on average over the 8 hours.
    assert summary.mean_concurrency == pytest.approx(53.2, rel=0.15)
    assert summary.environments_started == summary.cold_starts > 300


@pytest.mark.long
def test_all_of_it_in_thirty_seconds() -> None:
    begun_s = time.monotonic()
    request = Request(azure=AZURE, init_s=0.25)
    summary = simulate(request)
    report = page(request, summary)
    took_s = time.monotonic() - begun_s
    assert summary.invocations == 3_037_902
    assert summary.mean_concurrency == pytest.approx(53.2, rel=0.1)
    assert report.count("<svg") == 6
    assert took_s < 30
