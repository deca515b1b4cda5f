"""The recommended setting meets the goals, and one less does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambent.plan.planner import Request, simulate
from lambent.plan.recommend import Amount, Goals, recommend
from lambent.plan.workload import WorkloadError

REQUEST = Request(rate=20, duration_s=0.3, init_s=0.4, seconds=300)


@pytest.mark.parametrize("throttles", ["0", "<1%", "25"])
def test_the_smallest_reserved_concurrency(throttles: str) -> None:
    goals = Goals.parse(throttles, None, None)
    found = recommend(REQUEST, goals)
    assert found.best is not None
    assert found.best.reserved is not None

    def throttled(reserved: int) -> bool:
        summary = simulate(Request(rate=20, duration_s=0.3, init_s=0.4, seconds=300, reserved=(str(reserved),)))
        return not goals.throttles_met(summary)

    assert not throttled(found.best.reserved)
    assert throttled(found.best.reserved - 1)
    assert found.best in found.trials


def test_the_request_rate_counts() -> None:
    """100 requests a second of 10 ms: one in flight on average, but ten units are wanted for the rate."""
    found = recommend(Request(rate=100, duration_s=0.01, arrivals="constant", seconds=60), Goals.parse("0", None, None))
    assert found.best is not None
    assert found.best.reserved == 10


def test_a_longer_idle_time_for_fewer_cold_starts() -> None:
    sparse = Request(rate=1 / 500, duration_s=0.3, init_s=0.4, seconds=400_000)
    assert simulate(sparse).cold_start_rate > 0.2
    found = recommend(sparse, Goals.parse(None, "<2%", "350ms"))
    assert found.best is not None
    assert found.best.idle_s in (2_400, 4_800)
    assert found.best.summary.cold_start_rate <= 0.02
    assert found.best.summary.latency_ms["p99"] <= 350


def test_goals_that_cannot_be_met() -> None:
    found = recommend(REQUEST, Goals.parse(None, None, "100ms"))
    assert found.best is None
    assert "durations" in found.why
    found = recommend(Request(rate=200, duration_s=2, seconds=60, account_concurrency=100), Goals())
    assert found.best is None
    assert "--account-concurrency" in found.why
    assert found.as_json()["met"] is False


def test_words_for_goals() -> None:
    goals = Goals.parse("<0.5%", "3", "1.5s")
    assert goals == Goals(Amount(0.005, is_share=True), Amount(3, is_share=False), 1_500)
    assert goals.throttles.met(5, 1_000)
    assert not goals.throttles.met(6, 1_000)
    for bad in (("x", None, None), (None, "-1", None), (None, None, "300"), ("1e3", None, None)):
        with pytest.raises(WorkloadError, match="must be"):
            Goals.parse(*bad)


def test_only_for_one_function(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,duration_s,function\n0,1,a\n1,1,b\n")
    with pytest.raises(WorkloadError, match="one function"):
        recommend(Request(trace=trace), Goals())
    with pytest.raises(WorkloadError, match="leave --reserved out"):
        recommend(Request(rate=1, duration_s=1, reserved=("3",)), Goals())
