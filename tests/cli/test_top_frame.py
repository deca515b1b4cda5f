"""Frames of `lambent top` as pure functions of samples and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.cli.top_frame import (
    CELLS,
    SORTS,
    AccountLevels,
    FunctionSample,
    MachineSample,
    Sample,
    WorkerLevels,
    bar,
    cells,
    chosen,
    frame,
    look,
    matches,
    milliseconds,
    number,
)
from lambent.telemetry.metric_point import bucket_of

GIB = 2**30


def sample(at_s: float, *functions: FunctionSample, pid: int = 1, busy_ticks: int = 0, **account: int) -> Sample:
    levels = {
        "concurrency_max": 1_000,
        "in_flight": 0,
        "reserved": 0,
        "unreserved_in_flight": 0,
        "unreserved_max": 1_000,
        **account,
    }
    return Sample(
        at_s,
        pid,
        False,
        [AccountLevels("000000000000", "us-east-1", **levels)],
        list(functions),
        {},
        [WorkerLevels(200 * 1_024, 5 * 1_024, 40, 4_080)],
        MachineSample(2, 2.9, int(at_s * 200), int(at_s * 200) - busy_ticks, 24 * GIB, 18 * GIB),
    )


def function(name: str = "orders", **more: object) -> FunctionSample:
    return FunctionSample("000000000000", "us-east-1", name, **{"in_flight": 0, **more})  # type: ignore[arg-type]


def buckets(*values_ms: float) -> dict[int, float]:
    found: dict[int, float] = {}
    for value in values_ms:
        found[bucket_of(value)] = found.get(bucket_of(value), 0) + 1
    return found


def text(lines: object) -> str:
    return "\n".join(line.plain for line in lines)  # type: ignore[attr-defined]


def test_rates_and_percentiles_are_of_the_interval() -> None:
    earlier = [1_000.0] * 50
    before = function(invocations=50, errors=4, cold_starts=3, throttles={"X": 2}, duration_buckets=buckets(*earlier))
    later = [float(each) for each in range(1, 101)]
    now = function(
        invocations=150,
        errors=5,
        cold_starts=7,
        throttles={"X": 2, "ConcurrentInvocationLimitExceeded": 6},
        duration_buckets=buckets(*earlier, *later),
    )
    view = look(sample(10, before), sample(12, now, busy_ticks=100))
    row = view.functions[0]
    assert (row.requests_per_s, row.invocations, row.errors, row.cold_starts) == (50.0, 100, 1, 4)
    assert row.throttles == {"ConcurrentInvocationLimitExceeded": 6}
    assert row.p50_ms == pytest.approx(50, rel=0.03)
    assert row.p95_ms == pytest.approx(95, rel=0.03)
    assert row.p99_ms == pytest.approx(99, rel=0.03)  # and not the 1,000 ms of before
    total = view.total
    assert (total.requests_per_s, total.cold_starts, total.throttled) == (50.0, 4, 6)
    assert total.p50_ms == row.p50_ms
    assert view.machine.cpu_percent == pytest.approx(25)  # 100 of the 400 ticks of two processors


def test_a_new_function_and_a_server_that_started_anew() -> None:
    now = sample(12, function(invocations=8, duration_buckets=buckets(*[5.0] * 8)))
    assert look(sample(10), now).functions[0].invocations == 8
    anew = look(sample(10, function(invocations=500), pid=7), now)
    assert anew.interval_s is None
    assert anew.functions[0].invocations == 0
    shrunk = look(sample(10, function(cold_starts=9)), sample(12, function(cold_starts=2)))
    assert shrunk.functions[0].cold_starts == 0


def test_limits_of_functions() -> None:
    view = look(
        None,
        sample(
            1, function("a", reserved=20, in_flight=20), function("b"), function("c", provisioned=5),
            reserved=20, unreserved_max=970, provisioned=5, in_flight=20,
        ),
    )  # fmt: skip
    assert [row.limit for row in view.functions] == [20, 970, 975]
    shown = text(frame(view, 80, 24))
    assert "20/20 res" in shown
    assert "reserved 20" in shown
    assert "pc 0/5" in shown
    assert "provisioned 0/5" in shown


def test_everything_is_told_at_80_by_24() -> None:
    states = dict.fromkeys(CELLS, 2)
    before = sample(10, function(), function("idle-one"))
    now = sample(
        11,
        function(
            in_flight=7,
            environments=states,
            invocations=120,
            errors=3,
            cold_starts=7,
            throttles={"ReservedFunctionConcurrentInvocationLimitExceeded": 5},
            duration_buckets=buckets(*[12.0] * 110, *[950.0] * 10),
        ),
        function("idle-one"),
        in_flight=7,
        unreserved_in_flight=7,
        busy_ticks=50,
    )
    lines = frame(look(before, now), 80, 24, title="Lambent http://127.0.0.1:9400")
    assert len(lines) == 24
    assert all(line.cell_len <= 80 for line in lines)
    shown = text(lines)
    for each in ("7/1,000", "120 requests/s", "p50 1", "p99 9", "cold 7", "errors 3", "throttled 5 (reserved 5)",
                 "cpu", "promised 2.9 vCPU", "6.0/24.0", "5.0/200.0 GiB in 40/4,080 environments", "orders", "idle-one",
                 "◆◆■■++xx◇◇□□··--", "frozen", "pc idle", "q quit"):  # fmt: skip
        assert each in shown, (each, shown)


def test_wide_has_one_line_for_a_function() -> None:
    view = look(None, sample(1, *(function(f"f{i}", in_flight=i, environments={"busy": i}) for i in range(5))))
    lines = [line.plain for line in frame(view, 160, 40)]
    rows = [line for line in lines if line.startswith("f") and not line.startswith("function")]
    assert [row.split()[0] for row in rows] == ["f4", "f3", "f2", "f1", "f0"]
    assert "■■■■" in rows[0]
    assert "4/1,000" in rows[0]


def test_what_has_no_room_is_counted_and_can_be_scrolled_to() -> None:
    view = look(None, sample(1, *(function(f"f{i:02}") for i in range(30))))
    shown = text(frame(view, 80, 24, sort="name"))
    assert "f00" in shown
    assert "f29" not in shown
    assert "more functions (j, k)" in shown
    shown = text(frame(view, 80, 24, sort="name", first=29))
    assert "f29" in shown
    assert "f00" not in shown
    whole = text(frame(view, 80, None, sort="name"))
    assert "f00" in whole
    assert "f29" in whole


def test_filter_and_order() -> None:
    rows = look(
        None, sample(1, function("api-a", in_flight=1), function("api-b", in_flight=3), function("job"))
    ).functions
    assert [row.name for row in chosen(rows, "api", "concurrency")] == ["api-b", "api-a"]
    assert [row.name for row in chosen(rows, None, "name")] == ["api-a", "api-b", "job"]
    assert matches("api-a", "*-a")
    assert not matches("api-a", "api?")
    assert "no function matches zzz" in text(frame(look(None, sample(1)), 80, 24, pattern="zzz"))


def test_a_notice_takes_the_last_line() -> None:
    lines = frame(look(None, sample(1)), 80, 24, notice="no answer")
    assert lines[-1].plain == "no answer"


def test_bars() -> None:
    assert bar(10, 0, 100).plain == "░" * 10
    assert bar(10, 1, 1_000).plain == "█" + "░" * 9  # not nothing
    assert bar(10, 999, 1_000).plain == "█" * 9 + "░"  # not all
    assert bar(10, 100, 100).plain == "█" * 10
    assert bar(10, 5, 0).plain == "░" * 10
    assert bar(0, 5, 10).plain == ""
    assert [span.style for span in bar(10, 50, 100, marked=20).spans] == ["magenta", "green", "bright_black"]


def test_numbers_are_short() -> None:
    assert [number(each) for each in (0, 0.25, 7, 12.34, 999.6, 12_345.0)] == ["0", "0.2", "7", "12.3", "1,000", "12k"]
    assert [milliseconds(each) for each in (None, 1.234, 12.34, 999.4, 1_500, 250_000)] == [
        "–", "1.23ms", "12.3ms", "999ms", "1.5s", "250s",
    ]  # fmt: skip


@given(st.integers(10, 300), st.dictionaries(st.sampled_from(sorted(CELLS)), st.integers(1, 3_000)))
def test_cells_fit_and_leave_no_state_out(width: int, environments: dict[str, int]) -> None:
    drawn = cells(width, environments).plain
    total = sum(environments.values())
    assert len(drawn) <= max(width, len(environments) + len(f" {total:,}"))
    for state in environments:
        assert CELLS[state][0] in drawn
    if total <= width:
        assert len(drawn) == total


@given(
    st.integers(20, 250),
    st.integers(5, 70),
    st.integers(0, 40),
    st.sampled_from(sorted(SORTS)),
    st.integers(0, 50),
)
def test_a_frame_always_fits(width: int, height: int, count: int, sort: str, first: int) -> None:
    functions = [
        function("f" * (i + 1), in_flight=i * 7, environments={"busy": i * 7, "frozen": 3}, invocations=i * 10,
                 throttles={"CallerRateLimitExceeded": i}, duration_buckets=buckets(*[3.0] * i))
        for i in range(count)
    ]  # fmt: skip
    view = look(sample(1), sample(2, *functions))
    lines = frame(view, width, height, sort=sort, first=first)
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)
