"""The recommended setting meets the goals, and one less does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambent.plan.page import page
from lambent.plan.planner import Request, simulate
from lambent.plan.recommend import Amount, Goals, chosen, recommend
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


def test_what_is_not_for_recommend(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,duration_s,function\n0,1,a\n1,1,b\n")
    with pytest.raises(WorkloadError, match="one function"):
        recommend(Request(trace=trace), Goals.parse(None, None, "1s"))
    with pytest.raises(WorkloadError, match="leave --reserved out"):
        recommend(Request(rate=1, duration_s=1, reserved=("3",)), Goals())
    with pytest.raises(WorkloadError, match="leave --provisioned"):
        recommend(Request(rate=1, duration_s=1, provisioned=("3",)), Goals())
    trace.write_text("arrival_s,duration_s,function\n" + "".join(f"{n},1,f{n}\n" for n in range(30)))
    with pytest.raises(WorkloadError, match="at most 20 functions"):
        recommend(Request(trace=trace), Goals())


def test_provisioned_and_reserved_together() -> None:
    """In the aws profile the idle time is not to be chosen."""
    request = Request(rate=10, duration_s=0.5, init_s=0.5, seconds=600, profile="aws")
    found = recommend(request, Goals.parse(None, "<0.05%", None))
    best = found.best
    assert best is not None
    assert best.reserved is not None
    assert 5 < best.provisioned <= best.reserved
    assert best.summary.throttles == 0
    assert best.summary.cold_start_rate <= 0.0005
    fewer = simulate(
        Request(
            rate=10, duration_s=0.5, init_s=0.5, seconds=600, profile="aws", provisioned=(str(best.provisioned - 1),)
        )
    )
    assert fewer.cold_start_rate > 0.0005
    assert {trial.idle_s for trial in found.trials} == {1_000}
    assert best in found.trials


def test_the_other_way_is_told_too() -> None:
    sparse = Request(rate=1 / 500, duration_s=0.3, init_s=0.4, seconds=200_000)
    found = recommend(sparse, Goals.parse(None, "<2%", None))
    assert found.best is not None
    assert found.best.provisioned == 0
    assert found.alternative is not None
    assert found.alternative.provisioned >= 1
    assert found.alternative.idle_s == 600
    assert found.as_json()["alternative"]["provisioned"] == found.alternative.provisioned


def test_several_functions_each_with_its_own(tmp_path: Path) -> None:
    config = tmp_path / "plan.toml"
    config.write_text(
        "[functions.a]\nrate = 20\nduration = 0.3\ninit = 0.4\n"
        "[functions.b]\nrate = 2\nduration = 1\ninit = 1\nmemory = 512\n"
    )
    request = Request(config=config, seconds=400, profile="aws")
    goals = Goals.parse("0", "<0.2%", None)
    found = recommend(request, goals)
    assert found.best is not None
    assert found.best.choice.keys() == {"a", "b"}
    for line in found.best.summary.functions:
        reserved, provisioned = found.best.choice[line.name]
        assert reserved is not None
        assert 0 < provisioned <= reserved
        assert line.reserved == reserved
        assert line.throttles == 0
        assert line.cold_starts <= 0.002 * line.invocations
        # One less of either misses.
        for less in ((reserved, provisioned - 1), (reserved - 1, min(provisioned, reserved - 1))):
            summary = simulate(chosen(request, found.best.choice | {line.name: less}, None))
            own = next(each for each in summary.functions if each.name == line.name)
            assert own.throttles or own.cold_starts > 0.002 * own.invocations
    page_of = page(request, found.best.summary, found)
    assert "recommended" in page_of
    assert page_of.count("<svg") == 11
